"""Headers as callers hand them in: made in memory, from any file, written in many ways."""

from datetime import date, datetime, time, timedelta, timezone

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from preprocessing.dicom_values import element_text
from preprocessing.errors import HeaderError
from preprocessing.suv import suvbw
from tests.preprocessing.suv_headers import (
    DECAYED_FACTOR,
    drug_item,
    instance,
    put,
    put_items,
    put_private,
    series,
)

VALUES = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.128",
    "Units": "BQML",
    "DecayCorrection": "START",
    "CorrectedImage": ["DECY", "ATTN"],
    "SeriesDate": "20210310",
    "SeriesTime": "110000",
    "AcquisitionDate": "20210310",
    "AcquisitionTime": "110000",
    "FrameReferenceTime": 60000,
    "ActualFrameDuration": 120000,
    "PatientWeight": 70,
    "PatientSize": 1.75,
    "PatientSex": "M",
}
DRUG_VALUES = {
    "RadionuclideTotalDose": 350e6,
    "RadionuclideHalfLife": 6586.2,
    "RadiopharmaceuticalStartTime": "100000",
}


def made(drug=None, **changes):
    """An instance made in memory from Python values."""
    header, item = Dataset(), Dataset()
    for keyword, value in {**VALUES, **changes}.items():
        setattr(header, keyword, value)
    for keyword, value in {**DRUG_VALUES, **(drug or {})}.items():
        setattr(item, keyword, value)
    header.RadiopharmaceuticalInformationSequence = Sequence([item])
    return header


def codes(result):
    return [warning.split(":")[0] for warning in result.warnings]


def refusal(instances, **options):
    with pytest.raises(HeaderError) as caught:
        suvbw(instances, **options)
    return caught.value.code


def check(instances, factor: float | list[float] = DECAYED_FACTOR, expected_codes=(), **options):
    result = suvbw(instances, **options)
    np.testing.assert_allclose(result.factors, factor, rtol=1e-9)
    assert codes(result) == list(expected_codes)
    return result


# Made in memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [[], ()])
def test_no_instance_is_a_refusal(empty):
    assert refusal(empty) == "SERIES_EMPTY"


@pytest.mark.parametrize("kind", [list, tuple])
def test_python_values(kind):
    check(kind([made(), made()]))


@pytest.mark.parametrize(
    "changes",
    [{"PatientWeight": value} for value in ("70", 70.0, np.float64(70), "7e1", ["70"])]
    + [{"FrameReferenceTime": None, "PatientSize": None, "Manufacturer": None, "SUVType": ""}]
    + [{"SeriesTime": time(11), "AcquisitionTime": time(11, 0, 0)}]
    + [{"SeriesDate": date(2021, 3, 10), "AcquisitionDate": date(2021, 3, 10)}]
    + [{"AcquisitionDateTime": datetime(2021, 3, 10, 11)}],
)
def test_values_of_other_types(changes):
    check([made(**changes), made(**changes)])


def test_instants_of_python_are_written_as_the_standard_writes_them():
    zone = timezone(timedelta(hours=-3, minutes=-30))
    header = Dataset()
    header.AcquisitionDateTime = datetime(921, 3, 10, 11, 0, 0, 500000, zone)
    assert element_text(header, "AcquisitionDateTime") == "09210310110000.500000-0330"
    header.AcquisitionTime = time(11, 2)
    assert element_text(header, "AcquisitionTime") == "110200.000000"
    header.CorrectedImage = ["DECY", None]
    assert element_text(header, "CorrectedImage") == "DECY\\"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"PatientWeight": None}, "WEIGHT_MISSING"), ({"PatientWeight": float("nan")}, "WEIGHT_MISS"),
     ({"PatientWeight": [70, 71]}, "WEIGHT_INVALID"), ({"Units": None}, "UNITS_MISSING"),
     ({"DecayCorrection": None}, "DECAY_UNKNOWN"), ({"AcquisitionTime": None}, "SCAN_TIME_MISSING"),
     ({"drug": {"RadionuclideTotalDose": None}}, "DOSE_MISSING"),
     ({"drug": {"RadiopharmaceuticalStartTime": None}}, "INJ_TIME_MISSING"),
     ({"drug": {"RadionuclideHalfLife": None}}, "HALFLIFE_MISSING")],
)  # fmt: skip
def test_empty_python_values_are_missing(changes, code):
    assert refusal([made(**changes)]).startswith(code)


def test_a_header_that_came_as_json():
    check([Dataset.from_json(made().to_json())])


# From files --------------------------------------------------------------------------------------


@pytest.fixture(params=[ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def pet_file(request, tmp_path):
    header = made(Manufacturer="Philips", Units="CNTS")
    put_private(header, 0x7053, 0x09, "2.0", creator="Philips PET Private Group",
                representation="DS")  # fmt: skip
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = request.param
    header.SOPInstanceUID = "1.2.3"
    header.Rows = header.Columns = 2
    header.BitsAllocated = 16
    header.add_new(0x7FE00010, "OW", b"\0" * 8)
    path = tmp_path / "slice"
    header.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("options", [{}, {"stop_before_pixels": True}, {"defer_size": 1}])
def test_a_header_from_a_file(pet_file, options):
    check([pydicom.dcmread(pet_file, **options)], 2 * DECAYED_FACTOR)


def test_a_file_that_went_away_before_its_values_were_read(pet_file):
    header = pydicom.dcmread(pet_file, defer_size=1)
    pet_file.unlink()
    with pytest.raises(HeaderError, match=r"\(\w{4},\w{4}\) cannot be parsed .* is damaged or gon"):
        suvbw([header])
    assert refusal([header]) == "PARSE_ERROR"


def test_bytes_of_another_order_are_not_taken_for_the_same():
    """The same eight bytes are two numbers in the two byte orders."""
    little, big = instance(ActualFrameDuration=None), instance(ActualFrameDuration=None)
    packed = np.array([120000.0], "<f8").tobytes()
    for header, order in ((little, "<"), (big, ">")):
        header.add_new(0x00189220, "FD", 0.0)
        tag = header["FrameAcquisitionDuration"].tag
        header[tag] = RawDataElement(
            tag, "FD", 8, np.array([120000.0], f"{order}f8").tobytes(), 0, False, order == "<", True
        )
    swapped = RawDataElement(tag, "FD", 8, packed, 0, False, False, True)
    for header in (little, big):
        put(header, "DecayCorrection", "NONE")
        put(header, "CorrectedImage", "ATTN")
    equal = suvbw([little, big]).factors
    assert equal[0] == equal[1]
    big[tag] = swapped
    assert suvbw([little, big]).factors[0] != suvbw([little, big]).factors[1]


# Written in many ways ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"drug": {"RadionuclideTotalDose": text}} for text in ("350000000.0", "3.5e8", "+35.0E7  ")]
    + [{"drug": {"RadionuclideHalfLife": text}} for text in ("6586.20", "0.65862e4")]
    + [{"drug": {"RadiopharmaceuticalStartTime": text}} for text in ("1000", "10:00:00", "10")]
    + [{"drug": {"RadiopharmaceuticalStartDateTime": "202103101000"}}]
    + [{"code": ("77004003", "SCT", "Fluorine-18")}]
    + [{"PatientWeight": "70.0 "}, {"PatientWeight": "7E1"}, {"PatientSize": "1.750"}]
    + [{"SeriesTime": "1100"}, {"AcquisitionTime": "110000.000"}, {"Units": "BQML "}],
)
def test_one_value_written_in_two_ways_is_one(changes):
    check([*series(3), instance(**changes)])


def test_equal_items_written_in_two_ways_are_one():
    header = instance()
    items = [drug_item(), drug_item(RadionuclideTotalDose="3.5E8")]
    put_items(header, "RadiopharmaceuticalInformationSequence", items)
    check([header])


def test_values_that_cannot_be_read_are_compared_as_they_stand():
    odd = {"RadionuclideTotalDose": "3,5E8"}
    assert refusal([*series(), instance(drug=odd)]) == "INCONSISTENT_RADIONUCLIDETOTALDOSE"
    assert refusal(series(drug=odd)) == "DOSE_INVALID"


def test_a_slice_without_the_sequence_is_of_another_scan():
    lacking = instance()
    put(lacking, "RadiopharmaceuticalInformationSequence", None)
    expected = "INCONSISTENT_RADIOPHARMACEUTICALINFORMATIONSEQUENCE"
    assert refusal([*series(), lacking]) == expected


# Philips factors, slice by slice -----------------------------------------------------------------


def counts(texts, *, element=0x00, blocks=None, **changes):
    instances = series(len(texts), Units="CNTS", Manufacturer="Philips", **changes)
    for header, text, block in zip(instances, texts, blocks or [0x10] * len(texts), strict=True):
        if text is not None:
            put_private(header, 0x7053, element, text, creator="Philips PET Private Group",
                        block=block, representation="DS")  # fmt: skip
    return instances


def test_factors_belong_to_their_slices():
    result = check(counts(["0.0005", "0.0006", "5e-4"]), [0.0005, 0.0006, 0.0005])
    assert result.route == "PHILIPS SUV factor (7053,1000)"


def test_factors_are_found_in_the_block_of_each_slice():
    check(counts(["0.0005", "0.0006"], blocks=[0x10, 0x12]), [0.0005, 0.0006])


@pytest.mark.parametrize("texts", [[None, "0.0005"], ["0.0005", None], ["0", "0.0005"]])
def test_a_factor_that_a_slice_lacks_is_no_factor(texts):
    assert refusal(counts(texts)) == "PHILIPS_FACTOR"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"drug": {"RadionuclideTotalDose": "1E8"}}, "INCONSISTENT_RADIONUCLIDETOTALDOSE"),
     ({"DecayCorrection": "ADMIN"}, "INCONSISTENT_DECAYCORRECTION"),
     ({"AcquisitionTime": "110500", "SeriesTime": "110000"}, "SUV_TREF_INCONSISTENT")],
)  # fmt: skip
def test_a_mixed_series_is_not_saved_by_the_suv_factor(changes, code):
    instances = [counts(["1"], element=0x09)[0], counts(["1"], element=0x09, **changes)[0]]
    for header in instances:
        put_private(header, 0x7053, 0x00, "0.0005", representation="DS")
    assert refusal(instances) == code


# Stored SUVs and a given weight ------------------------------------------------------------------


def test_a_stored_lean_mass_was_made_with_the_weight_in_the_header():
    lean = 1.10 * 70 - 128 * 0.4**2
    check(
        series(Units="GML", SUVType="LBMJAMES128"), 80 / lean, ["WEIGHT_OVERRIDE"], weight_kg=80.0
    )
    lean = 1.10 * 80 - 128 * (80 / 175) ** 2
    instances = series(Units="GML", SUVType="LBMJAMES128", PatientWeight=None)
    check(instances, 80 / lean, ["WEIGHT_OVERRIDE"], weight_kg=80.0)
    surface = 0.007184 * 175**0.725 * 70**0.425 * 1e4
    check(series(Units="CM2ML"), 80000 / surface, ["WEIGHT_OVERRIDE"], weight_kg=80.0)


@pytest.mark.parametrize(
    ("sex", "size", "expected"),
    [("M", "1.75", ["2.2 %"]), ("O", "1.75", ["1.2 %"]), ("F", "1.75", []), ("O", "2.0", [])],
)
def test_the_open_coefficient_of_lean_mass_is_noted(sex, size, expected):
    result = suvbw(series(Units="GML", SUVType="LBM", PatientSex=sex, PatientSize=size))
    assert codes(result) == ["SUVTYPE_LBM"] * len(expected)
    assert all(figure in line for figure, line in zip(expected, result.warnings, strict=True))
    assert codes(suvbw(series(Units="GML", SUVType="LBMJAMES128"))) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [("109.77", "F-18 in minutes"), ("1.83", "F-18 in h"), ("12.7", "CU-64 in h"),
     ("20.4", "C-11 in min")],
)  # fmt: skip
def test_a_half_life_in_another_unit_is_recognised_without_a_nuclide(text, named):
    instances = series(code=None, drug={"RadionuclideHalfLife": text})
    with pytest.raises(HeaderError, match=f"but is that of {named}") as caught:
        suvbw(instances)
    assert caught.value.code == "HALFLIFE_MISMATCH"
