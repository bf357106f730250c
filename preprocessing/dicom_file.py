"""One file of any kind, read once and under limits: its header, and where its pixels lie.

``read_file`` never raises. It answers with an image (``Instance``), with the reason why a file is
no image, or with the coded fault of an image that cannot be used. A DICOM file is known by its
content, the ``DICM`` mark after a preamble of 128 bytes; data sets without it are not guessed at.

References
----------
DICOM PS3.10 section 7.1 (file meta information), PS3.5 annex A (transfer syntaxes).
"""

import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

from pydicom import config
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from preprocessing import dicom_walk
from preprocessing.dicom_values import tag_of
from preprocessing.dicom_walk import Encoding, Shared, Source, Walked
from preprocessing.errors import FileError
from preprocessing.raw_elements import Header, text, whole

MAX_FILE_BYTES = 4 * 2**30
MAX_PIXEL_BYTES = 2 * 2**30
MAX_INFLATION = 200
"""Decoded bytes per byte of file: beyond it a small file is a trap, not a picture."""
FIRST_READ_BYTES = 16 * 1024

PET = "1.2.840.10008.5.1.4.1.1.128"
ENHANCED_PET = "1.2.840.10008.5.1.4.1.1.130"
DICOMDIR = "1.2.840.10008.1.3.10"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT_LITTLE_ENDIAN, EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN})
UNCOMPRESSED = NATIVE | {DEFLATED_LITTLE_ENDIAN}
"""Encodings whose pixels stand one after the other, never in fragments (PS3.5 annex A)."""

META_SOP_CLASS = BaseTag(0x00020002)
META_TRANSFER_SYNTAX = BaseTag(0x00020010)
SOP_CLASS = tag_of("SOPClassUID")
MODALITY = tag_of("Modality")
ROWS = tag_of("Rows")
COLUMNS = tag_of("Columns")
FRAMES = tag_of("NumberOfFrames")
BITS_ALLOCATED = tag_of("BitsAllocated")
SAMPLES = tag_of("SamplesPerPixel")

IDENTITY_KEYWORDS = (
    *("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "PatientName"),
    *("PatientID", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID"),
)
GEOMETRY_KEYWORDS = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
)
KEYWORDS = (
    *IDENTITY_KEYWORDS,
    *GEOMETRY_KEYWORDS,
    *("ImageType", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "StudyTime"),
    *("SeriesTime", "AcquisitionTime", "ContentTime", "AcquisitionDateTime"),
    *("TimezoneOffsetFromUTC", "Manufacturer", "ManufacturerModelName", "SoftwareVersions"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "BodyPartExamined"),
    *("PatientSex", "PatientAge", "PatientSize", "PatientWeight", "PatientSpeciesDescription"),
    *("PatientPosition", "SliceThickness", "SpacingBetweenSlices", "ActualFrameDuration"),
    *("TriggerTime", "NominalInterval", "SeriesNumber", "InstanceNumber"),
    *("FrameOfReferenceUID", "TemporalPositionIdentifier", "NumberOfTemporalPositions"),
    *("TemporalPositionIndex", "SamplesPerPixel", "PhotometricInterpretation"),
    *("NumberOfFrames", "CorrectedImage", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPaddingValue", "BurnedInAnnotation", "RescaleIntercept"),
    *("RescaleSlope", "RescaleType", "LossyImageCompression"),
    *("RadiopharmaceuticalInformationSequence", "NumberOfRRIntervals", "NumberOfTimeSlots"),
    *("NumberOfSlices", "NumberOfTimeSlices", "SeriesType", "Units", "CountsSource"),
    *("AttenuationCorrectionMethod", "DecayCorrection", "ReconstructionMethod", "SUVType"),
    *("FrameReferenceTime", "DecayFactor", "DoseCalibrationFactor", "ImageIndex"),
    *("AttenuationCorrected", "DecayCorrected", "DecayCorrectionDateTime"),
    *("FrameAcquisitionDateTime", "FrameReferenceDateTime", "FrameAcquisitionDuration"),
    *("RealWorldValueMappingSequence", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "Radiopharmaceutical", "RadionuclideTotalDose"),
    *("RadionuclideHalfLife", "RadiopharmaceuticalStartTime", "RadionuclideCodeSequence"),
    *("RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalCodeSequence"),
)
"""All that is kept of a header; what is not on this list never leaves ``read_file``."""

_KEEP = {int(tag_of(keyword)): tag_of(keyword) for keyword in KEYWORDS}
_OF_OTHERS = frozenset(tag_of(keyword) for keyword in (*IDENTITY_KEYWORDS, *GEOMETRY_KEYWORDS))
_KEEP_META = {int(tag): tag for tag in (META_SOP_CLASS, META_TRANSFER_SYNTAX)}
_KEEP_PRIVATE = {
    0x0009: frozenset({0x0D, 0x3B}),  # GE: scan date and time, administration date and time
    0x0071: frozenset({0x22}),  # Siemens: scan date and time
    0x7053: frozenset({0x00, 0x09}),  # Philips: SUV factor, activity factor
}
_PREAMBLE = 128
_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One image: what was read of its file once and is not read again.

    Attributes
    ----------
    path
        The file. Never shown: names of files hold names of patients.
    elements
        Allow-listed elements as the file holds them; equal elements of a series are one object.
    transfer_syntax
        UID of the encoding.
    pixel_offset, pixel_length
        Bytes of the pixels in the file, or in the inflated data set of a deflated file; the length
        is that of all frames, or 0xFFFFFFFF where the pixels are encapsulated.
    size, modified_ns
        Of the file, when it was read.
    frame
        Which frame of a multi-frame file, from 0.
    """

    path: Path = field(repr=False)
    elements: Header = field(repr=False)
    transfer_syntax: str
    pixel_offset: int
    pixel_length: int
    size: int
    modified_ns: int
    frame: int = 0

    @property
    def header(self) -> Dataset:
        """A new data set of the kept elements, without pixels; writing to it changes it alone."""
        return Dataset(dict(self.elements))

    @property
    def fingerprint(self) -> tuple[int, int, int, int, str]:
        """Size, time and pixel place of the file, frame, and a hash of the kept header."""
        digest = blake2b(digest_size=16)
        values = [element.value or b"" for element in self.elements.values()]
        digest.update(repr([len(value) for value in values]).encode())
        digest.update(b"".join(values))
        return self.size, self.modified_ns, self.pixel_offset, self.frame, digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRead:
    """What became of one file: an image, or a reason.

    Attributes
    ----------
    instance
        The image, also where it has a fault but could be told apart; None where there is none.
    skip
        Reason why the file is no image, for the count table; empty otherwise.
    code, detail
        Fault of a file that should have been an image; empty where there is none.
    elements
        What was read before a fault: enough, often, to tell whose it is.
    """

    instance: Instance | None = field(default=None, repr=False)
    skip: str = ""
    code: str = ""
    detail: str = ""
    elements: Header = field(default_factory=dict, repr=False)


def read_file(path: Path, *, shared: dict[Encoding, Shared] | None = None) -> FileRead:
    """Read a file's header under limits; say what the file is, whatever it holds.

    Parameters
    ----------
    shared
        Elements of files read before; equal ones are kept once.
    """
    found = Walked()
    try:
        descriptor = open_regular(path)
    except OSError as error:
        return _unreadable(error)
    try:
        return _read_open(path, descriptor, {} if shared is None else shared, found)
    except FileError as error:
        return FileRead(code=error.code, detail=str(error), elements=found.elements)
    except OSError as error:
        return _unreadable(error)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> int:
    """Open a file for reading, without following a link and without waiting on a pipe."""
    return os.open(path, os.O_RDONLY | _CLOSE_ON_EXEC | _NO_FOLLOW)


def _unreadable(error: OSError) -> FileRead:
    detail = f"the file cannot be read ({error.strerror}): check the permissions and the disk"
    return FileRead(code="UNREADABLE", detail=detail)


def _read_open(
    path: Path, descriptor: int, shared: dict[Encoding, Shared], found: Walked
) -> FileRead:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return FileRead(skip="NOT_A_REGULAR_FILE")
    if status.st_size == 0:
        return FileRead(skip="EMPTY_FILE")
    source = Source(
        head=_read_head(descriptor, FIRST_READ_BYTES), size=status.st_size, grow=_grow(descriptor)
    )
    if source.head[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        return FileRead(skip=_not_dicom(source.head))
    meta, start = _read_meta(source)
    sop_class, syntax = text(meta, META_SOP_CLASS), text(meta, META_TRANSFER_SYNTAX)
    if sop_class == DICOMDIR:
        return FileRead(skip="DICOMDIR")
    if not _may_be_image(sop_class):
        return FileRead(skip="NOT_AN_IMAGE")
    if source.size > MAX_FILE_BYTES:
        raise FileError(
            "FILE_LIMIT",
            f"the file has {source.size} bytes, more than {MAX_FILE_BYTES}: no PET is so large",
        )
    if syntax == DEFLATED_LITTLE_ENDIAN:
        source, start = inflated(source, start), 0
    encoding = _encoding(syntax)
    dicom_walk.walk(
        source,
        start,
        encoding=encoding,
        keep=_KEEP,
        keep_private=_KEEP_PRIVATE,
        shared=shared.setdefault(encoding, {}),
        found=found,
    )
    return _image(path, status, syntax, found, sop_class, source.size)


def _not_dicom(head: bytes) -> str:
    """Tell a data set written without its preamble, which would need guessing, from other files."""
    starts_like_data_set = head[:2] in {b"\x08\x00", b"\x00\x08", b"\x02\x00"} and len(head) > 8
    return "NO_DICOM_PREAMBLE" if starts_like_data_set else "NOT_DICOM"


def _read_head(descriptor: int, length: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    blocks, missing = [], length
    while missing > 0 and (block := os.read(descriptor, missing)):
        blocks.append(block)
        missing -= len(block)
    return b"".join(blocks)


def _grow(descriptor: int) -> Callable[[int], bytes]:
    def grow(end: int) -> bytes:
        head = _read_head(descriptor, max(2 * end, 4 * FIRST_READ_BYTES))
        if len(head) < end:
            raise FileError(
                "UNREADABLE",
                "the file became shorter while it was read: is it still being written?",
            )
        return head

    return grow


def _read_meta(source: Source) -> tuple[dict[BaseTag, RawDataElement], int]:
    """Return the wanted file meta elements and where the data set starts (PS3.10 table 7.1-1)."""
    read = dicom_walk.reader(dicom_walk.EXPLICIT_LITTLE)
    meta: dict[BaseTag, RawDataElement] = {}
    place = _PREAMBLE + 4
    while place + 8 <= source.size:
        head = source.need(min(place + 12, source.size), META_TRANSFER_SYNTAX)
        if head[place : place + 2] != b"\x02\x00":
            break
        tag, _, length, start = read(head, place)
        place = start + length
        head = source.need(place, tag)
        known = _KEEP_META.get(tag)
        if known is not None:
            value = head[start:place]
            meta[known] = RawDataElement(known, "UI", length, value, 0, False, True)
    return meta, place


def data_set_start(source: Source) -> int:
    """Return where the data set begins, after the file meta information."""
    return _read_meta(source)[1]


@lru_cache(maxsize=256)
def _may_be_image(sop_class: str) -> bool:
    """Tell image classes, and classes the standard does not know, from all that is no image."""
    name = UID(sop_class, config.IGNORE).name
    return name == sop_class or "Image Storage" in name


def _encoding(syntax: str) -> Encoding:
    if not syntax:
        raise FileError(
            "PARSE_ERROR",
            "TransferSyntaxUID (0002,0010) is missing: how the data set is written cannot be "
            "known; export the file again",
        )
    return Encoding(explicit=syntax != IMPLICIT_LITTLE_ENDIAN, little=syntax != EXPLICIT_BIG_ENDIAN)


def inflated(source: Source, start: int) -> Source:
    """Return the data set of a deflated file, uncompressed, refusing a decompression bomb.

    Raises
    ------
    FileError
        ``PARSE_ERROR`` for bytes that do not inflate, ``FILE_LIMIT`` for a bomb.
    """
    whole_file = source.head if len(source.head) >= source.size else source.grow(source.size)
    limit = min(MAX_INFLATION * source.size, MAX_PIXEL_BYTES)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(whole_file[start:], limit)
    except zlib.error:
        raise FileError(
            "PARSE_ERROR", "the deflated data set does not inflate: the file is damaged"
        ) from None
    if stream.unconsumed_tail:
        raise FileError(
            "FILE_LIMIT", f"the deflated data set inflates to more than {limit} bytes: leave it out"
        )
    return Source(head=content, size=len(content), grow=lambda _: content)


def _image(
    path: Path, status: os.stat_result, syntax: str, found: Walked, meta_class: str, end: int
) -> FileRead:
    elements = found.elements
    sop_class = text(elements, SOP_CLASS) or meta_class
    is_pet = text(elements, MODALITY) == "PT" or sop_class in {PET, ENHANCED_PET}
    has_picture = found.pixel_tag != 0 and ROWS in elements
    if not _may_be_image(sop_class) or not (has_picture or is_pet):
        return FileRead(skip="NOT_AN_IMAGE")
    kept = elements if is_pet else {tag: elements[tag] for tag in elements if tag in _OF_OTHERS}
    instance = Instance(
        path=path,
        elements=kept,
        transfer_syntax=syntax,
        pixel_offset=found.pixel_offset,
        pixel_length=found.pixel_length,
        size=status.st_size,
        modified_ns=status.st_mtime_ns,
    )
    code, detail = _pixel_fault(instance, found, end) if is_pet else ("", "")
    return FileRead(instance=instance, code=code, detail=detail, elements=kept)


def _pixel_fault(instance: Instance, found: Walked, end: int) -> tuple[str, str]:
    """Compare what the header says of the pixels with what is there, before any decoding.

    Parameters
    ----------
    end
        Bytes of the file, or of the inflated data set of a deflated file.
    """
    if found.pixel_tag == 0:
        return (
            "PIXEL_TRUNCATED",
            "PixelData (7FE0,0010) is missing: there is no picture in the file",
        )
    if found.pixel_tag != dicom_walk.PIXEL_DATA:
        return (
            "PIXEL_FORMAT",
            f"the pixels are those of {dicom_walk.tag_name(found.pixel_tag)}, not PixelData "
            "(7FE0,0010): floating-point pixels are not what a PET scanner stores",
        )
    rows, columns, bits, samples = (
        whole(instance.elements, tag) or 0 for tag in (ROWS, COLUMNS, BITS_ALLOCATED, SAMPLES)
    )
    frames = whole(instance.elements, FRAMES) if FRAMES in instance.elements else 1
    if min(rows, columns, bits) < 1 or frames is None or frames < 1:
        return (
            "PARSE_ERROR",
            f"Rows (0028,0010) {rows}, Columns (0028,0011) {columns}, BitsAllocated (0028,0100) "
            f"{bits}, NumberOfFrames (0028,0008) {frames}: not the size of a picture",
        )
    expected = rows * columns * frames * max(samples, 1) * ((bits + 7) // 8)
    if instance.pixel_length == dicom_walk.UNDEFINED:
        return _fragments_fault(instance, expected)
    return _native_fault(instance, expected, end)


def _fragments_fault(instance: Instance, expected: int) -> tuple[str, str]:
    """Judge encapsulated pixels that are to decode to so many bytes."""
    if instance.transfer_syntax in UNCOMPRESSED:
        return (
            "PARSE_ERROR",
            "PixelData (7FE0,0010) comes in fragments, as compressed pixels do, but "
            "TransferSyntaxUID (0002,0010) names an encoding without compression: where the values "
            "begin is unknown; export the file again",
        )
    if expected > min(MAX_PIXEL_BYTES, MAX_INFLATION * instance.size):
        return _too_many_pixels(instance, expected)
    return "", ""


def _native_fault(instance: Instance, expected: int, end: int) -> tuple[str, str]:
    """Judge pixels that are to be so many bytes as they are."""
    held = instance.pixel_length
    present = min(held, max(end - instance.pixel_offset, 0))
    if held < expected or present < held:
        return (
            "PIXEL_TRUNCATED",
            f"PixelData (7FE0,0010) has {present} bytes, {expected} are needed: the file was cut; "
            "export it again",
        )
    if expected > MAX_PIXEL_BYTES:
        return _too_many_pixels(instance, expected)
    if held > expected + expected % 2:
        return (
            "PARSE_ERROR",
            f"PixelData (7FE0,0010) has {held} bytes, {expected} are expected: the header does not "
            "describe these pixels",
        )
    return "", ""


def _too_many_pixels(instance: Instance, expected: int) -> tuple[str, str]:
    return (
        "FILE_LIMIT",
        f"the pixels would take {expected} bytes in memory, from a file of {instance.size}: more "
        "than a PET series needs; leave the file out",
    )
