"""Verdicts of constructed cases, and which rivals a claim is held against."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from pipelines.comparison_scores import MeanScore, holm
from pipelines.evaluation_claims import CLAIMS, HEADLINES
from pipelines.evaluation_findings import Comparison, Finding, absent, findings, model_like
from pipelines.evaluation_records import Entry, Evaluation
from pipelines.evaluation_sentences import (
    claim_rows,
    comparison_rows,
    finding_rows,
    told,
    verdict,
)
from pipelines.evaluation_verdicts import (
    MEANINGS,
    WORST_FIRST,
    Advantage,
    Measured,
    advantage,
    one_sided_p,
    t_interval,
)
from tests.pipelines.evaluations import RESAMPLES, constant, evaluation, without


def measured(
    mean: float,
    values: tuple[float, ...],
    low: float,
    high: float,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> Measured:
    score = constant(mean, values, low=low, high=high)
    return Measured(name="it", score=score, seeds=seeds[: len(values)])


ZERO = measured(0.0, (0.0, 0.0, 0.0), 0.0, 0.0)
TIGHT, WIDE = (0.09, 0.1, 0.11), (-0.3, 0.1, 0.5)


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "values", "margin", "word"),
        [
            (0.05, 0.15, TIGHT, 0.0, "holds"),
            (0.05, 0.15, WIDE, 0.0, "holds for these runs only"),
            (-0.05, 0.25, TIGHT, 0.0, "not shown"),
            (-0.15, -0.05, tuple(-x for x in TIGHT), 0.0, "does not hold"),
            (0.05, 0.15, (0.1,), 0.0, "cannot be said"),
            (-0.008, 0.004, (-0.003, -0.002, -0.001), 0.01, "holds"),
            (-0.012, 0.004, (-0.003, -0.002, -0.001), 0.01, "not shown"),
            (-0.03, -0.02, (-0.025, -0.025, -0.024), 0.01, "does not hold"),
            (-0.008, -0.004, (-0.003, -0.002, -0.001), 0.0, "does not hold"),
        ],
    )
    def test_each_word_by_a_constructed_case(
        self, low: float, high: float, values: tuple[float, ...], margin: float, word: str
    ) -> None:
        ours = measured(float(np.mean(values)), values, low, high)
        found = advantage(ours, ZERO, higher_is_better=True, margin=margin)
        assert found.verdict == word
        assert word in MEANINGS

    def test_every_word_has_a_place_and_a_meaning(self) -> None:
        assert set(WORST_FIRST) == set(MEANINGS)

    def test_lower_is_better_turns_everything(self) -> None:
        ours = measured(0.1, TIGHT, 0.05, 0.15)
        rise = advantage(ours, ZERO, higher_is_better=True)
        fall = advantage(ours, ZERO, higher_is_better=False)
        assert fall.value == -rise.value
        assert_allclose((fall.low, fall.high), (-rise.high, -rise.low))
        assert_allclose((fall.seeds_low, fall.seeds_high), (-rise.seeds_high, -rise.seeds_low))
        assert fall.verdict == "does not hold"

    def test_interval_is_that_of_paired_resamples(self) -> None:
        rng = np.random.default_rng(0)
        common, noise = rng.normal(size=RESAMPLES), 0.01 * rng.normal(size=RESAMPLES)
        ours = measured(1.1, (1.1, 1.1), 0.0, 1.0)
        theirs = measured(1.0, (1.0, 1.0), 0.0, 1.0)
        ours = replace(ours, score=replace(ours.score, drawn=common + 0.1 + noise))
        theirs = replace(theirs, score=replace(theirs.score, drawn=common))
        found = advantage(ours, theirs, higher_is_better=True)
        expected = np.percentile(0.1 + noise, (2.5, 97.5))
        assert_allclose((found.low, found.high), expected, atol=1e-12)

    def test_seeds_are_paired_by_number_and_not_by_place(self) -> None:
        ours = measured(0.5, (0.1, 0.5, 0.9), 0.4, 0.6, seeds=(0, 1, 2))
        theirs = measured(0.5, (0.8, 0.0, 0.4), 0.4, 0.6, seeds=(2, 0, 1))
        found = advantage(ours, theirs, higher_is_better=True)
        assert found.seeds == 3
        assert_allclose((found.seeds_low, found.seeds_high), (0.1, 0.1), atol=1e-12)

    def test_what_no_training_made_stands_beside_every_seed(self) -> None:
        ours = measured(0.1, TIGHT, 0.05, 0.15)
        control = Measured(name="c", score=constant(0.02, (0.02,), low=0.02, high=0.02), seeds=())
        found = advantage(ours, control, higher_is_better=True)
        assert found.seeds == 3
        assert found.seeds_mean == pytest.approx(0.08)
        assert found.verdict == "holds"

    def test_seeds_that_do_not_meet_cannot_be_paired(self) -> None:
        ours = measured(0.1, TIGHT, 0.05, 0.15, seeds=(0, 1, 2))
        theirs = measured(0.0, (0.0, 0.0, 0.0), 0.0, 0.0, seeds=(7, 8, 9))
        found = advantage(ours, theirs, higher_is_better=True)
        assert (found.seeds, found.verdict) == (0, "cannot be said")
        assert "seed" in found.reason

    def test_without_resamples_nothing_can_be_said(self) -> None:
        bare = constant(0.1, TIGHT, low=math.nan, high=math.nan)
        bare = replace(bare, drawn=np.empty(0))
        found = advantage(
            Measured(name="a", score=bare, seeds=(0, 1, 2)), ZERO, higher_is_better=True
        )
        assert found.verdict == "cannot be said"
        assert found.reason == "no interval over patients"
        assert math.isnan(found.p)

    def test_t_interval_is_that_of_a_one_sample_test(self) -> None:
        values = [0.3, 0.1, 0.4, 0.15]
        mean, low, high = t_interval(values)
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert_allclose((mean, low, high), (np.mean(values), *expected), rtol=1e-12)
        assert t_interval([0.2, 0.2]) == (0.2, 0.2, 0.2)
        assert np.isnan(t_interval([0.2])[1])
        assert np.isnan(t_interval([])[0])

    def test_p_is_never_zero(self) -> None:
        assert one_sided_p(np.ones(99)) == 0.01
        assert one_sided_p(-np.ones(99)) == 1.0
        assert math.isnan(one_sided_p(np.empty(0)))


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation(transformer=True)


@pytest.fixture(scope="module")
def made(found: Evaluation) -> list[Finding]:
    return findings(found)


def of(made: list[Finding], claim: str, model: str) -> Finding:
    (item,) = [x for x in made if (x.claim, x.model) == (claim, model)]
    return item


def pairs(item: Finding) -> set[tuple[str, str]]:
    return {(x.subject, x.rival) for x in item.comparisons}


class TestRivals:
    def test_each_claim_is_made_of_each_headline_that_it_names(self, made: list[Finding]) -> None:
        expected = [
            (name, model)
            for model in HEADLINES
            for name, claim in CLAIMS.items()
            if model in claim.subjects and model != "pyramid"  # not among the runs
        ]
        assert [(item.claim, item.model) for item in made] == expected

    def test_post_hoc_methods_meet_maps_of_their_level(self, made: list[Finding]) -> None:
        found = pairs(of(made, "finds-more-than-post-hoc", "dual"))
        fine = {"baseline gradcam fine", "baseline deeplift", "baseline lrp"}
        coarse = {"baseline gradcam coarse", "baseline deeplift", "baseline lrp"}
        assert found == {
            *(("dual attention fine", name) for name in fine),
            *(("dual attention coarse", name) for name in coarse),
        }

    def test_maps_summed_over_cells_take_the_place_of_pixels_but_for_the_finest(self) -> None:
        found = evaluation(variants=("baseline", "exact"))
        pooled = Entry(model="baseline", method="lrp", level="fine", kind="post-hoc", seeds=(0,))
        entries = {**found.entries, pooled.name: pooled}
        scores = {**found.scores, pooled.name: found.scores["baseline lrp"]}
        made = findings(replace(found, entries=entries, scores=scores))
        on_the_grid = pairs(of(made, "finds-more-than-post-hoc", "exact"))
        assert ("exact attention fine", "baseline lrp fine") in on_the_grid
        assert ("exact attention fine", "baseline lrp") not in on_the_grid
        assert ("exact attention coarse", "baseline lrp") in on_the_grid
        assert pairs(of(made, "finds-more-than-pixels", "exact")) == {
            ("exact attention fine", "baseline gradcam fine"),
            ("exact attention fine", "baseline deeplift"),
            ("exact attention fine", "baseline lrp"),
        }

    def test_one_gate_is_met_on_its_level_only(self, made: list[Finding]) -> None:
        assert pairs(of(made, "finds-more-than-one-gate", "dual")) == {
            ("dual attention fine", "fine attention fine"),
            ("dual attention coarse", "coarse attention coarse"),
        }

    def test_every_fill_is_a_comparison(self, made: list[Finding]) -> None:
        item = of(made, "lasts-longer-than-post-hoc", "exact")
        assert {x.measure for x in item.comparisons} == {
            "input_perturbation@zero",
            "input_perturbation@mean",
        }
        assert len(item.comparisons) == 2 * 6

    def test_the_truth_is_no_rival(self, made: list[Finding]) -> None:
        rivals = {x.rival for x in of(made, "knows-more-than-nothing", "dual").comparisons}
        assert rivals == {"random", "uniform", "gaussian", "mean-mask", "edges"}

    def test_agreement_is_compared_once(self, made: list[Finding]) -> None:
        assert len(of(made, "levels-agree-more", "dual").comparisons) == 3

    def test_agreement_may_stand_at_either_level(self, found: Evaluation) -> None:
        scores = {
            name: {k: v for k, v in mine.items() if k != "total_variation" or "coarse" in name}
            for name, mine in found.scores.items()
        }
        moved = findings(replace(found, scores=scores))
        assert of(moved, "levels-agree-more", "exact").verdict == "holds"

    def test_free_gates_after_the_program_stand_in_for_cvx(self, found: Evaluation) -> None:
        free = found.entries["unconstrained attention fine"]
        after = replace(free, method="cvx", kind="post-hoc")
        entries = {k: v for k, v in found.entries.items() if v.model != "cvx"} | {after.name: after}
        scores = {**found.scores, after.name: found.scores["cvx attention fine"]}
        models = {k: v for k, v in found.models.items() if k != "cvx"}
        item = of(
            findings(replace(found, entries=entries, scores=scores, models=models)),
            "finds-more-than-cvx",
            "dual",
        )
        assert ("dual attention fine", "unconstrained cvx fine") in pairs(item)

    def test_the_most_alike_model_is_compared_with(self, found: Evaluation) -> None:
        dual = found.models["dual"]
        thawed = replace(found.models["unconstrained"], name="unconstrained, thawed", frozen=False)
        models = {"unconstrained, thawed": thawed, **found.models}
        both = replace(found, models=models)
        assert model_like(both, dual, "unconstrained") == found.models["unconstrained"]
        assert model_like(both, replace(dual, frozen=False), "unconstrained") == thawed
        assert model_like(both, replace(dual, network="resnet18"), "unconstrained") is None


class TestFindings:
    def test_a_claim_is_as_good_as_its_worst_comparison(self, made: list[Finding]) -> None:
        for item in made:
            words = [x.verdict for x in item.comparisons]
            assert item.verdict == min(words, key=WORST_FIRST.index)
            assert item.decisive.verdict == item.verdict
            assert item.p == max(x.found.p for x in item.comparisons if x.found)

    def test_holm_counts_the_claims(self, made: list[Finding]) -> None:
        assert [item.p_holm for item in made] == holm([item.p for item in made])

    def test_a_better_rival_makes_a_claim_fail(self, found: Evaluation) -> None:
        better = found.scores["true-mask"]["average_precision"]
        rival = replace(better, values=(1.0,) * 5)
        mine = {**found.scores["baseline gradcam fine"], "average_precision": rival}
        made = findings(replace(found, scores={**found.scores, "baseline gradcam fine": mine}))
        item = of(made, "finds-more-than-post-hoc", "exact")
        assert item.verdict == "does not hold"
        assert item.decisive.rival == "baseline gradcam fine"
        assert item.decisive.found is not None
        assert item.decisive.found.value < 0
        assert of(made, "finds-more-than-unconstrained", "exact").verdict == "holds"

    def test_one_seed_cannot_be_said_and_says_why(self) -> None:
        made = findings(evaluation(seeds=1, variants=("baseline", "unconstrained", "dual")))
        item = of(made, "finds-more-than-unconstrained", "dual")
        assert item.verdict == "cannot be said"
        assert "one seed" in told(item.decisive)
        assert math.isfinite(item.p)

    @pytest.mark.parametrize(
        ("claim", "missing"),
        [
            ("finds-more-than-post-hoc", "AP of a method applied to baseline was not measured"),
            ("finds-more-than-transformer", "AP of a transformer was not measured"),
            ("finds-more-than-cvx", "AP of cvx was not measured"),
            ("accuracy-is-kept", "balanced accuracy of baseline was not measured"),
        ],
    )
    def test_a_missing_rival_is_named(self, claim: str, missing: str) -> None:
        made = findings(evaluation(seeds=2, variants=("unconstrained", "dual")))
        item = of(made, claim, "dual")
        assert item.verdict == "cannot be said"
        assert told(item.decisive) == missing
        assert math.isnan(item.p)

    def test_without_masks_and_controls_claims_about_regions_cannot_be_said(self) -> None:
        bare = evaluation(seeds=2, variants=("baseline", "unconstrained", "dual"), masks=False)
        kept = {k: v for k, v in bare.entries.items() if v.kind != "control"}
        made = findings(replace(bare, entries=kept))
        item = of(made, "finds-more-than-unconstrained", "dual")
        assert told(item.decisive) == "AP of dual attention fine was not measured"
        assert told(of(made, "knows-more-than-nothing", "dual").decisive) == (
            "no maps to compare AP with were measured"
        )

    def test_variants_that_are_not_there_are_known(self, found: Evaluation) -> None:
        assert absent(found) == []
        assert absent(evaluation(seeds=1, variants=("dual",))) == ["exact", "dual-published"]
        assert findings(evaluation(seeds=1, variants=("baseline",))) == []


class TestSentences:
    def test_three_to_six_sentences(self, found: Evaluation, made: list[Finding]) -> None:
        for item, claims in (
            (found, made),
            (evaluation(seeds=1, variants=("dual",), masks=False, curves=False), []),
        ):
            assert 3 <= len(verdict(item, claims)) <= 6

    def test_the_best_map_and_the_best_control_are_named(
        self, found: Evaluation, made: list[Finding]
    ) -> None:
        first = verdict(found, made)[0]
        assert "'exact attention coarse' find the true region best" in first
        assert "('mean-mask') reaches 25.0 %" in first

    def test_what_does_not_hold_is_named(self, found: Evaluation, made: list[Finding]) -> None:
        text = " ".join(verdict(found, made))
        assert "Of 14 claims made of 'exact', all hold." in text
        failing = of(made, "lasts-longer-than-post-hoc", "dual-published")
        assert failing.verdict == "not shown"
        assert f"1 is not shown ({CLAIMS[failing.claim].short})" in text

    def test_a_best_map_that_breaks_its_law_is_told(
        self, found: Evaluation, made: list[Finding]
    ) -> None:
        best = "exact attention coarse"
        broken = replace(found, verdicts={best: {"sound": 3, "refused": 1}})
        assert "25 % of them break what their method promises" in verdict(broken, made)[0]
        kept = replace(found, verdicts={best: {"sound": 19, "refused": 1}})
        assert "break" not in verdict(kept, made)[0]

    def test_accuracy_is_told_by_verdict(self, found: Evaluation, made: list[Finding]) -> None:
        worse = found.models["dual"]
        low = {**worse.scores, "balanced_accuracy": constant(0.5, (0.5,) * 5, low=0.4, high=0.6)}
        models = {**found.models, "dual": replace(worse, scores=low)}
        changed = replace(found, models=models)
        text = verdict(changed, findings(changed))[1]
        assert "holds for 'exact' and 'dual-published'" in text
        assert "does not hold for 'dual'" in text

    def test_phantoms_and_people_are_told_apart(
        self, found: Evaluation, made: list[Finding]
    ) -> None:
        assert "says nothing of people" in verdict(found, made)[-1]
        assert "says nothing of people" not in verdict(replace(found, synthetic=False), made)[-1]

    def test_nothing_to_claim_says_so(self) -> None:
        bare = evaluation(seeds=1, variants=("baseline",), masks=False)
        text = " ".join(verdict(bare, findings(bare)))
        assert "nothing can be said of them" in text
        assert "No true regions were measured" in text

    def test_a_claim_that_is_not_made_of_a_model_is_empty(self, made: list[Finding]) -> None:
        rows = {row["claim"]: row for row in claim_rows(made)}
        ours = rows[CLAIMS["exact-is-no-worse"].sentence]
        assert (ours["claimed by"], ours["exact"], ours["dual"]) == ("us", "holds", "")

    def test_rows_for_programs_hold_every_comparison(self, made: list[Finding]) -> None:
        rows = comparison_rows(made)
        assert len(rows) == sum(len(item.comparisons) for item in made)
        first = made[0].comparisons[0]
        assert first.found is not None
        assert (rows[0]["advantage"], rows[0]["seeds_low"]) == (
            first.found.value,
            first.found.seeds_low,
        )
        missing = Comparison(subject="a", rival="b", measure="gini", missing="gone")
        item = Finding(claim="levels-agree-more", model="a", comparisons=(missing,))
        (row,) = comparison_rows([item])
        assert (row["verdict"], row["advantage"], row["missing"]) == ("cannot be said", "", "gone")

    def test_what_a_verdict_hangs_on_is_told_with_both_intervals(self, made: list[Finding]) -> None:
        rows = {(row["model"], row["claim"]): row for row in finding_rows(made)}
        text = str(rows["exact", CLAIMS["finds-more-than-post-hoc"].sentence]["hangs on"])
        assert text.startswith("exact attention fine against baseline gradcam fine: +19.0 points")
        assert "patients +" in text
        assert "5 trainings +" in text


def test_an_advantage_is_plain_numbers() -> None:
    found = advantage(ZERO, ZERO, higher_is_better=True)
    assert isinstance(found, Advantage)
    assert isinstance(ZERO.score, MeanScore)
    assert (found.value, found.low, found.high, found.verdict) == (0.0, 0.0, 0.0, "not shown")


def test_scores_without_a_measure_leave_it_out(found: Evaluation) -> None:
    bare = without(found, "total_variation")
    item = of(findings(bare), "levels-agree-more", "dual")
    assert item.verdict == "cannot be said"
