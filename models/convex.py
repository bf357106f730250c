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

That is the ``geometric`` mean, which dismisses a cell that either level dismisses. The
``arithmetic`` one minimises the divergences the other way round, KL(tau || mu): the coarse map is
(1-w) T + w tau_coarse, the split within a block is the same, and a cell that either level holds
important stays. The value is then twice a (weighted) Jensen-Shannon divergence.

Axes: b batch, (H, W) fine grid, (h, w) coarse grid, (r, s) one block, so H = h r and W = w s.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (4), (5).
van Erven, Harremoes, "Renyi divergence and Kullback-Leibler divergence", IEEE Trans. Inf. Theory
60(7), 2014.
Lin, "Divergence measures based on the Shannon entropy", IEEE Trans. Inf. Theory 37(1), 1991.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.blocks import block_logsumexp as block_logsumexp
from models.blocks import (
    block_reduce,
    block_split,
    blocked,
    check_nested,
    full_precision,
    spread,
    stretched,
)
from models.blocks import block_sum as block_sum
from models.conjugates import CONJUGATE_PAIRS as CONJUGATE_PAIRS
from models.errors import ShapeError

Mean = Literal["geometric", "arithmetic"]

SMALLEST_MASS = 1e-30  # cells below it have no weight in any gradient; dividing by it stays finite


def consistent(
    fine_logits: Float[Tensor, "b H W"],
    coarse_logits: Float[Tensor, "#b h w"],
    *,
    weight: float | Float[Tensor, " b"] = 0.5,
    mean: Mean = "geometric",
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
    mean
        Of the two levels' opinions of a coarse cell; ``geometric`` is the paper's.

    Raises
    ------
    ShapeError
        If the coarse grid does not divide the fine grid, or the batches differ.
    ValueError
        If a number ``weight`` lies outside [0, 1].
    """
    fine, coarse = _checked(fine_logits, coarse_logits)
    if isinstance(weight, Tensor) or mean == "arithmetic":
        log_fine, log_coarse = log_consistent(fine, coarse, weight=weight, mean=mean)
        return log_fine.exp(), log_coarse.exp()
    return _Consistent.apply(fine, coarse, _share(weight))  # pyright: ignore[reportReturnType]


def log_consistent(
    fine_logits: Float[Tensor, "b H W"],
    coarse_logits: Float[Tensor, "#b h w"],
    *,
    weight: float | Float[Tensor, " b"] = 0.5,
    mean: Mean = "geometric",
) -> tuple[Float[Tensor, "b H W"], Float[Tensor, "b h w"]]:
    """Logarithms of ``consistent``'s maps, finite where the maps underflow.

    Raises
    ------
    ShapeError, ValueError
        As ``consistent``.
    """
    fine, coarse = _checked(fine_logits, coarse_logits)
    block_logits, log_share = block_split(fine, coarse.shape[-2:])
    log_coarse = _log_mixed(block_logits, coarse, _share(weight), mean)
    return log_share + spread(log_coarse, fine.shape[-2:]), log_coarse


def consistency_value(
    fine_logits: Float[Tensor, "b H W"],
    coarse_logits: Float[Tensor, "#b h w"],
    *,
    weight: float | Float[Tensor, " b"] = 0.5,
    mean: Mean = "geometric",
) -> Float[Tensor, " b"]:
    """Least cost at which the two softmaxes can be made to agree, per sample.

    R = -2 log sum_i T[i]^(1-w) tau_coarse[i]^w, the optimal value of the program with the weights
    2 (1 - w) and 2 w. Not negative (up to rounding), and 0 just where the maps agree already (for
    w = 0 and 1, always). At w = 1/2 its gradient is ``tau - mu`` in the logits of either level.
    With the ``arithmetic`` mean m, 2 (1 - w) KL(T || m) + 2 w KL(tau_coarse || m).

    Raises
    ------
    ShapeError, ValueError
        As ``consistent``.
    """
    fine, coarse = _checked(fine_logits, coarse_logits)
    share = _share(weight)
    block_logits, _ = block_split(fine, coarse.shape[-2:])
    log_block, log_coarse = _log_normalised(block_logits), _log_normalised(coarse)
    if mean == "arithmetic":
        mixed = _log_mixed(log_block, log_coarse, share, mean)
        cost = (1 - share) * log_block.exp() * (log_block - mixed)
        return 2 * (cost + share * log_coarse.exp() * (log_coarse - mixed)).flatten(1).sum(1)
    joint = (1 - share) * log_block + share * log_coarse
    return -2 * joint.flatten(1).logsumexp(1)


def consistent_chain(
    logits: Sequence[Float[Tensor, "b _h _w"]],
    weights: Sequence[float] | None = None,
    *,
    mean: Mean = "geometric",
) -> list[Float[Tensor, "b _h _w"]]:
    """Nearest attention maps, finest first, each of which is the block sum of the one before.

    Minimises sum_l w_l KL(mu_l || tau_l) over nested grids by one sweep up and one down (with the
    ``arithmetic`` mean, sum_l w_l KL(tau_l || mu_l)). Two levels of equal weight are
    ``consistent``; a single level is its softmax.

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
    top, log_shares, _ = _sweep_up(logits, weights, mean)
    return [log_map.exp() for log_map in _sweep_down(top, log_shares)]


def consistent_maps(
    maps: Sequence[Float[Tensor, "b _h _w"]],
    weights: Sequence[float] | None = None,
    *,
    mean: Mean = "geometric",
) -> list[Float[Tensor, "b _h _w"]]:
    """Nearest maps that agree to maps that were made without regard to each other.

    ``consistent_chain`` after the fact: the explanation by convex optimisation of a model whose
    own maps need not agree. An empty cell counts as one of mass 1e-30.

    Raises
    ------
    ShapeError, ValueError
        As ``consistent_chain``.
    """
    logits = [full_precision(level).clamp_min(SMALLEST_MASS).log() for level in maps]
    return consistent_chain(logits, weights, mean=mean)


def chain_value(
    logits: Sequence[Float[Tensor, "b _h _w"]],
    weights: Sequence[float] | None = None,
    *,
    mean: Mean = "geometric",
) -> Float[Tensor, " b"]:
    """Least cost at which all levels can be made to agree, per sample.

    The optimal value of ``consistent_chain``'s program. Two levels of weight 1 give
    ``consistency_value``; the gradient in the logits of level l is w_l (tau_l - mu_l).

    Raises
    ------
    ShapeError, ValueError
        As ``consistent_chain``.
    """
    normalised = [_log_normalised(full_precision(level)) for level in logits]
    top, log_shares, total_weight = _sweep_up(normalised, weights, mean)
    if mean == "geometric":
        return -total_weight * top.flatten(1).logsumexp(1)
    shares = _checked_weights(len(logits), weights)
    log_maps = _sweep_down(top, log_shares)
    costs = [
        share * (log_tau.exp() * (log_tau - log_map)).flatten(1).sum(1)
        for share, log_tau, log_map in zip(shares, normalised, log_maps, strict=True)
    ]
    return torch.stack(costs).sum(0)


def climbed(
    below: Float[Tensor, "b h w"],
    level: Float[Tensor, "b h w"],
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    mean: Mean = "geometric",
) -> Float[Tensor, "b h w"]:
    """One step up a chain: logits that hold the opinion of a level and of all finer ones.

    Parameters
    ----------
    below
        ``block_logsumexp`` of the finer levels' joint logits, on this level's grid.
    weights
        Of the finer levels together, and of this level.
    """
    level = full_precision(level)
    share = weights[1] / sum(weights)
    if mean == "geometric":
        return (1 - share) * below + share * level
    return _log_mixed(below, level, share, mean)


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
        peak = block_reduce(fine, grid, torch.maximum)
        unscaled = blocked(fine, grid).sub(stretched(peak, fine_grid)).exp_()
        total = block_reduce(unscaled.view_as(fine), grid, torch.add)
        mixed = torch.lerp(total.log().add_(peak), coarse, share)
        coarse_map = mixed.flatten(1).softmax(1).view_as(coarse)
        fine_map = unscaled.mul_(stretched(coarse_map / total, fine_grid)).view_as(fine)
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
        block_mean = block_reduce(fine_map * fine_grad, grid, torch.add)
        block_mean = block_mean / coarse_map.clamp_min(SMALLEST_MASS)
        block_grad = coarse_grad + block_mean
        mean = (coarse_map * block_grad).flatten(1).sum(1)[:, None, None]
        centred = block_grad - mean
        shift = torch.sub((1 - ctx.share) * centred, block_mean)
        within = blocked(fine_grad, grid) + stretched(shift, fine_grid)
        return fine_map * within.view_as(fine_map), ctx.share * coarse_map * centred, None


def _sweep_up(
    logits: Sequence[Tensor], weights: Sequence[float] | None, mean: Mean
) -> tuple[Tensor, list[Tensor], float]:
    """Log score of each top cell's subtree, log shares within blocks per level, total weight."""
    levels, shares = _checked_levels(logits), _checked_weights(len(logits), weights)
    totals = list(accumulate(shares))
    subtree, log_shares = levels[0], []
    for level, share, below in zip(levels[1:], shares[1:], totals, strict=False):
        block, log_share = block_split(subtree, level.shape[-2:])
        log_shares.append(log_share)
        subtree = climbed(block, level, weights=(below, share), mean=mean)
    return subtree, log_shares, totals[-1]


def _sweep_down(top: Tensor, log_shares: Sequence[Tensor]) -> list[Tensor]:
    """Logarithms of the maps, finest first."""
    log_maps = [_log_normalised(top)]
    for log_share in reversed(log_shares):
        log_maps.append(log_share + spread(log_maps[-1], log_share.shape[-2:]))
    return log_maps[::-1]


def _log_mixed(block: Tensor, coarse: Tensor, share: Any, mean: Mean) -> Tensor:
    """Logarithm of the two levels' mean, itself a distribution over the coarse cells."""
    if mean == "geometric":
        return _log_normalised((1 - share) * block + share * coarse)
    log_share = torch.as_tensor(share, dtype=block.dtype, device=block.device)
    finer = torch.log1p(-log_share) + _log_normalised(block)
    return torch.logaddexp(finer, torch.log(log_share) + _log_normalised(coarse))


def _log_normalised(logits: Tensor) -> Tensor:
    return logits.flatten(1).log_softmax(1).view_as(logits)


def _share(weight: float | Tensor) -> Any:
    """Check a number; make a tensor of samples broadcast over the grid."""
    if isinstance(weight, Tensor):
        return weight[:, None, None]
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; the coarse level's share lies between 0 and 1")
    return float(weight)


def _checked(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    _check_batches(fine, coarse)
    check_nested(fine.shape[-2:], coarse.shape[-2:])
    return full_precision(fine), full_precision(coarse)


def _checked_levels(logits: Sequence[Tensor]) -> list[Tensor]:
    if not logits:
        raise ShapeError("NO_LEVEL", "a chain needs the logits of at least one level, got none")
    for finer, coarser in pairwise(logits):
        _check_batches(finer, coarser)
        check_nested(finer.shape[-2:], coarser.shape[-2:])
    return [full_precision(level) for level in logits]


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
