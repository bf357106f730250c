"""Accuracy under attack: never above the clean one, falling with the radius, and honest."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from models.attacks import Victim, look
from models.errors import AttackError
from models.metrics.robust_accuracy import (
    area,
    attacked_logits,
    logits_at_radii,
    masking,
    scores_under_attack,
    strong,
)
from models.records import Prediction
from tests.models.adversarial_cases import Toy, everywhere, linear, smooth

SPACE = everywhere(1, torch.float32)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 60) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=seeded(1))


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(2)
    return smooth(16, beta=4.0)


def truth_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        labels = model(images).logits.argmax(1)
    labels[::7] = (labels[::7] + 1) % 3  # some answers are wrong from the start
    return labels


class TestRadii:
    RADII = (0.0, 0.02, 0.05, 0.1, 0.4)

    def test_accuracy_falls_from_the_clean_one(self, model: Toy) -> None:
        images = pictures()
        labels = truth_of(model, images)
        found = logits_at_radii(
            model, images, labels, radii=self.RADII, domain=SPACE, generator=seeded(),
            attack=lambda radius: strong(radius, steps=5, restarts=2),
        )  # fmt: skip
        scores = scores_under_attack(found, labels, radii=self.RADII)
        accuracies = [score.accuracy for score in scores]
        assert accuracies == sorted(accuracies, reverse=True)
        assert accuracies[0] == pytest.approx(51 / 60)
        assert accuracies[-1] < 0.5 * accuracies[0]
        areas = [score.auc for score in scores]
        assert areas[0] is not None
        assert areas[0] > areas[-1]
        assert [score.radius for score in scores] == list(self.RADII)
        assert torch.equal(found[0], model(images).logits.double().float())

    def test_of_a_linear_model_it_is_the_margin(self) -> None:
        """Within the ball of every value, just the samples whose margin is below are misled."""
        weights = torch.randn(2, 1, 4, 4, generator=seeded(5))
        images, model = pictures(200), linear(weights)
        labels = torch.arange(200) % 2
        difference = (images * (weights[0] - weights[1])).sum((1, 2, 3)) * (1 - 2 * labels)
        reach = float((weights[0] - weights[1]).abs().sum())
        for radius in (0.01, 0.03, 0.1):
            found = attacked_logits(
                model, images, labels, attack=strong(radius, steps=3, restarts=1), domain=SPACE
            )
            right = found.argmax(1) == labels
            assert torch.equal(right, difference > radius * reach)

    def test_label_sets_keep_the_highest_loss(self, model: Toy) -> None:
        images, labels = pictures(20), torch.randint(0, 2, (20, 3), generator=seeded())
        found = logits_at_radii(
            model, images, labels, radii=(0.0, 0.5), domain=SPACE, generator=seeded()
        )
        losses = [
            nn.functional.binary_cross_entropy_with_logits(
                at, labels.float(), reduction="none"
            ).mean(1)
            for at in found
        ]
        assert (losses[1] > losses[0]).all()
        clean, attacked = scores_under_attack(found, labels, radii=(0.0, 0.5))
        assert attacked.accuracy < clean.accuracy
        right = (found[0] > 0) == (labels > 0)
        assert clean.accuracy == pytest.approx(float(right.float().mean()))

    def test_more_restarts_never_do_worse(self, model: Toy) -> None:
        images = pictures()
        labels = truth_of(model, images)
        right = [
            attacked_logits(
                model, images, labels, attack=strong(0.05, steps=2, restarts=restarts),
                domain=SPACE, generator=seeded(),
            ).argmax(1) == labels
            for restarts in (1, 6)
        ]  # fmt: skip
        assert not (right[1] & ~right[0]).any()

    def test_the_model_is_given_back(self) -> None:
        model = Toy(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
        )
        model.train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        attacked_logits(
            model, pictures(4), torch.zeros(4, dtype=torch.long), attack=strong(0.1, restarts=1),
            domain=SPACE,
        )  # fmt: skip
        assert all(part.training for part in model.modules())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(value.grad is None for value in model.parameters())

    @pytest.mark.parametrize("radii", [(), (0.2, 0.1), (-0.1, 0.2)])
    def test_radii_that_do_not_ascend(self, model: Toy, radii: tuple[float, ...]) -> None:
        labels = torch.zeros(2, dtype=torch.long)
        with pytest.raises(AttackError, match="in ascending order") as refusal:
            logits_at_radii(model, pictures(2), labels, radii=radii, domain=SPACE)
        assert refusal.value.code == "BAD_RADII"

    def test_random_starts_need_a_generator(self, model: Toy) -> None:
        labels = torch.zeros(2, dtype=torch.long)
        with pytest.raises(AttackError, match="none was given") as refusal:
            attacked_logits(model, pictures(2), labels, attack=strong(0.1), domain=SPACE)
        assert refusal.value.code == "NO_GENERATOR"


class TestArea:
    @pytest.mark.parametrize("classes", [2, 3])
    def test_it_is_that_of_scikit_learn(self, classes: int) -> None:
        logits = torch.randn(50, classes, generator=seeded()).round(decimals=1)  # with ties
        labels = torch.arange(50) % classes
        shares = logits.double().softmax(1).numpy()
        expected = [roc_auc_score(labels.numpy() == k, shares[:, k]) for k in range(classes)]
        assert area(logits, labels) == pytest.approx(np.mean(expected), abs=1e-12)

    def test_of_label_sets_classes_of_one_kind_are_left_out(self) -> None:
        logits = torch.randn(40, 3, generator=seeded())
        labels = torch.randint(0, 2, (40, 3), generator=seeded())
        labels[:, 1] = 1
        expected = [roc_auc_score(labels[:, k].numpy(), logits[:, k].numpy()) for k in (0, 2)]
        assert area(logits, labels) == pytest.approx(np.mean(expected), abs=1e-12)

    def test_without_two_kinds_there_is_none(self) -> None:
        assert area(torch.randn(4, 2, generator=seeded()), torch.zeros(4, dtype=torch.long)) is None


class Masked(nn.Module):
    """The same answers, with gradients that point the other way."""

    def __init__(self, model: Toy) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Prediction:
        found = self.model(images)
        backwards = found.logits - 2 * (found.logits - found.logits.detach())
        return Prediction(logits=backwards, maps=(), penalty=found.penalty)


class TestMasking:
    def test_gradients_that_point_the_wrong_way_are_found_out(self, model: Toy) -> None:
        images = pictures(100)
        labels = truth_of(model, images)
        honest = masking(model, images, labels, radius=0.05, domain=SPACE, generator=seeded())
        assert not honest.suspected
        assert honest.iterative <= honest.one_step <= honest.noise
        assert "weaker attack" not in honest.told()
        masked = masking(
            Masked(model), images, labels, radius=0.2, domain=SPACE, generator=seeded()
        )
        assert masked.suspected
        assert masked.only_noise > 0
        assert "a weaker attack does better" in masked.told()
        gradient = look_of(Masked(model), images, labels)
        assert torch.equal(gradient, -look_of(model, images, labels))


def look_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return look(Victim(model=model, labels=labels), images).gradient
