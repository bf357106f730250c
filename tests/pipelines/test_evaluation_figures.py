"""Figures: what is drawn, what is named, and what is absent."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from pipelines.evaluation_choice import headline, highlighted
from pipelines.evaluation_figures import draw
from pipelines.evaluation_records import Evaluation
from tests.pipelines.evaluations import evaluation, score

Drawn = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation(transformer=True, seeds=2, fills=("zero",))


@pytest.fixture(scope="module")
def drawn(found: Evaluation) -> Drawn:
    return draw(found)


def words(svg: bytes) -> str:
    return "\n".join(ElementTree.fromstring(svg.decode("utf-8")).itertext())


def test_every_figure_in_both_formats_and_the_same_bytes_again(
    found: Evaluation, drawn: Drawn
) -> None:
    assert list(drawn) == [
        *("perturbation-zero", "localisation", "accuracy-localisation", "agreement"),
    ]
    for both in drawn.values():
        assert both["png"].startswith(b"\x89PNG")
        assert b"dc:date" not in both["svg"]
    one = replace(found, curves=found.curves[:2], scores={})
    assert draw(one) == draw(one)


def test_a_figure_for_each_fill_that_is_named() -> None:
    one = evaluation(seeds=1, variants=("dual",), masks=False, fills=("blur", ""))
    bare = replace(one, scores={})
    assert list(draw(bare)) == ["perturbation-blur", "perturbation-curves"]


def test_axes_have_words_and_units(drawn: Drawn) -> None:
    curves = words(drawn["perturbation-zero"]["svg"])
    assert "pixels removed, the least important first (%)" in curves
    assert "balanced accuracy of the judge (%)" in curves
    assert "guessing" in curves
    assert "average precision against the true region (%)" in words(drawn["localisation"]["svg"])
    assert "balanced accuracy (%)" in words(drawn["accuracy-localisation"]["svg"])
    assert "total variation" in words(drawn["agreement"]["svg"])


def test_at_most_eight_lines_are_told_apart_and_the_rest_is_counted(
    found: Evaluation, drawn: Drawn
) -> None:
    chosen = highlighted(found)
    assert len(chosen) == 8
    text = words(drawn["perturbation-zero"]["svg"])
    assert f"{len(found.entries) - 8} others" in text
    for entry in chosen:
        assert entry.name in text
    assert "kl-reverse attention fine" not in text


def test_all_entries_and_controls_stand_in_the_localisation(
    found: Evaluation, drawn: Drawn
) -> None:
    text = words(drawn["localisation"]["svg"])
    for entry in found.entries.values():
        assert entry.method in text
    for name in ("fine level", "coarse level", "one map for all levels", "one seed"):
        assert name in text
    assert "true-mask (upper bound) (100 %)" in text


def test_every_model_is_named_beside_its_point(found: Evaluation, drawn: Drawn) -> None:
    lines = words(drawn["accuracy-localisation"]["svg"]).split("\n")
    assert set(found.models) <= {line.strip() for line in lines}


def test_exact_agreement_is_drawn_on_a_logarithmic_axis(drawn: Drawn) -> None:
    assert "1e-08" in words(drawn["agreement"]["svg"])
    plain = draw(evaluation(seeds=2, variants=("unconstrained", "kl-forward"), curves=False))
    assert "1e-08" not in words(plain["agreement"]["svg"])


@pytest.mark.parametrize(
    ("missing", "absent"),
    [
        ({"masks": False}, {"localisation", "accuracy-localisation"}),
        ({"curves": False}, {"perturbation-zero"}),
        ({"variants": ("baseline", "fine")}, {"agreement"}),
    ],
)
def test_what_was_not_measured_is_not_drawn(missing: dict, absent: set[str]) -> None:
    settings = {"seeds": 1, "variants": ("baseline", "unconstrained"), "fills": ("zero",)} | missing
    drawn = draw(evaluation(**settings))
    everything = {"perturbation-zero", "localisation", "accuracy-localisation", "agreement"}
    assert set(drawn) == everything - absent


def test_label_sets_have_probabilities_and_no_balanced_accuracy() -> None:
    found = evaluation(seeds=1, variants=("dual",), masks=False, fills=("zero",))
    scores = {
        name: {k: v for k, v in mine.items() if not k.startswith("input_perturbation")}
        for name, mine in found.scores.items()
    }
    text = words(draw(replace(found, scores=scores))["perturbation-zero"]["svg"])
    assert "mean probability (%)" in text
    assert "guessing" not in text


class TestChoice:
    def test_maps_that_agree_come_first_then_their_rivals(self, found: Evaluation) -> None:
        names = [entry.name for entry in highlighted(found)]
        assert names[:4] == [
            "exact attention fine",
            "dual attention fine",
            "dual-published attention fine",
            "unconstrained attention fine",
        ]
        assert names[4].startswith("baseline gradcam")
        assert names[-2:] == ["mean-mask", "true-mask"]

    def test_a_method_stands_where_its_best_map_does(self) -> None:
        found = evaluation(seeds=1, variants=("baseline", "exact"))
        lrp = replace(found.entries["baseline lrp"], level="coarse")
        means = {"baseline lrp": 0.99, lrp.name: 0.01}
        scores = {
            **found.scores,
            **{name: {"average_precision": score(mean, seeds=1)} for name, mean in means.items()},
        }
        entries = {**found.entries, lrp.name: lrp}
        names = [x.name for x in highlighted(replace(found, entries=entries, scores=scores))]
        assert "baseline lrp" in names[1:3]
        assert lrp.name not in names[1:3]

    @pytest.mark.parametrize(
        ("variants", "name"),
        [
            (("baseline", "dual", "exact"), "exact attention fine"),
            (("baseline", "dual-published", "dual"), "dual attention fine"),
            (("baseline", "coarse", "fine"), "coarse attention coarse"),
            (("baseline",), "baseline gradcam fine"),
        ],
    )
    def test_the_headline(self, variants: tuple[str, ...], name: str) -> None:
        found = evaluation(seeds=1, variants=variants)
        entry = headline(found)
        assert entry is not None
        assert entry.name == name

    def test_nothing_to_head(self, found: Evaluation) -> None:
        assert headline(replace(found, entries={})) is None
        bare = replace(found, scores={})
        assert len(highlighted(bare)) == 8
