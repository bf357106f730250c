"""What one run scores on the test split, for any weights of its samples.

A resample of the patients is a set of weights, and the split itself the weights of one: the score
and its resampled values come from the same sums. Labels are a class for each sample, or one column
of 0 and 1 for each finding.

Axes: n sample, k class or finding, r resample.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from pipelines.label_set_scores import THRESHOLD, rarest_findings
from pipelines.probe_scores import weighted_area
from pipelines.scores import CALIBRATION_BINS, patient_draws, weighted_recalls

DRAWS_AT_ONCE = 250
"""Resamples weighed together: memory stays flat however many there are."""
PREDICTION_MEASURES = ("accuracy", "balanced_accuracy", "auc", "calibration_error")
AVERAGE_PRECISION, UNIFORM = "average_precision_", "average_precision_uniform"
DISTANCE = "total_variation"
LOWER_IS_BETTER = frozenset({"calibration_error", DISTANCE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The test split.

    Attributes
    ----------
    labels
        Class of each sample, or one column of 0 and 1 for each finding.
    subject_ids
        Pseudonym of each sample's patient.
    """

    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n k"]
    subject_ids: tuple[str, ...]

    @property
    def strata(self) -> Int[np.ndarray, " n"]:
        """Groups that every resample holds: classes, or the rarest finding of a patient."""
        if self.labels.ndim == 1:
            return self.labels
        return rarest_findings(self.labels.astype(np.uint8), self.subject_ids)

    def draws(self, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "r n"]]:
        """Yield resamples of the patients, block by block, as weights of the samples."""
        for block, begin in enumerate(range(0, resamples, DRAWS_AT_ONCE)):
            count = min(DRAWS_AT_ONCE, resamples - begin)
            state = np.random.SeedSequence([seed, block]).generate_state(1)
            yield patient_draws(self.strata, self.subject_ids, resamples=count, seed=int(state[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScores:
    """What one run says about every test sample.

    Attributes
    ----------
    maps
        Score of each sample's maps by name; NaN where it is not defined.
    true_regions
        Samples with a true region, also where it is too small to be scored at the run's size.
    parameters, seconds_per_epoch, epochs, best_epoch
        Facts of the run.
    """

    variant: str
    seed: int
    probabilities: Float[np.ndarray, "n k"] = field(repr=False)
    maps: Mapping[str, Float[np.ndarray, " n"]] = field(repr=False)
    true_regions: int = 0
    parameters: int
    seconds_per_epoch: float
    epochs: int
    best_epoch: int


def measure(
    truth: Truth, run: RunScores, weights: Float[np.ndarray, "r n"]
) -> dict[str, Float[np.ndarray, " r"]]:
    """Score a run under each set of weights of the samples.

    Several findings are each scored alone, a probability of one half or more being a positive, and
    averaged; for classes, the predicted class's probability is calibrated.
    A measure that the split does not define is left out, whatever the weights.
    """
    predicted = _classes if truth.labels.ndim == 1 else _findings
    found = predicted(truth.labels, run.probabilities, weights)
    return found | {
        name: weighted_mean(values, weights)
        for name, values in run.maps.items()
        if np.isfinite(values).any()
    }


def _classes(
    labels: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n k"],
    weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
    predictions = probabilities.argmax(axis=1)
    right = predictions == labels
    present = np.unique(labels)
    found = {
        "accuracy": weighted_mean(right.astype(np.float64), weights),
        "balanced_accuracy": _mean_of_defined(weighted_recalls(labels, predictions, weights)),
        "calibration_error": calibration(right, probabilities.max(axis=1), weights),
    }
    if len(present) > 1:
        areas = [weighted_area(labels == k, probabilities[:, k], weights) for k in present]
        found["auc"] = _mean_of_defined(np.stack(areas, axis=1))
    return found


def _findings(
    labels: Int[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "n k"],
    weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
    each = [
        _finding(truth, probability, weights)
        for truth, probability in zip(labels.T > 0, probabilities.T, strict=True)
        if truth.any() and not truth.all()  # a finding of one kind has no balance and no area
    ]
    names = PREDICTION_MEASURES if each else ()
    return {
        name: _mean_of_defined(np.stack([found[name] for found in each], axis=1)) for name in names
    }


def _finding(
    truth: Bool[np.ndarray, " n"],
    probability: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
) -> dict[str, Float[np.ndarray, " r"]]:
    positive = (probability >= THRESHOLD).astype(np.int64)
    recalls = weighted_recalls(truth.astype(np.int64), positive, weights)
    return {
        "accuracy": weighted_mean((positive == truth).astype(np.float64), weights),
        "balanced_accuracy": _mean_of_defined(recalls),
        "auc": weighted_area(truth, probability, weights),
        "calibration_error": calibration(truth, probability, weights),
    }


def calibration(
    right: Bool[np.ndarray, " n"],
    confidence: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"],
) -> Float[np.ndarray, " r"]:
    """Return the expected calibration error under each set of weights, over bins of equal width.

    In a bin, its weight times the distance between its mean confidence and its share of the right
    is the size of the weighted sum of (right - confidence): no mean is ever taken.
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.searchsorted(edges[1:-1], confidence.clip(0, 1))
    member = np.eye(CALIBRATION_BINS)[bins]
    excess = weights @ (member * (right - confidence)[:, None])
    return np.abs(excess).sum(axis=1) / weights.sum(axis=1)


def weighted_mean(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """Mean of the values that are defined; NaN where those weigh nothing."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return weights[:, defined] @ values[defined] / weights[:, defined].sum(axis=1)


def _mean_of_defined(values: Float[np.ndarray, "r k"]) -> Float[np.ndarray, " r"]:
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
