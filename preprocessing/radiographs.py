"""One PNG of anybody to one grey picture, or a reason why not.

Declared sizes are looked at before anything is decoded, checksums before pixels are believed.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from preprocessing.errors import FileError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_FILE_BYTES = 64 << 20
MAX_SIDE = 4096
OPAQUE = 255
BITS = 8
_HEADER = struct.Struct(">8s4x4sIIBB")
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def read_grey(path: Path) -> tuple[UInt8[np.ndarray, "row column"], str]:
    """Read an 8-bit PNG as grey values.

    Returns
    -------
    pixels
        As stored; of a coloured file, whose channels must be equal, one channel.
    mode
        ``grey``, or what the file stored instead: ``rgba``, ``rgb``, ``la``, ``palette``.

    Raises
    ------
    FileError
        ``CXR_UNREADABLE``: no PNG, cut off, or a checksum does not match; ``CXR_SIZE``: larger than
        any radiograph of the release; ``CXR_DEPTH``: not 8 bits; ``CXR_COLOUR``: the channels
        differ or something is transparent, so it is no plain radiograph.
    """
    content = _content(path)
    _check_header(content)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            image.verify()
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            mode = image.mode
            pixels = np.array(image.convert("RGBA") if mode == "P" else image)
    except _DECODER_ERRORS:
        raise _unreadable("cut off or damaged") from None
    if mode == "L":
        return pixels, "grey"
    return _one_channel(pixels), "palette" if mode == "P" else mode.lower()


def resized(
    pixels: UInt8[np.ndarray, "row column"], size: int
) -> UInt8[np.ndarray, "{size} {size}"]:
    """Resample to a square by a triangular kernel, widened where the picture gets smaller.

    Pixel i covers i to i + 1, so that a place x becomes x * size / columns.
    """
    if pixels.shape == (size, size):
        return pixels
    picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(picture)


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise _unreadable(error.strerror or "not readable") from None
    if len(content) > MAX_FILE_BYTES:
        raise FileError(
            "CXR_SIZE",
            f"the image file has more than {MAX_FILE_BYTES >> 20} MiB: fetch the original",
        )
    return content


def _check_header(content: bytes) -> None:
    if len(content) < _HEADER.size:
        raise _unreadable("cut off")
    signature, kind, columns, rows, bits, _ = _HEADER.unpack_from(content)
    if signature != SIGNATURE or kind != b"IHDR":
        raise _unreadable("no PNG")
    if not (0 < columns <= MAX_SIDE and 0 < rows <= MAX_SIDE):
        raise FileError(
            "CXR_SIZE", f"the image says it has {rows} x {columns} pixels: fetch the original"
        )
    if bits != BITS:
        raise FileError(
            "CXR_DEPTH",
            f"the image has {bits} bits per value, the release has {BITS}: fetch the original",
        )


def _one_channel(
    pixels: UInt8[np.ndarray, "row column channel"],
) -> UInt8[np.ndarray, "row column"]:
    colours = pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels
    is_opaque = colours is pixels or bool((pixels[..., -1] == OPAQUE).all())
    if not is_opaque or (colours != colours[..., :1]).any():
        raise FileError(
            "CXR_COLOUR",
            "the image has colours or transparent parts, so it is no plain radiograph: fetch the "
            "original",
        )
    return np.ascontiguousarray(colours[..., 0])


def _unreadable(reason: str) -> FileError:
    return FileError(
        "CXR_UNREADABLE", f"the image cannot be read as PNG ({reason}): fetch it again"
    )
