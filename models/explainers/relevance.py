"""Layer-wise relevance propagation on any network that can be written as a list of operations.

Relevance starts as the target's logit and is shared among the inputs of every step, by a rule per
kind of step. Rectifiers and other changes of single numbers let it pass; the greatest pixel of a
pooling window takes all of it; sums, residual ones too, are linear steps; where features are
multiplied by a gate (an attention map, a norm), the features take all of it. What biases take is
shared among the inputs of their step by the size of their contributions, or kept. The residual is
what is not in the map; its reason says how much biases took.

Axes: b batch, c channel, h row, w column.

References
----------
Bach et al., "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
propagation", PLoS ONE 10(7), 2015.
Arras et al., "Explaining and interpreting LSTMs", 2019 (signal takes all).
Ali et al., "XAI for transformers: better explanations through conservative propagation", ICML 2022.
Achtibat et al., "AttnLRP: attention-aware layer-wise relevance propagation", ICML 2024 (halves).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.laws import Law, judged, relative
from models.explainers.propagation import (
    ADDING,
    AVERAGING,
    ELEMENTWISE,
    GATING,
    JOINING,
    MATRICES,
    MAX_POOLS,
    MOVING,
    MULTIPLYING,
    Incoming,
    only,
    pull_back,
    sources,
    transposed,
)
from models.explainers.rules import AlphaBeta, Epsilon, Gamma, Rule
from models.explainers.scoring import select
from models.explainers.tracing import Program, arguments, aten, channel_affine, trace
from models.records import Attribution, Verdict

CONSERVATION = Law(
    name="conservation",
    sound=1e-2,
    refused=0.5,
    says="of the score is not in the map",
    way_out="see 'deeplift', which is complete with biases",
)
SWOLLEN, BURST = 100.0, 1e4  # relevance of both signs over the score


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerwiseRelevance(Explainer):
    """LRP with a rule for each kind of layer; the defaults are a composite.

    Attributes
    ----------
    convolution, dense, rest
        Rules of convolutions, of matrix products, and of sums, means and normalisations.
    share_biases
        Whether what biases and summands take goes on to the inputs. Otherwise it is missing in the
        map: relevance is then the plain rule's, and is conserved without biases only.
    batch_size
        Pictures at once; all steps of the network are kept.
    """

    convolution: Rule = field(default_factory=Gamma)
    dense: Rule = field(default_factory=Epsilon)
    rest: Rule = field(default_factory=Epsilon)
    share_biases: bool = True
    batch_size: int = 8

    @property
    def name(self) -> str:
        """``lrp``, with the rule's name where all layers share one."""
        kinds = {type(rule) for rule in (self.convolution, self.dense, self.rest)}
        if len(kinds) > 1:
            return "lrp"
        (kind,) = kinds
        return NAMES.get(kind, "lrp")

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size.

        Raises
        ------
        ExplainerError
            If the model cannot be rewritten as operations or one of them has no rule.
        """
        values, scores, others = self._share_out(model, images, target)
        residual = relative(scores - values.sum((1, 2)), scores)
        taken = relative(others, scores[:, None]).tolist()
        size = relative(values.abs().sum((1, 2)), scores)
        verdicts = CONSERVATION.judge(residual, why=lambda i: self._why(*taken[i]))
        return (
            judged(
                values,
                target,
                method=self.name,
                law=CONSERVATION,
                residual=residual,
                verdicts=tuple(map(_not_swollen, verdicts, size.tolist())),
            ),
        )

    def _why(self, biases: float, constants: float, stranded: float) -> str:
        done = "passed on to their inputs" if self.share_biases else "kept"
        dead = f"; {100 * stranded:.2g} % found all inputs zero and stayed" if stranded else ""
        joined = f"; constants joined to features keep {100 * constants:.2g} %" if constants else ""
        return f"biases took {100 * biases:.2g} %, {done}{dead}{joined}"

    def _share_out(
        self, model: nn.Module, images: Tensor, target: Tensor
    ) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"], Float[Tensor, "b 3"]]:
        program = trace(model, images)
        with torch.no_grad():
            values = program.run(images)
            logits = values[program.logits]
            scores = select(logits, target)
            start = torch.zeros_like(logits).scatter_(1, target.long()[:, None], scores[:, None])
            shares = _Shares(
                program=program,
                values=values,
                rules=self,
                biases=torch.zeros_like(scores),
                constants=torch.zeros_like(scores),
                stranded=torch.zeros_like(scores),
            )
            relevance = pull_back(program, start, shares.rule, like=images)
        others = torch.stack((shares.biases, shares.constants, shares.stranded), 1)
        return relevance.sum(1), scores, others


NAMES: Mapping[type[Rule], str] = MappingProxyType(
    {Epsilon: "lrp-epsilon", Gamma: "lrp-gamma", AlphaBeta: "lrp-alpha-beta"}
)
"""Rule that all layers share -> name of the method."""


def _not_swollen(verdict: Verdict, size: float) -> Verdict:
    """Doubt a map whose positive and negative parts are many times the score they add up to."""
    if size <= SWOLLEN or verdict.word == "refused":
        return verdict
    return Verdict(
        word="doubtful" if size <= BURST else "refused",
        reason=f"{verdict.reason}; relevance of both signs adds up to {size:.2g} times the score: "
        "choose the gamma rule",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shares:
    """Rules for the steps of one program on one batch, and who else took relevance so far."""

    program: Program
    values: Mapping[fx.Node, Any]
    rules: LayerwiseRelevance
    biases: Float[Tensor, " b"]
    constants: Float[Tensor, " b"]
    stranded: Float[Tensor, " b"]

    def rule(self, node: fx.Node, incoming: Incoming) -> Mapping[fx.Node, Tensor]:
        """Relevance of a step's inputs from that of its output."""
        wanted = sources(node, self.program, self.values)
        if node.target in MOVING or node.target in MAX_POOLS:
            found = transposed(node, self.values, incoming, wanted)
            if node.target in JOINING:
                self._count(self.constants, only(incoming))
                for share in found.values():
                    self._count(self.constants, -share)
            return found
        arrived = only(incoming)
        if node.target in ELEMENTWISE and len(wanted) == 1:
            return {wanted[0]: arrived}
        if node.target in ADDING:
            return self._added(node, arrived)
        if node.target in MULTIPLYING:
            return self._multiplied(node, arrived, wanted)
        if node.target in LINEAR:
            return self._linear(node, arrived, wanted)
        raise ExplainerError(
            "NO_RULE",
            f"relevance reaches the operation '{node.target}', which has no rule; explain the "
            "model by 'deeplift' or 'integrated-gradients'",
        )

    def _added(self, node: fx.Node, arrived: Tensor) -> Mapping[fx.Node, Tensor]:
        """Two terms share as the contributions of a linear step do."""
        terms = [torch.as_tensor(term).to(arrived) for term in self._terms(node)]
        positive = terms[0].clamp_min(0) + terms[1].clamp_min(0)
        negative = terms[0].clamp_max(0) + terms[1].clamp_max(0)
        factors = self.rules.rest.factors(positive, negative, arrived)
        found: dict[fx.Node, Tensor] = {}
        lost = torch.zeros_like(arrived)
        for argument, term in zip(node.args[:2], terms, strict=True):
            share = term.clamp_min(0) * factors[0] + term.clamp_max(0) * factors[-1]
            if argument not in self.program.depends:
                lost = lost + share
                continue
            part = share.sum_to_size(self.values[argument].shape)
            found[argument] = found[argument] + part if argument in found else part
        self._count(self.biases, lost)
        if self.rules.share_biases and len(found) == 1:
            ((used, part),) = found.items()
            found[used] = part + lost.sum_to_size(part.shape)
        return found

    def _terms(self, node: fx.Node) -> tuple[Any, Any]:
        args, kwargs = arguments(node, self.values)
        signs, alpha = ADDING[node.target], kwargs.get("alpha", 1)
        return signs[0] * args[0], signs[1] * alpha * args[1]

    def _multiplied(
        self, node: fx.Node, arrived: Tensor, wanted: list[fx.Node]
    ) -> Mapping[fx.Node, Tensor]:
        """Factors pass relevance on; of two that depend on the picture the features take all."""
        if len(wanted) == 2 and node.target is aten.div.Tensor:
            wanted = wanted[:1]
        found = {}
        for used, share in self._takers(node, wanted):
            found[used] = (share * arrived).sum_to_size(self.values[used].shape)
        return found

    def _takers(self, node: fx.Node, wanted: list[fx.Node]) -> list[tuple[fx.Node, float]]:
        """Arguments of a product that take relevance, with their shares of it."""
        if len(wanted) < 2:
            return [(used, 1.0) for used in wanted]
        sizes = [self.values[used].numel() for used in wanted]
        if node.target is aten.mul.Tensor and sizes[0] != sizes[1]:
            return [(wanted[sizes.index(max(sizes))], 1.0)]  # a gate is spread over the channels
        features = [used for used in wanted if not self._is_gate(used)]
        if len(features) == 1:
            return [(features[0], 1.0)]
        return [(used, 0.5) for used in wanted]

    def _is_gate(self, node: fx.Node) -> bool:
        """Whether a step's numbers come out of a softmax or a sigmoid, moved or scaled at most."""
        while node.target in MOVING or node.target in MULTIPLYING:
            before = [used for used in node.all_input_nodes if used in self.program.depends]
            if len(before) != 1:
                return False
            (node,) = before
        return node.target in GATING

    def _linear(
        self, node: fx.Node, arrived: Tensor, wanted: list[fx.Node]
    ) -> Mapping[fx.Node, Tensor]:
        """Share by the rule of the kind of step."""
        rule = self.rules.rest
        if node.target in MATRICES:
            convolves = node.target is aten.convolution.default
            rule = self.rules.convolution if convolves else self.rules.dense
        found = {}
        takers = self._takers(node, wanted)
        if not takers or (len(wanted) > 1 and node.target not in PRODUCTS):
            raise ExplainerError(
                "NO_RULE",
                f"the weights of '{node.target}' depend on the picture, which has no rule; explain "
                "the model by 'deeplift' or 'integrated-gradients'",
            )
        for used, share in takers:
            weight, bias, apply = _linear_step(node, self.values, used)
            x = self.values[used]
            found[used], lost = _shared(rule, x, weight, bias, apply, share * arrived)
            self._count(self.biases, lost)
            if self.rules.share_biases and bias is not None:
                passed, stayed = _passed_on(x, weight, apply, lost)
                found[used] += passed
                self._count(self.stranded, stayed)
        return found

    def _count(self, account: Tensor, relevance: Tensor) -> None:
        """Add up per sample; samples come first in every step's output."""
        account.add_(relevance.reshape(len(account), -1).sum(1))


Apply = Callable[[Tensor, Tensor], Tensor]
"""A linear step without its bias: from features and weights to sums of their products."""

PRODUCTS = frozenset({aten.bmm.default, aten.mm.default})
LINEAR = frozenset({*AVERAGING, *MATRICES, channel_affine})


def _linear_step(
    node: fx.Node, values: Mapping[fx.Node, Any], source: fx.Node
) -> tuple[Tensor, Tensor | None, Apply]:
    """Weight, bias and what is done with them, for one of a step's arguments as the features."""
    args, kwargs = arguments(node, values)
    if node.target in AVERAGING:
        one = values[source].new_ones(())
        operation: Any = node.target
        return one, None, lambda x, w: w * operation(x, *args[1:], **kwargs)
    if node.target is channel_affine:
        shape = (1, -1, *(1,) * (args[0].ndim - 2))
        return args[1].view(shape), args[2].view(shape), torch.mul
    if node.target is aten.convolution.default:
        shape = (1, -1, *(1,) * (args[0].ndim - 2))
        bias = None if args[2] is None else args[2].view(shape)
        return args[1], bias, lambda x, w: aten.convolution.default(x, w, None, *args[3:])
    bias = args[0] if node.target in (aten.addmm.default, aten.baddbmm.default) else None
    place = len(node.args) - 2 if bias is None else 1
    if node.args[place] is source:
        return args[place + 1], bias, torch.matmul
    return args[place], bias, lambda x, w: torch.matmul(w, x)


def _shared(
    rule: Rule, x: Tensor, w: Tensor, bias: Tensor | None, apply: Apply, arrived: Tensor
) -> tuple[Tensor, Tensor]:
    """Relevance of the features, and what the bias takes of each output."""
    bias = torch.zeros_like(arrived[:1]) if bias is None else bias
    parts = (x.clamp_min(0), x.clamp_max(0)), (w.clamp_min(0), w.clamp_max(0))
    (x_above, x_below), (w_above, w_below) = parts
    if isinstance(rule, Epsilon):  # the same with a quarter of the arithmetic
        (factor,) = rule.factors(apply(x, w) + bias, torch.zeros_like(arrived), arrived)
        return x * _back(apply, x, w, factor), bias * factor
    positive = apply(x_above, w_above) + apply(x_below, w_below) + bias.clamp_min(0)
    negative = apply(x_above, w_below) + apply(x_below, w_above) + bias.clamp_max(0)
    more, less = rule.factors(positive, negative, arrived)
    relevance = x_above * (_back(apply, x, w_above, more) + _back(apply, x, w_below, less))
    relevance += x_below * (_back(apply, x, w_below, more) + _back(apply, x, w_above, less))
    return relevance, bias.clamp_min(0) * more + bias.clamp_max(0) * less


def _back(apply: Apply, x: Tensor, w: Tensor, factor: Tensor) -> Tensor:
    """Transpose of a linear step."""
    leaf = torch.zeros_like(x).requires_grad_()
    with torch.enable_grad():
        output = apply(leaf, w)
    return torch.autograd.grad(output, leaf, factor)[0]


def _passed_on(x: Tensor, w: Tensor, apply: Apply, lost: Tensor) -> tuple[Tensor, Tensor]:
    """Share what biases took among the inputs by the size of their contributions.

    The second part is what stays, where no input contributes.
    """
    sizes = apply(x.abs(), w.abs())
    factor = torch.where(sizes > 0, lost / torch.where(sizes > 0, sizes, 1.0), 0.0)
    return x.abs() * _back(apply, x, w.abs(), factor), torch.where(sizes > 0, 0.0, lost)
