import math

import pytest
import torch

from models.errors import LossError
from models.losses import (
    WEIGHTINGS,
    LabelWeights,
    classification_loss,
    consistency_loss,
    multi_label_loss,
    objective,
)
from models.records import Prediction


def prediction(seed=0, batch=5, classes=3):
    generator = torch.Generator().manual_seed(seed)
    return Prediction(
        logits=torch.randn(batch, classes, generator=generator, requires_grad=True),
        maps=(),
        penalty=torch.rand(batch, generator=generator, requires_grad=True),
    )


LABELS = torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_sample_by_sample(smoothing):
    made, weights = prediction(), torch.tensor([0.5, 1.0, 4.0])
    losses = classification_loss(made, LABELS, class_weights=weights, label_smoothing=smoothing)
    for i, label in enumerate(LABELS.tolist()):
        exponentials = [math.exp(value) for value in made.logits[i].tolist()]
        wanted = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
        loss = -sum(
            share * math.log(e / sum(exponentials))
            for share, e in zip(wanted, exponentials, strict=True)
        )
        assert losses[i].item() == pytest.approx(weights[label].item() * loss, rel=1e-5)


def test_objective_is_the_mean_of_the_weighted_terms():
    made = prediction()
    whole = objective(made, LABELS, alpha=3.0)
    terms = classification_loss(made, LABELS) + 3.0 * consistency_loss(made)
    torch.testing.assert_close(whole.loss, terms.mean())
    torch.testing.assert_close(whole.terms["classification"], classification_loss(made, LABELS))
    torch.testing.assert_close(whole.terms["consistency"], made.penalty)
    assert not any(term.requires_grad for term in whole.terms.values())
    whole.loss.backward()
    torch.testing.assert_close(made.penalty.grad, torch.full((5,), 3.0 / 5))


def test_batch_is_the_mean_of_its_parts_whatever_the_class_weights():
    made, weights = prediction(), torch.tensor([0.1, 1.0, 9.0])
    parts = [
        objective(
            Prediction(logits=made.logits[i : i + 1], maps=(), penalty=made.penalty[i : i + 1]),
            LABELS[i : i + 1],
            alpha=2.0,
            class_weights=weights,
        ).loss
        for i in range(5)
    ]
    whole = objective(made, LABELS, alpha=2.0, class_weights=weights).loss
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_without_alpha_the_penalty_has_no_gradient():
    made = prediction()
    objective(made, LABELS, alpha=0.0).loss.backward()
    assert made.penalty.grad is None
    assert made.logits.grad is not None


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_class_are_refused(label):
    with pytest.raises(LossError, match=f"a label is {label}; 3 classes are numbered 0 to 2"):
        classification_loss(prediction(), torch.tensor([0, 1, label, 1, 0]))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(LossError, match=rf"label_smoothing is {smoothing}; it lies in \[0, 1\)"):
        classification_loss(prediction(), LABELS, label_smoothing=smoothing)


def test_class_weights_of_another_number_are_refused():
    with pytest.raises(LossError, match="2 class weights for 3 classes; give one per class"):
        objective(prediction(), LABELS, alpha=1.0, class_weights=torch.ones(2))


def test_negative_alpha_is_refused():
    with pytest.raises(LossError, match=r"alpha is -1\.0; the penalty's weight is 0 or more"):
        objective(prediction(), LABELS, alpha=-1.0)


PRESENT = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.uint8])
def test_binary_cross_entropy_class_by_class(smoothing, kind):
    made, weights = prediction(), torch.tensor([0.5, 1.0, 4.0])
    present = PRESENT.to(kind)
    losses = multi_label_loss(made, present, class_weights=weights, label_smoothing=smoothing)
    for i, labels in enumerate(PRESENT.tolist()):
        wanted = 0.0
        for k, label in enumerate(labels):
            probability = 1 / (1 + math.exp(-made.logits[i, k].item()))
            target = (1 - smoothing) * label + smoothing / 2
            wanted -= weights[k].item() * target * math.log(probability) / 3
            wanted -= (1 - target) * math.log(1 - probability) / 3
        assert losses[i].item() == pytest.approx(wanted, rel=1e-5)


def test_objective_takes_several_labels_per_sample():
    made, weights = prediction(), torch.tensor([0.1, 1.0, 9.0])
    whole = objective(made, PRESENT, alpha=2.0, class_weights=weights)
    terms = multi_label_loss(made, PRESENT, class_weights=weights) + 2.0 * made.penalty
    torch.testing.assert_close(whole.loss, terms.mean())
    parts = [
        objective(
            Prediction(logits=made.logits[i : i + 1], maps=(), penalty=made.penalty[i : i + 1]),
            PRESENT[i : i + 1],
            alpha=2.0,
            class_weights=weights,
        ).loss
        for i in range(5)
    ]
    torch.testing.assert_close(whole.loss, torch.stack(parts).mean())


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan")])
def test_labels_that_are_neither_present_nor_absent_are_refused(label):
    present = PRESENT.float()
    present[3, 1] = label
    with pytest.raises(LossError, match=f"a label is {label:g}; where a sample may be of several"):
        multi_label_loss(prediction(), present)


def test_several_labels_of_another_number_are_refused():
    with pytest.raises(LossError, match="labels are 5 x 2 for 5 samples and 3 classes; give a 0"):
        multi_label_loss(prediction(), PRESENT[:, :2])
    with pytest.raises(LossError, match="2 class weights for 3 classes; give one per class"):
        multi_label_loss(prediction(), PRESENT, class_weights=torch.ones(2))
    with pytest.raises(LossError, match=r"label_smoothing is 1.0; it lies in \[0, 1\)"):
        multi_label_loss(prediction(), PRESENT, label_smoothing=1.0)


def counted(labels):
    """Present and absent labels, by a loop."""
    flat = [label for row in labels.tolist() for label in row]
    return flat.count(1), flat.count(0)


def test_w_cel_by_hand_and_its_gradient():
    made = prediction()
    present, absent = counted(PRESENT)
    total = present + absent
    losses = multi_label_loss(made, PRESENT, label_weights=WEIGHTINGS["w-cel"](PRESENT))
    losses.mean().backward()
    wanted = 0.0
    for i, labels in enumerate(PRESENT.tolist()):
        for k, label in enumerate(labels):
            probability = 1 / (1 + math.exp(-made.logits[i, k].item()))
            weight = total / present if label else total / absent
            wanted -= weight * math.log(probability if label else 1 - probability)
            slope = weight * (probability - label) / total
            assert made.logits.grad[i, k].item() == pytest.approx(slope, rel=1e-5)
    assert losses.mean().item() == pytest.approx(wanted / total, rel=1e-5)


def test_batch_weights_by_hand():
    made = prediction()
    present, absent = counted(PRESENT)
    losses = multi_label_loss(made, PRESENT, label_weights=WEIGHTINGS["batch"](PRESENT))
    wanted = multi_label_loss(made, PRESENT, class_weights=torch.full((3,), absent / present))
    torch.testing.assert_close(losses, wanted)


def test_the_two_weightings_differ_by_one_factor():
    made = prediction()
    _, absent = counted(PRESENT)
    one, other = (
        multi_label_loss(made, PRESENT, label_weights=WEIGHTINGS[name](PRESENT))
        for name in ("batch", "w-cel")
    )
    torch.testing.assert_close(other, one * PRESENT.numel() / absent)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("kind", [0, 1])
def test_labels_of_one_kind_weigh_one(name, kind):
    made, labels = prediction(), torch.full((5, 3), kind)
    weights = WEIGHTINGS[name](labels)
    assert (weights.present.item(), weights.absent.item()) == (1, 1)
    for smoothing in (0.0, 0.2):
        found = multi_label_loss(made, labels, label_weights=weights, label_smoothing=smoothing)
        torch.testing.assert_close(found, multi_label_loss(made, labels, label_smoothing=smoothing))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_both_kinds_weigh_the_same_in_total(name):
    present, absent = counted(PRESENT)
    weights = WEIGHTINGS[name](PRESENT)
    assert present * weights.present.item() == pytest.approx(absent * weights.absent.item())


def test_weights_of_labels_and_of_classes_multiply():
    made, classes = prediction(), torch.tensor([0.5, 1.0, 4.0])
    weights = LabelWeights(present=torch.tensor(3.0), absent=torch.tensor(2.0))
    found = multi_label_loss(made, PRESENT, class_weights=classes, label_weights=weights)
    wanted = 2 * multi_label_loss(made, PRESENT, class_weights=classes * 1.5)
    torch.testing.assert_close(found, wanted)


def test_label_weights_for_samples_of_one_class_are_refused():
    weights = WEIGHTINGS["batch"](PRESENT)
    with pytest.raises(
        LossError, match="each sample is of one class: give class_weights"
    ) as caught:
        objective(prediction(), LABELS, alpha=1.0, label_weights=weights)
    assert caught.value.code == "NOT_LABEL_SETS"
