"""What a changed picture must obey to count as an attack on the explanation alone.

Axes: b batch, c channel, h row, w column, k class.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.errors import AttackError

Decision = Literal["class", "set"]
"""What the network says of a picture: its most probable class, or every class one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A ball around every picture, a range of values, and the decision that must stay.

    Attributes
    ----------
    radius
        Euclidean length of the greatest change of a picture, in the units of the images.
    low, high
        Smallest and greatest value that a picture may have, for each picture and channel or for
        several at once.
    decision
        ``class``: the most probable class stays. ``set``: every logit keeps its sign.

    Raises
    ------
    AttackError
        If the radius is no length.
    """

    radius: float
    low: Float[Tensor, "#b #c 1 1"] = field(repr=False)
    high: Float[Tensor, "#b #c 1 1"] = field(repr=False)
    decision: Decision = "class"

    def __post_init__(self) -> None:
        if not 0 <= self.radius < float("inf"):
            raise AttackError(
                "BAD_RADIUS", f"radius is {self.radius}; the length of a change is 0 or more"
            )

    def check(self, images: Float[Tensor, "b c h w"]) -> None:
        """Refuse pictures that break the range themselves: no attack could start from them.

        Raises
        ------
        AttackError
            If one has a value outside.
        """
        outside = (images < self.low) | (images > self.high)
        if bool(outside.any()):
            raise AttackError(
                "OUTSIDE_RANGE",
                f"a picture has the value {float(images[outside][0]):g}, outside of the range that "
                "attacked pictures are kept in: give the range of the data after normalisation",
            )

    def within(
        self, images: Float[Tensor, "b c h w"], delta: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Bring changed pictures into the range, then straight back into the ball.

        Both sets are convex and hold the picture, so that the second step does not leave the first.
        """
        inside = (images + delta).clamp(self.low, self.high)
        change = inside - images
        length = change.flatten(1).norm(dim=1)[:, None, None, None]
        shrink = (self.radius / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1)
        return (images + shrink * change).clamp(self.low, self.high)

    def kept(self, before: Float[Tensor, "b k"], after: Float[Tensor, "b k"]) -> Bool[Tensor, " b"]:
        """Tell whether the network says the same of a picture and of the changed one."""
        if self.decision == "set":
            return ((before > 0) == (after > 0)).all(dim=1)
        return before.argmax(dim=1) == after.argmax(dim=1)
