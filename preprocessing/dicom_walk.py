"""Walk over encoded DICOM data elements under limits, before anything interprets their values.

pydicom trusts the lengths in a file: a sequence nested 300 deep exhausts the stack, a declared
length of gigabytes is allocated. Scans from anywhere need bounds first. The walk visits the
elements of one data set once, keeps the raw bytes of those on a list, notes where the pixels lie,
and leaves the interpretation of values to pydicom (``RawDataElement``).

References
----------
DICOM PS3.5 section 7.1 (data elements), 7.5 (nesting), A.4 (encapsulated pixels).
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag

from preprocessing.errors import FileError

MAX_HEADER_BYTES = 64 * 2**20
MAX_ELEMENTS = 100_000
MAX_DEPTH = 64

PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, PIXEL_DATA})
ITEM = 0xFFFEE000
ITEM_END = 0xFFFEE00D
SEQUENCE_END = 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF
LONG_VRS = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
SHORT_VRS = frozenset(
    {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN"}
    | {b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}
)
VR_NAMES = {vr: vr.decode("ascii") for vr in LONG_VRS | SHORT_VRS}


Shared = dict[tuple[int, bytes, bytes], RawDataElement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How elements are written: VR in the file or not, and the byte order."""

    explicit: bool
    little: bool

    @property
    def order(self) -> str:
        """Byte order as ``struct`` writes it."""
        return "<" if self.little else ">"


IMPLICIT_LITTLE = Encoding(explicit=False, little=True)
EXPLICIT_LITTLE = Encoding(explicit=True, little=True)


@dataclass(slots=True, kw_only=True)
class Source:
    """The first bytes of a file, and more of them where the header is longer.

    Attributes
    ----------
    head
        What has been read.
    size
        Length of the whole file.
    grow
        Returns at least so many bytes from the start of the file, or all there are.
    """

    head: bytes
    size: int
    grow: Callable[[int], bytes]

    def need(self, end: int, tag: int) -> bytes:
        """Return a head that reaches ``end``.

        Raises
        ------
        FileError
            ``PARSE_ERROR`` where the file ends before, ``FILE_LIMIT`` where the header is huge.
        """
        if end > self.size:
            raise FileError(
                "PARSE_ERROR",
                f"the value of {tag_name(tag)} runs to byte {end}, the file has {self.size}: it "
                "was cut or damaged; export it again",
            )
        if end > MAX_HEADER_BYTES:
            raise FileError(
                "FILE_LIMIT",
                f"the header is longer than {MAX_HEADER_BYTES} bytes at {tag_name(tag)}: no "
                "scanner writes that; leave the file out",
            )
        if end > len(self.head):
            self.head = self.grow(end)
        return self.head


@dataclass(slots=True, kw_only=True)
class Walked:
    """What one walk found.

    Attributes
    ----------
    elements
        Kept elements by tag, with the bytes as they are in the file.
    pixel_tag, pixel_offset, pixel_length
        Place of the pixel element's value in the file; 0, -1 and 0 without one. The length is
        ``UNDEFINED`` for encapsulated pixels.
    count
        Elements visited, nested ones included.
    """

    elements: dict[BaseTag, RawDataElement] = field(default_factory=dict)
    pixel_tag: int = 0
    pixel_offset: int = -1
    pixel_length: int = 0
    count: int = 0


def tag_name(tag: int) -> str:
    """Return ``(gggg,eeee)``."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def walk(
    source: Source,
    start: int,
    *,
    encoding: Encoding,
    keep: Mapping[int, BaseTag],
    keep_private: Mapping[int, frozenset[int]],
    shared: Shared,
    found: Walked,
) -> None:
    """Visit the data set from ``start`` to its pixels, or to the end of the file.

    Parameters
    ----------
    keep
        Standard tags whose bytes are wanted.
    keep_private
        Private groups: the low bytes wanted of their elements; private creators are kept too.
    shared
        Elements kept from files before, of one encoding: an equal element becomes the same object,
        so that a series' headers cost little to keep, to compare and to send to another process.
    found
        Filled as the walk goes, so that it names the patient and series even of a file that turns
        out to be damaged further on.

    Raises
    ------
    FileError
        ``PARSE_ERROR`` for what breaks the encoding, ``FILE_LIMIT`` for what exceeds the limits.
    """
    read = reader(encoding)
    place = start
    while place < source.size:
        if place + 12 > len(source.head):
            source.need(min(place + 12, source.size), 0)
        tag, vr, length, place = read(source.head, place)
        found.count += 1
        if tag in PIXEL_TAGS:
            found.pixel_tag, found.pixel_offset, found.pixel_length = tag, place, length
            return
        if length == UNDEFINED:
            value_end, place_after = _undefined_end(source, place, encoding, vr, found)
        else:
            value_end = place_after = place + length
            if value_end > len(source.head):
                source.need(value_end, tag)
        if found.count > MAX_ELEMENTS:
            raise _too_many(tag)
        known = keep.get(tag)
        if known is None and tag >> 16 in keep_private:
            known = _private(tag, keep_private[tag >> 16])
        if known is not None:
            value = source.head[place:value_end]
            found.elements[known] = shared.get((tag, vr, value)) or _kept(
                known, vr, value, encoding, shared, found
            )
        place = place_after


def _kept(
    tag: BaseTag,
    vr: bytes,
    value: bytes,
    encoding: Encoding,
    shared: Shared,
    found: Walked,
) -> RawDataElement:
    name, inner = VR_NAMES.get(vr), encoding
    if vr == b"SQ" or value[:4] in _ITEM_STARTS:
        if vr == b"UN":  # a sequence that a writer did not know (PS3.5 section 6.2.2, note 2)
            name, inner = "SQ", IMPLICIT_LITTLE
        _check_nested(value, inner, tag, found)
    implicit, little = not inner.explicit, inner.little
    element = RawDataElement(tag, name, len(value), value, 0, implicit, little)
    shared[tag, vr, value] = element
    return element


_ITEM_STARTS = frozenset({b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"})
Read = Callable[[bytes, int], tuple[int, bytes, int, int]]


@cache
def reader(encoding: Encoding) -> Read:
    """Return a function: (buffer, place) -> (tag, VR, length, place of the value)."""
    explicit_header = struct.Struct(encoding.order + "HH2sH").unpack_from
    implicit_header = struct.Struct(encoding.order + "HHL").unpack_from
    long_length = struct.Struct(encoding.order + "L").unpack_from

    def read_explicit(buffer: bytes, place: int) -> tuple[int, bytes, int, int]:
        try:
            group, element, vr, length = explicit_header(buffer, place)
            tag = group << 16 | element
            if group == 0xFFFE:
                return tag, b"", long_length(buffer, place + 4)[0], place + 8
            if vr in SHORT_VRS:
                return tag, vr, length, place + 8
            if vr in LONG_VRS:
                return tag, vr, long_length(buffer, place + 8)[0], place + 12
        except struct.error:
            raise _cut(place) from None
        raise FileError(
            "PARSE_ERROR",
            f"{tag_name(tag)} has the value representation {vr!r}, which DICOM does not define: "
            "the file is damaged; export it again",
        )

    def read_implicit(buffer: bytes, place: int) -> tuple[int, bytes, int, int]:
        try:
            group, element, length = implicit_header(buffer, place)
        except struct.error:
            raise _cut(place) from None
        return group << 16 | element, b"", length, place + 8

    return read_explicit if encoding.explicit else read_implicit


def _cut(place: int) -> FileError:
    return FileError(
        "PARSE_ERROR",
        f"the file ends inside the element that begins at byte {place}: it was cut or bytes were "
        "added; export it again",
    )


def _too_many(tag: int) -> FileError:
    return FileError(
        "FILE_LIMIT",
        f"more than {MAX_ELEMENTS} elements before {tag_name(tag)}: no scanner writes that; leave "
        "the file out",
    )


def _private(tag: int, wanted: frozenset[int]) -> BaseTag | None:
    element = tag & 0xFFFF
    is_creator = 0x10 <= element <= 0xFF
    return Tag(tag) if is_creator or (element > 0xFF and element & 0xFF in wanted) else None


def _undefined_end(
    source: Source, place: int, encoding: Encoding, vr: bytes, found: Walked
) -> tuple[int, int]:
    """Return the end of a sequence's items, and the end of its delimiter.

    A sequence of undefined length with VR UN is written as implicit VR little endian, whatever the
    data set is (PS3.5 section 6.2.2, note 2).
    """
    read = reader(IMPLICIT_LITTLE if vr == b"UN" else encoding)
    stack = [(SEQUENCE_END, read)]
    while stack:
        if place + 12 > len(source.head):
            source.need(min(place + 12, source.size), SEQUENCE_END)
        end_tag, read = stack[-1]
        tag, vr, length, value = read(source.head, place)
        found.count += 1
        if found.count > MAX_ELEMENTS:
            raise _too_many(tag)
        if len(stack) > 2 * MAX_DEPTH:
            raise _too_deep()
        if tag in {ITEM_END, SEQUENCE_END}:
            if tag != end_tag:
                raise _unbalanced(value)
            stack.pop()
            if not stack:
                return place, value
            place = value
        elif length == UNDEFINED:
            inner = reader(IMPLICIT_LITTLE) if vr == b"UN" else read
            stack.append((ITEM_END if tag == ITEM else SEQUENCE_END, inner))
            place = value
        else:
            # The contents of an item or sequence of known length need no visit to be skipped.
            place = value + length
            if place > len(source.head):
                source.need(place, tag)
    raise _unbalanced(place)


def _check_nested(value: bytes, encoding: Encoding, tag: int, found: Walked) -> None:
    """Refuse a kept sequence that is nested too deeply or whose lengths do not add up."""
    pending = [(value, encoding, 1)]
    while pending:
        block, coded, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        read, place = reader(coded), 0
        while place < len(block):
            inner, vr, length, start = read(block, place)
            found.count += 1
            if found.count > MAX_ELEMENTS:
                raise _too_many(inner)
            if length == UNDEFINED or inner in {ITEM, ITEM_END, SEQUENCE_END}:
                depth, place = depth + _step(inner, length), start
                if depth > MAX_DEPTH:
                    raise _too_deep()
                continue
            place = start + length
            if place > len(block):
                raise FileError(
                    "PARSE_ERROR",
                    f"{tag_name(inner)} inside {tag_name(tag)} is longer than what holds it: the "
                    "file is damaged; export it again",
                )
            nested = block[start : start + 4] in _ITEM_STARTS
            if vr == b"SQ" or (nested and vr in {b"", b"UN"}):
                pending.append(
                    (block[start:place], IMPLICIT_LITTLE if vr == b"UN" else coded, depth + 1)
                )


def _step(tag: int, length: int) -> int:
    """Depth gained by a marker: a sequence of undefined length opens, its delimiter closes."""
    if tag == SEQUENCE_END:
        return -1
    return int(tag not in {ITEM, ITEM_END} and length == UNDEFINED)


def _too_deep() -> FileError:
    return FileError(
        "PARSE_ERROR",
        f"sequences are nested deeper than {MAX_DEPTH}: the file is damaged or made to crash "
        "readers; leave it out",
    )


def _unbalanced(place: int) -> FileError:
    return FileError(
        "PARSE_ERROR",
        f"a sequence or item ends that never began, before byte {place}: the file is damaged; "
        "export it again",
    )
