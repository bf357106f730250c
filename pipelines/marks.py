"""How a picture says that its map may not be believed: in words, and in the picture itself."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from jaxtyping import Float, UInt8

from pipelines.pictures import INK, QUIET

FRAME = 6
"""Width of the frame round a marked picture, in pixels."""
STROKE = 3.0
COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {"sound": INK, "doubtful": (156, 92, 0), "refused": (163, 21, 21), "": QUIET}
)
"""Verdict -> colour of its word and frame, dark enough to be read on white."""


def label_of(word: str) -> str:
    """Return a verdict as it is written under a picture."""
    return {"": "not checked", "refused": "REFUSED"}.get(word, word)


def marked(
    picture: UInt8[np.ndarray, "row column 3"], word: str
) -> UInt8[np.ndarray, "row column 3"]:
    """Frame a doubtful picture; frame a refused one and strike it through.

    Pictures of other verdicts come back as they are.
    """
    if word not in ("doubtful", "refused"):
        return picture
    result = picture.copy()
    if word == "refused":
        distance = _distance_to_diagonals(picture.shape[0], picture.shape[1])[..., None]
        halo, line = 0.8 * (distance < 2 * STROKE), distance < STROKE
        result = np.rint(result * (1 - halo) + 255 * halo).astype(np.uint8)
        result = np.where(line, np.array(COLOURS[word], dtype=np.uint8), result)
    for edge in (np.s_[:FRAME], np.s_[-FRAME:], np.s_[:, :FRAME], np.s_[:, -FRAME:]):
        result[edge] = COLOURS[word]
    return result


def _distance_to_diagonals(rows: int, columns: int) -> Float[np.ndarray, "{rows} {columns}"]:
    row, column = np.mgrid[:rows, :columns].astype(np.float32)
    length = np.hypot(rows, columns)
    falling = np.abs(row * columns - column * rows) / length
    rising = np.abs(row * columns - (columns - 1 - column) * rows) / length
    return np.minimum(falling, rising)
