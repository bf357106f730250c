"""Whenever training is interrupted, and however: resumed, it ends with the same files.

18 pictures in batches of 6: three iterations per epoch, two epochs, and a checkpoint after
iterations 2, 3, 4 and 6. Validation and test are one batch each.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from models import statistics
from models.networks import build
from pipelines import feed, handlers, outcome, training_loop
from pipelines import run as run_files
from pipelines import train as train_module
from pipelines.cli import app
from pipelines.errors import RunError, RunExists
from preprocessing import atomic_files

pytestmark = pytest.mark.usefixtures("all_sketched")

SETTINGS = {"batch_size": 6, "bootstrap": 20, "checkpoint_iterations": 2, "workers": 1}


def call(data: Path, run: Path, *words: str, **settings: Any) -> tuple[int, str]:
    """Train on the command line: exit code, and what it prints for programs."""
    given = [f"--set={name}={value}" for name, value in {**SETTINGS, **settings}.items()]
    command = ["train", f"--data={data}", f"--run={run}", "--network=resnet10-narrow"]
    done = CliRunner().invoke(app, [*command, "--epochs=2", "--json", *given, *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a checkpoint by its place, with its bytes; only durations are left out."""
    if isinstance(value, torch.Tensor):
        yield name, digest(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key != "seconds":
                yield from tensors_in(item, f"{name}/{key}")
    else:
        yield name, repr(value)


def table_without_durations(run: Path) -> list[dict[str, str]]:
    rows = csv.DictReader(io.StringIO((run / "metrics.csv").read_text()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def end_of(run: Path) -> dict[str, Any]:
    """All that a run leaves: bytes of its files, leaves of its checkpoint, rows of its table."""
    apart = {"last.ckpt", "metrics.csv"}
    files = {path.name: path for path in run.iterdir() if path.is_file()}
    found: dict[str, Any] = {
        name: digest(path.read_bytes()) for name, path in files.items() if name not in apart
    }
    found |= tensors_in(torch.load(run / "last.ckpt", weights_only=True))
    return found | {"metrics": table_without_durations(run)}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@pytest.fixture(scope="module")
def undisturbed(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, report = call(blobs, run)
    assert code == 0
    return end_of(run), report


MOMENTS: dict[str, tuple[Any, str, int]] = {
    "reading": (feed.Pictures, "__getitem__", 9),
    "normalisation": (train_module, "measure", 1),
    "first-step": (handlers.Losses, "__call__", 1),
    "first-iteration": (handlers.Reporter, "__call__", 1),
    "after-a-checkpoint": (handlers.Losses, "__call__", 3),
    "end-of-first-epoch": (handlers.Reporter, "__call__", 3),
    "statistics": (statistics, "_forget", 1),
    "validation": (handlers.Collector, "_gather", 1),
    "best-weights": (run_files, "save_weights", 1),
    "between-epochs": (run_files, "save_checkpoint", 2),
    "middle-of-second-epoch": (handlers.Reporter, "__call__", 5),
    "second-validation": (handlers.Collector, "_gather", 2),
    "after-the-last-epoch": (run_files, "save_checkpoint", 4),
    "finished": (run_files, "save_checkpoint", 5),
    "test-split": (handlers.Collector, "_gather", 4),
    "predictions": (outcome, "write_predictions", 1),
    "scores": (outcome, "score_test", 1),
    "sealed": (run_files, "seal", 1),
}
"""Just after the named function was called for the n-th time."""
TERMINATED = ("first-iteration", "statistics", "best-weights", "test-split")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works, also where the suite runs in the background and was told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
class TestASignal:
    @pytest.mark.parametrize(
        ("moment", "number"),
        [
            *(pytest.param(moment, signal.SIGINT, id=f"{moment}-int") for moment in MOMENTS),
            *(pytest.param(moment, signal.SIGTERM, id=f"{moment}-term") for moment in TERMINATED),
        ],
    )
    def test_does_not_change_the_end(
        self,
        blobs: Path,
        undisturbed: tuple[dict, str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        moment: str,
        number: signal.Signals,
    ) -> None:
        place, name, times = MOMENTS[moment]
        original, calls = getattr(place, name), count(1)

        def interrupted(*given: Any, **named: Any) -> Any:
            found = original(*given, **named)
            if next(calls) == times:
                signal.raise_signal(number)
            return found

        run = tmp_path / "run"
        with monkeypatch.context() as during:
            during.setattr(place, name, interrupted)
            assert call(blobs, run) == (130, "")
        assert call(blobs, run, "--resume") == (0, undisturbed[1])
        assert differing(end_of(run), undisturbed[0]) == []


KILLED = {
    "config.yaml": 1, "environment.txt": 1, "last.ckpt": 5, "best.safetensors": 1,
    "metrics.csv": 2, "predictions.csv": 1, "curves.png": 1, "test_scores.json": 1,
    "confusion.png": 1, "calibration.png": 1, "roc.png": 1, "model_card.md": 1, "run.json": 1,
}  # fmt: skip
"""Files of a run in any order -> how often each is written; the best weights once or twice."""


@pytest.fixture(scope="module")
def left(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of one run's folder, by the file that was to get its name and for which time."""
    run, copies = tmp_path_factory.mktemp("killed") / "run", tmp_path_factory.mktemp("left")
    original, found = atomic_files.sync, {}

    def copying(path: Path) -> None:
        original(path)
        if path.parent == run:
            final = next(n for n in KILLED if path.name.startswith(f".{n}."))
            times = 1 + sum(name.startswith(final) for name in found)
            copy = shutil.copytree(run, copies / str(len(found)))
            for part in copy.glob(f".*.{os.getpid()}.part"):  # who resumes is another process
                part.rename(copy / f".{final}.1.part")
            found[f"{final} {times}"] = copy

    with pytest.MonkeyPatch.context() as during:
        during.setattr(atomic_files, "sync", copying)
        assert call(blobs, run)[0] == 0
    return found


class TestAKill:
    """``kill -9`` leaves the folder as it is: copies of it are taken just before every rename."""

    def test_every_file_is_met(self, left: dict[str, Path]) -> None:
        improved = {f"best.safetensors {times}" for times in (1, 2)}
        expected = {f"{name} {i + 1}" for name, times in KILLED.items() for i in range(times)}
        assert set(left) - improved == expected - improved
        assert all(list(folder.glob(".*.part")) for folder in left.values())

    @pytest.mark.parametrize(
        "moment",
        [
            "config.yaml 1",
            "environment.txt 1",
            "last.ckpt 1",
            "best.safetensors 1",
            "metrics.csv 1",
            "last.ckpt 2",
            "last.ckpt 3",
            "metrics.csv 2",
            "last.ckpt 4",
            "last.ckpt 5",
            "predictions.csv 1",
            "model_card.md 1",
            "run.json 1",
        ],
    )
    def test_does_not_change_the_end(
        self,
        blobs: Path,
        undisturbed: tuple[dict, str],
        left: dict[str, Path],
        tmp_path: Path,
        moment: str,
    ) -> None:
        run = shutil.copytree(left[moment], tmp_path / "run")
        assert call(blobs, run, "--resume") == (0, undisturbed[1])
        assert differing(end_of(run), undisturbed[0]) == []


def test_an_unfinished_file_of_somebody_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".film.mkv.part").touch()
    with pytest.raises(RunExists, match=r"holds no config\.yaml, so it is no run"):
        run_files.claim(tmp_path, resume=True)
    (tmp_path / "config.yaml.part").touch()
    (tmp_path / ".config.yaml.123.part").touch()
    run_files.clear_parts(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".film.mkv.part", "config.yaml.part"}


class TestWhatIsNotInTheCheckpoint:
    def test_the_number_of_threads_is_that_of_the_beginning(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, run = torch.get_num_threads(), tmp_path / "run"

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        try:
            torch.set_num_threads(1)
            assert call(blobs, tmp_path / "whole")[0] == 0
            with monkeypatch.context() as during:
                during.setattr(handlers.Statistics, "__call__", interrupt)
                assert call(blobs, run)[0] == 130
            torch.set_num_threads(2)
            assert call(blobs, run, "--resume")[0] == 0
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)
        assert differing(end_of(run), end_of(tmp_path / "whole")) == []

    def test_readers_of_events_lose_no_step_and_see_none_twice(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, original = tmp_path / "run", training_loop.handlers.Reporter.__call__

        def interrupt(self: Any, engine: Any) -> None:
            original(self, engine)
            if engine.state.iteration == 5:
                raise KeyboardInterrupt

        with monkeypatch.context() as during:
            during.setattr(handlers.Reporter, "__call__", interrupt)
            assert call(blobs, run, checkpoint_iterations=0)[0] == 130
        assert call(blobs, run, "--resume", checkpoint_iterations=0)[0] == 0
        assert len(list((run / "tensorboard").iterdir())) == 2
        events = EventAccumulator(str(run / "tensorboard"))
        events.Reload()
        steps = {
            tag: [event.step for event in events.Scalars(tag)]
            for tag in ("training_loss", "validation_loss")
        }
        assert steps == {"training_loss": [1, 2, 3, 4, 5, 6], "validation_loss": [3, 6]}

    def test_a_finished_run_trained_anew_is_sealed_anew(
        self, blobs: Path, undisturbed: tuple[dict, str], tmp_path: Path
    ) -> None:
        """Its weights may be others, where torch or the processor is another."""
        run = tmp_path / "run"
        assert call(blobs, run)[0] == 0
        (run / "last.ckpt").unlink()
        seal = json.loads((run / "run.json").read_text())
        seal["sha256"]["best.safetensors"] = "0" * 64
        (run / "run.json").write_text(json.dumps(seal))
        assert call(blobs, run, "--resume") == (0, undisturbed[1])
        assert differing(end_of(run), undisturbed[0]) == []

    def test_a_checkpoint_of_another_version_is_refused(self, blobs: Path, tmp_path: Path) -> None:
        run = tmp_path / "run"
        assert call(blobs, run)[0] == 0
        state = torch.load(run / "last.ckpt", weights_only=True)
        torch.save({**state, "version": "0.9"}, run / "last.ckpt")
        with pytest.raises(RunError, match=r"is of version 0\.9 and .* 1\.2 only") as refusal:
            run_files.load_checkpoint(run)
        assert refusal.value.code == "CHECKPOINT_VERSION"


class TestBestWeights:
    def test_equal_weights_are_equal_bytes(self, tmp_path: Path) -> None:
        """The library writes its metadata in an order drawn at random."""
        model = build("resnet10-narrow", variant="exact", in_channels=1, classes=3, image_size=64)
        (tmp_path / "config.yaml").write_text("a: 1\n")
        contents = set()
        for _ in range(20):
            run_files.save_weights(tmp_path, model)
            contents.add((tmp_path / "best.safetensors").read_bytes())
        assert len(contents) == 1

    def test_the_file_is_one_that_others_read(self, tmp_path: Path) -> None:
        model = build("resnet10-narrow", variant="dual", in_channels=1, classes=3, image_size=64)
        (tmp_path / "config.yaml").write_text("a: 1\n")
        run_files.save_weights(tmp_path, model)
        path = tmp_path / "best.safetensors"
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"config_sha256": digest(b"a: 1\n"), "format": "pt"}
        found, wanted = load_file(path), model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
