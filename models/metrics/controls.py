"""Maps that know nothing: what a localisation score must be compared with.

Axes: b sample, h row, w column.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def uniform_map(shape: tuple[int, int, int]) -> Float[Tensor, "b h w"]:
    """Give every cell the same share; sums to 1 per sample."""
    return torch.full(shape, 1 / (shape[1] * shape[2]))


def random_map(
    shape: tuple[int, int, int], *, generator: torch.Generator
) -> Float[Tensor, "b h w"]:
    """Draw a distribution uniformly from the simplex (flat Dirichlet) for each sample."""
    draws = torch.empty(shape).exponential_(generator=generator)
    return draws / draws.sum((1, 2), keepdim=True)
