"""Connected regions of a map and the boxes around them, for all samples at once.

Axes: b sample, h row, w column, n cell of any sample, k region of any sample.

References
----------
Zhang, Azad, Hu, "FastSV: a distributed-memory connected component algorithm with fast
convergence", SIAM Conference on Parallel Processing for Scientific Computing, 2020.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Smallest upright boxes around regions.

    Attributes
    ----------
    sample
        The sample of each box, ascending.
    top, left
        First row and column.
    bottom, right
        One past the last row and column.
    """

    sample: Int[Tensor, " k"]
    top: Int[Tensor, " k"]
    left: Int[Tensor, " k"]
    bottom: Int[Tensor, " k"]
    right: Int[Tensor, " k"]


def regions(selected: Bool[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """Return for each selected cell the number of the first cell of its 8-connected region.

    Cells are numbered row by row through all samples; -1 where nothing is selected. Every round
    hangs each tree below the least of its neighbours' roots and halves the paths, so that rounds
    grow with the logarithm of the region and not with its length.
    """
    number = torch.arange(selected.numel(), device=selected.device)
    one, other = _neighbours(selected, number.view_as(selected))
    parent = number.clone()
    while True:
        above = parent[parent]
        found = torch.minimum(parent, above)
        for here, there in ((one, other), (other, one)):
            found.scatter_reduce_(0, parent[here], above[there], "amin")
            found.scatter_reduce_(0, here, above[there], "amin")
        if torch.equal(found, parent):
            return parent.view_as(selected).where(selected, -1)
        parent = found


def boxes_of(selected: Bool[Tensor, "b h w"]) -> Boxes:
    """Put a box around each 8-connected region."""
    label = regions(selected)
    sample, row, column = selected.nonzero(as_tuple=True)
    names, region = label[selected].unique(return_inverse=True)
    least, greatest = (
        [
            place.new_zeros(len(names)).scatter_reduce(
                0, region, place, extreme, include_self=False
            )
            for place in (sample, row, column)
        ]
        for extreme in ("amin", "amax")
    )
    return Boxes(
        sample=least[0],
        top=least[1],
        left=least[2],
        bottom=greatest[1] + 1,
        right=greatest[2] + 1,
    )


def covered_by(boxes: Boxes, shape: torch.Size) -> Bool[Tensor, "b h w"]:
    """Mark the cells that lie in at least one box of their sample."""
    samples, height, width = shape
    corners = boxes.top.new_zeros(samples, height + 1, width + 1)
    for row, column, sign in (
        (boxes.top, boxes.left, 1),
        (boxes.bottom, boxes.right, 1),
        (boxes.top, boxes.right, -1),
        (boxes.bottom, boxes.left, -1),
    ):
        step = torch.full_like(row, sign)
        corners.index_put_((boxes.sample, row, column), step, accumulate=True)
    return corners.cumsum(1).cumsum(2)[:, :height, :width] > 0


def _neighbours(selected: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of selected cells that touch, each pair once."""
    height, width = selected.shape[1:]
    pairs = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        left, stop = max(0, -right), width - max(0, right)
        here = (slice(None), slice(0, height - down), slice(left, stop))
        there = (slice(None), slice(down, height), slice(left + right, stop + right))
        both = selected[here] & selected[there]
        pairs.append((number[here][both], number[there][both]))
    one, other = zip(*pairs, strict=True)
    return torch.cat(one), torch.cat(other)
