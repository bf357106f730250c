"""The part of a slice that a brain takes, so that scoring and resampling skip what is 0 anyway.

A brain fills a third of its slice, and half a brain a sixth. Resampling maps whole blocks of pixels
onto whole blocks (240 to 256 pixels: 15 onto 16), and inside such blocks it does not matter where
the picture ends, as long as its outermost pixels are 0.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

Box = tuple[slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainBox:
    """Rows and columns.

    Attributes
    ----------
    source
        Of the stored slice: outside there is no brain.
    target
        Of the resampled one: what the source becomes.
    """

    source: Box
    target: Box

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the target."""
        rows, columns = self.target
        return rows.stop - rows.start, columns.stop - columns.start


def brain_box(image: Shaped[np.ndarray, "c p q"], size: tuple[int, int]) -> BrainBox | None:
    """Find the smallest box of whole blocks that holds all brain; None where there is no brain."""
    brain = image[0] != 0
    for channel in image[1:]:
        brain |= channel != 0
    columns = np.flatnonzero(brain.any(axis=0))
    if not len(columns):
        return None
    # only the columns that count are looked at again: a row of them is soon read
    rows = np.flatnonzero(brain[:, columns[0] : columns[-1] + 1].any(axis=1))
    found = [
        _blocks(places, before, after)
        for places, before, after in zip((rows, columns), brain.shape, size, strict=True)
    ]
    return BrainBox(source=(found[0][0], found[1][0]), target=(found[0][1], found[1][1]))


def _blocks(places: Shaped[np.ndarray, " n"], before: int, after: int) -> tuple[slice, slice]:
    """Widen the extent of ``places`` by a pixel of background, and to whole blocks."""
    common = math.gcd(before, after)
    source, target = before // common, after // common
    first = max(int(places[0]) - 1, 0) // source
    last = -(-min(int(places[-1]) + 2, before) // source)
    return slice(first * source, last * source), slice(first * target, last * target)
