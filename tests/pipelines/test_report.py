import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import bootstrap

from pipelines.pages import CaseView
from pipelines.plots import Estimate
from pipelines.report import Demo, Overlap, demo_report, gain, pick_cases, verdict

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"
NAN = float("nan")


def overlap(model, subject_ids=None, *, uniform=0.05, random=0.06):
    model = np.array(model, dtype=float)
    names = subject_ids or [f"subject{index}" for index in range(len(model))]
    return Overlap(
        method="attention-fine",
        subject_ids=tuple(names),
        model=model,
        uniform=np.full(len(model), uniform),
        random=np.full(len(model), random),
    )


def estimate(low, high, *, chance: float | None = 1 / 3, value=0.5):
    return Estimate(name="balanced accuracy", value=value, low=low, high=high, chance=chance)


def test_gain_is_the_mean_over_patients_of_their_mean_differences():
    measured = overlap([0.5, 0.7, 0.2, NAN], ["a", "a", "b", "c"])
    result = gain(measured)
    assert result.value == pytest.approx(((0.6 - 0.05) + (0.2 - 0.05)) / 2)
    assert result.low <= result.value <= result.high
    assert result.chance == 0
    assert gain(measured, control="random").value == pytest.approx(result.value - 0.01)


def test_interval_of_the_gain_is_the_percentile_bootstrap_over_patients():
    values = np.random.default_rng(3).random(25)
    result = gain(overlap(values, uniform=0.0))
    expected = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(7)
    ).confidence_interval
    assert_allclose([result.low, result.high], expected, atol=0.004)


def test_gain_does_not_depend_on_the_order_of_the_samples():
    values, names = [0.1, 0.9, 0.4, 0.3], ["a", "b", "a", "c"]
    order = [2, 0, 3, 1]
    shuffled = overlap([values[i] for i in order], [names[i] for i in order])
    straight = gain(overlap(values, names))
    assert_allclose(
        [gain(shuffled).value, gain(shuffled).low], [straight.value, straight.low], rtol=1e-12
    )


def test_scans_of_one_patient_are_one_draw():
    result = gain(overlap([0.2, 0.8, 0.5], ["a", "a", "a"]))
    assert result.value == pytest.approx(0.45)
    assert math.isnan(result.low)


def test_a_control_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown control 'magic'; known: uniform, random"):
        gain(overlap([0.5]), control="magic")


def test_a_gain_without_true_regions_is_refused():
    with pytest.raises(ValueError, match="attention-fine: no sample has a true region"):
        gain(overlap([NAN, NAN]))


def test_an_overlap_that_counts_differently_is_refused():
    with pytest.raises(ValueError, match="1 patients for 2 maps, 2 uniform and 2 random controls"):
        overlap([0.1, 0.2], ["a"])


@given(st.lists(st.floats(-5, 5) | st.just(NAN), max_size=9))
def test_best_median_and_worst_are_what_sorting_says(values):
    chosen = pick_cases(np.array(values, dtype=float))
    finite = sorted(value for value in values if math.isfinite(value))
    picked = {name: values[index] for name, index in chosen.items()}
    assert len(set(chosen.values())) == len(chosen) == min(3, len(finite))
    if finite:
        assert picked["best"] == finite[-1]
    if len(finite) > 1:
        assert picked["worst"] == finite[0]
    if len(finite) > 2:
        assert picked["median"] == finite[len(finite) // 2]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (estimate(0.4, 0.9), "better than guessing, which gives 0.333"),
        (estimate(0.2, 0.9), "not shown to differ from guessing, which gives 0.333"),
        (estimate(0.1, 0.3), "worse than guessing, which gives 0.333"),
        (estimate(1 / 3, 0.9), "not shown to differ"),
        (estimate(NAN, NAN), "(no interval): not shown to differ"),
        (estimate(0.1, 0.3, chance=None), "no value of guessing to compare with"),
    ],
)
def test_verdict_on_a_score_follows_its_interval(item, words):
    (sentence,) = verdict([item], [])
    assert words in sentence
    assert "balanced accuracy 0.500" in sentence


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.3, "finds the true region better than this control does"),
        (-0.1, 0.3, "not shown that the map finds the true region better"),
        (-0.3, -0.1, "finds the true region worse than this control does"),
    ],
)
def test_verdict_on_a_map_follows_its_interval(low, high, words):
    (sentence,) = verdict([], [estimate(low, high, chance=0.0)])
    assert words in sentence


def test_verdict_on_nothing_says_nothing_was_measured():
    assert verdict([], []) == ["Nothing was measured."]


def demo(**changes):
    view = CaseView(
        sample_id="k7m2",
        label="mild",
        prediction="mild",
        probabilities={"normal": 0.2, "mild": 0.8},
        images=[("scan", PNG, "")],
    )
    values = {
        "ran": [("model", "resnet18, exact")],
        "intake": [{"what": "series used", "count": 60}],
        "contact_sheet": PNG,
        "training_curves": PNG,
        "scores": [estimate(0.4, 0.9)],
        "figures": [("Confusion", PNG, "")],
        "overlaps": [overlap([0.4, 0.5, 0.6])],
        "gallery": [("Best", view)],
        "how": [("Balanced accuracy", "Mean recall.")],
    }
    return Demo(**(values | changes))


def test_report_holds_every_section_figure_and_caveat():
    page = demo_report(demo())
    for words in (
        "Phantoms, not patients.",
        "balanced accuracy 0.500 (95 % interval 0.400 to 0.900): better than guessing",
        "attention-fine minus uniform map",
        "resnet18, exact",
        "series used",
        "Best: ",
        "Mean recall.",
    ):
        assert words in page
    assert page.count('src="data:image/png;base64,') == 6  # two of them drawn here
    assert "0.450" in page  # the gain
    assert "not shown" not in page.split("How each number")[0]


def test_report_links_lead_somewhere():
    page = demo_report(demo())
    for anchor in ("ran", "intake", "training", "scores", "overlap", "cases", "how"):
        assert f'href="#{anchor}"' in page
        assert f'id="{anchor}"' in page


def test_report_of_a_failed_run_is_written_all_the_same():
    page = demo_report(
        demo(scores=[estimate(0.1, 0.6)], overlaps=[overlap([NAN, NAN])], gallery=[])
    )
    assert "not shown to differ from guessing" in page
    assert "attention-fine: no sample of the test patients has a true region" in page
    assert "No case to show." in page


def test_report_of_nothing_says_so():
    page = demo_report(demo(scores=[], figures=[], overlaps=[], gallery=[], intake=[]))
    assert "Nothing was measured." in page
    assert "Nothing to show." in page


def test_equal_runs_give_equal_reports():
    assert demo_report(demo()) == demo_report(demo())
