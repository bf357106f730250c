"""Rules of layer-wise relevance propagation for one linear step.

A linear step gives z = (sum of contributions x_i w_i) + b. A rule turns the relevance R of the
output into two factors, one for the positive contributions and one for the negative ones; each
input gets its contributions times their factor, and so does the bias.

References
----------
Bach et al., "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
propagation", PLoS ONE 10(7), 2015, eq. (58), (60).
Montavon et al., "Layer-wise relevance propagation: an overview", 2019, 10.2.1 (gamma).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from models.explainers.base import check_at_least


class Rule(ABC):
    """How one kind of linear step shares relevance among its inputs."""

    @abstractmethod
    def factors(self, positive: Tensor, negative: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        """Factors of positive and negative contributions, whose sums are given, bias included.

        One factor alone holds for both.
        """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilon(Rule):
    """In proportion to contributions; ``epsilon`` of the mean output keeps the quotient bounded.

    At zero it is LRP-0, which on networks of rectifiers without biases is gradient x input.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_at_least(0, epsilon=self.epsilon)

    def factors(self, positive: Tensor, negative: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        """R / z."""
        return (_quotient(relevance, positive + negative, self.epsilon),)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma(Rule):
    """Contributions of the output's own sign count 1 + ``gamma`` times."""

    gamma: float = 0.25
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        check_at_least(0, gamma=self.gamma, epsilon=self.epsilon)

    def factors(self, positive: Tensor, negative: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        """R (1 + gamma) / z' for contributions of the output's sign, R / z' for the others."""
        whole = positive + negative
        above = whole >= 0
        lifted = whole + self.gamma * torch.where(above, positive, negative)
        share = _quotient(relevance, lifted, self.epsilon)
        more = (1 + self.gamma) * share
        return torch.where(above, more, share), torch.where(above, share, more)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaBeta(Rule):
    """Positive contributions share ``alpha`` times the relevance, negative ones take it back.

    With alpha - beta = 1. Where there are contributions of one sign only, they share all of it.
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(0, beta=self.beta)

    def factors(self, positive: Tensor, negative: Tensor, relevance: Tensor) -> tuple[Tensor, ...]:
        """(1 + beta) R / z+ and -beta R / z-."""
        alpha = torch.where(negative == 0, 1.0, torch.where(positive == 0, 0.0, 1 + self.beta))
        return (
            _quotient(alpha * relevance, positive, 0.0),
            _quotient((1 - alpha) * relevance, negative, 0.0),
        )


def _quotient(above: Tensor, below: Tensor, epsilon: float) -> Tensor:
    """Quotient with a stabiliser of the denominator's sign; 0 where the denominator is 0."""
    if epsilon:
        mean = below.flatten(1).abs().mean(1).view(-1, *(1,) * (below.ndim - 1))
        below = below + epsilon * mean * torch.where(below < 0, -1.0, 1.0)
    return torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))
