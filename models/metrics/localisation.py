"""How well a map finds what it should: one number per sample against a true mask.

A map on its own grid stands for the map upsampled to the mask by nearest neighbour: every pixel
takes the value of the cell that holds it. The upsampled map is never made. Each cell counts with
its number of pixels and of true pixels, which is exact and faster by the size of a cell.

Ties are never broken by order. A sample whose mask is empty scores NaN.

Axes: b sample, (h, w) map, (H, W) mask, n cell.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022 (average
precision and IoU at quantiles).
Zhang et al., "Top-down neural attention by excitation backprop", IJCV 126, 2018 (pointing game).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.errors import MetricError


def average_precision(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]
) -> Float[Tensor, " b"]:
    """Average precision of the pixels' scores: sum over thresholds of recall gain x precision.

    Equal to scikit-learn's, ties included. A constant map scores the mask's share of the picture.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = _ranked(values, mask)
    precision = ranked.true_upto / ranked.area_upto
    at_threshold = precision.gather(1, ranked.last_of_tie)
    return (at_threshold * ranked.true).sum(1) / ranked.true.sum(1)


def iou_quantile(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, quantile: float
) -> Float[Tensor, " b"]:
    """Intersection over union of the mask and the most important share 1 - ``quantile`` of pixels.

    The selected area is exact: where pixels tie at the quantile, each belongs to the selection with
    the same fraction. A constant map therefore scores as a random selection of that area would.

    Raises
    ------
    MetricError
        If the quantile lies outside [0, 1), the map holds NaN, or is finer than the mask.
    """
    if not 0 <= quantile < 1:
        raise MetricError("BAD_QUANTILE", f"quantile is {quantile}; it lies in [0, 1)")
    ranked = _ranked(values, mask)
    return _iou_of_area(ranked, (1 - quantile) * ranked.area.sum(1))


def iou_equal_area(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]
) -> Float[Tensor, " b"]:
    """Intersection over union of the mask and as many of the most important pixels as it has.

    Needs no threshold, and 1 can always be reached. Ties as in ``iou_quantile``.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = _ranked(values, mask)
    return _iou_of_area(ranked, ranked.true.sum(1))


def pointing_game(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]
) -> Float[Tensor, " b"]:
    """Chance that a pixel with the greatest value lies in the mask; no tolerance around it.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = _ranked(values, mask)
    top = ranked.last_of_tie[:, :1]
    hit = ranked.true_upto.gather(1, top) / ranked.area_upto.gather(1, top)
    return _undefined_where_empty(hit.squeeze(1), ranked)


def mass_inside(values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]) -> Float[Tensor, " b"]:
    """Share of the map's positive mass that lies in the mask; NaN for a map without any.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    cells = _cells(values, mask)
    positive = cells.values.relu()
    share = (positive * cells.true).sum(1) / (positive * cells.area).sum(1)
    return share.where(cells.true.sum(1) > 0, torch.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """Cells of a map with the pixels they stand for."""

    values: Float[Tensor, "b n"]
    area: Float[Tensor, "b n"]
    true: Float[Tensor, "b n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    """Cells from the greatest value to the least, with sums up to and including each."""

    area: Float[Tensor, "b n"]
    true: Float[Tensor, "b n"]
    area_upto: Float[Tensor, "b n"]
    true_upto: Float[Tensor, "b n"]
    last_of_tie: Int[Tensor, "b n"]


def _cells(values: Tensor, mask: Tensor) -> _Cells:
    _check(values, mask)
    rows = _membership(values.shape[1], mask.shape[1], device=values.device)
    columns = _membership(values.shape[2], mask.shape[2], device=values.device)
    area = (rows.sum(1)[:, None] * columns.sum(1)).flatten().expand(len(values), -1)
    true = rows @ mask.to(rows) @ columns.T
    return _Cells(values=values.double().flatten(1), area=area, true=true.flatten(1))


def _membership(cells: int, pixels: int, *, device: torch.device) -> Tensor:
    """One row per cell, 1 at the pixels that nearest-neighbour upsampling takes from it."""
    owner = torch.arange(pixels, device=device) * cells // pixels
    return (owner == torch.arange(cells, device=device)[:, None]).double()


def _ranked(values: Tensor, mask: Tensor) -> _Ranked:
    cells = _cells(values, mask)
    ordered, order = cells.values.sort(dim=1, descending=True)
    area, true = cells.area.gather(1, order), cells.true.gather(1, order)
    return _Ranked(
        area=area,
        true=true,
        area_upto=area.cumsum(1),
        true_upto=true.cumsum(1),
        last_of_tie=_last_of_tie(ordered),
    )


def _last_of_tie(ordered: Tensor) -> Tensor:
    """Index of the last cell that has the same value as each cell."""
    count = ordered.shape[1]
    index = torch.arange(count, device=ordered.device).expand_as(ordered)
    ends = torch.ones_like(ordered, dtype=torch.bool)
    ends[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    nearest_end = index.where(ends, count).flip(1).cummin(1).values
    return nearest_end.flip(1)


def _iou_of_area(ranked: _Ranked, selected: Tensor) -> Tensor:
    """IoU of the mask and the first ``selected`` pixels, tied pixels taken in equal fractions."""
    upto = ranked.area_upto.gather(1, ranked.last_of_tie)
    within_tie = _sum_within_tie(ranked.area, ranked.last_of_tie)
    fraction = ((selected[:, None] - (upto - within_tie)) / within_tie).clamp(0, 1)
    intersection = (fraction * ranked.true).sum(1)
    union = selected + ranked.true.sum(1) - intersection
    return _undefined_where_empty(intersection / union, ranked)


def _sum_within_tie(amounts: Tensor, last_of_tie: Tensor) -> Tensor:
    total = torch.zeros_like(amounts).scatter_add(1, last_of_tie, amounts)
    return total.gather(1, last_of_tie)


def _undefined_where_empty(scores: Tensor, ranked: _Ranked) -> Tensor:
    return scores.where(ranked.true.sum(1) > 0, torch.nan)


def _check(values: Tensor, mask: Tensor) -> None:
    if bool(values.isnan().any()):
        raise MetricError("MAP_HOLDS_NAN", "a map holds NaN; it has no order to be measured by")
    if values.shape[1] > mask.shape[1] or values.shape[2] > mask.shape[2]:
        raise MetricError(
            "MAP_FINER_THAN_MASK",
            f"the map has {values.shape[1]} x {values.shape[2]} cells and the mask only "
            f"{mask.shape[1]} x {mask.shape[2]} pixels; measure at the mask's size or coarser",
        )
