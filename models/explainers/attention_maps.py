"""The maps that gated the features: what an attention model says of itself.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.laws import MASS, judged, mass_error
from models.networks import Classifier
from models.records import Attribution


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMaps(Explainer):
    """One map per gated level, each summing to 1; not tied to a class, so its target is -1."""

    @property
    def name(self) -> str:
        """``attention``."""
        return "attention"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """Give the model's own maps, named ``attention-fine``, ``attention-coarse``, ...

        Raises
        ------
        ExplainerError
            If the model has no attention.
        """
        names, maps = maps_of(model, images)
        return tuple(
            judged(
                values,
                torch.full_like(target, -1),
                method=f"{self.name}-{name}",
                law=MASS,
                residual=mass_error(values),
                signed=False,
            )
            for name, values in zip(names, maps, strict=True)
        )


def maps_of(
    model: nn.Module, images: Float[Tensor, "b c h w"]
) -> tuple[tuple[str, ...], tuple[Float[Tensor, "b _h _w"], ...]]:
    """Names and maps of a model's attention, finest first, in evaluation.

    Raises
    ------
    ExplainerError
        If the model has no attention.
    """
    names = model.map_names if isinstance(model, Classifier) else ()
    if not isinstance(model, Classifier) or not names:
        raise ExplainerError(
            "NO_ATTENTION",
            "the model has no attention maps (variant 'baseline'); explain it by 'gradcam', "
            "or train a variant with attention",
        )
    with torch.no_grad():
        return names, model(images).maps
