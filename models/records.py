"""What networks give to losses and explainers, and explainers to metrics.

Axes: b batch (or sample), k class, h row, w column. Maps are listed finest first.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One forward pass.

    Attributes
    ----------
    logits
        Before softmax (multi-class) or sigmoid (multi-label).
    maps
        The attention maps that gated the features, finest first, each "b h w", non-negative and
        summing to 1 per sample; empty without attention. What is reported is what gates.
    penalty
        Consistency term of each sample, unweighted; zero for variants without one.
    """

    logits: Float[Tensor, "b k"]
    maps: tuple[Float[Tensor, "b _h _w"], ...]
    penalty: Float[Tensor, " b"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How far one map may be believed, by its own law.

    Attributes
    ----------
    word
        ``sound``: the law holds. ``doubtful``: the map is off by what the reason says. ``refused``:
        the map must not be shown as an explanation.
    reason
        One line for the caption: the law, the figure, and the way out where there is one.
    """

    word: Literal["sound", "doubtful", "refused"]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """One explanation per sample.

    Attributes
    ----------
    values
        Importance of each cell, on the explainer's own grid (not upsampled).
    target
        The class each map explains; -1 where the map is not tied to a class (attention).
    method
        The explainer's name in ``EXPLAINERS`` (plus the level, as ``attention-fine``).
    signed
        Whether negative values speak against the class.
    residual
        The map's own completeness error per sample, relative; None without such a law.
    law
        Which law the residual measures, such as ``completeness``; empty without one.
    verdicts
        One per sample; empty where the method was not checked.
    """

    values: Float[Tensor, "b h w"]
    target: Int[Tensor, " b"]
    method: str
    signed: bool
    residual: Float[Tensor, " b"] | None = None
    law: str = ""
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One metric for every sample; NaN where undefined (an empty mask), never a silent zero."""

    name: str
    per_sample: Float[Tensor, " b"]
    higher_is_better: bool
    category: Literal[
        "prediction", "localisation", "consistency", "faithfulness", "complexity", "robustness"
    ]
