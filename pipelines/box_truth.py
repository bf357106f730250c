"""Boxes around findings: read from a data set, drawn on any grid, and what they say by themselves.

A box is left, top, width and height in pixels of the stored picture, pixel i covering i to i + 1.
Axes: n case, k box.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from pipelines.errors import DataError
from pipelines.feed import Pictures, Rows

BOXES = "boxes"
PUBLISHED_ORDER = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
"""Findings of which ChestX-ray14 has boxes, in the order of its paper's tables."""
Size = tuple[int, int]
"""Rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxCase:
    """One finding of one picture, with all its boxes.

    Attributes
    ----------
    index
        Of the picture in its split.
    finding
        Number of the class.
    """

    index: int
    sample_id: str
    subject_id: str
    finding: int
    boxes: Float64[np.ndarray, "k 4"] = field(repr=False)


def cases_of(pictures: Pictures, classes: Sequence[str]) -> list[BoxCase]:
    """List every finding that has a box, picture by picture; the pictures are not read.

    Raises
    ------
    DataError
        ``BAD_BOX`` where one has no place, no size or no class.
    """
    if BOXES not in pictures.rows.fields:
        return []
    found = []
    samples, subjects = pictures.sample_ids, pictures.subject_ids
    for index, position in enumerate(pictures.positions.tolist()):
        rows = _used(pictures.rows, position, len(classes))
        for finding in dict.fromkeys(rows[:, 0].astype(int).tolist()):
            case = BoxCase(
                index=index,
                sample_id=samples[index],
                subject_id=subjects[index],
                finding=finding,
                boxes=rows[rows[:, 0] == finding, 1:],
            )
            found.append(case)
    return found


def _used(rows: Rows, position: int, classes: int) -> Float64[np.ndarray, "k 5"]:
    held = np.asarray(rows.read(position, (BOXES,))[BOXES], dtype=np.float64)
    used = held[held[:, 0] >= 0]
    sized = np.isfinite(used).all(axis=1) & (used[:, 3:] > 0).all(axis=1)
    if not (sized & (used[:, 0] < classes)).all():
        row = used[~(sized & (used[:, 0] < classes))][0]
        raise DataError(
            "BAD_BOX",
            f"a box is {row.tolist()} (class, left, top, width, height) for {classes} classes: no "
            "map can be held against it; rebuild the data set, or give unused boxes the class -1",
        )
    return used


def box_mask(
    boxes: Float64[np.ndarray, "k 4"], *, frame: Size, grid: Size
) -> Bool[np.ndarray, "_row _column"]:
    """Mark the cells of a grid over the picture whose centres lie in a box.

    A box that holds no centre marks the cell of its own centre, so that none vanishes.
    """
    mask = np.zeros(grid, dtype=bool)
    for left, top, width, height in boxes:
        down = _inside(top, height, side=frame[0], cells=grid[0])
        across = _inside(left, width, side=frame[1], cells=grid[1])
        mask |= np.outer(down, across)
    return mask


def _inside(start: float, length: float, *, side: int, cells: int) -> Bool[np.ndarray, " cell"]:
    centre = (np.arange(cells) + 0.5) * side / cells
    inside = (centre >= start) & (centre < start + length)
    if not inside.any():
        nearest = int((start + length / 2) * cells / side)
        inside[min(max(nearest, 0), cells - 1)] = True
    return inside


def box_coverage(
    boxes: Float64[np.ndarray, "k 4"], *, frame: Size, grid: Size
) -> Float64[np.ndarray, "_row _column"]:
    """Share of each cell that boxes cover; where they overlap, at most 1."""
    total = np.zeros(grid)
    for left, top, width, height in boxes:
        down = _covered(top, height, side=frame[0], cells=grid[0])
        across = _covered(left, width, side=frame[1], cells=grid[1])
        total += np.outer(down, across)
    return np.minimum(total, 1.0)


def _covered(start: float, length: float, *, side: int, cells: int) -> Float64[np.ndarray, " cell"]:
    edges = np.arange(cells + 1) * side / cells
    ends = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
    return np.clip(ends, 0, None) * cells / side


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanBoxes:
    """Where boxes of a finding lie on the average: what is known without the picture.

    Attributes
    ----------
    cases
        Those that are averaged.
    frame
        Rows and columns of the stored picture.
    grid
        Of the mean.
    leave_out
        Whether a patient's own boxes take no part in the mean that is held against them.
    """

    cases: Sequence[BoxCase] = field(repr=False)
    frame: Size
    grid: Size
    leave_out: bool

    def of(self, case: BoxCase) -> Float[np.ndarray, "_row _column"] | None:
        """Return the mean for a case; None where no other patient has a box of the finding."""
        total, count = np.zeros(self.grid), 0
        for other in self.cases:
            own = self.leave_out and other.subject_id == case.subject_id
            if other.finding == case.finding and not own:
                total += box_coverage(other.boxes, frame=self.frame, grid=self.grid)
                count += 1
        return total / count if count else None


def findings_of(cases: Sequence[BoxCase], classes: Sequence[str]) -> tuple[int, ...]:
    """Order the findings as published: those of the release first, others with boxes after them."""
    known = [classes.index(name) for name in PUBLISHED_ORDER if name in classes]
    boxed = sorted({case.finding for case in cases})
    return tuple(dict.fromkeys([*known, *boxed]))


def columns_of(cases: Sequence[BoxCase], findings: Sequence[int]) -> Int64[np.ndarray, " n"]:
    """Place of each case's finding among ``findings``."""
    place = {finding: i for i, finding in enumerate(findings)}
    return np.array([place[case.finding] for case in cases], dtype=np.int64)
