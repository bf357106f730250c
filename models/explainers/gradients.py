"""Explanations by the gradient of a class score with respect to the picture.

Maps are the sum over channels with the gradient's sign: what makes the score rise is positive.

Axes: b batch, c channel, h row, w column.

References
----------
Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", 2013 (simple gradient).
Shrikumar, Greenside, Shcherbina, Kundaje, "Not just a black box", 2016 (gradient x input).
Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import Explainer
from models.explainers.laws import Law, judged, relative
from models.explainers.noise import noisy_copies, ranges, seeded_noise
from models.explainers.scoring import gradient_of, scores_of
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

    @property
    def name(self) -> str:
        """``gradient``."""
        return "gradient"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size."""
        _, gradient = gradient_of(model, images, target)
        residual = self._slope_error(model, images, target, gradient)
        values = gradient.sum(1)
        return (judged(values, target, method=self.name, law=SLOPE, residual=residual),)

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

    @property
    def name(self) -> str:
        """``gradient-x-input``."""
        return "gradient-x-input"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size."""
        scores, gradient = gradient_of(model, images, target)
        with torch.no_grad():
            change = scores - scores_of(model, torch.zeros_like(images), target)
        values = (gradient * images).sum(1)
        residual = relative(values.sum((1, 2)) - change, change)
        return (judged(values, target, method=self.name, law=HOMOGENEITY, residual=residual),)


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
    """

    least: ClassVar[Mapping[str, int | float]] = MappingProxyType({"draws": 2, "spread": 0})
    draws: int = 32
    spread: float = 0.15
    seed: int = 0
    batch_size: int = 32

    @property
    def name(self) -> str:
        """``smoothgrad``."""
        return "smoothgrad"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size."""
        halves = torch.zeros((2, *images.shape)).to(images)
        copies = noisy_copies(
            images,
            seeded_noise(self.draws, images, self.seed),
            draws=self.draws,
            scale=self.spread * ranges(images),
            batch_size=self.batch_size,
        )
        for draws, samples, noisy in copies:
            _, gradient = gradient_of(model, noisy, target[samples])
            halves.index_put_((draws % 2, samples), gradient, accumulate=True)
        counts = torch.tensor([(self.draws + 1) // 2, self.draws // 2]).to(halves)
        mean = halves.sum(0) / self.draws
        apart = (halves[0] / counts[0] - halves[1] / counts[1]).flatten(1).norm(dim=1) / 2
        residual = relative(apart, mean.flatten(1).norm(dim=1))
        values = mean.sum(1)
        return (judged(values, target, method=self.name, law=REPEATABILITY, residual=residual),)
