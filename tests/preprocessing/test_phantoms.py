import gzip
import io
import json
from datetime import datetime
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from preprocessing.dicom_series import load_volume
from preprocessing.errors import OutputError
from preprocessing.intake import scan
from preprocessing.phantoms import PHANTOMS
from preprocessing.phantoms.anatomy import (
    MUSCLE_GROUPS,
    SIDES,
    BodyPlan,
    body_parts,
    mirrored,
    place,
)
from preprocessing.phantoms.dicom_writer import SeriesEncoder, store_slices
from preprocessing.phantoms.fdg_pet import (
    EQUAL_SHARES,
    FdgPetOptions,
    draw_labels,
    scan_subject,
    write_fdg_pet,
)
from preprocessing.phantoms.scanner import PhantomMap, acquire
from preprocessing.phantoms.shapes import Capsule, Ellipsoid, Grid, Part, Tube, paint_parts
from preprocessing.phantoms.subject import FDG_PET_CLASSES, draw_subject
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.suv import suvbw
from preprocessing.truth import load_truth

COARSE = FdgPetOptions(spacing_mm=(13.0, 11.0, 11.0), matrix=64)
EXACT = FdgPetOptions(spacing_mm=(13.0, 11.0, 11.0), matrix=64, noise=False, blur=False)
GRID = Grid(shape=(30, 26, 28), spacing_mm=(3.0, 2.0, 2.5), origin_mm=(-33.0, -26.0, -44.0))
SOLIDS = [
    Ellipsoid(centre=(3.0, -2.0, 1.0), radii=(14.0, 8.0, 20.0), tilt_deg=35.0),
    Ellipsoid(centre=(-30.0, 0.0, 0.0), radii=(14.0, 8.0, 20.0)),
    Capsule(start=(-10.0, 0.0, -20.0), end=(12.0, 6.0, 22.0), start_radius=4.0, end_radius=9.0),
    Capsule(start=(0.0, 0.0, 0.0), end=(0.0, 0.0, 0.0), start_radius=7.0, end_radius=7.0),
    Tube(z=(-30, 0, 25), x=(-4, 0, 8), y=(0, 3, 0), a=(6, 12, 5), b=(5, 9, 6)),
]


def everywhere(shape, grid=GRID):
    """Ask the solid about every voxel centre of the grid, one axis at a time, without its box."""
    z, y, x = (grid.axis(axis) for axis in range(3))
    return shape.contains(z[:, None, None], y[None, :, None], x[None, None, :])


def slices_of(folder: Path) -> list[Dataset]:
    """PET slices below a folder, foot to head, read as any DICOM reader would."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".TXT":
            instance = pydicom.dcmread(path)
            if instance.Modality == "PT":
                found.append(instance)
    return sorted(found, key=lambda instance: float(instance.ImagePositionPatient[2]))


def plain_factor(instance: Dataset) -> float:
    """SUVbw per Bq/mL for DecayCorrection START, from GE's private scan time: the oracle."""
    info = instance.RadiopharmaceuticalInformationSequence[0]
    start = datetime.strptime(instance[0x0009, 0x100D].value[:14], "%Y%m%d%H%M%S")
    clock = datetime.strptime(info.RadiopharmaceuticalStartTime[:6], "%H%M%S")
    injected = clock.replace(year=start.year, month=start.month, day=start.day)
    elapsed = (start - injected).total_seconds()
    dose = float(info.RadionuclideTotalDose) * 0.5 ** (elapsed / float(info.RadionuclideHalfLife))
    return float(instance.PatientWeight) * 1000.0 / dose


def patient_folders(out: Path) -> dict[str, list[Dataset]]:
    series = [slices_of(folder) for folder in sorted((out / "dicom").iterdir())]
    return {str(instances[0].PatientID): instances for instances in series}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "out"
    write_fdg_pet(out, subjects=9, seed=11, options=COARSE)
    return out


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantoms") / "exact"
    write_fdg_pet(out, subjects=3, seed=5, options=EXACT)
    return out


@pytest.fixture(scope="module")
def people():
    return {
        label: [
            draw_subject("P", label=label, rng=np.random.default_rng([4, index]))
            for index in range(25)
        ]
        for label in FDG_PET_CLASSES
    }


# --- solids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SOLIDS)
def test_painting_in_a_box_equals_asking_every_voxel(shape):
    _, regions = paint_parts([Part(region="r", shape=shape)], grid=GRID, outline={"r"})
    assert_array_equal(regions == 1, everywhere(shape))


@pytest.mark.parametrize("shape", [SOLIDS[0], SOLIDS[2], SOLIDS[3], SOLIDS[4]])
def test_solids_have_the_volume_of_their_formula(shape):
    fine = Grid(shape=(130, 100, 120), spacing_mm=(0.6, 0.6, 0.6), origin_mm=(-33, -28, -35))
    volume = everywhere(shape, fine).sum() * fine.voxel_ml * 1000
    if isinstance(shape, Ellipsoid):
        expected = 4 / 3 * np.pi * np.prod(shape.radii)
    elif isinstance(shape, Tube):
        z = np.linspace(shape.z[0], shape.z[-1], 2001)
        areas = np.pi * np.interp(z, shape.z, shape.a) * np.interp(z, shape.z, shape.b)
        expected = np.trapezoid(areas, z)
    else:
        first, last = shape.start_radius, shape.end_radius
        length = np.linalg.norm(np.subtract(shape.end, shape.start))
        barrel = np.pi * length * (first**2 + first * last + last**2) / 3
        expected = barrel + 2 / 3 * np.pi * (first**3 + last**3)
    assert volume == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("shape", SOLIDS)
def test_mirroring_a_solid_mirrors_its_voxels(shape):
    grid = Grid(shape=(30, 26, 27), spacing_mm=(3.0, 2.0, 2.5), origin_mm=(-32.5, -26.0, -44.0))
    assert_array_equal(everywhere(mirrored(shape), grid), everywhere(shape, grid)[:, :, ::-1])


def test_a_part_never_grows_into_the_air_unless_it_is_outline():
    body = Part(region="body", shape=SOLIDS[3])
    organ = Part(region="organ", shape=SOLIDS[0])
    _, regions = paint_parts([body, organ], grid=GRID, outline={"body"})
    assert (regions == 2).any()
    assert_array_equal(regions > 0, everywhere(body.shape))


@pytest.mark.parametrize("function", [lambda s: place(s, PLAN, across=1.0), mirrored])
def test_an_unknown_solid_is_refused(function):
    with pytest.raises(TypeError, match=r"a Box cannot be (placed|mirrored): Ellipsoid, Capsule"):
        function(Box())


class Box:
    """A solid that the anatomy does not know."""

    def bounds(self):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def contains(self, z, y, x):
        return (z >= 0) & (y >= 0) & (x >= 0)


PLAN = BodyPlan(height_mm=1700.0, girth=1.0, leanness=1.0, arm_spread_mm=0.0, organs={})


def test_every_muscle_group_is_painted_on_both_sides_alike():
    grid = Grid(shape=(180, 45, 74), spacing_mm=(10.0, 10.0, 10.0), origin_mm=(-365, -220, -20))
    names, regions = paint_parts(body_parts(PLAN), grid=grid, outline={"fat", "extremity", "head"})
    for group in MUSCLE_GROUPS:
        right, left = (regions == names.index(f"{group}_{side}") for side in SIDES)
        assert 0.04 < left.sum() * grid.voxel_ml / 1000 < 6.0, group
        x = grid.axis(2)
        assert (x[np.nonzero(left)[2]] > 0).all()
        assert (x[np.nonzero(right)[2]] < 0).all()
        assert left.sum() == pytest.approx(right.sum(), rel=0.35)


# --- subjects ---------------------------------------------------------------------------------


def test_classes_differ_and_overlap(people):
    severity = {label: np.array([s.severity for s in group]) for label, group in people.items()}
    assert_array_equal(severity["normal"], 0.0)
    assert severity["mild"].min() > 0.1
    assert np.median(severity["severe"]) > np.median(severity["mild"]) + 0.2
    assert severity["severe"].min() < severity["mild"].max()
    extent = {label: np.array([len(s.altered) for s in group]) for label, group in people.items()}
    assert_array_equal(extent["normal"], 0)
    assert extent["mild"].min() >= 1
    assert extent["severe"].min() < extent["mild"].max()
    assert extent["severe"].mean() > extent["mild"].mean() + 2


def test_altered_muscle_takes_up_more_than_it_would_and_normal_muscle_stays_physiological(people):
    for subject in (subject for group in people.values() for subject in group):
        for group in MUSCLE_GROUPS:
            for side in SIDES:
                region = f"{group}_{side}"
                base = subject.suv[region] - subject.altered.get(region, 0.0)
                assert 0.3 < base <= 0.8 + 1e-9
                assert subject.altered.get(region, 1.0) > 0.2


def test_misleading_findings_and_one_sided_changes_occur(people):
    normal = people["normal"]
    assert any("trapezius_focus" in subject.suv for subject in normal)
    assert any(subject.suv["colon"] > 2.7 for subject in normal)
    altered = [set(subject.altered) for subject in people["mild"]]
    assert any(f"{g}_left" in a and f"{g}_right" not in a for a in altered for g in MUSCLE_GROUPS)
    assert any(f"{g}_left" in a and f"{g}_right" in a for a in altered for g in MUSCLE_GROUPS)


def test_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="label 'moderate' is unknown: one of normal, mild, sev"):
        draw_subject("P", label="moderate", rng=np.random.default_rng(0))


@pytest.mark.parametrize("label", FDG_PET_CLASSES)
@pytest.mark.parametrize("seed", range(8))
def test_tracer_and_weight_balance(label, seed):
    scan = scan_subject(seed, label=label, seed=3, options=EXACT)
    body = scan.truth.regions > 0
    balance = scan.suv.sum(dtype=float) * scan.grid.voxel_ml / (scan.subject.weight_kg * 1000)
    assert 0.3 < balance < 1.05
    assert 0.4 < scan.suv[body].mean() < 1.6
    assert body.sum() * scan.grid.voxel_ml / 1000 == pytest.approx(scan.subject.weight_kg, rel=0.2)
    edge = [body[:, [0, -1]].any(), body[:, :, [0, -1]].any(), body[-1].any()]
    assert edge == [False, False, False]


# --- scanner ----------------------------------------------------------------------------------


def test_voxels_hold_the_suv_of_their_region_and_the_mask_is_the_raised_muscle():
    scan = scan_subject(1, label="severe", seed=2, options=EXACT)
    truth = scan.truth
    for number, name in enumerate(truth.names[1:], start=1):
        region = truth.regions == number
        assert_array_equal(scan.suv[region], np.float32(scan.subject.suv[name]))
        assert_array_equal(truth.altered[region], name in scan.subject.altered)
    assert_array_equal(scan.suv[truth.regions == 0], 0.0)
    assert truth.altered.any()


def test_blur_keeps_the_tracer_and_halves_a_point_at_half_its_width():
    suv = np.zeros((21, 25, 27), dtype=np.float32)
    suv[10, 12, 13] = 100.0
    grid = Grid(shape=suv.shape, spacing_mm=(3.0, 1.5, 1.0), origin_mm=(0.0, 0.0, 0.0))
    truth = PhantomMap(
        grid=grid,
        names=("air",),
        regions=np.zeros(suv.shape, dtype=np.uint8),
        suv=suv,
        altered=np.zeros(suv.shape, dtype=bool),
    )
    rng = np.random.default_rng(0)
    blurred = acquire(truth, counts_per_suv_ml=1.0, rng=rng, noise=False)
    assert blurred.sum(dtype=float) == pytest.approx(100.0, rel=1e-4)
    # 3 mm from the centre a Gaussian of 6 mm full width has half its height, along every axis.
    for neighbour in ((11, 12, 13), (10, 14, 13), (10, 12, 16), (10, 12, 10)):
        assert blurred[neighbour] == pytest.approx(blurred[10, 12, 13] / 2, rel=1e-5)


def test_noise_is_poisson_around_the_truth():
    scan = scan_subject(0, label="normal", seed=1, options=EXACT)
    counts = 20.0
    noisy = acquire(scan.truth, counts_per_suv_ml=counts, rng=np.random.default_rng(8), blur=False)
    region = scan.truth.regions == scan.truth.names.index("soft")
    expected = counts * scan.grid.voxel_ml * scan.subject.suv["soft"]
    drawn = noisy[region] * counts * scan.grid.voxel_ml
    # Stray counts in the air add their own share to every voxel.
    stray = 0.15 * scan.grid.voxel_ml
    assert drawn.mean() == pytest.approx(expected + stray, abs=5 * np.sqrt(expected / len(drawn)))
    assert drawn.var() == pytest.approx(expected + stray, rel=0.1)
    assert_allclose(drawn, np.rint(drawn), atol=1e-3)


# --- files ------------------------------------------------------------------------------------


def test_files_hold_the_true_suv_to_half_a_stored_step(exact):
    for index, (patient, instances) in enumerate(sorted(patient_folders(exact).items())):
        label = draw_labels(3, shares=EQUAL_SHARES, seed=5)[index]
        truth = scan_subject(index, label=label, seed=5, options=EXACT).truth
        assert patient == f"PHANTOM-{index:04d}"
        conversion = suvbw(instances)
        for instance, factor, expected in zip(
            instances, conversion.factors, truth.suv, strict=True
        ):
            slope = float(instance.RescaleSlope)
            assert factor == pytest.approx(plain_factor(instance), rel=1e-6)
            read = instance.pixel_array * slope * factor
            assert_allclose(read, expected, rtol=2e-6, atol=0.5001 * slope * factor)


def test_organs_keep_their_suv_through_noise_and_blur(tmp_path):
    options = FdgPetOptions(spacing_mm=(8.0, 7.0, 7.0), matrix=96)
    write_fdg_pet(tmp_path / "out", subjects=1, seed=2, options=options, shares={"mild": 1.0})
    scan = scan_subject(0, label="mild", seed=2, options=options)
    instances = slices_of(tmp_path / "out" / "dicom")
    factors = suvbw(instances).factors
    read = np.stack(
        [
            instance.pixel_array * float(instance.RescaleSlope) * factor
            for instance, factor in zip(instances, factors, strict=True)
        ]
    )
    for name in ("liver", "lung", "soft", "quadriceps_left"):
        region = scan.truth.regions == scan.truth.names.index(name)
        inner = region.copy()
        for axis in range(3):
            inner &= np.roll(region, 1, axis) & np.roll(region, -1, axis)
        assert inner.sum() > 100
        # Blur brings some of the neighbours in, noise averages out.
        assert read[inner].mean() == pytest.approx(scan.subject.suv[name], rel=0.05), name


def test_headers_look_like_a_scanners(written):
    series = patient_folders(written)
    assert len(series) == 9
    head_first, syntaxes = set(), set()
    for instances in series.values():
        first = instances[0]
        assert first["PixelData"].VR == "OW"
        assert len({float(i.RescaleSlope) for i in instances[10:40]}) > 20
        assert first[0x0009, 0x0010].value == "GEMS_PETD_01"
        assert (first.Units, first.DecayCorrection) == ("BQML", "START")
        assert len({i.SOPInstanceUID for i in instances}) == first.NumberOfSlices
        assert len({i.SeriesInstanceUID for i in instances}) == 1
        assert all(i.file_meta.MediaStorageSOPInstanceUID == i.SOPInstanceUID for i in instances)
        assert len({i.AcquisitionTime for i in instances}) > 3
        head_first.add(int(first.InstanceNumber) > int(instances[-1].InstanceNumber))
        syntaxes.add(first.file_meta.TransferSyntaxUID)
    assert head_first == {True, False}
    assert syntaxes == {ImplicitVRLittleEndian, ExplicitVRLittleEndian}


def test_all_beds_point_back_to_one_scan_start(written):
    for instances in patient_folders(written).values():
        starts = set()
        for instance in instances:
            stamp = str(instance.AcquisitionDate) + str(instance.AcquisitionTime)[:6]
            acquired = datetime.strptime(stamp, "%Y%m%d%H%M%S").timestamp()
            starts.add(acquired - float(instance.FrameReferenceTime) / 1000)
        assert len(starts) == 1


def test_positions_jitter_below_what_intake_tolerates(written):
    for instances in patient_folders(written).values():
        z = np.array([float(i.ImagePositionPatient[2]) for i in instances])
        steps = np.diff(z)
        assert np.ptp(steps) > 0
        assert np.abs(steps - 13.0).max() < 0.01


def test_file_names_say_nothing_about_the_order(written):
    for folder in (written / "dicom").iterdir():
        paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".TXT")
        z = [
            float(instance.ImagePositionPatient[2])
            for instance in map(pydicom.dcmread, paths)
            if instance.Modality == "PT"
        ]
        assert abs(np.corrcoef(z, np.arange(len(z)))[0, 1]) < 0.6


def test_folders_hold_what_is_no_part_of_the_scan(tmp_path):
    write_fdg_pet(tmp_path / "out", subjects=16, seed=0, options=EXACT)
    modalities = set()
    for path in (tmp_path / "out" / "dicom").rglob("*"):
        if path.is_file():
            text = path.suffix == ".TXT"
            modalities.add(
                "text" if text else pydicom.dcmread(path, stop_before_pixels=True).Modality
            )
    assert modalities == {"PT", "CT", "text"}


def test_bytes_are_those_that_pydicom_writes(written):
    for folder in (written / "dicom").iterdir():
        path = next(path for path in sorted(folder.rglob("*")) if path.is_file())
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, pydicom.dcmread(path), enforce_file_format=False)
        assert path.read_bytes() == buffer.getvalue()


def test_truth_lies_on_the_voxels_of_the_scan(written):
    facts = json.loads((written / "truth" / "subjects.json").read_text())
    series = patient_folders(written)
    assert {fact["PatientID"] for fact in facts} == set(series)
    for index, fact in enumerate(facts):
        instances = series[fact["PatientID"]]
        assert fact["SeriesInstanceUID"] == instances[0].SeriesInstanceUID
        image = nibabel.load(written / "truth" / f"{fact['SeriesInstanceUID']}.nii.gz")
        mask = np.asarray(image.dataobj).T
        expected = scan_subject(index, label=fact["label"], seed=11, options=COARSE).truth.altered
        assert_array_equal(mask, expected)
        assert bool(fact["altered"]) == (fact["label"] != "normal") == bool(mask.any())
        corner = [float(v) for v in instances[0].ImagePositionPatient]
        assert_allclose(image.affine[:3, 3], [-corner[0], -corner[1], corner[2]], atol=0.01)
        assert_allclose(np.diag(image.affine)[:3], [-11.0, -11.0, 13.0])


def test_intake_gives_the_true_volume_back(exact):
    found = scan(exact / "dicom", pseudonyms=Pseudonyms(bytes(range(32))))
    accepted = sorted(
        (series for series in found.series if series.status == "accepted"),
        key=lambda series: series.patient_id,
    )
    labels = draw_labels(3, shares=EQUAL_SHARES, seed=5)
    assert [series.patient_id for series in accepted] == [f"PHANTOM-{i:04d}" for i in range(3)]
    for index, series in enumerate(accepted):
        volume = load_volume(series)
        truth = scan_subject(index, label=labels[index], seed=5, options=EXACT).truth
        half_step = truth.suv.max(axis=(1, 2), keepdims=True) / (2 * 32766) * 1.001
        assert (np.abs(volume.voxels - truth.suv) <= half_step + 2e-6 * truth.suv).all()
        path = exact / "truth" / f"{series.series_uid}.nii.gz"
        assert_array_equal(load_truth(path, volume), truth.altered)


def test_labels_join_every_patient(written):
    lines = (written / "labels.csv").read_text().splitlines()
    assert lines[0] == "PatientID,label"
    rows = dict(line.split(",") for line in lines[1:])
    assert set(rows) == set(patient_folders(written))
    assert sorted(rows.values()) == sorted(FDG_PET_CLASSES * 3)


def test_same_seed_same_bytes_whatever_the_mapper(tmp_path):
    def reversed_map(function, items):
        return reversed([function(item) for item in reversed(items)])

    write_fdg_pet(tmp_path / "a", subjects=2, seed=7, options=COARSE)
    write_fdg_pet(tmp_path / "b", subjects=2, seed=7, options=COARSE, mapper=reversed_map)
    write_fdg_pet(tmp_path / "c", subjects=2, seed=8, options=COARSE)
    first, second, other = (
        {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    )
    assert first == second
    assert first != other
    truth = next(content for name, content in first.items() if name.endswith(".nii.gz"))
    assert len(gzip.decompress(truth)) > 352


def test_progress_counts_patients(tmp_path):
    seen = []
    PHANTOMS["fdg-pet"](
        tmp_path / "out",
        subjects=2,
        seed=0,
        options=EXACT,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    with pytest.raises(OutputError, match="output folder is not empty: name a new folder") as error:
        write_fdg_pet(tmp_path, subjects=1)
    assert error.value.code == "EXISTS"
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


@given(
    subjects=st.integers(1, 300),
    weights=st.tuples(*[st.floats(0.0, 1.0)] * 3).filter(lambda w: sum(w) > 1e-3),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_class_shares_are_kept_to_one_subject(subjects, weights, seed):
    shares = dict(zip(FDG_PET_CLASSES, weights, strict=True))
    labels = draw_labels(subjects, shares=shares, seed=seed)
    assert len(labels) == subjects
    for name, weight in shares.items():
        assert abs(labels.count(name) - subjects * weight / sum(weights)) < 1.0 + 1e-9


@pytest.mark.parametrize(
    ("subjects", "shares", "message"),
    [
        (0, {"mild": 1.0}, "subjects is 0: at least 1"),
        (3, {"moderate": 1.0}, r"shares name \['moderate'\]: the classes are normal, mild, severe"),
        (3, {"mild": 0.0}, "shares must be finite, not negative, and one must be above 0"),
        (3, {"mild": float("nan")}, "shares must be finite"),
        (3, {"mild": -1.0, "normal": 2.0}, "not negative"),
    ],
)
def test_impossible_cohorts_are_refused(subjects, shares, message):
    with pytest.raises(ValueError, match=message):
        draw_labels(subjects, shares=shares, seed=0)


def test_an_unknown_keyword_is_refused():
    shared = Dataset()
    shared.SOPClassUID = "1.2.840.10008.5.1.4.1.1.128"
    with pytest.raises(ValueError, match="'PatientWeihgt' is no keyword of the DICOM data dict"):
        SeriesEncoder(
            shared, varying=("PatientWeihgt",), transfer_syntax_uid=ImplicitVRLittleEndian
        )


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_stored_slices_give_their_values_back(seed):
    rng = np.random.default_rng(seed)
    values = (rng.random((4, 5, 6)) * 10.0 ** rng.uniform(-3, 6, (4, 1, 1))).astype(np.float32)
    values[1] = 0.0
    stored = store_slices(values)
    assert (stored.slopes > 0).all()
    assert stored.slopes.tolist() == [float(text) for text in stored.slope_texts]
    assert stored.stored.min() >= 0
    restored = stored.stored * stored.slopes[:, None, None]
    tolerance = 0.501 * stored.slopes[:, None, None] + 1e-6 * values
    assert (np.abs(restored - values) <= tolerance).all()
