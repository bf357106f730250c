"""What training pays: one function per term, each per sample; a batch costs their mean.

Axes: b batch, k class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

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
    labels: Int[Tensor, " b"],
    *,
    alpha: float,
    class_weights: Float[Tensor, " k"] | None = None,
    label_smoothing: float = 0.0,
) -> Objective:
    """Classification plus ``alpha`` times the consistency penalty, averaged over the batch.

    The mean is over samples: class weights do not change the divisor, so that the loss of a batch
    is the mean of the losses of its parts.

    Raises
    ------
    LossError
        As ``classification_loss``, and if ``alpha`` is negative.
    """
    if alpha < 0:
        raise LossError("BAD_ALPHA", f"alpha is {alpha}; the penalty's weight is 0 or more")
    classification = classification_loss(
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
    class_weights: Float[Tensor, " k"] | None = None,
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
    if not 0 <= label_smoothing < 1:
        raise LossError("BAD_SMOOTHING", f"label_smoothing is {label_smoothing}; it lies in [0, 1)")
    losses = cross_entropy(
        prediction.logits, labels.long(), reduction="none", label_smoothing=label_smoothing
    )
    if class_weights is None:
        return losses
    if len(class_weights) != classes:
        raise LossError(
            "BAD_CLASS_WEIGHTS",
            f"{len(class_weights)} class weights for {classes} classes; give one per class",
        )
    return losses * class_weights.to(losses)[labels.long()]


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
