import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    RLELossless,
)

from preprocessing.dicom_file import ENHANCED_PET, read_file
from preprocessing.dicom_pixels import read_stored
from preprocessing.dicom_series import check_geometry, load_volume
from preprocessing.errors import FileError, GeometryError, HeaderError
from preprocessing.intake import scan
from preprocessing.intake_records import SeriesIntake
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Volume
from tests.preprocessing.dicom_factory import AXIAL, FACTOR, PET_CLASS, header, save, write_series

KEY = Pseudonyms(bytes(range(32)))


def only_series(folder: Path, **options) -> SeriesIntake:
    (series,) = scan(folder, pseudonyms=KEY, **options).series
    return series


def loaded(folder: Path, **options) -> Volume:
    series = only_series(folder, **options)
    assert series.status == "accepted", series
    return load_volume(series)


def instances(paths):
    return [read_file(path).instance for path in paths]


def refused(paths, **options) -> GeometryError:
    with pytest.raises(GeometryError) as refusal:
        check_geometry(instances(paths), **options)
    return refusal.value


def test_every_slice_is_scaled_by_its_own_slope_and_the_suv_factor(tmp_path):
    truth = write_series(tmp_path)
    volume = loaded(tmp_path)
    assert_allclose(volume.voxels, truth.suv, rtol=3e-7)
    assert_array_equal(volume.affine @ [0, 0, 0, 1], [-10, -20, -30, 1])
    assert_array_equal(volume.affine @ [1, 1, 1, 1], [-8, -17, -26, 1])
    assert not volume.voxels.flags.writeable
    assert volume.subject_id == KEY.patient("CANARY-ID")


AXIS_PAIRS = [
    (row_axis, row_sign, column_axis, column_sign)
    for row_axis, column_axis in itertools.permutations(range(3), 2)
    for row_sign, column_sign in itertools.product((1, -1), repeat=2)
]


@pytest.mark.parametrize(("row_axis", "row_sign", "column_axis", "column_sign"), AXIS_PAIRS)
def test_all_24_orientations_of_one_scan_give_the_same_voxels(
    tmp_path, row_axis, row_sign, column_axis, column_sign
):
    """The volume is stored anew in other planes and directions; where a voxel lies stays."""
    lps = np.random.default_rng(1).integers(1, 9999, (5, 6, 7), dtype=np.int16)  # z y x
    spacing, corner = np.array([2.0, 3.0, 4.0]), np.array([-10.0, -20.0, -30.0])  # x y z
    row, column = np.zeros(3), np.zeros(3)
    row[row_axis], column[column_axis] = row_sign, column_sign
    normal = np.cross(row, column)
    axes = [int(np.abs(direction).argmax()) for direction in (normal, column, row)]
    stored = lps.transpose([2 - axis for axis in axes])
    origin = corner.copy()
    for place, direction in enumerate((normal, column, row)):
        if direction.sum() < 0:
            stored = np.flip(stored, place)
            origin += -direction * spacing * (lps.shape[2 - axes[place]] - 1)

    def same_slope(ds: Dataset, _: int) -> None:
        ds.RescaleSlope = "0.5"
        ds.PatientPosition = "FFP"

    write_series(
        tmp_path,
        spacing=tuple(spacing[axes]),
        orientation=(*row, *column),
        origin=origin,
        stored=np.ascontiguousarray(stored),
        change=same_slope,
    )
    volume = loaded(tmp_path)
    assert_array_equal(volume.voxels, lps * np.float32(0.5 * FACTOR))
    assert_allclose(volume.affine[:3, 3], corner, atol=1e-9)
    assert_allclose(np.diag(volume.affine)[:3], spacing, atol=1e-9)


def test_position_label_numbers_and_names_of_files_do_not_matter(tmp_path):
    def relabelled(ds: Dataset, k: int) -> None:
        ds.PatientPosition = "HFP"
        ds.InstanceNumber = (k * 7) % 8 + 1

    write_series(tmp_path / "a")
    truth = write_series(tmp_path / "b", change=relabelled)
    for k, path in enumerate(truth.paths):
        path.rename(path.with_name(f"{(k * 5) % 8}.bin"))
    assert_array_equal(loaded(tmp_path / "a").voxels, loaded(tmp_path / "b").voxels)


@pytest.mark.parametrize("tilt_deg", [10.0, -25.0])
def test_an_oblique_scan_keeps_places_and_directions(tmp_path, tilt_deg):
    angle = np.radians(tilt_deg)
    row = np.array([1.0, 0, 0])
    column = np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.cross(row, column)
    spot, n = np.array([3.0, -6.0, 9.0]), 24
    origin = spot - 2.0 * (n / 2 - 0.5) * (row + column + normal) + [1.0, -2.0, 3.0]
    k, r, c = np.meshgrid(*[np.arange(n)] * 3, indexing="ij")
    places = origin + 2.0 * (k[..., None] * normal + r[..., None] * column + c[..., None] * row)
    blob = 30000 * np.exp(-((places - spot) ** 2).sum(-1) / (2 * 5.0**2))
    write_series(
        tmp_path,
        spacing=(2.0, 2.0, 2.0),
        orientation=(*row, *column),
        origin=origin,
        stored=blob.astype(np.int16),
        change=lambda ds, _: setattr(ds, "RescaleSlope", "1"),
    )
    series = only_series(tmp_path)
    volume = load_volume(series)
    assert "OBLIQUE_RESAMPLED" in " ".join(series.warnings)
    assert series.shape == volume.voxels.shape
    z, y, x = np.indices(volume.voxels.shape)
    weights = volume.voxels / volume.voxels.sum()
    centre = volume.affine @ [(weights * x).sum(), (weights * y).sum(), (weights * z).sum(), 1]
    assert_allclose(centre[:3], spot, atol=0.1)
    assert_allclose(volume.voxels.sum(), blob.sum() * FACTOR, rtol=0.01)
    assert_array_equal(volume.affine[:3, :3], np.diag([2.0, 2.0, 2.0]))


def moved(*shifts: tuple[int, tuple[float, float, float]]):
    """Change the position of some slices."""
    by_slice = dict(shifts)

    def change(ds: Dataset, k: int) -> None:
        place = np.array(ds.ImagePositionPatient, dtype=float) + by_slice.get(k, (0, 0, 0))
        ds.ImagePositionPatient = [f"{value:.6f}" for value in place]

    return change


def without(folder: Path, *missing: int, **options):
    truth = write_series(folder, **options)
    for k in missing:
        truth.paths[k].unlink()
    return truth


def test_a_missing_slice_is_a_gap(tmp_path):
    without(tmp_path, 3)
    series = only_series(tmp_path)
    assert (series.status, series.code) == ("excluded", "GAP")
    assert "8 mm between slices 3 and 4 of 7" in series.detail
    assert "--fill-gaps 1" in series.detail


def test_of_four_slices_one_missing_is_a_gap_too(tmp_path):
    without(tmp_path, 1, slices=4)
    assert only_series(tmp_path).code == "GAP"


@pytest.mark.parametrize("missing", [(3,), (2, 3), (2, 5)])
def test_gaps_are_filled_linearly_on_demand(tmp_path, missing):
    truth = without(tmp_path, *missing)
    run = 2 if missing == (2, 3) else 1
    if run > 1:
        assert only_series(tmp_path, fill_gaps=run - 1).code == "GAP"
    series = only_series(tmp_path, fill_gaps=run)
    assert any(note.startswith(f"GAP_FILLED: {len(missing)}") for note in series.warnings)
    expected = truth.suv.copy()
    kept = [k for k in range(8) if k not in missing]
    for k in missing:
        low, high = max(i for i in kept if i < k), min(i for i in kept if i > k)
        share = (k - low) / (high - low)
        expected[k] = (1 - share) * truth.suv[low] + share * truth.suv[high]
    assert_allclose(load_volume(series).voxels, expected, rtol=1e-6)


@pytest.mark.parametrize(("shift", "accepted"), [(0.09, True), (0.15, False), (1.9, False)])
def test_unequal_spacing_is_tolerated_up_to_the_limit(tmp_path, shift, accepted):
    """A single slice off by d lies d / 2 from the best grid; 0.05 mm are allowed."""
    write_series(tmp_path, change=moved((4, (0, 0, shift))))
    series = only_series(tmp_path)
    assert series.code == ("" if accepted else "SPACING")
    assert any(note.startswith("SPACING_REGULARISED") for note in series.warnings) == accepted


@pytest.mark.parametrize(("shift", "noted"), [(0.0004, False), (0.018, False), (0.022, True)])
def test_what_the_last_decimals_of_positions_cost_is_not_noted(tmp_path, shift, noted):
    """A single slice off by d lies d / 2 from the best grid; up to 0.01 mm are rounding."""
    truth = write_series(tmp_path, change=moved((4, (0, 0, shift))))
    series = only_series(tmp_path)
    assert any(note.startswith("SPACING_REGULARISED") for note in series.warnings) == noted
    assert_allclose(load_volume(series).voxels, truth.suv, rtol=3e-7)


def test_a_slope_beyond_all_numbers_is_refused(tmp_path):
    write_series(tmp_path, change=lambda ds, _: setattr(ds, "RescaleSlope", "1e300"))
    with pytest.raises(HeaderError, match="SUVs of up to 1e38") as refusal:
        load_volume(only_series(tmp_path))
    assert refusal.value.code == "SUV_IMPLAUSIBLE"


def test_pixels_in_fragments_need_a_compressed_encoding(tmp_path):
    path = write_series(tmp_path).paths[0]
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\0OW\0\0") + 8
    path.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    read = read_file(path)
    assert (read.code, "comes in fragments" in read.detail) == ("PARSE_ERROR", True)


def test_rounded_positions_over_a_long_scan_are_one_grid(tmp_path):
    """3.2704 mm written with two decimals: the median, 3.27, would drift by 0.1 mm."""
    truth = write_series(
        tmp_path,
        stored=np.ones((300, 2, 2), dtype=np.int16),
        spacing=(3.2704, 2.0, 2.0),
        change=lambda ds, k: setattr(ds, "ImagePositionPatient", [0, 0, f"{3.2704 * k:.2f}"]),
    )
    assert check_geometry(instances(truth.paths)).spacing_mm[0] == pytest.approx(3.2704, abs=1e-4)


@pytest.mark.parametrize(("degrees", "code"), [(0.4, ""), (0.6, "SHEAR"), (15.0, "SHEAR")])
def test_leaning_stacks_are_refused_from_half_a_degree(tmp_path, degrees, code):
    step = 4.0 * np.tan(np.radians(degrees))
    write_series(tmp_path, change=moved(*[(k, (0, k * step, 0)) for k in range(8)]))
    series = only_series(tmp_path)
    assert series.code == code
    assert any(note.startswith("SHEAR_IGNORED") for note in series.warnings) == (code == "")


def test_a_slice_beside_the_others_is_refused(tmp_path):
    truth = write_series(tmp_path, change=moved((4, (2.0, 0, 0))))
    refusal = refused(truth.paths)
    assert refusal.code == "SHEAR"
    assert "beside the others" in str(refusal)


def with_value(keyword: str, value, only: int | None = None):
    def change(ds: Dataset, k: int) -> None:
        if only in {None, k}:
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


HALF = float(np.sqrt(0.5))


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (with_value("ImagePositionPatient", None, 2), "POSITION_MISSING", "not three numbers"),
        (with_value("ImagePositionPatient", [1, 2], 2), "POSITION_MISSING", "cannot be placed"),
        (with_value("ImageOrientationPatient", None), "ORIENTATION_MISSING", "left and right"),
        (
            with_value("ImageOrientationPatient", [1, 0, 0]),
            "ORIENTATION_MISSING",
            "not six numbers",
        ),
        (
            with_value("ImageOrientationPatient", [1, 0, 0, 0, 2, 0]),
            "ORIENTATION_INVALID",
            "length 1",
        ),
        (with_value("ImageOrientationPatient", [1, 0, 0, 0.1, 1, 0]), "ORIENTATION_INVALID", "0.1"),
        (with_value("ImageOrientationPatient", [0] * 6), "ORIENTATION_INVALID", "perpendicular"),
        (
            with_value("ImageOrientationPatient", [1, 0, 0, 0, HALF, HALF], 3),
            "MIXED_ORIENTATION",
            "several stacks",
        ),
        (with_value("ImagePositionPatient", [0, 0, 0]), "NOT_A_VOLUME", "all 8 slices lie at one"),
        (with_value("PixelSpacing", None), "PIXEL_SPACING", "not two positive distances"),
        (with_value("PixelSpacing", [0, 2]), "PIXEL_SPACING", "size of a pixel is unknown"),
    ],
)
def test_impossible_geometry_is_refused_by_name(tmp_path, change, code, message):
    refusal = refused(write_series(tmp_path, change=change).paths)
    assert refusal.code == code
    assert message in str(refusal)


def test_two_slices_are_no_volume(tmp_path):
    refusal = refused(write_series(tmp_path, slices=2).paths)
    assert (refusal.code, "2 slices are no volume" in str(refusal)) == ("TOO_FEW_SLICES", True)


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("gantrytilting/001", "SHEAR"),
        ("notavolume/001", "NOT_A_VOLUME"),
        ("slicecount/001", "TOO_FEW_SLICES"),
        ("sliceincrement/001", "GAP"),
        ("sliceincrement/002", "GAP"),
        ("sliceorientation/001", "MIXED_ORIENTATION"),
    ],
)
def test_real_malformed_series_are_refused_for_the_right_reason(reference_data, folder, code):
    paths = sorted((reference_data / "malformed" / "series" / folder).glob("*.dcm"))
    assert refused(paths).code == code


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(6)))
def test_order_of_the_instances_does_not_matter(tmp_path_factory, order):
    truth = write_series(tmp_path_factory.mktemp("s"), slices=6, shape=(2, 2))
    geometry = check_geometry(instances([truth.paths[k] for k in order]))
    assert [order[i] for i in geometry.order] == [0, 1, 2, 3, 4, 5]


def swapped(ds: Dataset, _: int) -> None:
    ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()


@pytest.mark.parametrize(
    ("syntax", "change"),
    [
        (ImplicitVRLittleEndian, None),
        (DeflatedExplicitVRLittleEndian, None),
        (ExplicitVRBigEndian, swapped),
    ],
)
def test_native_encodings_hold_the_same_values(tmp_path, syntax, change):
    truth = write_series(tmp_path, syntax=syntax, change=change)
    assert_allclose(loaded(tmp_path).voxels, truth.suv, rtol=3e-7)


def test_rle_holds_the_same_values(tmp_path):
    truth = write_series(tmp_path)
    for path in truth.paths:
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path)
    assert_allclose(loaded(tmp_path).voxels, truth.suv, rtol=3e-7)


def test_jpeg_ls_is_decoded_like_rle(reference_data, tmp_path):
    pytest.importorskip("gdcm")
    folder = reference_data / "malformed" / "single_files"
    stored = []
    for name in ("MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm"):
        ds = pydicom.dcmread(folder / name)
        ds.Modality, ds.SOPClassUID = "PT", PET_CLASS
        ds.save_as(tmp_path / name)
        stored.append(read_stored(read_file(tmp_path / name).instance))
    assert_array_equal(*stored)
    assert np.ptp(stored[0]) > 0


def test_damaged_compressed_pixels_are_refused(tmp_path):
    truth = write_series(tmp_path, slices=3)
    for path in truth.paths:
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        content = bytearray(ds.PixelData)
        content[20:90] = b"\xff" * 70
        ds.PixelData = bytes(content)
        ds.save_as(path)
    with pytest.raises(FileError, match="cannot be decoded") as refusal:
        load_volume(only_series(tmp_path))
    assert refusal.value.code == "PIXEL_DECODE"


def test_a_missing_codec_names_the_remedy(tmp_path):
    def fake(ds: Dataset, _: int) -> None:
        ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 20])

    write_series(tmp_path, syntax=HTJ2KLossless, change=fake)
    series = only_series(tmp_path)
    assert series.code == "CODEC_MISSING"
    assert "pip install dualwitness[codecs]" in series.detail


def test_unused_bits_and_padding_are_no_activity(tmp_path):
    def twelve_bits(ds: Dataset, k: int) -> None:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        ds.PixelPaddingValue = 77
        ds.RescaleSlope = "1"

    values = np.random.default_rng(0).integers(78, 4096, (4, 3, 3)).astype(np.int16)
    overlay = (values | np.int16(0x7000)).astype(np.int16)
    overlay[:, 0, 0] = 77
    values[:, 0, 0] = 0
    write_series(tmp_path, stored=overlay, change=twelve_bits)
    assert_allclose(loaded(tmp_path).voxels, values * FACTOR, rtol=3e-7)


def test_signed_values_of_fewer_bits_keep_their_sign(tmp_path):
    values = np.array([[[-5, 7], [2047, -2048]]] * 3, dtype=np.int16)

    def twelve_bits(ds: Dataset, k: int) -> None:
        ds.BitsStored, ds.HighBit = 12, 11
        ds.RescaleSlope = "1"

    write_series(tmp_path, stored=values & np.int16(0x0FFF), change=twelve_bits)
    assert_allclose(loaded(tmp_path).voxels, values * FACTOR, rtol=3e-7)


def test_an_intercept_is_scaled_with_the_slice_where_it_is_allowed(tmp_path):
    truth = write_series(tmp_path, change=with_value("RescaleIntercept", "12.5"))
    volume = loaded(tmp_path, allow_intercept=True)
    assert_allclose(volume.voxels, truth.suv + 12.5 * FACTOR, rtol=1e-6)


def test_files_that_change_shrink_or_vanish_after_the_scan_are_refused(tmp_path):
    truth = write_series(tmp_path)
    series = only_series(tmp_path)
    path = truth.paths[3]
    os.utime(path, ns=(0, 0))
    with pytest.raises(FileError, match="changed while the data set was built") as refusal:
        load_volume(series)
    assert refusal.value.code == "FILE_CHANGED"
    path.unlink()
    with pytest.raises(FileError, match="cannot be read any more") as refusal:
        load_volume(series)
    assert refusal.value.code == "UNREADABLE"
    assert str(tmp_path) not in str(refusal.value)


def test_pixels_that_end_early_are_refused_when_read(tmp_path):
    path = write_series(tmp_path, slices=3).paths[0]
    instance = read_file(path).instance
    with pytest.raises(FileError, match=r"PixelData .* has 50 bytes, 60 are needed") as refusal:
        read_stored(replace(instance, pixel_offset=instance.size - 50))
    assert refusal.value.code == "PIXEL_TRUNCATED"


def test_an_empty_field_of_view_and_an_excluded_series_have_no_volume(tmp_path):
    write_series(tmp_path / "a", stored=np.zeros((4, 3, 3), dtype=np.int16))
    with pytest.raises(FileError, match="field of view is empty") as refusal:
        load_volume(only_series(tmp_path / "a"))
    assert refusal.value.code == "EMPTY_IMAGE"
    write_series(tmp_path / "b", change=with_value("Units", "PROPCNTS"))
    with pytest.raises(GeometryError, match=r"excluded \(UNITS_PROPCNTS\)") as refusal:
        load_volume(only_series(tmp_path / "b"))
    assert refusal.value.code == "NOT_ACCEPTED"


GROUPS = {
    "PixelMeasuresSequence": {"PixelSpacing": [3, 2], "SliceThickness": 4},
    "PlaneOrientationSequence": {"ImageOrientationPatient": list(AXIAL)},
    "PlanePositionSequence": {},
    "FrameContentSequence": {"FrameAcquisitionDateTime": "20200304110000"},
    "PixelValueTransformationSequence": {"RescaleIntercept": 0, "RescaleType": "BQML"},
}


def enhanced(folder: Path, *, leave_out: str = "", mapped: bool = False, undefined: bool = False):
    """One file of frames, half of the groups shared, with the values of ``write_series``."""
    truth = write_series(folder / "classic", slices=5)
    ds = header(slices=5, shape=(6, 5), spacing=(4.0, 3.0, 2.0))
    del ds.RescaleIntercept, ds.PixelSpacing, ds.CorrectedImage, ds.Units, ds.DecayCorrection
    ds.SOPClassUID, ds.SOPInstanceUID, ds.NumberOfFrames = ENHANCED_PET, "1.2.3", 5
    ds.AttenuationCorrected = ds.DecayCorrected = "YES"
    ds.DecayCorrectionDateTime = "20200304110000"
    ds.AcquisitionDateTime = "20200304110000"
    item = ds.RadiopharmaceuticalInformationSequence[0]
    item.RadionuclideTotalDose = "370"  # the enhanced object states MBq
    item.RadiopharmaceuticalStartDateTime = "20200304100000"
    ds.SharedFunctionalGroupsSequence = [Dataset()]
    ds.PerFrameFunctionalGroupsSequence = [Dataset() for _ in range(5)]
    for name, values in GROUPS.items():
        for k, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
            group = Dataset()
            for keyword, value in values.items():
                setattr(group, keyword, value)
            if name == "PlanePositionSequence":
                group.ImagePositionPatient = [-10, -20, -30 + 4 * k]
            if name == "PixelValueTransformationSequence":
                group.RescaleSlope = f"{0.5 + 0.01 * k:.4f}"
            shared = name in {"PixelMeasuresSequence", "PlaneOrientationSequence"}
            if name != leave_out:
                setattr(ds.SharedFunctionalGroupsSequence[0] if shared else frame, name, [group])
            if mapped and name == "PixelValueTransformationSequence":
                frame.RealWorldValueMappingSequence = [mapping(0.5 + 0.01 * k)]
            if undefined:
                for each in frame:
                    each.is_undefined_length = True
    ds.PixelData = truth.stored.tobytes()
    ds["PixelData"].VR = "OW"
    (folder / "enhanced").mkdir()
    save(ds, folder / "enhanced" / "frames.dcm")
    return truth, ds


def mapping(slope: float) -> Dataset:
    unit = Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "Bq/ml", "UCUM", "Bq/ml"
    item = Dataset()
    item.RealWorldValueSlope, item.RealWorldValueIntercept = slope, 0.0
    item.MeasurementUnitsCodeSequence = [unit]
    return item


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_an_enhanced_file_becomes_the_volume_of_its_frames(tmp_path, mapped, undefined):
    left_out = "PixelValueTransformationSequence" if mapped else ""
    truth, _ = enhanced(tmp_path, leave_out=left_out, mapped=mapped, undefined=undefined)
    found = scan(tmp_path / "enhanced", pseudonyms=KEY)
    (series,) = found.series
    assert (series.code, series.files, found.seen, len(series.instances)) == ("", 1, 1, 5)
    assert_allclose(load_volume(series).voxels, truth.suv, rtol=1e-6)


@pytest.mark.parametrize("group", list(GROUPS))
def test_an_enhanced_file_without_a_group_is_incomplete(tmp_path, group):
    enhanced(tmp_path, leave_out=group)
    series = only_series(tmp_path / "enhanced")
    assert (series.code, group in series.detail) == ("ENHANCED_INCOMPLETE", True)


def test_frames_and_groups_must_be_as_many(tmp_path):
    _, ds = enhanced(tmp_path)
    ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[:4]
    save(ds, tmp_path / "enhanced" / "frames.dcm")
    series = only_series(tmp_path / "enhanced")
    assert (series.code, "has 4 items for 5 frames" in series.detail) == (
        "ENHANCED_INCOMPLETE",
        True,
    )


def test_frames_in_a_class_of_single_frames_are_refused(tmp_path):
    def two_frames(ds: Dataset, _: int) -> None:
        ds.NumberOfFrames, ds.PixelData = 2, ds.PixelData * 2

    write_series(tmp_path, change=two_frames)
    series = only_series(tmp_path)
    assert (series.code, "class of single frames" in series.detail) == ("ENHANCED_INCOMPLETE", True)


def test_real_whole_body_scan_agrees_with_an_independent_tool(reference_data):
    series = only_series(reference_data / "sts_001" / "dicom")
    assert series.shape == (267, 128, 128)
    volume = load_volume(series)
    crop = np.load(reference_data / "sts_001" / "suvbw_crop.npy", allow_pickle=False)
    assert_allclose(volume.voxels[0:59, 45:88, 59:100], crop, rtol=0, atol=1e-3)


def test_suv_of_real_series_in_suv_pass_unscaled(reference_data):
    found = scan(reference_data / "ibsi_sts", pseudonyms=KEY)
    accepted = [series for series in found.series if series.status == "accepted"]
    assert (len(accepted), found.skipped, found.excluded) == (8, {"NOT_AN_IMAGE": 8}, 0)
    series = accepted[0]
    by_place = sorted(
        (pydicom.dcmread(instance.path) for instance in series.instances),
        key=lambda ds: ds.ImagePositionPatient[2],
    )
    expected = np.stack([ds.pixel_array * float(ds.RescaleSlope) for ds in by_place])
    assert_allclose(load_volume(series).voxels, expected, rtol=1e-6)


def test_reference_objects_become_volumes(reference_data):
    for folder in sorted((reference_data / "suv_dro").glob("DRO_?_?")):
        assert loaded(folder).voxels.shape[0] == 20
