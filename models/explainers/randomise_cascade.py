"""What becomes of a map as a model's weights are drawn anew, stage by stage from the logits down.

A method that explains the model loses its map along the way. One whose map stays to the last step
shows the picture. The last step, in which all weights are drawn, is one round of
``models.explainers.verify``.

Axes: b batch, c channel, h row, w column.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.1.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import Explainer
from models.explainers.randomise import redrawn, stages_from_logits
from models.explainers.randomise_similarity import Likeness, likeness
from models.records import Attribution

UNTOUCHED = "untouched"


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeStep:
    """Maps of one level after the weights of the first ``step`` stages were drawn anew.

    Attributes
    ----------
    step
        0 is the model as it was trained.
    stage
        The last that was drawn; ``untouched`` at step 0.
    method
        Name of the map: the method's and, where it gives several, the level's.
    likeness
        Of each picture's map to that of step 0.
    """

    step: int
    stage: str
    method: str
    likeness: Likeness = field(repr=False)

    def means(self) -> dict[str, float]:
        """Return the means over the pictures whose maps are finite; NaN where none are."""
        return {
            "rank_correlation": float(self.likeness.ranks.nanmean()),
            "magnitude_rank_correlation": float(self.likeness.magnitudes.nanmean()),
            "structural_similarity": float(self.likeness.structure.nanmean()),
        }


def cascade(
    explainer: Explainer,
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    targets: Int[Tensor, " b"],
    *,
    generator: torch.Generator,
) -> tuple[CascadeStep, ...]:
    """Explain with ever more random weights; what was drawn at one step stays at the next.

    The model is given back as found, also when the method raises. Memory is that of the maps of one
    step beside those of the first.

    Parameters
    ----------
    generator
        On the processor; weights are drawn from it.

    Returns
    -------
    tuple of CascadeStep
        Step by step, and within a step level by level, finest first.

    Raises
    ------
    ExplainerError, ShapeError
        As the method itself.
    """
    size = (images.shape[2], images.shape[3])
    first = explainer(model, images, targets)
    found = _compared(0, UNTOUCHED, first, first, size)
    with ExitStack() as drawn:
        for step, (stage, weights) in enumerate(stages_from_logits(model).items(), start=1):
            drawn.enter_context(redrawn(weights, generator=generator))
            found += _compared(step, stage, first, explainer(model, images, targets), size)
    return tuple(found)


def _compared(
    step: int,
    stage: str,
    first: Sequence[Attribution],
    now: Sequence[Attribution],
    size: tuple[int, int],
) -> list[CascadeStep]:
    return [
        CascadeStep(
            step=step,
            stage=stage,
            method=before.method,
            likeness=likeness(before.values, after.values, size=size),
        )
        for before, after in zip(first, now, strict=True)
    ]
