"""Whether one thing is better than another: over patients, over trainings, and in one word.

Two intervals answer two questions. The one over patients (the bootstrap that all scores share)
says whether other patients would change the answer; it holds for the very runs that were measured.
The one over trainings (Student's t over the paired seeds) says whether training again would.

Axes: r resample.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from pipelines.comparison_scores import MeanScore
from pipelines.scores import INTERVAL

Word = Literal["holds", "holds for these runs only", "not shown", "does not hold", "cannot be said"]
WORST_FIRST: tuple[Word, ...] = (
    "does not hold",
    "not shown",
    "cannot be said",
    "holds for these runs only",
    "holds",
)
MEANINGS: Mapping[Word, str] = {
    "holds": "both intervals lie above the line: neither other patients nor training again would "
    "be likely to change it",
    "holds for these runs only": "the interval over patients lies above the line, the one over "
    "trainings does not: training again may change it",
    "not shown": "the interval over patients holds the line: too few patients, or no difference",
    "does not hold": "the interval over patients lies below the line: it is the other way round",
    "cannot be said": "something is missing: a run, a measure, or a second seed",
}
"""Verdict -> what it means. The line is zero, or minus the margin of a claim of "no worse"."""
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A score with what pairs it.

    Attributes
    ----------
    name
        Of the entry or the model.
    seeds
        Those of the values; empty for what no training made, which then stands beside every seed.
    """

    name: str
    score: MeanScore = field(repr=False)
    seeds: tuple[int, ...]

    @property
    def by_seed(self) -> dict[int, float]:
        """Seed -> value; nothing where the two do not fit."""
        if len(self.seeds) != len(self.score.values):
            return {}
        return dict(zip(self.seeds, self.score.values, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantage:
    """How much better one thing is than another, positive in favour of the first.

    Attributes
    ----------
    value
        Difference of the means over seeds.
    low, high
        95 % interval over patients; NaN without resamples.
    p
        One-sided, that it is no better than the margin allows; NaN without resamples.
    seeds
        How many trainings were paired.
    seeds_mean, seeds_low, seeds_high
        Mean over the paired seeds with its 95 % t-interval; NaN below two.
    margin
        By how much the first may be worse.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    seeds_mean: float
    seeds_low: float
    seeds_high: float
    margin: float

    @property
    def verdict(self) -> Word:
        """Say in a word whether the first is better, or no worse than the margin allows."""
        if self.seeds < 2 or not math.isfinite(self.low + self.high):
            return "cannot be said"
        if self.high < -self.margin:
            return "does not hold"
        if not self.low > -self.margin:
            return "not shown"
        return "holds" if self.seeds_low > -self.margin else "holds for these runs only"

    @property
    def reason(self) -> str:
        """Say what is missing; "" where nothing is."""
        if not math.isfinite(self.low + self.high):
            return "no interval over patients"
        if self.seeds < 2:
            return "one seed: what training again would change is not known"
        return ""


def advantage(
    first: Measured, second: Measured, *, higher_is_better: bool, margin: float = 0.0
) -> Advantage:
    """Compare two scores, paired within resamples of the patients and within seeds."""
    sign = 1.0 if higher_is_better else -1.0
    drawn = _drawn(first.score, second.score, sign)
    low, high = (
        (float(x) for x in np.percentile(drawn, INTERVAL)) if len(drawn) else (math.nan, math.nan)
    )
    paired = _paired(first, second, sign)
    mean, seeds_low, seeds_high = t_interval(paired)
    return Advantage(
        value=sign * (first.score.mean - second.score.mean),
        low=low,
        high=high,
        p=one_sided_p(drawn + margin),
        seeds=len(paired),
        seeds_mean=mean,
        seeds_low=seeds_low,
        seeds_high=seeds_high,
        margin=margin,
    )


def _drawn(first: MeanScore, second: MeanScore, sign: float) -> Float[np.ndarray, " r"]:
    if first.drawn.shape != second.drawn.shape:
        return np.empty(0)
    drawn = sign * (first.drawn - second.drawn)
    return drawn[np.isfinite(drawn)]


def _paired(first: Measured, second: Measured, sign: float) -> list[float]:
    ours, theirs = first.by_seed, second.by_seed
    if not second.seeds:
        theirs = dict.fromkeys(ours, second.score.mean)
    pairs = [sign * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
    return [value for value in pairs if math.isfinite(value)]


def one_sided_p(drawn: Float[np.ndarray, " r"]) -> float:
    """Share of resamples at or below zero, one added: with ``r``, none is below 1 / (r + 1)."""
    return (1 + int((drawn <= 0).sum())) / (1 + len(drawn)) if len(drawn) else math.nan


def t_interval(values: list[float]) -> tuple[float, float, float]:
    """Return mean and 95 % interval by Student's t; NaN where they are not defined."""
    if not values:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return mean, mean - half, mean + half
