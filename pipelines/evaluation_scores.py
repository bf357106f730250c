"""What the scores of samples amount to: means over seeds and patients, intervals, curves.

A resample of the patients is a set of weights of the samples. The same resamples serve every entry,
and seeds are averaged within each, so that differences between entries are paired. Weights come
block by block and entries model by model: memory grows with neither.

Axes: n sample, m column (a measure of a seed), r resample, s seed, f removed fraction, k class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from pipelines.comparison_measures import Truth
from pipelines.comparison_scores import MeanScore, interval
from pipelines.evaluation_measured import ABOVE_CHANCE, OPPOSITE, PERTURBATION
from pipelines.scores import INTERVAL

BALANCED = frozenset({PERTURBATION, OPPOSITE})
"""Means of these are means over the classes of the mean within each."""
Samples = Mapping[str, Float[np.ndarray, " n"]]
"""Measure -> one number per sample, NaN where it is not defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """How means are taken, and resampled.

    Attributes
    ----------
    classes
        Class of each sample; None of label sets, whose means are over samples.
    """

    truth: Truth
    classes: Int64[np.ndarray, " n"] | None
    resamples: int
    seed: int

    def is_balanced(self, measure: str) -> bool:
        """Tell whether a measure is averaged class by class."""
        return self.classes is not None and measure.partition("@")[0] in BALANCED


def mean_scores(
    seeds: Sequence[Sequence[Samples]], resampling: Resampling
) -> list[dict[str, MeanScore]]:
    """Return measure -> score of each of several entries, which are drawn together.

    Parameters
    ----------
    seeds
        Of each entry: of each of its seeds, the samples' scores. A measure that a seed does not
        define takes no part in the means; one that none defines is absent.
    """
    columns = [
        (entry, name, place)
        for entry, runs in enumerate(seeds)
        for name in dict.fromkeys(name for run in runs for name in run)
        for place, run in enumerate(runs)
        if name in run
    ]
    values = [seeds[entry][place][name] for entry, name, place in columns]
    balanced = np.array([resampling.is_balanced(name) for _, name, _ in columns], dtype=bool)
    found: list[dict[str, MeanScore]] = [{} for _ in seeds]
    if not columns:
        return found
    table = np.stack(values, axis=1)
    groups: dict[tuple[int, str], list[int]] = {}
    for i, (entry, name, _) in enumerate(columns):
        groups.setdefault((entry, name), []).append(i)
    firsts = np.array([own[0] for own in groups.values()])
    sizes = np.array([len(own) for own in groups.values()])
    count = len(resampling.truth.subject_ids)
    whole = means(table, np.ones((1, count)), resampling.classes, balanced)[0]
    blocks = [np.empty((0, len(groups)))]
    for weights in resampling.truth.draws(resampling.resamples, resampling.seed):
        drawn = means(table, weights, resampling.classes, balanced)
        blocks.append(np.add.reduceat(drawn, firsts, axis=1) / sizes)
    drawn = np.concatenate(blocks)
    for i, ((entry, name), own) in enumerate(groups.items()):
        found[entry][name] = mean_score(whole[own], np.ascontiguousarray(drawn[:, i]))
    return found


def mean_score(values: Float[np.ndarray, " s"], drawn: Float[np.ndarray, " r"]) -> MeanScore:
    """Put the values of the seeds and the resampled mean over them together."""
    low, high = interval(drawn)
    with np.errstate(invalid="ignore"):  # an infinite value has no spread
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return MeanScore(
        values=tuple(values.tolist()),
        mean=float(np.mean(values)),
        sd=sd,
        low=low,
        high=high,
        drawn=drawn,
    )


def above_chance(scores: Mapping[str, MeanScore], chance: float) -> dict[str, MeanScore]:
    """Return, for every area of input perturbation, the area above guessing."""
    return {
        name.replace(PERTURBATION, ABOVE_CHANCE): MeanScore(
            values=tuple(value - chance for value in score.values),
            mean=score.mean - chance,
            sd=score.sd,
            low=score.low - chance,
            high=score.high - chance,
            drawn=score.drawn - chance,
        )
        for name, score in scores.items()
        if name.partition("@")[0] == PERTURBATION
    }


def means(
    values: Float[np.ndarray, "n m"],
    weights: Float[np.ndarray, "r n"],
    classes: Int64[np.ndarray, " n"] | None = None,
    balanced: Bool[np.ndarray, " m"] | None = None,
) -> Float[np.ndarray, "r m"]:
    """Weighted means of columns over the samples that define them, balanced over classes or not.

    Infinite where an infinite value has weight; NaN where nothing has weight.
    """
    found = np.empty((len(weights), values.shape[1]))
    chosen = np.zeros(values.shape[1], dtype=bool) if balanced is None else balanced
    if (~chosen).any():
        found[:, ~chosen] = _ratio(*_sums(values[:, ~chosen], weights))
    if chosen.any() and classes is not None:
        each = [
            _ratio(*_sums(values[classes == name][:, chosen], weights[:, classes == name]))
            for name in np.unique(classes)
        ]
        found[:, chosen] = _mean_of_defined(np.stack(each))
    return found


def _sums(
    values: Float[np.ndarray, "n m"], weights: Float[np.ndarray, "r n"]
) -> tuple[Float[np.ndarray, "r m"], Float[np.ndarray, "r m"]]:
    """Weighted sums and the weights behind them; columns defined by the same samples share them."""
    defined = ~np.isnan(values)
    infinite = np.isinf(values)
    total = weights @ np.where(defined & ~infinite, values, 0.0)
    if infinite.any():
        total += np.where(weights @ infinite > 0, np.inf, 0.0)
    patterns, owner = np.unique(defined, axis=1, return_inverse=True)
    return total, (weights @ patterns.astype(np.float64))[:, owner.ravel()]


def _ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, np.nan)


def _mean_of_defined(values: Float[np.ndarray, "k r m"]) -> Float[np.ndarray, "r m"]:
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=0) / defined.sum(axis=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A mean curve: over the seeds, with its interval over patients and its spread over seeds."""

    mean: Float[np.ndarray, " f"]
    low: Float[np.ndarray, " f"]
    high: Float[np.ndarray, " f"]
    sd: Float[np.ndarray, " f"]


def bands(
    curves: Sequence[Sequence[Float[np.ndarray, "_m f"]]],
    removed: Bool[np.ndarray, " n"],
    resampling: Resampling,
) -> list[Band]:
    """Average the curves of some samples; several of them, which are drawn together.

    Parameters
    ----------
    curves
        Of each band: of each of its seeds, one curve per removed sample, in their order.
    removed
        Which samples have a curve.
    """
    if not curves:
        return []
    classes = None if resampling.classes is None else resampling.classes[removed]
    table = np.concatenate([seed for seeds in curves for seed in seeds], axis=1)
    balanced = np.full(table.shape[1], classes is not None)
    whole = _by_band(means(table, np.ones((1, len(table))), classes, balanced), curves)
    drawn: list[list[np.ndarray]] = [[] for _ in curves]
    for weights in resampling.truth.draws(resampling.resamples, resampling.seed):
        found = means(table, weights[:, removed], classes, balanced)
        for blocks, block in zip(drawn, _by_band(found, curves), strict=True):
            blocks.append(block.mean(axis=1))
    return [_band(found[0], blocks) for found, blocks in zip(whole, drawn, strict=True)]


def _by_band(
    found: Float[np.ndarray, "r m"], curves: Sequence[Sequence[np.ndarray]]
) -> list[Float[np.ndarray, "r s f"]]:
    """Cut columns into bands, and those into seeds and fractions."""
    steps = curves[0][0].shape[1]
    ends = np.cumsum([len(seeds) * steps for seeds in curves])
    parts = np.split(found, ends[:-1], axis=1)
    return [part.reshape(len(found), -1, steps) for part in parts]


def _band(whole: Float[np.ndarray, "s f"], blocks: Sequence[np.ndarray]) -> Band:
    undefined = np.full(whole.shape[1], np.nan)
    drawn = np.concatenate([undefined[None], *blocks])
    defined = drawn[np.isfinite(drawn).all(axis=1)]
    low, high = np.percentile(defined, INTERVAL, axis=0) if len(defined) else (undefined, undefined)
    return Band(
        mean=whole.mean(axis=0),
        low=low,
        high=high,
        sd=whole.std(axis=0, ddof=1) if len(whole) > 1 else undefined,
    )
