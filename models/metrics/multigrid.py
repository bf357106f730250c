"""Laplace equations with irregular known regions, many at once, by multigrid.

Every unknown pixel is the weighted mean of its eight neighbours, of which some may lie beyond the
border. Conjugate gradients solve for the unknown pixels, preconditioned by one cycle over a pyramid
of grids. Each coarser grid keeps every other row and column; bilinear interpolation leads back,
and its transpose there, so that the coarse operators are products of three (Galerkin) and stay
stencils of nine points whatever shape the known region has. By the weights (1, 2, 1) along both
axes one step of Jacobi's divides what oscillates by three.

A grid is kept in a frame of zeros, row after row, so that neighbours are shifts of the whole row.

Axes: b picture, c channel (of which all share the operator), p pixel with its frame, k neighbour.

References
----------
Trottenberg, Oosterlee, Schüller, "Multigrid", Academic Press 2001, sections 2.4 and 7.7 (Galerkin
operators, multigrid as a preconditioner).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

COARSEST = 5  # pixels along the longer side of a grid that is solved directly
CACHED = 2**17  # values that a processor core works on at once
RIDGE = 1e-5  # far below the least eigenvalue as a share of the diagonal, some 1e-2
COLOURS = 3  # a pixel and its neighbours have different colours along each axis
CHECK_ON_GPU = 4  # iterations between two looks at the error, which stop a GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """What was found.

    Attributes
    ----------
    values
        Of unknown pixels; 0 elsewhere.
    converged
        Whether every row reached the tolerance.
    """

    values: Float[Tensor, "b c h w"]
    converged: bool


def solve_laplace(
    known: Float[Tensor, "b c h w"],
    unknown: Bool[Tensor, "b h w"],
    guess: Float[Tensor, "b c h w"],
    *,
    tolerance: float,
    most_iterations: int,
) -> Solved:
    """Make every unknown pixel the weighted mean of its neighbours, in every channel.

    Pictures and channels do not see each other: each stops when it is solved.

    Parameters
    ----------
    known
        Values of the known pixels, 0 at unknown ones.
    unknown
        Pixels to solve for. Every picture with any has a known pixel too.
    tolerance
        Error at which a channel is solved, as its estimate by one multigrid cycle: of the worst
        pixel, as a share of the greatest known value. The estimate is then added.
    """
    size = (known.shape[2], known.shape[3])
    pyramid = _pyramid(unknown.to(known.dtype))
    fine = pyramid.levels[0]
    right = fine.mask * _surroundings(_framed(known), size[1] + 2)
    found = fine.mask * _framed(guess)
    residual = right - fine.applied(found)
    bound = tolerance * known.abs().amax((2, 3))[..., None]
    error, ahead, energy = pyramid.cycle(residual), None, None
    every = CHECK_ON_GPU if known.is_cuda else 1
    converged = False
    for iteration in range(most_iterations + 1):
        solved = error.abs().amax(2, keepdim=True) <= bound
        if iteration % every == 0 or iteration == most_iterations:
            converged = bool(solved.all())
            if converged or iteration == most_iterations:
                break
        before, energy = energy, _dot(residual, error)
        ahead = error if ahead is None else torch.addcmul(error, _ratio(energy, before), ahead)
        image = fine.applied(ahead)
        step = _ratio(energy, _dot(ahead, image)).masked_fill(solved, 0.0)
        found = torch.addcmul(found, step, ahead)
        residual = torch.addcmul(residual, step, image, value=-1)
        error = pyramid.cycle(residual)
    return Solved(values=_unframed(found + error, size), converged=converged)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Fine:
    """The operator on the pixels themselves, times 12: its stencil is the same everywhere."""

    mask: Float[Tensor, "b 1 p"]
    quarter: Float[Tensor, "b 1 p"]
    inverse: Float[Tensor, "b 1 p"]
    size: tuple[int, int]
    total: Float[Tensor, "b 1 p"]
    minus: Float[Tensor, "b 1 p"]

    def applied(self, values: Float[Tensor, "b c p"]) -> Float[Tensor, "b c p"]:
        """Weight of all neighbours times a pixel, less their weighted sum; of unknown pixels."""
        around = _surroundings(values, self.size[1] + 2).mul_(self.minus)
        return around.addcmul_(self.total, values)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Coarse:
    """An operator with a stencil of its own at every pixel."""

    mask: Float[Tensor, "b 1 p"]
    quarter: Float[Tensor, "b 1 p"]
    inverse: Float[Tensor, "b 1 p"]
    size: tuple[int, int]
    stencil: Float[Tensor, "b 9 p"]

    def applied(self, values: Float[Tensor, "b c p"]) -> Float[Tensor, "b c p"]:
        """Sum of a pixel and its neighbours, each with its weight."""
        width, count = self.size[1] + 2, values.shape[2]
        edge = width + 1
        whole = _zero_ended(values, edge)
        inner = whole[..., edge:-edge]
        weights = self.stencil[:, :, None, edge:-edge].unbind(1)
        shifted = [values[..., edge + by : count - edge + by] for by in _shifts(width)]
        torch.mul(weights[0], shifted[0], out=inner)
        for weight, part in zip(weights[1:], shifted[1:], strict=True):
            inner.addcmul_(weight, part)
        return whole


_Level = _Fine | _Coarse


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Pyramid:
    """Operators from fine to coarse, and the inverse of the coarsest."""

    levels: Sequence[_Level]
    coarsest: Float[Tensor, "b q q"]

    def cycle(self, residual: Float[Tensor, "b c p"], depth: int = 0) -> Float[Tensor, "b c p"]:
        """Estimate the error from the residual: one V-cycle, symmetric and positive definite."""
        level = self.levels[depth]
        if depth == len(self.levels) - 1:
            inner = _unframed(residual, level.size).flatten(2)
            return _framed((inner @ self.coarsest).unflatten(2, level.size))
        error = level.inverse * residual
        left = residual - level.applied(error)
        coarse = self.cycle(_restricted(left, level.size), depth + 1)
        error += _interpolated(coarse, level)
        torch.sub(residual, level.applied(error), out=left)
        return error.addcmul_(level.inverse, left)


def _pyramid(unknown: Float[Tensor, "b h w"]) -> _Pyramid:
    levels: list[_Level] = [_fine(unknown)]
    while max(levels[-1].size) > COARSEST:
        levels.append(_coarser(levels[-1]))
    return _Pyramid(levels=levels, coarsest=_inverse(levels[-1]))


def _fine(unknown: Float[Tensor, "b h w"]) -> _Fine:
    mask = _framed(unknown[:, None])
    size = (unknown.shape[1], unknown.shape[2])
    inside = _framed(torch.ones_like(unknown[:1, None]))
    total = _surroundings(inside, size[1] + 2) * mask
    return _Fine(
        mask=mask,
        quarter=mask / 4,
        inverse=_reciprocal(total - 4 * mask),
        size=size,
        total=total,
        minus=-mask,
    )


def _coarser(level: _Level) -> _Coarse:
    """Galerkin's operator, found by what it makes of pixels far enough from each other.

    Those of one colour are three apart along both axes: no two of them are in one stencil.
    """
    size = (level.size[0] // 2 + 1, level.size[1] // 2 + 1)
    rows, columns = (torch.arange(side, device=level.mask.device) for side in size)
    colour = COLOURS * (rows[:, None] % COLOURS) + columns % COLOURS
    nine = torch.arange(COLOURS**2, device=level.mask.device)[:, None, None]
    probes = _framed((colour == nine).to(level.mask)[None])
    together = max(1, CACHED // level.mask.numel())
    answers = torch.cat(
        [
            _restricted(level.applied(_interpolated(part, level)), level.size)
            for part in probes.split(together, dim=1)
        ],
        dim=1,
    )
    chosen = torch.stack(
        [
            COLOURS * ((rows[:, None] + down) % COLOURS) + (columns + across) % COLOURS
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
        ]
    )
    inner = _unframed(answers, size)
    stencil = _framed(inner.gather(1, chosen.expand(len(inner), -1, -1, -1)))
    diagonal = stencil[:, 4:5]
    mask = (diagonal > 0).to(diagonal)
    return _Coarse(
        mask=mask,
        quarter=mask / 4,
        inverse=_reciprocal(diagonal),
        size=size,
        stencil=stencil,
    )


def _inverse(level: _Level) -> Float[Tensor, "b q q"]:
    """Of a small operator, written out; 0 where nothing is unknown.

    Where there are fewer unknown pixels than coarse ones that lead to them, several coarse values
    mean the same: a share of the diagonal is added to choose among them.
    """
    count = level.size[0] * level.size[1]
    basis = torch.eye(count, dtype=level.mask.dtype, device=level.mask.device)
    probes = _framed(basis.view(1, count, *level.size)) * level.mask
    matrix = _unframed(level.applied(probes), level.size).flatten(2)
    open_ = _unframed(level.mask, level.size).flatten(1)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    solid = matrix + torch.diag_embed(1 - open_ + RIDGE * diagonal)
    return torch.linalg.inv(solid) * open_[:, None] * open_[:, :, None]


def _framed(pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c p"]:
    return pad(pictures, (1, 1, 1, 1)).flatten(2)


def _unframed(rows: Float[Tensor, "b c p"], size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    return rows.view(*rows.shape[:2], size[0] + 2, size[1] + 2)[..., 1:-1, 1:-1]


def _surroundings(rows: Float[Tensor, "b c p"], width: int) -> Float[Tensor, "b c p"]:
    """Sum with weights (1, 2, 1) along both axes; right within the frame only."""
    found = rows[..., :-width] + rows[..., width:]
    found = found[..., :-width] + found[..., width:]
    found = found[..., :-1] + found[..., 1:]
    whole = _zero_ended(rows, width + 1)
    torch.add(found[..., :-1], found[..., 1:], out=whole[..., width + 1 : -width - 1])
    return whole


def _zero_ended(rows: Float[Tensor, "b c p"], edge: int) -> Float[Tensor, "b c p"]:
    """Make room for rows of which only the ends are written, with zeros."""
    whole = torch.empty_like(rows)
    whole[..., :edge] = 0
    whole[..., -edge:] = 0
    return whole


def _shifts(width: int) -> list[int]:
    return [down * width + across for down in (-1, 0, 1) for across in (-1, 0, 1)]


def _interpolated(coarse: Float[Tensor, "_b c q"], level: _Level) -> Float[Tensor, "b c p"]:
    """Bilinear, from every other row and column; of unknown pixels."""
    height, width = level.size
    inner = _unframed(coarse, (height // 2 + 1, width // 2 + 1))
    spread = coarse.new_zeros(*coarse.shape[:2], height + 2, width + 2)
    spread[..., 1::2, 1::2] = inner  # on a side of even length the last lies on the frame
    return _surroundings(spread.flatten(2), width + 2) * level.quarter


def _restricted(rows: Float[Tensor, "b c p"], size: tuple[int, int]) -> Float[Tensor, "b c q"]:
    """Transpose of the interpolation; the rows are 0 at known pixels already."""
    height, width = size
    framed = rows.view(*rows.shape[:2], height + 2, width + 2)
    even = pad(framed, (0, 1 - width % 2, 0, 1 - height % 2))
    down = _halved(even, dim=2)
    return _framed(_halved(down, dim=3))


def _halved(framed: Tensor, *, dim: int) -> Tensor:
    """Weights (1, 2, 1) / 2 about every other pixel within the frame."""
    last = framed.shape[dim]
    steps = (slice(0, last - 2, 2), slice(1, last - 1, 2), slice(2, last, 2))
    before, middle, after = (framed[(slice(None),) * dim + (step,)] for step in steps)
    return torch.add(middle, before + after, alpha=0.5)


def _reciprocal(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values.where(values > 0, 1.0), 0.0)


def _ratio(numerator: Tensor, denominator: Tensor | None) -> Tensor:
    """0 / 0 is 0: what is solved moves no more."""
    if denominator is None:
        return numerator
    return torch.where(denominator > 0, numerator / denominator.where(denominator > 0, 1.0), 0.0)


def _dot(one: Float[Tensor, "b c p"], other: Float[Tensor, "b c p"]) -> Float[Tensor, "b c 1"]:
    return torch.linalg.vecdot(one, other)[..., None]
