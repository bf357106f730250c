"""What a class score loses when a part of the picture is covered.

References
----------
Zeiler, Fergus, "Visualizing and understanding convolutional networks", ECCV 2014.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.scoring import batches, scores_of
from models.records import Attribution, Verdict

MEASURED = Verdict(
    word="sound", reason="measured: each cell is the score's change when it is covered"
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Occlusion(Explainer):
    """Score of the whole picture less its score with one cell covered, for each cell of a grid.

    The cells tile the picture. It needs no gradient and has no law to fail: every value is a
    measurement.

    Attributes
    ----------
    cells
        Rows and columns of the grid.
    fill
        Value that covers, in the units of the images.
    """

    least: ClassVar[Mapping[str, int | float]] = MappingProxyType({"cells": 1})
    cells: int = 16
    fill: float = 0.0
    batch_size: int = 32

    @property
    def name(self) -> str:
        """``occlusion``."""
        return "occlusion"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map on the grid.

        Raises
        ------
        ExplainerError
            If the grid has more cells than pixels.
        """
        if self.cells > min(images.shape[2:]):
            raise ExplainerError(
                "CELLS_TOO_SMALL",
                f"{self.cells} cells on a side of {min(images.shape[2:])} pixels; a cell needs a "
                "pixel: choose fewer",
            )
        count = self.cells**2
        with torch.no_grad():
            whole = scores_of(model, images, target)
            values = whole.new_empty(len(images) * count)
            for part in batches(len(values), self.batch_size):
                numbers = torch.arange(part.start, part.stop, device=images.device)
                samples = numbers // count
                covered = self._cover(images[samples], numbers % count)
                values[part] = whole[samples] - scores_of(model, covered, target[samples])
        return (
            Attribution(
                values=values.view(-1, self.cells, self.cells).float(),
                target=target,
                method=self.name,
                signed=True,
                verdicts=(MEASURED,) * len(images),
            ),
        )

    def _cover(
        self, images: Float[Tensor, "n c h w"], cell: Int[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        height, width = images.shape[2:]
        rows = torch.arange(height, device=images.device) * self.cells // height
        columns = torch.arange(width, device=images.device) * self.cells // width
        inside = (rows == cell[:, None] // self.cells)[:, :, None] & (
            columns == cell[:, None] % self.cells
        )[:, None, :]
        return images.masked_fill(inside[:, None], self.fill)
