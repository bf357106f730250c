"""What disagreement between attention levels costs a sample.

Axes: b batch, h row, w column; levels finest first.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (4), (6).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.convex import block_logsumexp, chain_value, consistency_value
from models.gates import GateOptions


class Penalty(nn.Module, ABC):
    """What disagreement between the levels costs a sample, from their potentials."""

    @abstractmethod
    def forward(self, logits: Sequence[Float[Tensor, "b _h _w"]]) -> Float[Tensor, " b"]:
        """Cost per sample, unweighted; ``logits`` are finest first."""


@final
class NoPenalty(Penalty):
    """Levels may disagree for free."""

    def __init__(self, grids: Sequence[tuple[int, int]], options: GateOptions) -> None:
        super().__init__()

    def forward(self, logits: Sequence[Float[Tensor, "b _h _w"]]) -> Float[Tensor, " b"]:
        """Zero for every sample."""
        return logits[0].new_zeros(len(logits[0]))


@final
class ValuePenalty(Penalty):
    """Optimal value of the consistency program: 0 just where the maps agree."""

    def __init__(self, grids: Sequence[tuple[int, int]], options: GateOptions) -> None:
        super().__init__()
        self.weight = options.weight

    def forward(self, logits: Sequence[Float[Tensor, "b _h _w"]]) -> Float[Tensor, " b"]:
        """Value of the program for each sample."""
        if len(logits) == 2:
            return consistency_value(*logits, weight=self.weight)
        return chain_value(logits)


@final
class DivergencePenalty(Penalty):
    """Kullback-Leibler divergence between the coarse map and the pooled fine map, eq. (6).

    With p = softmax(phi_coarse + lambda) and q = softmax(log T - lambda), both over the cells of
    one sample, the cost is KL(p || q), or KL(q || p) when ``reverse``. The witness lambda is one
    learned number per coarse cell, or zero.
    """

    def __init__(
        self,
        grids: Sequence[tuple[int, int]],
        options: GateOptions,
        *,
        witness: bool,
        reverse: bool = False,
    ) -> None:
        super().__init__()
        self.witness = nn.Parameter(torch.zeros(grids[-1])) if witness else None
        self.reverse = reverse

    def forward(self, logits: Sequence[Float[Tensor, "b _h _w"]]) -> Float[Tensor, " b"]:
        """Divergence of each sample, computed in log space."""
        fine, coarse = logits
        witness = 0 if self.witness is None else self.witness
        block = block_logsumexp(fine, coarse.shape[-2:]) - witness
        log_p = (coarse + witness).flatten(1).log_softmax(1)
        log_q = block.flatten(1).log_softmax(1)
        if self.reverse:
            log_p, log_q = log_q, log_p
        return (log_p.exp() * (log_p - log_q)).sum(1)
