"""Batch-normalisation statistics measured afresh, in place of those that trailed behind training.

Axes: b batch, c channel, h row, w column.

References
----------
Wu, Johnson, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.trunk import Trunk

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
RESTING = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def remeasure(
    network: nn.Module,
    batches: Iterable[Float[Tensor, "b c h w"]],
    *,
    forward: Callable[[Tensor, nn.Module], object] | None = None,
) -> None:
    """Set the running statistics of every batch normalisation to their mean over the batches.

    While a network trains, running statistics are averages over batches that older weights saw.
    Evaluation with them normalises features that the present weights no longer make.
    All statistics that the network holds are measured, also a second set for a second look.
    A network without batch normalisation or with a frozen trunk, or no batch, changes nothing.

    Parameters
    ----------
    batches
        Of more than one picture each, and of about the same size: each counts as much.
    forward
        Calls the network as training does (under autocast, say); plainly where not given.
    """
    parts = list(network.modules())
    frozen = any(isinstance(part, Trunk) and part.frozen for part in parts)
    if frozen or not any(isinstance(part, BATCH_NORMS) for part in parts):
        return
    call = forward or (lambda images, model: model(images))
    with torch.no_grad(), _averaging(network):
        for place, images in enumerate(batches):
            if place == 0:
                _forget(network)
            call(images, network)


def _forget(network: nn.Module) -> None:
    for name, buffer in network.named_buffers():
        for ending, value in RESTING.items():
            if name.endswith(ending):
                buffer.fill_(value)


@contextmanager
def _averaging(network: nn.Module) -> Iterator[None]:
    """Only batch normalisation in training mode, each weighing all batches alike."""
    norms = [part for part in network.modules() if isinstance(part, BATCH_NORMS)]
    modes = [(part, part.training) for part in network.modules()]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    try:
        for norm in norms:
            norm.momentum = None
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
