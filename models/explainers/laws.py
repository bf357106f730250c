"""What a method promises of its maps, how far a map keeps it, and the verdict that follows.

Axes: b batch, h row, w column.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.records import Attribution, Verdict


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


MASS = Law(
    name="mass",
    sound=1e-3,
    refused=1e-2,
    says="between the map's sum and 1",
    way_out="the model's attention is no distribution: explain it by 'gradcam'",
)


def judged(
    values: Float[Tensor, "b h w"],
    target: Int[Tensor, " b"],
    *,
    method: str,
    law: Law,
    residual: Float[Tensor, " b"],
    signed: bool = True,
    verdicts: Sequence[Verdict] | None = None,
) -> Attribution:
    """Put a map, the residual of its law and its verdicts (the law's, if not given) together."""
    return Attribution(
        values=values.float(),
        target=target,
        method=method,
        signed=signed,
        residual=residual.float(),
        law=law.name,
        verdicts=law.judge(residual) if verdicts is None else tuple(verdicts),
    )


def relative(
    error: Float[Tensor, "..."], size: Float[Tensor, "..."], *, floor: float = 1e-12
) -> Float[Tensor, "..."]:
    """Absolute error over absolute size, kept finite where the size is zero."""
    return error.abs() / size.abs().clamp_min(floor)


def mass_error(values: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """How far each map's sum is from 1."""
    return (values.sum((1, 2), dtype=torch.float64) - 1).abs().to(values)
