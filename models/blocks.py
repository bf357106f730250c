"""Cells and blocks: a fine grid over a coarse one, each coarse cell a block of fine cells.

Axes: b batch, (H, W) fine grid, (h, w) coarse grid, (r, s) one block, so H = h r and W = w s.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import ShapeError


def block_sum(
    fine: Float[Tensor, "b H W"], grid: tuple[int, int] | torch.Size
) -> Float[Tensor, "b h w"]:
    """Mass of a fine map in each cell of a coarser ``grid`` (rows, columns).

    Raises
    ------
    ShapeError
        If the grid does not divide the map.
    """
    check_nested(fine.shape[-2:], grid)
    return block_reduce(fine, grid, torch.add)


def block_logsumexp(
    fine_logits: Float[Tensor, "b H W"], grid: tuple[int, int] | torch.Size
) -> Float[Tensor, "b h w"]:
    """Logarithm of the block sums of exp(fine_logits), finite for any finite logits.

    Raises
    ------
    ShapeError
        If the grid does not divide the map.
    """
    check_nested(fine_logits.shape[-2:], grid)
    return block_split(full_precision(fine_logits), grid)[0]


def block_shares(
    fine_logits: Float[Tensor, "b H W"], grid: tuple[int, int] | torch.Size
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, "b H W"]]:
    """``block_logsumexp``, and each cell's share of its block: a softmax within every block.

    Raises
    ------
    ShapeError
        If the grid does not divide the map.
    """
    check_nested(fine_logits.shape[-2:], grid)
    block, log_share = block_split(full_precision(fine_logits), grid)
    return block, log_share.exp()


def block_split(fine: Tensor, grid: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    """Log of each block's sum of exponentials, and log of each cell's share of its block."""
    return _BlockSplit.apply(fine, tuple(grid))  # pyright: ignore[reportReturnType]


def blocked(fine: Tensor, grid: tuple[int, int] | torch.Size) -> Tensor:
    """View "b (h r) W" as "b h r W": one row of blocks at a time, columns left contiguous."""
    batch, height, width = fine.shape
    return fine.reshape(batch, grid[0], height // grid[0], width)


def block_reduce(
    fine: Tensor,
    grid: tuple[int, int] | torch.Size,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Combine the cells of each block: rows first, because rows are contiguous in memory."""
    rows = reduce(combine, blocked(fine, grid).unbind(2))
    columns = rows.view(*rows.shape[:2], grid[1], rows.shape[2] // grid[1])
    return reduce(combine, columns.unbind(3))


def stretched(coarse: Tensor, fine_grid: torch.Size) -> Tensor:
    """Repeat columns to the fine width, "b h 1 W", to broadcast over the rows of a block."""
    batch, height, width = coarse.shape
    repeated = coarse.unsqueeze(3).expand(batch, height, width, fine_grid[1] // width)
    return repeated.reshape(batch, height, 1, fine_grid[1])


def spread(coarse: Tensor, fine_grid: torch.Size) -> Tensor:
    """Give every fine cell its block's value."""
    rows = fine_grid[0] // coarse.shape[1]
    repeated = stretched(coarse, fine_grid).expand(-1, -1, rows, -1)
    return repeated.reshape(coarse.shape[0], *fine_grid)


def full_precision(logits: Tensor) -> Tensor:
    """Logits in float32 at least: bfloat16 keeps 8 bits, too few for sums that must agree."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_nested(fine: torch.Size, coarse: tuple[int, int] | torch.Size) -> None:
    """Refuse a coarse grid whose cells are not blocks of the fine grid.

    Raises
    ------
    ShapeError
        If a side of the fine grid is no multiple of the coarse one's.
    """
    if any(size < 1 for size in (*fine, *coarse)) or any(
        fine_size % size for fine_size, size in zip(fine, coarse, strict=True)
    ):
        raise ShapeError(
            "GRIDS_DO_NOT_NEST",
            f"a {fine[0]} x {fine[1]} map does not divide into {coarse[0]} x {coarse[1]} blocks; "
            "each side of the fine map must be a multiple of the coarse map's",
        )


class _BlockSplit(torch.autograd.Function):
    """Log of each block's sum of exponentials, and log of each cell's share of its block.

    The share is computed from differences within the block, so that shares sum to 1 however large
    the logits are. Gradient: q (G_block - sum of G_share in the block) + G_share, with q the share.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(fine: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        peak = block_reduce(fine, grid, torch.maximum)
        shifted = blocked(fine, grid).sub(stretched(peak, fine.shape[-2:]))
        log_total = block_reduce(shifted.exp().view_as(fine), grid, torch.add).log_()
        log_share = shifted.sub_(stretched(log_total, fine.shape[-2:])).view_as(fine)
        return peak + log_total, log_share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.grid = inputs[1]
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        block_grad, share_grad = grads
        (log_share,) = ctx.saved_tensors
        carried = block_grad - block_reduce(share_grad, ctx.grid, torch.add)
        return log_share.exp() * spread(carried, log_share.shape[-2:]) + share_grad, None
