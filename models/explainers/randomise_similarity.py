"""How alike maps are before and after weights were drawn anew: by ranks, and as pictures.

Axes: b sample, h row, w column, n cell.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 4 (rank correlation with
and without the sign, and SSIM).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.metrics.cells import owners
from models.metrics.similarity import WINDOW, structural_similarity


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """Similarities of two maps of each picture; NaN where one of them is not finite.

    Attributes
    ----------
    ranks
        Spearman's rank correlation of the values.
    magnitudes
        The same of their magnitudes: a map whose sign alone flips stays at 1.
    structure
        Structural similarity of the maps as they are shown. NaN also where the picture is smaller
        than its window.
    """

    ranks: Float[Tensor, " b"]
    magnitudes: Float[Tensor, " b"]
    structure: Float[Tensor, " b"]


def likeness(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"], *, size: tuple[int, int]
) -> Likeness:
    """Compare maps of the same pictures, pair by pair.

    Parameters
    ----------
    size
        Rows and columns of the pictures. Maps of few cells are compared as pictures of that size,
        each cell repeated over its pixels.
    """
    finite = (one.isfinite() & other.isfinite()).flatten(1).all(dim=1)
    first, second = (level.where(finite[:, None, None], 0.0) for level in (one, other))
    found = (
        rank_correlation(first, second),
        rank_correlation(first.abs(), second.abs()),
        _structure(first, second, size),
    )
    ranks, magnitudes, structure = (values.where(finite, torch.nan) for values in found)
    return Likeness(ranks=ranks, magnitudes=magnitudes, structure=structure)


def rank_correlation(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Spearman's rank correlation of each pair of maps; ties share their mean rank.

    Two constant maps are the same, 1; a constant one and another have nothing in common, 0.
    """
    first, second = (_ranks(values) for values in (one, other))
    spreads = first.norm(dim=1), second.norm(dim=1)
    product = spreads[0] * spreads[1]
    found = (first * second).sum(1) / torch.where(product > 0, product, 1.0)
    return torch.where((spreads[0] == 0) & (spreads[1] == 0), 1.0, found)


def _ranks(values: Float[Tensor, "b h w"]) -> Float[Tensor, "b n"]:
    """Ranks less their mean."""
    flat = values.double().flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    below = torch.searchsorted(ordered, flat, right=False)
    upto = torch.searchsorted(ordered, flat, right=True)
    ranks = (below + upto).double() / 2
    return ranks - flat.shape[1] / 2


def _structure(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"], size: tuple[int, int]
) -> Float[Tensor, " b"]:
    if min(one.shape[1:]) < WINDOW:
        one, other = (_repeated(level, size) for level in (one, other))
    if min(one.shape[1:]) < WINDOW:
        return torch.full((len(one),), torch.nan, dtype=torch.float64, device=one.device)
    return structural_similarity(one, other)


def _repeated(level: Float[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b H W"]:
    rows, columns = (
        owners(cells, pixels, device=level.device)
        for cells, pixels in zip(level.shape[1:], size, strict=True)
    )
    return level[:, rows[:, None], columns]
