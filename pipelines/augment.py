"""Whole-batch augmentation on whichever device the batch is on.

Axes: b batch, c channel, h row, w column. Every random number comes from a generator that the
caller seeds, so that a batch is a function of its seed alone.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipelines.config import AugmentConfig

DRAWS = 8  # flips (2), angle, shifts (2), size, contrast, brightness: always drawn, used or not


def augment(
    images: Float[Tensor, "b c h w"], settings: AugmentConfig, *, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Flip, rotate, shift, scale, and change contrast and brightness, each picture on its own.

    Pictures are expected normalised (mean 0, standard deviation 1). What moves in from outside is
    the nearest edge pixel: after histogram equalisation the background is not zero.
    """
    draws = torch.rand((len(images), DRAWS), generator=generator).to(images.device)
    moved = _moved(images, draws, settings)
    if settings.intensity == 0:
        return moved
    gain = 1 + settings.intensity * (2 * draws[:, 6] - 1)
    shift = settings.intensity * (2 * draws[:, 7] - 1)
    return moved * gain[:, None, None, None] + shift[:, None, None, None]


def _moved(
    images: Float[Tensor, "b c h w"], draws: Float[Tensor, "b n"], settings: AugmentConfig
) -> Float[Tensor, "b c h w"]:
    if not (settings.rotate_deg or settings.translate or settings.scale):
        return _flipped(images, draws, settings)
    height, width = images.shape[-2:]
    transform = _affine(draws, settings, aspect=height / width)
    grid = functional.affine_grid(transform, list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False
    )


def _flipped(
    images: Float[Tensor, "b c h w"], draws: Float[Tensor, "b n"], settings: AugmentConfig
) -> Float[Tensor, "b c h w"]:
    sideways = (draws[:, 0] < settings.flip_left_right)[:, None, None, None]
    upside = (draws[:, 1] < settings.flip_up_down)[:, None, None, None]
    images = torch.where(sideways, images.flip(-1), images)
    return torch.where(upside, images.flip(-2), images)


def _affine(
    draws: Float[Tensor, "b n"], settings: AugmentConfig, *, aspect: float
) -> Float[Tensor, "b 2 3"]:
    """Output to input coordinates in [-1, 1]; ``aspect`` (height / width) keeps angles true."""
    signed = 2 * draws - 1
    angle = signed[:, 2] * math.radians(settings.rotate_deg)
    size = 1 + settings.scale * signed[:, 5]
    sideways = 1 - 2 * (draws[:, 0] < settings.flip_left_right).float()
    upside = 1 - 2 * (draws[:, 1] < settings.flip_up_down).float()
    cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
    shift = 2 * settings.translate * signed[:, 3:5]  # the full side is 2 long
    first = torch.stack([sideways * cosine, -sideways * sine * aspect, shift[:, 0]], dim=1)
    second = torch.stack([upside * sine / aspect, upside * cosine, shift[:, 1]], dim=1)
    return torch.stack([first, second], dim=1)
