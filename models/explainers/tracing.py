"""A model rewritten as a list of plain operations, and proven equal to it.

Tracing runs the model once and writes down every operation on tensors. What is shared, functional
or in place in the model is a step of its own in the list, so that rules of propagation need to know
operations only, never modules. The model itself is not touched.

Axes: b batch, c channel, h row, w column, k class.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.errors import ExplainerError
from models.explainers.scoring import logits_in, logits_of
from models.scoped import evaluating

aten = torch.ops.aten

EQUAL = 1e-3  # of the greatest logit: folding and reordering change single precision by far less

Values = Mapping[fx.Node, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Operations from images to logits.

    Attributes
    ----------
    image, logits
        First and last step.
    depends
        Steps whose value depends on the images.
    difference
        Greatest absolute difference of its logits from the model's, on the images of the tracing.
    """

    module: fx.GraphModule = field(repr=False)
    image: fx.Node
    logits: fx.Node
    depends: frozenset[fx.Node] = field(repr=False)
    difference: float = 0.0

    def run(self, images: Float[Tensor, "b c h w"]) -> dict[fx.Node, Any]:
        """Value of every step, for a batch of the size that was traced."""
        values: dict[fx.Node, Any] = {}
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                values[node] = images
            elif node.op == "get_attr":
                values[node] = getattr(self.module, node.target).detach()
            elif node.op == "call_function":
                values[node] = apply(node, values)
        return values


def arguments(node: fx.Node, values: Values) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a step with the values of other steps filled in."""
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    return args, dict(kwargs)


def apply(node: fx.Node, values: Values) -> Any:
    """Value of a step from the values before it."""
    args, kwargs = arguments(node, values)
    operation: Any = node.target
    return operation(*args, **kwargs)


def trace(model: nn.Module, images: Float[Tensor, "b c h w"]) -> Program:
    """Rewrite a model and prove the rewriting equal on the images.

    Batch normalisations are folded into the convolutions before them, and become a factor and a
    summand per channel elsewhere.

    Raises
    ------
    ExplainerError
        If the model decides by the values in its tensors, uses batch statistics, or the rewriting
        gives other logits.
    """
    with evaluating(model), torch.no_grad():
        expected = logits_of(model, images)
        module = _traced(model, images)
    _functionalise(module.graph)
    _fold_batch_norms(module)
    module.graph.eliminate_dead_code()
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    program = Program(
        module=module, image=image, logits=output.args[0], depends=_dependents(module.graph, image)
    )
    if program.logits not in program.depends:
        raise ExplainerError(
            "NO_EFFECT", "the logits do not depend on the images; there is nothing to explain"
        )
    with torch.no_grad():
        difference = float((program.run(images)[program.logits] - expected).abs().max())
    if not difference <= EQUAL * float(expected.abs().max().clamp_min(1e-6)):
        raise ExplainerError(
            "REWRITING_DIFFERS",
            f"the model rewritten step by step gives logits that differ by {difference:.3g}; it is "
            "random in evaluation or changes tensors through views: explain it by "
            "'integrated-gradients', which needs no rewriting",
        )
    return Program(
        module=module,
        image=image,
        logits=program.logits,
        depends=program.depends,
        difference=difference,
    )


def _traced(model: nn.Module, images: Tensor) -> fx.GraphModule:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque step without rules
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return make_fx(
                lambda pictures: logits_in(model(pictures), count=len(pictures)),
                decomposition_table=dict(SIMPLER),
            )(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        first = str(error).strip().partition("\n")[0].partition(" - ")[0]
        raise ExplainerError(
            "NOT_TRACEABLE",
            f"the model cannot be written as a list of operations ({first}); most often it decides "
            "by a tensor's value: explain it by 'integrated-gradients', which needs no tracing",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _functionalise(graph: fx.Graph) -> None:
    """Replace operations in place by those that give a new tensor.

    Tracing already lets later steps refer to the changed tensor.
    """
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        if node.target._schema.is_mutable and name.endswith("_"):
            node.target = getattr(getattr(aten, name[:-1]), node.target._overloadname)
        elif node.target in (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default):
            node.replace_all_uses_with(node.args[0])


def _dependents(graph: fx.Graph, image: fx.Node) -> frozenset[fx.Node]:
    found = {image}
    for node in graph.nodes:
        if any(used in found for used in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def channel_affine(
    features: Float[Tensor, "b c *cells"], factor: Float[Tensor, " c"], summand: Float[Tensor, " c"]
) -> Float[Tensor, "b c *cells"]:
    """Batch normalisation in evaluation: a factor and a summand per channel."""
    shape = (1, -1, *(1,) * (features.ndim - 2))
    return features * factor.view(shape) + summand.view(shape)


BATCH_NORMS: Mapping[Callable[..., Any], int | None] = MappingProxyType(
    {
        aten.native_batch_norm.default: 5,
        aten.cudnn_batch_norm.default: 5,
        aten.miopen_batch_norm.default: 5,
        aten._native_batch_norm_legit_no_training.default: None,
        aten._native_batch_norm_legit.default: 5,
    }
)
"""Operation -> place of its flag for batch statistics; None where it has none."""


def _fold_batch_norms(module: fx.GraphModule) -> None:
    for number, node in enumerate(list(module.graph.nodes)):
        if node.target not in BATCH_NORMS:
            continue
        flag = BATCH_NORMS[node.target]
        if flag is not None and node.args[flag]:
            raise ExplainerError(
                "BATCH_STATISTICS",
                "a batch normalisation keeps no running statistics, so that samples depend on "
                "each other; build it with track_running_stats=True",
            )
        factor, summand = _affine_of(module, node)
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] == 0:
                with module.graph.inserting_before(user):
                    new = _folded(module, node, factor, summand, f"_folded{number}")
                user.replace_all_uses_with(new)


def _affine_of(module: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor]:
    weight, bias, mean, variance = (_constant(module, place) for place in node.args[1:5])
    factor = (variance + node.args[-1]).rsqrt()
    factor = factor if weight is None else factor * weight
    return factor, -mean * factor if bias is None else bias - mean * factor


def _constant(module: fx.GraphModule, node: Any) -> Any:
    """Value of a step that does not depend on the images; None where there is no step."""
    if node is None:
        return None
    if node.op == "get_attr":
        return getattr(module, node.target).detach()
    args, kwargs = (
        fx.map_arg(part, lambda used: _constant(module, used)) for part in (node.args, node.kwargs)
    )
    return node.target(*args, **kwargs)


def _folded(
    module: fx.GraphModule, norm: fx.Node, factor: Tensor, summand: Tensor, name: str
) -> fx.Node:
    """Convolution with the normalisation in its weights, or the normalisation as it is."""
    features: Any = norm.args[0]

    def stored(kind: str, value: Tensor) -> fx.Node:
        module.register_buffer(f"{name}_{kind}", value, persistent=False)
        return module.graph.get_attr(f"{name}_{kind}")

    if not _is_foldable(features):
        made = (features, stored("factor", factor), stored("summand", summand))
        return module.graph.call_function(channel_affine, made)
    weight, bias = _constant(module, features.args[1]), _constant(module, features.args[2])
    shape = (-1, *(1,) * (weight.ndim - 1))
    scaled = weight * factor.view(shape)
    shifted = summand if bias is None else summand + bias * factor
    made = (features.args[0], stored("weight", scaled), stored("bias", shifted), *features.args[3:])
    return module.graph.call_function(aten.convolution.default, made)


def _is_foldable(features: fx.Node) -> bool:
    """Whether a step is a convolution, not transposed, that only one other step sees."""
    return (
        features.target is aten.convolution.default
        and not features.args[6]
        and len(features.users) == 1
    )


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation in steps that have rules."""
    over = list(range(x.ndim - len(shape), x.ndim))
    mean = x.mean(over, keepdim=True)
    centred = x - mean
    inverse = ((centred * centred).mean(over, keepdim=True) + eps).rsqrt()
    out = centred * inverse
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias), mean, inverse


def _group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    samples: int,
    channels: int,
    cells: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group normalisation in steps that have rules."""
    grouped = x.reshape(samples, groups, -1)
    out, mean, inverse = _layer_norm(grouped, grouped.shape[2:], None, None, eps)
    out, shape = out.view(x.shape), (1, channels, *(1,) * (x.ndim - 2))
    out = out if weight is None else out * weight.view(shape)
    out = out if bias is None else out + bias.view(shape)
    return out, mean.view(samples, groups), inverse.view(samples, groups)


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Softmax of attention scores that no mask makes minus infinity."""
    return x.softmax(dim, dtype)


SIMPLER: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        aten.native_layer_norm.default: _layer_norm,
        aten.native_group_norm.default: _group_norm,
        aten._safe_softmax.default: _softmax,
    }
)
"""Operation -> the same in steps that have rules."""
