"""Attention that gates a network at the ends of its deep stages, and the family of its variants.

A gate turns the features of a stage into one potential per cell; the softmax of the potentials over
the cells of one sample is its map ``tau``, and the features are multiplied by it. Variants differ
in which levels are gated, with which maps, and in what is paid when two levels disagree. Each is
one line of ``ATTENTIONS``:

``baseline``            no gate: the trunk's own readout
``fine``, ``coarse``    one gated level
``unconstrained``       two levels that may disagree
``kl-forward``          two levels, KL(coarse || pooled fine) added to the loss
``kl-reverse``          two levels, KL(pooled fine || coarse)
``dual``                two levels, eq. (6) per sample and in log space, with a learned witness
``dual-published``      as its authors' released code computes it: for comparison only
``value``               two levels, the optimal value of the consistency program
``cvx``                 trained as ``unconstrained``; the reported maps agree after the fact
``exact``               two levels that agree exactly and gate only where features are pooled
``exact-two-pass``      the same, gating on the way: maps found by a first look without gates
``exact-one-pass``      the same, on the way in one pass: gated as ``value``, the report agrees
``exact-one-sided``     the same, on the way in one pass: the fine level gated by its own ``tau``
``exact-factored``      the same, on the way in one pass: the fine gate in two factors
``chain``               three or more nested levels that agree exactly, as ``exact``
``chain-two-pass``      the same, gating on the way, by a first look
``chain-one-pass``      the same, on the way in one pass: each level gated by its own ``tau``
``chain-factored``      the same, on the way in one pass: finer gates in two factors
``pyramid``             as ``chain``, from the finest stage on that the network has

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (1) to (6).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from models.exact import Factored, Late, OneSided, TwoPass
from models.gating import Attention, OnePass, Plan, Ungated
from models.penalties import (
    DivergencePenalty,
    NoPenalty,
    Penalty,
    PenaltyPlan,
    PublishedPenalty,
    ValuePenalty,
)
from models.trunk import Trunk

Levels = Literal["none", "fine", "coarse", "both", "all", "pyramid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One member of the attention family.

    Attributes
    ----------
    attention
        How images are led through the trunk.
    levels
        Which gates are used: the finer of the trunk's pair (``fine``), its coarser (``coarse``),
        these two (``both``), ``all`` that it offers, or its ``pyramid``.
    penalty
        What disagreement costs.
    alpha
        Default weight of the penalty beside the classification loss.
    options
        Fields of ``GateOptions`` that differ from their defaults, unless they are given.
    """

    attention: Callable[[Trunk, Plan], Attention]
    levels: Levels = "both"
    penalty: Callable[[PenaltyPlan], Penalty] = NoPenalty
    alpha: float = 0.0
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def stages(self, trunk: Trunk) -> tuple[str, ...]:
        """Names of the trunk's stages that are gated, finest first."""
        return {
            "none": (),
            "fine": trunk.pair[:1],
            "coarse": trunk.pair[1:],
            "both": trunk.pair,
            "all": trunk.gated,
            "pyramid": trunk.pyramid,
        }[self.levels]

    def map_names(self, trunk: Trunk) -> tuple[str, ...]:
        """Name the maps, finest first."""
        if self.levels in ("all", "pyramid"):
            return self.stages(trunk)
        return {"none": (), "both": ("fine", "coarse")}.get(self.levels, (self.levels,))


ATTENTIONS: Mapping[str, Variant] = MappingProxyType(
    {
        "baseline": Variant(attention=Ungated, levels="none"),
        "fine": Variant(attention=OnePass, levels="fine"),
        "coarse": Variant(attention=OnePass, levels="coarse"),
        "unconstrained": Variant(attention=OnePass),
        "kl-forward": Variant(attention=OnePass, penalty=DivergencePenalty, alpha=10.0),
        "kl-reverse": Variant(
            attention=OnePass, penalty=partial(DivergencePenalty, reverse=True), alpha=10.0
        ),
        "dual": Variant(
            attention=OnePass, penalty=partial(DivergencePenalty, witness=True), alpha=10.0
        ),
        "dual-published": Variant(
            attention=OnePass,
            penalty=PublishedPenalty,
            alpha=10.0,
            options=MappingProxyType({"embedding": (512,), "gate_bias": True, "rescale": False}),
        ),
        "value": Variant(attention=OnePass, penalty=ValuePenalty, alpha=1.0),
        "cvx": Variant(attention=partial(OnePass, post_hoc=True)),
        "exact": Variant(attention=Late, penalty=ValuePenalty, alpha=1.0),
        "exact-two-pass": Variant(attention=TwoPass, penalty=ValuePenalty, alpha=1.0),
        "exact-one-pass": Variant(
            attention=partial(OnePass, post_hoc=True), penalty=ValuePenalty, alpha=10.0
        ),
        "exact-one-sided": Variant(attention=OneSided, penalty=ValuePenalty, alpha=10.0),
        "exact-factored": Variant(attention=Factored, penalty=ValuePenalty, alpha=1.0),
        "chain": Variant(attention=Late, levels="all", penalty=ValuePenalty, alpha=1.0),
        "chain-two-pass": Variant(attention=TwoPass, levels="all", penalty=ValuePenalty, alpha=1.0),
        "chain-one-pass": Variant(
            attention=partial(OnePass, post_hoc=True),
            levels="all",
            penalty=ValuePenalty,
            alpha=10.0,
        ),
        "chain-factored": Variant(
            attention=Factored, levels="all", penalty=ValuePenalty, alpha=1.0
        ),
        "pyramid": Variant(attention=Late, levels="pyramid", penalty=ValuePenalty, alpha=1.0),
    }
)
"""Name of a variant -> how it is built; a new variant is one line here."""
