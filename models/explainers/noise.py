"""Noise that is the same for every sample, device and way of batching.

Axes: b batch, c channel, h row, w column, n copies.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.explainers.scoring import batches


def seeded_noise(
    draws: int, images: Float[Tensor, "b c h w"], seed: int
) -> Iterator[Float[Tensor, "c h w"]]:
    """Draw standard normal pictures from a seed, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        drawn = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32)
        yield drawn.to(images)


def ranges(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Greatest less smallest value of each picture, by which noise is scaled."""
    return (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))[:, None, None, None]


def noisy_copies(
    points: Float[Tensor, "b c h w"],
    noise: Iterator[Float[Tensor, "c h w"]],
    *,
    draws: int,
    scale: Float[Tensor, "b 1 1 1"],
    batch_size: int,
) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "n c h w"]]]:
    """Yield numbers of draws, numbers of samples and the copies, ``batch_size`` at a time.

    Of the noise no more is held than one batch needs.
    """
    held: list[Tensor] = []
    first = 0
    for part in batches(draws * len(points), batch_size):
        start, last = part.start // len(points), (part.stop - 1) // len(points)
        while first + len(held) <= last:
            held.append(next(noise))
        held, first = held[start - first :], start
        pairs = torch.arange(part.start, part.stop, device=points.device)
        drawn, samples = pairs // len(points), pairs % len(points)
        added = scale[samples] * torch.stack(held)[drawn - first]
        yield drawn, samples, points[samples] + added
