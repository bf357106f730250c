"""How good predictions are: scikit-learn's scores, and intervals over patients.

Axes: n sample, k class. A patient with several scans counts as one draw in every interval.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
)

INTERVAL = (2.5, 97.5)  # percentiles
CALIBRATION_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A score on all patients, and its 95 % percentile interval over resampled patients."""

    value: float
    low: float
    high: float


Estimated = tuple[str, Interval, float | None]
"""What was estimated, its value with its interval, and what guessing gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitScores:
    """Everything that ``test_scores.json`` says; None where a score is not defined.

    Attributes
    ----------
    chance
        Balanced accuracy of guessing: one over the number of classes present.
    auc
        Area under the ROC curve, the mean over classes of each against the rest.
    calibration_error
        Mean distance between the predicted class's probability and how often it is right, over
        bins of equal width, weighted by their counts.
    brier
        Mean squared distance between the probabilities and the truth, summed over classes.
    """

    samples: int
    patients: int
    resamples: int
    balanced_accuracy: Interval
    accuracy: Interval
    f1_macro: float
    auc: Interval | None
    log_loss: float
    brier: float
    calibration_error: float
    chance: float
    confusion: list[list[int]]
    classes: list[str]

    def as_json(self) -> dict[str, Any]:
        """Plain values in the order of the fields."""
        return asdict(self)

    def headline(self) -> str:
        """Say in one line how good the model is on the test split."""
        found = self.balanced_accuracy
        return (
            f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on the test split of "
            f"{self.patients} patients, guessing gives {self.chance:.3f}"
        )

    def estimates(self) -> list[Estimated]:
        """Return the scores that have an interval."""
        found = [
            ("balanced accuracy", self.balanced_accuracy, self.chance),
            ("accuracy", self.accuracy, None),
            ("area under the ROC curve", self.auc, 0.5),
        ]
        return [(name, value, chance) for name, value, chance in found if value is not None]


def balanced_accuracy(labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"]) -> float:
    """Mean recall over the classes that occur among the labels."""
    with warnings.catch_warnings():  # classes that do not occur are no surprise here
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", message="A single label was found")
        return float(balanced_accuracy_score(labels, predictions))


def area_under_curve(
    labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n k"]
) -> float | None:
    """Mean over the classes of each class's area against the rest; None with one class only.

    A class that does not occur among the labels is left out.
    """
    present = np.unique(labels)
    if len(present) < 2:
        return None
    areas = [roc_auc_score(labels == label, probabilities[:, label]) for label in present]
    return float(np.mean(areas))


def confusion(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], *, classes: int
) -> Int[np.ndarray, "true predicted"]:
    """Count samples by true (row) and predicted (column) class."""
    return confusion_matrix(labels, predictions, labels=np.arange(classes))


def calibration_error(
    labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n k"]
) -> float:
    """Return the expected calibration error of the predicted class.

    References
    ----------
    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5.
    """
    right = probabilities.argmax(axis=1) == labels
    return binned_error(right, probabilities.max(axis=1).clip(0, 1))


def binned_error(outcomes: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"]) -> float:
    """Mean distance between a probability and how often its event occurs, over equal bins."""
    observed, expected = calibration_curve(outcomes, probabilities, n_bins=CALIBRATION_BINS)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.searchsorted(edges[1:-1], probabilities)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    return float(np.sum(counts[counts > 0] * np.abs(observed - expected)) / len(outcomes))


def score_split(
    labels: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n k"],
    subject_ids: Sequence[str],
    *,
    classes: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
) -> SplitScores:
    """Score the test split, with 95 % intervals from a bootstrap over patients.

    Patients are resampled within groups of the same highest label, so that every resample holds
    every class.
    """
    predictions = probabilities.argmax(axis=1)
    draws = patient_draws(labels, subject_ids, resamples=resamples, seed=seed)
    drawn = _resampled(labels, probabilities, draws)
    area = area_under_curve(labels, probabilities)
    truth = np.eye(len(classes))[labels]
    present = len(np.unique(labels))
    return SplitScores(
        samples=len(labels),
        patients=len(set(subject_ids)),
        resamples=resamples,
        balanced_accuracy=interval_of(
            balanced_accuracy(labels, predictions), drawn["balanced_accuracy"]
        ),
        accuracy=interval_of(float(accuracy_score(labels, predictions)), drawn["accuracy"]),
        f1_macro=float(f1_score(labels, predictions, average="macro")),
        auc=None if area is None else interval_of(area, drawn["auc"]),
        log_loss=float(log_loss(labels, probabilities, labels=np.arange(len(classes)))),
        brier=float(np.mean(np.sum((probabilities - truth) ** 2, axis=1))),
        calibration_error=calibration_error(labels, probabilities),
        chance=1 / present,
        confusion=confusion(labels, predictions, classes=len(classes)).tolist(),
        classes=list(classes),
    )


def weighted_recalls(
    labels: Int[np.ndarray, " n"],
    predictions: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "resample n"],
) -> Float[np.ndarray, "resample k"]:
    """Recall of each class present, one row per set of weights; NaN where a class weighs nothing.

    scikit-learn's scores call by call take a hundred times as long as these sums.
    """
    kinds = np.unique(labels)
    member = (labels[:, None] == kinds).astype(np.float64)
    hit = member * (predictions == labels)[:, None]
    with np.errstate(invalid="ignore"):
        return (weights @ hit) / (weights @ member)


def weighted_area(
    positive: Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "resample n"],
) -> Float[np.ndarray, " resample"]:
    """Area under the ROC curve for each set of weights: the weighted Mann-Whitney statistic."""
    high, low = scores[positive][:, None], scores[~positive][None, :]
    wins = (high > low) + 0.5 * (high == low)
    up, down = weights[:, positive], weights[:, ~positive]
    with np.errstate(invalid="ignore"):
        return ((up @ wins) * down).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))


def _resampled(
    labels: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n k"],
    draws: Float[np.ndarray, "resample n"],
) -> dict[str, Float[np.ndarray, " resample"]]:
    predictions = probabilities.argmax(axis=1)
    recalls = weighted_recalls(labels, predictions, draws)
    areas = [weighted_area(labels == k, probabilities[:, k], draws) for k in np.unique(labels)]
    return {
        "balanced_accuracy": _mean_of_present(recalls),
        "accuracy": draws @ (predictions == labels) / draws.sum(axis=1),
        "auc": _mean_of_present(np.stack(areas, axis=1)),
    }


def _mean_of_present(values: Float[np.ndarray, "resample k"]) -> Float[np.ndarray, " resample"]:
    """Mean over the classes that a resample holds."""
    present = np.isfinite(values)
    return np.where(present, values, 0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)


def interval_of(value: float, drawn: Float[np.ndarray, " resample"]) -> Interval:
    """Put the percentiles of the resampled values beside a value."""
    low, high = np.percentile(drawn, INTERVAL) if len(drawn) else (value, value)
    return Interval(value=value, low=float(low), high=float(high))


def patient_draws(
    labels: Int[np.ndarray, " n"], subject_ids: Sequence[str], *, resamples: int, seed: int
) -> Float[np.ndarray, "resample n"]:
    """How often each sample counts in each bootstrap resample of the patients."""
    names, patient = np.unique(np.asarray(subject_ids, dtype=str), return_inverse=True)
    highest = np.full(len(names), labels.min())
    np.maximum.at(highest, patient, labels)
    rng = np.random.default_rng([seed, resamples])
    counts = np.zeros((resamples, len(names)))
    for label in np.unique(highest):
        members = np.flatnonzero(highest == label)
        share = np.full(len(members), 1 / len(members))
        counts[:, members] = rng.multinomial(len(members), share, size=resamples)
    return counts[:, patient]
