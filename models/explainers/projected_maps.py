"""Attention maps made to agree after the fact: the convex program on a finished model's maps.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, eq. (4).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.convex import block_sum, consistent_chain
from models.errors import ExplainerError
from models.explainers.attention_maps import maps_of
from models.explainers.base import Explainer
from models.explainers.laws import Law, judged
from models.records import Attribution

AGREEMENT = Law(
    name="agreement",
    sound=1e-4,
    refused=1e-2,
    says="of the mass differs between a level and the finer one under it",
    way_out="the maps are too peaked for single precision: explain the model in double",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedMaps(Explainer):
    """The nearest maps that agree with each other, from the model's own; not tied to a class."""

    @property
    def name(self) -> str:
        """``cvx``."""
        return "cvx"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """Project the model's maps; named ``cvx-fine``, ``cvx-coarse``, ... finest first.

        Raises
        ------
        ExplainerError
            If the model has fewer than two attention maps or they do not nest.
        """
        names, found = maps_of(model, images)
        if len(found) < 2:
            raise ExplainerError(
                "ONE_LEVEL",
                f"the model has {len(found)} attention maps; the program makes two or more agree: "
                "train a variant with both levels, such as 'unconstrained'",
            )
        _check_nested(found)
        smallest = torch.finfo(found[0].dtype).tiny
        maps = consistent_chain([level.clamp_min(smallest).log() for level in found])
        residual = _disagreement(maps)
        return tuple(
            judged(
                values,
                torch.full_like(target, -1),
                method=f"{self.name}-{name}",
                law=AGREEMENT,
                residual=residual,
                signed=False,
            )
            for name, values in zip(names, maps, strict=True)
        )


def _check_nested(maps: Sequence[Tensor]) -> None:
    for fine, coarse in pairwise(maps):
        if any(f % c for f, c in zip(fine.shape[1:], coarse.shape[1:], strict=True)):
            raise ExplainerError(
                "MAPS_DO_NOT_NEST",
                f"maps of {list(fine.shape[1:])} and {list(coarse.shape[1:])} cells do not nest; "
                "build the model for sides that are multiples of its stride",
            )


def _disagreement(maps: Sequence[Float[Tensor, "b _h _w"]]) -> Float[Tensor, " b"]:
    """Greatest mass, over levels, that block sums and the coarser map do not share."""
    gaps = [
        (block_sum(fine, (coarse.shape[1], coarse.shape[2])) - coarse).abs().sum((1, 2)) / 2
        for fine, coarse in pairwise(maps)
    ]
    return torch.stack(gaps).amax(0)
