"""One attention gate: potentials of the cells, and how a map multiplies features.

Axes: b batch, c channel, h row, w column.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (1), (3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.convex import Mean

NORM_FLOOR = 1e-6  # added to squared norms: a cell without features keeps a bounded gradient


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOptions:
    """How gates are built.

    Attributes
    ----------
    embedding
        Widths of the cascaded embeddings of one gate. Empty is square embeddings, as in eq. (1);
        (1024, 2048) gives the ResNet-50 parameter counts of the paper's Table 3, (512,) with
        biases those of the released U-Net encoder.
    cascade
        How many square embeddings, one or more, where ``embedding`` is empty.
    gate_bias
        Whether the embeddings and the potential have biases (eq. (1) has none).
    weight
        Share of the coarse level where two levels are made to agree, in [0, 1]. In a chain each
        level weighs weight / (1 - weight) times the finer one.
    mean
        Of the levels' opinions where they are made to agree: the paper's ``geometric`` one
        dismisses what either level dismisses, the ``arithmetic`` one keeps what either keeps.
    witness
        Of the ``dual`` penalty: one learned number per coarse ``position``, the same for all
        images, or predicted for each ``image`` from the features of the coarse stage. A predicted
        one can make the penalty vanish whatever the maps are.
    detached
        Where a first look finds the maps: let no gradient through its stages, which makes it the
        cost of a forward pass.
    rescale
        Multiply features by the map times its number of cells, so that the mean gate is 1. Without
        it, as published, features shrink by the number of cells and the epsilon of the next batch
        normalisation decides how much of them is left.
    pool_scale
        Factor on the pooled features of a rescaled attention. Small, so that the gates learn
        faster than the head: at 1 the head fits the training images before the maps have moved.
    """

    embedding: Sequence[int] = ()
    cascade: int = 1
    gate_bias: bool = False
    weight: float = 0.5
    mean: Mean = "geometric"
    witness: Literal["position", "image"] = "position"
    detached: bool = False
    rescale: bool = True
    pool_scale: float = 1 / 32

    def level_weights(self, levels: int) -> list[float]:
        """Weight of each level in the program that makes them agree, finest first, of mean 1."""
        ratios = [(1 - self.weight) ** (levels - 1 - i) * self.weight**i for i in range(levels)]
        return [levels * ratio / sum(ratios) for ratio in ratios]

    def gated(
        self,
        features: Float[Tensor, "b c h w"],
        level_map: Float[Tensor, "b h w"],
        *,
        cells: int | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Features times their map, eq. (3).

        ``cells`` is over how many cells the map sums to 1: all of them, if not given.
        """
        scale = (cells or level_map[0].numel()) if self.rescale else 1
        return features * (scale * level_map).unsqueeze(1).to(features.dtype)

    def pooled(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Mean of the gated features over the cells."""
        return pooled(features) * (self.pool_scale if self.rescale else 1)


@final
class PotentialGate(nn.Module):
    """Potentials <u, relu(U v / ||U v||)> of the cells, eq. (1); cascaded where widths are given.

    In a cascade each embedding takes the normalised, rectified output of the one before.
    """

    def __init__(self, channels: int, options: GateOptions) -> None:
        super().__init__()
        widths = (channels, *(options.embedding or (channels,) * options.cascade))
        self.embeddings = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=1, bias=options.gate_bias)
            for before, after in pairwise(widths)
        )
        self.potential = nn.Conv2d(widths[-1], 1, kernel_size=1, bias=options.gate_bias)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        """Potentials in float32 at least, before the softmax."""
        for embedding in self.embeddings:
            features = torch.relu(_normalised(embedding(features)))
        potentials = self.potential(features).squeeze(1)
        return potentials.float() if potentials.element_size() < 4 else potentials


def pooled(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Mean over the cells: global average pooling."""
    return features.mean((2, 3))


def _normalised(features: Tensor) -> Tensor:
    """Divide each cell's features by their norm; zero stays zero, with a bounded gradient."""
    squared = features.float() if features.element_size() < 4 else features
    inverse_norm = (squared.square().sum(1, keepdim=True) + NORM_FLOOR).rsqrt()
    return features * inverse_norm.to(features.dtype)
