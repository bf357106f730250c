import math
import struct
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from preprocessing import dicom_values as values
from preprocessing.errors import HeaderError
from tests.preprocessing.suv_headers import coded, put, put_items, put_private, put_raw


def with_weight(text):
    header = Dataset()
    put(header, "PatientWeight", text)
    return header


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_decimal_is_read_exactly(number):
    assert values.parse_decimal(f" {number!r} ", name="x") == number


@pytest.mark.parametrize("text", ["70", "70.", ".5", "+70.50", "-1E-3", " 7e1\0".strip("\0")])
def test_decimal_forms_of_the_standard(text):
    assert values.read_decimal(with_weight(text), "PatientWeight") == float(text)


@pytest.mark.parametrize(
    "text",
    ["70,5", "1e", "e5", "70\\71", "seventy", "nan", "inf", "-Infinity", "1e999", "7 0", "0x46",
     "1_000", "٣", "+", ".", "--1"],
)  # fmt: skip
def test_anything_else_is_refused_with_its_code(text):
    with pytest.raises(HeaderError, match="not one finite decimal number") as caught:
        values.parse_decimal(text, name="PatientWeight (0010,1030)", code="WEIGHT_INVALID")
    assert caught.value.code == "WEIGHT_INVALID"


def test_a_message_never_repeats_text():
    header = with_weight("Doe^John")
    with pytest.raises(HeaderError, match=r"PatientWeight \(0010,1030\) is a text of 8 char") as e:
        values.read_decimal(header, "PatientWeight")
    assert "Doe" not in str(e.value)
    assert values.seen("70,5") == "'70,5'"
    assert values.seen("") == "empty"


@pytest.mark.parametrize("text", [None, "", "   ", "\0\0"])
def test_absent_and_empty_are_none(text):
    assert values.read_decimal(with_weight(text), "PatientWeight") is None
    assert values.read_decimals(with_weight(text), "PatientWeight", count=3) is None
    assert values.element_text(with_weight(text), "PatientWeight") == ""


def test_reading_does_not_convert_the_element():
    header = with_weight("70 ")
    assert values.element_text(header, "PatientWeight") == "70"
    assert isinstance(header.get_item(Tag(0x00101030)), RawDataElement)


def test_converted_elements_read_like_raw_ones():
    header = Dataset()
    header.PatientWeight = "70.50"
    header.CorrectedImage = ["DECY", "ATTN"]
    header.PatientSex = None
    header.add_new(Tag(0x7053, 0x1000), "UN", b"0.5 ")
    assert values.element_text(header, "PatientWeight") == "70.50"
    assert values.element_text(header, "CorrectedImage") == "DECY\\ATTN"
    assert values.element_text(header, "PatientSex") == ""
    assert values.element_text(header, Tag(0x7053, 0x1000)) == "0.5"


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("representation", ["FD", None])
def test_binary_numbers_are_read_in_their_byte_order(little, representation):
    header, tag = Dataset(), Tag(0x0018, 0x9220)  # FrameAcquisitionDuration, FD
    packed = struct.pack("<d" if little else ">d", 1234.5)
    header[tag] = RawDataElement(tag, representation, 8, packed, 0, representation is None, little)
    assert values.read_decimal(header, "FrameAcquisitionDuration") == 1234.5


def test_a_binary_number_of_wrong_length_is_refused():
    header, tag = Dataset(), Tag(0x0018, 0x9220)
    put_raw(header, tag, "FD", b"1234567")
    with pytest.raises(HeaderError, match="holds 7 bytes, no multiple of the 8"):
        values.element_text(header, tag)


def test_several_decimals_are_counted():
    header = Dataset()
    put(header, "ImagePositionPatient", "1\\-2.5\\3e1")
    assert values.read_decimals(header, "ImagePositionPatient", count=3) == (1.0, -2.5, 30.0)
    with pytest.raises(HeaderError, match="holds 3 values where 2 are needed"):
        values.read_decimals(header, "ImagePositionPatient", count=2)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9998, 1, 1)))
def test_instants_lie_on_the_calendar_axis(moment):
    expected = (moment - datetime(1, 1, 1)) / timedelta(seconds=1) + 86400
    day = values.parse_date(f"{moment.year:04}{moment:%m%d}", name="x")
    assert math.isclose(
        day + values.parse_time(f"{moment:%H%M%S.%f}", name="x"), expected, abs_tol=1e-4
    )
    text = f"{moment.year:04}{moment:%m%d%H%M%S.%f}"
    assert math.isclose(values.parse_datetime(text, name="x"), expected, abs_tol=1e-4)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 36000), ("1030", 37800), ("103015", 37815), ("103015.5", 37815.5), ("10:30:15", 37815),
     ("235960", 86400), ("10:30:15.25", 37815.25)],
)  # fmt: skip
def test_time_forms(text, seconds):
    assert values.parse_time(text, name="x") == seconds


def test_old_date_form():
    assert values.parse_date("2021.03.10", name="x") == values.parse_date("20210310", name="x")


@pytest.mark.parametrize("text", ["24", "1060", "103061", "abc", "1", "10:3", "103015.1234567", ""])
def test_no_time(text):
    with pytest.raises(HeaderError, match="T is not of the form HHMMSS"):
        values.parse_time(text, name="T")


@pytest.mark.parametrize(
    "text", ["20210229", "20211301", "2021", "210310", "2021-03-10", "00000101"]
)
def test_no_date(text):
    with pytest.raises(HeaderError, match="D is not of the form YYYYMMDD"):
        values.parse_date(text, name="D")


@pytest.mark.parametrize(
    "text", ["2021", "20210310", "2021031010", "2021031010xx", "20210310250000"]
)
def test_no_usable_date_and_time(text):
    with pytest.raises(HeaderError, match="is not of the form"):
        values.parse_datetime(text, name="DT")


def test_a_date_and_time_moves_to_the_zone_of_the_other_attributes():
    plain = values.parse_datetime("202103101000", name="x")
    assert values.parse_datetime("202103101000+0000", name="x", utc_offset_s=3600.0) == plain + 3600
    assert values.parse_datetime("202103101000+0100", name="x", utc_offset_s=3600.0) == plain
    assert values.parse_datetime("202103101000-0530", name="x") == plain
    assert values.parse_offset("-1200", name="x") == -43200
    assert values.parse_offset("+1400", name="x") == 50400


@pytest.mark.parametrize("text", ["0100", "+2000", "+0160", "-1300", "+1"])
def test_no_offset(text):
    with pytest.raises(HeaderError, match=r"is not of the form .HHMM"):
        values.parse_offset(text, name="x")


def test_codes_and_items():
    header = Dataset()
    assert values.read_code(header, "RadionuclideCodeSequence") is None
    put_items(header, "RadionuclideCodeSequence", [])
    assert values.read_code(header, "RadionuclideCodeSequence") is None
    put_items(header, "RadionuclideCodeSequence", [coded("c-1", "srt", "^18^Fluorine")])
    expected = values.Code(value="C-1", scheme="SRT", meaning="^18^FLUORINE")
    assert values.read_code(header, "RadionuclideCodeSequence") == expected
    assert values.read_items(with_weight("70"), "PatientWeight") == []


def test_a_broken_sequence_is_refused():
    header = Dataset()
    put_raw(header, Tag(0x00540016), "SQ", b"BL\x13")
    with pytest.raises(HeaderError, match="cannot be parsed") as caught:
        values.read_items(header, "RadiopharmaceuticalInformationSequence")
    assert caught.value.code == "PARSE_ERROR"


def test_a_private_element_is_found_in_any_block_of_its_creator():
    header = Dataset()
    put_private(header, 0x0009, 0x0D, "1", creator="OTHER", block=0x10)
    put_private(header, 0x0009, 0x0D, "2", creator="GEMS_PETD_01", block=0x42)
    found = values.private_tag(header, 0x0009, 0x0D, creator="GEMS_PETD_01")
    assert found == (Tag(0x0009, 0x420D), True)


def test_a_private_element_without_creator_is_taken_last_and_on_request():
    header = Dataset()
    put_private(header, 0x0009, 0x0D, "1", creator="OTHER", block=0x10)
    assert values.private_tag(header, 0x0009, 0x0D, creator="GEMS_PETD_01") is None
    put_private(header, 0x0009, 0x0D, "2", block=0x11)
    found = values.private_tag(header, 0x0009, 0x0D, creator="GEMS_PETD_01")
    assert found == (Tag(0x0009, 0x110D), False)
    assert (
        values.private_tag(header, 0x0009, 0x0D, creator="GEMS_PETD_01", allow_bare=False) is None
    )
    put_raw(header, Tag(0x0009, 0x000D), "LO", b"no block")
    assert values.private_tag(header, 0x0009, 0x0D, creator="GEMS_PETD_01") == found


@pytest.mark.parametrize(
    ("manufacturer", "expected"),
    [("GE MEDICAL SYSTEMS", "GE"), ("ge", "GE"), ("GEMS", "GE"), ("General Electric", "GE"),
     ("GENERIC IMAGING", "OTHER"), ("IMAGE WORKS", "OTHER"), ("SIEMENS", "SIEMENS"),
     ("Siemens/CTI", "SIEMENS"), ("CPS", "SIEMENS"), ("CPSX", "OTHER"), ("CTI PET", "SIEMENS"),
     ("Philips Medical Systems", "PHILIPS"), ("ADAC", "PHILIPS"), ("Synthetic", "OTHER"),
     ("SiemensHealthineers", "SIEMENS"), ("PhilipsMedical", "PHILIPS"), ("GEX", "OTHER"),
     ("", ""), ("  ", "")],
)  # fmt: skip
def test_vendor_is_told_by_its_beginning(manufacturer, expected):
    assert values.vendor(manufacturer) == expected


def test_names():
    assert values.attribute_name("PatientWeight") == "PatientWeight (0010,1030)"
    assert values.attribute_name(Tag(0x0009, 0x100D)) == "(0009,100D)"
    with pytest.raises(ValueError, match="'Wait' is no keyword"):
        values.tag_of("Wait")
