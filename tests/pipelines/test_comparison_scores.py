"""Weighted measures, intervals over patients, paired differences and Holm, each the slow way."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pipelines import comparison_measures, comparison_scores, scores
from pipelines.comparison_measures import UNIFORM, RunScores, Truth, measure
from pipelines.comparison_scores import differences, holm, p_value, score_variants

MAP = "average_precision_fine"


def run_of(
    probabilities: np.ndarray, *, variant: str = "exact", seed: int = 0, **maps: np.ndarray
) -> RunScores:
    return RunScores(
        variant=variant,
        seed=seed,
        probabilities=probabilities,
        maps=maps,
        parameters=10,
        seconds_per_epoch=1.0,
        epochs=2,
        best_epoch=1,
    )


def classes_of(n: int = 40, seed: int = 0) -> tuple[Truth, np.ndarray]:
    """Three classes, two samples per patient, and probabilities that know something."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) // 2 % 3
    raw = rng.uniform(0.1, 1, (n, 3)) + 0.4 * np.eye(3)[labels]
    ids = tuple(f"p{i // 2}" for i in range(n))
    return Truth(labels=labels, subject_ids=ids), raw / raw.sum(axis=1, keepdims=True)


def drawn_by_hand(truth: Truth, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each resample, every sample as often as its patient was drawn."""
    for weights in truth.draws(resamples, seed):
        for row in weights:
            yield np.repeat(np.arange(len(row)), row.astype(int))


class TestMeasures:
    def test_whole_weights_are_repeated_samples(self) -> None:
        """A sample that weighs 3 counts as one that is there three times."""
        truth, probabilities = classes_of()
        rng = np.random.default_rng(1)
        maps = np.where(rng.uniform(size=40) < 0.5, rng.uniform(size=40), np.nan)
        weights = rng.integers(0, 4, (5, 40)).astype(np.float64)
        found = measure(truth, run_of(probabilities, **{MAP: maps}), weights)
        for draw, row in enumerate(weights.astype(int)):
            taken = np.repeat(np.arange(40), row)
            y, p = truth.labels[taken], probabilities[taken]
            area = np.mean([roc_auc_score(y == k, p[:, k]) for k in range(3)])
            assert_allclose(found["accuracy"][draw], np.mean(p.argmax(1) == y))
            assert_allclose(
                found["balanced_accuracy"][draw], balanced_accuracy_score(y, p.argmax(1))
            )
            assert_allclose(found["auc"][draw], area)
            assert_allclose(found["calibration_error"][draw], scores.calibration_error(y, p))
            assert_allclose(found[MAP][draw], np.nanmean(maps[taken]))

    def test_several_findings_are_scored_one_by_one_and_averaged(self) -> None:
        rng = np.random.default_rng(2)
        labels = rng.integers(0, 2, (30, 4))
        labels[:, 3] = 0  # never there: no balance and no area of its own
        probabilities = rng.uniform(size=(30, 4))
        truth = Truth(labels=labels, subject_ids=tuple(f"p{i // 3}" for i in range(30)))
        found = measure(truth, run_of(probabilities), np.ones((1, 30)))
        each = [(labels[:, k], probabilities[:, k]) for k in range(3)]
        assert_allclose(found["auc"], np.mean([roc_auc_score(y, p) for y, p in each]))
        assert_allclose(found["accuracy"], np.mean([np.mean((p >= 0.5) == y) for y, p in each]))
        balanced = [balanced_accuracy_score(y, p >= 0.5) for y, p in each]
        assert_allclose(found["balanced_accuracy"], np.mean(balanced))
        errors = [scores.binned_error(y > 0, p) for y, p in each]
        assert_allclose(found["calibration_error"], np.mean(errors))

    def test_what_a_split_does_not_define_is_left_out(self) -> None:
        truth = Truth(labels=np.zeros(4, dtype=np.int64), subject_ids=("a", "b", "c", "d"))
        maps = {MAP: np.full(4, np.nan), UNIFORM: np.array([0.5, np.nan, np.nan, np.nan])}
        found = measure(truth, run_of(np.full((4, 2), 0.5), **maps), np.ones((1, 4)))
        assert set(found) == {"accuracy", "balanced_accuracy", "calibration_error", UNIFORM}
        none = Truth(labels=np.zeros((4, 2), dtype=np.int64), subject_ids=truth.subject_ids)
        assert measure(none, run_of(np.full((4, 2), 0.5)), np.ones((1, 4))) == {}

    def test_a_resample_without_any_true_region_has_no_average_precision(self) -> None:
        truth, probabilities = classes_of(4)
        run = run_of(probabilities, **{MAP: np.array([0.25, np.nan, np.nan, np.nan])})
        found = measure(truth, run, np.array([[1.0, 1, 1, 1], [0, 1, 1, 1]]))
        assert_allclose(found[MAP], [0.25, np.nan])


class TestDraws:
    def test_patients_are_drawn_whole_and_classes_stay(self) -> None:
        truth, _ = classes_of(60)
        blocks = list(truth.draws(30, seed=4))
        weights = np.concatenate(blocks)
        assert weights.shape == (30, 60)
        assert np.array_equal(weights[:, ::2], weights[:, 1::2])  # two samples per patient
        for label in range(3):
            per_class = weights[:, truth.labels == label].sum(axis=1)
            assert_allclose(per_class, (truth.labels == label).sum())

    def test_blocks_do_not_repeat_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(comparison_measures, "DRAWS_AT_ONCE", 4)
        truth, _ = classes_of(60)
        blocks = list(truth.draws(10, seed=4))
        assert [len(block) for block in blocks] == [4, 4, 2]
        assert not any(np.array_equal(one[:2], other[:2]) for one, other in pairwise(blocks))


class TestScores:
    def test_seeds_are_averaged_inside_each_resample_of_the_patients(self) -> None:
        truth, first = classes_of()
        _, second = classes_of(seed=1)
        runs = [run_of(first, seed=0), run_of(second, seed=1)]
        found = score_variants(truth, runs, resamples=60, seed=5)["exact"]["accuracy"]
        right = [p.argmax(axis=1) == truth.labels for p in (first, second)]
        assert_allclose(found.values, [r.mean() for r in right])
        assert_allclose(found.mean, np.mean(right))
        assert_allclose(found.sd, np.std([r.mean() for r in right], ddof=1))
        by_hand = [
            np.mean([r[taken].mean() for r in right]) for taken in drawn_by_hand(truth, 60, 5)
        ]
        assert_allclose(found.drawn, by_hand)
        assert_allclose((found.low, found.high), np.percentile(by_hand, (2.5, 97.5)))

    def test_one_seed_has_no_standard_deviation_and_no_resamples_no_interval(self) -> None:
        truth, probabilities = classes_of()
        found = score_variants(truth, [run_of(probabilities)], resamples=0)["exact"]["auc"]
        assert np.isnan([found.sd, found.low, found.high]).all()
        assert np.isfinite(found.mean)

    def test_the_interval_covers_what_it_should(self) -> None:
        """Of 95 % intervals for a known mean over patients, about that share hold it."""
        held = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            of_patient = np.repeat(rng.normal(0.5, 0.1, 50), 2)
            truth = Truth(
                labels=np.zeros(100, dtype=np.int64),
                subject_ids=tuple(f"p{i // 2}" for i in range(100)),
            )
            run = run_of(np.full((100, 2), 0.5), **{MAP: of_patient + rng.normal(0, 0.05, 100)})
            found = score_variants(truth, [run], resamples=200, seed=seed)["exact"][MAP]
            held += found.low <= 0.5 <= found.high
        assert 51 <= held <= 60


class TestDifferences:
    def test_they_are_variant_minus_reference_in_the_same_resamples(self) -> None:
        truth, good = classes_of()
        noise = np.random.default_rng(3).permutation(good)
        runs = [run_of(noise, variant="baseline"), run_of(good, variant="exact")]
        found = score_variants(truth, runs, resamples=80, seed=2)
        (gain,) = [d for d in differences(found, against="baseline") if d.measure == "accuracy"]
        right = [p.argmax(axis=1) == truth.labels for p in (noise, good)]
        by_hand = [
            right[1][taken].mean() - right[0][taken].mean() for taken in drawn_by_hand(truth, 80, 2)
        ]
        assert gain.value == pytest.approx(right[1].mean() - right[0].mean())
        assert gain.value > 0
        assert_allclose((gain.low, gain.high), np.percentile(by_hand, (2.5, 97.5)))
        assert gain.p == pytest.approx(p_value(np.array(by_hand)))
        (loss,) = [d for d in differences(found, against="exact") if d.measure == "accuracy"]
        assert (loss.variant, loss.against) == ("baseline", "exact")
        assert (loss.value, loss.low, loss.high, loss.p) == pytest.approx(
            (-gain.value, -gain.high, -gain.low, gain.p)
        )

    def test_pairing_removes_what_patients_have_in_common(self) -> None:
        """Hard patients are hard for both: the interval of a constant gain has no width."""
        truth, probabilities = classes_of()
        hard = np.random.default_rng(0).uniform(size=40)
        runs = [
            run_of(probabilities, variant="baseline", **{MAP: hard}),
            run_of(probabilities, variant="exact", **{MAP: hard + 0.1}),
        ]
        found = score_variants(truth, runs, resamples=50)
        (gain,) = [d for d in differences(found, against="baseline") if d.measure == MAP]
        assert found["exact"][MAP].high - found["exact"][MAP].low > 0.1
        assert_allclose((gain.low, gain.value, gain.high), 0.1)

    def test_only_what_both_have_is_compared_and_no_control(self) -> None:
        truth, probabilities = classes_of()
        scored = np.full(40, 0.5)
        runs = [
            run_of(probabilities, variant="baseline", **{UNIFORM: scored}),
            run_of(probabilities, variant="exact", **{MAP: scored, UNIFORM: scored}),
        ]
        found = differences(score_variants(truth, runs, resamples=10), against="baseline")
        assert {d.measure for d in found} == set(comparison_measures.PREDICTION_MEASURES)

    def test_holm_counts_the_variants_compared_in_one_measure(self) -> None:
        truth, probabilities = classes_of()
        names = ("baseline", "fine", "exact")
        orders = [np.random.default_rng(i).permutation(40) for i in range(3)]
        runs = [
            run_of(probabilities[order], variant=name)
            for name, order in zip(names, orders, strict=True)
        ]
        found = differences(score_variants(truth, runs, resamples=40), against="baseline")
        for name in comparison_measures.PREDICTION_MEASURES:
            both = [d for d in found if d.measure == name]
            assert [d.variant for d in both] == ["fine", "exact"]
            assert [d.p_holm for d in both] == holm([d.p for d in both])


class TestHolm:
    def test_by_hand(self) -> None:
        """Smallest times three, next times two, last times one; none below one before it."""
        assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
        assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
        assert_allclose(holm([0.02]), [0.02])
        assert holm([]) == []

    def test_what_is_not_defined_is_not_counted(self) -> None:
        assert_allclose(holm([np.nan, 0.01, 0.03]), [np.nan, 0.02, 0.03])


class TestPValue:
    def test_by_hand(self) -> None:
        """Of 9 resamples one is below zero and one on it: twice (1 + 2) of 10."""
        drawn = np.array([-0.1, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
        assert p_value(drawn) == pytest.approx(2 * 3 / 10)
        assert p_value(-drawn) == p_value(drawn)
        assert p_value(np.array([*drawn, np.nan])) == p_value(drawn)

    def test_its_ends(self) -> None:
        assert p_value(np.zeros(99)) == 1.0
        assert p_value(np.full(99, 0.2)) == pytest.approx(2 / 100)
        assert np.isnan(p_value(np.array([])))
        assert np.isnan(p_value(np.array([np.nan])))

    def test_it_falls_below_five_percent_when_the_interval_leaves_zero(self) -> None:
        drawn = np.random.default_rng(0).normal(1, 1, 999)
        for shift in np.linspace(-3, 3, 13):
            low, high = np.percentile(drawn - shift, comparison_scores.INTERVAL)
            assert (p_value(drawn - shift) < 0.05) == (low > 0 or high < 0)
