"""Random weights in place of a model's own, for a while: all of them, or one stage after another.

A stage is what a network calls by a name: its linear head, its attention, and the stages of its
trunk from the last to the first. Parameters are drawn anew; buffers, such as the statistics of
batch normalisation, stay.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.1 (cascading
randomisation, from the logits down).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.networks import Classifier

UNNAMED = "the rest"


@contextmanager
def randomised(model: nn.Module, *, generator: torch.Generator) -> Iterator[None]:
    """Give a model random weights of the same size for a while; its own tensors come back.

    Weights of two axes or more are normal with the root mean square of the model's; vectors, such
    as biases and factors of normalisations, are shuffled. Buffers stay.
    """
    with redrawn(model.parameters(), generator=generator):
        yield


@contextmanager
def redrawn(weights: Iterable[nn.Parameter], *, generator: torch.Generator) -> Iterator[None]:
    """Draw some parameters anew, as ``randomised`` does with all of a model's."""
    kept = [(weight, weight.data) for weight in weights if weight.is_floating_point()]
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            for weight, own in kept:
                weight.data = _redrawn(own, generator)
        yield
    finally:
        for weight, own in kept:
            weight.data = own


def _redrawn(own: Tensor, generator: torch.Generator) -> Tensor:
    if own.ndim < 2:
        order = torch.randperm(own.numel(), generator=generator).to(own.device)
        return own.flatten()[order].view_as(own)
    size = own.double().square().mean().sqrt()
    return (torch.randn(own.shape, generator=generator).to(own) * size).to(own)


def stages_from_logits(model: nn.Module) -> Mapping[str, tuple[nn.Parameter, ...]]:
    """Return the parameters by stage, from the logits down; every parameter is in one stage.

    A ``Classifier`` has its head, its attention and its trunk's own stages. Of any other module the
    children are the stages, the last first.
    """
    parts = _parts_of(model)
    found: dict[str, tuple[nn.Parameter, ...]] = {}
    taken: set[int] = set()
    for name, part in [*parts.items(), (UNNAMED, model)]:
        own = tuple(weight for weight in part.parameters() if id(weight) not in taken)
        taken |= {id(weight) for weight in own}
        if own:
            found[name] = own
    return found


def _parts_of(model: nn.Module) -> dict[str, nn.Module]:
    if not isinstance(model, Classifier):
        return dict(reversed(list(model.named_children())))
    trunk = {name: model.trunk.get_submodule(name) for name in reversed(model.trunk.names)}
    return {"head": model.head, "attention": model.attention, **trunk}
