"""How much of a picture a map needs: one number per sample from the magnitudes of its cells.

A map without any magnitude has no shape to measure: NaN. None of the numbers changes when a map is
multiplied by a constant.

Axes: b sample, h row, w column, n cell or patch.

References
----------
Hurley, Rickard, "Comparing measures of sparsity", IEEE Trans. Inf. Theory 55(10), 2009 (Gini).
Chalasani et al., "Concise explanations of neural networks using adversarial training", ICML 2020.
Bhatt, Weller, Moura, "Evaluating and aggregating feature-based model explanations", IJCAI 2020
(entropy as complexity).
Gong, Dou, Farnia, "Structured gradient-based interpretations via norm-regularized adversarial
training", CVPR 2024 (group sparsity).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from models.errors import MetricError


def gini(values: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Gini index of the magnitudes: 0 for a constant map, 1 - 1/n for a single cell of n.

    Repeating every cell, as upsampling by nearest neighbour does, changes nothing.

    Raises
    ------
    MetricError
        If the map holds a value that is not finite.
    """
    return _gini_of(_magnitudes(values).flatten(1))


def group_gini(values: Float[Tensor, "b h w"], *, side: int = 4) -> Float[Tensor, " b"]:
    """Gini index of the Euclidean norms of square patches: high where whole patches are zero.

    Parameters
    ----------
    side
        Cells on the side of a patch; the last row and column of patches may be smaller.

    Raises
    ------
    MetricError
        If ``side`` is below 1, or the map holds a value that is not finite.
    """
    if side < 1:
        raise MetricError("BAD_SIDE", f"side is {side}; a patch has at least one cell on its side")
    squares = _magnitudes(values).square()
    height, width = values.shape[1:]
    whole = pad(squares, (0, -width % side, 0, -height % side))
    patches = whole.unflatten(2, (-1, side)).unflatten(1, (-1, side)).sum((2, 4))
    return _gini_of(patches.sqrt().flatten(1))


def sparsity(values: Float[Tensor, "b h w"], *, below: float = 0.01) -> Float[Tensor, " b"]:
    """Share of the cells whose magnitude is less than ``below`` times the greatest one.

    Raises
    ------
    MetricError
        If ``below`` lies outside (0, 1], or the map holds a value that is not finite.
    """
    if not 0 < below <= 1:
        raise MetricError(
            "BAD_SHARE", f"below is {below}; it is a share of the greatest magnitude, in (0, 1]"
        )
    sizes = _magnitudes(values).flatten(1)
    greatest = sizes.amax(1, keepdim=True)
    return _undefined_without_mass((sizes < below * greatest).double().mean(1), sizes)


def entropy(values: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Shannon entropy in nats of the magnitudes as a distribution: 0 for one cell, log n at most.

    It grows with the grid: compare maps on one grid.

    Raises
    ------
    MetricError
        If the map holds a value that is not finite.
    """
    sizes = _magnitudes(values).flatten(1)
    shares = sizes / sizes.sum(1, keepdim=True)
    return _undefined_without_mass(torch.special.entr(shares).sum(1), sizes)


def _gini_of(sizes: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    count = sizes.shape[1]
    place = torch.arange(count, dtype=sizes.dtype, device=sizes.device)
    weight = (2 * place + 1 - count) / count  # antisymmetric: a constant map sums to exactly 0
    ordered = sizes.sort(dim=1).values
    return _undefined_without_mass((ordered * weight).sum(1) / ordered.sum(1), sizes)


def _magnitudes(values: Tensor) -> Tensor:
    """Magnitudes with 1 as the greatest, so that no sum over- or underflows."""
    if not bool(values.isfinite().all()):
        raise MetricError(
            "MAP_NOT_FINITE", "a map holds NaN or an infinite value; its shape cannot be measured"
        )
    sizes = values.double().abs()
    greatest = sizes.flatten(1).amax(1)[:, None, None]
    return sizes / greatest.where(greatest > 0, 1.0)


def _undefined_without_mass(scores: Tensor, sizes: Tensor) -> Tensor:
    return scores.where(sizes.amax(1) > 0, torch.nan)
