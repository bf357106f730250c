"""Small changes of a picture that raise the loss most: where they live, and how they are found.

An attack acts on what the scanner measured, before the data's own normalisation: a change is
counted in shares of the valid range (or in standard deviations where pictures are scores), and no
picture leaves that range. The model is looked at as it classifies new pictures: batch normalisation
by its running statistics, without dropout. So the gradient is that of the sample alone, statistics
stay as they are, no random number is drawn, and no process waits for another.

Axes: b batch, c channel, h row, w column, k class.

References
----------
Goodfellow, Shlens, Szegedy, "Explaining and harnessing adversarial examples", ICLR 2015.
Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
Bredies, Lorenz, Maass, "A generalized conditional gradient method and its connection to an
iterative shrinkage method", Computational Optimization and Applications 42, 2009.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from models.conjugates import ConjugatePair, unit_length
from models.domain import Domain
from models.errors import AttackError
from models.losses import sample_losses
from models.records import Prediction
from models.scoped import differentiating

COTANGENT = 2.0**10
"""Gradient in the logits that is sent back in place of the loss's own: far from the smallest
numbers of float16, however sure the model is."""

Form = Literal["conditional", "ascent"]


def plainly(images: Tensor, model: nn.Module) -> Prediction:
    """Call a model; training calls it under autocast."""
    return model(images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A model and the truth that it is to be led away from.

    Attributes
    ----------
    labels
        One class per sample, or one 0 or 1 per sample and class.
    loss
        Of each sample, from the model's prediction and the labels; the classification loss alone
        where not given: what disagreement between attention levels costs is not attacked.
    forward
        Calls the model, on pictures as the first argument.
    """

    model: nn.Module
    labels: Num[Tensor, "b ..."]
    loss: Callable[[Prediction, Tensor], Float[Tensor, " b"]] = sample_losses
    forward: Callable[[Tensor, nn.Module], Prediction] = plainly


class Seen(NamedTuple):
    """One look at a model: logits, losses, and the gradient of each sample's own loss."""

    logits: Float[Tensor, "b k"]
    losses: Float[Tensor, " b"]
    gradient: Float[Tensor, "b c h w"]


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Let normalisation and dropout act as on new pictures; each part gets its own mode back.

    Everything else, such as gates, is as in training.
    """
    parts = [part for part in model.modules() if isinstance(part, _NormBase | _DropoutNd)]
    modes = [part.training for part in parts]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part, training in zip(parts, modes, strict=True):
            part.training = training


def look(victim: Victim, images: Float[Tensor, "b c h w"], *, differentiable: bool = False) -> Seen:
    """Logits and losses of normalised pictures, and the gradient of the losses in them.

    No parameter's ``grad`` is touched. Logits and losses are float64, the gradient is in the
    pictures' own type. A sample whose gradient overflows float16 has the gradient zero: it is not
    moved.

    Parameters
    ----------
    differentiable
        Whether the gradient is to be differentiated again: self-attention is then computed as a
        matrix, for its faster kernels have no second derivative.
    """
    whole_matrix = sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext()
    with differentiating(), resting(victim.model), whole_matrix:
        leaf = images.detach().requires_grad_()
        logits, losses = _judged(victim, leaf)
        (outer,) = torch.autograd.grad(losses.sum(), logits, create_graph=differentiable)
        peak = outer.detach().abs().amax(1, keepdim=True)
        least = COTANGENT * torch.finfo(peak.dtype).tiny
        peak = torch.where(peak > least, peak / COTANGENT, torch.ones_like(peak))
        (inner,) = torch.autograd.grad(
            logits, leaf, outer / peak, create_graph=differentiable, materialize_grads=True
        )
        gradient = inner.to(images.dtype) * peak.to(images.dtype)[:, :, None, None]
        if not differentiable:
            whole = gradient.isfinite().flatten(1).all(1)[:, None, None, None]
            gradient = torch.where(whole, gradient, torch.zeros_like(gradient))
    return Seen(logits=logits.detach(), losses=losses.detach(), gradient=gradient)


def _judged(victim: Victim, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float64, in which a sure model's probability is not yet 1, and losses."""
    prediction = victim.forward(images, victim.model)
    logits = prediction.logits.double()
    return logits, victim.loss(replace(prediction, logits=logits), victim.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """How a perturbation is found.

    Attributes
    ----------
    pair
        What perturbations there are and what they cost.
    radius
        Of the random start.
    form
        ``conditional``: move towards the maximiser for the gradient at hand, all the way in the
        first step and 2 / (k + 2) of it in step k = 0, 1, ...; it needs no step size, and what a
        perturbation costs is accounted for exactly. ``ascent``: steps of ``step_size`` times the
        maximiser, projected back into the set.
    steps
        Gradients taken; one step is the maximiser itself.
    step_size
        As a share of the radius.
    random_start
        Begin anywhere in the set instead of at the picture.
    restarts
        Independent tries of ``attacked_logits``, all but the first from a random start.

    Raises
    ------
    AttackError
        ``BAD_ATTACK`` if a count is not positive, or the step size is.
    """

    pair: ConjugatePair
    radius: float
    form: Form = "conditional"
    steps: int = 1
    step_size: float = 1.0
    random_start: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "step_size"):
            value: Any = getattr(self, name)
            if value <= 0:
                raise AttackError(
                    "BAD_ATTACK", f"{name} is {value}; it must be above 0, or nothing is tried"
                )


def perturbed(
    images: Float[Tensor, "b c h w"],
    victim: Victim,
    attack: Attack,
    *,
    domain: Domain,
    start: Float[Tensor, "b c h w"] | None = None,
    looking: Callable[[Tensor], Seen] | None = None,
) -> Float[Tensor, "b c h w"]:
    """Change normalised pictures within the attack's set and the domain's range.

    Parameters
    ----------
    start
        Numbers from -1 to 1 that a random start is made of, as ``starts`` draws them; the pictures
        themselves where not given.
    looking
        Looks at pictures in place of ``look``, once for every step.
    """
    domain = domain.to(images)
    seen = looking or (lambda pictures: look(victim, pictures))
    delta = torch.zeros_like(images)
    if start is not None:
        delta = domain.limited(images, attack.pair.project(attack.radius * start.to(images)))
    for k in range(attack.steps):
        gradient = seen(domain.moved(images, delta)).gradient * domain.step
        aim = attack.pair.maximiser(gradient)
        if attack.form == "conditional":
            delta = torch.lerp(delta, domain.limited(images, aim), 2 / (k + 2))
        else:
            moved = attack.pair.project(delta + attack.step_size * aim)
            delta = domain.limited(images, moved)
    return domain.moved(images, delta)


def guided(
    images: Float[Tensor, "b c h w"],
    victim: Victim,
    masks: Float[Tensor, "_b _h _w"],
    *,
    radius: float,
    domain: Domain,
) -> Float[Tensor, "b c h w"]:
    """Move against the model outside a mask and with it inside: radius (1 - 2 mask) g / ||g||.

    Training on them pays for gradients outside and is paid for gradients inside. A picture with an
    empty mask is moved against the model everywhere. Not a conjugate pair: 1 - 2 mask has no sign.

    Parameters
    ----------
    masks
        From 0 to 1; of all channels alike.

    Raises
    ------
    AttackError
        ``BAD_MASKS`` if they have other sizes than the pictures.

    References
    ----------
    Gong, Dou, Farnia, CVPR 2024, where the mask is the gaze of a human observer.
    """
    if masks.shape != (len(images), *images.shape[2:]):
        raise AttackError(
            "BAD_MASKS",
            f"masks are {list(masks.shape)} for pictures of {list(images.shape)}; give one of the "
            "picture's rows and columns for each",
        )
    domain = domain.to(images)
    direction = unit_length(look(victim, images).gradient * domain.step)
    delta = radius * (1 - 2 * masks.to(images)[:, None]) * direction
    return domain.moved(images, domain.limited(images, delta))


def gradient_penalty(
    images: Float[Tensor, "b c h w"], victim: Victim, pair: ConjugatePair, *, domain: Domain
) -> Float[Tensor, " b"]:
    """Penalty on the gradient of each sample's loss, differentiable in the model's parameters.

    It is what training against the pair's perturbations is to first order.
    """
    domain = domain.to(images)
    return pair.h(look(victim, images, differentiable=True).gradient * domain.step)


def starts(shape: tuple[int, ...], *, generator: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Uniform numbers from -1 to 1 for random starts, on the generator's device."""
    return 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
