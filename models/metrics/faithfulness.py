"""Whether what a map calls important is what the network uses: numbers from perturbation curves.

All are per sample, so that patients can be resampled. Balanced accuracy is a mean over classes of
means over samples, and the area is linear: the area under the balanced accuracy of a data set is
the ``balanced_mean`` of the areas under each sample's own right-or-wrong curve.

Areas are by the trapezoidal rule over the removed fraction from 0 to 1.

Axes: b sample, f fraction, k class.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, section 4.1.
Petsiuk, Das, Saenko, "RISE: randomized input sampling for explanation of black-box models", BMVC
2018 (insertion and deletion).
DeYoung et al., "ERASER: a benchmark to evaluate rationalized NLP models", ACL 2020
(comprehensiveness and sufficiency).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.errors import MetricError
from models.metrics.perturbation import Order, PerturbationCurve

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)  # shares of the picture in DeYoung et al.
SAME_FRACTION = 1e-6


def right(curve: PerturbationCurve, labels: Int[Tensor, " b"]) -> Bool[Tensor, "b f"]:
    """Say where the class with the greatest probability is the label.

    Raises
    ------
    MetricError
        If a label is no class, or the classes do not exclude each other.
    """
    _check_classes(curve, labels)
    if not curve.exclusive:
        raise MetricError(
            "CLASSES_NOT_EXCLUSIVE",
            "several classes may hold at once, so that no single one is right; use insertion and "
            "deletion",
        )
    return curve.probabilities.argmax(2) == labels[:, None]


def input_perturbation(curve: PerturbationCurve, labels: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Area under right (1) or wrong (0) while the least important pixels go first.

    The ``balanced_mean`` over the samples is the area under the balanced accuracy of the paper.

    Raises
    ------
    MetricError
        If the curve is descending or does not span 0 to 1, and as ``right``.
    """
    _check_order(curve, "ascending")
    return _area(curve, right(curve, labels).double())


def input_perturbation_opposite(
    curve: PerturbationCurve, labels: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Area under right (1) or wrong (0) while the most important pixels go first.

    Raises
    ------
    MetricError
        If the curve is ascending or does not span 0 to 1, and as ``right``.
    """
    _check_order(curve, "descending")
    return _area(curve, right(curve, labels).double())


def insertion(curve: PerturbationCurve, classes: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Area under the class's probability while the most important pixels are put in first.

    Read off the ascending curve: all but the least important are in.

    Raises
    ------
    MetricError
        If the curve is descending or does not span 0 to 1, or there is no such class.
    """
    _check_order(curve, "ascending")
    return _area(curve, probability(curve, classes))


def deletion(curve: PerturbationCurve, classes: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Area under the class's probability while the most important pixels are taken out first.

    Raises
    ------
    MetricError
        If the curve is ascending or does not span 0 to 1, or there is no such class.
    """
    _check_order(curve, "descending")
    return _area(curve, probability(curve, classes))


def comprehensiveness(
    curve: PerturbationCurve,
    classes: Int[Tensor, " b"],
    *,
    bins: tuple[float, ...] = BINS,
) -> Float[Tensor, " b"]:
    """Mean loss of the class's probability when the most important shares are taken out.

    Raises
    ------
    MetricError
        If the curve is ascending or has no point at 0 or at a bin, or there is no such class.
    """
    _check_order(curve, "descending")
    return _mean_loss(curve, classes, list(bins))


def sufficiency(
    curve: PerturbationCurve,
    classes: Int[Tensor, " b"],
    *,
    bins: tuple[float, ...] = BINS,
) -> Float[Tensor, " b"]:
    """Mean loss of the class's probability when only the most important shares are left.

    Raises
    ------
    MetricError
        If the curve is descending or has no point at 0 or at 1 less a bin, or there is no such
        class.
    """
    _check_order(curve, "ascending")
    return _mean_loss(curve, classes, [1 - share for share in bins])


def probability(curve: PerturbationCurve, classes: Int[Tensor, " b"]) -> Float[Tensor, "b f"]:
    """Probability of each sample's class.

    Raises
    ------
    MetricError
        If there is no such class.
    """
    _check_classes(curve, classes)
    index = classes.long()[:, None, None].expand(-1, curve.probabilities.shape[1], 1)
    return curve.probabilities.gather(2, index).squeeze(2)


def balanced_mean(
    scores: Float[Tensor, "b ..."],
    labels: Int[Tensor, " b"],
    *,
    weights: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, "..."]:
    """Mean over the classes that occur of the mean over their samples.

    Of ``right``, balanced accuracy against fraction; of ``input_perturbation``, the area under it.
    A class of which no sample has weight is left out; without any sample the mean is NaN.

    Parameters
    ----------
    weights
        How often each sample counts: a resampling of patients.
    """
    names, place = labels.unique(return_inverse=True)
    member = torch.nn.functional.one_hot(place, len(names)).to(scores)
    if weights is not None:
        member = member * weights.to(scores)[:, None]
    occurs = member.sum(0) > 0
    member = member[:, occurs] / member[:, occurs].sum(0)
    return torch.einsum("b...,bk->k...", scores, member).mean(0)


def chance(labels: Int[Tensor, " b"]) -> float:
    """Balanced accuracy of guessing: one over the number of classes that occur.

    What is subtracted for the area above chance, since the area under a constant is the constant.

    Raises
    ------
    MetricError
        If there is no label.
    """
    if not len(labels):
        raise MetricError("NO_LABEL", "no label, so no class to guess; give at least one sample")
    return 1 / len(labels.unique())


def _area(curve: PerturbationCurve, heights: Float[Tensor, "b f"]) -> Float[Tensor, " b"]:
    ends = curve.fractions[0], curve.fractions[-1]
    if ends[0] != 0 or ends[1] != 1:
        raise MetricError(
            "FRACTIONS_DO_NOT_SPAN",
            f"the curve goes from {float(ends[0]):.4g} to {float(ends[1]):.4g}; an area is taken "
            "from 0 to 1: add both ends",
        )
    return torch.trapezoid(heights, curve.fractions, dim=1)


def _mean_loss(curve: PerturbationCurve, classes: Tensor, fractions: list[float]) -> Tensor:
    found = probability(curve, classes)
    whole = found[:, _place(curve, 0.0)]
    losses = [whole - found[:, _place(curve, fraction)] for fraction in fractions]
    return torch.stack(losses).mean(0)


def _place(curve: PerturbationCurve, fraction: float) -> int:
    away = (curve.fractions - fraction).abs()
    place = int(away.argmin())
    if not away[place] <= SAME_FRACTION:
        raise MetricError(
            "FRACTION_MISSING",
            f"the curve has no point where {fraction:.4g} of the pixels are removed; add it to the "
            "fractions",
        )
    return place


def _check_order(curve: PerturbationCurve, order: Order) -> None:
    if curve.order != order:
        raise MetricError(
            "WRONG_ORDER",
            f"the curve removes pixels in {curve.order} order and this is read off the {order} one",
        )


def _check_classes(curve: PerturbationCurve, classes: Tensor) -> None:
    known = curve.probabilities.shape[2]
    if bool(((classes < 0) | (classes >= known)).any()):
        raise MetricError(
            "NO_SUCH_CLASS",
            f"classes go from {int(classes.min())} to {int(classes.max())} and the network knows "
            f"0 to {known - 1}; a map that explains none has no probability to follow",
        )
