"""Scores against scikit-learn, one resample at a time, and against closed forms."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from pipelines.scores import (
    area_under_curve,
    balanced_accuracy,
    calibration_error,
    confusion,
    patient_draws,
    score_split,
    weighted_area,
    weighted_recalls,
)


def cohort(seed: int, *, patients: int = 20, classes: int = 3) -> tuple:
    rng = np.random.default_rng(seed)
    subjects = [f"p{i}" for i in range(patients) for _ in range(1 + i % 3)]
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, len(subjects) - classes)])
    probabilities = rng.dirichlet(np.ones(classes), len(subjects)).round(1)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True), subjects


class TestWeightedScores:
    @given(seed=st.integers(0, 10_000))
    def test_area_is_that_of_scikit_learn(self, seed: int) -> None:
        labels, probabilities, _ = cohort(seed)
        weights = np.random.default_rng(seed).integers(1, 4, (3, len(labels))).astype(float)
        found = weighted_area(labels == 1, probabilities[:, 1], weights)
        expected = [
            roc_auc_score(labels == 1, probabilities[:, 1], sample_weight=row) for row in weights
        ]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    @given(seed=st.integers(0, 10_000))
    def test_recalls_are_those_of_scikit_learn(self, seed: int) -> None:
        labels, probabilities, _ = cohort(seed)
        predictions = probabilities.argmax(axis=1)
        weights = np.random.default_rng(seed).integers(1, 4, (3, len(labels))).astype(float)
        expected = [
            recall_score(labels, predictions, average=None, sample_weight=row, labels=[0, 1, 2])
            for row in weights
        ]
        found = weighted_recalls(labels, predictions, weights)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    def test_a_class_without_weight_has_no_recall(self) -> None:
        labels = np.array([0, 1])
        found = weighted_recalls(labels, labels, np.array([[1.0, 0.0]]))
        np.testing.assert_array_equal(found, [[1, np.nan]])


class TestPatientDraws:
    @given(seed=st.integers(0, 10_000))
    def test_samples_of_a_patient_are_drawn_together_within_its_class(self, seed: int) -> None:
        labels, _, subjects = cohort(seed)
        draws = patient_draws(labels, subjects, resamples=5, seed=seed)
        names = np.array(subjects)
        highest = {name: labels[names == name].max() for name in subjects}
        for name in set(subjects):
            assert (np.ptp(draws[:, names == name], axis=1) == 0).all()
        for label in set(highest.values()):
            members = [name for name, found in highest.items() if found == label]
            drawn = sum(draws[:, names == name][:, 0] for name in members)
            assert (drawn == len(members)).all()


class TestSplitScores:
    def test_a_perfect_model_has_a_perfect_score_and_no_spread(self) -> None:
        labels = np.arange(30) % 3
        found = score_split(
            labels, np.eye(3)[labels], [f"p{i}" for i in range(30)], classes=["a", "b", "c"]
        )
        for interval in (found.balanced_accuracy, found.accuracy, found.auc):
            assert interval is not None
            assert (interval.value, interval.low, interval.high) == (1, 1, 1)
        assert (found.brier, found.calibration_error, found.f1_macro) == (0, 0, 1)
        assert found.confusion == [[10, 0, 0], [0, 10, 0], [0, 0, 10]]

    def test_the_interval_holds_the_value_and_shrinks_with_patients(self) -> None:
        widths = []
        for patients in (20, 200):
            labels, probabilities, subjects = cohort(1, patients=patients)
            found = score_split(labels, probabilities, subjects, classes=["a", "b", "c"])
            score = found.balanced_accuracy
            assert score.low < score.value < score.high
            predictions = probabilities.argmax(axis=1)
            assert score.value == pytest.approx(balanced_accuracy_score(labels, predictions))
            widths.append(score.high - score.low)
        assert widths[1] < widths[0] / 2

    def test_one_class_has_no_area(self) -> None:
        labels = np.zeros(4, dtype=np.int64)
        probabilities = np.full((4, 2), 0.5)
        assert area_under_curve(labels, probabilities) is None
        found = score_split(labels, probabilities, list("wxyz"), classes=["a", "b"], resamples=0)
        assert found.auc is None
        assert found.accuracy.low == found.accuracy.value == 1
        assert found.chance == 1

    def test_the_headline_and_the_estimates_are_its_figures(self) -> None:
        labels, probabilities, subjects = cohort(2)
        found = score_split(labels, probabilities, subjects, classes=["a", "b", "c"], resamples=9)
        value = f"{found.balanced_accuracy.value:.3f}"
        assert found.headline().startswith(f"{value} (")
        assert found.headline().endswith("split of 20 patients, guessing gives 0.333")
        assert found.estimates() == [
            ("balanced accuracy", found.balanced_accuracy, found.chance),
            ("accuracy", found.accuracy, None),
            ("area under the ROC curve", found.auc, 0.5),
        ]

    def test_an_area_that_is_not_defined_is_no_estimate(self) -> None:
        found = score_split(
            np.zeros(4, dtype=np.int64), np.full((4, 2), 0.5), list("wxyz"), classes=["a", "b"]
        )
        assert [name for name, _, _ in found.estimates()] == ["balanced accuracy", "accuracy"]

    def test_it_is_plain_json(self) -> None:
        labels, probabilities, subjects = cohort(2)
        found = score_split(labels, probabilities, subjects, classes=["a", "b", "c"], resamples=9)
        read = json.loads(json.dumps(found.as_json(), allow_nan=False))
        assert read["balanced_accuracy"]["value"] == found.balanced_accuracy.value
        assert read["patients"] == 20


def test_a_class_that_is_predicted_and_absent_is_no_warning() -> None:
    assert balanced_accuracy(np.array([0, 0, 1]), np.array([0, 2, 1])) == 0.75


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    found = confusion(np.array([0, 0, 2]), np.array([0, 1, 2]), classes=3)
    np.testing.assert_array_equal(found, [[1, 1, 0], [0, 0, 0], [0, 0, 1]])


def test_calibration_error_of_a_boast() -> None:
    """Always sure to 0.9, right in 6 of 10 cases: the error is 0.3."""
    labels = np.array([0] * 6 + [1] * 4)
    probabilities = np.tile([0.9, 0.1], (10, 1))
    assert calibration_error(labels, probabilities) == pytest.approx(0.3)
