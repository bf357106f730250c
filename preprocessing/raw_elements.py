"""Values of raw data elements that intake looks at in every slice, without the cost of conversion.

A ``Header`` maps tags to elements as the file holds them. These readers look at the bytes alone and
never repair a value: what is not exactly a number comes back as ``None``, and the caller, who knows
the consequence, raises. Whatever concerns SUV is read by ``preprocessing.dicom_values``.
"""

import math
import re
import struct
import warnings
from collections.abc import Mapping

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from preprocessing.dicom_values import tag_of

Header = Mapping[BaseTag, RawDataElement]

CHARACTER_SET = tag_of("SpecificCharacterSet")
_DECIMAL = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(rb"[+-]?\d{1,12}")
_BINARY_DECIMALS = {"FD": (8, "d"), "FL": (4, "f")}
_TEXT_DELIMITERS = {0x09, 0x0A, 0x0C, 0x0D}  # where ISO 2022 returns to the first character set


def raw(header: Header, tag: BaseTag) -> bytes:
    """Return an element's bytes without padding; empty where it is absent."""
    element = header.get(tag)
    return b"" if element is None or not element.value else element.value.strip(b" \0\t\r\n")


def text(header: Header, tag: BaseTag) -> str:
    """Return a code string, UID or number as text; bytes outside ASCII become ``?``."""
    return raw(header, tag).decode("ascii", "replace").replace("\ufffd", "?")


def words(header: Header, tag: BaseTag) -> tuple[str, ...]:
    """Return the values of a multi-valued code string in upper case; none where it is absent."""
    value = text(header, tag)
    return tuple(word.strip().upper() for word in value.split("\\")) if value else ()


def written_text(header: Header, tag: BaseTag) -> str:
    """Return what people wrote, in the file's character set; undecodable bytes are replaced."""
    value = raw(header, tag)
    if value.isascii():
        return value.decode("ascii")
    names = [name.strip() for name in text(header, CHARACTER_SET).split("\\")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong character set is common and costs only letters
        return decode_bytes(value, convert_encodings(names), _TEXT_DELIMITERS)


def decimals(header: Header, tag: BaseTag) -> tuple[float, ...] | None:
    """Return the numbers of a DS, FD or FL element; none where it is absent or empty.

    Returns
    -------
    tuple or None
        None where a value is not one finite decimal: ``70,5``, ``nan``, ``1e`` or nothing between
        two backslashes.
    """
    element = header.get(tag)
    if element is not None and element.VR in _BINARY_DECIMALS:
        return _binary_decimals(element)
    value = raw(header, tag)
    if not value:
        return ()
    parts = [part.strip() for part in value.split(b"\\")]
    if not all(_DECIMAL.fullmatch(part) for part in parts):
        return None
    return _finite(tuple(float(part) for part in parts))


def _binary_decimals(element: RawDataElement) -> tuple[float, ...] | None:
    width, code = _BINARY_DECIMALS[element.VR or ""]
    value = element.value or b""
    if len(value) % width:
        return None
    order = "<" if element.is_little_endian else ">"
    return _finite(struct.unpack(f"{order}{len(value) // width}{code}", value))


def _finite(numbers: tuple[float, ...]) -> tuple[float, ...] | None:
    return numbers if all(map(math.isfinite, numbers)) else None


def whole(header: Header, tag: BaseTag) -> int | None:
    """Return the number of a US or IS element; None where it is absent or not one whole number."""
    element = header.get(tag)
    if element is None or not element.value:
        return None
    if (element.VR or dictionary_VR(tag)) == "US":
        order = "little" if element.is_little_endian else "big"
        return int.from_bytes(element.value, order) if len(element.value) == 2 else None
    value = raw(header, tag)
    return int(value) if _WHOLE.fullmatch(value) else None
