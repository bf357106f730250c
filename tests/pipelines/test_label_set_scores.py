"""Scores of findings against scikit-learn, one resample at a time, and against closed forms."""

import json
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from pipelines import label_set_scores
from pipelines.label_set_scores import (
    LabelSetScores,
    binary_cross_entropy,
    mean_area,
    rarest_findings,
    score_label_sets,
    weighted_average_precision,
)
from pipelines.scores import patient_draws

NAMES = ("a", "b", "c", "d")
SHARES = (0.5, 0.3, 0.1, 0.02)


def cohort(seed: int, *, patients: int = 40) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Findings from frequent to rare, scores with ties, one to three samples to a patient."""
    rng = np.random.default_rng(seed)
    subjects = [f"p{i}" for i in range(patients) for _ in range(1 + i % 3)]
    sets = (rng.uniform(size=(len(subjects), 4)) < SHARES).astype(np.uint8)
    found = (0.3 * sets + rng.uniform(0, 0.7, sets.shape)).round(1)
    return sets, found, subjects


def scored(seed: int, **settings: int) -> LabelSetScores:
    sets, found, subjects = cohort(seed, patients=settings.pop("patients", 40))
    return score_label_sets(sets, found, subjects, classes=NAMES, **settings)


class TestOfEachFinding:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 10_000))
    def test_scores_are_those_of_scikit_learn(self, seed: int) -> None:
        sets, found, subjects = cohort(seed)
        scores = score_label_sets(sets, found, subjects, classes=NAMES, resamples=2)
        areas = []
        for k, item in enumerate(scores.findings):
            truth, probability = sets[:, k], found[:, k]
            assert item.brier == pytest.approx(brier_score_loss(truth, probability))
            assert item.positives == truth.sum()
            assert item.prevalence == pytest.approx(truth.mean())
            if len(np.unique(truth)) == 1:
                assert item.auc is None
                assert item.average_precision is None
                continue
            assert item.auc is not None
            assert item.average_precision is not None
            areas.append(roc_auc_score(truth, probability))
            assert item.auc.value == pytest.approx(areas[-1])
            precision = average_precision_score(truth, probability)
            assert item.average_precision.value == pytest.approx(precision)
        assert scores.mean_auc is not None
        assert scores.mean_auc.value == pytest.approx(np.mean(areas))
        assert mean_area(sets, found) == pytest.approx(np.mean(areas))
        sure = np.clip(found, 1e-7, 1 - 1e-7)
        losses = [log_loss(sets[:, k], sure[:, k], labels=[0, 1]) for k in range(4)]
        assert scores.log_loss == pytest.approx(np.mean(losses))

    def test_answers_at_one_half_are_counted(self) -> None:
        sets = np.array([[1], [1], [0], [0], [0]], dtype=np.uint8)
        found = np.array([[0.5], [0.4], [0.6], [0.1], [0.2]])
        (item,) = score_label_sets(sets, found, list("vwxyz"), classes=["a"]).findings
        assert item.at_half == {
            "true_positives": 1,
            "false_positives": 1,
            "false_negatives": 1,
            "true_negatives": 2,
        }

    def test_calibration_error_of_a_boast(self) -> None:
        """Always 0.9 and there in 6 of 10 samples: the error is 0.3."""
        sets = np.array([[1]] * 6 + [[0]] * 4, dtype=np.uint8)
        found = np.full((10, 1), 0.9)
        scores = score_label_sets(sets, found, [f"p{i}" for i in range(10)], classes=["a"])
        assert scores.findings[0].calibration_error == pytest.approx(0.3)
        assert scores.calibration_error == pytest.approx(0.3)

    def test_a_finding_that_is_never_shown_does_not_flatter_the_means(self) -> None:
        sets = np.array([[1, 0], [0, 0]], dtype=np.uint8)
        scores = score_label_sets(sets, np.array([[0.5, 0], [0.5, 0]]), list("xy"), classes="ab")
        assert [item.brier for item in scores.findings] == [0.25, 0]
        assert scores.brier == 0.25
        assert scores.log_loss == pytest.approx(np.log(2) / 2, abs=1e-6)

    def test_sure_and_wrong_is_a_finite_loss(self) -> None:
        found = np.array([[1.0, 0.0]])
        wrong = binary_cross_entropy(np.array([[0, 1]], dtype=np.uint8), found)
        assert wrong == pytest.approx(-np.log(1e-7))
        assert binary_cross_entropy(np.array([[1, 0]], dtype=np.uint8), found) < 1e-6


class TestWeights:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 10_000))
    def test_average_precision_is_that_of_scikit_learn(self, seed: int) -> None:
        sets, found, _ = cohort(seed)
        weights = np.random.default_rng(seed).integers(0, 3, (3, len(sets))).astype(float)
        actual = weighted_average_precision(sets[:, 0] == 1, found[:, 0], weights)
        expected = [
            average_precision_score(sets[:, 0], found[:, 0], sample_weight=row) for row in weights
        ]
        np.testing.assert_allclose(actual, expected, atol=1e-12)

    def test_positives_without_weight_have_no_precision(self) -> None:
        positive = np.array([True, False])
        found = weighted_average_precision(positive, np.zeros(2), np.array([[0.0, 1.0]]))
        assert np.isnan(found).all()


class TestIntervals:
    def test_they_are_percentiles_over_resampled_patients(self) -> None:
        """Against every resample scored by scikit-learn on its own."""
        sets, found, subjects = cohort(3)
        draws = patient_draws(rarest_findings(sets, subjects), subjects, resamples=50, seed=7)
        scores = score_label_sets(sets, found, subjects, classes=NAMES, resamples=50, seed=7)
        areas = np.array(
            [
                [roc_auc_score(sets[:, k], found[:, k], sample_weight=row) for k in range(3)]
                for row in draws
            ]
        )
        for k in range(3):
            item = scores.findings[k].auc
            assert item is not None
            expected = np.percentile(areas[:, k], (2.5, 97.5))
            np.testing.assert_allclose((item.low, item.high), expected, atol=1e-12)

    def test_the_mean_is_over_the_findings_that_a_resample_holds(self) -> None:
        sets, found, subjects = cohort(3)
        sets = sets[:, :2].copy()
        scores = score_label_sets(sets, found[:, :2], subjects, classes="ab", resamples=30, seed=1)
        draws = patient_draws(rarest_findings(sets, subjects), subjects, resamples=30, seed=1)
        means = [
            np.mean([roc_auc_score(sets[:, k], found[:, k], sample_weight=row) for k in (0, 1)])
            for row in draws
        ]
        assert scores.mean_auc is not None
        expected = np.percentile(means, (2.5, 97.5))
        np.testing.assert_allclose((scores.mean_auc.low, scores.mean_auc.high), expected)

    def test_samples_of_one_patient_are_one_draw(self) -> None:
        """Ten copies of every patient's sample are no more evidence than one."""
        sets, found, _ = cohort(5)
        subjects = [f"p{i:03}" for i in range(len(sets))]
        one = score_label_sets(sets, found, subjects, classes=NAMES, resamples=60)
        copies = score_label_sets(
            np.repeat(sets, 10, axis=0),
            np.repeat(found, 10, axis=0),
            [name for subject in subjects for name in repeat(subject, 10)],
            classes=NAMES,
            resamples=60,
        )
        assert one.mean_auc is not None
        assert copies.mean_auc is not None
        assert copies.mean_auc.low == pytest.approx(one.mean_auc.low)
        assert copies.mean_auc.high == pytest.approx(one.mean_auc.high)
        assert copies.mean_auc.low < copies.mean_auc.high

    def test_few_resamples_at_a_time_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = scored(2, resamples=20)
        monkeypatch.setattr(label_set_scores, "RESAMPLES_AT_ONCE", 3)
        assert scored(2, resamples=20) == whole

    @pytest.mark.parametrize("flip", [False, True])
    def test_one_patient_says_nothing_about_the_next(self, flip: bool) -> None:
        truth = np.zeros(12, dtype=np.uint8)
        truth[:2] = 1
        sets = ((1 - truth) if flip else truth)[:, None]
        found = np.linspace(0.9, 0.1, 12)[:, None]
        subjects = [f"p{i // 2}" for i in range(12)]
        (item,) = score_label_sets(sets, found, subjects, classes=["a"]).findings
        assert item.auc is not None
        assert item.auc.value == (0.0 if flip else 1.0)
        assert (item.auc.low, item.auc.high) == (0, 1)

    def test_without_resamples_there_is_no_spread(self) -> None:
        found = scored(1, resamples=0).findings[0].auc
        assert found is not None
        assert found.low == found.value == found.high


class TestRarestFinding:
    def test_rare_is_what_few_patients_have(self) -> None:
        """b is in more pictures than c, but of one patient only."""
        sets = np.array(
            [[1, 0, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]],
            dtype=np.uint8,
        )
        subjects = ["p", "q", "r", "s", "t", "t", "u"]
        # patients: a has 3, c has 3, b has 1; of equals the first named counts as less rare
        assert rarest_findings(sets, subjects).tolist() == [1, 1, 2, 2, 3, 3, 0]

    def test_every_resample_holds_the_rarest(self) -> None:
        sets, _, subjects = cohort(8)
        groups = rarest_findings(sets, subjects)
        draws = patient_draws(groups, subjects, resamples=200, seed=0)
        rarest = np.flatnonzero(groups == groups.max())
        assert (draws[:, rarest].sum(axis=1) > 0).all()


class TestWords:
    def test_it_is_plain_json(self) -> None:
        found = scored(2, resamples=9)
        read = json.loads(json.dumps(found.as_json(), allow_nan=False))
        assert [item["name"] for item in read["findings"]] == list(NAMES)
        assert read["patients"] == 40

    def test_the_headline_counts_findings_and_patients(self) -> None:
        found = scored(2, resamples=9)
        assert found.mean_auc is not None
        assert f"mean area {found.mean_auc.value:.3f}" in found.headline()
        count = len(found.scored)
        assert f"over {count} findings on the test split of 40 patients" in found.headline()

    def test_estimates_are_the_means_and_each_area(self) -> None:
        found = scored(2, resamples=9)
        names = [name for name, _, _ in found.estimates()]
        assert names[:2] == ["mean area under the ROC curve", "mean average precision"]
        assert names[2:] == [f"area for {item.name}" for item in found.scored]
        guess = found.estimates()[1][2]
        assert guess == pytest.approx(np.mean([item.prevalence for item in found.scored]))

    def test_findings_that_are_all_absent_are_not_scored(self) -> None:
        sets = np.zeros((3, 2), dtype=np.uint8)
        found = score_label_sets(sets, np.full((3, 2), 0.2), list("xyz"), classes="ab")
        assert (found.mean_auc, found.mean_average_precision) == (None, None)
        assert found.estimates() == []
        assert "no finding is both seen and absent" in found.headline()
        assert found.without_finding == 3
        assert mean_area(sets, np.full((3, 2), 0.2)) is None
