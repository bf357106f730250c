"""ChestX-ray14 through the same build as every data set."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, PngImagePlugin

from pipelines.build import BuildReport, build
from pipelines.config import ChestXray14Config
from pipelines.errors import DataError
from preprocessing.chestxray import CLASSES, Sources
from preprocessing.errors import LabelError, SplitError
from preprocessing.phantoms.chestxray14 import write_chestxray14
from preprocessing.shards import open_dataset, verify

ROOT = Path(__file__).parents[2]
KEY = bytes(range(32))
SMALL = ChestXray14Config(image_size=64, samples_per_shard=16)
FINDINGS = ("Cardiomegaly", "Effusion", "Mass", "Pneumothorax")
BOXED = "00001153_004.png"


def run(
    folder: Path, out: Path, *, workers: int = 1, config: ChestXray14Config = SMALL
) -> BuildReport:
    return build("chestxray14", config, Sources(root=folder), out=out, key=KEY, workers=workers)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def everything(out: Path) -> dict[str, bytes]:
    """All files but the log, which holds times."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("build.log.jsonl", ".lock")
    }


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four patients; read only."""
    folder = tmp_path_factory.mktemp("chests") / "release"
    write_chestxray14(folder, subjects=24, seed=2, findings=FINDINGS, image_size=128)
    return folder


@pytest.fixture(scope="module")
def built(chests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    run(chests, out)
    return out


class TestDataSet:
    def test_keeps_every_promise(self, built: Path, chests: Path) -> None:
        assert verify(built).problems == ()
        files = manifest(built)["counts"]["files"]
        assert files["seen"] == sum(1 for path in chests.rglob("*") if path.is_file())
        assert files["used"] == len(list((chests / "images").iterdir()))
        assert files["skipped"] == 4

    def test_has_the_test_patients_of_the_official_list(self, built: Path, chests: Path) -> None:
        rows = table(built / "samples.csv")
        tests = (chests / "test_list.txt").read_text().split()
        assert sum(row["split"] == "test" for row in rows) == len(tests)
        assert {(row["official_split"], row["split"]) for row in rows} == {
            ("test", "test"),
            ("train_val", "train"),
            ("train_val", "validation"),
        }

    def test_has_a_set_of_labels_for_each_picture(self, built: Path) -> None:
        rows = {row["sample_id"]: row for row in table(built / "samples.csv")}
        kinds = set()
        for example in open_dataset(built):
            named = [CLASSES[i] for i in np.flatnonzero(example.arrays["labels"])]
            assert "|".join(named or ["No Finding"]) == rows[example.sample_id]["findings"]
            assert example.label == (CLASSES.index(named[0]) if len(named) == 1 else -1)
            kinds.add(len(named))
        assert {0, 1, 2} <= kinds

    def test_has_boxes_within_the_picture_where_the_row_says_so(self, built: Path) -> None:
        rows = {row["sample_id"]: row for row in table(built / "samples.csv")}
        count = 0
        for example in open_dataset(built):
            boxes = example.arrays["boxes"]
            used = boxes[:, 0] >= 0
            assert used.sum() == int(rows[example.sample_id]["boxes"])
            assert np.isnan(boxes[~used, 1:]).all()
            assert (boxes[used, 1:] >= 0).all()
            assert (boxes[used, 1:3] + boxes[used, 3:] <= 64).all()
            count += int(used.sum())
        assert count > 0

    def test_has_a_card_with_every_finding_the_probe_and_the_licence(self, built: Path) -> None:
        text = (built / "README.md").read_text()
        for name in FINDINGS:
            assert f"\n| {name} | " in text.partition("With all findings counted:")[2]
        assert "Leak probe: " in text
        licence = yaml.safe_load(text.split("---\n")[1])["license"]
        assert "use is unrestricted" in licence
        assert json.loads((built / "croissant.json").read_text())["license"] == licence

    def test_says_that_there_are_too_few_patients_to_know(self, built: Path) -> None:
        found = manifest(built)["leak_probe"]
        assert found["area_under_curve"] is None
        assert found["near_duplicates"] == {}
        assert "too few patients to know (24 in all)" in (built / "README.md").read_text()


def test_with_enough_patients_the_probe_is_at_chance(tmp_path: Path) -> None:
    write_chestxray14(
        tmp_path / "in", subjects=60, seed=1, findings=("Effusion", "Mass"), image_size=64
    )
    run(tmp_path / "in", tmp_path / "out", config=ChestXray14Config(image_size=48))
    area = manifest(tmp_path / "out")["leak_probe"]["area_under_curve"]
    assert area["low"] <= 0.5 <= area["high"]


class TestSameBytes:
    def test_whatever_the_workers_and_the_folders(
        self, chests: Path, built: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        for number, path in enumerate(sorted(chests.rglob("*.*"), reverse=True)):
            target = copy / f"images_{number % 3:03d}" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        run(copy, tmp_path / "out", workers=4)
        assert everything(tmp_path / "out") == everything(built)

    def test_killed_half_way_the_same_command_ends_with_them(
        self, chests: Path, built: Path, tmp_path: Path
    ) -> None:
        words = [sys.executable, "-c", KILLED, str(chests), str(tmp_path / "out")]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert list((tmp_path / "out" / "shards").glob("*.h5"))
        run(chests, tmp_path / "out")
        assert everything(tmp_path / "out") == everything(built)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines import build, place
from pipelines.config import ChestXray14Config
from preprocessing.chestxray import Sources

count, write = 0, place.write_shard

def fatal(*arguments, **options):
    global count
    record = write(*arguments, **options)
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return record

if __name__ == "__main__":
    place.write_shard = fatal
    config = ChestXray14Config(image_size=64, samples_per_shard=16)
    sources = Sources(root=Path(sys.argv[1]))
    build.build("chestxray14", config, sources, out=Path(sys.argv[2]), key=bytes(range(32)))
"""


def test_faulty_images_have_their_own_codes_and_the_rest_goes_on(
    chests: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "release"
    shutil.copytree(chests, copy)
    first, second, third, fourth, *_ = sorted((copy / "images").iterdir())
    first.write_bytes(first.read_bytes()[:-500])
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(second)
    Image.fromarray(np.eye(64, 32, dtype=np.uint8)).save(third)
    fourth.unlink()
    (copy / "images" / "00009999_000.png").write_bytes(b"lost")
    report = run(copy, tmp_path / "out")
    found = {item.code: item.files for item in report.exclusions if item.files}
    assert found == dict.fromkeys(
        ("CXR_UNREADABLE", "CXR_BLANK", "CXR_NOT_SQUARE", "CXR_NO_ROW"), 1
    )
    assert "CXR_NO_IMAGE" in {item.code for item in report.exclusions}
    assert verify(tmp_path / "out").problems == ()


class TestRefusals:
    def test_images_without_their_table(self, chests: Path, tmp_path: Path) -> None:
        copy = tmp_path / "release"
        shutil.copytree(chests / "images", copy)
        with pytest.raises(LabelError, match=r"no Data_Entry_2017\*\.csv"):
            run(copy, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_lists_that_share_a_patient(self, chests: Path, tmp_path: Path) -> None:
        copy = tmp_path / "release"
        shutil.copytree(chests, copy)
        names = (copy / "test_list.txt").read_text().split()
        with (copy / "train_val_list.txt").open("a") as stream:
            stream.write(f"{names[0]}\n")
        with pytest.raises(SplitError, match="patients"):
            run(copy, tmp_path / "out")

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a.txt").write_text("nothing")
        with pytest.raises(DataError, match=r"\(NOT_PNG 1\); PNG images and the release's Data_E"):
            run(tmp_path / "in", tmp_path / "out")


def forms(text: str) -> Iterator[bytes]:
    yield text.encode()
    yield text.encode("utf-16-le")


def test_no_name_of_a_file_or_a_folder_and_no_text_of_an_image_survives(
    chests: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "CANARYFOLDER"
    shutil.copytree(chests, copy)
    for path in (copy / "images").iterdir():
        with Image.open(path) as image:
            text = PngImagePlugin.PngInfo()
            text.add_text("Comment", "CANARYCOMMENT")
            stream = io.BytesIO()
            image.save(stream, "PNG", pnginfo=text)
        path.write_bytes(stream.getvalue())
    (copy / "images" / "CANARYNAME.png").write_bytes(b"lost")
    next((copy / "images").glob("*_000.png")).write_bytes(b"lost")
    report = run(copy, tmp_path / "out")
    assert {item.code for item in report.exclusions} == {"CXR_NO_ROW", "CXR_UNREADABLE"}
    names = {path.stem for path in chests.rglob("*.png")}
    wanted = [form for text in ("CANARY", *names) for form in forms(text)]
    log = {"log": (tmp_path / "out" / "build.log.jsonl").read_bytes()}
    for name, content in (everything(tmp_path / "out") | log).items():
        assert not [form for form in wanted if form in content or form in name.encode()], name


class TestReference:
    """The images, tables and lists that the NIH released."""

    @pytest.fixture
    def out(self, reference_data: Path, tmp_path: Path) -> Path:
        out = tmp_path / "data"
        run(reference_data / "chestxray14", out, config=ChestXray14Config(image_size=256))
        return out

    def test_every_image_is_there(self, out: Path) -> None:
        assert verify(out).problems == ()
        assert sum(manifest(out)["counts"]["samples"].values()) == 25
        assert manifest(out)["exclusions"] == {"CXR_BOX_NO_IMAGE": 879}
        rows = table(out / "samples.csv")
        assert {row["pixel_mode"] for row in rows} == {"grey", "rgba"}
        assert {row["split"] for row in rows if row["official_split"] == "test"} == {"test"}

    def test_the_box_frames_the_same_pixels_as_in_the_original(
        self, out: Path, reference_data: Path
    ) -> None:
        (example,) = (e for e in open_dataset(out) if (e.arrays["boxes"][:, 0] >= 0).any())
        kind, left, top, width, height = example.arrays["boxes"][0].tolist()
        assert CLASSES[int(kind)] == "Atelectasis"
        np.testing.assert_allclose(
            [left, top, width, height],
            np.array([307.03, 253.91, 97.85, 439.18]) / 4,
            atol=0.01,
        )
        with Image.open(reference_data / "chestxray14" / "images" / BOXED) as image:
            original = np.array(image.convert("L")).astype(float)
        inside = original[254:693, 307:405].mean()
        rows, columns = (
            slice(round(top), round(top + height)),
            slice(round(left), round(left + width)),
        )
        assert example.arrays["image"][0, rows, columns].mean() == pytest.approx(inside, abs=1.0)
        assert abs(original.mean() - inside) > 5.0
