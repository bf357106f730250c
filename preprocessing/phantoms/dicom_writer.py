"""DICOM series written fast: what a series shares is encoded once, slices differ in few bytes.

The elements follow PS3.3 A.21 (PET Image IOD) and A.3 (CT Image IOD). The private block is GE's
``GEMS_PETD_01``. All identifiers are invented; they exist so that de-identification is exercised.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int16
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ImplicitVRLittleEndian

STORED_MAXIMUM = 32766
EMPTY_SLICE_SLOPE = 0.01
_PREAMBLE = b"\0" * 128 + b"DICM"
_LONG_VRS = frozenset({"OB", "OW", "SQ", "UN", "UT"})
_IMPLEMENTATION_UID = UID("2.25.168253498235412")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSlices:
    """Whole numbers and the slope of each slice: value = stored * slope.

    Attributes
    ----------
    slopes
        The slopes as a reader of ``slope_texts`` gets them.
    slope_texts
        RescaleSlope (0028,1053), six significant digits as GE writes it.
    """

    stored: Int16[np.ndarray, "z y x"]
    slopes: Float64[np.ndarray, " z"]
    slope_texts: tuple[str, ...]


def store_slices(values: Float32[np.ndarray, "z y x"]) -> StoredSlices:
    """Scale each slice to the whole range of 16 bits, as GE and Siemens do."""
    maxima = values.max(axis=(1, 2)).astype(np.float64)
    wanted = np.where(maxima > 0, maxima / STORED_MAXIMUM, EMPTY_SLICE_SLOPE)
    texts = tuple(f"{slope:.6g}" for slope in wanted)
    slopes = np.array([float(text) for text in texts])
    stored = np.rint(values / slopes[:, None, None].astype(np.float32)).astype(np.int16)
    return StoredSlices(stored=stored, slopes=slopes, slope_texts=texts)


class SeriesEncoder:
    """Encodes the instances of one series.

    Parameters
    ----------
    shared
        What all instances have in common, in any order.
    varying
        Keywords that ``encode`` will be given for every instance; not in ``shared``.
    transfer_syntax_uid
        Implicit or explicit VR, little endian.
    """

    def __init__(
        self, shared: Dataset, *, varying: tuple[str, ...], transfer_syntax_uid: str
    ) -> None:
        self._transfer_syntax_uid = UID(transfer_syntax_uid)
        self._implicit = transfer_syntax_uid == ImplicitVRLittleEndian
        self._sop_class_uid = UID(shared.SOPClassUID)
        self._tags = sorted((_tag(keyword), keyword) for keyword in varying)
        bounds = [Tag(0, 0), *(tag for tag, _ in self._tags), Tag(0xFFFF, 0xFFFF)]
        self._blocks = [
            self._encode_block(shared, low, high) for low, high in itertools.pairwise(bounds)
        ]

    def encode(self, values: Mapping[str, str | int | bytes]) -> bytes:
        """Return one file: ``values`` maps each varying keyword to its text, number or bytes."""
        pieces = [_PREAMBLE, self._file_meta(str(values["SOPInstanceUID"])), self._blocks[0]]
        for (tag, keyword), block in zip(self._tags, self._blocks[1:], strict=True):
            pieces += [_encode_element(tag, values[keyword], implicit=self._implicit), block]
        return b"".join(pieces)

    def _encode_block(self, shared: Dataset, low: BaseTag, high: BaseTag) -> bytes:
        block = Dataset()
        block.update({element.tag: element for element in shared if low < element.tag < high})
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, self._implicit
        write_dataset(buffer, block)
        return buffer.getvalue()

    def _file_meta(self, sop_instance_uid: str) -> bytes:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = self._sop_class_uid
        meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
        meta.TransferSyntaxUID = self._transfer_syntax_uid
        meta.ImplementationClassUID = _IMPLEMENTATION_UID
        buffer = DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, False
        write_file_meta_info(buffer, meta)
        return buffer.getvalue()


def write_files(files: Iterator[tuple[Path, bytes]]) -> None:
    """Write files, making their folders."""
    made: set[Path] = set()
    for path, content in files:
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(content)


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword!r} is no keyword of the DICOM data dictionary")
    return Tag(tag)


def _encode_element(tag: BaseTag, value: str | int | bytes, *, implicit: bool) -> bytes:
    """Encode one element as PS3.5 section 7.1 says, for text, US, SS and pixel data."""
    vr = "OW" if isinstance(value, bytes) else dictionary_VR(tag)
    if isinstance(value, str):
        content = value.encode("ascii")
        content += (b"\0" if vr == "UI" else b" ") * (len(content) % 2)
    elif isinstance(value, int):
        vr = "SS" if vr == "US or SS" else vr
        content = struct.pack("<h" if vr == "SS" else "<H", value)
    else:
        content = value
    head = struct.pack("<HH", tag.group, tag.element)
    if implicit:
        return head + struct.pack("<I", len(content)) + content
    if vr in _LONG_VRS:
        return head + vr.encode() + struct.pack("<HI", 0, len(content)) + content
    return head + vr.encode() + struct.pack("<H", len(content)) + content
