"""What retrained networks say of the maps that removed pixels: scores, differences, means.

Every score is held against that of the random map at the same fraction, on the same resamples of
the patients.

Axes: r resample.

References
----------
Hooker, Erhan, Kindermans, Kim, "A benchmark for interpretability methods in deep neural networks",
NeurIPS 2019 (remove and retrain, ROAR).
Shah, Jain, Netrapalli, "Do input gradients highlight discriminative features?", NeurIPS 2021
(DiffROAR).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from pipelines.comparison_scores import Difference, MeanScore, Scores, differences
from pipelines.comparison_table import Failure
from pipelines.config import RetrainConfig
from pipelines.retraining_maps import CONTROLS, RANDOM
from pipelines.retraining_pictures import NOTHING, PARTS, Removal
from pipelines.scores import INTERVAL

MEAN = "mean"
Key = float | str
"""A fraction, or ``mean`` for the mean over the fractions."""
Points = Mapping[str, Mapping[Key, MeanScore]]
"""Map -> fraction -> score; what did not end is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """What a retraining found.

    Attributes
    ----------
    rankings
        Names of the maps: methods, then controls.
    measure
        What the networks are scored by on the test patients.
    accuracies
        ``Removal.name`` -> score of its networks.
    points
        What is read from them: the accuracy itself (``roar``), or the accuracy with the top kept
        less that with the bottom kept (``diffroar``).
    contrasts
        Fraction -> each map's point less the random map's.
    chance
        Accuracy of guessing.
    size
        Rows and columns of the pictures.
    """

    title: str
    config: RetrainConfig
    rankings: tuple[str, ...]
    measure: str
    accuracies: Mapping[str, MeanScore] = field(repr=False)
    points: Points = field(repr=False)
    contrasts: Mapping[Key, Sequence[Difference]] = field(repr=False)
    failures: tuple[Failure, ...]
    chance: float
    size: tuple[int, int]
    samples: int
    patients: int
    resamples: int
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Return the fractions and, where there are several, their mean."""
        return keys_of(self.config)

    @property
    def blocks(self) -> dict[str, tuple[str, ...]]:
        """Return methods and controls apart."""
        methods = tuple(name for name in self.rankings if name not in CONTROLS)
        controls = tuple(name for name in self.rankings if name in CONTROLS)
        return {"methods": methods, "controls": controls}

    @property
    def untouched(self) -> MeanScore | None:
        """Return the accuracy where nothing is removed."""
        return self.accuracies.get(NOTHING)

    def contrast(self, ranking: str, key: Key) -> Difference | None:
        """Return a map's point less the random map's."""
        found = [item for item in self.contrasts.get(key, ()) if item.variant == ranking]
        return found[0] if found else None


def keys_of(config: RetrainConfig) -> tuple[Key, ...]:
    """Return the fractions and, where there are several, their mean."""
    return (*config.fractions, MEAN) if len(config.fractions) > 1 else config.fractions


def removals_of(config: RetrainConfig, rankings: Sequence[str]) -> list[Removal]:
    """Return what is removed: nothing first, then fraction by fraction every map's pixels."""
    return [
        Removal(),
        *(
            Removal(ranking=ranking, what=what, fraction=fraction)
            for fraction in config.fractions
            for ranking in rankings
            for what in PARTS[config.protocol]
        ),
    ]


def points_of(
    config: RetrainConfig, rankings: Sequence[str], accuracies: Mapping[str, MeanScore]
) -> Points:
    """Read every map's points from the accuracies of the networks."""
    found: dict[str, dict[Key, MeanScore]] = {}
    for ranking in rankings:
        points: dict[Key, MeanScore] = {}
        for fraction in config.fractions:
            names = [
                Removal(ranking=ranking, what=what, fraction=fraction).name
                for what in PARTS[config.protocol]
            ]
            scores = [accuracies[name] for name in names if name in accuracies]
            if len(scores) == len(names):
                points[fraction] = scores[0] if len(scores) == 1 else less(*scores)
        if 1 < len(config.fractions) == len(points):
            points[MEAN] = averaged(list(points.values()))
        found[ranking] = points
    return found


def less(top: MeanScore, bottom: MeanScore) -> MeanScore:
    """Return top minus bottom, over all pairs of their networks."""
    values = [one - other for one in top.values for other in bottom.values]
    return _score(values, top.drawn - bottom.drawn)


def averaged(scores: Sequence[MeanScore]) -> MeanScore:
    """Return the mean of several scores, seed by seed and resample by resample.

    Where the numbers of their seeds differ, because some failed, only the mean is known.
    """
    counts = {len(score.values) for score in scores}
    drawn = np.mean([score.drawn for score in scores], axis=0)
    if len(counts) > 1:
        return _score([float(np.mean([score.mean for score in scores]))], drawn)
    return _score(np.mean([score.values for score in scores], axis=0).tolist(), drawn)


def _score(values: Sequence[float], drawn: Float[np.ndarray, " r"]) -> MeanScore:
    defined = drawn[np.isfinite(drawn)]
    low, high = np.percentile(defined, INTERVAL) if len(defined) else (np.nan, np.nan)
    return MeanScore(
        values=tuple(values),
        mean=float(np.mean(values)),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
        low=float(low),
        high=float(high),
        drawn=drawn,
    )


def contrasts_of(
    config: RetrainConfig, points: Points, measure: str
) -> Mapping[Key, Sequence[Difference]]:
    """Hold every map against the random one; Holm's correction counts the maps at a fraction."""
    found: dict[Key, Sequence[Difference]] = {}
    for key in keys_of(config):
        scores: Scores = {
            name: {measure: each[key]} for name, each in points.items() if key in each
        }
        found[key] = differences(scores, against=RANDOM) if RANDOM in scores else ()
    return found
