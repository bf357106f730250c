"""Gradient-weighted class activation maps of any layer.

References
----------
Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
localization", ICCV 2017, eq. (1) and (2).
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError, unknown
from models.explainers.base import Explainer
from models.explainers.scoring import scores_of
from models.explainers.transformer import is_transformer
from models.networks import Classifier
from models.records import Attribution
from models.scoped import output_as_leaf
from models.vit import PATCH


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GradCam(Explainer):
    """Channels of one layer, weighted by the mean gradient of the target's logit, rectified.

    With activations A and logit y of the target class: relu(sum_c a_c A_c), where a_c is the mean
    over cells of dy/dA_c. The gradient is the whole one: it also flows through attention gates. A
    layer that is walked twice (variants with a first look) is explained at its last walk, which
    is the one that is classified.

    Attributes
    ----------
    layer
        Name of a module, as in ``model.named_modules()``, or of a stage of the trunk; empty is the
        trunk's last stage that has a map (of a module that is no ``Classifier``, its last part).
        Of a transformer the patches' tokens are the cells; behind its last block no patch has any
        part in the prediction.
    """

    layer: str = ""

    @property
    def name(self) -> str:
        """``gradcam``."""
        return "gradcam"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One rectified map on the layer's own grid.

        Raises
        ------
        ExplainerError
            If there is no such layer, it does not give "b c h w" features, or it has no part in the
            prediction.
        """
        name, layer = explained_layer(model, self.layer)
        with output_as_leaf(layer) as leaves:
            score = scores_of(model, images, target).sum()
            found = _last(name, leaves)
            gradient = _gradient(name, score, found)
        features, slopes = (as_cells(name, model, images, part) for part in (found, gradient))
        weights = slopes.mean((2, 3), keepdim=True)
        values = (weights * features.detach()).sum(1).relu()
        return (Attribution(values=values.float(), target=target, method=self.name, signed=False),)


def explained_layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Find a layer by ``GradCam.layer``; with the name that it was found by.

    Raises
    ------
    ExplainerError
        If there is no such layer.
    """
    layers = dict(model.named_modules())
    stages = model.trunk.names if isinstance(model, Classifier) else tuple(filter(None, layers))
    name = name or stages[-3 if is_transformer(model) else -1]
    for candidate in (name, f"trunk.{name}"):
        if candidate and candidate in layers:
            return candidate, layers[candidate]
    raise ExplainerError("UNKNOWN_LAYER", unknown("layer", name, stages))


def _last(name: str, leaves: list[Tensor]) -> Tensor:
    if not leaves:
        raise _without_map(name, "gives no tensor")
    return leaves[-1]


def as_cells(
    name: str, model: nn.Module, images: Float[Tensor, "b c h w"], features: Tensor
) -> Float[Tensor, "b d _h _w"]:
    """Features as a map; of a transformer's tokens those of the patches.

    Raises
    ------
    ExplainerError
        If they have no cells.
    """
    if features.ndim == 4:
        return features
    grid = images.shape[2] // PATCH, images.shape[3] // PATCH
    if not is_transformer(model) or features.shape[1:-1] != (1 + grid[0] * grid[1],):
        raise _without_map(name, f"gives {features.ndim} axes")
    return features[:, 1:].transpose(1, 2).unflatten(2, grid)


def _without_map(name: str, seen: str) -> ExplainerError:
    return ExplainerError(
        "LAYER_WITHOUT_MAP",
        f"layer '{name}' {seen}; GradCAM needs features with the axes batch, channel, row, "
        "column, such as a stage of the trunk",
    )


def _gradient(name: str, score: Tensor, features: Tensor) -> Tensor:
    gradient = None
    if score.requires_grad:
        (gradient,) = torch.autograd.grad(score, features, allow_unused=True)
    if gradient is None:
        raise ExplainerError(
            "LAYER_WITHOUT_EFFECT",
            f"layer '{name}' has no part in the prediction; name a stage of the trunk",
        )
    return gradient
