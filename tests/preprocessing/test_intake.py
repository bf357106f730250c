import os
import shutil
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from preprocessing import intake_parts
from preprocessing.dicom_series import load_volume
from preprocessing.errors import FileError, HeaderError, PreprocessingError
from preprocessing.intake import Intake, SeriesIntake, scan
from preprocessing.intake_parts import Open, Task
from preprocessing.labels import Table
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Died, Unit
from tests.preprocessing.dicom_factory import DOSE_BQ, ROOT_UID, WEIGHT_KG, write_series

KEY = Pseudonyms(bytes(range(32)))


def scanned(folder: Path, **options) -> Intake:
    found = scan(folder, pseudonyms=KEY, **options)
    assert found.seen == found.used + found.excluded + sum(found.skipped.values())
    return found


def only_series(folder: Path, **options) -> SeriesIntake:
    (series,) = scanned(folder, **options).series
    return series


def codes(found: Intake) -> list[str]:
    return sorted(exclusion.code for exclusion in found.exclusions)


def every(**values):
    """Set attributes in all slices; None deletes."""
    return one(None, **values)


def one(which: int | None, **values):
    """Set attributes in one slice."""

    def change(ds: Dataset, k: int) -> None:
        if which not in {None, k}:
            return
        for keyword, value in values.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


def isotope(**values):
    """Set attributes of the radiopharmaceutical in all slices."""

    def change(ds: Dataset, _: int) -> None:
        one(None, **values)(ds.RadiopharmaceuticalInformationSequence[0], 0)

    return change


def frames(**per_frame):
    """Put two frames at each of four positions."""

    def change(ds: Dataset, k: int) -> None:
        ds.ImagePositionPatient = [0, 0, 4 * (k // 2)]
        for keyword, values in per_frame.items():
            setattr(ds, keyword, values[k % 2])

    return change


def raw(keyword: str, value: str, which: int | None = None):
    """Set bytes that pydicom itself would refuse to write."""

    def change(ds: Dataset, k: int) -> None:
        if which in {None, k}:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ds.add_new(keyword, "LO", value)

    return change


def deep(ds: Dataset, _: int) -> None:
    for _ in range(70):
        item = Dataset()
        item.RadiopharmaceuticalInformationSequence = Sequence(
            ds.RadiopharmaceuticalInformationSequence
        )
        ds.RadiopharmaceuticalInformationSequence = Sequence([item])


def rgb(ds: Dataset, _: int) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes(3 * ds.Rows * ds.Columns)


def private_scan_time(ds: Dataset, _: int) -> None:
    ds.add_new(0x00090010, "LO", "GEMS_PETD_01")
    ds.add_new(0x0009100D, "DT", "20190203110000.00")


SCREEN, MIP = ["DERIVED", "SECONDARY", "SCREEN SAVE"], ["DERIVED", "SECONDARY", "MIP"]
FAULTS = {
    "row 8: no weight": (every(PatientWeight=None), "WEIGHT_MISSING"),
    "row 8: weight 0": (every(PatientWeight="0"), "WEIGHT_MISSING"),
    "row 8: weight 400": (every(PatientWeight="400"), "WEIGHT_RANGE"),
    "row 10: no dose": (isotope(RadionuclideTotalDose=None), "DOSE_MISSING"),
    "row 11: half-life": (isotope(RadionuclideHalfLife="109.8"), "HALFLIFE_MISMATCH"),
    "row 12: no injection": (isotope(RadiopharmaceuticalStartTime=None), "INJ_TIME_MISSING"),
    "row 16: no decay": (every(DecayCorrection=None), "DECAY_UNKNOWN"),
    "row 17: units": (every(Units="PROPCPS"), "UNITS_PROPCPS"),
    "row 19: intercept": (every(RescaleIntercept="-5"), "INTERCEPT"),
    "row 19: intercept in one": (one(3, RescaleIntercept="0.01"), "INTERCEPT"),
    "row 19: no number": (raw("RescaleIntercept", "0,5"), "INTERCEPT"),
    "row 20: slope 0": (one(3, RescaleSlope="0"), "SLOPE"),
    "row 20: slope negative": (one(3, RescaleSlope="-1"), "SLOPE"),
    "row 20: slope absent": (one(3, RescaleSlope=None), "SLOPE"),
    "row 20: slope nan": (raw("RescaleSlope", "nan", 3), "SLOPE"),
    "row 20: slope inf": (raw("RescaleSlope", "inf", 3), "SLOPE"),
    "row 20: slope with comma": (raw("RescaleSlope", "0,5", 3), "SLOPE"),
    "row 20: slope empty": (raw("RescaleSlope", "", 3), "SLOPE"),
    "row 20: two slopes": (one(3, RescaleSlope=["1", "2"]), "SLOPE"),
    "row 21: says dynamic": (every(SeriesType=["DYNAMIC", "IMAGE"]), "DYNAMIC"),
    "row 21: says gated": (every(SeriesType=["GATED", "IMAGE"]), "GATED"),
    "row 21: two times": (frames(FrameReferenceTime=["1000", "9000"]), "DYNAMIC"),
    "row 21: two temporal indices": (frames(TemporalPositionIdentifier=[1, 2]), "DYNAMIC"),
    "row 21: two triggers": (frames(TriggerTime=["0", "300"]), "GATED"),
    "row 22: no ATTN": (every(CorrectedImage=["DECY", "SCAT"]), "NAC"),
    "row 22: says NAC": (every(SeriesDescription="WB_NAC"), "NAC"),
    "row 22: says no AC": (every(SeriesDescription="PET wb (no AC)"), "NAC"),
    "row 22: uncorrected": (every(SeriesDescription="PET Uncorrected"), "NAC"),
    "row 23: MIP": (every(ImageType=MIP), "DERIVED"),
    "row 23: MIP in one": (one(2, ImageType=MIP), "DERIVED"),
    "row 23: reformatted": (every(ImageType=["DERIVED", "PRIMARY", "REFORMATTED"]), "DERIVED"),
    "row 23: secondary capture": (every(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "DERIVED"),
    "row 23: reprojection": (every(SeriesType=["STATIC", "REPROJECTION"]), "DERIVED"),
    "row 24: weight": (one(3, PatientWeight="71"), "INCONSISTENT_PATIENTWEIGHT"),
    "row 24: frame": (one(3, FrameOfReferenceUID="1.2"), "INCONSISTENT_FRAMEOFREFERENCEUID"),
    "row 24: spacing": (one(3, PixelSpacing=[3, 2.5]), "INCONSISTENT_PIXELSPACING"),
    "row 24: units": (one(3, Units="GML"), "INCONSISTENT_UNITS"),
    "row 24: decay": (one(3, DecayCorrection="NONE"), "INCONSISTENT_DECAYCORRECTION"),
    "row 24: birth date": (one(3, PatientBirthDate="19500608"), "INCONSISTENT_PATIENTBIRTHDATE"),
    "row 24: rows": (one(3, Rows=5, Columns=6), "INCONSISTENT_ROWS"),
    "row 25: pixels": (one(3, PixelData=bytes(20)), "PIXEL_TRUNCATED"),
    "row 25: no pixels": (one(3, PixelData=None), "PIXEL_TRUNCATED"),
    "row 25: surplus": (one(3, PixelData=bytes(80)), "PARSE_ERROR"),
    "row 25: deep sequences": (deep, "PARSE_ERROR"),
    "row 29: annotation": (every(BurnedInAnnotation="YES"), "BURNED_IN"),
    "row 29: saved screen": (every(ImageType=SCREEN), "DERIVED"),
    "row 29: saved": (every(ImageType=["ORIGINAL", "PRIMARY", "SAVED"]), "BURNED_IN"),
    "row 29: description": (every(SeriesDescription="Screen Save"), "BURNED_IN"),
    "row 29: colour": (rgb, "PIXEL_FORMAT"),
    "row 29: inverted": (every(PhotometricInterpretation="MONOCHROME1"), "PIXEL_FORMAT"),
    "row 29: bits": (every(BitsStored=17), "PIXEL_FORMAT"),
    "row 29: sign": (every(PixelRepresentation=2), "PIXEL_FORMAT"),
    "row 30: frames": (every(NumberOfFrames=10**9), "PIXEL_TRUNCATED"),
    "row 33: phantom": (every(SeriesDescription="NEMA IEC Phantom"), "PHANTOM"),
    "row 33: tracer": (isotope(Radiopharmaceutical="Ge-68 cylinder"), "PHANTOM"),
    "row 33: animal": (every(PatientSpeciesDescription="Canis lupus familiaris"), "ANIMAL"),
    "row 7: lossy": (every(LossyImageCompression="01"), "LOSSY"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_single_fault_ends_in_its_code(tmp_path, fault):
    change, code = FAULTS[fault]
    write_series(tmp_path, change=change)
    found = scanned(tmp_path)
    assert [(series.status, series.code) for series in found.series] == [("excluded", code)]
    assert [(each.code, each.files) for each in found.exclusions] == [(code, 8)]
    assert found.series[0].detail
    shown = f"{found.series[0]} {found.exclusions}"
    for secret in ("CANARY", ROOT_UID, "20200304", "19500607", str(tmp_path), "slice0"):
        assert secret not in shown


MENDED = {
    "row 8: grams": (every(PatientWeight="70000"), "WEIGHT_G"),
    "row 10: MBq": (isotope(RadionuclideTotalDose=f"{DOSE_BQ / 1e6}"), "DOSE_MBQ"),
    "row 11: from code": (isotope(RadionuclideHalfLife=None), "HALFLIFE_FROM_CODE"),
    "row 22: MAC": (every(SeriesDescription="WB MAC"), "MAC"),
    "row 33: short": (every(), "SHORT_FOV"),
    "count": (every(NumberOfSlices=9), "SLICE_COUNT"),
    "row 24: same number": (one(3, PatientWeight="70.00"), "SHORT_FOV"),
    "row 19: no intercept": (every(RescaleIntercept=None), "SHORT_FOV"),
    "no identifier": (every(PatientID=""), "PATIENT_UNKNOWN"),
    "no identifier, no name": (every(PatientID="", PatientName=""), "PATIENT_UNKNOWN"),
}


@pytest.mark.parametrize("case", MENDED)
def test_what_can_be_mended_gives_the_right_suv_and_a_note(tmp_path, case):
    change, code = MENDED[case]
    truth = write_series(tmp_path, change=change)
    series = only_series(tmp_path)
    assert series.code == ""
    assert any(note.startswith(f"{code}:") for note in (*series.warnings, *series.suv.warnings))
    assert_allclose(load_volume(series).voxels, truth.suv, rtol=1e-3)


def test_private_dates_left_behind_are_reported(tmp_path):
    write_series(tmp_path, change=private_scan_time)
    series = only_series(tmp_path)
    (note,) = [note for note in series.warnings if note.startswith("PRIVATE_DATE_LEAK")]
    assert "2019" not in note


def test_private_dates_that_agree_are_no_leak(tmp_path):
    def agreeing(ds: Dataset, k: int) -> None:
        private_scan_time(ds, k)
        ds[0x0009100D].value = "20200304110000.00"

    write_series(tmp_path, change=agreeing)
    assert "PRIVATE_DATE_LEAK" not in " ".join(only_series(tmp_path).warnings)


def test_a_lossy_transfer_syntax_is_refused_whatever_the_header_says(tmp_path):
    def fake(ds: Dataset, _: int) -> None:
        ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 20])

    write_series(tmp_path, change=fake, syntax=JPEGBaseline8Bit)
    assert only_series(tmp_path).code == "LOSSY"


def copied(path: Path, target: Path, **values) -> None:
    ds = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.save_as(target)


def test_identical_copies_are_dropped_and_counted(tmp_path):
    truth = write_series(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied(truth.paths[0], tmp_path / "another_uid.dcm", SOPInstanceUID="1.2.3", InstanceNumber=77)
    found = scanned(tmp_path)
    (series,) = found.series
    assert (series.files, found.used, found.seen) == (8, 8, 17)
    assert found.skipped == {"DUP_INSTANCE": 9}
    assert "DUP_INSTANCE: 9 identical files dropped" in series.warnings
    assert_allclose(load_volume(series).voxels, truth.suv, rtol=3e-7)


@pytest.mark.parametrize(
    "values",
    [
        {"PixelData": bytes(60)},
        {"RescaleSlope": "3"},
        {"ImagePositionPatient": [0, 0, 99]},
        {"PixelData": bytes(60), "SOPInstanceUID": "1.2.3"},
    ],
)
def test_copies_that_differ_are_a_conflict(tmp_path, values):
    truth = write_series(tmp_path)
    copied(truth.paths[2], tmp_path / "other.dcm", **values)
    series = only_series(tmp_path)
    assert (series.code, "are not the same" in series.detail) == ("DUP_CONFLICT", True)


def test_images_without_an_instance_uid_are_told_apart_by_place(tmp_path):
    truth = write_series(tmp_path)
    for path in truth.paths:
        content = path.read_bytes()
        at = content.index(b"\x08\x00\x18\x00UI")
        path.write_bytes(content[: at + 2] + b"\x19\x00" + content[at + 4 :])  # another element
    assert_allclose(load_volume(only_series(tmp_path)).voxels, truth.suv, rtol=3e-7)


def test_a_slice_of_another_patient_under_the_same_series_refuses_both(tmp_path):
    write_series(tmp_path, change=one(3, PatientID="OTHER"))
    found = scanned(tmp_path)
    assert codes(found) == ["INCONSISTENT_PATIENTID"] * 2
    assert (found.used, found.excluded) == (0, 8)
    assert "PatientID (0010,0020)" in found.series[0].detail


def test_one_series_in_two_studies_is_refused(tmp_path):
    write_series(tmp_path, change=one(3, StudyInstanceUID="1.9"))
    assert codes(scanned(tmp_path)) == ["INCONSISTENT_STUDYINSTANCEUID"] * 2


def test_identical_patient_ids_that_are_padded_differently_are_one_patient(tmp_path):
    write_series(tmp_path / "a", change=every(PatientID="P 1"))
    write_series(
        tmp_path / "b",
        change=every(PatientID="P 1 ", StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1"),
    )
    first, second = scanned(tmp_path).series
    assert first.subject_id == second.subject_id
    assert (first.status, second.status) == ("accepted", "accepted")


def other_series(uid: str, **values):
    return every(SeriesInstanceUID=f"{ROOT_UID}.1.{uid}", **values)


def test_mixed_folders_are_taken_apart(tmp_path):
    """CT, structures, notes, archives, empty files, links and pipes beside two patients' PET."""
    write_series(tmp_path / "x" / "pet")
    write_series(
        tmp_path / "y",
        change=every(PatientID="B", StudyInstanceUID="1.9", SeriesInstanceUID="1.9.1"),
    )
    write_series(tmp_path / "x" / "ct", slices=4, change=other_series("7", Modality="CT"))
    write_series(
        tmp_path / "rs", slices=1, change=every(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3")
    )
    write_series(tmp_path / "dir", slices=1, change=every(SOPClassUID="1.2.840.10008.1.3.10"))
    (tmp_path / "notes.dcm").write_text("hello")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + bytes(500))
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.dcm").symlink_to(tmp_path / "x" / "pet" / "slice000.dcm")
    os.mkfifo(tmp_path / "pipe.dcm")
    found = scanned(tmp_path)
    assert [(series.modality, series.code) for series in found.series if series.code] == [
        ("CT", "SERIES_NOT_SELECTED")
    ]
    assert "a CT series: only PT" in found.exclusions[0].detail
    assert found.skipped == {
        "DICOMDIR": 1,
        "EMPTY_FILE": 1,
        "LINK": 2,
        "NOT_AN_IMAGE": 1,
        "NOT_A_REGULAR_FILE": 1,
        "NOT_DICOM": 2,
    }
    assert (found.seen, found.used, found.excluded) == (28, 16, 4)


def test_an_image_without_a_series_is_excluded_by_file(tmp_path):
    write_series(tmp_path, slices=1, change=every(SeriesInstanceUID=None))
    found = scanned(tmp_path)
    (exclusion,) = found.exclusions
    assert (exclusion.code, exclusion.where) == ("UID_MISSING", f"file {KEY.file('slice000.dcm')}")
    assert "SeriesInstanceUID (0020,000E) is missing" in exclusion.detail


def test_a_file_cut_before_its_identity_is_excluded_by_file_and_leaves_a_gap(tmp_path):
    path = write_series(tmp_path).paths[3]
    path.write_bytes(path.read_bytes()[:400])
    found = scanned(tmp_path)
    assert codes(found) == ["GAP", "PARSE_ERROR"]
    assert f"file {KEY.file(path.name)}" in [each.where for each in found.exclusions]
    assert (found.seen, found.excluded) == (8, 8)


def test_a_file_cut_after_its_identity_refuses_its_series(tmp_path):
    path = write_series(tmp_path).paths[7]
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"BQML")])
    series = only_series(tmp_path)
    assert series.code == "PARSE_ERROR"
    assert series.detail.startswith("in 1 of 8 files: the value of (0054,1001) runs to byte")


def test_closed_files_and_folders_are_reported(tmp_path, monkeypatch):
    scan_of = write_series(tmp_path / "a")
    (tmp_path / "b").mkdir()
    real_open, real_list = os.open, os.scandir

    def open_but(path, *rest, **more):
        if str(path) == str(scan_of.paths[0]):
            raise PermissionError(13, "Permission denied")
        return real_open(path, *rest, **more)

    def list_but(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return real_list(path)

    monkeypatch.setattr(os, "open", open_but)
    monkeypatch.setattr(os, "scandir", list_but)
    found = scanned(tmp_path)
    unreadable = [each for each in found.exclusions if each.code == "UNREADABLE"]
    assert sorted(each.files for each in unreadable) == [0, 1]
    assert {each.where for each in unreadable} == {
        f"file {KEY.file('a/slice000.dcm')}",
        f"folder {KEY.file('b')}",
    }
    assert "cannot be listed: check its permissions" in " ".join(each.detail for each in unreadable)
    assert "cannot be read (Permission denied)" in " ".join(each.detail for each in unreadable)


def test_names_that_are_no_text_are_no_obstacle(tmp_path):
    truth = write_series(tmp_path)
    odd = os.fsencode(tmp_path) + b"/\xff\xfe name\n.dcm"
    os.rename(truth.paths[0], odd)  # noqa: PTH104 - a name of bytes
    truth.paths[1].rename(tmp_path / ("x" * 251 + ".dcm"))
    assert_allclose(load_volume(only_series(tmp_path)).voxels, truth.suv, rtol=3e-7)


RANKED = {
    "attenuation correction is confirmed": ({"CorrectedImage": ""}, {}),
    "original, not derived": ({"ImageType": ["DERIVED", "SECONDARY"]}, {}),
    "latest": ({"SeriesTime": "105900", "AcquisitionTime": "105900"}, {}),
    "more slices": ({}, {"slices": 7}),
    "whole body (600 mm or more)": ({}, {"slices": 9, "spacing": (60.0, 3.0, 2.0)}),
}


@pytest.mark.parametrize("reason", RANKED)
@pytest.mark.parametrize("flip", [False, True])
def test_of_a_study_the_better_series_is_chosen_and_the_reason_given(tmp_path, reason, flip):
    worse, shape = RANKED[reason]
    better = {"spacing": (80.0, 3.0, 2.0)} if "whole" in reason else {}
    uids = ("8", "9") if flip else ("9", "8")
    write_series(tmp_path / "a", change=other_series(uids[0]), **better)
    write_series(tmp_path / "b", change=other_series(uids[1], **worse), seed=1, **shape)
    found = scanned(tmp_path)
    status = {series.series_uid[-1]: series for series in found.series}
    chosen, left = status[uids[0]], status[uids[1]]
    assert (chosen.status, left.status, left.code) == (
        "accepted",
        "excluded",
        "SERIES_NOT_SELECTED",
    )
    assert left.detail == f"another PET series of the study was chosen: {reason}"
    assert f"SELECTED: among 2 series of the study: {reason}" in chosen.warnings
    assert len([s for s in scanned(tmp_path, choose="all").series if s.status == "accepted"]) == 2


def test_equal_series_are_ranked_the_same_every_time(tmp_path):
    write_series(tmp_path / "a", change=other_series("8"))
    write_series(tmp_path / "b", change=other_series("9"), seed=1)
    chosen = [series for series in scanned(tmp_path).series if series.status == "accepted"]
    (tmp_path / "a").rename(tmp_path / "c")
    again = [series for series in scanned(tmp_path).series if series.status == "accepted"]
    assert [series.series_id for series in chosen] == [series.series_id for series in again]
    assert chosen[0].series_id == min(series.series_id for series in scanned(tmp_path).series)
    assert "first by its pseudonym" in " ".join(chosen[0].warnings)


def test_a_series_that_cannot_be_converted_does_not_stand_in_the_way(tmp_path):
    write_series(tmp_path / "a", change=other_series("8", SeriesDescription="NAC"), slices=12)
    write_series(tmp_path / "b", change=other_series("9"), seed=1)
    assert sorted(series.code for series in scanned(tmp_path).series) == ["", "NAC"]


def summary(found: Intake) -> list:
    return [
        (*found.exclusions, found.skipped, found.seen, found.used),
        *(
            (
                *(series.series_id, series.code, series.detail, series.warnings, series.shape),
                *(instance.fingerprint[1:] for instance in series.instances),
            )
            for series in found.series
        ),
    ]


def test_workers_and_names_do_not_change_the_answer(tmp_path):
    for n in range(3):
        where = {"PatientID": f"P{n}", "StudyInstanceUID": f"1.{n}"}
        write_series(
            tmp_path / f"{n}", slices=70, shape=(2, 2), change=other_series(f"{n}", **where)
        )
    (tmp_path / "0" / "slice010.dcm").unlink()
    alone = scanned(tmp_path)
    steps = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        together = scan(
            tmp_path, pseudonyms=KEY, mapper=pool.map, progress=lambda *step: steps.append(step)
        )
    assert summary(alone) == summary(together)
    assert ("read", 209, 209) in steps
    assert steps[-1] == ("check", 3, 3)
    for k, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        path.rename(path.parent / f"{(k * 37) % 211:03}")
    assert summary(scanned(tmp_path))[1:] == summary(alone)[1:]


def test_where_the_files_of_a_series_lie_does_not_change_the_answer(tmp_path, monkeypatch):
    for n in range(2):
        where = {"PatientID": f"P{n}", "StudyInstanceUID": f"1.{n}"}
        write_series(tmp_path / f"{n}", slices=70, change=other_series(f"{n}", **where))
    (tmp_path / "1" / "slice010.dcm").unlink()
    together = scanned(tmp_path)
    monkeypatch.setattr(intake_parts, "WHOLE_FOLDER", 20)
    assert summary(scanned(tmp_path)) == summary(together)
    for path in sorted(tmp_path.rglob("*.dcm"))[::7]:
        folder = path.parent / path.stem
        folder.mkdir()
        path.rename(folder / path.name)
    assert summary(scanned(tmp_path)) == summary(together)
    monkeypatch.undo()
    assert summary(scanned(tmp_path)) == summary(together)
    shorter = scanned(tmp_path / "0" / "slice007")
    assert [series.code for series in shorter.series] != [series.code for series in together.series]


def test_one_file_of_pet_makes_a_series_of_pet(tmp_path, monkeypatch):
    write_series(
        tmp_path, change=lambda header, k: setattr(header, "Modality", "PT" if k == 5 else "CT")
    )
    codes = [series.code for series in scanned(tmp_path).series]
    assert codes == ["INCONSISTENT_MODALITY"]
    monkeypatch.setattr(intake_parts, "WHOLE_FOLDER", 3)
    monkeypatch.setattr(intake_parts, "WHOLE_TREE", 3)
    monkeypatch.setattr(intake_parts, "FILES_PER_TASK", 3)
    assert [series.code for series in scanned(tmp_path).series] == codes


def test_a_series_of_two_folders_is_looked_at_as_one(tmp_path):
    truth = write_series(tmp_path / "a", slices=140)
    (tmp_path / "b").mkdir()
    for path in sorted((tmp_path / "a").iterdir())[::2]:
        path.rename(tmp_path / "b" / path.name)
    series = only_series(tmp_path)
    assert series.files == 140
    assert_allclose(load_volume(series).voxels, truth.suv, rtol=1e-6)


def test_weights_from_a_table_override_the_header(tmp_path):
    truth = write_series(tmp_path, change=every(PatientWeight=None))
    table = Table(key="PatientID", values={"CANARY-ID": f"{2 * WEIGHT_KG}"})
    series = only_series(tmp_path, weights=table)
    assert_allclose(load_volume(series).voxels, 2 * truth.suv, rtol=1e-6)
    bad = Table(key="PatientID", values={"CANARY-ID": "70,5"})
    series = only_series(tmp_path, weights=bad)
    assert (series.code, "weight_kg of the weights table" in series.detail) == (
        "WEIGHT_INVALID",
        True,
    )


def test_the_plain_formula_is_marked_in_the_unit(tmp_path):
    truth = write_series(tmp_path)
    series = only_series(tmp_path, suv_formula="paper")
    volume = load_volume(series)
    assert volume.unit is Unit.PAPER
    assert_allclose(volume.voxels / truth.suv, 2 ** (-3600 / 6586.2), rtol=1e-6)


def test_wrong_calls_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(FileError, match="input folder does not exist") as refusal:
        scanned(tmp_path / "missing")
    assert refusal.value.code == "INPUT_MISSING"
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="name the folder that holds it") as refusal:
        scanned(tmp_path / "file")
    assert refusal.value.code == "INPUT_NOT_A_FOLDER"
    with pytest.raises(HeaderError, match="no route 'nonsense'; known: ") as refusal:
        scanned(tmp_path, prefer_route="nonsense")
    assert refusal.value.code == "ROUTE_UNKNOWN"


def test_an_account_that_does_not_add_up_is_refused():
    with pytest.raises(PreprocessingError, match="3 files were seen, 2 are") as refusal:
        Intake(series=(), exclusions=(), skipped={"A": 1}, seen=3, used=1, excluded=0)
    assert refusal.value.code == "ACCOUNT_BROKEN"


def test_an_empty_folder_is_an_empty_answer(tmp_path):
    found = scanned(tmp_path)
    assert (found.series, found.seen) == ((), 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_to_one_file_never_raises_and_never_changes_other_slices(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("s")
    truth = write_series(folder, slices=4)
    path = truth.paths[data.draw(st.integers(0, 3))]
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(132, len(content) - 70))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scanned(folder)
    assert found.seen == 4
    for series in found.series:
        if series.status == "accepted":
            volume = load_volume(series)
            assert np.isfinite(volume.voxels).all()


def test_malformed_real_files_are_all_accounted_for(reference_data):
    found = scanned(reference_data / "malformed" / "single_files")
    assert (found.seen, found.used, found.excluded) == (18, 0, 5)
    assert found.skipped == {"NOT_AN_IMAGE": 9, "NOT_DICOM": 2, "NO_DICOM_PREAMBLE": 2}
    assert codes(found) == ["PARSE_ERROR", "SERIES_NOT_SELECTED", "SERIES_NOT_SELECTED"]
    assert set(codes(scanned(reference_data / "malformed" / "series"))) == {"SERIES_NOT_SELECTED"}


class TestDeadWorkers:
    """A process that ends while it reads costs one file, or one series."""

    @pytest.fixture
    def folder(self, tmp_path):
        write_series(tmp_path / "scan")
        (tmp_path / "deadly.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"deadly" * 30)
        return tmp_path

    def test_a_file_that_kills_its_reader_is_excluded_alone(self, folder):
        def mapper(function, items):
            for item in items:
                paths = getattr(item, "files", item)
                dead = any(getattr(path, "name", "") == "deadly.dcm" for path in paths)
                yield Died() if dead else function(item)

        found = scan(folder, pseudonyms=KEY, mapper=mapper)
        assert [series.status for series in found.series] == ["accepted"]
        (crash,) = found.exclusions
        assert (crash.code, crash.files) == ("PARSER_CRASH", 1)
        assert crash.where.startswith("file ")
        assert "took too long" in crash.detail

    def test_a_series_that_kills_its_judge_is_excluded_whole(self, folder):
        def mapper(function, items):
            for item in items:
                yield Died() if isinstance(item, Task | Open) else function(item)

        found = scan(folder, pseudonyms=KEY, mapper=mapper)
        (series,) = found.series
        assert (series.status, series.code) == ("excluded", "PARSER_CRASH")
        assert found.seen == found.excluded + sum(found.skipped.values())
