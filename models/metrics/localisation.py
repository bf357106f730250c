"""How well a map finds what it should: one number per sample against a true mask.

A map on its own grid stands for the map upsampled to the mask by nearest neighbour, without that
map being made. Ties are never broken by order. A sample whose mask is empty scores NaN.

Metrics that look at the order of the cells only take a ``ranking`` of the same maps and masks
(``ranking_of``), so that several of them sort once.

Axes: b sample, (h, w) map, (H, W) mask, n cell.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022 (average
precision and IoU at quantiles).
Zhang et al., "Top-down neural attention by excitation backprop", IJCV 126, 2018 (pointing game).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.errors import MetricError
from models.metrics.cells import Ranking, cells_of, ranking_of


def average_precision(
    values: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b H W"],
    *,
    ranking: Ranking | None = None,
) -> Float[Tensor, " b"]:
    """Average precision of the pixels' scores: sum over thresholds of recall gain x precision.

    Equal to scikit-learn's, ties included. A constant map scores the mask's share of the picture.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = ranking or ranking_of(values, mask)
    precision = ranked.true_upto / ranked.area_upto
    at_threshold = precision.gather(1, ranked.last_of_tie)
    return (at_threshold * ranked.true).sum(1) / ranked.true.sum(1)


def iou_quantile(
    values: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b H W"],
    *,
    quantile: float,
    ranking: Ranking | None = None,
) -> Float[Tensor, " b"]:
    """Intersection over union of the mask and the most important share 1 - ``quantile`` of pixels.

    The selected area is exact: where pixels tie at the quantile, each belongs to the selection with
    the same fraction. A constant map therefore scores as a random selection of that area would, and
    the best that any map can score is ``iou_cap``.

    Raises
    ------
    MetricError
        If the quantile lies outside [0, 1), the map holds NaN, or is finer than the mask.
    """
    _check_quantile(quantile)
    ranked = ranking or ranking_of(values, mask)
    selected = (1 - quantile) * ranked.area.sum(1)
    return _iou(_intersection(ranked, selected), selected, ranked)


def iou_cap(mask: Bool[Tensor, "b H W"], *, quantile: float) -> Float[Tensor, " b"]:
    """``iou_quantile`` of the mask itself: the most that any map can score; NaN for an empty mask.

    The lesser of its area and the selected one over the greater.

    Raises
    ------
    MetricError
        If the quantile lies outside [0, 1).
    """
    _check_quantile(quantile)
    area = mask.flatten(1).double().mean(1)
    selected = torch.full_like(area, 1 - quantile)
    cap = torch.minimum(area, selected) / torch.maximum(area, selected)
    return cap.where(area > 0, torch.nan)


def iou_equal_area(
    values: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b H W"],
    *,
    ranking: Ranking | None = None,
) -> Float[Tensor, " b"]:
    """Intersection over union of the mask and as many of the most important pixels as it has.

    Needs no threshold, and 1 can always be reached. Ties as in ``iou_quantile``.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = ranking or ranking_of(values, mask)
    selected = ranked.true.sum(1)
    return _iou(_intersection(ranked, selected), selected, ranked)


def ior_equal_area(
    values: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b H W"],
    *,
    ranking: Ranking | None = None,
) -> Float[Tensor, " b"]:
    """Share of the mask in the region of as many of the most important pixels as it has.

    IoR without a threshold, and precision and recall at once. Ties as in ``iou_quantile``; a
    constant map scores the mask's share of the picture.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = ranking or ranking_of(values, mask)
    selected = ranked.true.sum(1)
    return _undefined_where_empty(_intersection(ranked, selected) / selected, ranked)


def pointing_game(
    values: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b H W"],
    *,
    ranking: Ranking | None = None,
) -> Float[Tensor, " b"]:
    """Chance that a pixel with the greatest value lies in the mask; no tolerance around it.

    Raises
    ------
    MetricError
        If the map holds NaN, or is finer than the mask.
    """
    ranked = ranking or ranking_of(values, mask)
    top = ranked.last_of_tie[:, :1]
    hit = ranked.true_upto.gather(1, top) / ranked.area_upto.gather(1, top)
    return _undefined_where_empty(hit.squeeze(1), ranked)


def mass_inside(values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]) -> Float[Tensor, " b"]:
    """Share of the map's positive mass that lies in the mask; NaN for a map without any.

    Raises
    ------
    MetricError
        If the map holds NaN or an infinity, or is finer than the mask.
    """
    cells = cells_of(values, mask)
    if bool(cells.values.isinf().any()):
        raise MetricError(
            "MAP_NOT_FINITE", "a map holds an infinite value; its mass has no share inside"
        )
    positive = cells.values.double().relu()
    share = (positive * cells.true).sum(1) / (positive * cells.area).sum(1)
    return share.where(cells.true.sum(1) > 0, torch.nan)


def _intersection(ranked: Ranking, selected: Tensor) -> Tensor:
    """Pixels of the mask among the first ``selected``, tied pixels taken in equal fractions."""
    place = torch.searchsorted(ranked.area_upto.contiguous(), selected[:, None].contiguous())
    place = place.clamp_max(ranked.area.shape[1] - 1)
    last = ranked.last_of_tie.gather(1, place)
    first = torch.searchsorted(ranked.last_of_tie.contiguous(), last)
    before_area, before_true = (
        upto.gather(1, first) - amount.gather(1, first)
        for upto, amount in (
            (ranked.area_upto, ranked.area),
            (ranked.true_upto, ranked.true),
        )
    )
    tied_area = ranked.area_upto.gather(1, last) - before_area
    tied_true = ranked.true_upto.gather(1, last) - before_true
    fraction = ((selected[:, None] - before_area) / tied_area).clamp(0, 1)
    return (before_true + fraction * tied_true).squeeze(1)


def _iou(intersection: Tensor, selected: Tensor, ranked: Ranking) -> Tensor:
    union = selected + ranked.true.sum(1) - intersection
    return _undefined_where_empty(intersection / union, ranked)


def _undefined_where_empty(scores: Tensor, ranked: Ranking) -> Tensor:
    return scores.where(ranked.true.sum(1) > 0, torch.nan)


def _check_quantile(quantile: float) -> None:
    if not 0 <= quantile < 1:
        raise MetricError("BAD_QUANTILE", f"quantile is {quantile}; it lies in [0, 1)")
