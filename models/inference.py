"""A copy of a network that only answers: for the many forward passes of a measurement.

In evaluation mode batch normalisation is an affine map with fixed numbers. Behind a convolution it
is taken into that convolution's weights and bias: exactly, but for rounding. Weights lie channels
last, as processors' convolutions read them fastest, and nothing is recorded for a gradient.

References
----------
Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", CVPR 2018, section 3.2 (folding of batch normalisation).
"""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, final

import torch
from monai.networks.nets.resnet import ResNetBlock, ResNetBottleneck
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.errors import NetworkError
from models.synchronised import GlobalBatchNorm

FOLLOWED: Mapping[type[nn.Module], Mapping[str, str]] = MappingProxyType(
    {
        ResNetBlock: MappingProxyType({"conv1": "bn1", "conv2": "bn2"}),
        ResNetBottleneck: MappingProxyType({"conv1": "bn1", "conv2": "bn2", "conv3": "bn3"}),
    }
)
"""Block that is no sequence -> name of a convolution -> what its output goes to, and nothing else.
"""


@final
class InferenceCopy(nn.Module):
    """What a model answers, from weights of its own; it stays in evaluation mode.

    The model is neither changed nor referred to: after further training the copy answers as the
    model did when it was copied. Its weights have other names than the model's and take no
    gradient, so that neither is saved or trained in the other's place.

    Attributes
    ----------
    network
        The copy, batch normalisation folded where it can be.
    folded
        How many batch normalisations were.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).requires_grad_(False)
        self.network.zero_grad(set_to_none=True)
        for part in self.network.modules():
            part.training = False
        self.folded = _fold(self.network)
        for part in self.network.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.data = part.weight.contiguous(memory_format=torch.channels_last)
        self.training = False

    def forward(self, *inputs: Any) -> Any:
        """Answer as the model does in evaluation mode, without recording gradients."""
        with torch.no_grad():
            return self.network(*inputs)

    def train(self, mode: bool = True) -> "InferenceCopy":
        """Refuse to train.

        Raises
        ------
        NetworkError
            If ``mode`` is true.
        """
        if mode:
            raise NetworkError(
                "ONLY_FOR_INFERENCE",
                "this is a copy of a network with its batch normalisation folded, which cannot be "
                "trained; train the network itself and copy it again",
            )
        return self


@dataclass(frozen=True, slots=True)
class _Place:
    """A module by the one that holds it."""

    holder: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        return self.holder.get_submodule(self.name)


def _fold(network: nn.Module) -> int:
    """Fold each batch normalisation into the convolution right before it; count them.

    What is used in several places stays. In a network with hooks everything does: they would see
    other values.
    """
    if any(part._forward_hooks or part._forward_pre_hooks for part in network.modules()):
        return 0
    uses = Counter(id(part) for _, part in network.named_modules(remove_duplicate=False))
    folded = 0
    for before, after in list(_neighbours(network)):
        conv, norm = before.module, after.module
        if uses[id(conv)] == uses[id(norm)] == 1 and _are_plain(conv, norm):
            setattr(before.holder, before.name, fuse_conv_bn_eval(conv, norm))  # pyright: ignore[reportArgumentType]
            setattr(after.holder, after.name, nn.Identity().eval())
            folded += 1
    return folded


def _are_plain(conv: nn.Module, norm: nn.Module) -> bool:
    """Tell whether a pair can be folded; a class derived from these may compute something else."""
    return (
        type(conv) is nn.Conv2d
        and type(norm) in (nn.BatchNorm2d, GlobalBatchNorm)
        and isinstance(norm.running_mean, Tensor)
    )


def _neighbours(network: nn.Module) -> Iterator[tuple[_Place, _Place]]:
    """Pairs of modules of which the second takes what the first gives, and nothing else does."""
    for part in network.modules():
        for first, second in FOLLOWED.get(type(part), {}).items():
            yield _Place(part, first), _Place(part, second)
        if _is_sequence(part):
            children = [_Place(part, name) for name, _ in part.named_children()]
            for before, after in pairwise(children):
                yield _end_of(before, -1), _end_of(after, 0)


def _end_of(place: _Place, end: int) -> _Place:
    """First (0) or last (-1) layer of nested sequences."""
    while _is_sequence(place.module) and len(place.module._modules):
        names = [name for name, _ in place.module.named_children()]
        place = _Place(place.module, names[end])
    return place


def _is_sequence(part: nn.Module) -> bool:
    return isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward
