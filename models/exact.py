"""Attention whose levels agree exactly: four ways round the circle that stands in the way.

The maps that agree need the potentials of every level; the potentials of a deeper level are
computed from features that lie behind the gate of a shallower one; and that gate is one of the
maps. Either the fine gate is no such map (``OneSided``), or deeper features are never gated
(``Late``), or the network looks twice (``TwoPass``), or the fine gate is applied in two factors,
each of them where it is known (``Factored``).

Axes: b batch, c channel, h row, w column; levels finest first.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from models.blocks import block_shares
from models.convex import climbed
from models.gating import Attended, Attention, Plan, agreeing, softmax
from models.trunk import Trunk


@final
class OneSided(Attention):
    """Gate finer levels with their own ``tau`` on the way, and only the coarsest with its ``mu``.

    One pass. The report agrees exactly; its finer maps are near what gated, not the same.
    """

    def __init__(self, trunk: Trunk, plan: Plan) -> None:
        super().__init__()
        self.map_names, self.features = plan.map_names, trunk.features
        self.levels, self.options = plan.levels, plan.options
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement(trunk)

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features, the consistent maps, and the penalty."""
        features = trunk.walk(images, upto=self.levels[0])
        logits = [self.gates[self.levels[0]](features)]
        for before, level in pairwise(self.levels):
            features = self.options.gated(features, softmax(logits[-1]))
            features = trunk.walk(features, after=before, upto=level)
            logits.append(self.gates[level](features))
        maps = agreeing(logits, self.options)
        penalty = self.disagreement(logits, features)
        features = self.options.gated(features, maps[-1])
        pooled = self.options.pooled(trunk.walk(features, after=self.levels[-1]))
        return Attended(pooled=pooled, maps=tuple(maps), penalty=penalty)


@final
class Late(Attention):
    """Potentials from ungated features, and every gate only where its level is pooled.

    One pass. The head sees each level's features weighted by its ``mu``, one after the other; what
    follows the coarsest gated stage sees that stage's gated features.
    """

    def __init__(self, trunk: Trunk, plan: Plan) -> None:
        super().__init__()
        self.map_names, self.levels, self.options = plan.map_names, plan.levels, plan.options
        finer = sum(trunk.channels[level] for level in self.levels[:-1])
        self.features = finer + trunk.features
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement(trunk)

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features of all levels, the consistent maps, and the penalty."""
        levels = [trunk.walk(images, upto=self.levels[0])]
        for before, level in pairwise(self.levels):
            levels.append(trunk.walk(levels[-1], after=before, upto=level))
        logits = [self.gates[name](level) for name, level in zip(self.levels, levels, strict=True)]
        maps = agreeing(logits, self.options)
        gated = [self.options.gated(*pair) for pair in zip(levels, maps, strict=True)]
        gated[-1] = trunk.walk(gated[-1], after=self.levels[-1])
        pooled = torch.cat([self.options.pooled(features) for features in gated], dim=1)
        penalty = self.disagreement(logits, levels[-1])
        return Attended(pooled=pooled, maps=tuple(maps), penalty=penalty)


@final
class Factored(Attention):
    """Gate each level with its cells' shares of their block, and the coarsest with its ``mu``.

    ``mu`` of a fine cell is its share of its block times ``mu`` of the block. The share follows
    from the finer levels alone, so it gates on the way; the other factor gates the same features
    at the next level, where a block has become a cell. One pass, and all maps that are reported
    have gated.
    """

    def __init__(self, trunk: Trunk, plan: Plan) -> None:
        super().__init__()
        self.map_names, self.features = plan.map_names, trunk.features
        self.levels, self.options, self.grids = plan.levels, plan.options, plan.grids
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement(trunk)

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features, the consistent maps that gated them, and the penalty."""
        features = trunk.walk(images, upto=self.levels[0])
        logits = [self.gates[self.levels[0]](features)]
        joint, weights = logits[0], self.options.level_weights(len(self.levels))
        for i, (before, level) in enumerate(pairwise(self.levels)):
            block, shares = block_shares(joint, self.grids[i + 1])
            cells = shares[0].numel() // block[0].numel()
            features = self.options.gated(features, shares, cells=cells)
            features = trunk.walk(features, after=before, upto=level)
            logits.append(self.gates[level](features))
            if level != self.levels[-1]:
                below = sum(weights[: i + 1])
                joint = climbed(
                    block, logits[-1], weights=(below, weights[i + 1]), mean=self.options.mean
                )
        maps = agreeing(logits, self.options)
        penalty = self.disagreement(logits, features)
        features = self.options.gated(features, maps[-1])
        pooled = self.options.pooled(trunk.walk(features, after=self.levels[-1]))
        return Attended(pooled=pooled, maps=tuple(maps), penalty=penalty)


@final
class TwoPass(Attention):
    """Look once without gates, make the levels agree exactly, then gate all of them.

    The first look shares all weights with the second and gives the potentials of every level; the
    consistent maps of these potentials gate the second look, which starts at the finest gated stage
    because nothing changes before it. The stages walked twice see two kinds of features, so
    the first look keeps batch-normalisation statistics of its own.

    With the option ``detached`` no gradient passes the stages of the first look: the coarser gates
    learn on what the second look has made of these stages, and the backward pass is that of one.
    """

    def __init__(self, trunk: Trunk, plan: Plan) -> None:
        super().__init__()
        self.map_names, self.features = plan.map_names, trunk.features
        self.levels, self.options = plan.levels, plan.options
        self.gates = plan.gates(trunk)
        self.disagreement = plan.disagreement(trunk)
        repeated = trunk.between(self.levels[0], self.levels[-1])
        self.first_look = nn.ModuleDict(
            {stage: _NormStatistics(trunk.get_submodule(stage)) for stage in repeated}
        )

    def forward(self, trunk: Trunk, images: Float[Tensor, "b c h w"]) -> Attended:
        """Pooled gated features, the consistent maps that gated them, and the penalty."""
        finest = trunk.walk(images, upto=self.levels[0])
        logits, coarsest = self._potentials(trunk, finest)
        maps = agreeing(logits, self.options)
        features = self.options.gated(finest, maps[0])
        for (before, level), level_map in zip(pairwise(self.levels), maps[1:], strict=True):
            features = trunk.walk(features, after=before, upto=level)
            features = self.options.gated(features, level_map)
        pooled = self.options.pooled(trunk.walk(features, after=self.levels[-1]))
        penalty = self.disagreement(logits, coarsest)
        return Attended(pooled=pooled, maps=tuple(maps), penalty=penalty)

    def renew(self, trunk: Trunk) -> None:
        """Start the first look with the statistics that the trunk has now."""
        for stage, statistics in self.first_look.items():
            buffers = dict(trunk.get_submodule(stage).named_buffers())
            for name, buffer in statistics.named_buffers():
                buffer.copy_(buffers[name.replace(_DOT, ".")])

    def _potentials(self, trunk: Trunk, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Potentials of every level from ungated features, and the coarsest of these."""
        logits = [self.gates[self.levels[0]](features)]
        for stage, statistics in self.first_look.items():
            buffers = {
                name.replace(_DOT, "."): buffer for name, buffer in statistics.named_buffers()
            }
            with self._recording():
                features = functional_call(trunk.get_submodule(stage), buffers, (features,))
            if stage in self.gates:
                logits.append(self.gates[stage](features))
        return logits, features

    def _recording(self) -> AbstractContextManager[object]:
        return torch.no_grad() if self.options.detached else nullcontext()


_DOT = "__"  # buffer names may not contain dots


class _NormStatistics(nn.Module):
    """A second set of running statistics for every batch normalisation inside a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, buffer in module.named_buffers():
            self.register_buffer(name.replace(".", _DOT), buffer.detach().clone())
