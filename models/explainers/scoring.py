"""Scores of a model's classes and their gradients, and the requests that have none.

Axes: b batch, c channel, h row, w column, k class.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.networks import Classifier
from models.records import Prediction
from models.scoped import differentiating, evaluating


def check_request(model: nn.Module, images: Tensor, target: Int[Tensor, " b_targets"]) -> None:
    """Refuse images and targets that no map could be right for.

    A module that does not say how many classes it has is asked when its logits are there, by
    ``scores_of``.

    Raises
    ------
    ExplainerError
        If the images are not floating-point "b c h w", there are none, one holds NaN or infinity,
        or the targets are not one class number per image.
    """
    _check_images(images)
    if len(target) != len(images):
        raise ExplainerError(
            "TARGETS_DO_NOT_FIT",
            f"{len(target)} targets for {len(images)} images; give one class number per image",
        )
    if isinstance(model, Classifier):
        _check_classes(target, model.classes)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not len(images):
        raise ExplainerError(
            "IMAGES_DO_NOT_FIT",
            f"images have the sizes {list(images.shape)}; explainers take one or more with the "
            "axes batch, channel, row, column: pass one picture as picture[None]",
        )
    if not images.is_floating_point():
        raise ExplainerError(
            "IMAGES_NOT_FLOAT",
            f"images are {images.dtype}, which has no gradients; normalise them as in training",
        )
    if not bool(torch.isfinite(images).all()):
        raise ExplainerError(
            "IMAGES_NOT_FINITE",
            "an image holds NaN or infinity, so that every map of it would; mend the image",
        )


def logits_of(model: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """Logits of a ``Classifier`` or of a module that returns them alone.

    Raises
    ------
    ExplainerError
        If the model cannot take the images, or what it gives is not one row of logits per image.
    """
    try:
        output = model(images)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        sizes = " x ".join(map(str, images.shape[1:]))
        first = str(error).strip().partition("\n")[0]
        raise ExplainerError(
            "MODEL_FAILS",
            f"the model fails on images of {sizes} (channels, rows, columns): {first}; give "
            "images of the size that it was built for",
        ) from error
    return logits_in(output, count=len(images))


def logits_in(output: object, *, count: int) -> Float[Tensor, "b k"]:
    """Logits in what a model gave for ``count`` images.

    Raises
    ------
    ExplainerError
        If there is not one row of them per image.
    """
    logits = output.logits if isinstance(output, Prediction) else output
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        seen = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ExplainerError(
            "NO_LOGITS",
            f"the model gives {seen} for {count} images; explainers need one row of logits "
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
        If a target is not the number of a class, and as ``logits_of``.
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
