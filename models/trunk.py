"""A convolutional network as named stages in a row, so that gates and explainers can name them.

Axes: b batch, c channel, h row, w column.
"""

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
    gated
        Stages that attention may gate, finest first.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        channels: Mapping[str, int],
        strides: Mapping[str, int],
        gated: tuple[str, ...],
    ) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.names = tuple(stages)
        self.channels, self.strides, self.gated = dict(channels), dict(strides), gated

    @property
    def features(self) -> int:
        """Channels at the end of the last stage."""
        return self.channels[self.names[-1]]

    def grid(self, stage: str, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns at the end of a stage for an image of ``image_size``."""
        stride = self.strides[stage]
        return -(-image_size[0] // stride), -(-image_size[1] // stride)

    def between(self, after: str | None, upto: str | None) -> tuple[str, ...]:
        """Names of the stages that follow ``after`` (None: the start) to ``upto`` (None: all)."""
        first = 0 if after is None else self.names.index(after) + 1
        last = len(self.names) if upto is None else self.names.index(upto) + 1
        return self.names[first:last]

    def walk(
        self,
        features: Float[Tensor, "b _c _h _w"],
        *,
        after: str | None = None,
        upto: str | None = None,
    ) -> Float[Tensor, "b _d _p _q"]:
        """Apply the stages that follow ``after``, the last of them ``upto``."""
        for name in self.between(after, upto):
            features = self.get_submodule(name)(features)
        return features

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _d _p _q"]:
        """Features at the end of the last stage."""
        return self.walk(images)
