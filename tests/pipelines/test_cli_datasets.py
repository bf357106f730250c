"""The commands of BraTS18 and ChestX-ray14, right and wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import demo
from pipelines.cli import app
from pipelines.config import TrainConfig
from pipelines.demo_chains import DEMOS
from pipelines.recipes import RECIPES
from preprocessing.phantoms import PHANTOMS
from preprocessing.phantoms.brats18 import Brats18Options, write_brats18
from preprocessing.phantoms.chestxray14 import write_chestxray14
from preprocessing.pseudonyms import create_key
from preprocessing.shards import verify

RUNNER = CliRunner()


def call(*words: str | Path) -> tuple[int, str, str]:
    done = RUNNER.invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def key(tmp_path: Path) -> str:
    create_key(tmp_path / "key")
    return str(tmp_path / "key")


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brats") / "heads"
    options = Brats18Options(spacing_mm=5.0, matrix=48, slices=31)
    write_brats18(folder, subjects=4, seed=5, options=options)
    return folder


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chests") / "release"
    write_chestxray14(folder, subjects=4, seed=2, image_size=64)
    return folder


COARSE = ("--image-size", "48", "--min-tumour-area", "20", "--min-half-area", "10")


class TestWrongCalls:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["brats18", "--out", "x"], "Missing option '--root'"),
            (["brats18", "--root", "."], "Missing option '--out'"),
            (["brats81", "--root", "."], "Did you mean 'brats18'?"),
            (["brats18", "--root", "nowhere", "--out", "x"], "--root nowhere does not exist"),
            (["brats18", "--rot", "x"], "No such option: --rot"),
            (["brats18", "--dicom-dir", "x"], "No such option: --dicom-dir"),
            (
                ["brats18", "--root", ".", "--out", "x", "--crop", "middle"],
                "crop: Input should be 'midline' or 'tumour-edge' (got 'middle')",
            ),
            (
                ["brats18", "--root", ".", "--out", "x", "--crossing", "both"],
                "crossing: Input should be 'exclude' or 'label-both' (got 'both')",
            ),
            (
                ["brats18", "--root", ".", "--out", "x", "--dtype", "float16"],
                "dtype: Input should be 'int16' or 'float32' (got 'float16')",
            ),
            (
                ["brats18", "--root", ".", "--out", "x", "--min-tumour-area", "-1"],
                "min_tumour_area: Input should be greater than or equal to 0 (got -1)",
            ),
            (
                ["brats18", "--root", ".", "--out", "x", "--min-half-area", "0"],
                "min_half_area: Input should be greater than or equal to 1 (got 0)",
            ),
            (
                ["brats18", "--root", ".", "--out", "x", "--image-size", "16"],
                "image_size: Input should be greater than or equal to 32 (got 16)",
            ),
            (["brats18", "--root", ".", "--out", "x", "--image-size", "big"], "valid integer"),
            (
                ["brats18", "--root", ".", "--out", "x", "--set", "crossin=exclude"],
                "unknown setting 'crossin'; did you mean 'crossing'?",
            ),
            (["brats18", "--root", ".", "--out", "x", "--workers", "-1"], "--workers must be 0"),
            (["chestxray14", "--out", "x"], "Missing option '--root'"),
            (["chestxray", "--root", "."], "Did you mean 'chestxray14'?"),
            (["chestxray14", "--root", "nowhere", "--out", "x"], "--root nowhere does not exist"),
            (
                ["chestxray14", "--root", ".", "--out", "x", "--image-size", "9999"],
                "image_size: Input should be less than or equal to 4096 (got 9999)",
            ),
            (
                ["chestxray14", "--root", ".", "--out", "x", "--set", "crop=midline"],
                "unknown setting 'crop'; known: seed, test_fraction",
            ),
        ],
    )
    def test_of_a_build_say_what_is_wrong(
        self, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        found, stdout, stderr = call("build-dataset", *words)
        assert (found, stdout) == (2, "")
        assert message in stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["phantom", "brats", "--out", "x"], "Did you mean 'brats18'?"),
            (["phantom", "brats18"], "Missing option '--out'"),
            (["phantom", "brats18", "--out", "x", "--subjects", "0"], "'--subjects'"),
            (["phantom", "chestxray14", "--out", "x", "--subjects", "0"], "'--subjects'"),
            (
                ["demo", "--dataset", "brats", "--out", "x"],
                "DATASET: --dataset 'brats' has no demo: choose from fdg-pet, brats18, chestxray14",
            ),
            (["demo", "--dataset", "brats18", "--subjects", "3"], "'--subjects'"),
        ],
    )
    def test_of_a_phantom_or_a_demo_say_what_is_wrong(
        self, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        found, stdout, stderr = call(*words)
        assert (found, stdout) == (2, "")
        assert message in stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["brats18", "chestxray14"])
    def test_a_full_folder_is_not_written_into(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "x").touch()
        code, _, stderr = call("phantom", name, "--out", tmp_path)
        assert code == 4
        assert "exists and is not empty: name a new folder" in stderr

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("brats18", "a case needs <case>_t1, _t1ce, _t2, _flair and _seg as .nii or .nii.gz"),
            ("chestxray14", "PNG images and the release's Data_Entry_2017*.csv are needed"),
        ],
    )
    def test_a_folder_without_any_says_what_is_needed(
        self, name: str, message: str, tmp_path: Path, key: str
    ) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.txt").touch()
        words = ("--root", tmp_path / "in", "--out", tmp_path / "o", "--pseudonym-key", key)
        code, _, stderr = call("build-dataset", name, *words)
        assert code == 3
        assert "NOTHING_USABLE: none of the 1 files can be used" in stderr
        assert message in stderr

    def test_images_without_their_table(self, chests: Path, tmp_path: Path, key: str) -> None:
        words = ("--root", chests / "images", "--out", tmp_path / "o", "--pseudonym-key", key)
        code, _, stderr = call("build-dataset", "chestxray14", *words)
        assert code == 3
        assert "CXR_NO_TABLE: there are images, but no Data_Entry_2017*.csv" in stderr

    def test_volumes_of_another_size(self, heads: Path, tmp_path: Path, key: str) -> None:
        words = ("--root", heads, "--out", tmp_path / "o", "--pseudonym-key", key)
        code, _, stderr = call("build-dataset", "brats18", *words, "--workers", "1")
        assert code == 3
        assert "NII_SIZE 20" in stderr


class TestBuild:
    def test_of_heads_says_what_became_of_every_file(
        self, heads: Path, tmp_path: Path, key: str
    ) -> None:
        words = ("--root", heads, "--out", tmp_path / "o", "--pseudonym-key", key, *COARSE)
        code, stdout, stderr = call("build-dataset", "brats18", *words, "--workers", "1", "--json")
        assert code == 0, stderr
        assert "21 files seen" in stderr
        assert "LEAKS_LABELS" not in stderr
        assert sum(json.loads(stdout)["samples"].values()) > 0
        assert verify(tmp_path / "o").problems == ()
        manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
        config = manifest["config"]
        assert (config["image_size"], config["min_tumour_area"]) == (48, 20)
        code, _, stderr = call("build-dataset", "brats18", *words)
        assert code == 0
        assert "is complete already; nothing was written" in stderr

    def test_at_the_tumours_edge_is_told_to_leak(
        self, heads: Path, tmp_path: Path, key: str
    ) -> None:
        words = ("--root", heads, "--out", tmp_path / "o", "--pseudonym-key", key, *COARSE)
        options = ("--crop", "tumour-edge", "--dtype", "float32", "--workers", "1")
        code, _, stderr = call("build-dataset", "brats18", *words, *options)
        assert code == 0, stderr
        assert "LEAKS_LABELS: made with --crop tumour-edge" in stderr

    def test_of_radiographs(self, chests: Path, tmp_path: Path, key: str) -> None:
        words = ("--root", chests, "--out", tmp_path / "o", "--pseudonym-key", key)
        options = ("--image-size", "48", "--workers", "1")
        code, _, stderr = call("build-dataset", "chestxray14", *words, *options)
        assert code == 0, stderr
        assert verify(tmp_path / "o").problems == ()

    @pytest.mark.parametrize("name", ["brats18", "chestxray14"])
    def test_is_rehearsed_without_writing(
        self, name: str, heads: Path, chests: Path, tmp_path: Path, key: str
    ) -> None:
        root = heads if name == "brats18" else chests
        words = ("--root", root, "--out", tmp_path / "o", "--pseudonym-key", key, "--dry-run")
        code, stdout, stderr = call("build-dataset", name, *words, "--workers", "1", "--json")
        assert code == 0
        assert "dry run: nothing was written" in stderr
        assert json.loads(stdout)["files"]["used"] > 0
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["brats18", "chestxray14"])
def test_a_phantom_says_how_to_build_from_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {}

    def note(out: Path, **options: object) -> None:
        written.update(options)
        options["progress"](1, 2)  # type: ignore[operator]

    monkeypatch.setattr("pipelines.console.PHANTOMS", {name: note})
    code, _, stderr = call(
        "phantom", name, "--out", tmp_path / "p", "--subjects", "2", "--seed", "7"
    )
    assert code == 0
    assert (written["subjects"], written["seed"]) == (2, 7)
    assert f"build-dataset {name} --root {tmp_path / 'p'} --out DATA" in stderr


def test_every_data_set_has_a_recipe_a_phantom_a_demo_and_commands() -> None:
    assert RECIPES.keys() == PHANTOMS.keys() == DEMOS.keys()
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert isinstance(DEMOS[name].build, recipe.config)
        for group in ("build-dataset", "phantom"):
            code, stdout, _ = call(group, name, "--help")
            assert code == 0
            assert "--out" in stdout


FAST = TrainConfig(
    network="resnet10-narrow",
    variant="exact",
    epochs=1,
    batch_size=16,
    bootstrap=10,
    image_size=64,
    workers=0,
)


@pytest.mark.parametrize(
    ("name", "headline", "words"),
    [
        ("brats18", "balanced accuracy", ("predicted <b>", "Gain over the controls")),
        (
            "chestxray14",
            "mean area under the ROC curve",
            ("area for Effusion", "labelled with <b>", "no true regions", "the true class, of"),
        ),
    ],
)
def test_a_demo_runs_the_whole_chain(
    name: str,
    headline: str,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "brats18":
        options = Brats18Options(spacing_mm=3.75, matrix=64, slices=41)
        changes = {
            "phantoms": {"options": options},
            "build": RECIPES[name].config.of(
                {"image_size": 64, "min_tumour_area": 110, "min_half_area": 30}
            ),
        }
    else:
        changes = {
            "phantoms": {"findings": ("Effusion", "Mass"), "image_size": 64},
            "build": RECIPES[name].config.of({"image_size": 64}),
        }
    chain = replace(DEMOS[name], **changes)
    monkeypatch.setattr(demo, "DEMOS", {name: chain})
    report = demo.run_demo(tmp_path / "demo", dataset=name, subjects=14, settings=FAST)
    text = report.page.read_text()
    assert chain.scans.replace("'", "&#39;") in text
    assert headline in report.verdict
    assert [phrase for phrase in words if phrase not in text] == []
    again = demo.run_demo(tmp_path / "demo", dataset=name, subjects=14, settings=FAST)
    assert again.verdict == report.verdict
    with pytest.raises(demo.RunExists, match="a demo with other numbers or settings"):
        demo.run_demo(tmp_path / "demo", dataset=name, subjects=15, settings=FAST)
