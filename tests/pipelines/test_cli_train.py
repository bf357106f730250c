"""``train`` and ``explain`` as they are typed: exit codes, last lines, and what --json prints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from typer.testing import CliRunner

from pipelines import handlers
from pipelines.cli import app
from preprocessing.pseudonyms import create_key

pytestmark = pytest.mark.usefixtures("sketched")

RUNNER = CliRunner()
QUICK = (
    "--network", "resnet10-narrow", "--epochs", "1", "--set", "bootstrap=10", "--set", "workers=0",
)  # fmt: skip


def call(*words: str | Path) -> tuple[int, str, str]:
    done = RUNNER.invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "key"
    create_key(path)
    return path


@pytest.fixture(scope="module")
def data(small_phantoms: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine coarse patients as pictures of 64 x 64."""
    out = tmp_path_factory.mktemp("data") / "out"
    code, _, stderr = call(
        "build-dataset", "fdg-pet", "--dicom-dir", small_phantoms / "dicom", "--out", out,
        "--labels", small_phantoms / "labels.csv", "--truth", small_phantoms / "truth",
        "--set", "image_size=64", "--set", "validation_fraction=0.4", "--set", "test_fraction=0.34",
        "--pseudonym-key", key, "--workers", "1",
    )  # fmt: skip
    assert code == 0, stderr
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    run = tmp_path_factory.mktemp("trained") / "run"
    code, stdout, stderr = call("train", "--data", data, "--run", run, *QUICK, "--json")
    assert code == 0, stderr
    return run, json.loads(stdout), stderr


class TestTrain:
    def test_tells_people_in_a_line_and_programs_in_json(self, trained: tuple) -> None:
        run, found, stderr = trained
        assert f"{run}: balanced accuracy " in stderr
        assert "on validation at epoch 1 of 1" in stderr
        assert "guessing gives 0." in stderr
        assert found["epochs"] == 1
        assert found["best"]["epoch"] == 1
        assert found["test"] == json.loads((run / "test_scores.json").read_text())
        assert f"{found['test']['balanced_accuracy']['value']:.3f}" in stderr

    def test_without_json_says_nothing_to_programs(self, data: Path, tmp_path: Path) -> None:
        code, stdout, stderr = call("train", "--data", data, "--out", tmp_path / "run", *QUICK)
        assert (code, stdout) == (0, "")
        assert "balanced accuracy" in stderr

    def test_a_run_that_exists(self, data: Path, trained: tuple) -> None:
        code, stdout, stderr = call("train", "--data", data, "--run", trained[0], *QUICK)
        assert (code, stdout) == (4, "")
        assert "RUN_EXISTS: the run folder exists and is not empty" in stderr
        assert "continue the run in it with --resume" in stderr

    def test_a_finished_run_is_reported_again(self, data: Path, trained: tuple) -> None:
        run, found, _ = trained
        code, stdout, _ = call("train", "--data", data, "--run", run, *QUICK, "--resume", "--json")
        assert code == 0
        assert json.loads(stdout) == found

    def test_interrupted_and_resumed_it_ends_as_the_uninterrupted(
        self, data: Path, trained: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        run, words = tmp_path / "run", ("train", "--data", data, "--run", tmp_path / "run", *QUICK)
        with monkeypatch.context() as during:
            during.setattr(handlers.Reporter, "__call__", interrupt)
            code, stdout, stderr = call(*words, "--json")
        assert (code, stdout) == (130, "")
        assert "interrupted; the same command with --resume goes on from here" in stderr
        code, stdout, _ = call(*words, "--json", "--resume")
        assert code == 0
        assert json.loads(stdout) == trained[1]
        whole, resumed = (
            (folder / "best.safetensors").read_bytes() for folder in (trained[0], run)
        )
        assert whole == resumed

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--network", "resnet81"), "no network 'resnet81'; did you mean 'resnet18'?"),
            (("--variant", "exakt"), "no variant 'exakt'; did you mean 'exact'?"),
            (("--set", "epoch=3"), "unknown setting 'epoch'; did you mean 'epochs'?"),
            (("--set", "batch_size=0"), "batch_size: Input should be greater than or equal to 1"),
            (("--set", "image_size=80"), "which do not nest; use sides that are multiples of 32"),
            (("--resume", "--epochs", "2"), "other settings (epochs 1 -> 2"),
        ],
    )
    def test_what_cannot_be_trained(
        self, data: Path, trained: tuple, tmp_path: Path, words: tuple, message: str
    ) -> None:
        run = trained[0] if "--resume" in words else tmp_path / "run"
        code, stdout, stderr = call("train", "--data", data, "--run", run, *QUICK, *words)
        assert (code, stdout) == (2, "")
        assert message in stderr
        assert not (tmp_path / "run").exists()

    def test_a_data_set_that_is_none(self, tmp_path: Path) -> None:
        code, _, stderr = call("train", "--data", tmp_path, "--run", tmp_path / "run", *QUICK)
        assert code == 3
        assert "the folder has no manifest.json" in stderr


NARROW = ("--network", "resnet10-narrow", "--epochs", "1", "--set", "bootstrap=0", "--set")
TINY = (*NARROW, "image_size=32")


@pytest.fixture(scope="module")
def baseline(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("baseline") / "run"
    code, _, stderr = call("train", "--data", blobs, "--run", run, *TINY, "--variant=baseline")
    assert code == 0, stderr
    assert "parameters, " in stderr
    assert "memory: about " in stderr
    assert "disk: about " in stderr
    return run


class TestBeginning:
    """What a run starts from and what it asks of the machine."""

    def test_a_dry_run_tells_and_writes_nothing(self, blobs: Path, tmp_path: Path) -> None:
        words = ("train", "--data", blobs, "--run", tmp_path / "run", *TINY, "--dry-run")
        code, stdout, stderr = call(*words, "--json")
        assert code == 0
        told = json.loads(stdout)
        assert f"{told['parameters']:,} parameters, {told['learning']:,} of them learn" in stderr
        assert stderr.endswith("dry run: nothing was written\n")
        assert list(tmp_path.iterdir()) == []

    def test_a_preset_and_what_wins_over_it(self, blobs: Path, tmp_path: Path) -> None:
        words = ("--preset", "paper-brats18-baseline", *TINY, "--dry-run", "--json")
        code, stdout, stderr = call("train", "--data", blobs, "--run", tmp_path / "run", *words)
        assert code == 0, stderr
        assert json.loads(stdout)["batch_size"] == 18  # all pictures there are, not 16 of them

    def test_fine_tuning_from_a_run(self, blobs: Path, baseline: Path, tmp_path: Path) -> None:
        words = ("--from", baseline, *TINY, "--variant=dual", "--set=freeze_trunk=true")
        code, _, stderr = call("train", "--data", blobs, "--run", tmp_path / "run", *words)
        assert code == 0, stderr
        assert "first weights from another run's best weights, SHA-256" in stderr
        assert "at random (attention); 0 of the source unused" in stderr

    def test_a_file_of_weights(self, blobs: Path, baseline: Path, tmp_path: Path) -> None:
        weights = baseline / "best.safetensors"
        words = ("--pretrained", weights, *TINY, "--variant=exact-two-pass", "--dry-run")
        code, _, stderr = call("train", "--data", blobs, "--run", tmp_path / "run", *words)
        assert code == 0, stderr

    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (("--preset", "paper-brats"), 2, "no preset 'paper-brats'; did you mean 'paper-brats1"),
            (("--set", "freeze_trunk=true"), 2, "FROZEN_AT_RANDOM: freeze_trunk holds the weights"),
            (("--pretrained", "none.pt"), 2, "NO_START: --pretrained cannot be read (FileNotFound"),
            (("--from", "."), 3, "RUN_INCOMPLETE: the run folder holds no config.yaml: it is no"),
            (("--set", "precision=half"), 2, "precision: Input should be 'auto', 'float32', 'bfl"),
        ],
    )
    def test_starts_that_are_none(
        self, blobs: Path, tmp_path: Path, words: tuple, code: int, message: str
    ) -> None:
        found = call("train", "--data", blobs, "--run", tmp_path / "run", *TINY, *words)
        assert (found[0], found[1]) == (code, "")
        assert f"dualwitness: {message}" in found[2]
        assert not (tmp_path / "run").exists()

    def test_a_source_and_a_file_of_other_channels(
        self, make_blobs: Callable[..., Path], baseline: Path, tmp_path: Path
    ) -> None:
        """A run must fit; a file's first convolution is fitted, unless it is that of no trunk."""
        data = make_blobs(channels=2, size=32)
        words = ("train", "--data", data, "--run", tmp_path / "run", *TINY, "--variant=baseline")
        code, _, stderr = call(*words, "--from", baseline)
        assert code == 2
        assert "START_DIFFERS: the run to start from is of another make (channels 1, here 2)" in (
            stderr
        )
        unet = (*words, "--set", "network=unet-encoder-narrow")
        code, _, stderr = call(*unet, "--pretrained", baseline / "best.safetensors")
        assert code == 2
        assert "WEIGHTS_UNMATCHED: " in stderr
        assert "on the command line: --allow NAME" in stderr

    @pytest.mark.parametrize(
        ("label", "code", "message"),
        [
            (lambda _: -1, "NO_LABELS", "none of the 30 samples has a label: build the data set"),
            (lambda _: 2, "ONE_CLASS", "all 18 training samples are of the class 'severe'"),
        ],
    )
    def test_data_that_cannot_be_learned(
        self, make_blobs: Callable[..., Path], tmp_path: Path, label: Any, code: str, message: str
    ) -> None:
        data = make_blobs(label=label, size=32)
        found = call("train", "--data", data, "--run", tmp_path / "run", *TINY)
        assert found[0] == 3
        assert f"dualwitness: {code}: {message}" in found[2]
        assert not (tmp_path / "run").exists()

    def test_shards_of_another_schema_version(
        self, make_blobs: Callable[..., Path], tmp_path: Path
    ) -> None:
        data = make_blobs(size=32)
        shard = data / "shards" / "validation-00000-of-00001.h5"
        with h5py.File(shard, "r+") as file:
            file.attrs["encoding-version"] = "7.0"
        found = call("train", "--data", data, "--run", tmp_path / "run", *TINY)
        assert found[0] == 3
        assert "dualwitness: SCHEMA_VERSION: " in found[2]
        assert not (tmp_path / "run").exists()

    def test_memory_that_runs_out(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def hungry(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(handlers.Losses, "__call__", hungry)
        found = call("train", "--data", blobs, "--run", tmp_path / "run", *TINY)
        assert (found[0], found[1]) == (2, "")
        assert "dualwitness: OUT_OF_MEMORY: memory ran out (memory: about" in found[2]
        assert "batch_size (now 16) or image_size (now 32)" in found[2]


class TestExplain:
    def test_a_data_set(self, data: Path, trained: tuple, tmp_path: Path) -> None:
        run, found, _ = trained
        out = tmp_path / "out"
        code, stdout, stderr = call("explain", "--run", run, "--data", data, "--out", out, "--json")
        assert code == 0, stderr
        told = json.loads(stdout)
        keys = {"probabilities", "explanations", "exclusions", "left_out", "verification"}
        assert set(told) == keys
        assert len(told["probabilities"]) == found["test"]["samples"]
        assert {row["method"] for row in told["explanations"]} == {
            "attention-fine", "attention-coarse", "gradcam",
        }  # fmt: skip
        count = len(told["probabilities"])
        assert f"{out / 'index.html'}: {count} scans explained by" in stderr
        assert (out / "index.html").is_file()

    def test_interrupted_it_says_how_to_start_again(
        self, data: Path, trained: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pipelines.explain.explain", interrupt)
        words = ("--data", data, "--out", tmp_path / "out")
        code, stdout, stderr = call("explain", "--run", trained[0], *words)
        assert (code, stdout) == (130, "")
        assert "interrupted; remove the unfinished --out folder and start again" in stderr

    def test_a_new_scan(
        self, small_phantoms: Path, key: Path, trained: tuple, tmp_path: Path
    ) -> None:
        scan = sorted((small_phantoms / "dicom").iterdir())[0]
        words = ("--dicom-dir", scan, "--out", tmp_path / "out", "--pseudonym-key", key)
        code, stdout, stderr = call("explain", "--run", trained[0], *words, "--json")
        assert code == 0, stderr
        told = json.loads(stdout)
        ((name, probabilities),) = told["probabilities"].items()
        assert set(probabilities) == {"normal", "mild", "severe"}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert {row["split"] for row in told["explanations"]} == {"new"}
        assert len(list((tmp_path / "out" / "volumes").glob(f"{name}_*.nii.gz"))) == 3
        assert "1 scan explained by" in stderr
        assert "normal 0." in stderr

    def test_one_method_of_another_split(self, data: Path, trained: tuple, tmp_path: Path) -> None:
        words = ("--data", data, "--out", tmp_path / "out", "--method", "gradcam")
        more = ("--split", "validation", "--target", "truth", "--set", "overlays=false")
        code, stdout, _ = call("explain", "--run", trained[0], *words, *more, "--json")
        assert code == 0
        rows = json.loads(stdout)["explanations"]
        assert {(row["method"], row["split"]) for row in rows} == {("gradcam", "validation")}
        assert all(row["target"] == row["label"] for row in rows)

    def test_a_folder_that_is_no_run(self, data: Path, tmp_path: Path) -> None:
        words = ("explain", "--run", data, "--data", data, "--out", tmp_path / "out")
        code, stdout, stderr = call(*words, "--json")
        assert (code, stdout) == (3, "")
        assert "RUN_INCOMPLETE: the run folder holds no config.yaml: it is no run" in stderr
        assert not (tmp_path / "out").exists()

    def test_an_unknown_method(self, data: Path, trained: tuple, tmp_path: Path) -> None:
        words = ("--data", data, "--out", tmp_path / "out", "--method", "gradcan")
        code, _, stderr = call("explain", "--run", trained[0], *words)
        assert code == 2
        assert "no method 'gradcan'; did you mean 'gradcam'?" in stderr

    def test_an_output_that_exists(self, data: Path, trained: tuple, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").touch()
        code, _, stderr = call("explain", "--run", trained[0], "--data", data, "--out", tmp_path)
        assert code == 4
        assert "OUTPUT_EXISTS: the output folder exists and is not empty" in stderr

    def test_scans_that_are_none(self, key: Path, trained: tuple, tmp_path: Path) -> None:
        (tmp_path / "scans").mkdir()
        words = ("--dicom-dir", tmp_path / "scans", "--pseudonym-key", key)
        code, _, stderr = call("explain", "--run", trained[0], *words, "--out", tmp_path / "out")
        assert code == 3
        assert "NOTHING_USABLE" in stderr
