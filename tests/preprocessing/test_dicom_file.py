import os
import random
import re
import struct
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
)

from preprocessing import dicom_file, dicom_walk
from preprocessing.dicom_file import Instance, read_file
from preprocessing.dicom_values import tag_of
from preprocessing.dicom_walk import EXPLICIT_LITTLE, IMPLICIT_LITTLE, Source, Walked, walk
from preprocessing.errors import FileError
from preprocessing.raw_elements import decimals, text, whole, words, written_text
from tests.preprocessing.dicom_factory import header, save, write_series


def pet_dataset() -> Dataset:
    ds = header(slices=1, shape=(4, 3), spacing=(4.0, 3.0, 2.0))
    ds.SOPInstanceUID = "1.2.3"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.RescaleSlope = "1"
    ds.PixelData = bytes(24)
    ds["PixelData"].VR = "OW"
    return ds


def written(path: Path, ds: Dataset, *, syntax: str = ExplicitVRLittleEndian) -> Path:
    save(ds, path, syntax=syntax)
    return path


def instance_of(path: Path) -> Instance:
    read = read_file(path)
    assert read.instance is not None
    return read.instance


def assert_equals_pydicom(path: Path) -> None:
    instance = instance_of(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, kept = pydicom.dcmread(path), instance.header
        for tag in instance.elements:
            assert kept[tag].value == expected[tag].value
        wanted = {tag_of(keyword) for keyword in dicom_file.KEYWORDS} & set(expected.keys())
    assert wanted <= set(instance.elements) or text(instance.elements, tag_of("Modality")) != "PT"


@pytest.mark.parametrize("folder", ["sts_001/dicom", "ibsi_sts/STS_001/image", "suv_dro/DRO_2_4"])
def test_kept_elements_and_pixel_place_are_those_that_pydicom_reads(reference_data, folder):
    paths = sorted((reference_data / folder).rglob("*.dcm"))
    for path in [path for path in paths if "RS" not in path.name][:5]:
        assert_equals_pydicom(path)
        instance = instance_of(path)
        with path.open("rb") as stream:
            stream.seek(instance.pixel_offset)
            assert stream.read(instance.pixel_length) == pydicom.dcmread(path).PixelData


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("undefined_length", [False, True])
def test_nested_private_and_undefined_length_elements_do_not_derail_the_walk(
    tmp_path, syntax, undefined_length
):
    ds = pet_dataset()
    inner = Dataset()
    inner.add_new(0x00091001, "SQ", Sequence([Dataset(), Dataset()]))
    inner.add_new(0x00090010, "LO", "SOME")
    inner.CodeValue = "A"
    ds.add_new(0x00090010, "LO", "GEMS_PETD_01")
    ds.add_new(0x0009100D, "DT", "20200304110000")
    ds.add_new(0x000910AA, "OB", b"\x00" * 70000)  # longer than the first read
    ds.add_new(0x00540016, "SQ", Sequence([inner, inner]))
    if undefined_length:
        ds["RadiopharmaceuticalInformationSequence"].is_undefined_length = True
        for item in ds.RadiopharmaceuticalInformationSequence:
            item.is_undefined_length_sequence_item = True
            item[0x00091001].is_undefined_length = True
    path = written(tmp_path / "a", ds, syntax=syntax)
    assert_equals_pydicom(path)
    kept = instance_of(path).elements
    assert {0x00090010, 0x0009100D} <= set(kept)
    assert 0x000910AA not in kept


def test_icon_with_encapsulated_pixels_inside_a_sequence_is_passed_over():
    fragments = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00abcd"
    end = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    icon = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff" + fragments + end
    item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(icon)) + icon
    open_item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + icon + b"\xfe\xff\x0d\xe0\x00\x00\x00\x00"
    sequence = b"\x88\x00\x00\x02SQ\x00\x00\xff\xff\xff\xff" + item + open_item + end
    content = sequence + b"\xe0\x7f\x10\x00OW\x00\x00\x02\x00\x00\x00zz"
    found = walked(content)
    assert found.pixel_offset == len(content) - 2


def test_a_sequence_of_unknown_representation_is_read_as_implicit(tmp_path):
    ds = pet_dataset()
    ds.PatientID = ""
    path = written(tmp_path / "a", ds, syntax=ImplicitVRLittleEndian)
    value = read_file(path).elements[tag_of("RadiopharmaceuticalInformationSequence")].value
    content = b"\x54\x00\x16\x00UN\0\0" + struct.pack("<L", len(value)) + value
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    undefined = b"\x54\x00\x16\x00UN\0\0\xff\xff\xff\xff" + value + end
    for each in (content, undefined):
        kept = Dataset(walked(each).elements)
        assert kept.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose == 370e6


def walked(content: bytes, *, encoding=EXPLICIT_LITTLE) -> Walked:
    found = Walked()
    keep = {0x00540016: tag_of("RadiopharmaceuticalInformationSequence")}
    source = Source(head=content, size=len(content), grow=lambda _: content)
    walk(source, 0, encoding=encoding, keep=keep, keep_private={}, shared={}, found=found)
    return found


def nested(depth: int, *, undefined: bool) -> bytes:
    content = b""
    for _ in range(depth):
        if undefined:
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + content + b"\xfe\xff\x0d\xe0\0\0\0\0"
            sequence = item + b"\xfe\xff\xdd\xe0\0\0\0\0"
            content = b"\x54\x00\x16\x00SQ\0\0\xff\xff\xff\xff" + sequence
        else:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content
            content = b"\x54\x00\x16\x00SQ\0\0" + struct.pack("<L", len(item)) + item
    return content


@pytest.mark.parametrize("undefined", [False, True])
def test_depth_limit_holds_on_both_sides(undefined):
    assert len(walked(nested(dicom_walk.MAX_DEPTH, undefined=undefined)).elements) == 1
    for depth in (dicom_walk.MAX_DEPTH + 1, 3000):
        with pytest.raises(FileError, match="nested deeper than 64") as refusal:
            walked(nested(depth, undefined=undefined))
        assert refusal.value.code == "PARSE_ERROR"


def element(tag: bytes, vr: bytes, value: bytes) -> bytes:
    return tag + vr + struct.pack("<H", len(value)) + value


@pytest.mark.parametrize("inside", [False, True])
def test_too_many_elements_are_refused(monkeypatch, inside):
    monkeypatch.setattr(dicom_walk, "MAX_ELEMENTS", 50)
    many = element(b"\x10\x00\x10\x10", b"LO", b"ab") * 51
    if inside:
        item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(many)) + many
        many = b"\x54\x00\x16\x00SQ\0\0" + struct.pack("<L", len(item)) + item
    with pytest.raises(FileError, match="more than 50 elements") as refusal:
        walked(many)
    assert refusal.value.code == "FILE_LIMIT"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x10\x00\x10\x10ZZ\x02\x00ab", "value representation b'ZZ'"),
        (element(b"\x10\x00\x10\x10", b"LO", b"ab")[:-1], r"\(0010,1010\) runs to byte 10"),
        (b"\x10\x00\x10", "ends inside the element that begins at byte 0"),
        (b"\x54\x00\x16\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x0d\xe0\0\0\0\0", "never began"),
        (b"\x54\x00\x16\x00SQ\0\0\xff\xff\xff\xff", "ends inside the element"),
        (
            b"\x54\x00\x16\x00SQ\0\0\x10\0\0\0\xfe\xff\x00\xe0\x08\0\0\0" + b"\x08\0\0\x01SH\x09\0",
            r"\(0008,0100\) inside \(0054,0016\) is longer",
        ),
    ],
)
def test_broken_encoding_is_named(content, message):
    with pytest.raises(FileError, match=message) as refusal:
        walked(content)
    assert refusal.value.code == "PARSE_ERROR"


def test_implicit_data_sets_are_cut_with_a_name_too():
    with pytest.raises(FileError, match="ends inside the element"):
        walked(b"\x10\x00\x10\x10\x01", encoding=IMPLICIT_LITTLE)


def test_a_header_beyond_the_limit_is_refused_without_being_read(monkeypatch):
    monkeypatch.setattr(dicom_walk, "MAX_HEADER_BYTES", 20)
    content = b"\x10\x00\x10\x10OB\0\0\x40\0\0\0" + bytes(64)
    source = Source(head=content[:12], size=len(content), grow=pytest.fail)
    options = {"keep": {}, "keep_private": {}, "shared": {}, "found": Walked()}
    with pytest.raises(FileError, match="header is longer than 20 bytes") as refusal:
        walk(source, 0, encoding=EXPLICIT_LITTLE, **options)
    assert refusal.value.code == "FILE_LIMIT"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EMPTY_FILE"),
        (b"PK\x03\x04" + bytes(300), "NOT_DICOM"),
        (b"short", "NOT_DICOM"),
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", "NO_DICOM_PREAMBLE"),
    ],
)
def test_files_that_are_no_dicom_are_skipped_by_content(tmp_path, content, reason):
    path = tmp_path / "looks_like.dcm"
    path.write_bytes(content)
    assert read_file(path).skip == reason


@pytest.mark.parametrize(
    ("sop_class", "reason"),
    [
        ("1.2.840.10008.1.3.10", "DICOMDIR"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "NOT_AN_IMAGE"),  # RT structure set
        ("1.2.840.10008.5.1.4.1.1.88.11", "NOT_AN_IMAGE"),  # structured report
    ],
)
def test_objects_that_are_no_images_are_skipped(tmp_path, sop_class, reason):
    ds = pet_dataset()
    ds.SOPClassUID = sop_class
    assert read_file(written(tmp_path / "a", ds)).skip == reason


def test_unknown_classes_count_as_images_only_with_a_picture(tmp_path):
    ds = pet_dataset()
    ds.SOPClassUID, ds.Modality = "1.3.12.2.1107.5.9.1", "OT"
    assert read_file(written(tmp_path / "a", ds)).instance is not None
    del ds.PixelData
    assert read_file(written(tmp_path / "b", ds)).skip == "NOT_AN_IMAGE"


def test_links_and_pipes_are_not_read(tmp_path):
    target = written(tmp_path / "a", pet_dataset())
    (tmp_path / "link").symlink_to(target)
    assert read_file(tmp_path / "link").code == "UNREADABLE"
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "pipe").skip == "NOT_A_REGULAR_FILE"
    missing = read_file(tmp_path / "gone")
    assert missing.code == "UNREADABLE"
    assert "cannot be read (No such file or directory)" in missing.detail
    assert str(tmp_path) not in missing.detail


def edited(**values) -> Dataset:
    ds = pet_dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize(
    ("ds", "code", "message"),
    [
        (edited(PixelData=bytes(22)), "PIXEL_TRUNCATED", "has 22 bytes, 24 are needed"),
        (edited(PixelData=bytes(26)), "PARSE_ERROR", "has 26 bytes, 24 are expected"),
        (edited(NumberOfFrames=10**9), "PIXEL_TRUNCATED", "24000000000 are needed"),
        (edited(NumberOfFrames=0), "PARSE_ERROR", "not the size of a picture"),
        (edited(Rows=0), "PARSE_ERROR", r"Rows \(0028,0010\) 0"),
    ],
)
def test_pixels_that_contradict_the_header_are_refused(tmp_path, ds, code, message):
    read = read_file(written(tmp_path / "a", ds))
    assert read.code == code
    assert re.search(message, read.detail)
    assert read.instance is not None


def test_missing_pixels_are_named(tmp_path):
    ds = pet_dataset()
    del ds.PixelData
    read = read_file(written(tmp_path / "a", ds))
    assert (read.code, "(7FE0,0010) is missing" in read.detail) == ("PIXEL_TRUNCATED", True)


def test_a_file_cut_inside_the_pixels_is_truncated_and_one_cut_in_the_header_does_not_parse(
    tmp_path,
):
    path = written(tmp_path / "a", pet_dataset())
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    assert read_file(path).code == "PIXEL_TRUNCATED"
    path.write_bytes(content[: content.index(b"WB AC")])
    assert read_file(path).code == "PARSE_ERROR"


def test_a_fault_late_in_the_header_still_says_whose_file_it_is(tmp_path):
    path = written(tmp_path / "a", pet_dataset())
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"BQML")])
    read = read_file(path)
    assert read.code == "PARSE_ERROR"
    assert text(read.elements, tag_of("PatientID")) == "CANARY-ID"
    assert text(read.elements, tag_of("SeriesInstanceUID"))


def test_bytes_after_the_pixels_do_no_harm(tmp_path):
    path = written(tmp_path / "a", pet_dataset())
    path.write_bytes(path.read_bytes() + b"garbage")
    assert read_file(path).code == ""


def test_without_a_transfer_syntax_nothing_is_guessed(tmp_path):
    path = written(tmp_path / "a", pet_dataset())
    content = path.read_bytes()
    at = content.index(b"\x02\x00\x10\x00UI")
    path.write_bytes(content[: at + 2] + b"\x11\x00" + content[at + 4 :])
    read = read_file(path)
    assert read.code == "PARSE_ERROR"
    assert "TransferSyntaxUID (0002,0010) is missing" in read.detail


def test_file_meta_information_without_group_length_is_read(tmp_path):
    path = written(tmp_path / "a", pet_dataset())
    content = path.read_bytes()
    path.write_bytes(content[:132] + content[144:])
    assert read_file(path).code == ""


def deflated(tmp_path: Path, data_set: bytes) -> Path:
    path = written(tmp_path / "a", pet_dataset(), syntax=DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    length = struct.unpack_from("<L", content, 140)[0]
    path.write_bytes(content[: 144 + length] + data_set)
    return path


def test_a_deflated_bomb_and_deflated_garbage_are_refused(tmp_path):
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = squeeze.compress(bytes(40_000_000)) + squeeze.flush()
    read = read_file(deflated(tmp_path, bomb))
    assert (read.code, "inflates to more than" in read.detail) == ("FILE_LIMIT", True)
    read = read_file(deflated(tmp_path, b"\xff\xff\xff\xff"))
    assert (read.code, "does not inflate" in read.detail) == ("PARSE_ERROR", True)


def test_small_encapsulated_files_may_not_claim_huge_pictures(tmp_path):
    ds = edited(Rows=60000, Columns=10000)
    ds.PixelData = pydicom.encaps.encapsulate([b"ab"])
    read = read_file(written(tmp_path / "a", ds, syntax=HTJ2KLossless))
    assert (read.code, "would take 1200000000 bytes" in read.detail) == ("FILE_LIMIT", True)


def test_files_beyond_the_size_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_file, "MAX_FILE_BYTES", 100)
    read = read_file(written(tmp_path / "a", pet_dataset()))
    assert (read.code, "more than 100: no PET" in read.detail) == ("FILE_LIMIT", True)


def test_a_file_that_shrinks_while_it_is_read_is_unreadable(tmp_path, monkeypatch):
    ds = pet_dataset()
    ds.add_new(0x00091010, "OB", bytes(50_000))
    path = written(tmp_path / "a", ds)
    real, calls = os.read, []

    def short(descriptor, count):
        calls.append(count)
        return real(descriptor, count) if len(calls) == 1 else b""

    monkeypatch.setattr(os, "read", short)
    read = read_file(path)
    assert (read.code, "became shorter" in read.detail) == ("UNREADABLE", True)


def test_equal_elements_of_a_series_are_one_object(tmp_path):
    scan, shared = write_series(tmp_path, slices=3), {}
    reads = [read_file(path, shared=shared) for path in scan.paths]
    tag = tag_of("RadiopharmaceuticalInformationSequence")
    assert len({id(read.elements[tag]) for read in reads}) == 1


def test_fingerprint_follows_header_and_file(tmp_path):
    ds = pet_dataset()
    before = instance_of(written(tmp_path / "a", ds))
    ds.RescaleSlope = "2"
    after = instance_of(written(tmp_path / "a", ds))
    assert before.fingerprint == before.fingerprint
    assert before.fingerprint[-1] != after.fingerprint[-1]


def test_header_copies_do_not_share_changes(tmp_path):
    instance = instance_of(written(tmp_path / "a", pet_dataset()))
    instance.header.PatientWeight = "1"
    assert instance.header.PatientWeight == 70.0


def test_real_malformed_files_have_a_reason_each(reference_data):
    expected = {
        "ExplVR_BigEndNoMeta.dcm": "NO_DICOM_PREAMBLE",
        "ExplVR_LitEndNoMeta.dcm": "NO_DICOM_PREAMBLE",
        "badVR.dcm": "NOT_AN_IMAGE",
        "empty_charset_LEI.dcm": "NOT_AN_IMAGE",
        "meta_missing_tsyntax.dcm": "PARSE_ERROR",
        "nested_priv_SQ.dcm": "NOT_AN_IMAGE",
        "no_meta.dcm": "NOT_DICOM",
        "no_meta_group_length.dcm": "NOT_AN_IMAGE",
        "reportsi.dcm": "NOT_AN_IMAGE",
        "rtplan_truncated.dcm": "NOT_AN_IMAGE",
        "UN_sequence.dcm": "NOT_AN_IMAGE",
        "waveform_ecg.dcm": "NOT_AN_IMAGE",
    }
    folder = reference_data / "malformed" / "single_files"
    reads = {name: read_file(folder / name) for name in expected}
    assert {name: read.skip or read.code for name, read in reads.items()} == expected


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_damage_raises(tmp_path_factory, seed):
    chance = random.Random(seed)
    folder = tmp_path_factory.mktemp("damage")
    content = bytearray(written(folder / "a", pet_dataset()).read_bytes())
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(128, len(content))
        match chance.randint(0, 3):
            case 0:
                content[at] = chance.randrange(256)
            case 1:
                del content[at:]
            case 2:
                content[at:at] = chance.randbytes(chance.randint(1, 8))
            case _:
                content[at : at + 4] = b"\xff\xff\xff\xff"
        if len(content) <= 129:
            break
    path = folder / "b"
    path.write_bytes(content)
    read = read_file(path)
    assert bool(read.skip) + bool(read.code or read.instance) == 1
    assert "CANARY" not in read.detail


def pet_values(**raws: tuple[str, bytes]):
    return {
        tag_of(keyword): RawDataElement(tag_of(keyword), vr, len(value), value, 0, False, True)
        for keyword, (vr, value) in raws.items()
    }


@pytest.mark.parametrize("value", [b"70,5", b"nan", b"inf", b"1e", b"1\\", b"1 2", b"1e999", b"x"])
def test_what_is_no_finite_decimal_is_no_number(value):
    assert decimals(pet_values(PatientWeight=("DS", value)), tag_of("PatientWeight")) is None


def test_numbers_and_words_are_read_as_written():
    values = pet_values(
        PixelSpacing=("DS", b" 4.5\\-1.e2 "),
        Rows=("US", b"\x03\x01"),
        Columns=("US", b"\x03"),
        NumberOfFrames=("IS", b"12 "),
        ImageType=("CS", b"original\\PRIMARY "),
        FrameAcquisitionDuration=("FD", struct.pack("<d", 2.5)),
        ActualFrameDuration=("FD", b"123"),
    )
    assert decimals(values, tag_of("PixelSpacing")) == (4.5, -100.0)
    assert decimals(values, tag_of("PatientWeight")) == ()
    assert decimals(values, tag_of("FrameAcquisitionDuration")) == (2.5,)
    assert decimals(values, tag_of("ActualFrameDuration")) is None
    assert (whole(values, tag_of("Rows")), whole(values, tag_of("Columns"))) == (259, None)
    assert whole(values, tag_of("NumberOfFrames")) == 12
    assert whole(values, tag_of("BitsStored")) is None
    assert words(values, tag_of("ImageType")) == ("ORIGINAL", "PRIMARY")


def test_names_follow_the_character_set():
    latin = pet_values(SpecificCharacterSet=("CS", b"ISO_IR 100"), PatientID=("LO", b"M\xfcller"))
    utf = pet_values(
        SpecificCharacterSet=("CS", b"ISO_IR 192"), PatientID=("LO", "Müller".encode())
    )
    wrong = pet_values(SpecificCharacterSet=("CS", b"NONSENSE"), PatientID=("LO", b"M\xfcller"))
    assert written_text(latin, tag_of("PatientID")) == "Müller"
    assert written_text(utf, tag_of("PatientID")) == "Müller"
    assert written_text(wrong, tag_of("PatientID"))
