"""An axial slice cut in two: where the cut runs, and which label each half gets.

Pictures lie as a radiologist sees them: row 0 is anterior, column 0 the patient's right. A cut
gives every pixel to exactly one half, so the halves add up to the slice, bit for bit.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from preprocessing.midline import CutLine

NO_TUMOUR, TUMOUR = 0, 1
CROSSING_MIDLINE, HALF_UNCLEAR, HALF_EMPTY = "CROSSING_MIDLINE", "HALF_UNCLEAR", "HALF_EMPTY"
Side = Literal["right", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """One half of a slice.

    Attributes
    ----------
    side
        The patient's.
    pixels
        Those that belong to the half.
    tumour_pixels
        Number of tumour pixels among them.
    label
        ``NO_TUMOUR`` or ``TUMOUR``; None where the half cannot be used.
    code
        Why it cannot.
    """

    side: Side
    pixels: Bool[np.ndarray, "row column"]
    tumour_pixels: int
    label: int | None
    code: str = ""


def right_pixels(line: CutLine, shape: tuple[int, int]) -> Bool[np.ndarray, "row column"]:
    """Return the pixels whose centre lies on the patient's right of a line."""
    rows, columns = shape
    edge = line.offset + line.slope * np.arange(rows)
    return np.arange(columns)[None, :] < edge[:, None]


def tumour_edge(tumour: Bool[np.ndarray, "row column"]) -> CutLine:
    """Cut beside the tumour's inner edge, as published, the tumour's last column on its own side.

    The cut follows the tumour, so the width of a half tells its label: for comparison only.

    Raises
    ------
    ValueError
        If there is no tumour.

    References
    ----------
    Ron, Weiler-Sagie and Hazan, ICML 2022, section 4.2. Their code counts the last column of a
    tumour on the side of column 0 to the other half; here it is kept with its tumour.
    """
    columns = np.flatnonzero(tumour.any(axis=0))
    if not len(columns):
        raise ValueError("there is no tumour to cut beside")
    first, last = int(columns[0]), int(columns[-1])
    is_first_half = (first + last) / 2 < tumour.shape[1] / 2
    return CutLine(last + 0.5 if is_first_half else first - 0.5, 0.0)


def halves(
    line: CutLine,
    tumour: Bool[np.ndarray, "row column"],
    brain: Bool[np.ndarray, "row column"],
    *,
    crossing: Literal["exclude", "label-both"],
    min_half_area: int,
) -> tuple[Half, Half]:
    """Cut a slice with tumour and label its halves, the patient's right first.

    Parameters
    ----------
    crossing
        ``exclude``: where both halves hold tumour, neither is used. ``label-both``: each half is
        labelled by its own tumour, and not used if that is more than none and less than
        ``min_half_area``.
    """
    right = right_pixels(line, (tumour.shape[0], tumour.shape[1]))
    sides: tuple[tuple[Side, np.ndarray], ...] = (("right", right), ("left", ~right))
    areas = [int(np.count_nonzero(tumour & pixels)) for _, pixels in sides]
    crosses = crossing == "exclude" and min(areas) > 0
    found = []
    for (side, pixels), area in zip(sides, areas, strict=True):
        code = _unusable(
            crosses=crosses,
            is_unclear=crossing == "label-both" and 0 < area < min_half_area,
            is_empty=not (brain & pixels).any(),
        )
        label = None if code else TUMOUR if area else NO_TUMOUR
        found.append(Half(side=side, pixels=pixels, tumour_pixels=area, label=label, code=code))
    return found[0], found[1]


def _unusable(*, crosses: bool, is_unclear: bool, is_empty: bool) -> str:
    if crosses:
        return CROSSING_MIDLINE
    if is_unclear:
        return HALF_UNCLEAR
    return HALF_EMPTY if is_empty else ""
