"""Training on robust objectives: what it leaves, what equals standard training, what is refused."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.networks import build
from pipelines import machine, training_loop
from pipelines import train as train_module
from pipelines.assemble import Forward, open_for_training
from pipelines.augment import augment
from pipelines.config import AugmentConfig, Normalisation, RobustConfig, TrainConfig, ValidRange
from pipelines.errors import DataError, UsageError
from pipelines.feed import Order, TrainingFeed, augmenting, measure
from pipelines.handlers import Losses
from pipelines.mask_feed import FULL, MaskedFeed, masks_of
from pipelines.robust import RobustTraining, domain_of, remarks_on, robust_of, valid_range
from pipelines.stores import store
from pipelines.train import rehearse, train
from tests.pipelines.test_multilabel import write_findings

pytestmark = pytest.mark.usefixtures("sketched")

CPU = torch.device("cpu")
PLAIN = TrainConfig(
    network="resnet10-narrow", variant="exact", image_size=32, epochs=1, batch_size=6, bootstrap=0,
    statistics_pictures=0, workers=0,
)  # fmt: skip


def robustly(objective: str, base: TrainConfig = PLAIN, **given: Any) -> TrainConfig:
    settings = {name: value for name, value in given.items() if name in RobustConfig.model_fields}
    others = {name: value for name, value in given.items() if name not in settings}
    update = {"objective": objective, "robust": RobustConfig(**settings), **others}
    return base.model_copy(update=update)


class Trained(Exception):
    """Raised where scores and plots would follow, which take longer than the training."""


def trained(config: TrainConfig, data: Path, run: Path, **given: Any) -> dict[str, torch.Tensor]:
    def stop(*_: Any) -> None:
        raise Trained

    with pytest.MonkeyPatch.context() as during:
        during.setattr(train_module, "_conclude", stop)
        with pytest.raises(Trained):
            train(config, data=data, run=run, **given)
    return torch.load(run / "last.ckpt", weights_only=True)["network"]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights_in(file: Path) -> bytes:
    """What follows the header, which names the settings; its length stands in the first 8 bytes."""
    content = file.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def standard_run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("standard") / "run"
    trained(PLAIN, blobs, run)
    return run


@pytest.fixture(scope="module")
def standard(standard_run: Path) -> dict[str, torch.Tensor]:
    return torch.load(standard_run / "last.ckpt", weights_only=True)["network"]


class TestStandardToTheBit:
    @pytest.mark.parametrize(
        ("objective", "given"),
        [
            ("standard", {}),
            ("l1", {"radius": 0.0}),
            ("pgd", {"radius": 0.0}),
            ("pgd", {"weight": 0.0}),
            ("group-penalty", {"weight": 0.0}),
            ("mask-guided", {"radius": 0.0}),
        ],
    )
    def test_no_radius_or_no_weight(
        self, blobs: Path, tmp_path: Path, standard: dict[str, torch.Tensor], standard_run: Path,
        objective: str, given: dict[str, float], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The same weights, and nothing is attacked, measured or read for it."""
        monkeypatch.setattr(training_loop, "RobustTraining", None)
        monkeypatch.setattr(train_module, "valid_range", None)
        monkeypatch.setattr(train_module, "masks_of", None)
        found = trained(robustly(objective, **given), blobs, tmp_path / "run")
        assert same(found, standard)
        one, other = (run / "best.safetensors" for run in (standard_run, tmp_path / "run"))
        assert weights_in(one) == weights_in(other)
        names = set(rows(tmp_path / "run")[0])
        assert {"train_loss", "train_classification", "train_consistency"} <= names
        assert not [name for name in names if "robust" in name]

    def test_a_perturbation_too_small_to_see_changes_next_to_nothing(
        self, blobs: Path, tmp_path: Path, standard: dict[str, torch.Tensor]
    ) -> None:
        found = trained(robustly("l1", radius=1e-30), blobs, tmp_path / "run")
        assert same(found, standard)


class TestTraining:
    @pytest.mark.parametrize(
        ("objective", "given"),
        [
            ("fgsm", {"radius": 0.02, "variant": "dual-published"}),
            ("pgd", {"radius": 0.02, "steps": 2, "weight": 0.5, "accumulate": 2}),
            ("elastic-iterative", {"steps": 2, "precision": "bfloat16"}),
            ("group", {"patch": 5, "across_channels": True, "precision": "float16"}),
            ("l2-penalty", {"network": "unet-encoder-narrow"}),
            ("mask-guided", {"weight": 0.5, "network": "vit-narrow", "variant": "baseline"}),
        ],
    )
    def test_each_kind_trains_and_says_so(
        self, blobs: Path, tmp_path: Path, standard: dict[str, torch.Tensor], objective: str,
        given: dict[str, Any],
    ) -> None:  # fmt: skip
        config = robustly(objective, **given)
        found = trained(config, blobs, tmp_path / "run")
        assert all(value.isfinite().all() for value in found.values())
        if found.keys() == standard.keys():
            assert not same(found, standard)
        row = {name: float(value) for name, value in rows(tmp_path / "run")[0].items()}
        weight = given.get("weight", 1.0)
        if "penalty" in objective:
            assert row["train_loss"] == pytest.approx(
                row["train_classification"] + row["train_consistency"]
                + row["train_robust_penalty"], rel=1e-5,
            )  # fmt: skip
            assert row["train_robust_penalty"] > 0
            return
        alpha = {"dual-published": 10, "baseline": 0}.get(config.variant, 1)
        loss = {
            prefix: row.get(f"train_{prefix}classification", 0)
            + alpha * row.get(f"train_{prefix}consistency", 0)
            for prefix in ("", "robust_")
        }
        mixed = (1 - weight) * loss[""] + weight * loss["robust_"]
        assert row["train_loss"] == pytest.approx(mixed, rel=1e-5)
        assert ("train_classification" in row) == (weight < 1)
        assert ("train_robust_ridge_share" in row) == ("elastic" in objective)
        assert row.get("train_robust_ridge_share", 1) > 0

    def test_pictures_under_attack_cost_more(self, blobs: Path, tmp_path: Path) -> None:
        config = robustly("pgd", radius=0.1, weight=0.5, learning_rate=1e-6)
        trained(config, blobs, tmp_path / "run")
        row = rows(tmp_path / "run")[0]
        assert float(row["train_robust_classification"]) > float(row["train_classification"])

    def test_label_sets(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path, counts={"train": 8, "validation": 8})
        for objective in ("pgd", "elastic-penalty"):
            config = robustly(objective, batch_size=4, variant="baseline")
            found = trained(config, data, tmp_path / objective)
            assert all(value.isfinite().all() for value in found.values())

    def test_parts_are_the_whole(self, blobs: Path, tmp_path: Path) -> None:
        """A network without batch statistics; random starts are a picture's own."""
        base = PLAIN.model_copy(
            update={"network": "vit-narrow", "variant": "baseline", "optimizer": "sgd",
                    "learning_rate": 0.02, "warmup_epochs": 0.0}
        )  # fmt: skip
        given = {"radius": 0.3, "steps": 2, "weight": 0.5}
        whole = trained(robustly("pgd-l2", base, **given), blobs, tmp_path / "whole")
        parts = robustly("pgd-l2", base, accumulate=4, **given)
        found = trained(parts, blobs, tmp_path / "parts")
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)

    def test_resumed_it_ends_with_the_same_weights(self, blobs: Path, tmp_path: Path) -> None:
        class Stop(Exception):
            pass

        def stop(stage: str, done: int, total: int) -> None:
            if stage == "training" and done == 2:
                raise Stop

        config = robustly("pgd", steps=2, weight=0.5, checkpoint_iterations=1)
        whole = trained(config, blobs, tmp_path / "whole")
        with pytest.raises(Stop):
            train(config, data=blobs, run=tmp_path / "cut", progress=stop)
        assert same(trained(config, blobs, tmp_path / "cut", resume=True), whole)
        assert rows(tmp_path / "cut")[0]["train_loss"] == rows(tmp_path / "whole")[0]["train_loss"]

    def test_what_is_compiled_is_trained_and_not_attacked(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Compiled(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self._orig_mod = network

            def forward(self, images: torch.Tensor) -> Any:
                asked.append(self.training)
                return self._orig_mod(images)

        asked: list[bool] = []
        plain = trained(robustly("pgd", steps=2), blobs, tmp_path / "plain")
        monkeypatch.setattr(training_loop.torch, "compile", Compiled)
        monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
        found = trained(robustly("pgd", steps=2, compile=True), blobs, tmp_path / "compiled")
        assert asked == [True] * 3
        assert same(found, plain)

    def test_the_model_card_says_what_was_trained(
        self, make_blobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = make_blobs(counts={"train": 6, "validation": 6})
        monkeypatch.setattr(train_module.outcome, "draw_curves", lambda *_, **__: None)
        train(robustly("elastic", weight=0.5), data=data, run=tmp_path / "run")
        card = (tmp_path / "run" / "model_card.md").read_text()
        assert "trained on the objective 'elastic', weight 0.5: radius 0.005 in shares of" in card
        assert "objective: elastic" in (tmp_path / "run" / "config.yaml").read_text()


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "code"),
        [
            (robustly("fgms"), "UNKNOWN_OBJECTIVE"),
            (robustly("standard", radius=0.1), "BAD_SETTING"),
            (robustly("fgsm", steps=3), "BAD_SETTING"),
        ],
    )
    def test_settings(self, blobs: Path, tmp_path: Path, config: TrainConfig, code: str) -> None:
        with pytest.raises(UsageError, match="objective and robust settings: ") as refusal:
            rehearse(config, data=blobs, run=tmp_path / "run")
        assert refusal.value.code == code
        assert not (tmp_path / "run").exists()

    def test_masks_that_are_not_there(self, make_blobs: Any, tmp_path: Path) -> None:
        data = make_blobs(with_truth=False)
        with pytest.raises(DataError, match="'mask-guided' is told by masks") as refusal:
            train(robustly("mask-guided"), data=data, run=tmp_path / "run")
        assert refusal.value.code == "NO_MASKS"
        assert not (tmp_path / "run").exists()


class Batches:
    """A store of what it is given."""

    def __init__(self, *held: torch.Tensor) -> None:
        self._held = held

    def batches(self, orders: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
        yield from self._held


class TestRange:
    def test_bytes_can_be_all_that_bytes_are(self) -> None:
        pixels = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
        assert valid_range(Batches(pixels), 2) == ValidRange(low=(0.0,) * 3, high=(255.0,) * 3)

    def test_other_values_are_what_the_split_holds(self) -> None:
        one, other = torch.zeros(2, 2, 4, 4), torch.zeros(1, 2, 4, 4)
        one[1, 0, 3, 3], other[0, 1, 0, 0] = 5, -2
        found = valid_range(Batches(one, other), 3)
        assert found == ValidRange(low=(0.0, -2.0), high=(5.0, 0.0))

    def test_a_radius_is_a_share_of_it_or_a_standard_deviation(self) -> None:
        valid = ValidRange(low=(0.0,), high=(200.0,))
        measured = Normalisation(mean=(50.0,), sd=(10.0,))
        assert domain_of(measured, valid).step.item() == 20
        scored = Normalisation(mean=(0.0,), sd=(1.0,))
        assert domain_of(scored, ValidRange(low=(-3.0,), high=(8.0,))).step.item() == 1
        assert "in standard deviations of the brain" in remarks_on(robustly("l1"), scored)[0]

    def test_remarks(self) -> None:
        measured = Normalisation(mean=(50.0,), sd=(10.0,))
        assert remarks_on(PLAIN, measured) == ()
        assert "is standard training" in remarks_on(robustly("l1", weight=0.0), measured)[0]
        assert "factor 1: radius 0.05" in remarks_on(robustly("group-penalty"), measured)[0]

    def test_a_domain_of_the_data_holds_its_pictures(self, blobs: Path) -> None:
        found = open_for_training(blobs, image_size=32).splits["train"]
        held = store(found, feed="resident", device=CPU)
        domain = domain_of(measure(held, len(found)), valid_range(held, len(found)))
        (images,) = held.batches(iter([np.arange(len(found))]))
        back = (images - domain.shift) / domain.scale
        assert torch.equal(domain.moved(back, torch.zeros_like(back)), back)


class TestMasks:
    def test_they_move_with_their_pictures(self, blobs: Path) -> None:
        """The mask is the bright blob, in every augmented picture too."""
        found = open_for_training(blobs, image_size=32).splits["train"]
        order = Order(labels=found.labels, batch_size=6, seed=3, balanced=False)
        held = store(found, feed="resident", device=CPU)
        settings = AugmentConfig(rotate_deg=40.0, translate=0.1, scale=0.2)
        measured = measure(held, len(found))
        masks = store(masks_of(found, objective="x"), feed="stream", device=CPU)
        for start in (0, 2):
            feed = TrainingFeed(held, order, measured=measured, settings=settings, start=start)
            beside = TrainingFeed(held, order, measured=measured, settings=settings, start=start)
            masked = MaskedFeed(feed, masks, order=order, settings=settings, start=start)
            for batch, plain, _ in zip(masked, beside, range(3), strict=False):
                assert torch.equal(batch["image"], plain["image"])
                assert batch["mask"].shape == batch["image"][:, 0].shape
                for image, mask in zip(batch["image"][:, 0], batch["mask"], strict=True):
                    if mask.max() > 0.9:
                        assert image[mask > 0.9].mean() > image[mask == 0].max()

    def test_shares_of_a_pixel_are_kept(self, blobs: Path) -> None:
        found = open_for_training(blobs, image_size=16).splits["train"]
        masks = masks_of(found, objective="x")
        assert masks[1].dtype == torch.uint8
        values = masks[1].unique().tolist()
        assert (values[0], values[-1]) == (0, FULL)
        assert len(values) > 2
        assert masks.sample_ids == found.sample_ids
        assert masks.subject_ids == found.subject_ids
        assert np.array_equal(masks.rows.labels, found.rows.labels)

    def test_bright_or_dark_moves_no_mask(self) -> None:
        settings = AugmentConfig(intensity=0.5)
        feed = [{"image": torch.zeros(2, 1, 8, 8)}]
        masks = Batches(torch.full((2, 1, 8, 8), FULL, dtype=torch.uint8))
        order = Order(labels=np.array([0, 1]), batch_size=2, seed=0, balanced=False)
        (batch,) = MaskedFeed(feed, masks, order=order, settings=settings)
        torch.testing.assert_close(batch["mask"], torch.ones(2, 8, 8))
        assert batch["mask"].max() <= 1
        dark = augment(torch.ones(2, 1, 8, 8), settings, generator=augmenting(0, 0))
        assert not torch.equal(dark[:, 0], batch["mask"])


class TestProcesses:
    def test_random_starts_are_those_of_the_whole_batch(self) -> None:
        labels, images = np.zeros(6, dtype=np.int64), torch.zeros(6, 1, 4, 4)

        def drawn(rank: int, world: int) -> torch.Tensor:
            order = Order(
                labels=labels, batch_size=5, seed=1, balanced=False,
                launch=training_loop.ALONE.launch.__class__(rank=rank, world=world),
            )  # fmt: skip
            made = RobustTraining(
                robust_of(robustly("pgd"), (4, 4)),
                network=build("resnet10-narrow", variant="baseline", in_channels=1, classes=3,
                              image_size=32),
                domain=domain_of(Normalisation(mean=(0.0,), sd=(2.0,)),
                                 ValidRange(low=(0.0,), high=(1.0,))),
                forward=Forward(CPU, "float32"),
                losses=Losses(alpha=0.0, class_weights=None, label_smoothing=0.0),
                order=order,
            )  # fmt: skip
            start = made.extras(images, {}, iteration=3).start
            assert start is not None
            return start

        whole = drawn(0, 1)
        assert len(whole) == 5
        assert whole.abs().max() <= 1
        assert torch.equal(drawn(0, 2), whole[::2])
        assert torch.equal(drawn(1, 2), whole[1::2])


def test_settings_read_back(tmp_path: Path) -> None:
    config = robustly("group", radius=0.125, patch=3)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == config
    assert json.loads(config.model_dump_json())["robust"]["patch"] == 3
