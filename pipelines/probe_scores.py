"""How well a small classifier predicts labels from given features, on patients it has not seen.

Axes: n sample, f feature, k class. Logistic regression, one class against the rest, on standardised
features, the principal components of the outline, and hinges of each, so that "neither narrow nor
wide" can be said.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from pipelines.scores import INTERVAL, Interval

PATIENTS_EACH = 10
"""Held-out patients with a class, and without it, below which nothing is said about it."""
PATIENTS_EACH_CROSSED = 20
"""The same where patients take turns: of 24 synthetic patients that nothing tells, one set in five
was called above chance."""
FOLDS = 5
CROSSED_WIDENING = (1 + FOLDS / (FOLDS - 1)) ** 0.5
"""Of the interval where patients take turns: their classifiers share most of what they were trained
on, so their errors do not cancel (Nadeau and Bengio, Inference for the generalization error,
Machine Learning 52, 2003: variance times 1/k + test/train in place of 1/k)."""
COMPONENTS = 8
HINGES = 4
"""Places, at quantiles of what is trained on, where the answer to a feature may bend."""
STRENGTH = 0.1
"""Inverse of the penalty on the weights: dozens of features, sometimes dozens of patients."""
RESAMPLES = 500
RESAMPLES_AT_ONCE = 32
HELD_OUT = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Who is tested by a classifier that was trained on whom.

    Attributes
    ----------
    rounds
        Rows to train on, rows to test on; no patient is in both, no row is tested twice.
    judged
        Columns of the truth about which enough patients are tested.
    is_crossed
        Whether patients take turns in being tested, because the test split is too small.
    """

    rounds: tuple[tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]], ...] = field(repr=False)
    judged: tuple[int, ...]
    is_crossed: bool

    @property
    def tested(self) -> Int64[np.ndarray, " n"]:
        """All rows that are tested."""
        return np.concatenate([test for _, test in self.rounds])


def make_plan(
    truth: Float[np.ndarray, "n k"], subjects: Sequence[str], splits: Sequence[str], *, seed: int
) -> Plan | None:
    """Test on the test split; where it is too small for a class, on every patient in turn.

    Rows whose truth is NaN take no part. Returns None where even all patients together are too few.
    """
    labelled = np.flatnonzero(np.isfinite(truth).all(axis=1))
    patients = np.asarray(subjects, dtype=str)
    held_out = np.asarray(splits, dtype=str)[labelled] == HELD_OUT
    everyone = judged_classes(truth[labelled], patients[labelled])
    train, test = labelled[~held_out], labelled[held_out]
    enough = judged_classes(truth[test], patients[test]) == everyone
    if everyone and enough and _teaches(truth[train], everyone):
        return Plan(rounds=((train, test),), judged=everyone, is_crossed=False)
    everyone = judged_classes(truth[labelled], patients[labelled], least=PATIENTS_EACH_CROSSED)
    if not everyone:
        return None
    fold = _folds(truth[labelled], patients[labelled], seed=seed)
    rounds = tuple((labelled[fold != i], labelled[fold == i]) for i in range(FOLDS))
    return Plan(rounds=rounds, judged=everyone, is_crossed=True)


def judged_classes(
    truth: Float[np.ndarray, "n k"],
    patients: Sequence[str] | np.ndarray,
    *,
    least: int = PATIENTS_EACH,
) -> tuple[int, ...]:
    """Return the classes that enough patients have and enough patients lack.

    Of two classes that exclude each other only the second is asked for.
    """
    names = np.asarray(patients)
    judged = tuple(
        kind
        for kind in range(truth.shape[1])
        if min(len(set(names[truth[:, kind] == value])) for value in (0, 1)) >= least
    )
    is_mirrored = len(judged) == 2 and bool((truth[:, list(judged)].sum(axis=1) == 1).all())
    return judged[1:] if is_mirrored else judged


def predict(
    features: Float[np.ndarray, "n f"],
    outline: Float[np.ndarray, "n cell"] | None,
    truth: Float[np.ndarray, "n k"],
    plan: Plan,
) -> Float[np.ndarray, "tested judged"]:
    """Score every tested row for every judged class; higher is more likely.

    Where patients take turns, scores are ranks within their turn: scores of two classifiers cannot
    be compared.
    """
    parts = []
    for train, test in plan.rounds:
        seen, unseen = _design(features, outline, train, test)
        scores = np.stack(
            [_classify(seen, truth[train, kind], unseen) for kind in plan.judged], axis=1
        )
        parts.append((rankdata(scores, axis=0) - 0.5) / len(scores) if plan.is_crossed else scores)
    return np.concatenate(parts)


def area_with_interval(
    truth: Float[np.ndarray, "n k"],
    scores: Float[np.ndarray, "n k"],
    patients: Sequence[str] | np.ndarray,
    *,
    seed: int,
    widening: float = 1.0,
) -> Interval:
    """Mean over classes of the area under the ROC curve; 95 % interval over resampled patients.

    Parameters
    ----------
    widening
        Factor on the interval's arms, for scores whose errors hang together.
    """
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    columns = list(zip(truth.T.astype(bool), scores.T, strict=True))
    ones = np.ones((1, len(truth)))
    value = float(np.mean([weighted_area(yes, score, ones)[0] for yes, score in columns]))
    drawn = np.concatenate(
        [
            _mean_of_defined([weighted_area(yes, score, weights) for yes, score in columns])
            for weights in _draws(patient, seed=seed)
        ]
    )
    low, high = np.nanpercentile(drawn, INTERVAL)
    return Interval(
        value=value,
        low=max(0.0, value + widening * (float(low) - value)),
        high=min(1.0, value + widening * (float(high) - value)),
    )


def weighted_area(
    positive: Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "resample n"],
) -> Float[np.ndarray, " resample"]:
    """Area under the ROC curve for each set of weights; NaN where a side weighs nothing.

    The weighted Mann-Whitney statistic, ties counting half, from one sort.
    """
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    up = np.add.reduceat(weights[:, order] * positive[order], first, axis=1)
    down = np.add.reduceat(weights[:, order] * ~positive[order], first, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    with np.errstate(invalid="ignore"):
        return (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))


def _teaches(truth: Float[np.ndarray, "n k"], judged: Sequence[int]) -> bool:
    return all(len(np.unique(truth[:, kind])) == 2 for kind in judged)


def _folds(
    truth: Float[np.ndarray, "n k"], patients: np.ndarray, *, seed: int
) -> Int64[np.ndarray, " n"]:
    """Deal patients out over the folds, those with the same classes one after another."""
    names, patient = np.unique(patients, return_inverse=True)
    kinds = np.zeros((len(names), truth.shape[1]))
    np.maximum.at(kinds, patient, truth)
    draw = np.random.default_rng(seed).permutation(len(names))
    keys = (draw, *kinds.T)  # the last key sorts first
    fold: Int64[np.ndarray, " patient"] = np.empty(len(names), dtype=np.int64)
    fold[np.lexsort(keys)] = np.arange(len(names)) % FOLDS
    return fold[patient]


def _design(
    features: Float[np.ndarray, "n f"],
    outline: Float[np.ndarray, "n cell"] | None,
    train: Int64[np.ndarray, " a"],
    test: Int64[np.ndarray, " b"],
) -> tuple[Float[np.ndarray, "a g"], Float[np.ndarray, "b g"]]:
    """Prepare features by what the training rows show."""
    seen, unseen = _filled(features[train], features[test])
    if outline is not None:
        axes = _principal_axes(outline[train])
        seen = np.concatenate([seen, outline[train] @ axes], axis=1)
        unseen = np.concatenate([unseen, outline[test] @ axes], axis=1)
    seen, unseen = _standardised(seen, unseen)
    bends = np.quantile(seen, np.arange(1, HINGES + 1) / (HINGES + 1), axis=0)
    return _standardised(_bent(seen, bends), _bent(unseen, bends))


def _bent(
    values: Float[np.ndarray, "n f"], bends: Float[np.ndarray, "h f"]
) -> Float[np.ndarray, "n _"]:
    return np.concatenate([values, *(np.maximum(values - bend, 0) for bend in bends)], axis=1)


def _filled(
    seen: Float[np.ndarray, "a f"], unseen: Float[np.ndarray, "b f"]
) -> tuple[Float[np.ndarray, "a f"], Float[np.ndarray, "b f"]]:
    """Replace missing values by the mean of the training rows."""
    known = np.isfinite(seen)
    mean = np.where(known, seen, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, seen, mean), np.where(np.isfinite(unseen), unseen, mean)


def _standardised(
    seen: Float[np.ndarray, "a f"], unseen: Float[np.ndarray, "b f"]
) -> tuple[Float[np.ndarray, "a g"], Float[np.ndarray, "b g"]]:
    """Leave out what does not vary; keep the rest within five deviations: no row may dominate."""
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    varies = deviation > 1e-9 * (1 + np.abs(mean))
    mean, deviation = mean[varies], deviation[varies]
    return (
        np.clip((seen[:, varies] - mean) / deviation, -5, 5),
        np.clip((unseen[:, varies] - mean) / deviation, -5, 5),
    )


def _principal_axes(outline: Float[np.ndarray, "n cell"]) -> Float[np.ndarray, "cell component"]:
    centred = outline.astype(np.float64) - outline.mean(axis=0)
    strength, axes = np.linalg.eigh(centred.T @ centred)
    strongest = np.argsort(-strength, kind="stable")[:COMPONENTS]
    return axes[:, strongest[strength[strongest] > 1e-6 * max(float(strength.max()), 1.0)]]


def _classify(
    seen: Float[np.ndarray, "a g"],
    positive: Float[np.ndarray, " a"],
    unseen: Float[np.ndarray, "b g"],
) -> Float[np.ndarray, " b"]:
    if not seen.shape[1] or len(np.unique(positive)) < 2:
        return np.zeros(len(unseen))
    model = LogisticRegression(C=STRENGTH, max_iter=1000, class_weight="balanced")
    return model.fit(seen, positive.astype(int)).decision_function(unseen)


def _draws(
    patient: Int64[np.ndarray, " n"], *, seed: int
) -> Iterator[Float[np.ndarray, "resample n"]]:
    """Yield how often each row counts in some resamples of the patients at a time."""
    count = int(patient.max()) + 1
    rng = np.random.default_rng(seed)
    share = np.full(count, 1 / count)
    for start in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        some = min(RESAMPLES_AT_ONCE, RESAMPLES - start)
        yield rng.multinomial(count, share, size=some)[:, patient].astype(np.float64)


def _mean_of_defined(
    areas: Sequence[Float[np.ndarray, " resample"]],
) -> Float[np.ndarray, " resample"]:
    values = np.stack(areas)
    defined = np.isfinite(values)
    total, count = np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def headline(parts: Mapping[str, Float[np.ndarray, "n _"]]) -> Float[np.ndarray, "n f"]:
    """Join the features of several parts."""
    return np.concatenate(list(parts.values()), axis=1)
