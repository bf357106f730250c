import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import console
from pipelines.cli import app, build_app
from pipelines.config import ConfigError
from pipelines.errors import RunExists
from preprocessing.errors import HeaderError, OutputError
from preprocessing.pseudonyms import create_key

RUNNER = CliRunner()
DRY = ("--dry-run", "--workers", "1")


@pytest.fixture
def key(tmp_path: Path) -> str:
    create_key(tmp_path / "key")
    return str(tmp_path / "key")


def call(*words: str | Path) -> tuple[int, str, str]:
    done = RUNNER.invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


class TestWrongCalls:
    @pytest.mark.parametrize(
        ("words", "code", "message"),
        [
            (["trian"], 2, "No such command 'trian'. Did you mean 'train'"),
            (["build-dataset", "fdg-pte"], 2, "Did you mean 'fdg-pet'?"),
            (["build-dataset", "fdg-pet", "--out", "x"], 2, "Missing option '--dicom-dir'"),
            (["build-dataset", "fdg-pet", "--dicom-dri", "x"], 2, "No such option: --dicom-dri"),
            (["inspect", "nowhere"], 2, "the folder nowhere does not exist"),
            (["verify", "nowhere"], 2, "the data set nowhere does not exist"),
            (["train", "--data", "nowhere", "--run", "r"], 2, "--data nowhere does not exist"),
            (["explain", "--run", "r", "--out", "o"], 2, "either --data or --dicom-dir"),
            (
                ["explain", "--run", "r", "--out", "o", "--data", "nowhere"],
                2,
                "--data nowhere does not exist",
            ),
            (["inspect", ".", "--workers", "-1"], 2, "--workers must be 0 or more, got -1"),
            (["phantom", "fdg-pet", "--out", "x", "--subjects", "0"], 2, "'--subjects'"),
            (["demo", "--subjects", "3"], 2, "'--subjects'"),
        ],
    )
    def test_say_what_is_wrong(
        self,
        words: list[str],
        code: int,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        found, stdout, stderr = call(*words)
        assert (found, stdout) == (code, "")
        assert message in stderr
        assert not list(tmp_path.iterdir())

    def test_a_file_in_place_of_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "scan.dcm").touch()
        code, _, stderr = call("inspect", tmp_path / "scan.dcm")
        assert code == 2
        assert "is a file, not a folder" in stderr

    def test_an_unknown_setting(self, small_phantoms: Path, tmp_path: Path) -> None:
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", tmp_path / "o")
        code, _, stderr = call(*words, "--set", "image_sise=64")
        assert code == 2
        assert "unknown setting 'image_sise'; did you mean 'image_size'?" in stderr

    def test_a_setting_out_of_range(self, small_phantoms: Path, tmp_path: Path) -> None:
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", tmp_path / "o")
        code, _, stderr = call(*words, "--projector", "vkt")
        assert code == 2
        assert "projector: Input should be 'vtk' or 'vtk-mapper' (got 'vkt')" in stderr

    def test_a_setting_that_is_no_pair(self, small_phantoms: Path, tmp_path: Path) -> None:
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", tmp_path / "o")
        code, _, stderr = call(*words, "--set", "image_size")
        assert code == 2
        assert "--set 'image_size' is not of the form key=value" in stderr

    def test_a_phantom_into_a_full_folder(self, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        code, _, stderr = call("phantom", "fdg-pet", "--out", tmp_path)
        assert code == 4
        assert "exists and is not empty: name a new folder" in stderr

    def test_a_key_inside_the_output(self, small_phantoms: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", out)
        code, _, stderr = call(*words, "--pseudonym-key", out / "key")
        assert code == 2
        assert "KEY_INSIDE_OUTPUT" in stderr

    def test_a_folder_without_scans(self, tmp_path: Path, key: str) -> None:
        scans = tmp_path / "scans"
        scans.mkdir()
        words = ("build-dataset", "fdg-pet", "--dicom-dir", scans, "--out", tmp_path / "o")
        code, _, stderr = call(*words, "--pseudonym-key", key)
        assert code == 3
        assert "NOTHING_USABLE: the folder holds no files: is it the right one?" in stderr

    def test_a_data_set_that_is_none(self, tmp_path: Path) -> None:
        code, _, stderr = call("verify", tmp_path)
        assert code == 3
        assert "the folder has no manifest.json, which is written last" in stderr


class TestBuild:
    def test_rehearses_without_writing(
        self, small_phantoms: Path, tmp_path: Path, key: str
    ) -> None:
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", tmp_path / "o")
        code, stdout, stderr = call(*words, *DRY, "--pseudonym-key", key, "--json")
        assert code == 0
        assert "dry run: nothing was written" in stderr
        assert json.loads(stdout)["files"]["used"] > 0
        assert not (tmp_path / "o").exists()

    def test_is_strict_when_asked(self, small_phantoms: Path, tmp_path: Path, key: str) -> None:
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", tmp_path / "o")
        code, _, stderr = call(*words, *DRY, "--pseudonym-key", key, "--strict")
        assert code == 1
        assert "SERIES_NOT_SELECTED" in stderr

    def test_has_a_command_of_its_own(self) -> None:
        done = RUNNER.invoke(build_app, ["--help"])
        assert done.exit_code == 0
        assert "fdg-pet" in done.stdout

    def test_makes_the_users_key_once(
        self, small_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        words = ("build-dataset", "fdg-pet", "--dicom-dir", small_phantoms, "--out", tmp_path / "o")
        _, _, first = call(*words, *DRY)
        _, _, second = call(*words, *DRY)
        assert "a new pseudonym key was made" in first
        assert "a new pseudonym key was made" not in second

    def test_reads_settings_from_a_file_and_lets_options_win(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("epochs: 3\naugment:\n  scale: 0.1\n  rotate_deg: 1\n")
        found = console.settings(
            tmp_path / "c.yaml", console.overrides(["augment.scale=0.2", "epochs=4"])
        )
        assert found == {"epochs": 4, "augment": {"scale": 0.2, "rotate_deg": 1}}


class TestInspect:
    def test_prints_json_as_documented(self, small_phantoms: Path) -> None:
        code, stdout, _ = call("inspect", small_phantoms / "dicom", "--json")
        found = json.loads(stdout)
        assert code == 0
        assert set(found["files"]) == {"seen", "used", "excluded", "skipped"}
        accepted = [item for item in found["series"] if item["status"] == "accepted"]
        assert len(accepted) == 9
        for item in accepted:
            assert item["modality"] == "PT"
            assert len(item["shape"]) == len(item["spacing_mm"]) == 3
            assert len(item["suv"]["factors"]) == item["shape"][0]
            assert item["suv"]["route"]

    def test_tells_people_the_same(self, small_phantoms: Path) -> None:
        code, stdout, stderr = call("inspect", small_phantoms / "dicom", "--workers", "2")
        assert (code, stdout) == (0, "")
        assert stderr.count(": PT, accepted") == 9
        assert "SUVbw = " in stderr

    def test_says_that_a_folder_is_empty(self, tmp_path: Path) -> None:
        code, _, stderr = call("inspect", tmp_path)
        assert code == 0
        assert "0 files seen" in stderr
        assert "no series of images was found" in stderr


class TestLocate:
    def test_finds_the_files_of_a_patient_and_of_a_file(
        self, small_phantoms: Path, key: str
    ) -> None:
        from preprocessing.pseudonyms import Pseudonyms, load_key

        pseudonyms = Pseudonyms(load_key(Path(key)))
        root = small_phantoms / "dicom"
        some = next(path for path in sorted(root.rglob("*")) if path.is_file())
        name = pseudonyms.file(some.relative_to(root))
        code, stdout, _ = call("locate", root, f"file {name}", "--pseudonym-key", key)
        assert code == 0
        assert stdout.strip() == str(some)
        patient = pseudonyms.patient("PHANTOM-0000")
        _, stdout, _ = call("locate", root, patient, "--pseudonym-key", key)
        assert len(stdout.splitlines()) > 10

    def test_says_when_there_is_nothing(self, small_phantoms: Path, key: str) -> None:
        code, _, stderr = call("locate", small_phantoms, "aaaa", "--pseudonym-key", key)
        assert code == 3
        assert "nothing in the folder has that pseudonym" in stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunExists("OUTPUT_EXISTS", "there already"), 4, "OUTPUT_EXISTS: there already"),
        (OutputError("LOCKED", "another builder"), 4, "LOCKED: another builder"),
        (OutputError("DISK_FULL", "no space"), 5, "DISK_FULL: no space"),
        (HeaderError("WEIGHT_MISSING", "no weight"), 3, "WEIGHT_MISSING: no weight"),
        (ConfigError("unknown setting"), 2, "unknown setting"),
        (OSError(28, "No space left on device"), 5, "input or output failed: No space left"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here"),
    ],
)
def test_every_refusal_has_its_exit_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    with pytest.raises(typer.Exit) as caught, console.refusals():
        raise error
    assert caught.value.exit_code == code
    assert message in capsys.readouterr().err


def test_being_terminated_is_being_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(typer.Exit) as caught, console.refusals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_installed_command_answers() -> None:
    command = Path(sys.executable).with_name("dualwitness")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for name in ("build-dataset", "train", "explain", "inspect", "verify", "demo", "doctor"):
        assert name in done.stdout
