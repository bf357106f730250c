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

DRAWS = 8, 1  # flips (2), angle, shifts (2), size, contrast, brightness; lean: used or not


def augment(
    images: Float[Tensor, "b c h w"],
    settings: AugmentConfig,
    *,
    generator: torch.Generator,
    among: int | None = None,
    rows: slice = slice(None),
) -> Float[Tensor, "b c h w"]:
    """Flip, turn, shift, scale, shear, and change contrast and brightness, each picture on its own.

    Pictures are expected normalised (mean 0, standard deviation 1). What moves in from outside is
    the nearest edge pixel: after histogram equalisation the background is not zero.

    Parameters
    ----------
    among, rows
        Where the images are ``rows`` of a batch of ``among``: they change as they would in it.
    """
    count = among or len(images)
    parts = [torch.rand((count, numbers), generator=generator)[rows] for numbers in DRAWS]
    draws = torch.cat(parts, dim=1).to(images.device)
    moved = _moved(images, draws, settings)
    if settings.intensity == 0:
        return moved
    gain = 1 + settings.intensity * (2 * draws[:, 6] - 1)
    shift = settings.intensity * (2 * draws[:, 7] - 1)
    return (moved * gain[:, None, None, None]).add_(shift[:, None, None, None])


def _moved(
    images: Float[Tensor, "b c h w"], draws: Float[Tensor, "b n"], settings: AugmentConfig
) -> Float[Tensor, "b c h w"]:
    if not _shapes_change(settings):
        return _flipped(images, draws, settings)
    height, width = images.shape[-2:]
    transform = _affine(draws, settings, aspect=height / width)
    grid = sampling_grid(transform, (height, width)).to(images.dtype)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def sampling_grid(
    transform: Float[Tensor, "b 2 3"], size: tuple[int, int]
) -> Float[Tensor, "b h w 2"]:
    """As torch's ``affine_grid``, which multiplies by a matrix for every pixel and takes longer."""
    height, width = size
    columns, rows = (_centres(count, transform.device) for count in (width, height))
    across = transform[:, :, :1] * columns
    down = transform[:, :, 1:2] * rows + transform[:, :, 2:]
    grid = torch.empty((len(transform), height, width, 2), device=transform.device)
    for axis in range(2):
        torch.add(down[:, axis, :, None], across[:, axis, None, :], out=grid[..., axis])
    return grid


def _centres(count: int, device: torch.device) -> Float[Tensor, " n"]:
    """Pixels along an axis from -1 to 1, which are its outer edges."""
    return (2 * torch.arange(count, device=device) + 1) / count - 1


def _shapes_change(settings: AugmentConfig) -> bool:
    changes = (settings.rotate_deg, settings.translate, settings.scale, settings.shear_deg)
    return any(changes) or settings.zoom != 1


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
    size = settings.zoom * (1 + settings.scale * signed[:, 5])
    lean = torch.tan(signed[:, 8] * math.radians(settings.shear_deg))
    sideways = 1 - 2 * (draws[:, 0] < settings.flip_left_right).float()
    upside = 1 - 2 * (draws[:, 1] < settings.flip_up_down).float()
    cosine, sine = torch.cos(angle) / size, torch.sin(angle) / size
    shift = 2 * settings.translate * signed[:, 3:5]  # the full side is 2 long
    first = torch.stack(
        [sideways * cosine, sideways * (cosine * lean - sine) * aspect, shift[:, 0]], dim=1
    )
    second = torch.stack(
        [upside * sine / aspect, upside * (sine * lean + cosine), shift[:, 1]], dim=1
    )
    return torch.stack([first, second], dim=1)
