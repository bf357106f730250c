"""Batch normalisation over the pictures of all processes, as if one process held the whole batch.

Axes: b batch, c channel, the rest is space.

References
----------
Ioffe, Szegedy, "Batch normalization", ICML 2015, algorithm 1.
"""

from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


@final
class GlobalBatchNorm(nn.BatchNorm2d):
    """``nn.SyncBatchNorm`` on any device and in any dimension; torch's own trains on CUDA only.

    Every process must call it equally often, with as many pictures as it has, none included.
    """

    def forward(self, input: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Normalise; while training, by mean and variance over the batches of all processes."""
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        values = input.float() if input.element_size() < 4 else input
        over = [0, *range(2, values.ndim)]
        shape = (1, -1, *(1 for _ in over[1:]))
        held = values.new_tensor([values.numel() // values.shape[1]])
        sums = _Summed.apply(torch.cat([values.sum(over), held]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = _Summed.apply(centred.square().sum(over)) / count
        if self.training:
            self._remember(mean.detach(), (variance * count / (count - 1)).detach())
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        normalised = centred * scale.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        batches = self.num_batches_tracked
        if batches is None:
            return
        batches.add_(1)
        share = 1 / float(batches) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Summed(torch.autograd.Function):
    """Sum of a tensor over all processes; so is its gradient, for each process has a loss."""

    @staticmethod
    def forward(ctx: Any, values: Shaped[Tensor, " n"]) -> Shaped[Tensor, " n"]:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


KINDS = (nn.SyncBatchNorm, GlobalBatchNorm)


def synchronise(network: nn.Module, *, fused: bool) -> None:
    """Let every batch normalisation inside a network see the pictures of all processes.

    Weights, running statistics and names in the state stay as they are.

    Parameters
    ----------
    fused
        Whether torch's own kernels can be used, which exist on CUDA only.
    """
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, _BatchNorm) and type(part) not in KINDS:
                setattr(parent, name, _synchronised(part, fused))


def _synchronised(norm: _BatchNorm, fused: bool) -> _BatchNorm:
    kind = nn.SyncBatchNorm if fused else GlobalBatchNorm
    found = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    found.weight, found.bias = norm.weight, norm.bias
    found.running_mean, found.running_var = norm.running_mean, norm.running_var
    found.num_batches_tracked = norm.num_batches_tracked
    found.training = norm.training
    return found
