"""Training on pictures that may show several findings: labels, loss, scores, files, refusals.

The toy: 32 x 32 noise with a bright bar at the head (finding a), a bright bar at the feet (b), or a
dark centre (c), in any combination, none included.
"""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from models.records import Prediction
from pipelines import run as run_files
from pipelines.assemble import open_for_training
from pipelines.config import ExplainConfig, TrainConfig
from pipelines.errors import DataError
from pipelines.explain import explain
from pipelines.feed import Order, pictures
from pipelines.handlers import Losses
from pipelines.label_sets import names_of, probabilities, read_label_sets
from pipelines.outcome import validated
from pipelines.train import TrainReport, train
from pipelines.training_loop import LARGEST_WEIGHT, rarity
from preprocessing.shards import open_dataset

pytestmark = pytest.mark.usefixtures("sketched")

SIZE = 32
CLASSES = ("a", "b", "c")
COUNTS = {"train": 32, "validation": 8, "test": 16}
SETTINGS = TrainConfig(
    network="resnet10-narrow",
    variant="baseline",
    epochs=6,
    batch_size=8,
    learning_rate=3e-3,
    bootstrap=40,
    workers=0,
)
WEIGHTED = SETTINGS.model_copy(update={"epochs": 2, "checkpoint_iterations": 1, "balance": "loss"})
LabelSet = Callable[[str, int], Any]


def any_combination(split: str, i: int) -> tuple[int, ...]:
    return i & 1, i >> 1 & 1, i >> 2 & 1


def drawn(rng: np.random.Generator, label_set: Any) -> np.ndarray:
    image = rng.integers(60, 120, (1, SIZE, SIZE)).astype(np.uint8)
    shown = (*np.ravel(label_set), 0, 0, 0)
    image[:, 2:8] += np.uint8(100 * (shown[0] == 1))
    image[:, -8:-2] += np.uint8(100 * (shown[1] == 1))
    if shown[2] == 1:
        image[:, 12:20, 12:20] = 0
    return image


def write_findings(
    out: Path,
    label_set: LabelSet = any_combination,
    *,
    counts: dict[str, int] | None = None,
    classes: tuple[str, ...] = CLASSES,
    dtype: str = "uint8",
) -> Path:
    """Write a data set by hand, two pictures to a patient."""
    rng = np.random.default_rng(0)
    shards = []
    for split, count in (counts or COUNTS).items():
        if not count:
            continue
        sets = np.array([label_set(split, i) for i in range(count)], dtype=dtype)
        with h5py.File(out / f"{split}.h5", "w") as file:
            file.attrs["encoding-type"] = "dualwitness-shard"
            file.attrs["encoding-version"] = "1.0"
            file["image"] = np.stack([drawn(rng, row) for row in sets])
            file["label"] = np.full(count, -1)
            file["labels"] = sets
            file["subject_id"] = np.array([f"{split}{i // 2}" for i in range(count)], dtype="S16")
            file["sample_id"] = np.array([f"{split}-{i}" for i in range(count)], dtype="S16")
        shards.append({"file": f"{split}.h5", "split": split})
    manifest = {
        "encoding-type": "dualwitness-dataset",
        "encoding-version": "1.0",
        "name": "findings",
        "classes": list(classes),
        "shards": shards,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_findings(tmp_path_factory.mktemp("findings"))


@pytest.fixture(scope="module")
def trained(findings: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    run = tmp_path_factory.mktemp("trained") / "run"
    return run, train(SETTINGS, data=findings, run=run)


@pytest.fixture(scope="module")
def weighted(findings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two undisturbed epochs with weights of rarity."""
    run = tmp_path_factory.mktemp("weighted") / "run"
    train(WEIGHTED, data=findings, run=run)
    return run


@pytest.fixture(scope="module")
def explained(
    findings: Path, trained: tuple[Path, TrainReport], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The first eight test pictures by their true findings: no finding first, all three last."""
    out = tmp_path_factory.mktemp("explained") / "out"
    settings = ExplainConfig(methods=("gradcam",), target="truth", limit=8, volumes=False)
    explain(settings, run=trained[0], out=out, data=findings)
    return out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class TestLabels:
    def test_every_row_takes_part_with_its_label_set(self, findings: Path) -> None:
        rows = open_dataset(findings).split("train")
        found = pictures(rows, (SIZE, SIZE), labelled=True)
        assert found.labels.tolist() == [list(any_combination("train", i)) for i in range(32)]
        assert len(found) == len(rows)
        assert (np.asarray(rows.labels) == -1).all()

    def test_sigmoids_do_not_share_a_sum(self) -> None:
        logits = torch.tensor([[0.0, math.log(3)], [-math.log(3), 0.0]])
        expected = [[0.5, 0.75], [0.25, 0.5]]
        np.testing.assert_allclose(probabilities(logits, "multi-label"), expected, atol=1e-7)
        shares = probabilities(logits, "multi-class")
        np.testing.assert_allclose(shares, [[0.25, 0.75], [0.25, 0.75]], atol=1e-7)

    def test_label_sets_are_not_drawn_balanced(self) -> None:
        sets = np.eye(3, dtype=np.uint8)
        with pytest.raises(ValueError, match="cannot be drawn balanced by class"):
            Order(labels=sets, batch_size=2, seed=0, balanced=True)
        order = Order(labels=sets, batch_size=3, seed=0, balanced=False)
        assert sorted(order.epoch(0)) == [0, 1, 2]

    def test_names_are_those_of_the_ones(self) -> None:
        assert names_of(np.array([1, 0, 1]), CLASSES) == ("a", "c")


class TestLoss:
    def test_it_is_torchs_mean_over_findings_with_the_weights_of_the_present(self) -> None:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(5, 3, generator=generator)
        sets = torch.randint(0, 2, (5, 3), generator=generator, dtype=torch.uint8)
        weights = torch.tensor([1.0, 4.0, 9.0])
        prediction = Prediction(logits=logits, maps=(), penalty=torch.zeros(5))
        losses = Losses(alpha=0.0, class_weights=weights, label_smoothing=0.0)
        by_hand = -(
            sets * weights * torch.sigmoid(logits).log()
            + (1 - sets.float()) * torch.sigmoid(-logits).log()
        )
        found = losses(prediction, sets)
        torch.testing.assert_close(found, by_hand.mean())
        torch.testing.assert_close(
            found,
            binary_cross_entropy_with_logits(logits, sets.float(), pos_weight=weights),
        )

    def test_weights_are_absent_over_present_up_to_a_cap(self) -> None:
        sets = np.zeros((400, 4), dtype=np.uint8)
        sets[:100, 0], sets[:2, 1], sets[:, 3] = 1, 1, 1
        found = rarity(sets, classes=4)
        np.testing.assert_array_equal(found, [3, LARGEST_WEIGHT, 1, 1])


class TestRun:
    def test_it_learns(self, trained: tuple[Path, TrainReport]) -> None:
        run, report = trained
        rows = table(run / "metrics.csv")
        assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
        scores = json.loads((run / "test_scores.json").read_text())
        assert scores["mean_auc"]["value"] > 0.9
        assert min(item["auc"]["value"] for item in scores["findings"]) > 0.8
        best = min(rows, key=lambda row: float(row["validation_loss"]))
        for name, column in (
            ("epoch", "epoch"),
            ("loss", "validation_loss"),
            ("auc", "validation_auc"),
        ):
            assert report.best[name] == pytest.approx(float(best[column]))

    def test_it_leaves_what_suits_label_sets(self, trained: tuple[Path, TrainReport]) -> None:
        names = {path.name for path in trained[0].iterdir()}
        assert {"roc.png", "calibration.png", "curves.png", "run.json"} <= names
        assert "confusion.png" not in names
        assert run_files.read_config(trained[0]).data.task == "multi-label"

    def test_predictions_hold_truth_and_probability_of_every_finding(
        self, trained: tuple[Path, TrainReport]
    ) -> None:
        rows = [row for row in table(trained[0] / "predictions.csv") if row["split"] == "test"]
        truth = np.array([[int(row[f"truth_{name}"]) for name in CLASSES] for row in rows])
        assert truth.tolist() == [list(any_combination("test", i)) for i in range(16)]
        found = np.array([[float(row[f"probability_{name}"]) for name in CLASSES] for row in rows])
        assert ((found >= 0) & (found <= 1)).all()
        assert np.ptp(found.sum(axis=1)) > 0.5  # no shares of one
        scores = json.loads((trained[0] / "test_scores.json").read_text())
        for k, item in enumerate(scores["findings"]):
            expected = roc_auc_score(truth[:, k], found[:, k])
            assert item["auc"]["value"] == pytest.approx(expected, abs=0.02)
            assert item["auc"]["low"] <= item["auc"]["value"] <= item["auc"]["high"]

    def test_card_and_summary_speak_of_findings(self, trained: tuple[Path, TrainReport]) -> None:
        card = (trained[0] / "model_card.md").read_text()
        assert "findings, each told by a sigmoid of its own: a, b, c" in card
        assert "mean area" in card
        assert "| a | 8 | 8 | " in card
        assert "2 samples show no finding" in card
        summary = trained[1].summary()
        assert "mean area" in summary
        assert "over 3 findings on the test split of 8 patients, guessing gives 0.500" in summary
        assert "drawn once per epoch" in summary
        assert "accuracy" not in summary + card.split("## Settings")[0]

    @pytest.mark.parametrize("moment", [3, 5])
    def test_resumed_it_ends_with_the_same_bytes(
        self, findings: Path, weighted: Path, tmp_path: Path, moment: int
    ) -> None:
        def stop(stage: str, done: int, total: int) -> None:
            if stage == "training" and done == moment:
                raise KeyboardInterrupt

        run = tmp_path / "cut"
        with pytest.raises(KeyboardInterrupt):
            train(WEIGHTED, data=findings, run=run, progress=stop)
        train(WEIGHTED, data=findings, run=run, resume=True)
        for name in ("best.safetensors", "predictions.csv", "test_scores.json"):
            assert (run / name).read_bytes() == (weighted / name).read_bytes(), name

    def test_a_best_epoch_without_a_defined_score_says_so(self) -> None:
        assert validated({"epoch": 1.0, "loss": 0.5}) == "no score defined"
        assert validated({"epoch": 1.0, "loss": 0.5, "auc": 0.75}) == "mean area 0.750"


class TestExplanations:
    def test_the_target_is_the_likeliest_of_the_true_findings(self, explained: Path) -> None:
        rows = table(explained / "explanations.csv")
        answers = table(explained / "predictions.csv")
        assert len(rows) == len(answers) == 8
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            true = names_of(np.array(any_combination("test", i)), CLASSES)
            assert row["label"] == "|".join(true)
            found = {name: float(answer[f"probability_{name}"]) for name in CLASSES}
            assert row["target"] == max(true or CLASSES, key=found.__getitem__)
            assert float(row["probability"]) == pytest.approx(found[row["target"]], abs=1e-5)
            assert row["prediction"] == max(found, key=found.__getitem__)
            assert [answer[f"truth_{name}"] for name in CLASSES] == [
                str(value) for value in any_combination("test", i)
            ]

    def test_probabilities_are_those_of_training(
        self, explained: Path, trained: tuple[Path, TrainReport]
    ) -> None:
        stored = {row["sample_id"]: row for row in table(trained[0] / "predictions.csv")}
        for row in table(explained / "predictions.csv"):
            for name in CLASSES:
                column = f"probability_{name}"
                assert float(row[column]) == pytest.approx(
                    float(stored[row["sample_id"]][column]), abs=1e-4
                )

    def test_the_page_speaks_of_findings(self, explained: Path) -> None:
        page = (explained / "index.html").read_text()
        assert "labelled with <b>no finding</b>" in page
        assert "labelled with <b>a, b, c</b>" in page
        assert "it is among the labels)" in page
        assert "true class" not in page

    def test_a_run_of_one_class_each_is_another_thing(
        self, findings: Path, trained: tuple[Path, TrainReport], tmp_path: Path
    ) -> None:
        single = write_findings(tmp_path)
        for path in tmp_path.glob("*.h5"):
            with h5py.File(path, "a") as file:
                del file["labels"]
        with pytest.raises(DataError, match=r"the labels are multi-class .* multi-label ones"):
            explain(ExplainConfig(), run=trained[0], out=tmp_path / "out", data=single)


class TestRefusals:
    def refused(self, data: Path, run: Path) -> DataError:
        with pytest.raises(DataError) as caught:
            train(SETTINGS, data=data, run=run)
        assert not run.exists()
        return caught.value

    def test_no_finding_anywhere(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path, lambda split, i: (0, 0, 0))
        error = self.refused(data, tmp_path / "run")
        assert error.code == "NO_LABELS"
        assert "none of the 56 samples shows any of the 3 findings" in str(error)

    @pytest.mark.parametrize(
        ("every", "seen"), [((0, 0, 0), "show no finding"), ((1, 0, 1), "the same 2 finding(s)")]
    )
    def test_the_same_label_set_for_every_training_sample(
        self, tmp_path: Path, every: tuple[int, ...], seen: str
    ) -> None:
        data = write_findings(
            tmp_path, lambda split, i: every if split == "train" else any_combination(split, i)
        )
        error = self.refused(data, tmp_path / "run")
        assert error.code == "ONE_CLASS"
        assert "all 32 training samples" in str(error)
        assert seen in str(error)

    def test_values_other_than_0_and_1(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path, lambda split, i: (i % 2, -1, 0), dtype="int8")
        error = self.refused(data, tmp_path / "run")
        assert error.code == "BAD_LABELS"
        assert "'labels' holds -1; it says 1 for every class" in str(error)

    @pytest.mark.parametrize(
        ("label_set", "sizes"),
        [
            (lambda split, i: (i % 2, 0), "2 per row"),
            (lambda split, i: i % 2, "one number per row"),
            (lambda split, i: ((i % 2, 0, 0), (0, 0, 0)), "2 x 3 per row"),
        ],
    )
    def test_label_sets_that_do_not_fit_the_classes(
        self, tmp_path: Path, label_set: LabelSet, sizes: str
    ) -> None:
        error = self.refused(write_findings(tmp_path, label_set), tmp_path / "run")
        assert error.code == "LABEL_SETS"
        assert f"'labels' holds {sizes} for 3 classes" in str(error)

    def test_an_empty_validation_split(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path, counts={"train": 8, "validation": 0})
        assert self.refused(data, tmp_path / "run").code == "EMPTY_SPLIT"

    def test_no_row_no_label_sets(self, findings: Path) -> None:
        rows = open_dataset(findings)
        assert read_label_sets(rows, np.zeros(0, dtype=np.int64)).shape == (0, 0)


def test_a_finding_that_nothing_shows_is_named_once(tmp_path: Path) -> None:
    data = write_findings(tmp_path, lambda split, i: (i % 2, 0, 0))
    found = open_for_training(data, image_size=None)
    assert found.summary.task == "multi-label"
    assert found.remarks[1:] == ("no split shows: b, c",)


def test_a_finding_that_is_never_or_always_shown_is_a_remark(tmp_path: Path) -> None:
    """It is no obstacle, also where the test split cannot score it, or any."""

    def label_set(split: str, i: int) -> tuple[int, ...]:
        return {"train": (i % 2, 0, 1), "validation": (1, 1, 0)}.get(split, (0, 1, 0))

    data = write_findings(tmp_path, label_set, counts={"train": 8, "validation": 2, "test": 2})
    settings = SETTINGS.model_copy(update={"epochs": 1})
    report = train(settings, data=data, run=tmp_path / "run")
    remarks = " / ".join(report.remarks)
    assert "the train split does not show (so these are not learnt): b" in remarks
    assert "every sample of the train split shows: c" in remarks
    assert "the validation split does not show: c" in remarks
    assert "no split shows" not in remarks
    assert set(report.best) == {"epoch", "loss"}
    assert "no score defined on validation" in report.summary()
    assert "no finding is both seen and absent" in report.summary()
    card = (tmp_path / "run" / "model_card.md").read_text()
    assert "not defined: no finding is both seen and absent" in card
    assert "| a | 0 | 0 | – | – | 0.000 |" in card
