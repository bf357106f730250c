"""Metrics of explanations by name: pure functions with a declared direction and category."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from models.errors import MetricError, unknown
from models.metrics.agreement import total_variation
from models.metrics.controls import random_map, uniform_map
from models.metrics.localisation import (
    average_precision,
    iou_equal_area,
    iou_quantile,
    mass_inside,
    pointing_game,
)
from models.records import Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number per sample and what it means.

    Attributes
    ----------
    measure
        ``localisation``: (map, true mask); ``consistency``: (fine map, coarse map).
    """

    measure: Callable[[Tensor, Tensor], Float[Tensor, " b"]]
    higher_is_better: bool
    category: Literal["localisation", "consistency"]


def _localisation(measure: Callable[..., Float[Tensor, " b"]]) -> Metric:
    return Metric(measure=measure, higher_is_better=True, category="localisation")


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "average_precision": _localisation(average_precision),
        "iou_975": _localisation(partial(iou_quantile, quantile=0.975)),
        "iou_950": _localisation(partial(iou_quantile, quantile=0.95)),
        "iou_900": _localisation(partial(iou_quantile, quantile=0.90)),
        "iou_equal_area": _localisation(iou_equal_area),
        "pointing_game": _localisation(pointing_game),
        "mass_inside": _localisation(mass_inside),
        "total_variation": Metric(
            measure=total_variation, higher_is_better=False, category="consistency"
        ),
    }
)
"""Name of a metric -> how it is measured and read; a new metric is one line here."""


def score(
    name: str,
    values: Float[Tensor, "b _h _w"],
    reference: Float[Tensor, "b _p _q"] | Bool[Tensor, "b _p _q"],
) -> Score:
    """Measure maps by the name of a metric.

    Parameters
    ----------
    values
        Maps on their own grid; the fine ones for a consistency metric.
    reference
        True masks (bool) for a localisation metric, coarse maps for a consistency metric.

    Raises
    ------
    MetricError
        If there is no such metric, and as the metric itself.
    """
    if name not in METRICS:
        raise MetricError("UNKNOWN_METRIC", unknown("metric", name, METRICS))
    metric = METRICS[name]
    return Score(
        name=name,
        per_sample=metric.measure(values, reference),
        higher_is_better=metric.higher_is_better,
        category=metric.category,
    )


__all__ = [
    "METRICS",
    "Metric",
    "average_precision",
    "iou_equal_area",
    "iou_quantile",
    "mass_inside",
    "pointing_game",
    "random_map",
    "score",
    "total_variation",
    "uniform_map",
]
