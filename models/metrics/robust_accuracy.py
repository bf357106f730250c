"""How well a classifier does under attack, and whether the attack can be believed.

A perturbation found is a proof, one not found is none: accuracy under attack is an upper bound, and
only as low as the attack is strong. So every sample keeps the worst of all points that were looked
at, a larger radius inherits what a smaller one found, and ``masking`` says whether gradients seem
to mislead the attack.

Axes: r radius, b batch, c channel, h row, w column, k class.

References
----------
Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018, 3.1.
Carlini et al., "On evaluating adversarial robustness", arXiv 1902.06705.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from models.attacks import Attack, Seen, Victim, look, perturbed, plainly, resting, starts
from models.conjugates import CONJUGATE_PAIRS, Strength
from models.domain import Domain
from models.errors import AttackError
from models.records import Prediction
from models.scoped import evaluating

Bounded = Literal["l1", "l2"]
STEPS, RESTARTS = 20, 5
REACH = 2.5  # radii that all steps of one try are long together


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderAttack:
    """Scores of a split at one radius.

    Attributes
    ----------
    accuracy
        Share of samples of the right class; of label sets, share of right answers at one half.
    auc
        Area under the ROC curve, mean over the classes against the rest that are both seen and
        absent; None where there is none.
    """

    radius: float
    accuracy: float
    auc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """What a transfer check found at one radius; the attacks see the same pictures.

    Attributes
    ----------
    iterative, one_step, noise
        Accuracy under an attack of many steps, of one step, and under as many random points.
    only_one_step, only_noise
        Samples that the weaker attack misleads and the iterative one does not.
    """

    iterative: float
    one_step: float
    noise: float
    only_one_step: int
    only_noise: int

    @property
    def suspected(self) -> bool:
        """Whether a weaker attack does better: gradients then mislead, and accuracies flatter."""
        return min(self.one_step, self.noise) < self.iterative

    def told(self) -> str:
        """Say it to people."""
        found = (
            f"accuracy {self.iterative:.3f} under the iterative attack, {self.one_step:.3f} under "
            f"one step, {self.noise:.3f} under random noise of the same size"
        )
        if not self.suspected:
            return found
        return (
            f"{found}: a weaker attack does better, so gradients mislead the stronger one, and the "
            "accuracy under attack is too high to be believed"
        )


def strong(
    radius: float, *, pair: Bounded = "l1", steps: int = STEPS, restarts: int = RESTARTS
) -> Attack:
    """Return an attack of many steps from the picture itself, and again from random starts.

    Parameters
    ----------
    pair
        ``l1`` bounds the change of every value, ``l2`` that of the whole picture.
    """
    return Attack(
        pair=CONJUGATE_PAIRS[pair](Strength(radius=radius)),
        radius=radius,
        form="ascent",
        steps=steps,
        step_size=REACH / max(1, steps),
        restarts=restarts,
    )


def attacked_logits(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    labels: Num[Tensor, "b ..."],
    *,
    attack: Attack,
    domain: Domain,
    generator: torch.Generator | None = None,
    known: Float[Tensor, "b k"] | None = None,
    forward: Callable[[Tensor, nn.Module], Prediction] = plainly,
) -> Float[Tensor, "b k"]:
    """Logits at the worst point that an attack looked at, for each sample.

    Worst is a wrong class before a right one, and then the higher loss; of label sets, the higher
    loss. The picture itself is looked at too. The model is given back as it was.

    Parameters
    ----------
    images
        Normalised.
    generator
        Draws random starts.
    known
        Logits at points of the set that were found before.

    Raises
    ------
    AttackError
        ``NO_GENERATOR`` if random starts are to be drawn and nothing draws them.
    """
    victim = Victim(model=model, labels=labels, forward=forward)
    with evaluating(model):
        worst = _Worst(victim, images)
        if known is not None:
            worst.keep(known)
        for restart in range(attack.restarts):
            start = None
            if restart or attack.random_start:
                start = _drawn(images, generator)
            end = perturbed(images, victim, attack, domain=domain, start=start, looking=worst.look)
            worst.visit(end)
    return worst.logits


def logits_at_radii(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    labels: Num[Tensor, "b ..."],
    *,
    radii: Sequence[float],
    domain: Domain,
    attack: Callable[[float], Attack] = strong,
    generator: torch.Generator | None = None,
    forward: Callable[[Tensor, nn.Module], Prediction] = plainly,
) -> Float[Tensor, "r b k"]:
    """Worst logits within each radius; what a smaller one found also counts for the larger.

    Parameters
    ----------
    radii
        Ascending; 0 is the picture itself.

    Raises
    ------
    AttackError
        ``BAD_RADII`` if they do not ascend; ``NO_GENERATOR`` as above.
    """
    if list(radii) != sorted(radii) or not radii or radii[0] < 0:
        raise AttackError(
            "BAD_RADII",
            f"radii are {list(radii)}; give one or more, 0 or larger, in ascending order, for each "
            "inherits what the one before found",
        )
    found: list[Tensor] = []
    for radius in radii:
        made = attack(radius) if radius else replace(attack(0.0), steps=1, restarts=1)
        found.append(
            attacked_logits(
                model, images, labels, attack=made, domain=domain, generator=generator,
                known=found[-1] if found else None, forward=forward,
            )
        )  # fmt: skip
    return torch.stack(found)


def scores_under_attack(
    logits: Float[Tensor, "r b k"], labels: Num[Tensor, "b ..."], *, radii: Sequence[float]
) -> tuple[UnderAttack, ...]:
    """Accuracy and area under the ROC curve at each radius, over all samples of a split."""
    found = []
    for radius, at in zip(radii, logits, strict=True):
        right = (at > 0) == (labels > 0) if labels.ndim > 1 else at.argmax(1) == labels
        accuracy = float(right.double().mean())
        found.append(UnderAttack(radius=radius, accuracy=accuracy, auc=area(at, labels)))
    return tuple(found)


def area(logits: Float[Tensor, "b k"], labels: Num[Tensor, "b ..."]) -> float | None:
    """Mean over classes of the chance that a sample of the class scores above one that is not.

    Ties count one half. None where no class is both seen and absent.
    """
    values = logits.double()
    if labels.ndim == 1:
        truth = labels[:, None] == torch.arange(values.shape[1], device=labels.device)
        values = values.softmax(1)
    else:
        truth = labels > 0
    areas = [
        _area(values[:, k], truth[:, k])
        for k in range(values.shape[1])
        if 0 < int(truth[:, k].sum()) < len(truth)
    ]
    return sum(areas) / len(areas) if areas else None


def masking(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    labels: Num[Tensor, " b"],
    *,
    radius: float,
    domain: Domain,
    generator: torch.Generator,
    pair: Bounded = "l1",
    forward: Callable[[Tensor, nn.Module], Prediction] = plainly,
) -> Masking:
    """Compare an iterative attack with one step and with noise, which it should both beat."""
    iterative = strong(radius, pair=pair, restarts=1)
    one_step = replace(iterative, form="conditional", steps=1)
    victim = Victim(model=model, labels=labels, forward=forward)
    wrong = [
        _mistaken(
            attacked_logits(model, images, labels, attack=attack, domain=domain, forward=forward),
            labels,
        )
        for attack in (iterative, one_step)
    ]
    wrong.append(_mistaken(_under_noise(victim, images, iterative, domain, generator), labels))
    accuracies = [1 - float(found.double().mean()) for found in wrong]
    return Masking(
        iterative=accuracies[0],
        one_step=accuracies[1],
        noise=accuracies[2],
        only_one_step=int((wrong[1] & ~wrong[0]).sum()),
        only_noise=int((wrong[2] & ~wrong[0]).sum()),
    )


@final
class _Worst:
    """Looks at pictures and keeps, for each sample, the worst logits that were seen."""

    def __init__(self, victim: Victim, images: Tensor) -> None:
        self._victim = victim
        self.logits = self._logits(images)
        self._wrong, self._losses = self._judged(self.logits)

    def look(self, images: Tensor) -> Seen:
        seen = look(self._victim, images)
        self.keep(seen.logits)
        return seen

    def visit(self, images: Tensor) -> None:
        self.keep(self._logits(images))

    def keep(self, logits: Tensor) -> None:
        wrong, losses = self._judged(logits)
        worse = (wrong & ~self._wrong) | ((wrong == self._wrong) & (losses > self._losses))
        self.logits = torch.where(worse[:, None], logits, self.logits)
        self._losses = torch.where(worse, losses, self._losses)
        self._wrong = wrong | self._wrong

    def _logits(self, images: Tensor) -> Tensor:
        with torch.no_grad(), resting(self._victim.model):
            return self._victim.forward(images, self._victim.model).logits

    def _judged(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        prediction = Prediction(logits=logits, maps=(), penalty=logits.new_zeros(len(logits)))
        labels = self._victim.labels
        return _mistaken(logits, labels), self._victim.loss(prediction, labels)


def _mistaken(logits: Tensor, labels: Tensor) -> Bool[Tensor, " b"]:
    if labels.ndim > 1:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return logits.argmax(1) != labels


def _under_noise(
    victim: Victim, images: Tensor, attack: Attack, domain: Domain, generator: torch.Generator
) -> Tensor:
    """Worst logits over as many corners of the set as the attack takes steps."""
    domain = domain.to(images)
    with evaluating(victim.model):
        worst = _Worst(victim, images)
        for _ in range(attack.steps):
            corner = attack.pair.maximiser(_drawn(images, generator))
            worst.visit(domain.moved(images, domain.limited(images, corner)))
    return worst.logits


def _drawn(images: Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise AttackError(
            "NO_GENERATOR", "random starts are drawn from a generator, and none was given"
        )
    return starts(tuple(images.shape), generator=generator).to(images)


def _area(scores: Tensor, truth: Tensor) -> float:
    """Mann-Whitney statistic from mean ranks."""
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2)[place]
    positives = int(truth.sum())
    above = float(ranks[truth].sum()) - positives * (positives + 1) / 2
    return above / (positives * (len(truth) - positives))
