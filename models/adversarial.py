"""Robust objectives: what a classifier is trained on in place of, or beside, its pictures.

With w the weight of the robust part and L the whole loss of a batch, what disagreement between
attention levels costs included, on whichever pictures the network is run on:

    perturbed pictures    (1 - w) L(x) + w L(x + delta)
    gradient penalty      L(x) + w h(g),  g the gradient of the classification loss in the picture

Axes: b batch, c channel, h row, w column.

References
----------
Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust
optimization", MICCAI 2019, arXiv 1905.03767.
Gong, Dou, Farnia, "Structured gradient-based interpretations via norm-regularized adversarial
training", CVPR 2024, arXiv 2404.04647.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from models.attacks import Attack, Seen, Victim, gradient_penalty, guided, perturbed
from models.conjugates import CONJUGATE_PAIRS, ConjugatePair, Strength
from models.domain import Domain
from models.errors import AttackError, unknown

Kind = Literal["standard", "one-step", "iterative", "ascent", "penalty", "guided"]

PATCHES = 16  # along the shorter side of a picture, where the size of a patch is not given
REACH = 2.5  # radii that all steps of an ascent are long together: across the set and back


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustObjective:
    """What a name in ``OBJECTIVES`` stands for, and its own defaults.

    Attributes
    ----------
    kind
        Pictures as they are (``standard``); perturbed in one step, in several towards the
        maximiser (``iterative``), or in several of a fixed size from a random start (``ascent``);
        penalised gradients (``penalty``); perturbed as a mask tells (``guided``).
    pair
        Name of the Fenchel pair.
    radius
        In shares of the valid range, or in standard deviations where pictures are scores.
    ridge
        Of the elastic net.
    steps
        Gradients taken for one batch.
    """

    kind: Kind
    pair: str = "l2"
    radius: float = 0.0
    ridge: float = 0.0
    steps: int = 1

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the settings that matter to it."""
        names = [] if self.kind == "standard" else ["radius", "weight"]
        names += ["steps"] if self.kind in ("iterative", "ascent") else []
        names += ["step_size", "random_start"] if self.kind == "ascent" else []
        names += ["ridge"] if self.pair == "elastic" else []
        return (*names, *(("patch", "across_channels") if self.pair == "group" else ()))


_small = partial(RobustObjective, pair="l1", radius=0.005)
_elastic = partial(RobustObjective, pair="elastic", radius=0.005, ridge=0.025)
_group = partial(RobustObjective, pair="group", radius=0.05)
_round = partial(RobustObjective, pair="l2", radius=0.5)

OBJECTIVES: Mapping[str, RobustObjective] = MappingProxyType(
    {
        "standard": RobustObjective(kind="standard"),
        "fgsm": _small(kind="one-step"),
        "pgd": _small(kind="ascent", steps=7),
        "pgd-l2": _round(kind="ascent", steps=7),
        "l1": _small(kind="one-step"),
        "l1-iterative": _small(kind="iterative", steps=7),
        "l1-penalty": _small(kind="penalty"),
        "elastic": _elastic(kind="one-step"),
        "elastic-iterative": _elastic(kind="iterative", steps=7),
        "elastic-penalty": _elastic(kind="penalty"),
        "group": _group(kind="one-step"),
        "group-iterative": _group(kind="iterative", steps=7),
        "group-penalty": _group(kind="penalty"),
        "l2": _round(kind="one-step"),
        "l2-iterative": _round(kind="iterative", steps=7),
        "l2-penalty": _round(kind="penalty"),
        "mask-guided": _round(kind="guided"),
    }
)
"""Name of an objective -> what it does; ``fgsm`` and ``l1`` are one and the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustSettings:
    """What may be set of an objective; None takes the objective's own default.

    Attributes
    ----------
    radius, ridge, patch, across_channels
        As ``models.conjugates.Strength``; a patch is a sixteenth of the picture's shorter side.
    steps, step_size, random_start
        As ``models.attacks.Attack``; all steps together are 2.5 radii long, from a random start.
    weight
        Share of the robust part in the loss, or factor of the penalty; 1 if not given.
    """

    radius: float | None = None
    ridge: float | None = None
    patch: int | None = None
    across_channels: bool | None = None
    steps: int | None = None
    step_size: float | None = None
    random_start: bool | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Robust:
    """An objective with all of its settings known.

    Attributes
    ----------
    attack
        How pictures are perturbed in training.
    """

    name: str
    kind: Kind
    weight: float
    strength: Strength
    pair: ConjugatePair
    attack: Attack

    @property
    def active(self) -> bool:
        """Whether training differs from standard training at all."""
        size = max(self.strength.radius, self.strength.ridge)
        return self.kind != "standard" and self.weight > 0 and size > 0

    @property
    def perturbs(self) -> bool:
        """Whether the network trains on perturbed pictures."""
        return self.active and self.kind != "penalty"

    @property
    def needs_masks(self) -> bool:
        """Whether each picture comes with a mask."""
        return self.active and self.kind == "guided"

    @property
    def has_ridge(self) -> bool:
        """Whether the size of gradients matters, and a ridge may be too small to be felt."""
        return self.perturbs and self.strength.ridge > 0 and self.strength.radius > 0

    @property
    def needs_starts(self) -> bool:
        """Whether each picture comes with random numbers."""
        return self.active and self.attack.random_start

    def perturbed(
        self,
        images: Float[Tensor, "b c h w"],
        victim: Victim,
        *,
        domain: Domain,
        start: Float[Tensor, "b c h w"] | None = None,
        masks: Float[Tensor, "_b _h _w"] | None = None,
        looking: Callable[[Tensor], Seen] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Perturb normalised pictures as the objective does.

        Parameters
        ----------
        start, looking
            As ``models.attacks.perturbed``.
        masks
            As ``models.attacks.guided``.

        Raises
        ------
        AttackError
            ``NO_MASKS`` if it needs masks and there are none; ``BAD_MASKS`` as ``guided``.
        """
        if self.kind != "guided":
            return perturbed(
                images, victim, self.attack, domain=domain, start=start, looking=looking
            )
        if masks is None:
            raise AttackError(
                "NO_MASKS",
                f"'{self.name}' is told by masks where to move, and got none: train on data with "
                "masks, or choose another objective",
            )
        return guided(images, victim, masks, radius=self.strength.radius, domain=domain)

    def penalty(
        self, images: Float[Tensor, "b c h w"], victim: Victim, *, domain: Domain
    ) -> Float[Tensor, " b"]:
        """Penalty on each sample's gradient, unweighted."""
        return gradient_penalty(images, victim, self.pair, domain=domain)


def robust(name: str, settings: RobustSettings, *, image_size: tuple[int, int]) -> Robust:
    """Complete an objective's settings by its own defaults.

    Raises
    ------
    AttackError
        ``UNKNOWN_OBJECTIVE``; ``BAD_SETTING`` if something is set that the objective has no use
        for, or the weight lies outside [0, 1]; ``BAD_STRENGTH`` and ``BAD_ATTACK`` for numbers out
        of range.
    """
    if name not in OBJECTIVES:
        raise AttackError("UNKNOWN_OBJECTIVE", unknown("objective", name, OBJECTIVES))
    chosen = OBJECTIVES[name]
    _refuse_idle(name, settings)
    weight = 1.0 if settings.weight is None else settings.weight
    if not 0 <= weight <= 1:
        raise AttackError(
            "BAD_SETTING",
            f"weight is {weight}; the share of the robust part in the loss lies in [0, 1]",
        )
    strength = _strength(chosen, settings, image_size)
    pair = CONJUGATE_PAIRS[chosen.pair](strength)
    return Robust(
        name=name,
        kind=chosen.kind,
        weight=weight,
        strength=strength,
        pair=pair,
        attack=_attack(chosen, settings, pair, radius=strength.radius),
    )


def _strength(
    chosen: RobustObjective, settings: RobustSettings, image_size: tuple[int, int]
) -> Strength:
    return Strength(
        radius=chosen.radius if settings.radius is None else settings.radius,
        ridge=chosen.ridge if settings.ridge is None else settings.ridge,
        patch=-(-min(image_size) // PATCHES) if settings.patch is None else settings.patch,
        across_channels=bool(settings.across_channels),
    )


def _attack(
    chosen: RobustObjective, settings: RobustSettings, pair: ConjugatePair, *, radius: float
) -> Attack:
    steps = chosen.steps if settings.steps is None else settings.steps
    ascent = chosen.kind == "ascent"
    return Attack(
        pair=pair,
        radius=radius,
        form="ascent" if ascent else "conditional",
        steps=steps,
        step_size=REACH / max(1, steps) if settings.step_size is None else settings.step_size,
        random_start=ascent if settings.random_start is None else settings.random_start,
    )


def _refuse_idle(name: str, settings: RobustSettings) -> None:
    takes = OBJECTIVES[name].takes
    for item in fields(settings):
        if getattr(settings, item.name) is not None and item.name not in takes:
            using = [other for other, found in OBJECTIVES.items() if item.name in found.takes]
            raise AttackError(
                "BAD_SETTING",
                f"{item.name} is {getattr(settings, item.name)}, of which objective '{name}' makes "
                f"no use: leave it out, or choose an objective that does ({', '.join(using)})",
            )
