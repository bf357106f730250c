"""Touch a model for a while and give it back as it was found, also when something raises."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every part of a model in evaluation mode; give each part its own mode back."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def output_as_leaf(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Make each output of a layer a leaf that gradients can be asked for.

    Yields the leaves in the order of the layer's calls. The graph is cut at the layer, so that
    nothing before it is differentiated or kept. What follows works on a copy and may change it in
    place. Outputs that are no tensors pass as they are.
    """
    leaves: list[Tensor] = []

    def cut(_layer: nn.Module, _inputs: tuple[object, ...], output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        leaves.append(output.detach().requires_grad_())
        return leaves[-1].clone()

    handle = layer.register_forward_hook(cut)
    try:
        yield leaves
    finally:
        handle.remove()


@contextmanager
def differentiating() -> Iterator[None]:
    """Record gradients whatever mode the caller is in (``no_grad`` or ``inference_mode``)."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield
