"""Class activation maps, where a linear head follows a mean over cells.

Axes: b batch, c channel, h row, w column, k class.

References
----------
Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.
"""

from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from models.errors import ExplainerError
from models.explainers.base import (
    Explainer,
    Law,
    batches,
    check_at_least,
    check_request,
    explaining,
    relative,
    select,
)
from models.explainers.propagation import MOVING
from models.explainers.tracing import Program, Values, aten, trace
from models.records import Attribution

MEAN_IS_LOGIT = Law(
    name="mean",
    sound=1e-3,
    refused=1e-2,
    says="between the map's mean over cells and the logit",
    way_out="see 'gradcam'",
)
HEADS = frozenset({aten.addmm.default, aten.mm.default})
MEANS = frozenset({aten.mean.dim, aten._adaptive_avg_pool2d.default})


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ClassActivation(Explainer):
    """Evidence for the class in each cell of the last features; its mean is the logit.

    With features F, pooled to the mean over cells times a factor s, and a head W, b: each cell is
    s * sum_c W_c F_c + b. Features that attention gated at the end are taken with their gate.

    Attributes
    ----------
    batch_size
        Pictures in memory at once.
    """

    batch_size: int = 16

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map on the grid of the last features.

        Raises
        ------
        ExplainerError
            If the logits are not a linear head's on the mean of "b c h w" features, or the model
            cannot be rewritten as operations, and as ``Explainer``.
        """
        check_at_least(1, batch_size=self.batch_size)
        check_request(model, images, target)
        maps, scores = [], []
        with explaining(images, model) as pictures, torch.no_grad():
            for part in batches(len(pictures), self.batch_size):
                found, score = _maps(model, pictures[part], target[part])
                maps.append(found)
                scores.append(score)
        values, logits = torch.cat(maps), torch.cat(scores)
        residual = relative(values.mean((1, 2)) - logits, logits)
        return (
            Attribution(
                values=values.float(),
                target=target,
                method="cam",
                signed=True,
                residual=residual.float(),
                law=MEAN_IS_LOGIT.name,
                verdicts=MEAN_IS_LOGIT.judge(residual),
            ),
        )


def _maps(
    model: nn.Module, images: Tensor, target: Tensor
) -> tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]:
    program = trace(model, images)
    values = program.run(images)
    head = _before(program.logits, program)
    if head.target not in HEADS:
        raise _not_linear(f"the logits come from '{head.target}'")
    pooled, weight = cast(tuple[Any, Any], head.args[-2:])
    if not isinstance(pooled, fx.Node) or weight in program.depends:
        raise _not_linear("the head's weights depend on the picture")
    mean, factor = _pooling(pooled, program, values)
    features = values[cast(fx.Node, mean.args[0])]
    biased = head.target is aten.addmm.default
    bias = values[cast(fx.Node, head.args[0])] if biased else torch.zeros(1).to(images)
    chosen = values[weight].t()[target.long()] * factor
    maps = torch.einsum("bchw,bc->bhw", features, chosen)
    offset = bias.expand(values[program.logits].shape[1])[target.long()]
    return maps + offset[:, None, None], select(values[program.logits], target)


def _before(node: fx.Node, program: Program) -> fx.Node:
    """Last step that did more than move numbers."""
    while node.target in MOVING:
        before = [used for used in node.all_input_nodes if used in program.depends]
        if len(before) != 1:
            break
        (node,) = before
    return node


def _pooling(node: fx.Node, program: Program, values: Values) -> tuple[fx.Node, float]:
    """Step that pools, and the factor that follows it."""
    factor = 1.0
    node = _before(node, program)
    while node.target is aten.mul.Tensor and len(node.all_input_nodes) == 1:
        factor *= next(part for part in node.args if isinstance(part, int | float))
        node = _before(node.all_input_nodes[0], program)
    if node.target not in MEANS or not _pools_cells(node, values):
        raise _not_linear(f"what the head sees comes from '{node.target}'")
    return node, factor


def _pools_cells(node: fx.Node, values: Values) -> bool:
    features = values[cast(fx.Node, node.args[0])]
    if features.ndim != 4:
        return False
    if node.target is aten.mean.dim:
        return sorted(axis % 4 for axis in cast(list[int], node.args[1])) == [2, 3]
    return values[node].shape[2:].numel() == 1


def _not_linear(seen: str) -> ExplainerError:
    return ExplainerError(
        "HEAD_NOT_LINEAR",
        f"{seen}, not from a linear head on the mean over cells, so that there is no class "
        "activation map; explain the model by 'gradcam'",
    )
