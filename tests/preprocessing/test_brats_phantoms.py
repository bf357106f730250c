import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from preprocessing.errors import OutputError
from preprocessing.phantoms.brains import CSF, GLIOSIS, LARGEST_SHARE, VESSEL, WHITE
from preprocessing.phantoms.brats18 import (
    Brats18Options,
    draw_cohort,
    scan_head,
    write_brats18,
)

COARSE = Brats18Options(spacing_mm=2.5, matrix=96, slices=62)
TINY = Brats18Options(spacing_mm=12.0, matrix=20, slices=13)
PLAIN = replace(COARSE, mimics=0.0, faintest=1.0)


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


def test_mimics_lie_in_healthy_tissue_and_change_no_tumour():
    seen = {GLIOSIS: 0, VESSEL: 0}
    for drawn in draw_cohort(6, seed=3):
        plain = scan_head(drawn, seed=3, options=PLAIN).truth
        scan = scan_head(drawn, seed=3, options=replace(PLAIN, mimics=80.0))
        found = scan.truth
        np.testing.assert_array_equal(found.labels, plain.labels)
        np.testing.assert_array_equal(found.brain, plain.brain)
        changed = found.tissue != plain.tissue
        assert set(np.unique(found.tissue[changed])) <= {GLIOSIS, VESSEL}
        assert (plain.tissue[found.tissue == GLIOSIS] == WHITE).all()
        assert (plain.tissue[found.tissue == VESSEL] != CSF).all()
        for kind in seen:
            seen[kind] += int((found.tissue == kind).sum())
        flair, t1ce = scan.pictures["FLAIR"], scan.pictures["T1ce"]
        healthy = found.brain & (found.labels == 0)
        white = healthy & (found.tissue == WHITE)
        for picture, kind in ((flair, GLIOSIS), (t1ce, VESSEL)):
            here = healthy & (found.tissue == kind)
            if here.sum() > 20:
                assert picture[here].mean() > 1.5 * picture[white].mean()
    assert min(seen.values()) > 50


def test_mimics_do_not_tell_the_side_of_the_tumour():
    with_tumour = [
        np.sign(place[0]) == scan.head.side
        for drawn in draw_cohort(30, seed=4)
        for scan in [scan_head(drawn, seed=4, options=TINY)]
        for place in scan.head.mimics
    ]
    count = len(with_tumour)
    assert count > 500
    assert abs(np.mean(with_tumour) - 0.5) < 4 * 0.5 / np.sqrt(count)


def test_contrast_of_tumours_lies_between_the_faintest_and_the_plainest():
    ratios = []
    for drawn in draw_cohort(12, seed=8):
        for faintest in (1.0, 0.3):
            scan = scan_head(drawn, seed=8, options=replace(PLAIN, faintest=faintest))
            flair, truth = scan.pictures["FLAIR"].astype(float), scan.truth
            white = truth.brain & (truth.labels == 0) & (truth.tissue == WHITE)
            ratios.append(flair[truth.labels == 2].mean() / flair[white].mean() - 1)
    plain, faint = np.array(ratios[::2]), np.array(ratios[1::2])
    relative = faint / plain  # the coil's field is drawn anew: it moves the ratio a little
    assert relative.min() > 0.2
    assert relative.max() < 1.1
    assert relative.std() > 0.1


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        write_brats18(tmp_path / "a", subjects=0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("")
    with pytest.raises(OutputError, match="not empty") as caught:
        write_brats18(tmp_path / "b", subjects=1)
    assert caught.value.code == "EXISTS"
