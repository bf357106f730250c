"""What a map is worth against the boxes of a finding: one row of numbers for each case.

A case is one finding of one picture. The truth of a case is the union of its boxes, but for the
single best box, which is asked of each true box by itself: a case then scores the share of its true
boxes that are found. Cases of two boxes are rare in ChestX-ray14.

Axes: n case, h row, w column of a map, H, W of the true mask, k true box, d box around a region of
a map, m measure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from models.metrics import (
    box_iou,
    hits,
    iobb,
    ior,
    ior_equal_area,
    iou_equal_area,
    pointing_game,
    ranking_of,
)
from models.metrics.boxes import HIT_LEVELS, Matches, matches

Criterion = Literal["iobb", "iou"]
Form = Literal["best", "union", "false"]
CRITERIA: tuple[Criterion, ...] = ("iobb", "iou")
THRESHOLDS = (60, 180)
"""Of Wang et al., on maps scaled to [0, 255]."""
WITHOUT_THRESHOLD = ("iou_equal_area", "ior_equal_area", "pointing_game")
WITHOUT_LEVEL = ("ior", "union_iobb", "union_iou")


def at(form: Form, criterion: Criterion, threshold: int, level: float) -> str:
    """Name a measure at a level T.

    ``best``: share of the true boxes that a single box finds; ``union``: whether the union of all
    boxes does; ``false``: how many boxes find no true one.
    """
    return f"{form}_{criterion}_{threshold}@{level:g}"


MEASURES: tuple[str, ...] = (
    *WITHOUT_THRESHOLD,
    *(f"{name}_{threshold}" for name, threshold in product(WITHOUT_LEVEL, THRESHOLDS)),
    *(
        at(form, criterion, threshold, level)
        for form, criterion, threshold, level in product(
            ("best", "union", "false"), CRITERIA, THRESHOLDS, HIT_LEVELS
        )
    ),
)
"""Everything that is measured, in the order of the columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueBoxes:
    """The truth of some cases on one grid.

    Attributes
    ----------
    union
        The true region of each case.
    single
        Each true box by itself.
    owner
        The case of each, ascending.
    """

    union: Bool[Tensor, "n H W"]
    single: Bool[Tensor, "k H W"]
    owner: Int[Tensor, " k"]


def measured(values: Float[Tensor, "n h w"], truth: TrueBoxes) -> Float64[np.ndarray, "n m"]:
    """Measure maps in the order of ``MEASURES``; of signed maps, give the positive part.

    Raises
    ------
    MetricError
        If a map is not finite, or finer than the mask.
    """
    ranking = ranking_of(values, truth.union)
    found: dict[str, Tensor] = {
        "iou_equal_area": iou_equal_area(values, truth.union, ranking=ranking),
        "ior_equal_area": ior_equal_area(values, truth.union, ranking=ranking),
        "pointing_game": pointing_game(values, truth.union, ranking=ranking),
    }
    for threshold in THRESHOLDS:
        found |= _at_threshold(values, truth, threshold)
    return torch.stack([found[name].double() for name in MEASURES], dim=1).cpu().numpy()


def _at_threshold(values: Tensor, truth: TrueBoxes, threshold: int) -> Mapping[str, Tensor]:
    cut = float(threshold)
    union: dict[Criterion, Tensor] = {
        "iobb": iobb(values, truth.union, threshold=cut),
        "iou": box_iou(values, truth.union, threshold=cut),
    }
    found = {f"union_{name}_{threshold}": scores for name, scores in union.items()}
    found[f"ior_{threshold}"] = ior(values, truth.union, threshold=cut)
    region = matches(values, truth.union, threshold=cut)
    alone = len(truth.single) == len(values)  # then a case's only box is its region
    single = region if alone else matches(values[truth.owner], truth.single, threshold=cut)
    best = {"iobb": region.iobb, "iou": _best_of_true(single, truth.owner, region)}
    for criterion in CRITERIA:
        shares = _found_share(getattr(single, criterion), single.sample, truth.owner, len(values))
        reached = hits(union[criterion])
        for place, level in enumerate(HIT_LEVELS):
            found[at("best", criterion, threshold, level)] = shares[:, place]
            found[at("union", criterion, threshold, level)] = reached[:, place]
            missed = (best[criterion] < level).double()
            count = missed.new_zeros(len(values)).index_add(0, region.sample, missed)
            found[at("false", criterion, threshold, level)] = count
    return found


def _found_share(
    scores: Float[Tensor, " d"], box: Int[Tensor, " d"], owner: Int[Tensor, " k"], cases: int
) -> Float[Tensor, "n t"]:
    """Share of each case's true boxes whose best single box reaches each level."""
    best = scores.new_zeros(len(owner)).scatter_reduce(0, box, scores, "amax")
    reached = hits(best)
    total = reached.new_zeros(cases, reached.shape[1]).index_add(0, owner, reached)
    return total / torch.bincount(owner, minlength=cases)[:, None]


def _best_of_true(
    single: Matches, owner: Int[Tensor, " k"], region: Matches
) -> Float[Tensor, " d"]:
    """Best IoU that each box of a case's map has with any of its true boxes."""
    first_here = torch.searchsorted(single.sample, single.sample)
    number = torch.arange(len(single.sample), device=owner.device) - first_here
    first_there = torch.searchsorted(region.sample, owner[single.sample])
    best = torch.zeros_like(region.iou)
    return best.scatter_reduce(0, first_there + number, single.iou, "amax")
