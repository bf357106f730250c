"""Carry something back from the logits to the images, step by step, by a rule per operation."""

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from models.errors import ExplainerError
from models.explainers.tracing import Program, Values, apply, aten, channel_affine

Incoming = Tensor | dict[int, Tensor]
"""What arrived at a step's output; by number where the step has several."""

Rule = Callable[[fx.Node, Incoming], Mapping[fx.Node, Tensor]]


def pull_back(program: Program, start: Tensor, rule: Rule, *, like: Tensor) -> Tensor:
    """Find what arrives at the images when ``start`` leaves the logits.

    A step is visited once, after all that use it; what they send is added up. ``like`` is the
    picture whose shape the answer has, zero if nothing arrives.
    """
    pending: dict[fx.Node, Any] = {program.logits: start}
    for node in reversed(program.module.graph.nodes):
        if node not in pending or node is program.image:
            continue
        incoming = pending.pop(node)
        if node.target is operator.getitem:
            source, place = node.args
            parts = pending.setdefault(source, {})
            parts[place] = parts[place] + incoming if place in parts else incoming
            continue
        for source, share in rule(node, incoming).items():
            pending[source] = pending[source] + share if source in pending else share
    return pending.get(program.image, torch.zeros_like(like))


def sources(node: fx.Node, program: Program, values: Values) -> list[fx.Node]:
    """List the steps before this one that depend on the images.

    Raises
    ------
    ExplainerError
        If one of them holds places or decisions rather than real numbers.
    """
    found = [used for used in node.all_input_nodes if used in program.depends]
    for used in found:
        if not isinstance(values[used], Tensor) or not values[used].is_floating_point():
            raise ExplainerError(
                "UNKNOWN_OPERATION",
                f"the model's operation '{node.target}' decides by values and has no rule; explain "
                "it by 'integrated-gradients'",
            )
    return found


def transposed(
    node: fx.Node, values: Values, incoming: Incoming, wanted: list[fx.Node]
) -> dict[fx.Node, Tensor]:
    """Apply the transposed derivative of one step at ``values`` to what arrived."""
    leaves = {used: values[used].detach().requires_grad_() for used in wanted}
    with torch.enable_grad():
        output = apply(node, {**{used: values[used] for used in node.all_input_nodes}, **leaves})
    if isinstance(incoming, dict):
        outputs = [output[place] for place in incoming]
        arrived = list(incoming.values())
    else:
        outputs, arrived = [output], [incoming]
    found = torch.autograd.grad(
        outputs, list(leaves.values()), arrived, allow_unused=True, materialize_grads=True
    )
    return dict(zip(wanted, found, strict=True))


def only(incoming: Incoming) -> Tensor:
    """Take what arrived at the first output, where nothing arrived at another.

    Raises
    ------
    ExplainerError
        If something arrived at another output.
    """
    if isinstance(incoming, Tensor):
        return incoming
    if set(incoming) != {0}:
        raise ExplainerError(
            "UNKNOWN_OPERATION",
            "the model uses the places of maxima as numbers; explain it by 'integrated-gradients'",
        )
    return incoming[0]


ELEMENTWISE = frozenset(
    {
        aten.relu.default,
        aten.leaky_relu.default,
        aten.elu.default,
        aten.gelu.default,
        aten.silu.default,
        aten.sigmoid.default,
        aten.tanh.default,
        aten.softplus.default,
        aten.hardtanh.default,
        aten.hardswish.default,
        aten.hardsigmoid.default,
        aten.mish.default,
        aten.exp.default,
        aten.log.default,
        aten.log1p.default,
        aten.expm1.default,
        aten.sqrt.default,
        aten.rsqrt.default,
        aten.reciprocal.default,
        aten.abs.default,
        aten.erf.default,
        aten.sin.default,
        aten.cos.default,
        aten.square.default,
        aten.clamp.default,
        aten.clamp_min.default,
        aten.clamp_max.default,
        aten.pow.Tensor_Scalar,
        aten._prelu_kernel.default,
    }
)
"""Steps that change each number by itself."""

MOVING = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.clone.default,
        aten._to_copy.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.select.int,
        aten.slice.Tensor,
        aten.unbind.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.cat.default,
        aten.stack.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.roll.default,
        aten.flip.default,
        aten.constant_pad_nd.default,
        aten.reflection_pad2d.default,
        aten.replication_pad2d.default,
        aten.pixel_shuffle.default,
        aten.repeat.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest2d.default,
    }
)
"""Steps that put numbers elsewhere, leave some out or repeat them."""

JOINING = frozenset({aten.cat.default, aten.stack.default})
"""Steps that put tensors side by side; they move numbers."""

AVERAGING = frozenset(
    {
        aten.mean.dim,
        aten.mean.default,
        aten.sum.dim_IntList,
        aten.sum.default,
        aten.avg_pool2d.default,
        aten._adaptive_avg_pool2d.default,
        aten.upsample_bilinear2d.vec,
        aten.upsample_bilinear2d.default,
    }
)
"""Sums with weights that are all positive."""

ADDING: Mapping[Any, tuple[float, float]] = MappingProxyType(
    {
        aten.add.Tensor: (1.0, 1.0),
        aten.sub.Tensor: (1.0, -1.0),
        aten.rsub.Scalar: (-1.0, 1.0),
        aten.add.Scalar: (1.0, 1.0),
        aten.sub.Scalar: (1.0, -1.0),
    }
)
"""Sums of two arguments -> their signs; ``alpha`` goes with the second."""

MULTIPLYING = frozenset(
    {
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Tensor,
        aten.div.Scalar,
        aten.neg.default,
    }
)
"""Products and quotients, number by number."""

MATRICES = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten.baddbmm.default,
        aten.convolution.default,
    }
)
"""Products summed over something, with or without a bias."""

BILINEAR = frozenset(
    {
        *MOVING,
        *AVERAGING,
        *ADDING,
        *MATRICES,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Scalar,
        aten.neg.default,
        aten.lerp.Scalar,
        channel_affine,
    }
)
"""Steps that are linear in each of their arguments, up to a constant."""

GATING = frozenset(
    {aten._softmax.default, aten.sigmoid.default, aten.hardsigmoid.default, aten.exp.default}
)
"""Steps whose outputs weigh features rather than being some."""

MAX_POOLS = frozenset({aten.max_pool2d_with_indices.default})
