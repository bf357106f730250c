"""How far the maps of two levels are apart.

Axes: b sample, (H, W) fine map, (h, w) coarse map.
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

    Both maps are distributions; 0 is agreement, 1 is disjoint support.

    Raises
    ------
    ShapeError
        If the coarse grid does not divide the fine one.
    MetricError
        If a map does not sum to 1.
    """
    for name, level in (("fine", fine), ("coarse", coarse)):
        _check_mass(name, level)
    pooled = block_sum(fine.double(), coarse.shape[-2:])
    return (pooled - coarse.double()).abs().flatten(1).sum(1) / 2


def _check_mass(name: str, level: Tensor) -> None:
    mass = level.double().flatten(1).sum(1)
    worst = mass[(mass - 1).abs().argmax()] if len(mass) else torch.ones(())
    if not bool((worst - 1).abs() <= MASS_TOLERANCE):
        raise MetricError(
            "NOT_A_DISTRIBUTION",
            f"a {name} map sums to {float(worst):.4g}; total variation compares maps that sum to 1",
        )
