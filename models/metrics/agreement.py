"""How far the maps of two levels are apart: one number per sample, 0 where they agree.

Both maps are distributions; the fine one is compared by its block sums.

Axes: b sample, (H, W) fine map, (h, w) coarse map.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (4) and the
KL rows of table 2.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from models.convex import block_sum
from models.errors import MetricError

MASS_TOLERANCE = 1e-3  # a map whose mass is farther from 1 is not a distribution


def total_variation(
    fine: Float[Tensor, "b H W"], coarse: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Half the sum of |block sums of the fine map - coarse map|: mass to move until they agree.

    0 is agreement, 1 is disjoint support.

    Raises
    ------
    ShapeError
        If the coarse grid does not divide the fine one.
    MetricError
        If a map does not sum to 1, or has a negative cell.
    """
    pooled, level = _levels(fine, coarse)
    return (pooled - level).abs().sum(1) / 2


def kl_from_coarse(
    fine: Float[Tensor, "b H W"], coarse: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """KL divergence of the coarse map from the block sums of the fine one, in nats.

    Infinite where the fine map leaves a block empty that the coarse one does not.

    Raises
    ------
    ShapeError, MetricError
        As ``total_variation``.
    """
    pooled, level = _levels(fine, coarse)
    return _divergence(level, pooled)


def kl_from_fine(
    fine: Float[Tensor, "b H W"], coarse: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """KL divergence of the block sums of the fine map from the coarse one, in nats.

    Infinite where the coarse map leaves a cell empty that the fine one does not.

    Raises
    ------
    ShapeError, MetricError
        As ``total_variation``.
    """
    pooled, level = _levels(fine, coarse)
    return _divergence(pooled, level)


def program_value(
    fine: Float[Tensor, "b H W"], coarse: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Least cost KL(mu_fine || fine) + KL(mu_coarse || coarse) of maps mu that agree.

    The optimal value of the consistency program, -2 log sum_i sqrt(T[i] coarse[i]) with T the block
    sums of the fine map; infinite for disjoint support.

    Raises
    ------
    ShapeError, MetricError
        As ``total_variation``.
    """
    pooled, level = _levels(fine, coarse)
    overlap = (pooled * level).sqrt().sum(1)
    mass = (pooled.sum(1) * level.sum(1)).sqrt()  # 1 up to the rounding of half precision
    return (-2 * (overlap / mass).log()).clamp_min(0.0)


def _levels(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten both maps on the coarse grid."""
    for name, level in (("fine", fine), ("coarse", coarse)):
        _check_distribution(name, level)
    pooled = block_sum(fine.double(), coarse.shape[-2:])
    return pooled.flatten(1), coarse.double().flatten(1)


def _divergence(of: Tensor, reference: Tensor) -> Tensor:
    return (torch.xlogy(of, of) - torch.xlogy(of, reference)).sum(1).clamp_min(0.0)


def _check_distribution(name: str, level: Tensor) -> None:
    mass = level.double().flatten(1).sum(1)
    worst = mass[(mass - 1).abs().argmax()] if len(mass) else torch.ones(())
    if not bool((worst - 1).abs() <= MASS_TOLERANCE):
        raise MetricError(
            "NOT_A_DISTRIBUTION",
            f"a {name} map sums to {float(worst):.4g}; levels are compared as maps that sum to 1",
        )
    if bool((level < 0).any()):
        raise MetricError(
            "NOT_A_DISTRIBUTION",
            f"a {name} map goes down to {float(level.min()):.4g}; a distribution has no negative "
            "cell",
        )
