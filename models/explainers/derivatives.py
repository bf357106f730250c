"""Maps together with their derivative in the picture, for what changes a picture to change a map.

An explainer gives numbers; here are the same maps with the way back from them to the pixels.
Memory holds one ``batch_size`` of pictures or copies of them.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.convex import consistent_maps
from models.errors import ExplainerError
from models.explainers.attention_maps import AttentionMaps
from models.explainers.base import Explainer
from models.explainers.gradcam import GradCam, as_cells, explained_layer
from models.explainers.gradients import GradientTimesInput, SimpleGradient, SmoothGrad
from models.explainers.integrated import IntegratedGradients
from models.explainers.moreau import MoreauGrad
from models.explainers.projected_maps import ProjectedMaps
from models.explainers.scoring import batches, scores_of
from models.explainers.smoothed import SmoothedScore, hessian_product
from models.networks import Classifier

STEPS_ON_THE_WAY = 16  # of integrated gradients; completeness is no aim here
CG_STEPS, CG_TOLERANCE = 10, 1e-2  # a direction to go in needs no more digits
Through = Literal["implicit", "masked"]
"""How MoreauGrad is differentiated: truly, or as if its proximal step did not move."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDerivative:
    """A map, and weights of its cells pulled back to the pixels.

    Attributes
    ----------
    values
        The map.
    pull
        The gradient, in the pictures, of the weighted sum of the map's cells.
    """

    values: Float[Tensor, "b h w"]
    pull: Callable[[Float[Tensor, "b h w"]], Float[Tensor, "b c h w"]]


def differentiable(explainer: Explainer) -> bool:
    """Tell whether the maps of an explainer have a derivative here."""
    return type(explainer) in DERIVATIVES


def map_derivative(
    explainer: Explainer,
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
    *,
    level: int = 0,
    through: Through = "implicit",
) -> MapDerivative:
    """Find the map of one level and its derivative, inside ``explaining``.

    The noise and the baseline of a method stay where they are; integrated gradients take 16 equal
    steps.

    Raises
    ------
    ExplainerError
        If the explainer's maps have no derivative here, and as the explainer itself.
    """
    if not differentiable(explainer):
        raise ExplainerError(
            "NO_MAP_DERIVATIVE",
            f"the maps of '{explainer.name}' have no derivative to follow; attack them by a "
            "'transfer' from the gradient or by 'search'",
        )
    return DERIVATIVES[type(explainer)](explainer, model, images, target, level, through)


def _gradient(
    explainer: Any, model: nn.Module, images: Tensor, target: Tensor, *_: Any
) -> MapDerivative:
    """Of the score's gradient, or of its mean over noise."""
    smooth = isinstance(explainer, SmoothGrad)
    score = SmoothedScore.around(
        model,
        images,
        target,
        spread=explainer.spread if smooth else 0.0,
        draws=explainer.draws if smooth else 1,
        seed=explainer.seed if smooth else 0,
        batch_size=explainer.batch_size,
    )
    gradient = score.gradient(images, torch.arange(len(images), device=images.device))[0]
    return MapDerivative(
        values=gradient.sum(1),
        pull=lambda weights: score.hessian_product(images, _on_channels(weights, images)),
    )


def _gradient_times_input(
    explainer: Any, model: nn.Module, images: Tensor, target: Tensor, *_: Any
) -> MapDerivative:
    score = SmoothedScore.around(
        model, images, target, spread=0.0, draws=1, seed=0, batch_size=explainer.batch_size
    )
    gradient = score.gradient(images, torch.arange(len(images), device=images.device))[0]

    def pull(weights: Tensor) -> Tensor:
        every = _on_channels(weights, images)
        return gradient * every + score.hessian_product(images, images * every)

    return MapDerivative(values=(gradient * images).sum(1), pull=pull)


def _integrated(
    explainer: Any, model: nn.Module, images: Tensor, target: Tensor, *_: Any
) -> MapDerivative:
    """With g the mean gradient on the way and w the way, the map is g w; so is its change."""
    whole = images - explainer.baseline
    places = (torch.arange(STEPS_ON_THE_WAY) + 0.5) / STEPS_ON_THE_WAY

    def along(vector: Tensor | None) -> Tensor:
        """Mean of the gradients, or of their changes along a vector as the picture moves."""
        total = torch.zeros_like(images)
        for place in places.tolist():
            for part in batches(len(images), explainer.batch_size):
                points = explainer.baseline + place * whole[part]
                if vector is None:
                    leaf = points.requires_grad_()
                    scores = scores_of(model, leaf, target[part])
                    total[part] += torch.autograd.grad(scores.sum(), leaf)[0]
                else:
                    bent = hessian_product(model, points, target[part], vector[part])
                    total[part] += place * bent
        return total / STEPS_ON_THE_WAY

    gradient = along(None)

    def pull(weights: Tensor) -> Tensor:
        every = _on_channels(weights, images)
        return gradient * every + along(whole * every)

    return MapDerivative(values=(gradient * whole).sum(1), pull=pull)


def _moreau(
    explainer: Any,
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    _level: int,
    through: Through,
) -> MapDerivative:
    implicit = explainer.linearised(model, images, target, steps=CG_STEPS, tolerance=CG_TOLERANCE)

    def pull(weights: Tensor) -> Tensor:
        every = _on_channels(weights, images)
        return implicit.pull_masked(every) if through == "masked" else implicit.pull(every)[0]

    return MapDerivative(values=implicit.moreau.sum(1), pull=pull)


def _grad_cam(
    explainer: Any, model: nn.Module, images: Tensor, target: Tensor, *_: Any
) -> MapDerivative:
    name, layer = explained_layer(model, explainer.layer)
    leaf, given = images.detach().clone().requires_grad_(), []

    def keep(_layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        given.append(output)
        return output.clone()  # what follows may work in place

    handle = layer.register_forward_hook(keep)
    try:
        score = scores_of(model, leaf, target).sum()
    finally:
        handle.remove()
    (slopes,) = torch.autograd.grad(score, given[-1], create_graph=True)
    features, slopes = (as_cells(name, model, leaf, part) for part in (given[-1], slopes))
    weights = slopes.mean((2, 3), keepdim=True)
    return _of_graph((weights * features).sum(1).clamp_min(0), leaf)


def _attention(
    explainer: Any, model: nn.Module, images: Tensor, _target: Tensor, level: int, _through: Through
) -> MapDerivative:
    """Take the maps that gate, or their projection; the explainer itself finds out without any."""
    leaf = images.detach().clone().requires_grad_()
    maps = model(leaf).maps if isinstance(model, Classifier) else ()
    if isinstance(explainer, ProjectedMaps):
        maps = consistent_maps(maps)
    return _of_graph(maps[level], leaf)


def _of_graph(values: Tensor, leaf: Tensor) -> MapDerivative:
    def pull(weights: Tensor) -> Tensor:
        found = None
        if values.requires_grad:
            (found,) = torch.autograd.grad(values, leaf, weights.to(values), allow_unused=True)
        return torch.zeros_like(leaf) if found is None else found

    return MapDerivative(values=values.detach(), pull=pull)


def _on_channels(weights: Tensor, images: Tensor) -> Tensor:
    return weights[:, None].to(images).expand_as(images)


DERIVATIVES: Mapping[type[Explainer], Callable[..., MapDerivative]] = MappingProxyType(
    {
        SimpleGradient: _gradient,
        SmoothGrad: _gradient,
        GradientTimesInput: _gradient_times_input,
        IntegratedGradients: _integrated,
        MoreauGrad: _moreau,
        GradCam: _grad_cam,
        AttentionMaps: _attention,
        ProjectedMaps: _attention,
    }
)
"""Kind of explainer -> how its maps and their derivative are found."""
