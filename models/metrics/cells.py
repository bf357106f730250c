"""A map on its own grid against a mask of pixels: cells, and their order.

A map on its own grid stands for the map upsampled to the mask by nearest neighbour: every pixel
takes the value of the cell that holds it. The upsampled map is never made. Each cell counts with
its number of pixels and of true pixels, which is exact and faster by the size of a cell.

Axes: b sample, (h, w) map, (H, W) mask, n cell.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.errors import MetricError


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Cells of a map with the pixels they stand for.

    Attributes
    ----------
    area, true
        Number of pixels, and of those that the mask holds.
    """

    values: Float[Tensor, "b n"]
    area: Float[Tensor, "b n"]
    true: Float[Tensor, "b n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Cells from the greatest value to the least; several metrics may share one.

    Attributes
    ----------
    area, true
        Number of pixels, and of those that the mask holds.
    area_upto, true_upto
        Sums up to and including each cell.
    last_of_tie
        Place of the last cell with the same value.
    """

    area: Float[Tensor, "b n"]
    true: Float[Tensor, "b n"]
    area_upto: Float[Tensor, "b n"]
    true_upto: Float[Tensor, "b n"]
    last_of_tie: Int[Tensor, "b n"]


def cells_of(values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]) -> Cells:
    """Count the pixels of each cell.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    _check(values, mask)
    rows, columns = (
        owners(values.shape[axis], mask.shape[axis], device=values.device) for axis in (1, 2)
    )
    sides = (torch.bincount(rows, minlength=1)[:, None] * torch.bincount(columns, minlength=1)).to(
        torch.float64
    )
    true = _summed(_summed(mask.to(torch.float64), rows, axis=1), columns, axis=2)
    return Cells(
        values=values.flatten(1),
        area=sides.flatten().expand(len(values), -1),
        true=true.flatten(1),
    )


def owners(cells: int, pixels: int, *, device: torch.device) -> Int[Tensor, " pixels"]:
    """Return the cell that nearest-neighbour upsampling takes each pixel of a side from."""
    return torch.arange(pixels, device=device) * cells // pixels


def ranking_of(values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]) -> Ranking:
    """Sort the cells once for all metrics that look at their order only.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    cells = cells_of(values, mask)
    ordered, order = cells.values.sort(dim=1, descending=True)
    true = cells.true.gather(1, order)
    alike = bool((cells.area[:1] == cells.area[0, 0]).all()) if cells.area.numel() else True
    area = cells.area if alike else cells.area.gather(1, order)
    upto = area[:1].cumsum(1).expand_as(area) if alike else area.cumsum(1)
    return Ranking(
        area=area,
        true=true,
        area_upto=upto,
        true_upto=true.cumsum(1),
        last_of_tie=_last_of_tie(ordered),
    )


def _summed(pixels: Tensor, owner: Tensor, *, axis: int) -> Tensor:
    """Add up the pixels of each cell along one axis."""
    cells = int(owner[-1]) + 1
    if cells == pixels.shape[axis]:
        return pixels
    shape = list(pixels.shape)
    shape[axis] = cells
    return pixels.new_zeros(shape).index_add_(axis, owner, pixels)


def _last_of_tie(ordered: Tensor) -> Tensor:
    count = ordered.shape[1]
    index = torch.arange(count, device=ordered.device).expand_as(ordered)
    ends = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, :-1], ordered[:, 1:], out=ends[:, :-1])
    if bool(ends.all()):
        return index
    nearest_end = index.where(ends, count).flip(1).cummin(1).values
    return nearest_end.flip(1)


def _check(values: Tensor, mask: Tensor) -> None:
    if bool(values.isnan().any()):
        raise MetricError("MAP_HOLDS_NAN", "a map holds NaN; it has no order to be measured by")
    if values.shape[1] > mask.shape[1] or values.shape[2] > mask.shape[2]:
        raise MetricError(
            "MAP_FINER_THAN_MASK",
            f"the map has {values.shape[1]} x {values.shape[2]} cells and the mask only "
            f"{mask.shape[1]} x {mask.shape[2]} pixels; measure at the mask's size or coarser",
        )
