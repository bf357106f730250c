"""Integrated gradients, with as many steps as completeness asks for.

Axes: b batch, c channel, h row, w column.

References
----------
Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, eq. (1), (3).
"""

from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import (
    Explainer,
    Law,
    batches,
    check_at_least,
    check_request,
    explaining,
    gradient_of,
    relative,
    scores_of,
)
from models.records import Attribution

COMPLETENESS = Law(
    name="completeness",
    sound=1e-3,
    refused=5e-2,
    says="of the score's change from the baseline is not in the map",
    way_out="raise most_steps, or choose a baseline whose score differs more",
)
FEWEST_STEPS = 9


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients(Explainer):
    """Gradients averaged on the straight way from a baseline, times the way.

    The midpoint rule with 9 steps, tripled for the samples that are not complete yet: the steps
    taken remain steps of the finer rule. The residual is the completeness error.

    Attributes
    ----------
    baseline
        Value of the baseline picture everywhere, in the units of the images.
    tolerance
        Completeness error, relative, at which a sample is left.
    most_steps
        Gradients taken of a sample at most.
    batch_size
        Pictures in memory at once.
    """

    baseline: float = 0.0
    tolerance: float = 1e-3
    most_steps: int = 6561
    batch_size: int = 32

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size; raises as ``Explainer``."""
        check_at_least(1, most_steps=self.most_steps, batch_size=self.batch_size)
        check_request(model, images, target)
        with explaining(images, model) as pictures:
            way = _Way(
                model=model,
                target=target,
                start=torch.full_like(pictures, self.baseline),
                whole=pictures - self.baseline,
                batch_size=self.batch_size,
            )
            values, residual = self._integrate(way)
        return (
            Attribution(
                values=values.sum(1).float(),
                target=target,
                method="integrated-gradients",
                signed=True,
                residual=residual.float(),
                law=COMPLETENESS.name,
                verdicts=COMPLETENESS.judge(residual),
            ),
        )

    def _integrate(self, way: "_Way") -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        change = way.change()
        summed = torch.zeros_like(way.whole)
        values, residual = torch.zeros_like(summed), torch.full_like(change, torch.inf)
        steps = min(FEWEST_STEPS, self.most_steps)
        new = _midpoints(steps)
        while steps <= self.most_steps and bool((residual > self.tolerance).any()):
            open_ = torch.nonzero(residual > self.tolerance)[:, 0]
            way.accumulate(open_.tolist(), new, summed)
            values[open_] = summed[open_] / steps * way.whole[open_]
            residual = relative(values.sum((1, 2, 3)) - change, change)
            steps *= 3
            new = [place for number, place in enumerate(_midpoints(steps)) if number % 3 != 1]
        return values, residual


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """The straight ways from the baseline, at 0, to each picture, at 1."""

    model: nn.Module
    target: Int[Tensor, " b"]
    start: Float[Tensor, "b c h w"]
    whole: Float[Tensor, "b c h w"]
    batch_size: int

    def change(self) -> Float[Tensor, " b"]:
        """Scores of the pictures less those of the baseline."""
        with torch.no_grad():
            end = scores_of(self.model, self.start + self.whole, self.target)
            return end - scores_of(self.model, self.start, self.target)

    def accumulate(
        self, samples: list[int], places: list[float], summed: Float[Tensor, "b c h w"]
    ) -> None:
        """Add the gradients at places of some samples' ways to these samples' sums."""
        pairs = list(product(samples, places))
        for part in batches(len(pairs), self.batch_size):
            chosen = torch.tensor([i for i, _ in pairs[part]], device=summed.device)
            place = torch.tensor([p for _, p in pairs[part]], dtype=torch.float64).to(summed)
            points = self.start[chosen] + place[:, None, None, None] * self.whole[chosen]
            _, gradient = gradient_of(self.model, points, self.target[chosen])
            summed.index_add_(0, chosen, gradient)


def _midpoints(steps: int) -> list[float]:
    return [(i + 0.5) / steps for i in range(steps)]
