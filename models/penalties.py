"""What disagreement between attention levels costs a sample.

Axes: b batch, c channel, h row, w column; levels finest first.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (4), (6).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.convex import block_logsumexp, chain_value, consistency_value
from models.gates import GateOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyPlan:
    """What a penalty is built from: the levels' grids, the coarsest one's channels, options."""

    grids: Sequence[tuple[int, int]]
    channels: int
    options: GateOptions


class Penalty(nn.Module, ABC):
    """What disagreement between the levels costs a sample, from their potentials."""

    @abstractmethod
    def forward(
        self, logits: Sequence[Float[Tensor, "b _h _w"]], features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """Cost per sample, unweighted.

        Parameters
        ----------
        logits
            Finest level first.
        features
            What the coarsest level's gate has seen.
        """


@final
class NoPenalty(Penalty):
    """Levels may disagree for free."""

    def __init__(self, plan: PenaltyPlan) -> None:
        super().__init__()

    def forward(
        self, logits: Sequence[Float[Tensor, "b _h _w"]], features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """Zero for every sample."""
        return logits[0].new_zeros(len(logits[0]))


@final
class ValuePenalty(Penalty):
    """Optimal value of the consistency program: 0 just where the maps agree."""

    def __init__(self, plan: PenaltyPlan) -> None:
        super().__init__()
        self.options = plan.options

    def forward(
        self, logits: Sequence[Float[Tensor, "b _h _w"]], features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """Value of the program for each sample."""
        mean = self.options.mean
        if len(logits) == 2:
            return consistency_value(*logits, weight=self.options.weight, mean=mean)
        return chain_value(logits, self.options.level_weights(len(logits)), mean=mean)


@final
class DivergencePenalty(Penalty):
    """Kullback-Leibler divergence between the coarse map and the pooled fine map, eq. (6).

    With p = softmax(phi_coarse + lambda) and q = softmax(log T - lambda), both over the cells of
    one sample, the cost is KL(p || q), or KL(q || p) when ``reverse``. The witness lambda is zero,
    or learned: one number per coarse cell, or for each image a linear function of each coarse
    cell's features. It starts at zero.
    """

    def __init__(self, plan: PenaltyPlan, *, witness: bool = False, reverse: bool = False) -> None:
        super().__init__()
        self.witness: nn.Parameter | nn.Conv2d | None = None
        if witness and plan.options.witness == "image":
            self.witness = nn.Conv2d(plan.channels, 1, kernel_size=1, bias=False)
            nn.init.zeros_(self.witness.weight)
        elif witness:
            self.witness = nn.Parameter(torch.zeros(plan.grids[-1]))
        self.reverse = reverse

    def forward(
        self, logits: Sequence[Float[Tensor, "b _h _w"]], features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """Divergence of each sample, computed in log space."""
        fine, coarse = logits
        witness = self._witness(features)
        block = block_logsumexp(fine, coarse.shape[-2:]) - witness
        log_p = (coarse + witness).flatten(1).log_softmax(1)
        log_q = block.flatten(1).log_softmax(1)
        if self.reverse:
            log_p, log_q = log_q, log_p
        return (log_p.exp() * (log_p - log_q)).sum(1)

    def _witness(self, features: Tensor) -> Tensor | float:
        if isinstance(self.witness, nn.Conv2d):
            predicted = self.witness(features).squeeze(1)
            return predicted.float() if predicted.element_size() < 4 else predicted
        return 0.0 if self.witness is None else self.witness


@final
class PublishedPenalty(Penalty):
    """Equation (6) as its authors' released code computes it while it trains.

    Differences from ``DivergencePenalty`` with a witness: while training, both distributions are
    normalised over all cells of all samples of the batch together, not per sample, and the sum is
    divided by one, not by the number of samples. The loss is then the divergence of two
    distributions of the whole batch: sum_b w_b KL_b + KL(w || w'), where w and w' are the masses of
    the samples; a sample is also paid for by its neighbours. In evaluation mode, where no sample
    may see another, it is the divergence of each sample. Products of probabilities are taken in
    log space here, so that they cannot underflow to infinite cost.
    """

    def __init__(self, plan: PenaltyPlan) -> None:
        super().__init__()
        self.witness = nn.Parameter(torch.zeros(plan.grids[-1]))

    def forward(
        self, logits: Sequence[Float[Tensor, "b _h _w"]], features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """Each sample's part of the batch's divergence, times the size of the batch."""
        fine, coarse = (level.flatten(1).log_softmax(1).view_as(level) for level in logits)
        log_p = (coarse + self.witness).flatten(1)
        log_q = (block_logsumexp(fine, coarse.shape[-2:]) - self.witness).flatten(1)
        over = (0, 1) if self.training else (1,)
        log_p = log_p - log_p.logsumexp(over, keepdim=True)
        log_q = log_q - log_q.logsumexp(over, keepdim=True)
        samples = len(log_p) if self.training else 1
        return samples * (log_p.exp() * (log_p - log_q)).sum(1)
