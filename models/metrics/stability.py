"""How alike the maps of one picture are that networks of different seeds give.

Axes: b sample, h row, w column.

References
----------
Gong, Dou, Farnia, "Structured gradient-based interpretations via norm-regularized adversarial
training", CVPR 2024 (stability between independently trained networks).
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import MetricError
from models.metrics.similarity import top_k_intersection


def stability(
    maps_by_seed: Sequence[Float[Tensor, "b h w"]],
    *,
    similarity: Callable[..., Float[Tensor, " b"]] = top_k_intersection,
) -> Float[Tensor, " b"]:
    """Mean similarity of each picture's maps over all ordered pairs of seeds.

    Both orders count, since a similarity may measure one map by the other. A picture one of whose
    pairs is not defined scores NaN.

    Parameters
    ----------
    maps_by_seed
        Maps of the same pictures in the same order and of the same class, one tensor per network.
    similarity
        Any measure of robustness: (map, other map) -> number.

    Raises
    ------
    MetricError
        With fewer than two seeds, and as the similarity itself.
    ShapeError
        If the maps have different grids.
    """
    if len(maps_by_seed) < 2:
        raise MetricError(
            "ONE_SEED",
            f"maps of {len(maps_by_seed)} networks are given; agreement needs two or more: train "
            "with other seeds",
        )
    pairs = [similarity(one, other) for one, other in permutations(maps_by_seed, 2)]
    return torch.stack(pairs).mean(0)
