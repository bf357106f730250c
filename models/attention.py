"""Attention that gates a network at the ends of its deep stages, and the family of its variants.

A gate turns the features of a stage into one potential per cell; the softmax of the potentials over
the cells of one sample is its map ``tau``, and the features are multiplied by it. Variants differ
in which levels are gated, with which maps, and in what is paid when two levels disagree. Each is
one line of ``ATTENTIONS``.

Axes: b batch, c channel, h row, w column; levels finest first.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (1) to (6).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from models.convex import consistent, consistent_chain
from models.gates import GateOptions, PotentialGate, pooled
from models.penalties import DivergencePenalty, NoPenalty, Penalty, ValuePenalty
from models.trunk import Trunk

Levels = Literal["none", "fine", "coarse", "both", "all"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """What attention hands to the classifier's head: pooled features, maps and penalty."""

    pooled: Float[Tensor, "b c"]
    maps: tuple[Float[Tensor, "b _h _w"], ...]
    penalty: Float[Tensor, " b"]


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


@final
class Ungated(Attention):
    """Plain global average pooling: the baseline."""

    def __init__(self, trunk: Trunk, plan: "Plan") -> None:
        super().__init__()
        self.map_names, self.features = (), trunk.features

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled features, no maps, no penalty."""
        features = trunk(images)
        penalty = torch.zeros(len(images), dtype=torch.float32, device=images.device)
        return Attended(pooled=pooled(features), maps=(), penalty=penalty)


@final
class OnePass(Attention):
    """Gate every level with its own map ``tau`` on the way, eq. (2) and (3)."""

    def __init__(self, trunk: Trunk, plan: "Plan") -> None:
        super().__init__()
        self.map_names, self.features = plan.map_names, trunk.features
        self.levels, self.options = plan.levels, plan.options
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement()

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features, the maps ``tau``, and what their disagreement costs."""
        features, before = images, None
        logits: list[Tensor] = []
        maps: list[Tensor] = []
        for level in self.levels:
            features = trunk.walk(features, after=before, upto=level)
            logits.append(self.gates[level](features))
            maps.append(_softmax(logits[-1]))
            features = self.options.gated(features, maps[-1])
            before = level
        features = trunk.walk(features, after=before)
        pooled, penalty = self.options.pooled(features), self.disagreement(logits)
        return Attended(pooled=pooled, maps=tuple(maps), penalty=penalty)


@final
class TwoPass(Attention):
    """Look once without gates, make the levels agree exactly, then gate all of them.

    The first look shares all weights with the second and gives the potentials of every level; the
    consistent maps of these potentials gate the second look, which starts at the finest gated stage
    because nothing changes before it. The stages walked twice see two kinds of features, so
    the first look keeps batch-normalisation statistics of its own.
    """

    def __init__(self, trunk: Trunk, plan: "Plan") -> None:
        super().__init__()
        self.map_names, self.features = plan.map_names, trunk.features
        self.levels, self.options = plan.levels, plan.options
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement()
        repeated = trunk.between(self.levels[0], self.levels[-1])
        self.first_look = nn.ModuleDict(
            {stage: _NormStatistics(trunk.get_submodule(stage)) for stage in repeated}
        )

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features, the consistent maps that gated them, and the penalty."""
        finest = trunk.walk(images, upto=self.levels[0])
        logits = self._potentials(trunk, finest)
        maps = _agreeing(logits, self.options.weight)
        features = self.options.gated(finest, maps[0])
        for before, level, level_map in zip(self.levels, self.levels[1:], maps[1:], strict=False):
            features = trunk.walk(features, after=before, upto=level)
            features = self.options.gated(features, level_map)
        pooled = self.options.pooled(trunk.walk(features, after=self.levels[-1]))
        return Attended(pooled=pooled, maps=tuple(maps), penalty=self.disagreement(logits))

    def _potentials(self, trunk: Trunk, features: Tensor) -> list[Tensor]:
        """Potentials of every level from ungated features."""
        logits = [self.gates[self.levels[0]](features)]
        for stage, statistics in self.first_look.items():
            buffers = {
                name.replace(_DOT, "."): buffer for name, buffer in statistics.named_buffers()
            }
            features = functional_call(trunk.get_submodule(stage), buffers, (features,))
            if stage in self.gates:
                logits.append(self.gates[stage](features))
        return logits


_DOT = "__"  # buffer names may not contain dots


class _NormStatistics(nn.Module):
    """A second set of running statistics for every batch normalisation inside a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, buffer in module.named_buffers():
            self.register_buffer(name.replace(".", _DOT), buffer.detach().clone())


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a variant needs beside the trunk to build its gates and its penalty."""

    levels: tuple[str, ...]
    map_names: tuple[str, ...]
    grids: tuple[tuple[int, int], ...]
    options: GateOptions
    penalty: Callable[[Sequence[tuple[int, int]], GateOptions], Penalty]

    def gates(self, trunk: Trunk) -> nn.ModuleDict:
        """One gate per level, by the name of its stage."""
        return nn.ModuleDict(
            {level: PotentialGate(trunk.channels[level], self.options) for level in self.levels}
        )

    def disagreement(self) -> Penalty:
        """Build the module that prices the disagreement of the levels."""
        return self.penalty(self.grids, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One member of the attention family.

    Attributes
    ----------
    attention
        How images are led through the trunk.
    levels
        Which gates are used: the last but one of the trunk's (``fine``), the last (``coarse``),
        these two (``both``) or ``all`` that it offers.
    penalty
        What disagreement costs.
    alpha
        Default weight of the penalty beside the classification loss.
    """

    attention: Callable[[Trunk, Plan], Attention]
    levels: Levels = "both"
    penalty: Callable[[Sequence[tuple[int, int]], GateOptions], Penalty] = NoPenalty
    alpha: float = 0.0

    def stages(self, trunk: Trunk) -> tuple[str, ...]:
        """Names of the trunk's stages that are gated, finest first."""
        return {
            "none": (),
            "fine": trunk.gated[-2:-1],
            "coarse": trunk.gated[-1:],
            "both": trunk.gated[-2:],
            "all": trunk.gated,
        }[self.levels]

    def map_names(self, trunk: Trunk) -> tuple[str, ...]:
        """Name the maps, finest first."""
        if self.levels == "all":
            return trunk.gated
        return {"none": (), "both": ("fine", "coarse")}.get(self.levels, (self.levels,))


ATTENTIONS: Mapping[str, Variant] = MappingProxyType(
    {
        "baseline": Variant(attention=Ungated, levels="none"),
        "fine": Variant(attention=OnePass, levels="fine"),
        "coarse": Variant(attention=OnePass, levels="coarse"),
        "unconstrained": Variant(attention=OnePass),
        "kl-forward": Variant(
            attention=OnePass, penalty=partial(DivergencePenalty, witness=False), alpha=10.0
        ),
        "kl-reverse": Variant(
            attention=OnePass,
            penalty=partial(DivergencePenalty, witness=False, reverse=True),
            alpha=10.0,
        ),
        "dual": Variant(
            attention=OnePass, penalty=partial(DivergencePenalty, witness=True), alpha=10.0
        ),
        "value": Variant(attention=OnePass, penalty=ValuePenalty, alpha=1.0),
        "exact": Variant(attention=TwoPass, penalty=ValuePenalty, alpha=1.0),
        "chain": Variant(attention=TwoPass, levels="all", penalty=ValuePenalty, alpha=1.0),
    }
)
"""Name of a variant -> how it is built; a new variant is one line here."""


def _softmax(logits: Tensor) -> Tensor:
    return logits.flatten(1).softmax(1).view_as(logits)


def _agreeing(logits: Sequence[Tensor], weight: float) -> list[Tensor]:
    if len(logits) == 2:
        return list(consistent(*logits, weight=weight))
    return consistent_chain(logits)
