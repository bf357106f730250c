"""What every explainer promises: a model and images in, attributions out, the model untouched."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.errors import ExplainerError
from models.networks import Classifier
from models.records import Attribution


class Explainer(ABC):
    """Explains a batch. Its settings are fields, its work leaves no trace in the model.

    Training flags, parameters, buffers, gradients and hooks are the same before and after, also
    when it raises. One sample's map does not depend on the others in its batch.
    """

    @abstractmethod
    def __call__(
        self, model: Classifier, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """Explain each image's score of its ``target`` class; several maps are finest first.

        Raises
        ------
        ExplainerError
            If the images hold NaN or infinity, a target is not the number of a class, or the model
            cannot be explained in this way.
        ShapeError
            If the images are not what the model was built for.
        """


def check_request(
    model: Classifier, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b_targets"]
) -> None:
    """Refuse images and targets that no map could be right for.

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
    wrong = target[(target < 0) | (target >= model.classes)]
    if len(wrong):
        raise ExplainerError(
            "BAD_TARGET",
            f"target {wrong.tolist()[0]} is not one of the model's {model.classes} classes; "
            f"they are numbered 0 to {model.classes - 1}",
        )
