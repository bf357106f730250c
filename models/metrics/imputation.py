"""What shows where pixels are removed: pictures to put there, and imputation from what is left.

The answer of a perturbation curve depends on it: zero and mean make new edges, blur leaves hints,
and imputed pixels give away neither the shape of what was removed nor its content.

Axes: b sample, c channel, h row, w column, n channel of a picture, p pixel with a frame.

References
----------
Rong, Leemann, Borisov, Kasneci, Kasneci, "A consistent and efficient evaluation strategy for
attribution methods", ICML 2022 (noisy linear imputation, ROAD).
Fong, Vedaldi, "Interpretable explanations of black boxes by meaningful perturbation", ICCV 2017
(blur).
Gortler, Grzeszczuk, Szeliski, Cohen, "The lumigraph", SIGGRAPH 1996 (pull-push, the first guess).
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from models.errors import MetricError
from models.metrics.multigrid import solve_laplace

CACHED = 2**17  # pixels that a processor core solves for at once
KNOWN = 1e-6  # weight below which a coarse cell counts as unknown


def zero_fill(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 c h w"]:
    """Nothing: 0 in the units of the images."""
    return torch.zeros_like(images[:1])


def mean_fill(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "1 c h w"]:
    """Return the mean of each channel over a data set (or a sample of it), as a picture.

    Raises
    ------
    MetricError
        If there is no picture.
    """
    if not len(images):
        raise MetricError("NO_PICTURE", "the mean of no pictures is not defined; give some")
    return images.mean((0, 2, 3), keepdim=True).expand(1, *images.shape[1:])


def blur_fill(images: Float[Tensor, "b c h w"], *, spread: float = 0.05) -> Tensor:
    """Each picture blurred by a Gaussian; pixels beyond the border repeat those on it.

    Parameters
    ----------
    spread
        Standard deviation as a share of the longer side; the bell is cut at three of them.

    Raises
    ------
    MetricError
        If ``spread`` is not positive.
    """
    if not spread > 0:
        raise MetricError("BAD_SPREAD", f"spread is {spread}; a bell has a positive width")
    deviation = spread * max(images.shape[2:])
    reach = max(1, round(3 * deviation))
    offset = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    bell = torch.exp(-(offset**2) / (2 * deviation**2))
    bell = bell / bell.sum()
    single = pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    rows = conv2d(single, bell.view(1, 1, -1, 1))
    return conv2d(rows, bell.view(1, 1, 1, -1)).view_as(images)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyLinearImputation:
    """Make every removed pixel the weighted mean of its eight neighbours, and add noise.

    The neighbours may be removed too, so the pixels solve a sparse linear system together: a
    Laplace equation with the pixels that are left as its boundary, a direct neighbour weighing 1/6
    and a diagonal one 1/12. It is solved by multigrid for many pictures at once. The noise is the
    same for every picture, so that a batch equals its parts.

    Attributes
    ----------
    noise
        Standard deviation, in the units of the images.
    seed
        Of the noise.
    unknown
        What a picture of which nothing is left is filled with.
    tolerance
        Error of the worst pixel as a share of the greatest value left in its channel: far below the
        noise.
    most_iterations
        Bound; five to ten are usual.
    """

    noise: float = 0.01
    seed: int = 0
    unknown: float = 0.0
    tolerance: float = 1e-4
    most_iterations: int = 100

    def __call__(
        self, images: Float[Tensor, "b c h w"], removed: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Fill in the removed pixels; all others stay.

        Raises
        ------
        MetricError
            If the iteration ends before the tolerance is reached.
        """
        nothing_left = removed.flatten(1).all(1)[:, None, None]
        solved = self._solve(images, removed & ~nothing_left)
        filled = solved.where(~nothing_left[:, None], self.unknown) + self._noise_like(images)
        return torch.where(removed[:, None], filled, images)

    def _noise_like(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(images.shape[1:], generator=generator)
        return self.noise * drawn.to(images)

    def _solve(self, images: Tensor, unknown: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """Solve as many pictures at once as is fast."""
        at_once = len(images) if images.is_cuda else max(1, CACHED // images[0].numel())
        parts = zip(images.split(at_once), unknown.split(at_once), strict=True)
        return torch.cat([self._solved(*part) for part in parts])

    def _solved(self, images: Tensor, unknown: Tensor) -> Tensor:
        """Solve from a first guess over a pyramid of means."""
        seen = (~unknown)[:, None].to(images.dtype)
        known = images * seen
        solved = solve_laplace(
            known,
            unknown,
            _pulled_and_pushed(known, seen),
            tolerance=self.tolerance,
            most_iterations=self.most_iterations,
        )
        if not solved.converged:
            raise MetricError(
                "IMPUTATION_NOT_SOLVED",
                f"removed pixels were not solved for in {self.most_iterations} iterations; their "
                "values would be off: raise most_iterations or tolerance",
            )
        return solved.values


def _pulled_and_pushed(known: Tensor, weight: Tensor) -> Tensor:
    """Mean of what is known near each pixel, from as near as there is anything known."""
    mean = known / weight.clamp_min(KNOWN)
    if max(known.shape[2:]) == 1:
        return mean
    coarse = _pulled_and_pushed(
        *(avg_pool2d(level, 2, ceil_mode=True) for level in (known, weight))
    )
    around = interpolate(coarse, size=known.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(weight > KNOWN, mean, around)
