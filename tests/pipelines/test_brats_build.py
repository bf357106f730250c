"""BraTS18 through the same build as every data set."""

import csv
import gzip
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from pipelines.build import BuildReport, build, derive_examples, rehearse
from pipelines.config import Brats18Config
from pipelines.errors import DataError, RunExists
from preprocessing.brats import Sources
from preprocessing.brats_files import MODALITIES
from preprocessing.hemispheres import right_pixels
from preprocessing.midline import CutLine
from preprocessing.phantoms.brats18 import Brats18Options, write_brats18
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.shards import open_dataset, verify
from tests.pipelines.forks import Forks

KEY = bytes(range(32))
COARSE = Brats18Options(spacing_mm=4.0, matrix=60, slices=39)
SMALL = Brats18Config(image_size=60, min_tumour_area=62, min_half_area=31, samples_per_shard=64)
MakeData = Callable[[str, str], Path]
MODES = [("midline", "exclude"), ("midline", "label-both"), ("tumour-edge", "exclude")]


def run(folder: Path, out: Path, *, workers: int = 1, config: Brats18Config = SMALL) -> BuildReport:
    return build("brats18", config, Sources(root=folder), out=out, key=KEY, workers=workers)


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


def settings(crop: str, crossing: str, **more: float) -> Brats18Config:
    return SMALL.model_copy(update={"crop": crop, "crossing": crossing, **more})


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty coarse heads, twelve of which have a tumour across the midline; read only."""
    folder = tmp_path_factory.mktemp("brats") / "heads"
    write_brats18(folder, subjects=80, seed=5, options=COARSE)
    return folder


@pytest.fixture(scope="module")
def few(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of the heads; every other slice of one has tumour across the midline; read only."""
    facts = json.loads((heads / "truth.json").read_text())
    large = sorted(facts, key=lambda fact: -fact["tumour_share_of_hemisphere"])
    chosen = [fact["case"] for fact in large if not fact["crosses"]][:6]
    folder = tmp_path_factory.mktemp("few") / "heads"
    for name in chosen:
        (source,) = heads.glob(f"*/{name}")
        shutil.copytree(source, folder / source.parent.name / name)
    (path,) = folder.rglob(f"{chosen[0]}_seg.nii.gz")

    def across(labels: np.ndarray) -> np.ndarray:
        labels[26:34, 28:30, ::2] = 1
        return labels

    rewritten(path, across)
    return folder


@pytest.fixture(scope="module")
def built(heads: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeData:
    """Data sets by ``crop`` and ``crossing``, each built once."""
    made: dict[tuple[str, str], Path] = {}

    def get(crop: str, crossing: str) -> Path:
        if (crop, crossing) not in made:
            out = tmp_path_factory.mktemp("built") / "data"
            # Half of the patients are tested: the probe's interval is as narrow as it can be.
            config = settings(crop, crossing, test_fraction=0.5)
            run(few if crossing == "label-both" else heads, out, config=config)
            made[crop, crossing] = out
        return made[crop, crossing]

    return get


def rewritten(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nibabel.load(path)
    fresh = nibabel.Nifti1Image(change(np.asarray(image.dataobj).copy()), image.affine)
    path.write_bytes(gzip.compress(fresh.to_bytes(), mtime=0))


def volumes(heads: Path) -> dict[str, list[np.ndarray]]:
    """Pseudonym of the patient to its modalities and segmentation, z, y, x, as nibabel reads."""
    pseudonyms = Pseudonyms(KEY)
    found = {}
    for folder in heads.glob("[HL]GG/*"):
        patient = pseudonyms.patient(folder.name.lower().rpartition("_")[0])
        found[patient] = [
            np.asarray(
                nibabel.load(folder / f"{folder.name}_{kind.lower()}.nii.gz").dataobj
            ).transpose(2, 1, 0)
            for kind in (*MODALITIES, "seg")
        ]
    return found


@pytest.mark.parametrize(("crop", "crossing"), MODES)
class TestHalves:
    def test_keep_every_promise(self, crop: str, crossing: str, built: MakeData) -> None:
        out = built(crop, crossing)
        assert verify(out).problems == ()
        files = manifest(out)["counts"]["files"]
        assert files["seen"] == (30 if crossing == "label-both" else 80 * 5 + 1)
        assert files["seen"] == files["used"] + files["excluded"] + files["skipped"]

    def test_add_up_to_the_slice_and_none_without_tumour_holds_any(
        self, crop: str, crossing: str, built: MakeData, heads: Path, few: Path
    ) -> None:
        whole = volumes(few if crossing == "label-both" else heads)
        slices: dict[tuple[str, int], list] = {}
        rows = {row["sample_id"]: row for row in table(built(crop, crossing) / "samples.csv")}
        for example in open_dataset(built(crop, crossing)):
            row = rows[example.sample_id]
            *channels, labels = (part[int(row["z"])] for part in whole[row["subject_id"]])
            tumour = labels > 0
            right = right_pixels(CutLine(*map(float, example.arrays["cut"])), tumour.shape)
            half = right if row["side"] == "right" else ~right
            np.testing.assert_array_equal(example.arrays["image"], np.where(half, channels, 0))
            np.testing.assert_array_equal(example.arrays["mask"], tumour & half)
            if example.label == 0:
                assert not (tumour & half).any()
            else:
                assert (tumour & half).any()
            slices.setdefault((row["subject_id"], int(row["z"])), []).append(example)
        pairs = [found for found in slices.values() if len(found) == 2]
        assert len(pairs) > 30
        for (patient, z), found in slices.items():
            if len(found) == 2:
                total = found[0].arrays["image"] + found[1].arrays["image"]
                np.testing.assert_array_equal(total, [part[z] for part in whole[patient][:4]])


class TestLeftOut:
    def test_slices_across_the_midline_are_left_out_and_counted(
        self, few: Path, tmp_path: Path
    ) -> None:
        report = run(few, tmp_path / "out")
        rows = table(tmp_path / "out" / "exclusions.csv")
        areas = {name: (parts[4] > 0).sum(axis=(1, 2)) for name, parts in volumes(few).items()}
        (patient,) = {row["subject_id"] for row in rows}
        expected = np.flatnonzero(areas[patient] > SMALL.min_tumour_area)
        expected = [z for z in expected.tolist() if z % 2 == 0]
        assert len(expected) > 3
        assert [row["code"] for row in rows] == ["CROSSING_MIDLINE"] * len(expected)
        assert sorted(int(row["where"].split()[-1]) for row in rows) == expected
        assert {row["files"] for row in rows} == {"0"}
        assert manifest(tmp_path / "out")["exclusions"] == {"CROSSING_MIDLINE": len(expected)}
        assert report.files["excluded"] == 0
        samples = table(tmp_path / "out" / "samples.csv")
        for row in samples:
            crossing = len(expected) if row["subject_id"] == patient else 0
            assert int(row["slices_crossing"]) == crossing
        assert {int(row["z"]) % 2 for row in samples if row["subject_id"] == patient} == {1}

    def test_halves_with_some_tumour_are_told_with_their_side(self, built: MakeData) -> None:
        rows = table(built("midline", "label-both") / "exclusions.csv")
        unclear = [row["where"] for row in rows if row["code"] == "HALF_UNCLEAR"]
        assert unclear
        assert {where.split()[-1] for where in unclear} <= {"left", "right"}

    def test_a_build_that_goes_on_tells_the_same(
        self,
        few: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        undisturbed: dict[str, bytes],
    ) -> None:
        monkeypatch.setattr("pipelines.build.place_rows", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(few, tmp_path / "a")
        monkeypatch.undo()
        # Whatever goes on from here takes the cases, and what was left out of them, as they stand.
        monkeypatch.setattr("pipelines.derive.write_case", lambda *a, **k: 1 / 0)
        run(few, tmp_path / "a")
        assert b"CROSSING_MIDLINE" in undisturbed["exclusions.csv"]
        assert everything(tmp_path / "a") == undisturbed

    def test_a_complete_data_set_is_recognised(self, few: Path, tmp_path: Path) -> None:
        first = run(few, tmp_path / "out")
        again = run(few, tmp_path / "out")
        assert again.already_complete
        assert again.exclusions == first.exclusions
        with pytest.raises(RunExists, match="differs in config"):
            run(few, tmp_path / "out", config=settings("tumour-edge", "exclude"))

    def test_examples_in_memory_come_with_what_was_left_out(
        self, few: Path, tmp_path: Path
    ) -> None:
        examples, left = derive_examples("brats18", SMALL, Sources(root=few), key=KEY)
        report = run(few, tmp_path / "out")
        assert len(examples) == sum(report.samples.values())
        assert Counter(item.code for item in left) == Counter(x.code for x in report.exclusions)


class TestLeaks:
    def test_halves_at_the_midline_are_at_chance(self, built: MakeData) -> None:
        found = manifest(built("midline", "exclude"))
        area = found["leak_probe"]["area_under_curve"]
        assert area["low"] <= 0.5 <= area["high"]
        assert not found["leak_probe"]["above_chance"]
        assert found["known_leak"] == ""
        assert found["leak_probe"]["near_duplicates"] == {}
        text = (built("midline", "exclude") / "README.md").read_text()
        assert text.index("## What to be careful about") < text.index("Leak probe: a classifier")
        assert "leaks its labels" not in text

    def test_halves_at_the_tumours_edge_are_clearly_above_and_the_card_begins_with_it(
        self, built: MakeData
    ) -> None:
        out = built("tumour-edge", "exclude")
        found = manifest(out)["leak_probe"]
        assert found["area_under_curve"]["low"] > 0.6
        assert found["above_chance"]
        text = (out / "README.md").read_text()
        assert text.index("> **Leak probe: warning.**") < text.index("## What it is")

    def test_the_tumours_edge_is_marked_whatever_the_probe_says(
        self, few: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        report = run(few, out, config=settings("tumour-edge", "exclude"))
        assert not manifest(out)["leak_probe"]["above_chance"]  # too few patients to know
        assert "the cut follows the tumour" in manifest(out)["known_leak"]
        assert report.remarks[0].startswith("LEAKS_LABELS: made with --crop tumour-edge")
        assert manifest(out)["remarks"][0] == report.remarks[0]
        text = (out / "README.md").read_text()
        assert text.index("**This build leaks its labels.**") < text.index("## What it is")
        croissant = json.loads((out / "croissant.json").read_text())
        assert "Leaks its labels: made with --crop tumour-edge" in croissant["description"]

    def test_the_licence_is_that_of_the_challenge(self, built: MakeData) -> None:
        out = built("midline", "exclude")
        front = yaml.safe_load((out / "README.md").read_text().split("---\n")[1])
        assert "no redistribution" in front["license"]
        assert json.loads((out / "croissant.json").read_text())["license"] == front["license"]


def backwards(path: Path) -> Path:
    """A copy whose files were written in another order."""
    copy = path.parent / "copy"
    for source in sorted((p for p in path.rglob("*") if p.is_file()), reverse=True):
        target = copy / source.relative_to(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    return copy


@pytest.fixture(scope="module")
def undisturbed(few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "data"
    run(few, out)
    return everything(out)


@pytest.fixture(scope="module")
def killed() -> Iterator[Forks]:
    found = Forks(KILLED)
    yield found
    found.close()


class TestSameBytes:
    def test_whatever_the_workers_and_the_order_of_the_files(
        self, few: Path, tmp_path: Path, undisturbed: dict[str, bytes]
    ) -> None:
        run(backwards(few), tmp_path / "out", workers=4)
        assert everything(tmp_path / "out") == undisturbed

    @pytest.mark.parametrize("moment", ["case", "shard", "probe", "manifest"])
    def test_killed_at_any_step_the_same_command_ends_with_them(
        self,
        moment: str,
        killed: Forks,
        few: Path,
        tmp_path: Path,
        undisturbed: dict[str, bytes],
    ) -> None:
        killed.begin(few, tmp_path / "out", moment)
        assert killed.end() == signal.SIGKILL
        assert not (tmp_path / "out" / "manifest.json").exists()
        run(few, tmp_path / "out", workers=2)
        assert everything(tmp_path / "out") == undisturbed


KILLED = """
import os
import signal
from pathlib import Path
from pipelines import build, derive, finish, place
from pipelines.config import Brats18Config
from preprocessing.brats import Sources

count = 0

def fatal(function, at):
    def wrapped(*arguments, **options):
        global count
        result = function(*arguments, **options)
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

places = {
    "case": (derive, "write_case", 3),
    "shard": (place, "write_shard", 2),
    "probe": (finish, "probe", 1),
    "manifest": (finish, "atomic_write", 3),
}

def run(root, out, moment):
    module, name, at = places[moment]
    setattr(module, name, fatal(getattr(module, name), at))
    config = Brats18Config(
        image_size=60, min_tumour_area=62, min_half_area=31, samples_per_shard=64
    )
    sources = Sources(root=Path(root))
    build.build("brats18", config, sources, out=Path(out), key=bytes(range(32)))
"""


def with_nan(voxels: np.ndarray) -> np.ndarray:
    voxels = voxels.astype(np.float32)
    voxels[30, 30, 20] = np.nan
    return voxels


FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "NII_MISSING_MODALITY": ("t2", lambda path: path.unlink()),
    "NII_MISSING_SEG": ("seg", lambda path: path.unlink()),
    "NII_GRID": ("flair", lambda path: rewritten(path, lambda voxels: voxels[:, :, 1:])),
    "NII_NAN": ("t1ce", lambda path: rewritten(path, with_nan)),
    "NII_TRUNCATED": ("t1", lambda path: path.write_bytes(path.read_bytes()[:-4000])),
    "NII_EMPTY_SEG": ("seg", lambda path: rewritten(path, np.zeros_like)),
    "NII_SEG_FLOAT": (
        "seg",
        lambda path: rewritten(path, lambda seg: (seg * 0.7).astype(np.float32)),
    ),
}


def test_a_faulty_case_has_its_own_code_and_the_rest_goes_on(heads: Path, tmp_path: Path) -> None:
    copy = tmp_path / "heads"
    names = [path.name for path in sorted(heads.glob("[HL]GG/*"))][: len(FAULTS) + 3]
    for path in heads.glob("[HL]GG/*"):
        if path.name in names:
            shutil.copytree(path, copy / path.parent.name / path.name)
    cases = sorted(copy.glob("[HL]GG/*"))
    left = {}
    for case, (code, (kind, damage)) in zip(cases, FAULTS.items(), strict=False):
        damage(case / f"{case.name}_{kind}.nii.gz")
        left[code] = sum(1 for _ in case.iterdir())
    report = run(copy, tmp_path / "out")
    found = {item.code: item for item in report.exclusions if item.code in FAULTS}
    assert {code: item.files for code, item in found.items()} == left
    assert all(item.where.startswith("case ") for item in found.values())
    assert sum(report.samples.values()) > 0
    assert verify(tmp_path / "out").problems == ()


def test_a_head_under_two_names_is_found(few: Path, tmp_path: Path) -> None:
    copy = tmp_path / "heads"
    shutil.copytree(few, copy)
    case = sorted(copy.glob("[HL]GG/*"))[0]
    other = case.with_name("Brats18_OTHER_1")
    other.mkdir()
    for path in case.iterdir():
        shutil.copy(path, other / path.name.replace(case.name, other.name))
    report = run(copy, tmp_path / "out")
    twins = [item for item in report.exclusions if item.code == "CROSS_PATIENT_DUP"]
    assert len(twins) == 2
    assert "stands under 2 case names" in twins[0].detail
    gone = {item.subject_id for item in twins}
    assert not [x for x in report.exclusions if x.subject_id in gone and " slice " in x.where]


class TestNothingUsable:
    def test_says_what_is_there_and_what_is_needed(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "x_t1.nii.gz").write_bytes(b"lost")
        found = Sources(root=tmp_path / "in")
        message = (
            r"none of the 1 files can be used \(NII_MISSING_MODALITY 1\), for example: the case "
            "has no T1ce, .*; a case needs <case>"
        )
        with pytest.raises(DataError, match=message):
            build("brats18", SMALL, found, out=tmp_path / "out", key=KEY)
        assert not (tmp_path / "out").exists()

    def test_where_no_slice_has_enough_tumour(self, few: Path, tmp_path: Path) -> None:
        config = SMALL.model_copy(update={"min_tumour_area": 3000})
        with pytest.raises(DataError, match=r"NO_LARGE_TUMOUR 30.*--min-tumour-area 3000"):
            run(few, tmp_path / "out", config=config)


def encodings(text: str) -> Iterator[bytes]:
    for form in (text, text.lower(), text.upper()):
        yield form.encode()
        yield form.encode("utf-16-le")


def test_no_name_of_a_case_a_file_or_a_folder_survives(few: Path, tmp_path: Path) -> None:
    secrets = ["CANARYFOLDER", "CANARYCASE", "CANARYFREETEXT", "CANARYSTRAY", "PHANTOM"]
    copy = tmp_path / secrets[0]
    for number, case in enumerate(sorted(few.glob("[HL]GG/*"))):
        target = copy / case.parent.name / f"Brats18_{secrets[1]}{number}_1"
        target.mkdir(parents=True)
        for path in case.iterdir():
            image = nibabel.load(path)
            image.header["descrip"] = secrets[2]
            image.header["aux_file"] = secrets[2]
            fresh = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
            name = path.name.replace(case.name, target.name)
            (target / name).write_bytes(gzip.compress(fresh.to_bytes()))
        if number == 1:
            (target / name).write_bytes(b"lost")
        if number == 2:
            next(target.glob("*_t2.nii.gz")).unlink()
    (copy / f"{secrets[3]}.nii.gz").write_bytes(b"")
    report = run(copy, tmp_path / "out")
    assert {item.code for item in report.exclusions} >= {"NII_NAME", "NII_MISSING_MODALITY"}
    contents = everything(tmp_path / "out") | {
        "log": (tmp_path / "out" / "build.log.jsonl").read_bytes()
    }
    forms = [form for text in secrets for form in encodings(text)]
    for name, content in contents.items():
        assert not [form for form in forms if form in content or form in name.encode()], name


class TestReference:
    def test_a_real_case_is_left_out_at_the_default_area(
        self, reference_data: Path, tmp_path: Path
    ) -> None:
        found = Sources(root=reference_data / "brats_style")
        with pytest.raises(DataError, match="NO_LARGE_TUMOUR 5"):
            build("brats18", Brats18Config(), found, out=tmp_path / "out", key=KEY)
        assert rehearse("brats18", Brats18Config(), found, key=KEY).files["used"] == 5

    def test_at_a_lower_one_its_tumour_is_on_the_patients_right(
        self, reference_data: Path, tmp_path: Path
    ) -> None:
        config = Brats18Config(min_tumour_area=300)
        report = run(reference_data / "brats_style", tmp_path / "out", config=config)
        assert (report.samples["validation"], report.samples["test"]) == (0, 0)
        rows = table(tmp_path / "out" / "samples.csv")
        assert {(row["label"], row["side"]) for row in rows} == {
            ("tumour", "right"),
            ("no tumour", "left"),
        }
        for example in open_dataset(tmp_path / "out"):
            columns = np.flatnonzero(example.arrays["mask"].any(axis=0))
            assert (columns < 120).all()
            assert bool(len(columns)) == bool(example.label)
        names = "".join(path.read_text() for path in (tmp_path / "out").glob("*.[cm]*"))
        assert "7294" not in names


def test_the_space_that_is_asked_for_is_enough_and_not_absurd(few: Path, tmp_path: Path) -> None:
    from pipelines.recipes import RECIPES

    recipe, found = RECIPES["brats18"], Sources(root=few)
    asked: list[int] = []
    cases = recipe.discover(found, SMALL, Pseudonyms(KEY), map, lambda *_: None).cases
    layout = recipe.layout(SMALL, found)
    asked = [recipe.space(case, layout) for case in cases]
    run(few, tmp_path / "out")
    stored = sum(path.stat().st_size for path in (tmp_path / "out" / "shards").iterdir())
    assert stored < sum(asked) < 20 * stored
