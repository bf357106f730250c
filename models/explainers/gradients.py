"""Explanations by the gradient of a class score with respect to the picture.

Maps are the sum over channels with the gradient's sign: what makes the score rise is positive.

Axes: b batch, c channel, h row, w column.

References
----------
Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", 2013 (simple gradient).
Shrikumar, Greenside, Shcherbina, Kundaje, "Not just a black box", 2016 (gradient x input).
Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import (
    Explainer,
    Law,
    check_at_least,
    check_request,
    explaining,
    gradient_of,
    ranges,
    relative,
    scores_of,
    seeded_noise,
)
from models.records import Attribution

SLOPE = Law(
    name="slope",
    sound=0.05,
    refused=0.5,
    says="between the gradient's length and the score's measured change along it",
    way_out="the score bends at once or is cut off from parts of the picture: see 'smoothgrad'",
)
HOMOGENEITY = Law(
    name="completeness",
    sound=1e-3,
    refused=float("inf"),
    says="of the score's change from a zero picture is not in the map",
    way_out="it need be only without biases and gates: see 'integrated-gradients'",
)
REPEATABILITY = Law(
    name="repeatability",
    sound=0.25,
    refused=1.0,
    says="expected change of the map with other noise",
    way_out="raise draws",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SimpleGradient(Explainer):
    """Gradient of the target's logit. Self-check: the logit's measured slope along it.

    Attributes
    ----------
    step
        Length of the measured step, as a share of the picture's range over its length.
    """

    step: float = 1e-3

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size; raises as ``Explainer``."""
        check_request(model, images, target)
        with explaining(images, model) as pictures:
            _, gradient = gradient_of(model, pictures, target)
            residual = self._slope_error(model, pictures, target, gradient)
        return (_signed(gradient, target, "gradient", residual, SLOPE),)

    def _slope_error(
        self, model: nn.Module, images: Tensor, target: Tensor, gradient: Tensor
    ) -> Tensor:
        length = gradient.flatten(1).norm(dim=1)
        unit = gradient / length.clamp_min(torch.finfo(gradient.dtype).tiny)[:, None, None, None]
        reach = self.step * ranges(images).clamp_min(self.step)
        with torch.no_grad():
            rise = scores_of(model, images + reach * unit, target)
            fall = scores_of(model, images - reach * unit, target)
        slope = (rise - fall) / (2 * reach[:, 0, 0, 0])
        return relative(slope - length, length)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTimesInput(Explainer):
    """Gradient times picture; complete just for networks that scale with their input."""

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size; raises as ``Explainer``."""
        check_request(model, images, target)
        with explaining(images, model) as pictures:
            scores, gradient = gradient_of(model, pictures, target)
            with torch.no_grad():
                change = scores - scores_of(model, torch.zeros_like(pictures), target)
        values = gradient * pictures
        residual = relative(values.sum((1, 2, 3)) - change, change)
        return (_signed(values, target, "gradient-x-input", residual, HOMOGENEITY),)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothGrad(Explainer):
    """Mean gradient over noisy copies of the picture.

    Every sample gets the same noise, whatever its batch. The residual is the relative standard
    error of the map, from its two halves.

    Attributes
    ----------
    draws
        Noisy copies of each picture.
    spread
        Standard deviation of the noise, as a share of the picture's range.
    batch_size
        Copies in memory at once.
    """

    draws: int = 32
    spread: float = 0.15
    seed: int = 0
    batch_size: int = 32

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size; raises as ``Explainer``."""
        check_at_least(2, draws=self.draws)
        check_at_least(1, batch_size=self.batch_size)
        check_at_least(0, spread=self.spread)
        check_request(model, images, target)
        with explaining(images, model) as pictures:
            halves = torch.zeros((2, *pictures.shape)).to(pictures)
            for draws, samples, noisy in self._copies(pictures):
                _, gradient = gradient_of(model, noisy, target[samples])
                halves.index_put_((draws % 2, samples), gradient, accumulate=True)
        counts = torch.tensor([(self.draws + 1) // 2, self.draws // 2]).to(halves)
        mean = halves.sum(0) / self.draws
        apart = (halves[0] / counts[0] - halves[1] / counts[1]).flatten(1).norm(dim=1) / 2
        residual = relative(apart, mean.flatten(1).norm(dim=1))
        return (_signed(mean, target, "smoothgrad", residual, REPEATABILITY),)

    def _copies(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Draw and sample numbers of the noisy copies, and the copies, in batches."""
        scale = self.spread * ranges(images)
        waiting: list[tuple[int, int, Tensor]] = []
        for draw, noise in enumerate(seeded_noise(self.draws, images, self.seed)):
            for sample in range(len(images)):
                waiting.append((draw, sample, images[sample] + scale[sample] * noise))
                last = draw == self.draws - 1 and sample == len(images) - 1
                if len(waiting) == self.batch_size or last:
                    draws, samples, copies = zip(*waiting, strict=True)
                    device = images.device
                    yield (
                        torch.tensor(draws, device=device),
                        torch.tensor(samples, device=device),
                        torch.stack(copies),
                    )
                    waiting.clear()


def _signed(
    values: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    method: str,
    residual: Float[Tensor, " b"],
    law: Law,
) -> Attribution:
    return Attribution(
        values=values.sum(1).float(),
        target=target,
        method=method,
        signed=True,
        residual=residual.float(),
        law=law.name,
        verdicts=law.judge(residual),
    )
