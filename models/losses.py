"""What training pays: one function per term, each per sample; a batch costs their mean.

Axes: b batch, k class.

References
----------
Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks", CVPR 2017, section
3.2 (the weighted cross entropy loss, W-CEL).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from models.errors import LossError
from models.records import Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The loss of a batch and the terms it is made of.

    Attributes
    ----------
    loss
        Mean over the samples; what is differentiated.
    terms
        Name of a term -> its value per sample, unweighted and detached, for the record.
    """

    loss: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, " b"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelWeights:
    """What an answer of a label set weighs, whichever class it is about.

    Attributes
    ----------
    present, absent
        Where the class is there, and where it is not.
    """

    present: Float[Tensor, ""]
    absent: Float[Tensor, ""]


def present_ratio(labels: Num[Tensor, "b k"]) -> LabelWeights:
    """Weigh a present class by the ratio of absent to present ones among all labels given.

    Both kinds weigh the same in total. Labels of one kind weigh 1: there is nothing to balance.
    """
    present, absent = _counts(labels)
    both = (present > 0) & (absent > 0)
    ratio = absent / present.clamp_min(1)
    return LabelWeights(present=ratio.where(both, 1.0), absent=torch.ones_like(ratio))


def inverse_shares(labels: Num[Tensor, "b k"]) -> LabelWeights:
    """Weigh each kind by the inverse of its share in all labels given: the W-CEL of Wang et al.

    With the mean over labels in the place of their sum, the loss is the mean cost of the present
    ones plus the mean cost of the absent ones: it is ``present_ratio``'s times the labels over the
    absent ones. Labels of one kind weigh 1.
    """
    present, absent = _counts(labels)
    both, total = (present > 0) & (absent > 0), present + absent
    return LabelWeights(
        present=(total / present.clamp_min(1)).where(both, 1.0),
        absent=(total / absent.clamp_min(1)).where(both, 1.0),
    )


WEIGHTINGS: Mapping[str, Callable[[Num[Tensor, "b k"]], LabelWeights]] = MappingProxyType(
    {"batch": present_ratio, "w-cel": inverse_shares}
)
"""Name of a weighting that is counted in each batch -> its weights."""


def _counts(labels: Num[Tensor, "b k"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Count what is present and what is absent."""
    present = labels.to(torch.float32).sum()
    return present, labels.numel() - present


def objective(
    prediction: Prediction,
    labels: Int[Tensor, " b"] | Num[Tensor, "b k"],
    *,
    alpha: float,
    class_weights: Float[Tensor, " c"] | None = None,
    label_weights: LabelWeights | None = None,
    label_smoothing: float = 0.0,
) -> Objective:
    """Classification plus ``alpha`` times the consistency penalty, averaged over the batch.

    The mean is over samples: class weights do not change the divisor, so that the loss of a batch
    is the mean of the losses of its parts, unless ``label_weights`` are counted in each part.

    Parameters
    ----------
    labels
        One class number per sample, or one 0 or 1 per sample and class (``multi_label_loss``).

    Raises
    ------
    LossError
        As ``classification_loss`` or ``multi_label_loss``, and if ``alpha`` is negative.
    """
    if alpha < 0:
        raise LossError("BAD_ALPHA", f"alpha is {alpha}; the penalty's weight is 0 or more")
    classification = sample_losses(
        prediction,
        labels,
        class_weights=class_weights,
        label_weights=label_weights,
        label_smoothing=label_smoothing,
    )
    consistency = consistency_loss(prediction)
    total = classification + alpha * consistency if alpha else classification
    terms = {"classification": classification.detach(), "consistency": consistency.detach()}
    return Objective(loss=total.mean(), terms=MappingProxyType(terms))


def sample_losses(
    prediction: Prediction,
    labels: Int[Tensor, " b"] | Num[Tensor, "b k"],
    *,
    class_weights: Float[Tensor, " c"] | None = None,
    label_weights: LabelWeights | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " b"]:
    """Classification loss of each sample, whether it has one class or a label set.

    Raises
    ------
    LossError
        As ``classification_loss`` or ``multi_label_loss``, and ``NOT_LABEL_SETS`` if
        ``label_weights`` are given for samples of one class.
    """
    if labels.ndim > 1:
        return multi_label_loss(
            prediction,
            labels,
            class_weights=class_weights,
            label_weights=label_weights,
            label_smoothing=label_smoothing,
        )
    if label_weights is not None:
        raise LossError(
            "NOT_LABEL_SETS",
            "label_weights weigh present against absent classes, but each sample is of one class: "
            "give class_weights",
        )
    return classification_loss(
        prediction, labels, class_weights=class_weights, label_smoothing=label_smoothing
    )


def classification_loss(
    prediction: Prediction,
    labels: Int[Tensor, " b"],
    *,
    class_weights: Float[Tensor, " c"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " b"]:
    """Cross entropy of each sample, times the weight of its class.

    Labels on an accelerator are not checked, because looking at them would stall it.

    Raises
    ------
    LossError
        If a label is not the number of a class, the weights are not one per class, or the
        smoothing lies outside [0, 1).
    """
    classes = prediction.logits.shape[1]
    if labels.device.type == "cpu":
        _check_labels(labels, classes)
    _check_smoothing(label_smoothing)
    losses = cross_entropy(
        prediction.logits, labels.long(), reduction="none", label_smoothing=label_smoothing
    )
    if class_weights is None:
        return losses
    _check_class_weights(class_weights, classes)
    return losses * class_weights.to(losses)[labels.long()]


def multi_label_loss(
    prediction: Prediction,
    labels: Num[Tensor, "b k"],
    *,
    class_weights: Float[Tensor, " c"] | None = None,
    label_weights: LabelWeights | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " b"]:
    """Binary cross entropy of each sample, mean over the classes, each of which it has or has not.

    Labels on an accelerator are not checked, because looking at them would stall it.

    Parameters
    ----------
    labels
        1 where a sample is of a class, 0 where it is not.
    class_weights
        Of the samples that are of a class; those that are not weigh 1. Their ratio of numbers,
        absent over present in the training split, balances the class.
    label_weights
        Of all present and of all absent classes, as the ``WEIGHTINGS`` find them; times the
        weights of the classes.
    label_smoothing
        Labels become this much nearer to one half, as a share of the way.

    Raises
    ------
    LossError
        If a label is neither 0 nor 1, the labels or weights are not one per class, or the
        smoothing lies outside [0, 1).
    """
    classes = prediction.logits.shape[1]
    if labels.shape != prediction.logits.shape:
        raise LossError(
            "BAD_LABEL",
            f"labels are {labels.shape[0]} x {labels.shape[1]} for {len(prediction.logits)} "
            f"samples and {classes} classes; give a 0 or 1 for each",
        )
    if labels.device.type == "cpu":
        _check_present(labels)
    _check_smoothing(label_smoothing)
    if class_weights is not None:
        _check_class_weights(class_weights, classes)
        class_weights = class_weights.to(prediction.logits)
    targets = labels.to(prediction.logits) * (1 - label_smoothing) + label_smoothing / 2
    weights = class_weights
    if label_weights is not None:
        ratio = (label_weights.present / label_weights.absent).to(prediction.logits)
        weights = ratio * (torch.ones_like(targets[0]) if weights is None else weights)
    losses = binary_cross_entropy_with_logits(
        prediction.logits, targets, reduction="none", pos_weight=weights
    )
    means = losses.mean(1)
    return means if label_weights is None else means * label_weights.absent.to(means)


def consistency_loss(prediction: Prediction) -> Float[Tensor, " b"]:
    """Cost of each sample's disagreement between attention levels; zero without such levels."""
    return prediction.penalty


def _check_labels(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise LossError(
            "BAD_LABEL",
            f"a label is {int(torch.as_tensor(wrong[0]))}; {classes} classes are numbered "
            f"0 to {classes - 1}, and unlabelled samples (-1) cannot be trained on",
        )


def _check_present(labels: Tensor) -> None:
    wrong = labels[(labels != 0) & (labels != 1)]
    if len(wrong):
        raise LossError(
            "BAD_LABEL",
            f"a label is {float(torch.as_tensor(wrong[0])):g}; where a sample may be of several "
            "classes each label is 0 or 1, and unlabelled samples cannot be trained on",
        )


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise LossError("BAD_SMOOTHING", f"label_smoothing is {label_smoothing}; it lies in [0, 1)")


def _check_class_weights(class_weights: Tensor, classes: int) -> None:
    if len(class_weights) != classes:
        raise LossError(
            "BAD_CLASS_WEIGHTS",
            f"{len(class_weights)} class weights for {classes} classes; give one per class",
        )
