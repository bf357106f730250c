"""Fenchel pairs: a penalty on gradients and the perturbations that it is the same as.

Training against perturbations that cost their conjugate is, to first order, training with a penalty
on the gradient ``g`` of the loss in the picture, for a convex ``h`` is its own biconjugate:

    max_delta  loss(x + delta) - h*(delta)  =  loss(x) + h(g) + O(||delta||^2)

    name     h(g)                         h*(delta)                                maximiser
    l1       e sum_i |g_i|                0 where every |delta_i| <= e             e sign(g)
    elastic  e sum_i |g_i| + r sum g_i^2  sum_i max(|delta_i| - e, 0)^2 / (4 r)    e sign(g) + 2 r g
    group    e sum_s ||g_s||              0 where every ||delta_s|| <= e           e g_s / ||g_s||
    l2       e ||g||                      0 where ||delta|| <= e                   e g / ||g||

Sums run over channels, rows and columns of one sample; s is a square patch. Where h* is 0 on a set,
it is infinite outside. Where g is zero, so is the maximiser: it is never NaN.

Axes: b batch, c channel, h row, w column; in blocks, (R, p) rows of patches and rows in one, (C, q)
columns likewise.

References
----------
Gong, Dou, Farnia, "Structured gradient-based interpretations via norm-regularized adversarial
training", CVPR 2024, arXiv 2404.04647.
Rockafellar, "Convex Analysis", 1970, sections 12, 13.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.errors import AttackError

FEASIBLE = 16
"""Units of the last place by which a perturbation on the border of its set may be too long."""

WHOLE = (1, 2, 3)

Values = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, " b"]]
Change = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strength:
    """How strong a penalty, and the perturbation that goes with it, is.

    Attributes
    ----------
    radius
        The e above, 0 or more: the largest perturbation of a value (l1), of a patch (group), of a
        picture (l2).
    ridge
        The r above, 0 or more: weight of the squares of the elastic net.
    patch
        Side of a square patch in pixels, 1 or more. Patches start at the upper left; those at the
        lower and right border are what is left of the picture.
    across_channels
        Whether a patch holds all channels, or each channel has patches of its own.

    Raises
    ------
    AttackError
        ``BAD_STRENGTH`` if a number is out of its range.
    """

    radius: float
    ridge: float = 0.0
    patch: int = 1
    across_channels: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("radius", self.radius, 0),
            ("ridge", self.ridge, 0),
            ("patch", self.patch, 1),
        ):
            if not least <= value < float("inf"):
                raise AttackError(
                    "BAD_STRENGTH",
                    f"{name} is {value}; it must be a number that is {least} or more, or no "
                    "perturbation would belong to it",
                )


class ConjugatePair(NamedTuple):
    """A penalty h, its conjugate h*, and what ties them; each sample by itself.

    Attributes
    ----------
    h
        Of gradients: the supremum of <g, delta> - h*(delta). Differentiable, also through g.
    conjugate
        h* of perturbations: the supremum of <g, delta> - h(g); infinite where there is none.
    maximiser
        The perturbation at which the supremum that is h is attained; zero where g is.
    project
        The nearest perturbation whose conjugate is finite.
    """

    h: Values
    conjugate: Values
    maximiser: Change
    project: Change


def l1(strength: Strength) -> ConjugatePair:
    """Sum of magnitudes, and perturbations that change no value by more than the radius."""
    radius = strength.radius
    return ConjugatePair(
        h=lambda gradient: radius * gradient.abs().sum(WHOLE),
        conjugate=lambda delta: _outside(delta.abs().amax(WHOLE), radius),
        maximiser=lambda gradient: radius * gradient.sign(),
        project=lambda delta: delta.clamp(-radius, radius),
    )


def elastic(strength: Strength) -> ConjugatePair:
    """Sum of magnitudes and squares; no perturbation is forbidden, large ones cost.

    Without a ridge it is ``l1``.
    """
    radius, ridge = strength.radius, strength.ridge
    if ridge == 0:
        return l1(strength)

    def h(gradient: Tensor) -> Tensor:
        return (radius * gradient.abs() + ridge * gradient.square()).sum(WHOLE)

    def conjugate(delta: Tensor) -> Tensor:
        return (delta.abs() - radius).clamp(min=0).square().sum(WHOLE) / (4 * ridge)

    return ConjugatePair(
        h=h,
        conjugate=conjugate,
        maximiser=lambda gradient: radius * gradient.sign() + 2 * ridge * gradient,
        project=lambda delta: delta,
    )


def group(strength: Strength) -> ConjugatePair:
    """Sum of patch norms, and perturbations that change no patch by more than the radius."""
    radius, patch = strength.radius, strength.patch
    over = (1, 3, 5) if strength.across_channels else (3, 5)

    def norms(values: Tensor) -> tuple[Tensor, Tensor]:
        blocks = _blocks(values, patch)
        return blocks, _norm(blocks, over)

    def maximiser(gradient: Tensor) -> Tensor:
        blocks, sizes = norms(gradient)
        return radius * _pictures(_unit(blocks, over, sizes), gradient)

    def project(delta: Tensor) -> Tensor:
        blocks, sizes = norms(delta)
        return _pictures(blocks * _shrinkage(sizes, radius), delta)

    return ConjugatePair(
        h=lambda gradient: radius * norms(gradient)[1].flatten(1).sum(1),
        conjugate=lambda delta: _outside(norms(delta)[1].flatten(1).amax(1), radius),
        maximiser=maximiser,
        project=project,
    )


def l2(strength: Strength) -> ConjugatePair:
    """Euclidean norm of a picture, and perturbations of at most the radius."""
    radius = strength.radius
    return ConjugatePair(
        h=lambda gradient: radius * _norm(gradient, WHOLE).flatten(),
        conjugate=lambda delta: _outside(_norm(delta, WHOLE).flatten(), radius),
        maximiser=lambda gradient: radius * unit_length(gradient),
        project=lambda delta: delta * _shrinkage(_norm(delta, WHOLE), radius),
    )


CONJUGATE_PAIRS: Mapping[str, Callable[[Strength], ConjugatePair]] = MappingProxyType(
    {"l1": l1, "elastic": elastic, "group": group, "l2": l2}
)
"""Name of a structure -> its Fenchel pair at a strength."""


def unit_length(values: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each sample divided by its Euclidean norm; zero stays zero."""
    return _unit(values, WHOLE, _norm(values, WHOLE))


def ridge_share(gradient: Float[Tensor, "b c h w"], strength: Strength) -> Float[Tensor, " b"]:
    """Largest part of an elastic perturbation that is due to its ridge, over the radius.

    Far below 1 the elastic net acts as ``l1``: gradients of a loss are often small numbers, and a
    ridge that is to matter is large. Infinite at radius 0.
    """
    return 2 * strength.ridge * gradient.abs().amax(WHOLE) / strength.radius


def _norm(values: Tensor, over: tuple[int, ...]) -> Tensor:
    """Euclidean norm, axes kept, of values whose squares may be too small or large for a number."""
    peak = _peak(values, over)
    return peak * torch.linalg.vector_norm(values / peak, dim=over, keepdim=True)


def _peak(values: Tensor, over: tuple[int, ...]) -> Tensor:
    """Largest magnitude, a constant for differentiation; 1 where all are zero."""
    peak = values.detach().abs().amax(over, keepdim=True)
    return torch.where(peak > 0, peak, torch.ones_like(peak))


def _unit(values: Tensor, over: tuple[int, ...], norm: Tensor) -> Tensor:
    peak = _peak(values, over)
    ratio = norm / peak  # between 1 and the root of the count, or 0
    return torch.where(ratio > 0, values / peak / ratio, torch.zeros_like(values))


def _shrinkage(norm: Tensor, radius: float) -> Tensor:
    return torch.where(norm > radius, radius / norm, torch.ones_like(norm))


def _outside(size: Tensor, radius: float) -> Tensor:
    """Zero for what is in the set, rounding aside; infinite for the rest."""
    most = radius * (1 + FEASIBLE * torch.finfo(size.dtype).eps)
    return torch.where(size <= most, 0.0, float("inf")).to(size.dtype)


def _blocks(pictures: Tensor, patch: int) -> Tensor:
    """Cut into "b c R p C q"; beyond the border are zeros, which no norm notices."""
    missing = [-side % patch for side in pictures.shape[2:]]
    padded = functional.pad(pictures, (0, missing[1], 0, missing[0]))
    return padded.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))


def _pictures(blocks: Tensor, like: Tensor) -> Tensor:
    """Undo ``_blocks``."""
    height, width = like.shape[2:]
    return blocks.flatten(4, 5).flatten(2, 3)[:, :, :height, :width]
