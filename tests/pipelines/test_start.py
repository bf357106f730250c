"""Where first weights come from: what is taken over, what is refused, and what stays frozen."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models import statistics
from models.networks import Classifier, build
from pipelines import run as run_files
from pipelines import train as train_module
from pipelines.assemble import TrainingData, open_for_training
from pipelines.config import Normalisation, Origin, RunConfig, TrainConfig
from pipelines.errors import DataError, RunError, UsageError
from pipelines.start import Start, begin, begin_again, described
from pipelines.train import train

pytestmark = pytest.mark.usefixtures("sketched")

SMALL = TrainConfig(
    network="resnet10-narrow", variant="baseline", image_size=32, epochs=1, batch_size=6,
    bootstrap=0, workers=0,
)  # fmt: skip
FROZEN = SMALL.model_copy(
    update={"variant": "unconstrained", "freeze_trunk": True, "accumulate": 2}
)


def network(variant: str = "baseline", *, channels: int = 1, classes: int = 3) -> Classifier:
    return build(
        "resnet10-narrow",
        variant=variant,
        in_channels=channels,
        classes=classes,
        image_size=32,
    )


def trunk_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith("trunk.")}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stop(Exception):
    """Stands in for whatever interrupts training."""


@pytest.fixture(scope="module")
def baseline(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("baseline") / "run"
    train(SMALL.model_copy(update={"augment": SMALL.augment}), data=blobs, run=run)
    return run


@pytest.fixture(scope="module")
def tuned(baseline: Path, blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gates and head on the frozen trunk of the baseline, each batch in two parts."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    train(FROZEN, data=blobs, run=run, start=Start(source=baseline))
    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for grey pictures of three classes, without gates."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("secret-place") / "secret-name.safetensors"
    save_file(network().state_dict(), path)
    return path


@pytest.fixture
def opened(blobs: Path) -> TrainingData:
    return open_for_training(blobs, image_size=32)


class TestFromAFile:
    def test_its_weights_are_where_training_begins(
        self, weights: Path, opened: TrainingData
    ) -> None:
        model = network("unconstrained")
        found = begin(model, Start(pretrained=weights), settings=SMALL, data=opened).origin
        given = load_file(weights)
        assert all(torch.equal(model.state_dict()[name], value) for name, value in given.items())
        assert (found.kind, found.matched, found.unused) == ("file", len(given), 0)
        assert found.sha256 == run_files.sha256(weights)
        assert {name.split(".")[0] for name in found.fresh} == {"attention"}

    def test_a_run_keeps_its_hash_and_neither_its_name_nor_its_place(
        self, blobs: Path, weights: Path, tmp_path: Path
    ) -> None:
        report = train(SMALL, data=blobs, run=tmp_path / "run", start=Start(pretrained=weights))
        kept = run_files.read_config(tmp_path / "run").origin
        assert kept.sha256 == run_files.sha256(weights)
        card = (tmp_path / "run" / "model_card.md").read_text()
        line = (
            f"first weights from a file of weights, SHA-256 {kept.sha256}: {kept.matched} tensors"
        )
        assert line in card
        assert line in report.summary()
        for path in (tmp_path / "run").rglob("*"):
            assert path.is_dir() or b"secret" not in path.read_bytes()

    def test_what_may_stay_unmatched_is_named(
        self, tmp_path: Path, weights: Path, opened: TrainingData
    ) -> None:
        path = tmp_path / "two.pt"
        torch.save(network(classes=2).state_dict(), path)
        with pytest.raises(
            UsageError, match=r"fit nothing .*command line: --allow NAME"
        ) as refusal:
            begin(network(), Start(pretrained=path), settings=SMALL, data=opened)
        assert refusal.value.code == "WEIGHTS_UNMATCHED"
        start = Start(pretrained=path, allow=("head",))
        found = begin(network(), start, settings=SMALL, data=opened).origin
        assert set(found.fresh) == {"head.weight", "head.bias"}
        assert (found.unused, "2 of the source unused" in described(found)[0]) == (2, True)

    def test_a_first_convolution_is_fitted_to_the_channels(
        self, tmp_path: Path, opened: TrainingData
    ) -> None:
        path = tmp_path / "colour.pt"
        torch.save(network(channels=3).state_dict(), path)
        found = begin(network(), Start(pretrained=path), settings=SMALL, data=opened).origin
        assert found.adapted == ("trunk.stem.conv1.weight",)
        assert "1 fitted (trunk.stem.conv1.weight), none at random" in described(found)[0]

    def test_a_file_that_is_not_there(self, tmp_path: Path, opened: TrainingData) -> None:
        start = Start(pretrained=tmp_path / "none.pt")
        with pytest.raises(UsageError, match=r"--pretrained cannot be read \(FileNotFoundError\)"):
            begin(network(), start, settings=SMALL, data=opened)

    def test_the_second_statistics_of_a_file_are_kept(
        self, tmp_path: Path, opened: TrainingData
    ) -> None:
        """Those of the first look are its own where the file has them."""
        given = network("exact-two-pass")
        for name, buffer in given.named_buffers():
            if "first_look" in name and name.endswith("running_mean"):
                buffer.fill_(7)
        torch.save(given.state_dict(), tmp_path / "exact.pt")
        model = network("exact-two-pass")
        begin(model, Start(pretrained=tmp_path / "exact.pt"), settings=SMALL, data=opened)
        assert equal(dict(model.state_dict()), dict(given.state_dict()))


class TestFromARun:
    @pytest.mark.parametrize(
        ("variant", "options"),
        [
            ("unconstrained", {}),
            ("exact", {}),
            ("exact-two-pass", {}),
            ("dual", {"pool_scale": 1.0, "embedding": [8]}),
        ],
    )
    def test_with_even_maps_it_predicts_as_its_source_does(
        self, baseline: Path, opened: TrainingData, variant: str, options: dict[str, Any]
    ) -> None:
        """However features are scaled on the way to the head."""
        model = build(
            "resnet10-narrow", variant=variant, in_channels=1, classes=3, image_size=32, **options
        )
        settings = FROZEN.model_copy(update={"variant": variant, "network_options": options})
        begin(model, Start(source=baseline), settings=settings, data=opened)
        for name, value in model.named_parameters():
            if ".potential." in name:
                nn.init.zeros_(value)
        source = network()
        run_files.load_weights(baseline, source)
        images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found, expected = model.eval()(images).logits, source.eval()(images).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_a_frozen_trunk_is_the_sources_to_the_byte(self, baseline: Path, tuned: Path) -> None:
        """Weights, statistics and counters; though everything else has moved."""
        given = load_file(baseline / "best.safetensors")
        last = torch.load(tuned / "last.ckpt", weights_only=True)
        for found in (last["network"], load_file(tuned / "best.safetensors")):
            assert equal(trunk_of(found), trunk_of(given))
        assert "trunk.stem.bn1.running_mean" in given
        torch.manual_seed(0)
        fresh = network("unconstrained").state_dict()
        moved = {n for n, v in last["network"].items() if not torch.equal(v, fresh[n])}
        assert any("gates" in name for name in moved)
        held = sum(len(group["params"]) for group in last["optimizer"]["param_groups"])
        learning = [name for name, _ in network("unconstrained").named_parameters()]
        assert held == len([name for name in learning if not name.startswith("trunk.")])
        assert "the trunk is frozen" in (tuned / "model_card.md").read_text()

    def test_its_normalisation_is_kept_where_its_trunk_is_frozen(
        self, baseline: Path, opened: TrainingData
    ) -> None:
        kept = run_files.read_config(baseline)
        for settings, expected in ((FROZEN, kept.normalisation), (SMALL, None)):
            model = network(settings.variant)
            found = begin(model, Start(source=baseline), settings=settings, data=opened)
            assert found.normalisation == expected

    def test_unfrozen_everything_learns(self, baseline: Path, blobs: Path, tmp_path: Path) -> None:
        config = FROZEN.model_copy(update={"freeze_trunk": False})
        train(config, data=blobs, run=tmp_path / "run", start=Start(source=baseline))
        given, found = (load_file(r / "best.safetensors") for r in (baseline, tmp_path / "run"))
        assert not any(
            torch.equal(found[name], value)
            for name, value in given.items()
            if name.startswith("trunk.") and name.endswith("conv1.weight")
        )

    def test_the_random_state_is_that_of_a_run_from_nothing(
        self, baseline: Path, opened: TrainingData
    ) -> None:
        torch.manual_seed(3)
        model, before = network("exact"), torch.get_rng_state()
        begin(model, Start(source=baseline), settings=SMALL, data=opened)
        assert torch.equal(torch.get_rng_state(), before)

    def test_other_classes_leave_the_head_at_random(
        self, baseline: Path, tmp_path: Path, opened: TrainingData
    ) -> None:
        source = renamed(baseline, tmp_path, classes=("a", "b", "c"))
        model = network()
        before = model.head.weight.clone()
        found = begin(model, Start(source=source), settings=SMALL, data=opened).origin
        assert torch.equal(model.head.weight, before)
        assert set(found.fresh) == {"head.weight", "head.bias"}
        assert "the source tells other classes apart" in described(found)[1]

    @pytest.mark.parametrize(
        ("changes", "data", "message"),
        [
            ({"network": "resnet18-narrow"}, {}, "network resnet18-narrow, here resnet10-narrow"),
            (
                {},
                {"in_channels": 4},
                r"another make \(channels 4, here 1\): its weights do not fit",
            ),
        ],
    )
    def test_another_make(
        self, baseline: Path, tmp_path: Path, opened: TrainingData, changes: dict, data: dict,
        message: str,
    ) -> None:  # fmt: skip
        source = renamed(baseline, tmp_path, train=changes, **data)
        with pytest.raises(UsageError, match=message) as refusal:
            begin(network(), Start(source=source), settings=SMALL, data=opened)
        assert refusal.value.code == "START_DIFFERS"

    def test_a_run_that_has_not_ended(
        self, baseline: Path, tmp_path: Path, opened: TrainingData
    ) -> None:
        source = shutil.copytree(baseline, tmp_path / "copy")
        (source / "run.json").unlink()
        with pytest.raises(RunError, match=r"holds no run\.json: its training has not ended"):
            begin(network(), Start(source=source), settings=SMALL, data=opened)
        with pytest.raises(RunError, match=r"holds no config\.yaml"):
            begin(network(), Start(source=tmp_path), settings=SMALL, data=opened)


def renamed(run: Path, place: Path, *, train: dict | None = None, **data: Any) -> Path:
    """Copy a run as if it had been trained on other data or with other settings."""
    copy = shutil.copytree(run, place / "source")
    kept = run_files.read_config(copy)
    changed = kept.model_copy(
        update={
            "data": kept.data.model_copy(update=data),
            "train": kept.train.model_copy(update=train or {}),
        }
    )
    (copy / "config.yaml").write_text(changed.to_yaml())
    model = network()
    model.load_state_dict(load_file(run / "best.safetensors"))
    run_files.save_weights(copy, model)
    run_files.seal(copy)
    return copy


class TestOtherData:
    def begun(self, source: Path, opened: TrainingData, *allow: str) -> Origin:
        start = Start(source=source, allow=allow)
        return begin(network(), start, settings=SMALL, data=opened).origin

    def test_the_same_data_set_needs_no_remark(self, baseline: Path, opened: TrainingData) -> None:
        assert self.begun(baseline, opened).remarks == ()

    def test_patients_who_tested_there_may_test_here(
        self, baseline: Path, tmp_path: Path, opened: TrainingData
    ) -> None:
        source = renamed(baseline, tmp_path, manifest_sha256="0" * 64)
        (remark,) = self.begun(source, opened).remarks
        assert remark.endswith("in which these patients also test")

    @pytest.mark.parametrize("table", ["", "sample_id,split\na,test\n", None])
    def test_patients_who_may_have_trained_there_may_not(
        self, baseline: Path, tmp_path: Path, opened: TrainingData, table: str | None
    ) -> None:
        source = renamed(baseline, tmp_path, manifest_sha256="0" * 64)
        (source / "predictions.csv").unlink()
        if table is not None:
            (source / "predictions.csv").write_text(table)
        with pytest.raises(DataError, match=r"may have trained: .* --allow other-data") as refusal:
            self.begun(source, opened)
        assert refusal.value.code == "OTHER_SPLIT"
        (remark,) = self.begun(source, opened, "other-data").remarks
        assert "may have been in its training, and the test scores be too good" in remark

    def test_a_data_set_of_another_kind_has_other_patients(
        self, baseline: Path, tmp_path: Path, opened: TrainingData
    ) -> None:
        source = renamed(baseline, tmp_path, manifest_sha256="0" * 64, recipe="another")
        (source / "predictions.csv").unlink()
        assert self.begun(source, opened).remarks == ("the source was trained on another data set",)


class TestRefusals:
    def test_two_starts(self, baseline: Path, weights: Path, opened: TrainingData) -> None:
        start = Start(source=baseline, pretrained=weights)
        with pytest.raises(UsageError, match="exclude each other") as refusal:
            begin(network(), start, settings=SMALL, data=opened)
        assert refusal.value.code == "TWO_STARTS"

    def test_a_trunk_frozen_at_random(self, blobs: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="name a baseline run with --from") as refusal:
            train(FROZEN, data=blobs, run=tmp_path / "run")
        assert refusal.value.code == "FROZEN_AT_RANDOM"
        assert not (tmp_path / "run").exists()


class TestResume:
    def stopped(self, data: Path, run: Path, start: Start, config: TrainConfig) -> None:
        def stop(*_: Any) -> None:
            raise Stop

        with pytest.MonkeyPatch.context() as during:
            during.setattr(train_module.Loop, "_close_epoch", stop)
            with pytest.raises(Stop):
                train(config, data=data, run=run, start=start)

    @pytest.mark.parametrize("every", [0, 2])
    def test_it_needs_no_source_and_ends_with_the_same_bytes(
        self, baseline: Path, tuned: Path, blobs: Path, tmp_path: Path, every: int
    ) -> None:
        """From the checkpoint written before the first step, or from one in the middle."""
        config = FROZEN.model_copy(update={"checkpoint_iterations": every})
        source = shutil.copytree(baseline, tmp_path / "source")
        self.stopped(blobs, tmp_path / "cut", Start(source=source), config)
        state = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
        assert state["iteration"] == every
        shutil.rmtree(source)
        train(config, data=blobs, run=tmp_path / "cut", start=Start(source=source), resume=True)
        cut, whole = (load_file(run / "best.safetensors") for run in (tmp_path / "cut", tuned))
        assert equal(cut, whole)
        cut, whole = (
            torch.load(run / "last.ckpt", weights_only=True) for run in (tmp_path / "cut", tuned)
        )
        assert equal(cut["network"], whole["network"])

    def kept(self, weights: Path, opened: TrainingData) -> RunConfig:
        origin = Origin(kind="file", sha256=run_files.sha256(weights))
        scale = Normalisation(mean=(0.0,), sd=(1.0,))
        return RunConfig(data=opened.summary, normalisation=scale, train=SMALL, origin=origin)

    def test_before_the_first_checkpoint_the_file_is_asked_for(
        self, weights: Path, tmp_path: Path, opened: TrainingData
    ) -> None:
        kept, model = self.kept(weights, opened), network()
        for start in (Start(), Start(pretrained=tmp_path / "gone.pt")):
            with pytest.raises(UsageError, match="name the same --pretrained or --from") as refusal:
                begin_again(model, start, kept=kept, run=tmp_path, data=opened)
            assert refusal.value.code == "START_MISSING"
        begin_again(model, Start(pretrained=weights), kept=kept, run=tmp_path, data=opened)
        assert equal(dict(model.state_dict()), load_file(weights))

    def test_another_file_is_refused(
        self, weights: Path, tmp_path: Path, opened: TrainingData
    ) -> None:
        torch.save(network().state_dict(), tmp_path / "other.pt")
        start = Start(pretrained=tmp_path / "other.pt")
        with pytest.raises(UsageError, match="began with other weights than the file") as refusal:
            begin_again(
                network(), start, kept=self.kept(weights, opened), run=tmp_path, data=opened
            )
        assert refusal.value.code == "RESUME_DIFFERS"


class TestFrozenTrunk:
    def test_training_mode_does_not_reach_it(self) -> None:
        model = network("exact").train()
        model.trunk.freeze()
        assert not any(part.training for part in model.trunk.modules())
        model.train()
        assert not any(part.training for part in model.trunk.modules())
        assert model.training
        assert model.attention.training
        assert not any(value.requires_grad for value in model.trunk.parameters())

    def test_its_statistics_are_not_measured_anew(self) -> None:
        model = network("exact")
        model.trunk.freeze()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        statistics.remeasure(model, [torch.randn(4, 1, 32, 32) for _ in range(2)])
        assert equal(dict(model.state_dict()), before)

    def test_gates_between_its_stages_learn(self) -> None:
        model = network("unconstrained").train()
        model.trunk.freeze()
        model(torch.randn(4, 1, 32, 32)).logits.square().sum().backward()
        missing = [n for n, v in model.named_parameters() if v.requires_grad and v.grad is None]
        assert missing == []
        assert all(value.grad is None for value in model.trunk.parameters())


def test_a_start_from_nothing_says_so(blobs: Path, baseline: Path) -> None:
    assert described(Origin()) == ("first weights drawn at random",)
    assert "first weights drawn at random" in (baseline / "model_card.md").read_text()
    assert json.loads((baseline / "run.json").read_text())["sha256"]


def test_a_preset_tells_its_differences_in_the_card(
    blobs: Path, baseline: Path, tmp_path: Path, make_blobs: Callable[..., Path]
) -> None:
    config = TrainConfig.of(
        {
            "preset": "paper-fdg-pet",
            **SMALL.model_dump(include={"network", "image_size", "epochs", "bootstrap"}),
            "network_options": {"embedding": [8]},
        }
    )
    train(config, data=blobs, run=tmp_path / "run", start=Start(source=baseline))
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "Preset paper-fdg-pet; settings given beside it win." in card
    assert "- choice of the epoch: the lowest loss on validation patients" in card
