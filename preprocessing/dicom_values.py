"""Strict readers of single DICOM attributes.

pydicom converts leniently where a header is wrong; a dose of ``70,5`` or ``1e`` must not become a
number here, nor an exception without a name. Every reader starts from the text of the element
(``element_text``), returns ``None`` where the attribute is absent or empty, and raises
``HeaderError`` for everything else that is not exactly what the standard's value representation
allows (PS3.5 section 6.2; the older forms with ``.`` and ``:`` that section names are read too).

Instants are seconds on one axis: 0 is midnight before 1 January of the year 1, so that two instants
can be subtracted whatever their dates. A message never repeats a date, a time or free text.
"""

import math
import re
import struct
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cache
from typing import Literal

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from preprocessing.errors import HeaderError

Vendor = Literal["GE", "SIEMENS", "PHILIPS", "OTHER", ""]

SECONDS_PER_DAY = 86400.0
SEQUENCE_FAULTS = (
    *(ValueError, TypeError, AttributeError, LookupError, NotImplementedError),
    *(EOFError, OSError, RecursionError, struct.error),
)
"""What pydicom raises while it parses the bytes of a broken sequence."""

_BINARY_FORMATS = {"FL": "f", "FD": "d", "US": "H", "SS": "h", "UL": "L", "SL": "l"}
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHOWABLE = re.compile(r"[-+0-9.,eE\\ naNAifIF]{1,16}")
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)|(\d{4})\.(\d\d)\.(\d\d)", re.ASCII)
_TIME = re.compile(
    r"(\d\d)(?:(\d\d)(?:(\d\d)(\.\d{1,6})?)?)?|(\d\d):(\d\d):(\d\d)(\.\d{1,6})?", re.ASCII
)
_DATETIME = re.compile(r"(\d{8})(\d{4}(?:\d\d(?:\.\d{1,6})?)?)([+-]\d{4})?", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d\d)(\d\d)", re.ASCII)

_VENDOR_PREFIXES: tuple[tuple[str, Vendor], ...] = (
    ("GE ", "GE"),
    ("GEMS ", "GE"),
    ("GENERAL ELECTRIC", "GE"),
    ("SIEMENS", "SIEMENS"),
    ("CPS ", "SIEMENS"),
    ("CTI ", "SIEMENS"),
    ("PHILIPS", "PHILIPS"),
    ("ADAC ", "PHILIPS"),
)


@cache
def tag_of(keyword: str) -> BaseTag:
    """Return the tag of a keyword of the standard.

    Raises
    ------
    ValueError
        If the standard has no such keyword: a mistake in the calling code.
    """
    number = tag_for_keyword(keyword)
    if number is None:
        raise ValueError(f"'{keyword}' is no keyword of the DICOM standard")
    return Tag(number)


def attribute_name(attribute: str | BaseTag) -> str:
    """Return ``PatientWeight (0010,1030)`` for a keyword, ``(0009,100D)`` for a private tag."""
    if isinstance(attribute, str):
        tag = tag_of(attribute)
        return f"{attribute} ({tag.group:04X},{tag.element:04X})"
    return f"({attribute.group:04X},{attribute.element:04X})"


@cache
def _standard_representation(tag: BaseTag) -> str:
    """Return the value representation that an implicit file leaves to the standard's dictionary."""
    return dictionary_VR(tag) if dictionary_has_tag(tag) else ""


def _raw_text(element: RawDataElement) -> str:
    value = element.value
    if not isinstance(value, bytes):
        return "" if value is None else str(value)
    representation = element.VR or _standard_representation(element.tag)
    layout = _BINARY_FORMATS.get(representation)
    if layout is None:
        return value.decode("latin-1").strip(" \0\t\r\n")
    size = struct.calcsize("=" + layout)
    if len(value) % size:
        raise HeaderError(
            "VALUE_INVALID",
            f"{attribute_name(element.tag)} holds {len(value)} bytes, no multiple of the {size} "
            f"bytes of one {representation}: the file is damaged; send it again from the archive",
        )
    order = "<" if element.is_little_endian else ">"
    return "\\".join(repr(v) for v in struct.unpack(f"{order}{len(value) // size}{layout}", value))


def element_text(dataset: Dataset, attribute: str | BaseTag) -> str:
    r"""Return an attribute's value as text without padding, several values joined by ``\``.

    Absent and empty attributes give ``""``. The element is not converted by pydicom, so the call
    neither costs a conversion nor changes the data set.

    Raises
    ------
    HeaderError
        ``VALUE_INVALID`` if a binary value has a wrong length; ``PARSE_ERROR`` if a value whose
        reading was put off can no longer be read.
    """
    tag = tag_of(attribute) if isinstance(attribute, str) else attribute
    element = stored_element(dataset, tag)
    if element is None:
        return ""
    if isinstance(element, RawDataElement):
        return _raw_text(element)
    value = element.value
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return "\\".join(_value_text(item) for item in value)
    return _value_text(value)


def stored_element(dataset: Dataset, tag: BaseTag) -> DataElement | RawDataElement | None:
    """Return an element as the data set holds it, ``None`` where it is absent.

    Raises
    ------
    HeaderError
        ``PARSE_ERROR`` if reading the value was put off (``defer_size``) and its file is gone.
    """
    try:
        return dataset.get_item(tag)
    except SEQUENCE_FAULTS as error:
        raise _parse_fault(tag, error) from None


def _parse_fault(tag: BaseTag, error: Exception) -> HeaderError:
    name = attribute_name(keyword_for_tag(tag) or tag)
    return HeaderError(
        "PARSE_ERROR",
        f"{name} cannot be parsed ({type(error).__name__}): the file is damaged or "
        "gone; send it again from the archive",
    )


def _value_text(value: object) -> str:
    """Return one value of a converted element as the standard writes it."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    elif isinstance(value, date | time):
        value = getattr(value, "original_string", None) or _instant_text(value)
    return str(value).strip(" \0\t\r\n")


def _instant_text(value: date | time) -> str:
    """Return a Python date, time or both as DA, TM or DT."""
    day = f"{value.year:04}{value:%m%d}" if isinstance(value, date) else ""
    if isinstance(value, date) and not isinstance(value, datetime):
        return day
    zone = f"{value:%z}"[:5] if isinstance(value, datetime) else ""
    return f"{day}{value:%H%M%S.%f}{zone}"


def seen(text: str) -> str:
    """Return a value in a form that is safe in a message: numbers as they are, text by length."""
    if not text:
        return "empty"
    if _SHOWABLE.fullmatch(text):
        return f"'{text}'"
    return f"a text of {len(text)} characters that is no number"


def parse_decimal(text: str, *, name: str, code: str = "VALUE_INVALID") -> float:
    """Return the one finite decimal in ``text`` (PS3.5, value representations DS and IS).

    Raises
    ------
    HeaderError
        ``code``, if the text is anything else: several values, a comma for the point, an unfinished
        exponent, NaN, an infinity.
    """
    stripped = text.strip()
    if _DECIMAL.fullmatch(stripped):
        value = float(stripped)
        if math.isfinite(value):
            return value
    raise HeaderError(
        code,
        f"{name} is {seen(stripped)}: not one finite decimal number with a point, so the series "
        "cannot be converted; correct the header",
    )


def read_decimal(
    dataset: Dataset, attribute: str | BaseTag, *, code: str = "VALUE_INVALID"
) -> float | None:
    """Return one finite decimal, or ``None`` where the attribute is absent or empty.

    Raises
    ------
    HeaderError
        ``code``, if the value is not one finite decimal.
    """
    text = element_text(dataset, attribute)
    return parse_decimal(text, name=attribute_name(attribute), code=code) if text else None


def read_decimals(
    dataset: Dataset, attribute: str | BaseTag, *, count: int, code: str = "VALUE_INVALID"
) -> tuple[float, ...] | None:
    """Return exactly ``count`` finite decimals, or ``None`` where absent or empty.

    Raises
    ------
    HeaderError
        ``code``, if there are more or fewer values or one is not a finite decimal.
    """
    text = element_text(dataset, attribute)
    if not text:
        return None
    name = attribute_name(attribute)
    parts = text.split("\\")
    if len(parts) != count:
        raise HeaderError(
            code, f"{name} holds {len(parts)} values where {count} are needed; correct the header"
        )
    return tuple(parse_decimal(part, name=name, code=code) for part in parts)


def _instant_fault(name: str, form: str, code: str) -> HeaderError:
    return HeaderError(
        code,
        f"{name} is not of the form {form}: the instant cannot be placed; correct the header",
    )


def parse_date(text: str, *, name: str, code: str = "TIME_INVALID") -> float:
    """Return the midnight that a DA value begins with, in seconds.

    Raises
    ------
    HeaderError
        ``code``, if the text is no date of the calendar.
    """
    match = _DATE.fullmatch(text.strip())
    if match:
        year, month, day = (int(part) for part in match.groups() if part)
        try:
            return date(year, month, day).toordinal() * SECONDS_PER_DAY
        except ValueError:
            pass
    raise _instant_fault(name, "YYYYMMDD", code)


def parse_time(text: str, *, name: str, code: str = "TIME_INVALID") -> float:
    """Return the seconds since midnight of a TM value (second 60 is a leap second).

    Raises
    ------
    HeaderError
        ``code``, if the text is no time of day.
    """
    match = _TIME.fullmatch(text.strip())
    if match:
        parts = match.groups()[:4] if match.group(1) else match.groups()[4:]
        hour, minute, second = (int(part or 0) for part in parts[:3])
        if hour < 24 and minute < 60 and second <= 60:
            return hour * 3600.0 + minute * 60.0 + second + float(parts[3] or 0)
    raise _instant_fault(name, "HHMMSS.FFFFFF", code)


def parse_offset(text: str, *, name: str, code: str = "TIME_INVALID") -> float:
    """Return the seconds east of UTC of ``+HHMM`` or ``-HHMM``.

    Raises
    ------
    HeaderError
        ``code``, if the text is no such offset or lies outside -12 to +14 hours.
    """
    match = _OFFSET.fullmatch(text.strip())
    if match:
        seconds = int(match.group(2)) * 3600.0 + int(match.group(3)) * 60.0
        seconds = -seconds if match.group(1) == "-" else seconds
        if -12 * 3600 <= seconds <= 14 * 3600 and int(match.group(3)) < 60:
            return seconds
    raise _instant_fault(name, "+HHMM", code)


def parse_datetime(
    text: str, *, name: str, utc_offset_s: float | None = None, code: str = "TIME_INVALID"
) -> float:
    """Return the instant of a DT value on the local axis of the other attributes, in seconds.

    Parameters
    ----------
    text
        ``YYYYMMDDHHMM[SS[.FFFFFF]]`` with an optional offset from UTC. A shorter value names a day
        or an hour, too coarse to decay a dose with, and is refused.
    name
        Attribute, for the message.
    utc_offset_s
        TimezoneOffsetFromUTC (0008,0201) in seconds: where the value carries an offset of its own
        it is moved to that zone. ``None`` takes the value's own zone for the local one.
    code
        Code of the refusal.

    Raises
    ------
    HeaderError
        ``code``, if the text is no such instant.
    """
    match = _DATETIME.fullmatch(text.strip())
    if match is None:
        raise _instant_fault(name, "YYYYMMDDHHMMSS.FFFFFF", code)
    day, time, offset = match.groups()
    local = parse_date(day, name=name, code=code) + parse_time(time, name=name, code=code)
    if offset is None or utc_offset_s is None:
        return local
    return local - parse_offset(offset, name=name, code=code) + utc_offset_s


def has_offset(text: str) -> bool:
    """Say whether a DT value states its offset from UTC."""
    match = _DATETIME.fullmatch(text.strip())
    return match is not None and match.group(3) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One item of a code sequence: value, coding scheme and meaning, upper case."""

    value: str
    scheme: str
    meaning: str


def read_items(dataset: Dataset, attribute: str | BaseTag) -> list[Dataset]:
    """Return the items of a sequence; none where it is absent, empty or no sequence.

    Raises
    ------
    HeaderError
        ``PARSE_ERROR`` if the bytes of the sequence cannot be parsed.
    """
    tag = tag_of(attribute) if isinstance(attribute, str) else attribute
    if tag not in dataset:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on character sets and values that nobody asks for
            value = dataset[tag].value
        items = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
    except SEQUENCE_FAULTS as error:
        raise _parse_fault(tag, error) from None
    return [item for item in items if isinstance(item, Dataset)]


def read_code(dataset: Dataset, attribute: str | BaseTag) -> Code | None:
    """Return the first item of a code sequence, or ``None`` where there is none.

    Raises
    ------
    HeaderError
        ``PARSE_ERROR`` if the bytes of the sequence cannot be parsed.
    """
    for item in read_items(dataset, attribute):
        fields = ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
        value, scheme, meaning = (element_text(item, field).upper() for field in fields)
        return Code(value=value, scheme=scheme, meaning=meaning)
    return None


def private_tag(
    dataset: Dataset, group: int, element: int, *, creator: str, allow_bare: bool = True
) -> tuple[BaseTag, bool] | None:
    """Find a private element by its creator, in whatever block the creator reserved.

    Parameters
    ----------
    dataset, group, element
        ``element`` is the low byte (0x0D of (0009,xx0D)).
    creator
        Private creator, without regard to case; one that only begins so comes after one that is so.
    allow_bare
        Where no creator reserved the block of such an element, as in much de-identified data, the
        element is taken all the same.

    Returns
    -------
    tuple or None
        The tag, and whether its creator names it; ``None`` where there is no such element.
    """
    wanted = creator.upper()
    begins = bare = None
    for tag in sorted(t for t in dataset.keys() if t >> 16 == group and t & 0xFF == element):  # noqa: SIM118
        block = (tag & 0xFFFF) >> 8
        if block < 0x10:
            continue
        owner = element_text(dataset, Tag(group, block)).upper()
        if owner == wanted:
            return Tag(tag), True
        if begins is None and owner.startswith(wanted):
            begins = Tag(tag)
        if not owner and bare is None:
            bare = Tag(tag)
    if begins is not None:
        return begins, True
    return (bare, False) if bare is not None and allow_bare else None


def vendor(manufacturer: str) -> Vendor:
    """Return the vendor class of a Manufacturer (0008,0070); ``""`` where it is empty.

    Beginnings are compared, short names as whole words: ``GE MEDICAL SYSTEMS`` is GE, ``GENERIC
    IMAGING`` is not.
    """
    words = re.sub(r"[^A-Z0-9]+", " ", manufacturer.upper()).strip()
    if not words:
        return ""
    for prefix, name in _VENDOR_PREFIXES:
        if f"{words} ".startswith(prefix):
            return name
    return "OTHER"
