"""A network as named stages in a row, so that gates and explainers can name them.

Axes: b batch, c channel, h row, w column.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

from jaxtyping import Float
from torch import Tensor, nn


@final
class Trunk(nn.Module):
    """Stages in order; each is a submodule with its name.

    Attributes
    ----------
    channels
        Channels at the end of each stage.
    strides
        Input pixels per cell at the end of each stage; an image side of n gives ceil(n / stride).
        A stage of smaller stride than one before it repeats cells of that one.
    gated
        Stages that attention may gate, finest first.
    pair
        The finer and the coarser of the two that the two-level variants gate: the last two of
        ``gated``, if not given.
    pyramid
        Stages from the finest on that a pyramid of gates uses, each grid nested in the next:
        ``gated``, if not given.
    multiple
        Image sides must be multiples of it.
    family
        Whose parameter names a file of pretrained weights uses; empty where there is none.
    readout
        How a network without gates is pooled: ``GlobalPool``, if not given.
    frozen
        Whether its weights and its batch-normalisation statistics stay as they are.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        gated: tuple[str, ...],
        pair: tuple[str, ...] | None = None,
        pyramid: tuple[str, ...] | None = None,
        multiple: int = 1,
        family: str = "",
        readout: "Readout | None" = None,
    ) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.names = tuple(stages)
        self.channels, self.strides, self.gated = dict(channels), dict(strides), gated
        self.pair = gated[-2:] if pair is None else pair
        self.pyramid = gated if pyramid is None else pyramid
        self.multiple, self.family, self.readout = multiple, family, readout or GlobalPool()
        self.frozen = False

    def freeze(self) -> None:
        """Hold weights and batch-normalisation statistics, whatever else trains from now on.

        Gradients still pass through it, to gates between its stages.
        """
        self.requires_grad_(False)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> nn.Module:
        """Set training mode, in which batch normalisation collects statistics; never if frozen."""
        return super().train(mode and not self.frozen)

    @property
    def features(self) -> int:
        """Channels at the end of the last stage."""
        return self.channels[self.names[-1]]

    def grid(self, stage: str, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns at the end of a stage for an image of ``image_size``."""
        coarsest = max(self.strides[name] for name in self.between(None, stage))
        repeats = coarsest // self.strides[stage]
        return -(-image_size[0] // coarsest) * repeats, -(-image_size[1] // coarsest) * repeats

    def between(self, after: str | None, upto: str | None) -> tuple[str, ...]:
        """Names of the stages that follow ``after`` (None: the start) to ``upto`` (None: all)."""
        first = 0 if after is None else self.names.index(after) + 1
        last = len(self.names) if upto is None else self.names.index(upto) + 1
        return self.names[first:last]

    def walk(
        self,
        features: Float[Tensor, "b ..."],
        *,
        after: str | None = None,
        upto: str | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Apply the stages that follow ``after``, the last of them ``upto``.

        Features are "b c h w", or whatever the stages of the network hand on to each other.
        """
        for name in self.between(after, upto):
            features = self.get_submodule(name)(features)
        return features

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """Features at the end of the last stage."""
        return self.walk(images)


class Readout(nn.Module, ABC):
    """How a trunk that no attention gates becomes one feature vector per image.

    Attributes
    ----------
    map_names
        Names of the maps that the trunk makes by itself.
    """

    map_names: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, trunk: Trunk, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], tuple[Float[Tensor, "b _h _w"], ...]]:
        """Pooled features, and maps that sum to 1 per sample."""


@final
class GlobalPool(Readout):
    """Mean over the cells: global average pooling, no maps."""

    def forward(
        self, trunk: Trunk, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], tuple[Float[Tensor, "b _h _w"], ...]]:
        """Mean of the last stage's features."""
        return trunk(images).mean((2, 3)), ()
