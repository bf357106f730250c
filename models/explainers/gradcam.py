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
from models.explainers.base import Explainer, check_request, scores_of
from models.networks import Classifier
from models.records import Attribution
from models.scoped import differentiating, evaluating, output_as_leaf


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
        trunk's last stage (of a module that is no ``Classifier``, its last part).
    """

    layer: str = ""

    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One rectified map on the layer's own grid.

        Raises
        ------
        ExplainerError
            If there is no such layer, it does not give "b c h w" features, or it has no part in the
            prediction, and as ``Explainer``.
        """
        check_request(model, images, target)
        name, layer = _layer(model, self.layer)
        with differentiating(), evaluating(model), output_as_leaf(layer) as leaves:
            images = images.clone() if images.is_inference() else images
            score = scores_of(model, images, target).sum()
            features = _last(name, leaves)
            gradient = _gradient(name, score, features)
        weights = gradient.mean((2, 3), keepdim=True)
        values = (weights * features.detach()).sum(1).relu()
        return (Attribution(values=values.float(), target=target, method="gradcam", signed=False),)


def _layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    layers = dict(model.named_modules())
    stages = model.trunk.names if isinstance(model, Classifier) else tuple(filter(None, layers))
    name = name or stages[-1]
    for candidate in (name, f"trunk.{name}"):
        if candidate and candidate in layers:
            return candidate, layers[candidate]
    raise ExplainerError("UNKNOWN_LAYER", unknown("layer", name, stages))


def _last(name: str, leaves: list[Tensor]) -> Tensor:
    if not leaves or leaves[-1].ndim != 4:
        seen = f"gives {leaves[-1].ndim} axes" if leaves else "gives no tensor"
        raise ExplainerError(
            "LAYER_WITHOUT_MAP",
            f"layer '{name}' {seen}; GradCAM needs features with the axes batch, channel, row, "
            "column, such as a stage of the trunk",
        )
    return leaves[-1]


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
