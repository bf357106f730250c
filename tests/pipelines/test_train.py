"""Training end to end on small pictures: what it leaves, what it refuses, and how it resumes."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import balanced_accuracy_score
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from models.records import Prediction
from pipelines import run as run_files
from pipelines import training_loop
from pipelines.assemble import Forward, network_of, pick_device
from pipelines.config import TrainConfig
from pipelines.errors import DataError, DivergedError, RunError, RunExists, UsageError
from pipelines.feed import normalise, pictures
from pipelines.handlers import Losses
from pipelines.train import TrainReport, train
from pipelines.training_loop import rarity
from preprocessing.errors import OutputError, ShardError
from preprocessing.journal import OutputLock
from preprocessing.shards import open_dataset
from tests.pipelines.forks import Forks

pytestmark = pytest.mark.usefixtures("sketched")

SMALL = TrainConfig(network="resnet10-narrow", epochs=2, batch_size=6, bootstrap=50, workers=0)


def with_settings(**changes: Any) -> TrainConfig:
    return SMALL.model_copy(update=changes)


def weights(run: Path, name: str = "best.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def last_weights(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.ckpt", weights_only=True)["network"]


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def rows_without_time(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(stream)
        ]


@pytest.fixture(scope="module")
def trained(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("trained") / "run"
    train(SMALL, data=blobs, run=run)
    return run


RESUMED = """
import json
import torch
from pathlib import Path
from pipelines.config import TrainConfig
from pipelines.train import train

def run(settings, data, run, threads):
    torch.set_num_threads(int(threads))
    said = []

    def begun(*_):
        if not said:
            said.append("begun")
            print(*said, flush=True)

    config = TrainConfig.of(json.loads(settings))
    train(config, data=Path(data), run=Path(run), resume=True, progress=begun)
"""


class Stop(Exception):
    """Stands in for whatever interrupts training."""


def stop_at(iteration: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == iteration:
            raise Stop

    return progress


class TestRun:
    def test_it_leaves_everything_a_run_promises(self, trained: Path) -> None:
        left = {path.name for path in trained.iterdir()}
        assert {
            "config.yaml", "metrics.csv", "tensorboard", "best.safetensors", "last.ckpt",
            "predictions.csv", "test_scores.json", "curves.png", "confusion.png", "roc.png",
            "calibration.png", "environment.txt", "model_card.md", "run.json",
        } <= left  # fmt: skip
        assert not [name for name in left if name.endswith(".part") or name == ".lock"]

    def test_predictions_are_one_row_per_sample_with_probabilities_that_sum_to_1(
        self, trained: Path
    ) -> None:
        with (trained / "predictions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["split"] for row in rows] == ["validation"] * 6 + ["test"] * 6
        assert len({row["sample_id"] for row in rows}) == 12
        for row in rows:
            shares = {
                name: float(row[f"probability_{name}"]) for name in ("normal", "mild", "severe")
            }
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
            assert row["prediction"] == max(shares, key=shares.__getitem__)

    def test_test_scores_are_those_of_the_predictions(self, trained: Path) -> None:
        with (trained / "predictions.csv").open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["split"] == "test"]
        scores = json.loads((trained / "test_scores.json").read_text())
        expected = balanced_accuracy_score(
            [row["label"] for row in rows], [row["prediction"] for row in rows]
        )
        found = scores["balanced_accuracy"]
        assert found["value"] == pytest.approx(expected)
        assert found["low"] <= found["value"] <= found["high"]
        assert scores["patients"] == 3

    def test_the_best_epoch_is_chosen_on_validation(self, trained: Path) -> None:
        with (trained / "metrics.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        best = int(np.argmin([float(row["validation_loss"]) for row in rows])) + 1
        card = (trained / "model_card.md").read_text()
        assert f"weights chosen at epoch {best} by the loss" in card

    def test_best_weights_are_those_of_the_best_epoch(self, trained: Path, blobs: Path) -> None:
        """The stored predictions come from the stored weights, not from the last epoch's."""
        config = run_files.read_config(trained)
        network = network_of(config)
        run_files.load_weights(trained, network)
        assert_equal_weights(dict(network.state_dict()), weights(trained))

    def test_nothing_names_a_host_a_user_or_a_path(self, trained: Path, blobs: Path) -> None:
        for path in trained.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for private in (str(blobs), str(trained), "/root", "/home"):
                    assert private.encode() not in content, path.name
        names = [path.name for path in (trained / "tensorboard").iterdir()]
        assert all(name.endswith(".dualwitness") for name in names)

    def test_tensorboard_reads_the_events(self, trained: Path) -> None:
        (file,) = (trained / "tensorboard").iterdir()
        tags = {
            value.tag
            for event in EventFileLoader(str(file)).Load()
            for value in event.summary.value
        }
        assert {"training_loss", "validation_loss", "validation_balanced_accuracy"} <= tags

    def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
        self, trained: Path, blobs: Path, tmp_path: Path
    ) -> None:
        train(SMALL, data=blobs, run=tmp_path / "same")
        assert_equal_weights(weights(trained), weights(tmp_path / "same"))
        train(with_settings(seed=1), data=blobs, run=tmp_path / "other")
        head = weights(tmp_path / "other")["head.weight"]
        assert not torch.equal(head, weights(trained)["head.weight"])

    def test_the_feed_does_not_change_the_weights(
        self, trained: Path, blobs: Path, tmp_path: Path
    ) -> None:
        train(with_settings(feed="stream", workers=4), data=blobs, run=tmp_path / "run")
        assert_equal_weights(weights(trained), weights(tmp_path / "run"))

    def test_the_callers_generator_is_given_back(self, blobs: Path, tmp_path: Path) -> None:
        before = torch.get_rng_state()
        train(with_settings(epochs=1), data=blobs, run=tmp_path / "run")
        assert torch.equal(before, torch.get_rng_state())

    def test_the_report_says_what_was_found(self, blobs: Path, tmp_path: Path) -> None:
        report = train(with_settings(epochs=1), data=blobs, run=tmp_path / "run")
        assert "on the test split of 3 patients, guessing gives 0.333" in report.summary()
        assert json.loads(json.dumps(report.as_json(), allow_nan=False))["epochs"] == 1

    @pytest.mark.parametrize(
        "changes",
        [
            {"variant": "baseline", "balance": "loss", "schedule": "constant"},
            {"variant": "dual", "balance": "none", "schedule": "plateau", "plateau_patience": 1},
            {"variant": "exact", "image_size": 32, "gradient_clip": 0, "label_smoothing": 0.1},
            {"precision": "bfloat16", "network_options": {"embedding": (8, 16)}},
        ],
    )
    def test_every_option_trains(self, blobs: Path, tmp_path: Path, changes: dict) -> None:
        report = train(with_settings(**changes), data=blobs, run=tmp_path / "run")
        assert np.isfinite(report.best["loss"])

    def test_it_learns_what_there_is_to_learn(
        self, make_blobs: Callable[..., Path], tmp_path: Path
    ) -> None:
        data = make_blobs(counts={"train": 60, "validation": 18, "test": 30}, size=32)
        config = with_settings(epochs=12, batch_size=12, learning_rate=3e-3)
        report = train(config, data=data, run=tmp_path / "run")
        assert report.test is not None
        assert report.test.balanced_accuracy.low > report.test.chance

    def test_early_stopping_counts_epochs_without_a_better_model(
        self, blobs: Path, tmp_path: Path
    ) -> None:
        config = with_settings(epochs=30, patience=2, learning_rate=1e-12)
        report = train(config, data=blobs, run=tmp_path / "run")
        assert report.epochs == report.best["epoch"] + 2 < 30

    def test_remarks_name_what_is_unusual(
        self, make_blobs: Callable[..., Path], tmp_path: Path
    ) -> None:
        data = make_blobs(
            counts={"train": 12, "validation": 4}, label=lambda i: (i % 2) - (i == 3) * 2
        )
        report = train(with_settings(epochs=1), data=data, run=tmp_path / "run")
        assert report.test is None
        assert report.summary().endswith("no test split")
        assert report.remarks == (
            "2 samples without a label take no part",
            "the test split is empty: no score on unseen patients is reported",
            "the train split holds no sample of: severe",
            "the validation split holds no sample of: severe",
        )
        assert "No labelled test sample" in (tmp_path / "run" / "model_card.md").read_text()
        assert not (tmp_path / "run" / "test_scores.json").exists()


class TestStatistics:
    """What an epoch ends with are the statistics of its weights, not a trailing average."""

    def stem_mean(self, run: Path, data: Path) -> torch.Tensor:
        """Mean of the first convolution over all training pictures, with the last weights."""
        config = run_files.read_config(run)
        network = network_of(config)
        network.load_state_dict(last_weights(run))
        found = pictures(open_dataset(data).split("train"), (64, 64), labelled=True)
        images = normalise(torch.stack([found[i] for i in range(18)]), config.normalisation)
        with torch.no_grad():
            return network.get_submodule("trunk.stem.conv1")(images).mean((0, 2, 3))

    def test_they_are_those_of_the_training_pictures(self, trained: Path, blobs: Path) -> None:
        running = last_weights(trained)["trunk.stem.bn1.running_mean"]
        torch.testing.assert_close(running, self.stem_mean(trained, blobs), rtol=1e-4, atol=1e-5)

    def test_zero_pictures_keep_the_running_averages(self, blobs: Path, tmp_path: Path) -> None:
        train(with_settings(statistics_pictures=0), data=blobs, run=tmp_path / "run")
        running = last_weights(tmp_path / "run")["trunk.stem.bn1.running_mean"]
        apart = (running - self.stem_mean(tmp_path / "run", blobs)).abs().max()
        assert apart > 0.01


class TestResume:
    """Three batches per epoch: iterations 1 and 2 lie within the first, 3 ends it."""

    @pytest.mark.parametrize(
        ("every", "iteration"), [(0, 2), (0, 4), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)]
    )
    def test_resumed_weights_are_equal_to_the_bit(
        self, trained: Path, blobs: Path, tmp_path: Path, every: int, iteration: int
    ) -> None:
        config = with_settings(checkpoint_iterations=every)
        run = tmp_path / "run"
        with pytest.raises(Stop):
            train(config, data=blobs, run=run, progress=stop_at(iteration))
        train(config, data=blobs, run=run, resume=True)
        assert_equal_weights(weights(run), weights(trained))
        assert_equal_weights(last_weights(run), last_weights(trained))
        assert rows_without_time(run) == rows_without_time(trained)

    def test_a_checkpoint_in_the_middle_of_an_epoch_is_used(
        self, blobs: Path, tmp_path: Path
    ) -> None:
        config, run, seen = with_settings(checkpoint_iterations=1), tmp_path / "run", []
        with pytest.raises(Stop):
            train(config, data=blobs, run=run, progress=stop_at(3))

        def progress(stage: str, done: int, total: int) -> None:
            seen.append((stage, done))

        train(config, data=blobs, run=run, resume=True, progress=progress)
        assert [done for stage, done in seen if stage == "training"] == [3, 4, 5, 6]

    def test_plateau_and_patience_survive_a_resume(self, blobs: Path, tmp_path: Path) -> None:
        config = with_settings(
            epochs=4, schedule="plateau", plateau_patience=1, patience=3, learning_rate=0.02
        )
        train(config, data=blobs, run=tmp_path / "whole")
        with pytest.raises(Stop):
            train(config, data=blobs, run=tmp_path / "cut", progress=stop_at(8))
        train(config, data=blobs, run=tmp_path / "cut", resume=True)
        assert_equal_weights(last_weights(tmp_path / "whole"), last_weights(tmp_path / "cut"))

    def test_a_finished_run_is_not_trained_again(self, blobs: Path, tmp_path: Path) -> None:
        first = train(SMALL, data=blobs, run=tmp_path / "run")
        seen: list[str] = []
        again = train(
            SMALL,
            data=blobs,
            run=tmp_path / "run",
            resume=True,
            progress=lambda stage, *_: seen.append(stage),
        )
        assert "training" not in seen
        assert first.as_json() == again.as_json()

    def test_an_early_stop_is_remembered(self, blobs: Path, tmp_path: Path) -> None:
        config = with_settings(epochs=9, patience=1, learning_rate=1e-12)
        first = train(config, data=blobs, run=tmp_path / "run")
        again = train(config, data=blobs, run=tmp_path / "run", resume=True)
        assert first.epochs == again.epochs < 9

    def test_resuming_nothing_begins(self, blobs: Path, tmp_path: Path, trained: Path) -> None:
        train(SMALL, data=blobs, run=tmp_path / "run", resume=True)
        assert_equal_weights(weights(tmp_path / "run"), weights(trained))

    @pytest.mark.slow
    def test_killed_at_any_moment_it_ends_with_the_same_weights(
        self, blobs: Path, tmp_path: Path, trained: Path
    ) -> None:
        run = tmp_path / "run"
        config = with_settings(checkpoint_iterations=1, workers=4)
        rng = np.random.default_rng(0)
        forks, killed = Forks(RESUMED), 0
        for _ in range(3):
            process = forks.begin(config.model_dump_json(), blobs, run, torch.get_num_threads())
            assert forks.said() == "begun"  # to read the shards
            time.sleep(float(rng.uniform(0, 0.4)))
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(process, signal.SIGKILL)
            killed += forks.end() == signal.SIGKILL
        forks.close()
        assert killed
        train(config, data=blobs, run=run, resume=True)
        assert_equal_weights(weights(run), weights(trained))
        assert not list(run.glob(".*part"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("counts", "label", "code", "message"),
        [
            (None, lambda i: -1, "NO_LABELS", "none of the 30 samples has a label: build the data"),
            (None, lambda i: 1, "ONE_CLASS", "all 18 training samples are of the class 'mild'"),
            (
                {"train": 6, "test": 6},
                lambda i: i % 3,
                "EMPTY_SPLIT",
                r"the validation split has no labelled sample \(train 6, validation 0, test 6\)",
            ),
        ],
    )
    def test_a_data_set_that_cannot_be_learned(
        self,
        make_blobs: Callable[..., Path],
        tmp_path: Path,
        counts: dict | None,
        label: Callable[[int], int],
        code: str,
        message: str,
    ) -> None:
        data = make_blobs(counts=counts, label=label)
        with pytest.raises(DataError, match=message) as refusal:
            train(SMALL, data=data, run=tmp_path / "run")
        assert (refusal.value.code, refusal.value.exit_code) == (code, 3)
        assert not (tmp_path / "run").exists()

    def test_a_patient_in_two_splits(self, make_blobs: Callable[..., Path], tmp_path: Path) -> None:
        data = make_blobs(subject_offset={"validation": 16})
        with pytest.raises(DataError, match="a patient has samples in train and in validation"):
            train(SMALL, data=data, run=tmp_path / "run")

    def test_no_data_set(self, tmp_path: Path) -> None:
        with pytest.raises(ShardError, match=r"no manifest\.json") as refusal:
            train(SMALL, data=tmp_path, run=tmp_path / "run")
        assert refusal.value.code == "INCOMPLETE"

    def test_another_schema_version(self, make_blobs: Callable[..., Path], tmp_path: Path) -> None:
        data = make_blobs(counts={"train": 6, "validation": 6})
        manifest = json.loads((data / "manifest.json").read_text())
        manifest["encoding-version"] = "7.0"
        (data / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ShardError, match="another schema version") as refusal:
            train(SMALL, data=data, run=tmp_path / "run")
        assert refusal.value.code == "SCHEMA_VERSION"

    @pytest.mark.parametrize(
        ("changes", "code", "message"),
        [
            ({"network": "resnet81"}, "UNKNOWN_NETWORK", "did you mean 'resnet18'"),
            ({"variant": "exakt"}, "UNKNOWN_VARIANT", "did you mean 'exact'"),
            ({"network_options": {"wieght": 1}}, "UNKNOWN_OPTION", "did you mean 'weight'"),
            ({"image_size": 48}, "MAPS_DO_NOT_NEST", "do not nest; use sides that are multiples"),
        ],
    )
    def test_a_network_that_cannot_be_built(
        self, blobs: Path, tmp_path: Path, changes: dict, code: str, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message) as refusal:
            train(with_settings(**changes), data=blobs, run=tmp_path / "run")
        assert (refusal.value.code, refusal.value.exit_code) == (code, 2)
        assert not (tmp_path / "run").exists()

    def test_cuda_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UsageError, match="device 'cuda' was asked for and torch sees none"):
            pick_device("cuda")
        assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")

    def test_a_run_folder_that_exists(self, trained: Path, blobs: Path) -> None:
        with pytest.raises(
            RunExists, match=r"name another --out, or continue .* with --resume"
        ) as e:
            train(SMALL, data=blobs, run=trained)
        assert (e.value.code, e.value.exit_code) == ("RUN_EXISTS", 4)

    def test_a_folder_to_resume_that_is_no_run(self, blobs: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(RunExists, match=r"holds no config\.yaml, so it is no run"):
            train(SMALL, data=blobs, run=tmp_path, resume=True)
        with pytest.raises(RunExists, match="--out names a file: name a new folder"):
            train(SMALL, data=blobs, run=tmp_path / "letter.txt")

    def test_two_trainings_into_one_folder(self, blobs: Path, tmp_path: Path) -> None:
        with OutputLock(tmp_path), pytest.raises(OutputError, match="is writing") as refusal:
            train(SMALL, data=blobs, run=tmp_path)
        assert refusal.value.code == "LOCKED"

    def test_other_settings_on_resume(self, trained: Path, blobs: Path) -> None:
        changed = with_settings(learning_rate=0.5, seed=4, bootstrap=7)
        message = r"other settings \(learning_rate 0.001 -> 0.5, seed 0 -> 4\)"
        with pytest.raises(UsageError, match=message) as refusal:
            train(changed, data=blobs, run=trained, resume=True)
        assert refusal.value.code == "RESUME_DIFFERS"

    def test_another_data_set_on_resume(
        self, trained: Path, make_blobs: Callable[..., Path]
    ) -> None:
        with pytest.raises(DataError, match="begun with another data set, or this one was rebuilt"):
            train(SMALL, data=make_blobs(seed=5), run=trained, resume=True)

    def test_a_loss_that_is_no_number(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def poison(self: Losses, prediction: Prediction, labels: torch.Tensor) -> torch.Tensor:
            self._sums = {"loss": torch.tensor(float("nan"))}
            return prediction.logits.sum() * float("nan")

        monkeypatch.setattr(training_loop.handlers.Losses, "__call__", poison)
        with pytest.raises(DivergedError, match="at iteration 1: lower learning_rate") as refusal:
            train(SMALL, data=blobs, run=tmp_path / "run")
        assert refusal.value.code == "LOSS_NOT_FINITE"
        assert not (tmp_path / "run" / "best.safetensors").exists()

    def test_a_learning_rate_that_explodes(self, blobs: Path, tmp_path: Path) -> None:
        config = with_settings(
            learning_rate=1e30, gradient_clip=0, warmup_epochs=0, network="resnet10-narrow"
        )
        with pytest.raises(DivergedError, match="the training loss is no longer a number"):
            train(config, data=blobs, run=tmp_path / "run")


class TestAlteredRuns:
    @pytest.fixture
    def copy(self, trained: Path, tmp_path: Path) -> Path:
        for path in trained.iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
        return tmp_path

    def test_a_whole_run_loads(self, copy: Path) -> None:
        network = network_of(run_files.read_config(copy))
        run_files.load_weights(copy, network)
        stored = load_file(copy / "best.safetensors")
        assert stored.keys() == network.state_dict().keys()
        assert all(torch.equal(network.state_dict()[name], stored[name]) for name in stored)

    def test_missing_files(self, copy: Path) -> None:
        network = network_of(run_files.read_config(copy))
        (copy / "best.safetensors").unlink()
        with pytest.raises(RunError, match=r"run folder holds no best\.safetensors") as refusal:
            run_files.load_weights(copy, network)
        assert refusal.value.code == "RUN_INCOMPLETE"
        (copy / "config.yaml").unlink()
        with pytest.raises(RunError, match=r"holds no config\.yaml: it is no run, or its training"):
            run_files.read_config(copy)

    def test_a_foreign_key(self, copy: Path) -> None:
        text = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(text + "_target_: os.system\n")
        with pytest.raises(RunError, match="unknown setting '_target_'") as refusal:
            run_files.read_config(copy)
        assert refusal.value.code == "RUN_CONFIG"

    @pytest.mark.parametrize("sealed", [True, False])
    def test_an_edited_config(self, copy: Path, sealed: bool) -> None:
        network = network_of(run_files.read_config(copy))
        text = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(text.replace("- normal", "- abnormal"))
        message = "config.yaml changed after training"
        if not sealed:
            (copy / "run.json").unlink()
            message = "was not written for this config.yaml"
        with pytest.raises(RunError, match=message) as refusal:
            run_files.load_weights(copy, network)
        assert refusal.value.code == "RUN_ALTERED"

    def test_edited_weights(self, copy: Path) -> None:
        network = network_of(run_files.read_config(copy))
        content = bytearray((copy / "best.safetensors").read_bytes())
        content[-1] ^= 1
        (copy / "best.safetensors").write_bytes(content)
        with pytest.raises(RunError, match=r"best\.safetensors changed after training"):
            run_files.load_weights(copy, network)

    def test_a_damaged_seal(self, copy: Path) -> None:
        (copy / "run.json").write_text("{")
        with pytest.raises(RunError, match=r"run\.json is damaged"):
            run_files.check_seal(copy)

    def test_weights_of_another_network(self, copy: Path) -> None:
        config = run_files.read_config(copy)
        other = network_of(
            config.model_copy(
                update={"train": config.train.model_copy(update={"variant": "baseline"})}
            )
        )
        with pytest.raises(RunError, match=r"does not fit the network of config.yaml: \d+ tensors"):
            run_files.load_weights(copy, other)

    def test_weights_that_are_none(self, copy: Path) -> None:
        network = network_of(run_files.read_config(copy))
        (copy / "run.json").unlink()
        (copy / "best.safetensors").write_bytes(b"\x80\x04not safetensors")
        with pytest.raises(RunError, match=r"best\.safetensors cannot be read") as refusal:
            run_files.load_weights(copy, network)
        assert refusal.value.code == "RUN_WEIGHTS"
        save_file({"x": torch.zeros(1)}, copy / "best.safetensors")
        with pytest.raises(RunError, match="was not written for this config"):
            run_files.load_weights(copy, network)

    def test_a_checkpoint_that_would_run_code(self, copy: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple:
                return (print, ("ran",))

        torch.save({"network": Evil()}, copy / "last.ckpt")
        with pytest.raises(RunError, match=r"last\.ckpt is damaged or was not written by this"):
            run_files.load_checkpoint(copy)

    def test_a_torn_checkpoint(self, copy: Path) -> None:
        (copy / "last.ckpt").write_bytes((copy / "last.ckpt").read_bytes()[:1000])
        with pytest.raises(RunError, match="delete it to train from the start") as refusal:
            run_files.load_checkpoint(copy)
        assert refusal.value.code == "CHECKPOINT_UNREADABLE"

    def test_a_checkpoint_of_another_run(self, copy: Path) -> None:
        state = torch.load(copy / "last.ckpt", weights_only=True)
        torch.save({**state, "config_sha256": "0"}, copy / "last.ckpt")
        with pytest.raises(RunError, match=r"last\.ckpt was not written under this config\.yaml"):
            run_files.load_checkpoint(copy)


class TestParts:
    def test_rarity_weighs_classes_alike_and_samples_to_mean_1(self) -> None:
        labels = np.array([0, 0, 0, 1, 3])
        found = rarity(labels, classes=4)
        assert found[2] == 0
        assert found[labels].mean() == pytest.approx(1)
        totals = [found[labels[labels == k]].sum() for k in (0, 1, 3)]
        np.testing.assert_allclose(totals, totals[0], rtol=1e-6)

    @pytest.mark.parametrize(
        ("device", "precision", "half"),
        [
            ("cpu", "auto", False),
            ("cuda", "auto", True),
            ("cpu", "bfloat16", True),
            ("cuda", "float32", False),
        ],
    )
    def test_bfloat16_is_for_cuda_unless_asked_for(
        self, device: str, precision: str, half: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple] = []

        class Spy(torch.nn.Module):
            def forward(self, images: torch.Tensor) -> Prediction:
                logits = images.mean(dim=(2, 3))
                return Prediction(logits=logits, maps=(), penalty=logits[:, 0])

        def autocast(kind: str, *, dtype: torch.dtype) -> Any:
            asked.append((kind, dtype))
            return nullcontext()

        monkeypatch.setattr(torch, "autocast", autocast)  # that of CUDA warns where there is none
        Forward(torch.device(device), precision)(torch.ones(2, 3, 4, 4), Spy())
        assert asked == ([(device, torch.bfloat16)] if half else [])

    def test_the_report_of_a_run_without_test_split_is_plain(self) -> None:
        report = TrainReport(
            best={"epoch": 3.0, "balanced_accuracy": 0.5, "loss": 1.0},
            epochs=4,
            test=None,
            parameters=7,
            remarks=(),
        )
        assert report.summary() == (
            "balanced accuracy 0.500 on validation at epoch 3 of 4; no test split"
        )
        assert report.as_json()["test"] is None
