"""How good predictions are where a picture may show several findings: each is scored on its own.

Axes: n sample, k finding. Intervals are over patients, as in ``scores``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8
from sklearn.metrics import average_precision_score, roc_auc_score

from pipelines.probe_scores import weighted_area
from pipelines.scores import Estimated, Interval, binned_error, interval_of, patient_draws

RESAMPLES_AT_ONCE = 32
THRESHOLD = 0.5
LEAST_PATIENTS = 2
"""With a finding, and without it, below which its interval is all of 0 to 1: one patient says
nothing about the next, and resampling cannot show it."""
LEAST_PROBABILITY = 1e-7
Statistic = Callable[
    [Bool[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, "resample n"]],
    Float[np.ndarray, " resample"],
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingScores:
    """How well one finding is told; None where the split shows it always or never.

    Attributes
    ----------
    positives, positive_patients
        Pictures that show it, and patients with such a picture.
    prevalence
        Share of the pictures that show it: the average precision of guessing.
    auc
        Area under the ROC curve; guessing gives 0.5.
    average_precision
        Mean precision over the recalls, without interpolation.
    brier
        Mean squared distance between probability and truth.
    calibration_error
        Mean distance between the probability and how often the finding is there, over bins of
        equal width, weighted by their counts.
    at_half
        Counts of right and wrong answers where a probability from 0.5 on is taken for a yes.
    """

    name: str
    positives: int
    positive_patients: int
    prevalence: float
    auc: Interval | None
    average_precision: Interval | None
    brier: float
    calibration_error: float
    at_half: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSetScores:
    """Everything that ``test_scores.json`` says of a model of label sets.

    Attributes
    ----------
    without_finding
        Pictures that show none of the findings.
    mean_auc, mean_average_precision
        Over the findings that some pictures show and some do not; None where there is no such.
    log_loss
        Binary cross entropy, mean over pictures and all findings.
    brier, calibration_error
        Means over the same findings, or over all where there is no such: one that is never shown is
        easily denied.
    chance
        Area under the ROC curve of guessing.
    """

    samples: int
    patients: int
    without_finding: int
    resamples: int
    mean_auc: Interval | None
    mean_average_precision: Interval | None
    log_loss: float
    brier: float
    calibration_error: float
    chance: float
    findings: list[FindingScores]

    def as_json(self) -> dict[str, Any]:
        """Plain values in the order of the fields."""
        return asdict(self)

    @property
    def scored(self) -> list[FindingScores]:
        """Findings with an area under the ROC curve."""
        return [item for item in self.findings if item.auc is not None]

    def headline(self) -> str:
        """Say in one line how good the model is on the test split."""
        where = f"on the test split of {self.patients} patients"
        if self.mean_auc is None:
            return f"no finding is both seen and absent {where}, so none is scored"
        found = self.mean_auc
        return (
            f"mean area {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) over "
            f"{len(self.scored)} findings {where}, guessing gives {self.chance:.3f}"
        )

    def estimates(self) -> list[Estimated]:
        """Return the mean area under the ROC curve, the mean precision, and each finding's area."""
        guess = float(np.mean([item.prevalence for item in self.scored])) if self.scored else None
        found = [
            ("mean area under the ROC curve", self.mean_auc, self.chance),
            ("mean average precision", self.mean_average_precision, guess),
            *((f"area for {item.name}", item.auc, self.chance) for item in self.findings),
        ]
        return [(name, value, chance) for name, value, chance in found if value is not None]


def mean_area(
    label_sets: UInt8[np.ndarray, "n k"], probabilities: Float[np.ndarray, "n k"]
) -> float | None:
    """Mean area under the ROC curve over the findings that some samples show and some do not."""
    areas = [
        roc_auc_score(truth, score)
        for truth, score in zip(label_sets.T, probabilities.T, strict=True)
        if truth.any() and not truth.all()
    ]
    return float(np.mean(areas)) if areas else None


def weighted_average_precision(
    positive: Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "resample n"],
) -> Float[np.ndarray, " resample"]:
    """Average precision for each set of weights; NaN where the positive samples weigh nothing.

    Samples of one score are one step of the recall, as in scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)
    gained = np.add.reduceat(weights[:, order] * positive[order], first, axis=1)
    called = np.cumsum(np.add.reduceat(weights[:, order], first, axis=1), axis=1)
    right = np.cumsum(gained, axis=1)
    precision = right / np.where(called > 0, called, 1)
    with np.errstate(invalid="ignore"):
        return (precision * gained).sum(axis=1) / right[:, -1]


def score_label_sets(
    label_sets: UInt8[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "n k"],
    subject_ids: Sequence[str],
    *,
    classes: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> LabelSetScores:
    """Score every finding on the test split, with 95 % intervals from a bootstrap over patients.

    Patients are resampled within groups of the same rarest finding, so that few resamples lack a
    rare one; a resample without a finding does not count for that finding.
    """
    groups = rarest_findings(label_sets, subject_ids)
    draws = patient_draws(groups, subject_ids, resamples=resamples, seed=seed)
    areas = _resampled(weighted_area, label_sets, probabilities, draws)
    precisions = _resampled(weighted_average_precision, label_sets, probabilities, draws)
    findings = [
        _score_finding(
            name,
            label_sets[:, k] == 1,
            probabilities[:, k],
            subject_ids,
            drawn=(areas[:, k], precisions[:, k]),
        )
        for k, name in enumerate(classes)
    ]
    seen = [k for k, item in enumerate(findings) if item.auc is not None]
    judged = [findings[k] for k in seen] or findings
    return LabelSetScores(
        samples=len(label_sets),
        patients=len(set(subject_ids)),
        without_finding=int((label_sets.sum(axis=1) == 0).sum()),
        resamples=resamples,
        mean_auc=_mean_of([findings[k].auc for k in seen], areas[:, seen]),
        mean_average_precision=_mean_of(
            [findings[k].average_precision for k in seen], precisions[:, seen]
        ),
        log_loss=binary_cross_entropy(label_sets, probabilities),
        brier=float(np.mean([item.brier for item in judged])),
        calibration_error=float(np.mean([item.calibration_error for item in judged])),
        chance=0.5,
        findings=findings,
    )


def binary_cross_entropy(
    label_sets: UInt8[np.ndarray, "n k"], probabilities: Float[np.ndarray, "n k"]
) -> float:
    """Mean over samples and findings; probabilities are kept 1e-7 away from 0 and 1."""
    sure = np.clip(probabilities, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return float(-np.mean(np.where(label_sets == 1, np.log(sure), np.log1p(-sure))))


def rarest_findings(
    label_sets: UInt8[np.ndarray, "n k"], subject_ids: Sequence[str]
) -> Int64[np.ndarray, " n"]:
    """Rank of each sample's rarest finding, the rarest highest; 0 where it shows none.

    Rare is what few patients have.
    """
    has = _patients_by_finding(label_sets, subject_ids)
    rank = np.empty(label_sets.shape[1], dtype=np.int64)
    rank[np.argsort(-has.sum(axis=0), kind="stable")] = np.arange(1, label_sets.shape[1] + 1)
    return (label_sets * rank).max(axis=1)


def _patients_by_finding(
    label_sets: UInt8[np.ndarray, "n k"], subject_ids: Sequence[str]
) -> Bool[np.ndarray, "patient k"]:
    names, patient = np.unique(np.asarray(subject_ids, dtype=str), return_inverse=True)
    has = np.zeros((len(names), label_sets.shape[1]), dtype=bool)
    np.logical_or.at(has, patient, label_sets == 1)
    return has


def _resampled(
    statistic: Statistic,
    label_sets: UInt8[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "n k"],
    draws: Float[np.ndarray, "resample n"],
) -> Float[np.ndarray, "resample k"]:
    """Return a statistic of every finding in every resample; NaN where a kind is missing."""
    found = np.full((len(draws), label_sets.shape[1]), np.nan)
    for part in _parts(len(draws)):
        for k in range(label_sets.shape[1]):
            found[part, k] = statistic(label_sets[:, k] == 1, probabilities[:, k], draws[part])
    return found


def _parts(count: int) -> Iterator[slice]:
    """Few resamples at a time: weights of many would not fit into memory."""
    for start in range(0, count, RESAMPLES_AT_ONCE):
        yield slice(start, min(start + RESAMPLES_AT_ONCE, count))


def _score_finding(
    name: str,
    truth: Bool[np.ndarray, " n"],
    found: Float[np.ndarray, " n"],
    subject_ids: Sequence[str],
    *,
    drawn: tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]],
) -> FindingScores:
    subjects = np.asarray(subject_ids, dtype=str)
    patients_with, patients_without = np.unique(subjects[truth]), np.unique(subjects[~truth])
    few = min(len(patients_with), len(patients_without)) < LEAST_PATIENTS
    both = truth.any() and not truth.all()
    area = float(roc_auc_score(truth, found)) if both else None
    precision = float(average_precision_score(truth, found)) if both else None
    yes = found >= THRESHOLD
    return FindingScores(
        name=name,
        positives=int(truth.sum()),
        positive_patients=len(patients_with),
        prevalence=float(truth.mean()),
        auc=_bounded(area, drawn[0], few=few),
        average_precision=_bounded(precision, drawn[1], few=few),
        brier=float(np.mean((found - truth) ** 2)),
        calibration_error=binned_error(truth, found),
        at_half={
            "true_positives": int((yes & truth).sum()),
            "false_positives": int((yes & ~truth).sum()),
            "false_negatives": int((~yes & truth).sum()),
            "true_negatives": int((~yes & ~truth).sum()),
        },
    )


def _bounded(
    value: float | None, drawn: Float[np.ndarray, " resample"], *, few: bool
) -> Interval | None:
    if value is None:
        return None
    if few:
        return Interval(value=value, low=0.0, high=1.0)
    return interval_of(value, drawn[np.isfinite(drawn)])


def _mean_of(
    found: Sequence[Interval | None], drawn: Float[np.ndarray, "resample k"]
) -> Interval | None:
    """Mean over findings; in each resample, over those that it holds."""
    values = [item.value for item in found if item is not None]
    if not values:
        return None
    there = np.isfinite(drawn)
    some = there.any(axis=1)
    means = np.where(there, drawn, 0).sum(axis=1)[some] / there.sum(axis=1)[some]
    return interval_of(float(np.mean(values)), means)
