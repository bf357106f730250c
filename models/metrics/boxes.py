"""How well boxes around a map's regions find a true box: one number per sample.

A map is scaled to [0, 255] by its own least and greatest value and cut at a threshold; a box is put
around each 8-connected region that reaches it. A constant map reaches every threshold everywhere:
its box is the picture, and it scores chance. The true box comes as a mask of pixels (any mask
will do); where it is empty the score is NaN.

The union of a map's boxes is compared with the true box here; ``best_*`` take the best single box
instead, which forgives any number of false ones, and ``false_boxes`` counts those.

Axes: b sample, (h, w) map, (H, W) mask, k box, t level.

References
----------
Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks", CVPR 2017, section
4.2 (boxes at the thresholds 60 and 180; IoBB and IoU at T).
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust optimization",
MICCAI 2019.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.errors import MetricError
from models.metrics.cells import Cells, cells_of
from models.metrics.components import Boxes, boxes_of, covered_by

HIT_LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)  # the T of Wang et al.
FULL_SCALE = 255.0


def ior(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, threshold: float
) -> Float[Tensor, " b"]:
    """Share of the region above the threshold that lies in the mask: intersection over region.

    Raises
    ------
    MetricError
        If the threshold lies outside [0, 255], the map is not finite, or is finer than the mask.
    """
    cut = _cut(values, mask, threshold)
    return cut.intersection(cut.selected) / cut.area(cut.selected)


def iobb(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, threshold: float
) -> Float[Tensor, " b"]:
    """Share of the union of the map's boxes that lies in the mask: the strict IoBB.

    Raises
    ------
    MetricError
        As ``ior``.
    """
    cut = _cut(values, mask, threshold)
    union = covered_by(boxes_of(cut.selected), cut.selected.shape)
    return cut.intersection(union) / cut.area(union)


def box_iou(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, threshold: float
) -> Float[Tensor, " b"]:
    """Intersection over union of the mask and the union of the map's boxes.

    Raises
    ------
    MetricError
        As ``ior``.
    """
    cut = _cut(values, mask, threshold)
    union = covered_by(boxes_of(cut.selected), cut.selected.shape)
    inside = cut.intersection(union)
    return inside / (cut.area(union) + cut.mask_area - inside)


def best_iobb(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, threshold: float
) -> Float[Tensor, " b"]:
    """Return the greatest share of a single box that lies in the mask: the match of Wang et al.

    Raises
    ------
    MetricError
        As ``ior``.
    """
    cut = _cut(values, mask, threshold)
    boxes = boxes_of(cut.selected)
    return _best(_iobb_of_each(cut, boxes), boxes, cut)


def best_box_iou(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, threshold: float
) -> Float[Tensor, " b"]:
    """Return the greatest intersection over union of the mask and a single box.

    Raises
    ------
    MetricError
        As ``ior``.
    """
    cut = _cut(values, mask, threshold)
    boxes = boxes_of(cut.selected)
    inside, area = _inside_and_area(cut, boxes)
    return _best(inside / (area + cut.mask_area[boxes.sample] - inside), boxes, cut)


def false_boxes(
    values: Float[Tensor, "b h w"],
    mask: Bool[Tensor, "b H W"],
    *,
    threshold: float,
    level: float = 0.1,
) -> Float[Tensor, " b"]:
    """Count the boxes with less than ``level`` of their area in the mask: false positives.

    Raises
    ------
    MetricError
        As ``ior``.
    """
    cut = _cut(values, mask, threshold)
    boxes = boxes_of(cut.selected)
    missed = (_iobb_of_each(cut, boxes) < level).double()
    count = missed.new_zeros(len(values)).index_add(0, boxes.sample, missed)
    return count.where(cut.mask_area > 0, torch.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """How well each box of each map finds the mask; NaN where the mask is empty.

    Attributes
    ----------
    sample
        The sample of each box, ascending.
    iobb
        Share of the box that lies in the mask.
    iou
        Intersection over union of the box and the mask.
    """

    sample: Int[Tensor, " k"]
    iobb: Float[Tensor, " k"]
    iou: Float[Tensor, " k"]


def matches(
    values: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"], *, threshold: float
) -> Matches:
    """Compare every single box of the maps with the mask.

    Raises
    ------
    MetricError
        As ``ior``.
    """
    cut = _cut(values, mask, threshold)
    boxes = boxes_of(cut.selected)
    inside, area = _inside_and_area(cut, boxes)
    wanted = cut.mask_area[boxes.sample]
    return Matches(
        sample=boxes.sample,
        iobb=(inside / area).where(wanted > 0, torch.nan),
        iou=(inside / (area + wanted - inside)).where(wanted > 0, torch.nan),
    )


def hits(
    scores: Float[Tensor, " b"], levels: tuple[float, ...] = HIT_LEVELS
) -> Float[Tensor, "b t"]:
    """Say with 1 where a score reaches each level, 0 where not, NaN where there is no score.

    The mean over the samples of a class is the accuracy of Wang et al. at T(IoBB) or T(IoU).
    """
    reached = scores[:, None] >= torch.tensor(levels, dtype=scores.dtype, device=scores.device)
    return reached.to(scores).where(~scores.isnan()[:, None], torch.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """The cells of maps at or above a threshold."""

    cells: Cells
    selected: Bool[Tensor, "b h w"]
    mask_area: Float[Tensor, " b"]

    def intersection(self, chosen: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """Count the true pixels of chosen cells; NaN where the mask is empty."""
        count = (chosen.flatten(1) * self.cells.true).sum(1)
        return count.where(self.mask_area > 0, torch.nan)

    def area(self, chosen: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
        """Count the pixels of chosen cells."""
        return (chosen.flatten(1) * self.cells.area).sum(1)


def _cut(values: Tensor, mask: Tensor, threshold: float) -> _Cut:
    if not 0 <= threshold <= FULL_SCALE:
        raise MetricError(
            "BAD_THRESHOLD", f"threshold is {threshold}; maps are scaled to [0, 255] before the cut"
        )
    cells = cells_of(values, mask)
    if bool(cells.values.isinf().any()):
        raise MetricError(
            "MAP_NOT_FINITE", "a map holds an infinite value; it cannot be scaled to [0, 255]"
        )
    exact = cells.values.double()
    least, greatest = (found[:, None] for found in exact.aminmax(dim=1))
    share = (exact - least) / (greatest - least).where(greatest > least, 1.0)
    reached = (share >= threshold / FULL_SCALE) | (greatest == least)
    return _Cut(cells=cells, selected=reached.view_as(values), mask_area=cells.true.sum(1))


def _iobb_of_each(cut: _Cut, boxes: Boxes) -> Float[Tensor, " k"]:
    inside, area = _inside_and_area(cut, boxes)
    return inside / area


def _inside_and_area(cut: _Cut, boxes: Boxes) -> tuple[Tensor, Tensor]:
    """Count the true pixels, and the pixels, of each box."""
    return _in_boxes(cut.cells.true, cut, boxes), _in_boxes(cut.cells.area, cut, boxes)


def _in_boxes(amount: Tensor, cut: _Cut, boxes: Boxes) -> Tensor:
    """Add up each box from the sums of all rectangles at the upper left corner."""
    upto = torch.nn.functional.pad(amount.view(cut.selected.shape), (1, 0, 1, 0))
    upto = upto.cumsum(1).cumsum(2)
    inner = upto[boxes.sample, boxes.bottom, boxes.right]
    inner = inner - upto[boxes.sample, boxes.top, boxes.right]
    inner = inner - upto[boxes.sample, boxes.bottom, boxes.left]
    return inner + upto[boxes.sample, boxes.top, boxes.left]


def _best(found: Tensor, boxes: Boxes, cut: _Cut) -> Tensor:
    best = found.new_zeros(len(cut.mask_area)).scatter_reduce(0, boxes.sample, found, "amax")
    return best.where(cut.mask_area > 0, torch.nan)
