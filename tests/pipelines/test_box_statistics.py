"""Means and intervals of cases: against loops over patients, and against the scores of a run."""

import numpy as np
import pytest

from pipelines.box_measures import MEASURES
from pipelines.box_records import MEAN, MEAN_BOX, TRUE_BOX
from pipelines.box_statistics import (
    COMPARED,
    against_mean_box,
    case_draws,
    mean_score,
    score_areas,
    score_cases,
)
from pipelines.label_set_scores import score_label_sets

FINDINGS = ("a", "b", "c", "d")
SUBJECTS = ("p", "p", "q", "q", "r", "s", "s", "t")
COLUMNS = np.array([0, 1, 0, 0, 1, 1, 0, 2])  # one patient has finding c, nobody has d
RNG = np.random.default_rng(0)
SEEDS = [RNG.random((len(COLUMNS), len(MEASURES))) for _ in range(2)]


def draws(resamples: int = 200) -> np.ndarray:
    return case_draws(COLUMNS, SUBJECTS, resamples=resamples, seed=3)


def scored(per_seed: list[np.ndarray] = SEEDS) -> dict:
    return dict(
        score_cases(per_seed, COLUMNS, findings=FINDINGS, subject_ids=SUBJECTS, draws=draws())
    )


class TestCases:
    def test_means_over_cases_then_seeds_then_findings(self) -> None:
        found = scored()
        for k, name in enumerate(FINDINGS[:3]):
            own = [table[k == COLUMNS].mean(axis=0) for table in SEEDS]
            for i, measure in enumerate(MEASURES):
                score = found[name][measure]
                assert score.values == pytest.approx([own[0][i], own[1][i]])
                assert score.sd == pytest.approx(np.std([own[0][i], own[1][i]], ddof=1))
        mean = np.mean([found[name][MEASURES[0]].mean for name in FINDINGS[:3]])
        assert found[MEAN][MEASURES[0]].mean == pytest.approx(mean)

    def test_a_finding_without_a_box_has_no_score(self) -> None:
        assert set(scored()) == {"a", "b", "c", MEAN}

    def test_intervals_by_a_loop_over_the_patients_of_each_draw(self) -> None:
        found, counts = scored(), draws()
        values = []
        for draw in counts:
            rows = [i for i, times in enumerate(draw) for _ in range(int(times))]
            own = [i for i in rows if COLUMNS[i] == 0]
            if own:
                values.append(np.mean([table[own, 0].mean() for table in SEEDS]))
        low, high = np.percentile(values, (2.5, 97.5))
        assert (found["a"][MEASURES[0]].low, found["a"][MEASURES[0]].high) == pytest.approx(
            (low, high)
        )

    def test_patients_are_drawn_and_not_boxes(self) -> None:
        counts = draws()
        for subject in set(SUBJECTS):
            own = counts[:, [name == subject for name in SUBJECTS]]
            assert (own == own[:, :1]).all()
        twice = [np.repeat(SEEDS[0], 2, axis=0)]
        columns, subjects = np.repeat(COLUMNS, 2), tuple(np.repeat(SUBJECTS, 2).tolist())
        again = score_cases(
            twice,
            columns,
            findings=FINDINGS,
            subject_ids=subjects,
            draws=case_draws(columns, subjects, resamples=200, seed=3),
        )
        once = scored([SEEDS[0]])
        for name in ("a", "b", MEAN):
            one, other = once[name][MEASURES[0]], again[name][MEASURES[0]]
            assert (other.low, other.high) == pytest.approx((one.low, one.high))

    def test_one_patient_makes_no_interval(self) -> None:
        score = scored()["c"][MEASURES[0]]
        assert np.isnan([score.low, score.high]).all()
        assert np.isnan(scored([SEEDS[0]])["a"][MEASURES[0]].sd)

    def test_what_is_undefined_in_a_case_is_left_out(self) -> None:
        table = SEEDS[0].copy()
        table[0] = np.nan  # a case of finding a
        found = scored([table])
        own = table[[2, 3, 6], 0]
        assert found["a"][MEASURES[0]].mean == pytest.approx(own.mean())
        table[COLUMNS == 1] = np.nan
        assert set(scored([table])) == {"a", "c", MEAN}


class TestDifferences:
    def test_are_paired_and_leave_the_truth_out(self) -> None:
        scores = {"x": scored(), MEAN_BOX: scored([SEEDS[0]]), TRUE_BOX: scored([SEEDS[1]])}
        found = against_mean_box(scores)
        assert {item.variant for item in found} == {"x"}
        assert {item.measure for item in found} == set(COMPARED)
        item = next(item for item in found if item.measure == "iou_equal_area")
        x, other = scores["x"][MEAN]["iou_equal_area"], scores[MEAN_BOX][MEAN]["iou_equal_area"]
        assert item.value == pytest.approx(x.mean - other.mean)
        assert item.low == pytest.approx(np.nanpercentile(x.drawn - other.drawn, 2.5))

    def test_are_not_taken_over_different_findings(self) -> None:
        fewer = SEEDS[0].copy()
        fewer[COLUMNS == 2] = np.nan
        assert against_mean_box({"x": scored(), MEAN_BOX: scored([fewer])}) == ()
        assert against_mean_box({"x": scored()}) == ()


class TestAreas:
    def test_are_those_of_the_run(self) -> None:
        rng = np.random.default_rng(1)
        labels = (rng.random((40, 4)) < [0.3, 0.5, 0.1, 0.0]).astype(np.uint8)
        shares = rng.random((40, 4))
        subjects = [f"p{i // 2}" for i in range(40)]
        found = score_areas(labels, {0: shares}, subjects, classes=FINDINGS, resamples=100, seed=0)
        whole = score_label_sets(labels, shares, subjects, classes=FINDINGS, resamples=100, seed=0)
        assert "d" not in found
        for item in whole.scored:
            assert item.auc is not None
            assert found[item.name].mean == pytest.approx(item.auc.value)
            assert found[item.name].low <= item.auc.value <= found[item.name].high
        assert whole.mean_auc is not None
        assert found[MEAN].mean == pytest.approx(whole.mean_auc.value)

    def test_of_seeds_are_averaged_in_each_draw(self) -> None:
        rng = np.random.default_rng(2)
        labels = (rng.random((30, 2)) < 0.5).astype(np.uint8)
        shares = {seed: rng.random((30, 2)) for seed in (4, 7)}
        subjects = [f"p{i}" for i in range(30)]
        both, one, other = (
            score_areas(labels, x, subjects, classes=("a", "b"), resamples=60, seed=0)
            for x in (shares, {4: shares[4]}, {7: shares[7]})
        )
        assert both["a"].values == (one["a"].mean, other["a"].mean)
        assert both["a"].high - both["a"].low < max(x["a"].high - x["a"].low for x in (one, other))

    def test_a_split_of_one_kind_has_none(self) -> None:
        labels, shares = np.zeros((4, 2), dtype=np.uint8), np.full((4, 2), 0.5)
        subjects = ["a", "b", "c", "d"]
        assert (
            score_areas(labels, {0: shares}, subjects, classes=("a", "b"), resamples=9, seed=0)
            == {}
        )

    def test_no_resamples_make_no_interval(self) -> None:
        score = mean_score(np.array([0.5]), np.empty(0))
        assert np.isnan([score.low, score.high, score.sd]).all()
