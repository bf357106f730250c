"""What values a picture can have before the data's own normalisation, and how far it may move.

Axes: b batch, c channel, h row, w column.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from models.errors import AttackError


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What values a picture can have, and what a radius of 1 is.

    Attributes
    ----------
    scale, shift
        A measured value is ``shift + scale * x`` for a normalised value x, per channel.
    low, high
        Least and largest measured value.
    unit
        Measured units in a radius of 1: ``high - low`` if not given.

    Raises
    ------
    AttackError
        ``BAD_DOMAIN`` if they are not one number per channel, a scale or unit is not positive, or
        the range is empty.
    """

    scale: Float[Tensor, " _c"]
    shift: Float[Tensor, " _c"]
    low: Float[Tensor, " _c"]
    high: Float[Tensor, " _c"]
    unit: Float[Tensor, " _c"] | None = None

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        sizes = {name: len(values) for name, values in given.items() if values is not None}
        if len(set(sizes.values())) > 1:
            raise AttackError(
                "BAD_DOMAIN", f"{sizes} numbers are given; give one of each per channel"
            )
        if not bool((self.low < self.high).all()):
            raise AttackError(
                "BAD_DOMAIN",
                f"the range is {self.low.tolist()} to {self.high.tolist()}, in which nothing can "
                "change: give the least and the largest value of each channel",
            )
        if not bool(((self.scale > 0) & (self.units > 0)).all()):
            raise AttackError(
                "BAD_DOMAIN",
                f"scale is {self.scale.tolist()} and unit {self.units.tolist()}; both are above 0 "
                "and finite: an unbounded range needs a unit",
            )

    @property
    def units(self) -> Float[Tensor, " c"]:
        """Measured units in a radius of 1."""
        return self.high - self.low if self.unit is None else self.unit

    @property
    def step(self) -> Float[Tensor, "c 1 1"]:
        """Normalised units in a radius of 1."""
        return _of_channels(self.units / self.scale)

    def to(self, images: Float[Tensor, "b c h w"]) -> "Domain":
        """Move to the pictures' device and type.

        Raises
        ------
        AttackError
            ``BAD_DOMAIN`` if the pictures have another number of channels.
        """
        if len(self.scale) != images.shape[1]:
            raise AttackError(
                "BAD_DOMAIN",
                f"the range has {len(self.scale)} channels and the pictures {images.shape[1]}; "
                "give each channel its own",
            )
        if self.scale.device == images.device and self.scale.dtype == images.dtype:
            return self
        return Domain(
            scale=self.scale.to(images),
            shift=self.shift.to(images),
            low=self.low.to(images),
            high=self.high.to(images),
            unit=self.units.to(images),
        )

    def bounds(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Least and largest normalised values; those of a picture that is outside already count.

        Random contrast moves training pictures out of the range: an attack moves none further.
        """
        low = _of_channels((self.low - self.shift) / self.scale)
        high = _of_channels((self.high - self.shift) / self.scale)
        return torch.minimum(images, low), torch.maximum(images, high)

    def limited(
        self, images: Float[Tensor, "b c h w"], delta: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Shorten each value of a perturbation, in units of the radius, to what the range allows.

        No value grows, so that a perturbation stays in whichever ball it was in.
        """
        low, high = self.bounds(images)
        return delta.clamp((low - images) / self.step, (high - images) / self.step)

    def moved(
        self, images: Float[Tensor, "b c h w"], delta: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Normalised pictures changed by a perturbation in units of the radius."""
        return (images + delta * self.step).clamp(*self.bounds(images))


def _of_channels(values: Tensor) -> Tensor:
    return values[:, None, None]
