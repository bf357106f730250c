"""Metrics of explanations by name: pure functions with a declared direction and category."""

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.errors import MetricError, unknown
from models.metrics.agreement import (
    kl_from_coarse,
    kl_from_fine,
    program_value,
    total_variation,
)
from models.metrics.base import Metric
from models.metrics.boxes import best_box_iou, best_iobb, box_iou, false_boxes, hits, iobb, ior
from models.metrics.cells import Ranking, ranking_of
from models.metrics.complexity import entropy, gini, group_gini, sparsity
from models.metrics.controls import (
    centred_gaussian_map,
    edge_map,
    mean_mask_map,
    random_map,
    true_map,
    uniform_map,
)
from models.metrics.faithfulness import (
    balanced_mean,
    chance,
    comprehensiveness,
    deletion,
    input_perturbation,
    input_perturbation_opposite,
    insertion,
    probability,
    right,
    sufficiency,
)
from models.metrics.imputation import NoisyLinearImputation, blur_fill, mean_fill, zero_fill
from models.metrics.localisation import (
    average_precision,
    ior_equal_area,
    iou_cap,
    iou_equal_area,
    iou_quantile,
    mass_inside,
    pointing_game,
)
from models.metrics.perturbation import (
    FRACTIONS,
    PerturbationCurve,
    perturbation_curve,
    perturbed,
)
from models.metrics.similarity import (
    cosine,
    normalised_distance,
    structural_similarity,
    top_k_intersection,
)
from models.metrics.stability import stability
from models.records import Score

EMPTY_MASK = "the mask is empty"
NO_MASS = "the map is zero everywhere"
RON, WANG = "Ron et al., ICML 2022", "Wang et al., CVPR 2017"
ZHANG, DEYOUNG = "Zhang and Farnia, ICCV 2023", "DeYoung et al., ACL 2020"

_ranked = partial(
    Metric, category="localisation", higher_is_better=True, undefined=EMPTY_MASK, ranks=True
)
_found = partial(Metric, category="localisation", higher_is_better=True, undefined=EMPTY_MASK)
_apart = partial(Metric, category="consistency", higher_is_better=False, source=RON)
_sparse = partial(Metric, category="complexity", higher_is_better=True, undefined=NO_MASS)
_alike = partial(Metric, category="robustness", higher_is_better=True)
_faithful = partial(Metric, category="faithfulness")

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "average_precision": _ranked(measure=average_precision, source=RON),
        "iou_975": _ranked(measure=partial(iou_quantile, quantile=0.975), source=RON),
        "iou_950": _ranked(measure=partial(iou_quantile, quantile=0.95), source=RON),
        "iou_900": _ranked(measure=partial(iou_quantile, quantile=0.90), source=RON),
        "iou_equal_area": _ranked(measure=iou_equal_area, source="Khakzar et al., MICCAI 2019"),
        "ior_equal_area": _ranked(measure=ior_equal_area, source="Khakzar et al., MICCAI 2019"),
        "pointing_game": _ranked(measure=pointing_game, source="Zhang et al., IJCV 2018"),
        "mass_inside": _found(
            measure=mass_inside,
            source="Kohlbrenner et al., IJCNN 2020",
            undefined="the mask is empty or the map has no positive cell",
        ),
        "ior_60": _found(measure=partial(ior, threshold=60.0), source=WANG),
        "ior_180": _found(measure=partial(ior, threshold=180.0), source=WANG),
        "iobb_60": _found(measure=partial(iobb, threshold=60.0), source=WANG),
        "iobb_180": _found(measure=partial(iobb, threshold=180.0), source=WANG),
        "box_iou_60": _found(measure=partial(box_iou, threshold=60.0), source=WANG),
        "box_iou_180": _found(measure=partial(box_iou, threshold=180.0), source=WANG),
        "best_iobb_60": _found(measure=partial(best_iobb, threshold=60.0), source=WANG),
        "best_iobb_180": _found(measure=partial(best_iobb, threshold=180.0), source=WANG),
        "best_box_iou_60": _found(measure=partial(best_box_iou, threshold=60.0), source=WANG),
        "best_box_iou_180": _found(measure=partial(best_box_iou, threshold=180.0), source=WANG),
        "false_boxes_60": _found(
            measure=partial(false_boxes, threshold=60.0), source=WANG, higher_is_better=False
        ),
        "false_boxes_180": _found(
            measure=partial(false_boxes, threshold=180.0), source=WANG, higher_is_better=False
        ),
        "total_variation": _apart(measure=total_variation),
        "kl_from_coarse": _apart(measure=kl_from_coarse),
        "kl_from_fine": _apart(measure=kl_from_fine),
        "program_value": _apart(measure=program_value),
        "gini": _sparse(measure=gini, source="Chalasani et al., ICML 2020"),
        "group_gini": _sparse(measure=group_gini, source="Gong et al., CVPR 2024"),
        "sparsity": _sparse(measure=sparsity, source="Hurley and Rickard, 2009"),
        "entropy": _sparse(
            measure=entropy, source="Bhatt et al., IJCAI 2020", higher_is_better=False
        ),
        "top_k_intersection": _alike(
            measure=top_k_intersection,
            source="Ghorbani et al., AAAI 2019",
            undefined="the first map is zero everywhere",
        ),
        "normalised_distance": _alike(
            measure=normalised_distance,
            source=ZHANG,
            higher_is_better=False,
            undefined="one of the maps is zero everywhere",
        ),
        "cosine": _alike(
            measure=cosine, source=ZHANG, undefined="one of the maps is zero everywhere"
        ),
        "structural_similarity": _alike(
            measure=structural_similarity, source="Wang et al., IEEE TIP 2004"
        ),
        "input_perturbation": _faithful(
            measure=input_perturbation, source=RON, higher_is_better=True
        ),
        "input_perturbation_opposite": _faithful(
            measure=input_perturbation_opposite, source="Samek et al., 2017", higher_is_better=False
        ),
        "insertion": _faithful(
            measure=insertion, source="Petsiuk et al., BMVC 2018", higher_is_better=True
        ),
        "deletion": _faithful(
            measure=deletion, source="Petsiuk et al., BMVC 2018", higher_is_better=False
        ),
        "comprehensiveness": _faithful(
            measure=comprehensiveness, source=DEYOUNG, higher_is_better=True
        ),
        "sufficiency": _faithful(measure=sufficiency, source=DEYOUNG, higher_is_better=False),
    }
)
"""Name of a metric -> how it is measured and read; a new metric is one line here."""


def score(
    name: str,
    measured: Float[Tensor, "b _h _w"] | PerturbationCurve,
    reference: Tensor | None = None,
) -> Score:
    """Measure maps by the name of a metric.

    Parameters
    ----------
    measured
        Maps on their own grid (the fine ones for a consistency metric), or the perturbation curve
        for a faithfulness metric.
    reference
        True masks (bool) for a localisation metric, coarse maps for a consistency metric, the maps
        after the change for a robustness metric, the classes for a faithfulness metric, nothing for
        a complexity metric.

    Raises
    ------
    MetricError
        If there is no such metric, its reference is missing, and as the metric itself.
    """
    return scores((name,), measured, reference)[0]


def scores(
    names: Sequence[str],
    measured: Float[Tensor, "b _h _w"] | PerturbationCurve,
    reference: Float[Tensor, "b _p _q"] | Bool[Tensor, "b _p _q"] | Int[Tensor, " b"] | None = None,
) -> tuple[Score, ...]:
    """Measure maps by several metrics that take the same; maps are sorted once for all of them.

    Raises
    ------
    MetricError
        As ``score``.
    """
    metrics = [_metric(name, reference) for name in names]
    ranking = None
    if any(metric.ranks for metric in metrics):
        ranking = ranking_of(measured, reference)  # pyright: ignore[reportArgumentType]
    return tuple(
        Score(
            name=name,
            per_sample=_measured(metric, measured, reference, ranking),
            higher_is_better=metric.higher_is_better,
            category=metric.category,
        )
        for name, metric in zip(names, metrics, strict=True)
    )


def _metric(name: str, reference: Tensor | None) -> Metric:
    if name not in METRICS:
        raise MetricError("UNKNOWN_METRIC", unknown("metric", name, METRICS))
    metric = METRICS[name]
    if reference is None and metric.category != "complexity":
        raise MetricError(
            "NO_REFERENCE",
            f"'{name}' is a {metric.category} metric and has nothing to measure against; give the "
            "reference that its category takes",
        )
    return metric


def _measured(
    metric: Metric,
    measured: Tensor | PerturbationCurve,
    reference: Tensor | None,
    ranking: Ranking | None,
) -> Float[Tensor, " b"]:
    if metric.category == "complexity":
        return metric.measure(measured)
    if metric.ranks:
        return metric.measure(measured, reference, ranking=ranking)
    return metric.measure(measured, reference)


__all__ = [
    "FRACTIONS",
    "METRICS",
    "Metric",
    "NoisyLinearImputation",
    "PerturbationCurve",
    "average_precision",
    "balanced_mean",
    "blur_fill",
    "centred_gaussian_map",
    "chance",
    "edge_map",
    "hits",
    "iou_cap",
    "iou_equal_area",
    "iou_quantile",
    "mass_inside",
    "mean_fill",
    "mean_mask_map",
    "perturbation_curve",
    "perturbed",
    "pointing_game",
    "probability",
    "random_map",
    "right",
    "score",
    "scores",
    "stability",
    "total_variation",
    "true_map",
    "uniform_map",
    "zero_fill",
]
