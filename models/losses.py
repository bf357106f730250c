"""What training pays: one function per term, each per sample; a batch costs their mean.

Axes: b batch, k class.
"""

from collections.abc import Mapping
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


def objective(
    prediction: Prediction,
    labels: Int[Tensor, " b"] | Num[Tensor, "b k"],
    *,
    alpha: float,
    class_weights: Float[Tensor, " c"] | None = None,
    label_smoothing: float = 0.0,
) -> Objective:
    """Classification plus ``alpha`` times the consistency penalty, averaged over the batch.

    The mean is over samples: class weights do not change the divisor, so that the loss of a batch
    is the mean of the losses of its parts.

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
    loss = classification_loss if labels.ndim == 1 else multi_label_loss
    classification = loss(
        prediction, labels, class_weights=class_weights, label_smoothing=label_smoothing
    )
    consistency = consistency_loss(prediction)
    total = classification + alpha * consistency if alpha else classification
    terms = {"classification": classification.detach(), "consistency": consistency.detach()}
    return Objective(loss=total.mean(), terms=MappingProxyType(terms))


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
    losses = binary_cross_entropy_with_logits(
        prediction.logits, targets, reduction="none", pos_weight=class_weights
    )
    return losses.mean(1)


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
