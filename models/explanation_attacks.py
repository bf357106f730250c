"""Small changes of a picture that change its explanation and not its class.

The top-k attack moves what a map shows out of the cells where it was greatest, by descending the
share of the map's magnitude that lies in them. Descent needs the derivative of the map, which
rectifiers hide: they are softened for the direction alone, and every picture on the way is judged
by the maps and the decision of the network as it is. Steps follow the sign of the gradient and are
a share of the radius long: a step of a hundredth of the radius in every value, as published for
pictures of 32 x 32 x 3, is 0.55 of it, and of larger pictures would lie far outside of the ball.
Where a step changes the decision it is taken back and halved. What is kept is the picture with the
least share among those that keep their decision, for each sample alone.

Axes: b batch, c channel, h row, w column of a picture, p row, q column of a map.

References
----------
Ghorbani, Abid, Zou, "Interpretation of neural networks is fragile", AAAI 2019, algorithm 1.
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023 (radii, and 40 % of the cells that are not zero).
Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018 (why a
transferred attack and one without gradients stand beside it).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import Explainer, check_at_least
from models.explainers.derivatives import Through, map_derivative
from models.explainers.gradients import SimpleGradient
from models.explainers.scoring import batches, check_request, explaining
from models.explanation_case import Attacked, Case, Standing, share_inside
from models.explanation_limits import Limits
from models.metrics.similarity import top_cells
from models.softened import BETA, softened


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack(ABC):
    """Tries changes of pictures, one after the other, and keeps the best of each sample.

    The model comes back as it was, also when it raises; one sample's attack does not depend on the
    others, and its randomness comes from its seed alone.

    Attributes
    ----------
    steps
        Changed pictures that are tried of each sample.
    stride
        Length of a step, as a share of the radius.
    """

    takes_first: ClassVar[bool] = False
    """Whether the first picture that keeps its decision counts, whatever its map."""
    steps: int = 10
    stride: float = 0.5

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        check_at_least(0, stride=self.stride)

    @final
    def __call__(
        self,
        explainer: Explainer,
        model: nn.Module,
        images: Float[Tensor, "b c h w"],
        target: Int[Tensor, " b"],
        *,
        limits: Limits,
        seeds: Int[Tensor, " b"],
        level: int = 0,
    ) -> Attacked:
        """Attack one level of the explainer's maps of each picture's target class.

        Parameters
        ----------
        seeds
            Of each picture's own randomness.
        level
            Number of the map among those that the explainer gives, finest first.

        Raises
        ------
        AttackError
            If a picture is outside of the range.
        ExplainerError
            If the explainer gives no such level or no map of the model, or the attack needs a
            derivative that its maps do not have.
        """
        check_request(model, images, target)
        limits.check(images)
        with explaining(images, model) as pictures:
            case = Case(explainer, model, pictures, target, limits, level)
            aim = self.aim(case)
            standing = Standing(case, stride=self.stride, seeds=seeds.tolist())
            for _ in range(self.steps):
                if self.takes_first and bool(standing.possible.all()):
                    break
                changed = limits.within(pictures, self.propose(case, standing, aim))
                standing.judge(case, changed, first=self.takes_first)
        return standing.outcome(case)

    def aim(self, case: Case) -> Tensor:
        """Cells that the attack empties."""
        return case.top

    @abstractmethod
    def propose(
        self, case: Case, standing: Standing, aim: Float[Tensor, "b p q"]
    ) -> Float[Tensor, "b c h w"]:
        """Say what to add to the given pictures next."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TopKAttack(Attack):
    """Descends the share of the map in its own greatest cells, along its derivative.

    Attributes
    ----------
    driver
        Explainer whose map and derivative are followed in place of the attacked one's: a
        transferred attack, which asks the attacked explainer nothing but which step was best.
    through
        How MoreauGrad is differentiated. ``masked`` is the surrogate of the published code, here to
        be compared with: it follows another map.
    beta
        Sharpness of the softened rectifiers.
    """

    driver: Explainer | None = None
    through: Through = "implicit"
    beta: float = BETA

    def aim(self, case: Case) -> Tensor:
        """Cells where the followed map is greatest."""
        if self.driver is None:
            return case.top
        (found, *_) = self.driver(case.model, case.images, case.target)
        return top_cells(found.values)

    def propose(
        self, case: Case, standing: Standing, aim: Float[Tensor, "b p q"]
    ) -> Float[Tensor, "b c h w"]:
        """One step against the sign of the share's gradient."""
        explainer = self.driver or case.explainer
        slope = torch.zeros_like(standing.delta)
        for part in batches(len(slope), explainer.batch_size):
            with softened(beta=self.beta):
                found = map_derivative(
                    explainer,
                    case.model,
                    case.images[part] + standing.delta[part],
                    case.target[part],
                    level=0 if self.driver else case.level,
                    through=self.through,
                )
                slope[part] = found.pull(share_slope(found.values, aim[part]))
        return standing.delta - _stretched(standing, case) * slope.sign()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSearch(Attack):
    """Tries steps of random signs from the best picture so far; needs no derivative."""

    def propose(
        self, case: Case, standing: Standing, aim: Float[Tensor, "b p q"]
    ) -> Float[Tensor, "b c h w"]:
        """One step of random signs."""
        best = standing.images - case.images
        return best + _stretched(standing, case) * standing.drawn().sign()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise(Attack):
    """The control: noise as long as the radius, drawn again where it changes the decision."""

    takes_first: ClassVar[bool] = True

    def propose(
        self, case: Case, standing: Standing, aim: Float[Tensor, "b p q"]
    ) -> Float[Tensor, "b c h w"]:
        """Noise of the full length."""
        drawn = standing.drawn()
        return case.limits.radius * drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]


ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "top-k": TopKAttack(),
        "top-k-masked": TopKAttack(through="masked"),
        "transfer": TopKAttack(driver=SimpleGradient()),
        "search": RandomSearch(),
        "noise": GaussianNoise(),
    }
)
"""Name of an attack -> the attack with its defaults; ``TopKAttack(steps=...)`` has other ones."""


def share_slope(
    maps: Float[Tensor, "b p q"], cells: Float[Tensor, "b p q"]
) -> Float[Tensor, "b p q"]:
    """Gradient of ``share_inside`` in the map; zero where the map is zero everywhere."""
    share = share_inside(maps, cells)[:, None, None]
    total = maps.double().abs().sum((1, 2), keepdim=True)
    slope = maps.double().sign() * (cells - share) / total
    return slope.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).to(maps)


def _stretched(standing: Standing, case: Case) -> Float[Tensor, "b 1 1 1"]:
    """Size of a step in every value, so that its length is the stride's share of the radius."""
    return standing.stride * case.limits.radius / standing.delta[0].numel() ** 0.5
