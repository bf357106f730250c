"""A class score smoothed by noise: its gradient, and its second derivative times a vector.

Axes: b batch, m points, n copies, c channel, h row, w column.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.noise import noisy_copies, ranges, seeded_noise
from models.explainers.scoring import gradient_of, scores_of

KEPT_NOISE = 64  # pictures; more are drawn anew at every step, so that draws do not cost memory


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedScore:
    """Mean of a score over noise; samples are named by their number in the batch.

    Without noise (a spread of zero) it is the score itself. How the noise's width changes with the
    picture's range is no part of the derivatives.
    """

    model: nn.Module
    target: Int[Tensor, " b"]
    draws: int
    seed: int
    kept: tuple[Float[Tensor, "c h w"], ...]
    scale: Float[Tensor, "b 1 1 1"]
    batch_size: int

    @classmethod
    def around(
        cls,
        model: nn.Module,
        images: Float[Tensor, "b c h w"],
        target: Int[Tensor, " b"],
        *,
        spread: float,
        draws: int,
        seed: int,
        batch_size: int,
    ) -> "SmoothedScore":
        """Score of each picture's target, with noise of ``spread`` times the picture's range."""
        count = draws if spread else 1
        kept = count <= KEPT_NOISE
        return cls(
            model=model,
            target=target,
            draws=count,
            seed=seed,
            kept=tuple(seeded_noise(count, images, seed)) if kept else (),
            scale=spread * ranges(images),
            batch_size=batch_size,
        )

    def _copies(
        self, points: Tensor, samples: Tensor
    ) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "n c h w"]]]:
        """Numbers of draws, places of the points and noisy points, in batches."""
        return noisy_copies(
            points,
            iter(self.kept) if self.kept else seeded_noise(self.draws, points, self.seed),
            draws=self.draws,
            scale=self.scale[samples],
            batch_size=self.batch_size,
        )

    def gradient(
        self, points: Float[Tensor, "m c h w"], samples: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, "m c h w"], Float[Tensor, " m"]]:
        """Gradient at each point, and the length of the longest one of a single draw."""
        mean = torch.zeros_like(points)
        longest = points.new_zeros(len(points))
        for _, places, noisy in self._copies(points, samples):
            _, gradient = gradient_of(self.model, noisy, self.target[samples[places]])
            mean.index_add_(0, places, gradient)
            longest.scatter_reduce_(0, places, gradient.flatten(1).norm(dim=1), "amax")
        return mean / self.draws, longest

    def hessian_product(
        self, points: Float[Tensor, "b c h w"], vector: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Second derivative at each point of the whole batch, times a vector."""
        product = torch.zeros_like(points)
        everyone = torch.arange(len(points), device=points.device)
        for _, places, noisy in self._copies(points, everyone):
            second = hessian_product(self.model, noisy, self.target[places], vector[places])
            product.index_add_(0, places, second)
        return product / self.draws


def hessian_product(
    model: nn.Module,
    points: Float[Tensor, "m c h w"],
    target: Int[Tensor, " m"],
    vector: Float[Tensor, "m c h w"],
) -> Float[Tensor, "m c h w"]:
    """Second derivative of each point's score times a vector, inside ``explaining``.

    Zero where the score is linear. Rectifiers have none but at their kinks: of a network of them
    this is what gates, pooling and normalisation bend.
    """
    leaf = points.detach().clone().requires_grad_()
    scores = scores_of(model, leaf, target)
    (gradient,) = torch.autograd.grad(scores.sum(), leaf, create_graph=True)
    if not gradient.requires_grad:
        return torch.zeros_like(leaf)
    (second,) = torch.autograd.grad((gradient * vector).sum(), leaf, allow_unused=True)
    return torch.zeros_like(leaf) if second is None else second
