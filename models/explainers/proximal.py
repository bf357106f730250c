"""Thresholds: the proximal operators of the sum of magnitudes and of the sum of patch norms.

Axes: b batch, c channel, h row, w column.

References
----------
Parikh, Boyd, "Proximal algorithms", Foundations and Trends in Optimization 1(3), 2014, 6.5.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from models.errors import ExplainerError


def soft_threshold(
    values: Float[Tensor, "b c h w"], threshold: float | Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c h w"]:
    """Shrink each value towards zero: argmin_z ||z - values||^2 / 2 + threshold ||z||_1.

    What is at most the threshold in magnitude becomes an exact zero.
    """
    most = torch.as_tensor(threshold, dtype=values.dtype, device=values.device)
    return values - torch.minimum(values.abs(), most).copysign(values)


def block_threshold(
    values: Float[Tensor, "b c h w"],
    threshold: float | Float[Tensor, "b 1 1 1"],
    *,
    patch: int,
) -> Float[Tensor, "b c h w"]:
    """Shrink each square patch towards zero by its norm over all channels.

    The minimiser of ||z - values||^2 / 2 + threshold * (sum over patches of ||z_patch||_2). Patches
    start at the upper left; those at the lower and right edge are what is left of the picture.

    Raises
    ------
    ExplainerError
        If a patch has no pixel.
    """
    if patch < 1:
        raise ExplainerError("BAD_SETTING", f"patch is {patch}; it must be 1 pixel or more")
    norms = patch_sums(values.square(), patch=patch).sqrt()
    kept = torch.where(norms > threshold, 1 - threshold / norms, torch.zeros_like(norms))
    return values * kept


def patch_sums(values: Float[Tensor, "b c h w"], *, patch: int) -> Float[Tensor, "b 1 h w"]:
    """Sum over all channels and pixels of the patch that each pixel lies in.

    Patches start at the upper left; those at the lower and right edge are what is left.
    """
    height, width = values.shape[2:]
    rows, columns = -(-height // patch), -(-width // patch)
    squares = functional.pad(
        values.sum(1, keepdim=True), (0, columns * patch - width, 0, rows * patch - height)
    )
    sums = functional.avg_pool2d(squares, patch, divisor_override=1)
    spread = sums.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    return spread[:, :, :height, :width]
