"""Attention around a trunk: what every variant promises, no gate, and gates in one pass.

Axes: b batch, c channel, h row, w column; levels finest first.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (2), (3).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.convex import consistent, consistent_chain
from models.gates import GateOptions, PotentialGate
from models.penalties import Penalty, PenaltyPlan
from models.trunk import Trunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """What attention hands to the classifier's head: pooled features, maps and penalty."""

    pooled: Float[Tensor, "b c"]
    maps: tuple[Float[Tensor, "b _h _w"], ...]
    penalty: Float[Tensor, " b"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a variant needs beside the trunk to build its gates and its penalty."""

    levels: tuple[str, ...]
    map_names: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    options: GateOptions
    penalty: Callable[[PenaltyPlan], Penalty]

    def gates(self, trunk: Trunk) -> nn.ModuleDict:
        """One gate per level, by the name of its stage."""
        return nn.ModuleDict(
            {level: PotentialGate(trunk.channels[level], self.options) for level in self.levels}
        )

    def disagreement(self, trunk: Trunk) -> Penalty:
        """Build the module that prices the disagreement of the levels."""
        channels = trunk.channels[self.levels[-1]]
        return self.penalty(PenaltyPlan(grids=self.grids, channels=channels, options=self.options))


class Attention(nn.Module, ABC):
    """Leads images through a trunk, gates it, and pools what is left.

    Attributes
    ----------
    map_names
        What each of the maps is called, finest first.
    features
        Length of the pooled feature vector.
    """

    map_names: tuple[str, ...]
    features: int

    @abstractmethod
    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled features, the maps that gated them, and the penalty of each sample."""

    def renew(self, trunk: Trunk) -> None:
        """Take over anew what was copied from the trunk, after its weights were replaced."""


@final
class Ungated(Attention):
    """The trunk's own readout, such as global average pooling: the baseline."""

    def __init__(self, trunk: Trunk, plan: Plan) -> None:
        super().__init__()
        self.map_names, self.features = trunk.readout.map_names, trunk.features

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled features, the maps of a trunk that attends by itself, no penalty."""
        pooled, maps = trunk.readout(trunk, images)
        penalty = torch.zeros(len(images), dtype=torch.float32, device=images.device)
        return Attended(pooled=pooled, maps=maps, penalty=penalty)


@final
class OnePass(Attention):
    """Gate every level with its own map ``tau`` on the way, eq. (2) and (3).

    With ``post_hoc`` the maps that are reported are made to agree after the fact; everything else
    is the same. By conditions (i) and (ii) of the paper's theorem 3.1 the multipliers cancel along
    every path from a fine cell through the coarser cells that hold it: the product of its gates is
    that of the reported maps, times one factor per sample (for levels of equal weight and the
    geometric mean). The two differ in how much of the product is applied at which level.
    """

    def __init__(self, trunk: Trunk, plan: Plan, *, post_hoc: bool = False) -> None:
        super().__init__()
        self.map_names, self.features = plan.map_names, trunk.features
        self.levels, self.options, self.post_hoc = plan.levels, plan.options, post_hoc
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement(trunk)

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features, the maps, and what their disagreement costs."""
        features, seen, before = images, images, None
        logits: list[Tensor] = []
        maps: list[Tensor] = []
        for level in self.levels:
            seen = trunk.walk(features, after=before, upto=level)
            logits.append(self.gates[level](seen))
            maps.append(softmax(logits[-1]))
            features = self.options.gated(seen, maps[-1])
            before = level
        penalty = self.disagreement(logits, seen)
        pooled = self.options.pooled(trunk.walk(features, after=before))
        maps = agreeing(logits, self.options) if self.post_hoc else maps
        return Attended(pooled=pooled, maps=tuple(maps), penalty=penalty)


def softmax(logits: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Map ``tau`` of one level: softmax over the cells of each sample, eq. (2)."""
    return logits.flatten(1).softmax(1).view_as(logits)


def agreeing(
    logits: Sequence[Float[Tensor, "b _h _w"]], options: GateOptions
) -> list[Float[Tensor, "b _h _w"]]:
    """Nearest maps that agree across levels, by the weight and the mean of the options."""
    if len(logits) == 2:
        return list(consistent(*logits, weight=options.weight, mean=options.mean))
    weights = options.level_weights(len(logits))
    return consistent_chain(logits, weights, mean=options.mean)
