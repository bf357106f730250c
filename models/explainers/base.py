"""What every explainer promises: a model and images in, attributions out, the model untouched.

Axes: b batch, c channel, h row, w column, k class.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.networks import Classifier
from models.records import Attribution, Prediction, Verdict
from models.scoped import differentiating, evaluating


class Explainer(ABC):
    """Explains a batch. Its settings are fields, its work leaves no trace in the model.

    Training flags, parameters, buffers, gradients and hooks are the same before and after, also
    when it raises. One sample's map does not depend on the others in its batch.
    """

    @abstractmethod
    def __call__(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """Explain each image's score of its ``target`` class; several maps are finest first.

        The model is a ``Classifier``, or any module that gives logits "b k"; methods that need
        more say so.

        Raises
        ------
        ExplainerError
            If the images hold NaN or infinity, a target is not the number of a class, or the model
            cannot be explained in this way.
        ShapeError
            If the images are not what the model was built for.
        """


def check_request(
    model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b_targets"]
) -> None:
    """Refuse images and targets that no map could be right for.

    A module that does not say how many classes it has is asked when its logits are there, by
    ``scores_of``.

    Raises
    ------
    ExplainerError
        If the images hold NaN or infinity, or the targets are not one class number per image.
    """
    if not bool(torch.isfinite(images).all()):
        raise ExplainerError(
            "IMAGES_NOT_FINITE",
            "an image holds NaN or infinity, so that every map of it would; mend the image",
        )
    if len(target) != len(images):
        raise ExplainerError(
            "TARGETS_DO_NOT_FIT",
            f"{len(target)} targets for {len(images)} images; give one class number per image",
        )
    if isinstance(model, Classifier):
        _check_classes(target, model.classes)


def logits_of(model: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """Logits of a ``Classifier`` or of a module that returns them alone.

    Raises
    ------
    ExplainerError
        If what the model gives is not one row of logits per image.
    """
    output = model(images)
    logits = output.logits if isinstance(output, Prediction) else output
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        seen = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ExplainerError(
            "NO_LOGITS",
            f"the model gives {seen} for {len(images)} images; explainers need one row of logits "
            "per image: wrap the model in a module that returns them",
        )
    return logits


def scores_of(
    model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """Logit of each image's target class.

    Raises
    ------
    ExplainerError
        If a target is not the number of a class, or the model gives no logits.
    """
    return select(logits_of(model, images), target)


def select(logits: Float[Tensor, "b k"], target: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Each row's logit of its target class.

    Raises
    ------
    ExplainerError
        If a target is not the number of a class.
    """
    _check_classes(target, logits.shape[1])
    return logits.gather(1, target.long()[:, None])[:, 0]


def _check_classes(target: Tensor, classes: int) -> None:
    wrong = target[(target < 0) | (target >= classes)]
    if len(wrong):
        raise ExplainerError(
            "BAD_TARGET",
            f"target {wrong.tolist()[0]} is not one of the model's {classes} classes; "
            f"they are numbered 0 to {classes - 1}",
        )


def check_at_least(least: int, **settings: int | float) -> None:
    """Refuse settings of an explainer that are too small.

    Raises
    ------
    ExplainerError
        If one of them is below ``least``.
    """
    for name, value in settings.items():
        if not value >= least:
            raise ExplainerError("BAD_SETTING", f"{name} is {value}; it must be {least} or more")


@contextmanager
def explaining(images: Float[Tensor, "b c h w"], model: nn.Module) -> Iterator[Tensor]:
    """Evaluate and differentiate, in whatever mode the caller is; yields images to work on."""
    with differentiating(), evaluating(model):
        yield images.clone() if images.is_inference() else images.detach()


def gradient_of(
    model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b c h w"]]:
    """Scores and their gradients with respect to the images, inside ``explaining``.

    Raises
    ------
    ExplainerError
        If no gradient reaches the images, and as ``scores_of``.
    """
    leaf = images.detach().clone().requires_grad_()
    scores = scores_of(model, leaf, target)
    gradient = None
    if scores.requires_grad:
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise ExplainerError(
            "NO_GRADIENT",
            "no gradient of the score reaches the images: the model detaches or quantises on the "
            "way; explain it by 'occlusion', which needs none",
        )
    return scores.detach(), gradient


def batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``count``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def seeded_noise(
    draws: int, images: Float[Tensor, "b c h w"], seed: int
) -> Iterator[Float[Tensor, "c h w"]]:
    """Draw standard normal pictures, the same for every sample, device and way of batching."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        drawn = torch.randn(images.shape[1:], generator=generator, dtype=torch.float32)
        yield drawn.to(images)


def ranges(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Greatest less smallest value of each picture, by which noise is scaled."""
    return (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))[:, None, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """What a residual must be for a map to be believed.

    Attributes
    ----------
    name
        Such as ``completeness``.
    sound, refused
        Up to ``sound`` the law holds; above ``refused`` the map must not be shown.
    says
        What the residual means, after the figure: "12 % ...".
    way_out
        What to change where the law fails.
    """

    name: str
    sound: float
    refused: float
    says: str
    way_out: str

    def judge(
        self, residual: Float[Tensor, " b"], *, why: Callable[[int], str] | None = None
    ) -> tuple[Verdict, ...]:
        """One verdict per sample; ``why`` may say more of a sample, whatever its word."""
        return tuple(self._judged(value, i, why) for i, value in enumerate(residual.tolist()))

    def _judged(self, value: float, i: int, why: Callable[[int], str] | None) -> Verdict:
        more = f" ({why(i)})" if why else ""
        said = f"{self.name}: {100 * value:.2g} % {self.says}{more}"
        if value <= self.sound:
            return Verdict(word="sound", reason=said)
        word = "doubtful" if value <= self.refused else "refused"  # NaN is refused
        return Verdict(word=word, reason=f"{said}; {self.way_out}")


def relative(
    error: Float[Tensor, "..."], size: Float[Tensor, "..."], *, floor: float = 1e-12
) -> Float[Tensor, "..."]:
    """Absolute error over absolute size, kept finite where the size is zero."""
    return error.abs() / size.abs().clamp_min(floor)
