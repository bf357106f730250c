"""DeepLIFT with the rescale rule, on any network that can be written as a list of operations.

A step's multipliers are differences of its output from a baseline over differences of its inputs.
Each rule below is complete: multipliers times input differences give the output difference. Hence
the map is, and its residual is rounding only, unless a step has no rule of its own: it then gets
its mean derivative on the straight way between the two inputs, by quadrature.

Axes: b batch, c channel, h row, w column.

References
----------
Shrikumar, Greenside, Kundaje, "Learning important features through propagating activation
differences", ICML 2017, 3.5.1 (linear rule), 3.5.2 (rescale rule).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from models.explainers.base import Explainer
from models.explainers.laws import Law, judged, relative
from models.explainers.propagation import (
    BILINEAR,
    ELEMENTWISE,
    MAX_POOLS,
    Incoming,
    only,
    pull_back,
    sources,
    transposed,
)
from models.explainers.scoring import select
from models.explainers.tracing import Program, aten, trace
from models.records import Attribution

QUADRATURE = 16  # points on the way through a step without a rule of its own

COMPLETENESS = Law(
    name="completeness",
    sound=1e-3,
    refused=5e-2,
    says="of the score's change from the baseline is not in the map",
    way_out="choose a baseline whose score differs more, or see 'integrated-gradients'",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeepLift(Explainer):
    """Contributions of pixels to the score's difference from a baseline picture's.

    Attributes
    ----------
    baseline
        Value of the baseline picture everywhere, in the units of the images.
    batch_size
        Pictures at once; all steps of the network are kept, twice.
    """

    baseline: float = 0.0
    batch_size: int = 8

    @property
    def name(self) -> str:
        """``deeplift``."""
        return "deeplift"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size.

        Raises
        ------
        ExplainerError
            If the model cannot be rewritten as operations.
        """
        program = trace(model, images)
        baseline = torch.full_like(images, self.baseline)
        with torch.no_grad():
            pair = _Pair(program=program, now=program.run(images), before=program.run(baseline))
            now, before = (select(v[program.logits], target) for v in (pair.now, pair.before))
        start = torch.zeros_like(pair.now[program.logits])
        start.scatter_(1, target.long()[:, None], 1.0)
        multipliers = pull_back(program, start, pair.rule, like=images)
        values = (multipliers * (images - baseline)).sum(1)
        residual = relative(values.sum((1, 2)) - (now - before), now - before)
        return (judged(values, target, method=self.name, law=COMPLETENESS, residual=residual),)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """Values of every step for the pictures and for the baseline."""

    program: Program
    now: Mapping[fx.Node, Any]
    before: Mapping[fx.Node, Any]

    def rule(self, node: fx.Node, incoming: Incoming) -> Mapping[fx.Node, Tensor]:
        """Multipliers of a step's inputs from those of its output."""
        wanted = sources(node, self.program, self.now)
        special = SPECIAL.get(node.target)
        if special is not None:
            return special(self, node, only(incoming), wanted)
        if node.target in ELEMENTWISE and len(wanted) == 1:
            return {wanted[0]: self._secant(node, only(incoming), wanted[0])}
        if node.target in BILINEAR:
            return transposed(node, self.between(wanted, 0.5), incoming, wanted)
        return self._on_the_way(node, incoming, wanted)

    def between(self, wanted: list[fx.Node], place: float) -> dict[fx.Node, Any]:
        """Values with the named steps at a place of the straight way: 0 before, 1 now."""
        mixed = dict(self.now)
        for used in wanted:
            mixed[used] = torch.lerp(self.before[used], self.now[used], place)
        return mixed

    def _secant(self, node: fx.Node, incoming: Tensor, source: fx.Node) -> Tensor:
        """Difference quotient; the derivative where the inputs are too near for one."""
        now, before = self.now[source], self.before[source]
        change = now - before
        near = change.abs() <= torch.finfo(now.dtype).eps ** (2 / 3) * (now.abs() + before.abs())
        tangent = transposed(node, self.between([source], 0.5), incoming, [source])[source]
        quotient = (self.now[node] - self.before[node]) / torch.where(near, 1.0, change)
        return torch.where(near, tangent, incoming * quotient)

    def _on_the_way(
        self, node: fx.Node, incoming: Incoming, wanted: list[fx.Node]
    ) -> dict[fx.Node, Tensor]:
        """Mean derivative on the straight way between the inputs, by Gauss-Legendre quadrature."""
        places, weights = np.polynomial.legendre.leggauss(QUADRATURE)
        total = {used: torch.zeros_like(self.now[used]) for used in wanted}
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            found = transposed(node, self.between(wanted, float(place)), incoming, wanted)
            for used, value in found.items():
                total[used] = total[used] + float(weight) * value
        return total


def _max_pool(
    pair: _Pair, node: fx.Node, incoming: Tensor, wanted: list[fx.Node]
) -> Mapping[fx.Node, Tensor]:
    """Give a window's change to the pixel that made it: today's maximum if it grew, else the old.

    That pixel changed by at least as much, so that its multiplier lies between 0 and 1.
    """
    (source,) = wanted
    (now, place_now), (before, place_before) = pair.now[node], pair.before[node]
    change = (pair.now[source] - pair.before[source]).flatten(2)
    place = torch.where(now >= before, place_now, place_before).flatten(2)
    made = change.gather(2, place)
    grown = (now - before).flatten(2)
    share = torch.where(made == 0, torch.ones_like(made), grown / torch.where(made == 0, 1, made))
    multipliers = torch.zeros_like(change).scatter_add_(2, place, incoming.flatten(2) * share)
    return {source: multipliers.view_as(pair.now[source])}


def _maximum(
    pair: _Pair, node: fx.Node, incoming: Tensor, wanted: list[fx.Node]
) -> Mapping[fx.Node, Tensor]:
    """Share between two arguments by how long each is the greater (or smaller) on the way."""
    smaller = node.target is aten.minimum.default
    one, other = node.all_input_nodes if len(node.all_input_nodes) > 1 else node.all_input_nodes * 2
    ahead_now, ahead_before = (values[one] - values[other] for values in (pair.now, pair.before))
    width = (ahead_now - ahead_before).abs()
    first = torch.where(
        width > 0,
        (ahead_now.clamp_min(0) - ahead_before.clamp_min(0)).abs()
        / torch.where(width > 0, width, 1),
        (ahead_now > 0).to(width) + 0.5 * (ahead_now == 0).to(width),
    )
    first = 1 - first if smaller else first
    found: dict[fx.Node, Tensor] = {}
    for argument, share in ((one, first), (other, 1 - first)):
        if argument in wanted:
            part = (incoming * share).sum_to_size(pair.now[argument].shape)
            found[argument] = found[argument] + part if argument in found else part
    return found


def _quotient(
    pair: _Pair, node: fx.Node, incoming: Tensor, wanted: list[fx.Node]
) -> Mapping[fx.Node, Tensor]:
    """Treat as a product with a reciprocal: product rule, and difference quotient of 1 / x."""
    above, below = cast(tuple[Any, Any], node.args[:2])
    if below not in wanted:
        return transposed(node, pair.now, incoming, wanted)
    below_now, below_before = pair.now[below], pair.before[below]
    found: dict[fx.Node, Tensor] = {}
    if above in wanted:
        part = incoming * (1 / below_now + 1 / below_before) / 2
        found[above] = part.sum_to_size(pair.now[above].shape)
    mean = (pair.now.get(above, above) + pair.before.get(above, above)) / 2
    part = (-incoming * mean / (below_now * below_before)).sum_to_size(below_now.shape)
    found[below] = found[below] + part if below in found else part
    return found


def _log_shape(half: Tensor) -> Tensor:
    """log(sinh(h) / h), for any size of h."""
    half = half.abs()
    safe = half.clamp_min(1e-2)
    large = safe - torch.log(2 * safe) + torch.log1p(-torch.exp(-2 * safe))
    return torch.where(half < 1e-2, half.square() / 6, large)


def _logsumexp_shares(pair: _Pair, source: fx.Node, dims: Any) -> Tensor:
    """Multipliers of log(sum(exp)): logarithmic means of the terms over that of the sums."""
    now, before = pair.now[source], pair.before[source]
    sum_now, sum_before = now.logsumexp(dims, True), before.logsumexp(dims, True)
    terms = (now + before) / 2 + _log_shape((now - before) / 2)
    sums = (sum_now + sum_before) / 2 + _log_shape((sum_now - sum_before) / 2)
    return (terms - sums).exp()


def _softmax(
    pair: _Pair, node: fx.Node, incoming: Tensor, wanted: list[fx.Node]
) -> Mapping[fx.Node, Tensor]:
    """Exponential of x less log(sum(exp)), each by its difference quotient."""
    (source,), dim = wanted, cast(int, node.args[1])
    shares = _logsumexp_shares(pair, source, [dim])
    if node.target is aten._softmax.default:
        logs = [values[source].log_softmax(dim) for values in (pair.now, pair.before)]
        middle = (logs[0] + logs[1]) / 2 + _log_shape((logs[0] - logs[1]) / 2)
        incoming = incoming * middle.exp()
    return {source: incoming - shares * incoming.sum(dim, keepdim=True)}


def _logsumexp(
    pair: _Pair, node: fx.Node, incoming: Tensor, wanted: list[fx.Node]
) -> Mapping[fx.Node, Tensor]:
    (source,), dims = wanted, cast(list[int], node.args[1])
    keeps = len(node.args) > 2 and node.args[2]
    shares = _logsumexp_shares(pair, source, dims)
    if not keeps:
        rank = pair.now[source].ndim
        for dim in sorted(d % rank for d in dims):
            incoming = incoming.unsqueeze(dim)
    return {source: shares * incoming}


SPECIAL: Mapping[Any, Callable[..., Mapping[fx.Node, Tensor]]] = MappingProxyType(
    {
        **dict.fromkeys(MAX_POOLS, _max_pool),
        aten.maximum.default: _maximum,
        aten.minimum.default: _maximum,
        aten.div.Tensor: _quotient,
        aten._softmax.default: _softmax,
        aten._log_softmax.default: _softmax,
        aten.logsumexp.default: _logsumexp,
    }
)
"""Operation -> its own complete rule."""
