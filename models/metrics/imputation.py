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

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, pad

from models.errors import MetricError

DIAGONAL = 1 / 12  # weight of a diagonal neighbour in Rong et al.; a direct one has 1 / 6
CHECK_EVERY = 8  # iterations between two looks at the residuals, which stop a GPU
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
    Laplace equation with the pixels that are left as its boundary. Conjugate gradients solve it for
    all pictures and channels at once, from a first guess over a pyramid. The noise is the same for
    every picture, so that a batch equals its parts.

    Attributes
    ----------
    noise
        Standard deviation, in the units of the images.
    seed
        Of the noise.
    unknown
        What a picture of which nothing is left is filled with.
    tolerance
        Norm of the residual as a share of the right-hand side's or, where holes lie in black only,
        of the first guess's: far below the noise.
    most_iterations
        Bound; some tens are usual, some hundreds with large holes.
    """

    noise: float = 0.01
    seed: int = 0
    unknown: float = 0.0
    tolerance: float = 1e-5
    most_iterations: int = 4000

    def __call__(
        self, images: Float[Tensor, "b c h w"], removed: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Fill in the removed pixels; all others stay.

        Raises
        ------
        MetricError
            If the iteration ends before the tolerance is reached.
        """
        holes = removed[:, None].expand_as(images)
        solved = self._solve(images, holes)
        nothing_left = removed.flatten(1).all(1)[:, None, None, None]
        filled = solved.where(~nothing_left, self.unknown) + self._noise_like(images)
        return torch.where(holes, filled, images)

    def _noise_like(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(images.shape[1:], generator=generator)
        return self.noise * drawn.to(images)

    def _solve(self, images: Tensor, holes: Tensor) -> Tensor:
        """Solve for every channel of every picture on its own, as many at once as is fast."""
        unknown = holes.flatten(0, 1)[:, None].to(images.dtype)
        known = images.flatten(0, 1)[:, None] * (1 - unknown)
        at_once = len(known) if images.is_cuda else max(1, CACHED // known[0].numel())
        solved = [
            self._solve_system(*part)
            for part in zip(known.split(at_once), unknown.split(at_once), strict=True)
        ]
        return torch.cat(solved).view_as(images)

    def _solve_system(self, known: Tensor, unknown: Tensor) -> Tensor:
        """Conjugate gradients from a first guess; what is solved leaves the iteration."""
        height, width = known.shape[2:]
        guess = _framed(unknown * _pulled_and_pushed(known, 1 - unknown))
        solved = torch.empty_like(guess)
        system = _System.of(_framed(known), _framed(unknown), guess, width=width + 2)
        left = torch.arange(len(known), device=known.device)
        for iteration in range(self.most_iterations):
            if iteration % CHECK_EVERY == 0:
                done = system.energy <= self.tolerance**2 * system.scale
                if bool(done.any()):
                    solved[left[done]] = system.guess[done]
                    left, system = left[~done], system.only(~done)
                if not len(left):
                    return solved.view(-1, 1, height + 2, width + 2)[:, :, 1:-1, 1:-1]
            system = system.improved()
        raise MetricError(
            "IMPUTATION_NOT_SOLVED",
            f"removed pixels were not solved for in {self.most_iterations} iterations; their "
            "values would be off: raise most_iterations or tolerance",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _System:
    """Conjugate gradients under way: one row per channel of a picture, in a frame of zeros.

    With the frame, neighbours are shifts of the whole row.
    """

    unknown: Float[Tensor, "n p"]
    weight: Float[Tensor, "1 p"]
    guess: Float[Tensor, "n p"]
    residual: Float[Tensor, "n p"]
    direction: Float[Tensor, "n p"]
    energy: Float[Tensor, " n"]
    scale: Float[Tensor, " n"]
    width: int

    @classmethod
    def of(cls, known: Tensor, unknown: Tensor, guess: Tensor, *, width: int) -> "_System":
        """Set up from the known pixels, 0 elsewhere."""
        inner = torch.zeros_like(known[:1]).view(1, -1, width)
        inner[:, 1:-1, 1:-1] = 1
        weight = _neighbour_sum(inner.flatten(1), width)
        right = unknown * _neighbour_sum(known, width)
        residual = right - unknown * (weight * guess - _neighbour_sum(guess, width))
        energy = residual.square().sum(1)
        return cls(
            unknown=unknown,
            weight=weight,
            guess=guess,
            residual=residual,
            direction=residual,
            energy=energy,
            scale=torch.maximum(right.square().sum(1), energy),
            width=width,
        )

    def improved(self) -> "_System":
        """Take one step."""
        ahead = self.direction
        image = (self.weight * ahead).sub_(_neighbour_sum(ahead, self.width)).mul_(self.unknown)
        step = _ratio(self.energy, torch.linalg.vecdot(ahead, image))[:, None]
        residual = torch.addcmul(self.residual, step, image, value=-1)
        energy = torch.linalg.vecdot(residual, residual)
        return replace(
            self,
            guess=torch.addcmul(self.guess, step, ahead),
            residual=residual,
            direction=torch.addcmul(residual, _ratio(energy, self.energy)[:, None], ahead),
            energy=energy,
        )

    def only(self, rows: Bool[Tensor, " n"]) -> "_System":
        """Keep some rows."""
        return replace(
            self,
            unknown=self.unknown[rows],
            guess=self.guess[rows],
            residual=self.residual[rows],
            direction=self.direction[rows],
            energy=self.energy[rows],
            scale=self.scale[rows],
        )


def _framed(pictures: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n p"]:
    return pad(pictures, (1, 1, 1, 1)).flatten(1)


def _neighbour_sum(rows: Float[Tensor, "n p"], width: int) -> Float[Tensor, "n p"]:
    """Weighted sum of the eight neighbours; right within the frame only.

    The weights are those of (1, 2, 1) along both axes, without the middle.
    """
    vertical = _bell(rows, width)
    return _bell(vertical, 1).sub_(rows, alpha=4).mul_(DIAGONAL)


def _bell(rows: Tensor, shift: int) -> Tensor:
    found = 2 * rows
    found[:, shift:] += rows[:, :-shift]
    found[:, :-shift] += rows[:, shift:]
    return found


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 / 0 is 0: what is solved moves no more."""
    return torch.where(denominator > 0, numerator / denominator.where(denominator > 0, 1.0), 0.0)


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
