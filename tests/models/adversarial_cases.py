"""Small models whose attacks can be written down, and domains for them."""

import torch
from torch import Tensor, nn

from models.domain import Domain
from models.records import Prediction


class Toy(nn.Module):
    """Wraps whatever gives logits."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> Prediction:
        logits = self.body(images)
        return Prediction(logits=logits, maps=(), penalty=logits.new_zeros(len(logits)))


def linear(weights: Tensor) -> Toy:
    """Logits <weights[k], picture> for weights "k c h w"."""
    body = nn.Linear(weights[0].numel(), len(weights), bias=False)
    body.weight.data = weights.flatten(1).clone()
    return Toy(nn.Sequential(nn.Flatten(), body)).to(weights.dtype)


def smooth(pixels: int, *, classes: int = 3, width: int = 24, beta: float = 1.0) -> Toy:
    """A softplus network: as often differentiable as one likes."""
    return Toy(
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, width),
            nn.Softplus(beta=beta),
            nn.Linear(width, width),
            nn.Softplus(beta=beta),
            nn.Linear(width, classes),
        )
    )


def everywhere(channels: int = 1, dtype: torch.dtype = torch.float64) -> Domain:
    """All numbers; a radius of 1 is 1."""
    ones = torch.ones(channels, dtype=dtype)
    infinite = torch.full_like(ones, float("inf"))
    return Domain(scale=ones, shift=0 * ones, low=-infinite, high=infinite, unit=ones)


def bytes_of(channels: int = 1, dtype: torch.dtype = torch.float32) -> Domain:
    """Bytes, normalised by another mean and deviation in each channel."""
    rise = torch.arange(channels, dtype=dtype)
    return Domain(
        scale=40 + 10 * rise,
        shift=100 - 20 * rise,
        low=0 * rise,
        high=0 * rise + 255,
    )
