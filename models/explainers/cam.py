"""Class activation maps, where a linear head follows a mean over cells.

Axes: b batch, c channel, h row, w column, k class.

References
----------
Zhou et al., "Learning deep features for discriminative localization", CVPR 2016.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.laws import Law, judged, relative
from models.explainers.propagation import JOINING, MOVING
from models.explainers.scoring import select
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
    s * sum_c W_c F_c + b. Features that attention gated at the end are taken with their gate. Where
    the head sees several levels their maps are added, on the grid of the finest.
    """

    @property
    def name(self) -> str:
        """``cam``."""
        return "cam"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map on the grid of the last features.

        Raises
        ------
        ExplainerError
            If the logits are not a linear head's on the mean of "b c h w" features, or the model
            cannot be rewritten as operations.
        """
        with torch.no_grad():
            values, logits = _maps(model, images, target)
        residual = relative(values.mean((1, 2)) - logits, logits)
        return (judged(values, target, method=self.name, law=MEAN_IS_LOGIT, residual=residual),)


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
    poolings = _poolings(pooled, program, values)
    features = [values[cast(fx.Node, mean.args[0])] * factor for mean, factor in poolings]
    weights = values[weight].t()[target.long()].split([f.shape[1] for f in features], dim=1)
    levels = [
        torch.einsum("bchw,bc->bhw", cells, chosen)
        for cells, chosen in zip(features, weights, strict=True)
    ]
    biased = head.target is aten.addmm.default
    bias = values[cast(fx.Node, head.args[0])] if biased else torch.zeros(1).to(images)
    offset = bias.expand(values[program.logits].shape[1])[target.long()]
    return _summed(levels) + offset[:, None, None], select(values[program.logits], target)


def _before(node: fx.Node, program: Program) -> fx.Node:
    """Last step that did more than move numbers."""
    while node.target in MOVING and node.target not in JOINING:
        (node,) = (used for used in node.all_input_nodes if used in program.depends)
    return node


def _poolings(
    node: fx.Node, program: Program, values: Values, *, factor: float = 1.0
) -> list[tuple[fx.Node, float]]:
    """List steps that pool what the head sees, in the order of its weights, and their factors."""
    node = _before(node, program)
    if node.target is aten.mul.Tensor and len(node.all_input_nodes) == 1:
        constant = next(part for part in node.args if isinstance(part, int | float))
        return _poolings(node.all_input_nodes[0], program, values, factor=factor * constant)
    if node.target is aten.cat.default and values[node].ndim == 2:
        parts = cast(list[fx.Node], node.args[0])
        if not all(part in program.depends for part in parts):
            raise _not_linear("what the head sees is joined to constants, 'aten.cat'")
        return [
            pooling for part in parts for pooling in _poolings(part, program, values, factor=factor)
        ]
    if node.target not in MEANS or not _pools_cells(node, values):
        raise _not_linear(f"what the head sees comes from '{node.target}'")
    return [(node, factor)]


def _pools_cells(node: fx.Node, values: Values) -> bool:
    features = values[cast(fx.Node, node.args[0])]
    if features.ndim != 4:
        return False
    if node.target is aten.mean.dim:
        return sorted(axis % 4 for axis in cast(list[int], node.args[1])) == [2, 3]
    return values[node].shape[2:].numel() == 1


def _summed(levels: Sequence[Float[Tensor, "b _h _w"]]) -> Float[Tensor, "b h w"]:
    """Add maps on the finest of their grids; a coarse cell's value is that of all its fine ones."""
    rows, columns = (max(level.shape[axis] for level in levels) for axis in (1, 2))
    total = torch.zeros_like(levels[0][:, :1, :1])
    for level in levels:
        if rows % level.shape[1] or columns % level.shape[2]:
            raise _not_linear(f"{list(level.shape[1:])} cells do not nest in {rows} x {columns}")
        fine = level.repeat_interleave(rows // level.shape[1], 1)
        total = total + fine.repeat_interleave(columns // level.shape[2], 2)
    return total


def _not_linear(seen: str) -> ExplainerError:
    return ExplainerError(
        "HEAD_NOT_LINEAR",
        f"{seen}, not from a linear head on the mean over cells, so that there is no class "
        "activation map; explain the model by 'gradcam'",
    )
