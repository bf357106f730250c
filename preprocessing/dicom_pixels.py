"""The stored values of one slice.

Native pixels are read straight from their place in the file. Encapsulated, deflated and big-endian
pixels go through pydicom's decoders, which need a plugin for the JPEG family.
"""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, UInt16
from pydicom import config
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from preprocessing import dicom_file
from preprocessing.dicom_file import Instance, data_set_start, inflated, open_regular
from preprocessing.dicom_values import attribute_name, tag_of
from preprocessing.dicom_walk import UNDEFINED, Source
from preprocessing.errors import FileError
from preprocessing.raw_elements import text, whole

Stored = Int16[np.ndarray, "row column"] | UInt16[np.ndarray, "row column"]

LOSSY_SYNTAXES = frozenset(
    {
        *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81"),
        *("1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.103"),
    }
)
"""Encodings that always lose something: JPEG baseline and extended, near-lossless JPEG-LS, MPEG."""
DECODER_FAULTS = (
    *(RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError, OSError),
    *(struct.error, NotImplementedError),
)
"""What pydicom and its plugins raise on damaged pixels."""

BITS_ALLOCATED = tag_of("BitsAllocated")
BITS_STORED = tag_of("BitsStored")
HIGH_BIT = tag_of("HighBit")
LOSSY = tag_of("LossyImageCompression")
PADDING = tag_of("PixelPaddingValue")
PHOTOMETRIC = tag_of("PhotometricInterpretation")
REPRESENTATION = tag_of("PixelRepresentation")
SAMPLES = tag_of("SamplesPerPixel")
PIXEL_TAGS = (
    *(dicom_file.ROWS, dicom_file.COLUMNS, dicom_file.FRAMES, BITS_ALLOCATED, BITS_STORED),
    *(HIGH_BIT, LOSSY, PADDING, PHOTOMETRIC, REPRESENTATION, SAMPLES),
)
"""All that decoding reads of a header."""


def check_format(instance: Instance) -> None:
    """Refuse pixels that are not those of a PET slice, or that nothing here can decode.

    Raises
    ------
    FileError
        ``PIXEL_FORMAT`` for colour, 8 bits and the like; ``LOSSY``; ``CODEC_MISSING``.
    """
    elements = instance.elements
    bits, stored = whole(elements, BITS_ALLOCATED), whole(elements, BITS_STORED)
    high, samples = whole(elements, HIGH_BIT), whole(elements, SAMPLES)
    photometric = text(elements, PHOTOMETRIC)
    unfit = bits != 16 or stored is None or not 1 <= stored <= 16 or high not in {None, stored - 1}
    if unfit or samples not in {None, 1} or photometric != "MONOCHROME2":
        raise FileError(
            "PIXEL_FORMAT",
            f"{attribute_name('PhotometricInterpretation')} {photometric or 'absent'}, "
            f"{attribute_name('SamplesPerPixel')} {samples}, {attribute_name('BitsAllocated')} "
            f"{bits}, {attribute_name('BitsStored')} {stored}: PET pixels are MONOCHROME2 in 16 "
            "bits; this is a screenshot or a secondary capture",
        )
    if whole(elements, REPRESENTATION) not in {0, 1}:
        raise FileError(
            "PIXEL_FORMAT",
            f"{attribute_name('PixelRepresentation')} is neither 0 nor 1: the sign is unknown",
        )
    if text(elements, LOSSY) == "01" or instance.transfer_syntax in LOSSY_SYNTAXES:
        raise FileError(
            "LOSSY",
            f"{attribute_name('LossyImageCompression')}: the pixels were compressed with loss, "
            "their values are no measurement any more; export the original series",
        )
    if instance.pixel_length == UNDEFINED and not can_decode(instance.transfer_syntax):
        raise FileError(
            "CODEC_MISSING",
            f"no decoder is installed for {UID(instance.transfer_syntax, config.IGNORE).name}: "
            "pip install dualwitness[codecs]",
        )


@lru_cache(maxsize=64)
def can_decode(transfer_syntax: str) -> bool:
    """Tell whether pydicom has a decoder, and a plugin for it, for encapsulated pixels."""
    uid = UID(transfer_syntax, config.IGNORE)
    if not uid.is_valid:
        return False
    try:
        return get_decoder(uid).is_available
    except NotImplementedError:
        return False


def read_stored(instance: Instance) -> Stored:
    """Return the stored values of one slice, before any rescaling; padding becomes 0.

    Raises
    ------
    FileError
        ``UNREADABLE``, ``FILE_CHANGED`` (since its header was read), ``PIXEL_TRUNCATED`` or
        ``PIXEL_DECODE``.
    """
    elements = instance.elements
    rows, columns = whole(elements, dicom_file.ROWS) or 0, whole(elements, dicom_file.COLUMNS) or 0
    signed = whole(elements, REPRESENTATION) == 1
    if instance.pixel_length == UNDEFINED:
        values = _decoded(instance, rows, columns)
    else:
        order = ">" if instance.transfer_syntax == dicom_file.EXPLICIT_BIG_ENDIAN else "<"
        block = _native_bytes(instance, 2 * rows * columns)
        values = np.frombuffer(block, dtype=f"{order}{'i' if signed else 'u'}2")
        values = values.reshape(rows, columns)
    unused = 16 - (whole(elements, BITS_STORED) or 16)
    if unused:
        # Shifting up and down again drops what overlays left in unused bits, and keeps the sign.
        values = (values << unused) >> unused
    return _without_padding(instance, values)


def _without_padding(instance: Instance, values: Stored) -> Stored:
    element = instance.elements.get(PADDING)
    if element is None or len(element.value or b"") != 2:
        return values
    dtype = values.dtype.newbyteorder("<" if element.is_little_endian else ">")
    padding = np.frombuffer(element.value or b"", dtype=dtype)[0]
    return values if padding == 0 else np.where(values == padding, 0, values).astype(values.dtype)


def _native_bytes(instance: Instance, length: int) -> bytes | bytearray:
    if instance.transfer_syntax == dicom_file.DEFLATED_LITTLE_ENDIAN:
        return _inflated_bytes(instance, length)
    block = bytearray(length)
    view, held = memoryview(block), 0
    with _unchanged(instance) as stream:
        stream.seek(instance.pixel_offset + instance.frame * length)
        while held < length and (more := stream.readinto(view[held:])):
            held += more
    if held < length:
        raise _cut(held, length)
    return block


def _cut(held: int, needed: int) -> FileError:
    return FileError(
        "PIXEL_TRUNCATED", f"PixelData (7FE0,0010) has {held} bytes, {needed} are needed"
    )


def _inflated_bytes(instance: Instance, length: int) -> bytes:
    with _unchanged(instance) as stream:
        content = stream.read()
    source = Source(head=content, size=len(content), grow=lambda _: content)
    start = instance.pixel_offset + instance.frame * length
    block = inflated(source, data_set_start(source)).head[start : start + length]
    if len(block) < length:
        raise _cut(len(block), length)
    return block


def _decoded(instance: Instance, rows: int, columns: int) -> Stored:
    elements = instance.elements
    options: Any = {
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": whole(elements, dicom_file.FRAMES) or 1,
        "bits_allocated": 16,
        "bits_stored": whole(elements, BITS_STORED) or 16,
        "pixel_representation": whole(elements, REPRESENTATION) or 0,
        "pixel_keyword": "PixelData",
    }
    with _unchanged(instance) as stream:
        stream.seek(instance.pixel_offset)
        encapsulated = stream.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong for sure is an error, the rest is style
        try:
            decoder = get_decoder(UID(instance.transfer_syntax, config.IGNORE))
            values, _ = decoder.as_array(encapsulated, index=instance.frame, raw=True, **options)
        except DECODER_FAULTS as error:
            raise FileError(
                "PIXEL_DECODE",
                f"the compressed pixels cannot be decoded ({type(error).__name__}): the file is "
                "damaged; export it again",
            ) from None
    return values.reshape(rows, columns)


@contextmanager
def _unchanged(instance: Instance) -> Iterator[FileIO]:
    """Open the file, refusing one that is not the file whose header was read."""
    try:
        with FileIO(instance.path, opener=lambda path, _: open_regular(Path(path))) as stream:
            status = os.fstat(stream.fileno())
            if (status.st_size, status.st_mtime_ns) != (instance.size, instance.modified_ns):
                raise FileError(
                    "FILE_CHANGED",
                    "a file of the series changed while the data set was built: its header and its "
                    "pixels may not belong together; run the command again",
                )
            yield stream
    except OSError as error:
        raise FileError(
            "UNREADABLE", f"a file of the series cannot be read any more ({error.strerror})"
        ) from None
