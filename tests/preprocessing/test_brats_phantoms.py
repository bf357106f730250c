import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from preprocessing.errors import OutputError
from preprocessing.phantoms.brains import LARGEST_SHARE
from preprocessing.phantoms.brats18 import (
    Brats18Options,
    draw_cohort,
    scan_head,
    write_brats18,
)

COARSE = Brats18Options(spacing_mm=2.5, matrix=96, slices=62)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "heads"
    write_brats18(out, subjects=5, seed=1, options=COARSE)
    return out


def test_names_and_grids_are_those_of_the_challenge(folder):
    cases = sorted(path for path in folder.glob("[HL]GG/*"))
    assert len(cases) == 5
    for case in cases:
        for kind in ("t1", "t1ce", "t2", "flair", "seg"):
            image = nibabel.load(case / f"{case.name}_{kind}.nii.gz")
            assert image.shape == (96, 96, 62)
            assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
            assert image.get_data_dtype() == (np.uint8 if kind == "seg" else np.int16)
    assert sum(1 for path in folder.rglob("*") if path.is_file()) == 26


def test_by_default_the_grid_is_that_of_the_challenge():
    assert Brats18Options() == Brats18Options(spacing_mm=1.0, matrix=240, slices=155)


def test_the_same_arguments_give_the_same_bytes_in_any_order_of_work(folder, tmp_path):
    def backwards(function, items):
        done = {item.index: function(item) for item in reversed(list(items))}
        return [done[index] for index in sorted(done)]

    calls = []
    write_brats18(
        tmp_path / "again",
        subjects=5,
        seed=1,
        options=COARSE,
        mapper=backwards,
        progress=lambda *args: calls.append(args),
    )
    for path in folder.rglob("*"):
        if path.is_file():
            other = tmp_path / "again" / path.relative_to(folder)
            assert other.read_bytes() == path.read_bytes()
    assert calls[-1] == (5, 5)


def test_the_truth_says_where_the_tumour_lies(folder):
    for fact in json.loads((folder / "truth.json").read_text()):
        (path,) = folder.rglob(f"{fact['case']}_seg.nii.gz")
        labels = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
        assert set(np.unique(labels)) <= {0, 1, 2, 4}
        z, y, x = np.nonzero(labels)
        offset, per_row, per_slice = fact["plane"]
        left = x > offset + per_row * y + per_slice * z
        assert left.sum() == fact["tumour_left"]
        assert (~left).sum() == fact["tumour_right"]
        if not fact["crosses"]:
            assert min(fact["tumour_left"], fact["tumour_right"]) == 0
            assert (fact["side"] == "left") == bool(fact["tumour_left"])


@pytest.mark.parametrize("subjects", [1, 7, 40])
def test_sides_are_balanced_and_some_cross(subjects):
    cohort = draw_cohort(subjects, seed=3)
    assert [drawn.index for drawn in cohort] == list(range(subjects))
    assert abs(sum(drawn.side for drawn in cohort)) <= 1
    assert sum(drawn.crosses for drawn in cohort) == round(0.15 * subjects)
    assert sum(drawn.high_grade for drawn in cohort) == round(subjects * 210 / 285)


def test_a_crossing_tumour_takes_both_sides():
    crossing = [drawn for drawn in draw_cohort(40, seed=2) if drawn.crosses]
    for drawn in crossing:
        truth = scan_head(drawn, seed=2, options=COARSE).truth
        tumour = truth.labels > 0
        assert (tumour & (truth.lateral_mm > 0)).any()
        assert (tumour & (truth.lateral_mm < 0)).any()


def test_tumours_are_of_realistic_size_and_inside_the_brain():
    shares = []
    for drawn in draw_cohort(20, seed=6):
        scan = scan_head(drawn, seed=6, options=COARSE)
        tumour = scan.truth.labels > 0
        assert tumour.any()
        assert not (tumour & ~scan.truth.brain).any()
        shares.append(2 * tumour.sum() / scan.truth.brain.sum())
    assert max(shares) < 1.25 * LARGEST_SHARE
    assert np.median(shares) > 0.03


def test_contrasts_are_those_of_the_sequences():
    drawn = next(d for d in draw_cohort(9, seed=8) if d.high_grade)
    scan = scan_head(drawn, seed=8, options=COARSE)
    tissue, labels, brain = scan.truth.tissue, scan.truth.labels, scan.truth.brain
    healthy = brain & (labels == 0)
    white = {
        name: picture[healthy & (tissue == 2)].mean() for name, picture in scan.pictures.items()
    }
    fluid = {
        name: picture[healthy & (tissue == 0)].mean() for name, picture in scan.pictures.items()
    }
    assert fluid["T1"] < white["T1"]
    assert fluid["T2"] > 2 * white["T2"]
    assert fluid["FLAIR"] < white["FLAIR"]
    assert scan.pictures["FLAIR"][labels == 2].mean() > 1.5 * white["FLAIR"]
    rim = labels == 4
    assert scan.pictures["T1ce"][rim].mean() > 1.3 * white["T1ce"]
    assert scan.pictures["T1"][rim].mean() < white["T1"]
    for picture in scan.pictures.values():
        assert not picture[~brain].any()


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write_brats18(tmp_path / "a", subjects=0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("")
    with pytest.raises(OutputError, match="not empty") as caught:
        write_brats18(tmp_path / "b", subjects=1)
    assert caught.value.code == "EXISTS"
