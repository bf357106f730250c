"""Means over cases, seeds and findings, with intervals over patients.

Whole patients are resampled, with all their pictures, findings and boxes, within groups of the same
rarest finding; every entry meets the same draws, and seeds are averaged inside each draw. Of a
finding that one patient has there is no interval: resampling cannot show what the next one brings.

Axes: r resample, n case or picture, m measure, k finding.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64, UInt8

from pipelines.box_measures import MEASURES, WITHOUT_THRESHOLD, at
from pipelines.box_records import MEAN, MEAN_BOX, TRUE_BOX, FindingScores
from pipelines.comparison_measures import Truth
from pipelines.comparison_scores import Difference, MeanScore, differences
from pipelines.label_set_scores import LEAST_PATIENTS
from pipelines.probe_scores import weighted_area
from pipelines.scores import INTERVAL

COMPARED = (
    *WITHOUT_THRESHOLD,
    at("best", "iobb", 180, 0.1),
    at("best", "iou", 180, 0.1),
    at("best", "iou", 180, 0.5),
)
"""Measures in which every entry is compared with the mean box."""
AT_ONCE = 32
"""Resamples whose ROC curves are drawn together: weights of many would not fit into memory."""


def score_cases(
    per_seed: Sequence[Float64[np.ndarray, "n m"]],
    columns: Int64[np.ndarray, " n"],
    *,
    findings: Sequence[str],
    subject_ids: Sequence[str],
    draws: Float[np.ndarray, "r n"],
) -> FindingScores:
    """Score one entry, finding by finding, and their mean.

    Parameters
    ----------
    per_seed
        Measures of every case, a table for each seed; NaN where one is not defined.
    columns
        The finding of each case.
    draws
        How often each case counts in each resample (``case_draws``).
    """
    whole = np.ones((1, len(columns)))
    values = np.stack([_of_findings(x, columns, whole, len(findings))[0] for x in per_seed])
    drawn = np.mean([_of_findings(x, columns, draws, len(findings)) for x in per_seed], axis=0)
    few = _few(columns, subject_ids, len(findings))
    drawn[:, few] = np.nan
    found = {
        name: _named(values[:, k], drawn[:, k])
        for k, name in enumerate(findings)
        if np.isfinite(values[:, k]).any()
    }
    together = _mean_of_defined(values, axis=1), _mean_of_defined(drawn, axis=1)
    return found | ({MEAN: _named(*together, kept=True)} if found else {})


def case_draws(
    columns: Int64[np.ndarray, " n"], subject_ids: Sequence[str], *, resamples: int, seed: int
) -> Float[np.ndarray, "r n"]:
    """Draw resamples of the patients with boxes, as weights of the cases."""
    one_hot = np.eye(int(columns.max()) + 1, dtype=np.int64)[columns]
    blocks = Truth(labels=one_hot, subject_ids=tuple(subject_ids)).draws(resamples, seed)
    return np.concatenate([np.empty((0, len(columns))), *blocks])


def _of_findings(
    values: Float64[np.ndarray, "n m"],
    columns: Int64[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
    findings: int,
) -> Float64[np.ndarray, "r k m"]:
    """Weighted mean of each finding's cases; NaN where nothing is defined or weighs anything."""
    found = np.full((len(weights), findings, values.shape[1]), np.nan)
    for k in np.unique(columns):
        own = columns == k
        defined = np.isfinite(values[own])
        sums = weights[:, own] @ np.where(defined, values[own], 0)
        total = weights[:, own] @ defined
        found[:, k] = np.divide(sums, total, out=found[:, k], where=total > 0)
    return found


def _mean_of_defined(values: Float64[np.ndarray, "*_"], *, axis: int) -> Float64[np.ndarray, "*_"]:
    defined = np.isfinite(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def _few(columns: Int64[np.ndarray, " n"], subject_ids: Sequence[str], findings: int) -> list[int]:
    subjects = np.asarray(subject_ids, dtype=str)
    return [k for k in range(findings) if len(np.unique(subjects[columns == k])) < LEAST_PATIENTS]


def against_mean_box(scores: Mapping[str, FindingScores]) -> tuple[Difference, ...]:
    """Compare every entry with the mean box, within each draw; the truth is left out.

    An entry whose mean is over other findings than the mean box's is left out, too.
    """
    if MEAN not in scores.get(MEAN_BOX, {}):
        return ()
    held = set(scores[MEAN_BOX])
    compared = {
        name: {measure: found[MEAN][measure] for measure in COMPARED}
        for name, found in scores.items()
        if name != TRUE_BOX and set(found) == held
    }
    return tuple(differences(compared, against=MEAN_BOX))


def _named(
    values: Float64[np.ndarray, "seed m"],
    drawn: Float64[np.ndarray, "r m"],
    *,
    kept: bool = False,
) -> dict[str, MeanScore]:
    return {
        name: mean_score(values[:, i], drawn[:, i], kept=kept)
        for i, name in enumerate(MEASURES)
        if np.isfinite(values[:, i]).all()
    }


def mean_score(
    values: Float64[np.ndarray, " seed"],
    drawn: Float64[np.ndarray, " r"],
    *,
    kept: bool = False,
) -> MeanScore:
    """Put the spread over seeds and the interval over patients beside the mean of the seeds.

    The resampled values themselves are ``kept`` where differences are to be paired: of every
    finding and measure they would be a hundred times the rest.
    """
    defined = drawn[np.isfinite(drawn)]
    low, high = np.percentile(defined, INTERVAL) if len(defined) else (np.nan, np.nan)
    return MeanScore(
        values=tuple(values.tolist()),
        mean=float(values.mean()),
        sd=float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
        low=float(low),
        high=float(high),
        drawn=drawn if kept else np.empty(0),
    )


def score_areas(
    label_sets: UInt8[np.ndarray, "n k"],
    per_seed: Mapping[int, Float64[np.ndarray, "n k"]],
    subject_ids: Sequence[str],
    *,
    classes: Sequence[str],
    resamples: int,
    seed: int,
) -> dict[str, MeanScore]:
    """Area under the ROC curve of each finding that some pictures show and some do not.

    Parameters
    ----------
    per_seed
        Seed -> probabilities.
    """
    truth = Truth(labels=label_sets.astype(np.int64), subject_ids=tuple(subject_ids))
    told = [k for k, own in enumerate(label_sets.T) if own.any() and not own.all()]
    if not told:
        return {}
    values = np.stack(
        [_areas(label_sets, x, told, np.ones((1, len(x))))[0] for x in per_seed.values()]
    )
    drawn = [np.empty((0, len(told)))]
    for weights in truth.draws(resamples, seed):
        for start in range(0, len(weights), AT_ONCE):
            part = weights[start : start + AT_ONCE]
            each = [_areas(label_sets, x, told, part) for x in per_seed.values()]
            drawn.append(np.mean(each, axis=0))
    resampled = np.concatenate(drawn)
    together = _mean_of_defined(resampled, axis=1)
    means = {MEAN: mean_score(values.mean(axis=1), together, kept=True)}
    subjects = np.asarray(subject_ids, dtype=str)
    for place, k in enumerate(told):
        own = label_sets[:, k] == 1
        patients = min(len(np.unique(subjects[own])), len(np.unique(subjects[~own])))
        draws = resampled[:, place] if patients >= LEAST_PATIENTS else np.empty(0)
        means[classes[k]] = mean_score(values[:, place], draws)
    return means


def _areas(
    label_sets: UInt8[np.ndarray, "n k"],
    probabilities: Float64[np.ndarray, "n k"],
    told: Sequence[int],
    weights: Float[np.ndarray, "r n"],
) -> Float64[np.ndarray, "r _told"]:
    found = [weighted_area(label_sets[:, k] == 1, probabilities[:, k], weights) for k in told]
    return np.stack(found, axis=1)
