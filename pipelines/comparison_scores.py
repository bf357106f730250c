"""Scores of many runs on one test split: over seeds, over patients, and against a reference.

Two kinds of spread stand side by side and answer different questions. The standard deviation over
seeds says how much training again changes a score. The interval over patients says how much other
patients would: whole patients are resampled, every run is scored on the same resamples, and the
seeds of a variant are averaged inside each resample. It is an interval for the mean of these very
runs; it does not hold the spread of training.

A difference is paired: variant minus reference within each resample. Its p value is the
percentile bootstrap's, and Holm's correction counts the variants that are compared in one measure.

Axes: r resample.

References
----------
Efron, Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapters 13 and 16.
Holm, A simple sequentially rejective multiple test procedure, Scand J Stat 6 (1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from pipelines.comparison_measures import UNIFORM, RunScores, Truth, measure
from pipelines.scores import INTERVAL


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """One measure of one variant.

    Attributes
    ----------
    values
        One for each seed.
    mean, sd
        Over the seeds; ``sd`` is NaN with one.
    low, high
        95 % interval of the mean over resampled patients; NaN without resamples.
    drawn
        The mean over the seeds in each resample.
    """

    values: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float
    drawn: Float[np.ndarray, " r"] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Variant minus reference in one measure.

    Attributes
    ----------
    low, high
        95 % interval over resampled patients, not corrected for the number of comparisons.
    p, p_holm
        Two-sided, and corrected for the variants compared in this measure; NaN without resamples.
    """

    variant: str
    against: str
    measure: str
    value: float
    low: float
    high: float
    p: float
    p_holm: float


Scores = Mapping[str, Mapping[str, MeanScore]]
"""Variant -> measure -> score; a measure that is not defined for a variant is absent."""


def score_variants(
    truth: Truth, runs: Sequence[RunScores], *, resamples: int, seed: int = 0
) -> Scores:
    """Score every variant over its seeds and over resampled patients.

    Parameters
    ----------
    runs
        In any order; those of one variant are its seeds.
    """
    whole = np.ones((1, len(truth.subject_ids)))
    values = [measure(truth, run, whole) for run in runs]
    drawn = [{name: [] for name in found} for found in values]
    for weights in truth.draws(resamples, seed):
        for run, blocks in zip(runs, drawn, strict=True):
            for name, block in measure(truth, run, weights).items():
                blocks[name].append(block)
    scores: dict[str, dict[str, MeanScore]] = {}
    for variant in dict.fromkeys(run.variant for run in runs):
        mine = [i for i, run in enumerate(runs) if run.variant == variant]
        scores[variant] = {
            name: _mean_score(
                [float(values[i][name][0]) for i in mine], [drawn[i][name] for i in mine]
            )
            for name in values[mine[0]]
        }
    return scores


def _mean_score(values: list[float], blocks: list[list[np.ndarray]]) -> MeanScore:
    drawn = np.mean([np.concatenate([np.empty(0), *found]) for found in blocks], axis=0)
    low, high = interval(drawn)
    return MeanScore(
        values=tuple(values),
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
        low=low,
        high=high,
        drawn=drawn,
    )


def interval(drawn: Float[np.ndarray, " r"]) -> tuple[float, float]:
    """Return the 95 % percentiles of the resamples in which the measure is defined."""
    defined = drawn[np.isfinite(drawn)]
    low, high = np.percentile(defined, INTERVAL) if len(defined) else (np.nan, np.nan)
    return float(low), float(high)


def differences(scores: Scores, *, against: str) -> list[Difference]:
    """Compare every variant with the reference, in every measure that both have."""
    reference = scores[against]
    found = []
    for name in reference:
        others = [v for v in scores if v != against and name in scores[v] and name != UNIFORM]
        compared = [scores[variant][name] for variant in others]
        drawn = [score.drawn - reference[name].drawn for score in compared]
        p = [p_value(draws) for draws in drawn]
        for i, corrected in enumerate(holm(p)):
            low, high = interval(drawn[i])
            found.append(
                Difference(
                    variant=others[i],
                    against=against,
                    measure=name,
                    value=compared[i].mean - reference[name].mean,
                    low=low,
                    high=high,
                    p=p[i],
                    p_holm=corrected,
                )
            )
    return found


def p_value(drawn: Float[np.ndarray, " r"]) -> float:
    """Two-sided p value of "no difference" from resampled differences; NaN without any.

    Twice the smaller share of resamples on either side of zero, zero counted to both and one
    added, so that it is never 0: with ``r`` resamples none is below ``2 / (r + 1)``.
    """
    defined = drawn[np.isfinite(drawn)]
    if not len(defined):
        return np.nan
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(defined)))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down procedure; NaN stays and counts not."""
    values = np.asarray(p, dtype=np.float64)
    order = [int(i) for i in np.argsort(values) if np.isfinite(values[i])]
    corrected = np.full(len(values), np.nan)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * values[i]))
        corrected[i] = largest
    return corrected.tolist()
