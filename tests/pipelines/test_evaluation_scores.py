"""Means over seeds and patients against slow loops: one patient, one resample at a time."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import balanced_accuracy_score

from pipelines.comparison_measures import Truth
from pipelines.evaluation_scores import Resampling, above_chance, bands, mean_scores, means

LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 2, 1, 0])
PATIENTS = tuple(f"patient{i // 2}" for i in range(12))
AREA = "input_perturbation@zero"


def resampling(resamples: int = 30, *, balanced: bool = True) -> Resampling:
    return Resampling(
        truth=Truth(labels=LABELS, subject_ids=PATIENTS),
        classes=LABELS if balanced else None,
        resamples=resamples,
        seed=3,
    )


def sample_of(weights: np.ndarray) -> np.ndarray:
    """Write a resample out, sample by sample."""
    return np.array([i for i, weight in enumerate(weights) for _ in range(int(weight))], dtype=int)


def slow_mean(values: np.ndarray, indices: np.ndarray, *, balanced: bool) -> float:
    chosen, labels = values[indices], LABELS[indices]
    kinds = sorted(set(labels.tolist())) if balanced else [None]
    each = []
    for kind in kinds:
        own = [x for x, label in zip(chosen, labels, strict=True) if kind in (None, label)]
        defined = [x for x in own if not math.isnan(x)]
        if defined:
            each.append(sum(defined) / len(defined))
    return sum(each) / len(each) if each else math.nan


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


class TestMeans:
    def test_a_slow_loop_over_resampled_patients_gives_the_same(
        self, rng: np.random.Generator
    ) -> None:
        precision = rng.random(12)
        precision[[0, 1, 6, 11]] = np.nan  # no true region
        seeds = [{"average_precision": precision, AREA: rng.random(12)} for _ in range(2)]
        seeds[1]["average_precision"] = np.where(np.isnan(precision), np.nan, rng.random(12))
        asked = resampling()
        (found,) = mean_scores([seeds], asked)
        draws = np.concatenate(list(asked.truth.draws(30, 3)))
        for name, balanced in (("average_precision", False), (AREA, True)):
            whole = [slow_mean(run[name], np.arange(12), balanced=balanced) for run in seeds]
            drawn = [
                np.mean([slow_mean(run[name], sample_of(row), balanced=balanced) for run in seeds])
                for row in draws
            ]
            assert_allclose(found[name].values, whole, atol=1e-12)
            assert_allclose(found[name].mean, np.mean(whole), atol=1e-12)
            assert_allclose(found[name].sd, np.std(whole, ddof=1), atol=1e-12)
            assert_allclose(found[name].drawn, drawn, atol=1e-12)
            low, high = np.percentile(drawn, (2.5, 97.5))
            assert_allclose((found[name].low, found[name].high), (low, high), atol=1e-12)

    def test_entries_drawn_together_are_those_drawn_alone(self, rng: np.random.Generator) -> None:
        entries = [[{"gini": rng.random(12)}], [{"gini": rng.random(12), AREA: rng.random(12)}]]
        together = mean_scores(entries, resampling())
        for alone, found in zip(entries, together, strict=True):
            (expected,) = mean_scores([alone], resampling())
            assert found.keys() == expected.keys()
            for name, score in found.items():
                assert_allclose(score.drawn, expected[name].drawn, atol=1e-13)

    def test_one_seed_has_no_spread_and_no_resamples_no_interval(self) -> None:
        (found,) = mean_scores([[{"gini": np.arange(12.0)}]], resampling(0))
        score = found["gini"]
        assert score.mean == 5.5
        assert math.isnan(score.sd)
        assert math.isnan(score.low)
        assert score.drawn.shape == (0,)

    def test_a_seed_without_a_measure_takes_no_part_in_its_mean(self) -> None:
        (found,) = mean_scores([[{"gini": np.ones(12)}, {"entropy": np.zeros(12)}]], resampling())
        assert found["gini"].values == (1.0,)
        assert found["entropy"].mean == 0

    def test_an_infinite_score_makes_the_mean_infinite(self) -> None:
        values = np.ones(12)
        values[4] = np.inf
        (found,) = mean_scores([[{"kl_from_fine": values}]], resampling())
        assert found["kl_from_fine"].mean == math.inf
        assert set(found["kl_from_fine"].drawn.tolist()) == {1.0, math.inf}

    def test_a_lost_class_takes_no_part_and_nothing_without_weight_is_defined(self) -> None:
        values = LABELS.astype(np.float64)[:, None]
        weights = np.stack([(LABELS == 2) * 1.0, np.zeros(12)])
        found = means(values, weights, LABELS, np.array([True]))
        assert found[0, 0] == 2
        assert math.isnan(found[1, 0])

    def test_no_entry_has_no_scores(self) -> None:
        assert mean_scores([], resampling()) == []
        assert mean_scores([[{}]], resampling()) == [{}]

    def test_the_area_above_chance_is_the_area_less_chance(self, rng: np.random.Generator) -> None:
        (found,) = mean_scores([[{AREA: rng.random(12), "gini": rng.random(12)}]], resampling())
        above = above_chance(found, 1 / 3)
        assert above.keys() == {"input_perturbation_above_chance@zero"}
        score = above["input_perturbation_above_chance@zero"]
        assert_allclose(score.mean, found[AREA].mean - 1 / 3)
        assert_allclose(score.low, found[AREA].low - 1 / 3)
        assert_allclose(score.drawn, found[AREA].drawn - 1 / 3)


class TestBands:
    def test_a_curve_of_right_answers_is_scikit_learns_balanced_accuracy(
        self, rng: np.random.Generator
    ) -> None:
        removed = np.ones(12, dtype=bool)
        removed[[2, 9]] = False
        predictions = rng.integers(0, 3, (2, 10, 4))
        labels = LABELS[removed]
        curves = [(seed == labels[:, None]).astype(float) for seed in predictions]
        (band,) = bands([curves], removed, resampling())
        expected = [
            [balanced_accuracy_score(labels, seed[:, step]) for step in range(4)]
            for seed in predictions
        ]
        assert_allclose(band.mean, np.mean(expected, axis=0))
        assert_allclose(band.sd, np.std(expected, axis=0, ddof=1))
        assert (band.low <= band.mean + 1e-12).all()
        assert (band.high >= band.mean - 1e-12).all()

    def test_bands_drawn_together_are_those_drawn_alone(self, rng: np.random.Generator) -> None:
        removed = np.ones(12, dtype=bool)
        one, other = [rng.random((12, 3))], [rng.random((12, 3)), rng.random((12, 3))]
        together = bands([one, other], removed, resampling())
        for curves, found in zip((one, other), together, strict=True):
            (expected,) = bands([curves], removed, resampling())
            assert_allclose(found.low, expected.low)
            assert_allclose(found.high, expected.high)
            assert_allclose(found.mean, expected.mean)

    def test_without_resamples_there_is_no_interval(self) -> None:
        (band,) = bands([[np.ones((12, 3))]], np.ones(12, dtype=bool), resampling(0))
        assert_allclose(band.mean, np.ones(3))
        assert np.isnan(band.low).all()
        assert np.isnan(band.sd).all()

    def test_label_sets_are_averaged_over_samples(self, rng: np.random.Generator) -> None:
        heights = rng.random((12, 3))
        (band,) = bands([[heights]], np.ones(12, dtype=bool), resampling(balanced=False))
        assert_allclose(band.mean, heights.mean(axis=0))

    def test_no_curve_has_no_band(self) -> None:
        assert bands([], np.ones(12, dtype=bool), resampling()) == []
