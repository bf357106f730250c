"""What every explainer promises: a model and images in, attributions out, the model untouched.

Axes: b batch, c channel, h row, w column.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers.scoring import batches, check_request, explaining
from models.records import Attribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Explainer(ABC):
    """Explains a batch. Its settings are fields, its work leaves no trace in the model.

    Training flags, parameters, buffers, gradients and hooks are the same before and after, also
    when it raises; torch's random state, too. One sample's map does not depend on the others.

    Attributes
    ----------
    batch_size
        Pictures, or copies of them, that the model sees at once; it bounds the memory.
    least
        Smallest values that settings may have.

    Raises
    ------
    ExplainerError
        If a setting is too small.
    """

    least: ClassVar[Mapping[str, int | float]] = MappingProxyType({})
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name, least in {"batch_size": 1, **self.least}.items():
            check_at_least(least, **{name: getattr(self, name)})

    @final
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
        check_request(model, images, target)
        with explaining(images, model) as pictures:
            parts = [
                self.explain(model, pictures[part], target[part])
                for part in batches(len(pictures), self.batch_size)
            ]
        return tuple(_joined(levels) for levels in zip(*parts, strict=True))

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the method, as in ``EXPLAINERS``; maps of several levels add theirs."""

    @abstractmethod
    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """Explain at most ``batch_size`` pictures that were checked, inside ``explaining``."""


def check_at_least(least: int | float, **settings: int | float) -> None:
    """Refuse settings of an explainer that are too small.

    Raises
    ------
    ExplainerError
        If one of them is below ``least``.
    """
    for name, value in settings.items():
        if not value >= least:
            raise ExplainerError("BAD_SETTING", f"{name} is {value}; it must be {least:g} or more")


def _joined(parts: Sequence[Attribution]) -> Attribution:
    """One attribution of what was explained in parts."""
    residuals = [part.residual for part in parts if part.residual is not None]
    return replace(
        parts[0],
        values=torch.cat([part.values for part in parts]),
        target=torch.cat([part.target for part in parts]),
        residual=torch.cat(residuals) if residuals else None,
        verdicts=tuple(chain.from_iterable(part.verdicts for part in parts)),
    )
