"""Two or more attention maps that agree: the consistency program in closed form.

A fine map ``tau_fine`` and a coarse map ``tau_coarse``, both softmaxes of logits, are replaced by
the nearest pair whose coarse map is the block sum of the fine one:

    argmin  w_fine KL(mu_fine || tau_fine) + w_coarse KL(mu_coarse || tau_coarse)
    s.t.    mu_coarse[i] = sum of mu_fine[j] over the cells j in block N(i)

With T the block sums of ``tau_fine``, the log-sum inequality gives the unique solution

    mu_coarse[i] = T[i]^(1-w) tau_coarse[i]^w / Z,   mu_fine[j] = mu_coarse[i] tau_fine[j] / T[i]

where w is the coarse level's share of the weight. At w = 1/2 the optimal value is -2 log Z, the
Renyi divergence of order 1/2 between T and ``tau_coarse``. Any number of nested levels is solved
the same way, up and down the tree. Everything is computed from logits, in log space.

Axes: b batch, (H, W) fine grid, (h, w) coarse grid, (r, s) one block, so H = h r and W = w s.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (4), (5).
van Erven, Harremoes, "Renyi divergence and Kullback-Leibler divergence", IEEE Trans. Inf. Theory
60(7), 2014.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import ShapeError

SMALLEST_MASS = 1e-30  # cells below it have no weight in any gradient; dividing by it stays finite


def consistent(
    fine_logits: Float[Tensor, "b H W"],
    coarse_logits: Float[Tensor, "#b h w"],
    *,
    weight: float | Float[Tensor, " b"] = 0.5,
) -> tuple[Float[Tensor, "b H W"], Float[Tensor, "b h w"]]:
    """Nearest pair of attention maps that agree exactly.

    Each map is non-negative and sums to 1 per sample; the coarse map is the block sum of the fine
    one. Half precision is computed and returned in float32. Differentiable twice.

    Parameters
    ----------
    fine_logits, coarse_logits
        Potentials before the softmax; each may be shifted by a constant per sample.
    weight
        Share of the coarse level in the objective, in [0, 1]: 0 keeps the fine map, 1 keeps the
        coarse map, 1/2 is the program of the paper. A tensor gives each sample its own.

    Raises
    ------
    ShapeError
        If the coarse grid does not divide the fine grid, or the batches differ.
    ValueError
        If a number ``weight`` lies outside [0, 1].
    """
    fine, coarse = _checked(fine_logits, coarse_logits)
    if isinstance(weight, Tensor):
        log_fine, log_coarse = log_consistent(fine, coarse, weight=weight)
        return log_fine.exp(), log_coarse.exp()
    return _Consistent.apply(fine, coarse, _share(weight))  # pyright: ignore[reportReturnType]


def log_consistent(
    fine_logits: Float[Tensor, "b H W"],
    coarse_logits: Float[Tensor, "#b h w"],
    *,
    weight: float | Float[Tensor, " b"] = 0.5,
) -> tuple[Float[Tensor, "b H W"], Float[Tensor, "b h w"]]:
    """Logarithms of ``consistent``'s maps, finite where the maps underflow.

    Raises
    ------
    ShapeError, ValueError
        As ``consistent``.
    """
    fine, coarse = _checked(fine_logits, coarse_logits)
    share = _share(weight)
    block_logits, log_share = _block_split(fine, coarse.shape[-2:])
    log_coarse = _log_normalised((1 - share) * block_logits + share * coarse)
    return log_share + _spread(log_coarse, fine.shape[-2:]), log_coarse


def consistency_value(
    fine_logits: Float[Tensor, "b H W"],
    coarse_logits: Float[Tensor, "#b h w"],
    *,
    weight: float | Float[Tensor, " b"] = 0.5,
) -> Float[Tensor, " b"]:
    """Least cost at which the two softmaxes can be made to agree, per sample.

    R = -2 log sum_i T[i]^(1-w) tau_coarse[i]^w, the optimal value of the program with the weights
    2 (1 - w) and 2 w. Not negative (up to rounding), and 0 just where the maps agree already (for
    w = 0 and 1, always). At w = 1/2 its gradient is ``tau - mu`` in the logits of either level.

    Raises
    ------
    ShapeError, ValueError
        As ``consistent``.
    """
    fine, coarse = _checked(fine_logits, coarse_logits)
    share = _share(weight)
    block_logits, _ = _block_split(fine, coarse.shape[-2:])
    log_block = _log_normalised(block_logits)
    joint = (1 - share) * log_block + share * _log_normalised(coarse)
    return -2 * joint.flatten(1).logsumexp(1)


def consistent_chain(
    logits: Sequence[Float[Tensor, "b _h _w"]], weights: Sequence[float] | None = None
) -> list[Float[Tensor, "b _h _w"]]:
    """Nearest attention maps, finest first, each of which is the block sum of the one before.

    Minimises sum_l w_l KL(mu_l || tau_l) over nested grids by one sweep up and one down. Two
    levels of equal weight are ``consistent``; a single level is its softmax.

    Parameters
    ----------
    logits
        Finest level first; each grid divides the one before.
    weights
        One positive number per level; all 1 by default.

    Raises
    ------
    ShapeError
        If there is no level, or a grid does not divide the one before.
    ValueError
        If the weights are not one positive number per level.
    """
    top, log_shares, _ = _sweep_up(logits, weights)
    log_maps = [_log_normalised(top)]
    for log_share in reversed(log_shares):
        log_maps.append(log_share + _spread(log_maps[-1], log_share.shape[-2:]))
    return [log_map.exp() for log_map in reversed(log_maps)]


def chain_value(
    logits: Sequence[Float[Tensor, "b _h _w"]], weights: Sequence[float] | None = None
) -> Float[Tensor, " b"]:
    """Least cost at which all levels can be made to agree, per sample.

    The optimal value of ``consistent_chain``'s program. Two levels of weight 1 give
    ``consistency_value``; the gradient in the logits of level l is w_l (tau_l - mu_l).

    Raises
    ------
    ShapeError, ValueError
        As ``consistent_chain``.
    """
    normalised = [_log_normalised(_full_precision(level)) for level in logits]
    top, _, total_weight = _sweep_up(normalised, weights)
    return -total_weight * top.flatten(1).logsumexp(1)


def block_sum(
    fine: Float[Tensor, "b H W"], grid: tuple[int, int] | torch.Size
) -> Float[Tensor, "b h w"]:
    """Mass of a fine map in each cell of a coarser ``grid`` (rows, columns).

    Raises
    ------
    ShapeError
        If the grid does not divide the map.
    """
    _check_nested(fine.shape[-2:], grid)
    return _block_reduce(fine, grid, torch.add)


def block_logsumexp(
    fine_logits: Float[Tensor, "b H W"], grid: tuple[int, int] | torch.Size
) -> Float[Tensor, "b h w"]:
    """Logarithm of the block sums of exp(fine_logits), finite for any finite logits.

    Raises
    ------
    ShapeError
        If the grid does not divide the map.
    """
    _check_nested(fine_logits.shape[-2:], grid)
    return _block_split(_full_precision(fine_logits), grid)[0]


class _Consistent(torch.autograd.Function):
    """``consistent`` with its gradient in closed form; saves nothing but the two maps.

    With G the incoming gradients and s[i] = sum_j mu_fine[j] G_fine[j] / mu_coarse[i] over block i,
    each block's total gradient is g = G_coarse + s and d[i] = g[i] - sum_i' mu_coarse[i'] g[i']:

        grad fine_logits[j]   = mu_fine[j] (G_fine[j] - s[i] + (1 - w) d[i])
        grad coarse_logits[i] = w mu_coarse[i] d[i]

    The backward pass is itself made of differentiable operations on the outputs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(fine: Tensor, coarse: Tensor, share: float) -> tuple[Tensor, Tensor]:
        grid, fine_grid = coarse.shape[-2:], fine.shape[-2:]
        peak = _block_reduce(fine, grid, torch.maximum)
        unscaled = _blocked(fine, grid).sub(_stretched(peak, fine_grid)).exp_()
        total = _block_reduce(unscaled.view_as(fine), grid, torch.add)
        mixed = torch.lerp(total.log().add_(peak), coarse, share)
        coarse_map = mixed.flatten(1).softmax(1).view_as(coarse)
        fine_map = unscaled.mul_(_stretched(coarse_map / total, fine_grid)).view_as(fine)
        return fine_map, coarse_map

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.share = inputs[2]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        fine_grad, coarse_grad = grads
        fine_map, coarse_map = ctx.saved_tensors
        grid, fine_grid = coarse_map.shape[-2:], fine_map.shape[-2:]
        block_mean = _block_reduce(fine_map * fine_grad, grid, torch.add)
        block_mean = block_mean / coarse_map.clamp_min(SMALLEST_MASS)
        block_grad = coarse_grad + block_mean
        mean = (coarse_map * block_grad).flatten(1).sum(1)[:, None, None]
        centred = block_grad - mean
        shift = torch.sub((1 - ctx.share) * centred, block_mean)
        within = _blocked(fine_grad, grid) + _stretched(shift, fine_grid)
        return fine_map * within.view_as(fine_map), ctx.share * coarse_map * centred, None


class _BlockSplit(torch.autograd.Function):
    """Log of each block's sum of exponentials, and log of each cell's share of its block.

    The share is computed from differences within the block, so that shares sum to 1 however large
    the logits are. Gradient: q (G_block - sum of G_share in the block) + G_share, with q the share.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(fine: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        peak = _block_reduce(fine, grid, torch.maximum)
        shifted = _blocked(fine, grid).sub(_stretched(peak, fine.shape[-2:]))
        log_total = _block_reduce(shifted.exp().view_as(fine), grid, torch.add).log_()
        log_share = shifted.sub_(_stretched(log_total, fine.shape[-2:])).view_as(fine)
        return peak + log_total, log_share

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.grid = inputs[1]
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        block_grad, share_grad = grads
        (log_share,) = ctx.saved_tensors
        carried = block_grad - _block_reduce(share_grad, ctx.grid, torch.add)
        return log_share.exp() * _spread(carried, log_share.shape[-2:]) + share_grad, None


def _block_split(fine: Tensor, grid: tuple[int, int] | torch.Size) -> tuple[Tensor, Tensor]:
    return _BlockSplit.apply(fine, tuple(grid))  # pyright: ignore[reportReturnType]


def _sweep_up(
    logits: Sequence[Tensor], weights: Sequence[float] | None
) -> tuple[Tensor, list[Tensor], float]:
    """Log score of each top cell's subtree, log shares within blocks per level, total weight."""
    levels, shares = _checked_levels(logits), _checked_weights(len(logits), weights)
    totals = list(accumulate(shares))
    subtree, log_shares = levels[0], []
    for level, share, below, upto in zip(levels[1:], shares[1:], totals, totals[1:], strict=False):
        block, log_share = _block_split(subtree, level.shape[-2:])
        log_shares.append(log_share)
        subtree = (share * level + below * block) / upto
    return subtree, log_shares, totals[-1]


def _blocked(fine: Tensor, grid: tuple[int, int] | torch.Size) -> Tensor:
    """View "b (h r) W" as "b h r W": one row of blocks at a time, columns left contiguous."""
    batch, height, width = fine.shape
    return fine.reshape(batch, grid[0], height // grid[0], width)


def _block_reduce(
    fine: Tensor,
    grid: tuple[int, int] | torch.Size,
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Combine the cells of each block: rows first, because rows are contiguous in memory."""
    rows = reduce(combine, _blocked(fine, grid).unbind(2))
    columns = rows.view(*rows.shape[:2], grid[1], rows.shape[2] // grid[1])
    return reduce(combine, columns.unbind(3))


def _stretched(coarse: Tensor, fine_grid: torch.Size) -> Tensor:
    """Repeat columns to the fine width, "b h 1 W", to broadcast over the rows of a block."""
    batch, height, width = coarse.shape
    repeated = coarse.unsqueeze(3).expand(batch, height, width, fine_grid[1] // width)
    return repeated.reshape(batch, height, 1, fine_grid[1])


def _spread(coarse: Tensor, fine_grid: torch.Size) -> Tensor:
    """Give every fine cell its block's value."""
    rows = fine_grid[0] // coarse.shape[1]
    spread = _stretched(coarse, fine_grid).expand(-1, -1, rows, -1)
    return spread.reshape(coarse.shape[0], *fine_grid)


def _log_normalised(logits: Tensor) -> Tensor:
    return logits.flatten(1).log_softmax(1).view_as(logits)


def _full_precision(logits: Tensor) -> Tensor:
    """Logits in float32 at least: bfloat16 keeps 8 bits, too few for sums that must agree."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _share(weight: float | Tensor) -> Any:
    """Check a number; make a tensor of samples broadcast over the grid."""
    if isinstance(weight, Tensor):
        return weight[:, None, None]
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; the coarse level's share lies between 0 and 1")
    return float(weight)


def _checked(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    _check_batches(fine, coarse)
    _check_nested(fine.shape[-2:], coarse.shape[-2:])
    return _full_precision(fine), _full_precision(coarse)


def _checked_levels(logits: Sequence[Tensor]) -> list[Tensor]:
    if not logits:
        raise ShapeError("NO_LEVEL", "a chain needs the logits of at least one level, got none")
    for finer, coarser in pairwise(logits):
        _check_batches(finer, coarser)
        _check_nested(finer.shape[-2:], coarser.shape[-2:])
    return [_full_precision(level) for level in logits]


def _checked_weights(levels: int, weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        return [1.0] * levels
    if len(weights) != levels or not all(weight > 0 for weight in weights):
        raise ValueError(
            f"weights are {list(weights)}; a chain of {levels} levels needs {levels} positive ones"
        )
    return [float(weight) for weight in weights]


def _check_batches(fine: Tensor, coarse: Tensor) -> None:
    if fine.shape[0] != coarse.shape[0]:
        raise ShapeError(
            "BATCHES_DIFFER",
            f"the finer level has {fine.shape[0]} samples and the coarser {coarse.shape[0]}; "
            "give both levels of the same batch",
        )


def _check_nested(fine: torch.Size, coarse: tuple[int, int] | torch.Size) -> None:
    if any(size < 1 for size in (*fine, *coarse)) or any(
        fine_size % size for fine_size, size in zip(fine, coarse, strict=True)
    ):
        raise ShapeError(
            "GRIDS_DO_NOT_NEST",
            f"a {fine[0]} x {fine[1]} map does not divide into {coarse[0]} x {coarse[1]} blocks; "
            "each side of the fine map must be a multiple of the coarse map's",
        )
