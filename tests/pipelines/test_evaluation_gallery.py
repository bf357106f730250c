"""Which cases are shown, and what stands under their maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.evaluation_gallery import (
    EACH,
    Sample,
    choose,
    columns,
    greys,
    groups,
    names,
    note,
    read_samples,
)
from pipelines.evaluation_records import CasePicture, Evaluation
from pipelines.figures import SUV_BLACK
from tests.pipelines.evaluations import evaluation, pictures, write_scores

HEADLINE = "exact attention fine"


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluation(seeds=2, variants=("baseline", "unconstrained", "dual", "exact"))


@pytest.fixture(scope="module")
def out(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    write_scores(found, folder)
    return folder


def sample(i: int, precision: float, *, subject: str = "", wrong: bool = False) -> Sample:
    hit = float(precision > 0.3)
    return Sample(
        sample_id=f"s{i}",
        subject_id=subject or f"p{i}",
        wrong=wrong,
        scores={HEADLINE: {"average_precision": precision, "pointing_game": hit}},
    )


class TestChoice:
    def test_best_median_worst_by_the_headline(self, found: Evaluation) -> None:
        samples = [sample(i, i / 10) for i in range(1, 10)]
        chosen = choose(found, samples)
        assert chosen["best"] == ["s9", "s8"]
        assert chosen["worst"] == ["s1", "s2"]
        assert chosen["median"][0] == "s5"
        assert chosen["missed"] == ["s1", "s2"]
        assert chosen["wrong"] == []

    def test_a_patient_stands_once_in_a_group(self, found: Evaluation) -> None:
        samples = [sample(i, i / 10, subject="same" if i > 6 else "") for i in range(1, 10)]
        assert choose(found, samples)["best"] == ["s9", "s6"]

    def test_wrong_predictions_need_no_mask(self, found: Evaluation) -> None:
        lost = [Sample(sample_id=f"s{i}", subject_id=f"p{i}", wrong=i > 1) for i in range(5)]
        chosen = choose(found, lost)
        assert chosen["wrong"] == ["s2", "s3"]
        assert chosen["best"] == chosen["worst"] == chosen["missed"] == []

    def test_a_map_that_hits_saves_a_case_from_being_missed(self, found: Evaluation) -> None:
        one = sample(1, 0.1)
        other = replace(one, scores=one.scores | {"dual attention fine": {"pointing_game": 1.0}})
        assert choose(found, [one])["missed"] == ["s1"]
        assert choose(found, [other])["missed"] == []


class TestReading:
    def test_first_seeds_of_all_models(self, found: Evaluation, out: Path) -> None:
        samples = read_samples(found, out)
        assert [x.sample_id for x in samples] == sorted({x.sample_id for x in samples})
        real = {name for name, entry in found.entries.items() if entry.kind != "control"}
        assert set(samples[0].scores) == real
        marked = [x for x in samples if np.isfinite(x.score(HEADLINE, "average_precision"))]
        assert len(marked) == len(samples) / 2
        assert sum(x.wrong for x in samples) == 3  # every eleventh of 24

    def test_without_files_there_is_nothing(self, found: Evaluation, tmp_path: Path) -> None:
        assert read_samples(found, tmp_path) == []
        assert groups(found, tmp_path, pictures(found)) == []

    @pytest.mark.parametrize(
        ("label", "prediction", "wrong"),
        [("tumour", "tumour", 0), ("tumour", "no tumour", 1), ("", "tumour", 0), ("tumour", "", 0)],
    )
    def test_a_prediction_is_wrong_where_both_are_known(
        self, found: Evaluation, tmp_path: Path, label: str, prediction: str, wrong: int
    ) -> None:
        (tmp_path / "scores").mkdir()
        (tmp_path / "scores" / "a.csv").write_text(
            "sample_id,subject_id,label,prediction,model,seed,method,level\n"
            f"s,p,{label},{prediction},exact,0,attention,fine\n"
        )
        (tmp_path / "scores" / "empty.csv").write_text("sample_id,model,seed\n")
        assert [x.wrong for x in read_samples(found, tmp_path)] == [bool(wrong)]


class TestGroups:
    def test_cases_are_asked_for_once_and_drawn_in_every_group(
        self, found: Evaluation, out: Path
    ) -> None:
        asked: list[Sequence[str]] = []
        give = pictures(found)

        def cases(ids: Sequence[str], entries: Sequence[str]) -> Mapping[str, CasePicture]:
            asked.append(list(ids))
            return give(ids, entries)

        made = groups(found, out, cases)
        assert len(asked) == 1
        assert len(asked[0]) == len(set(asked[0]))
        assert [group.name for group in made][:4] == ["best", "median", "worst", "wrong"]
        assert all(1 <= len(group.cases) <= EACH for group in made)
        assert list(names(made)) == [entry.name for entry in columns(found)]
        row = made[0].rows[0]
        assert "true: tumour" in row.name
        assert set(row.cells) == set(names(made))
        assert row.scan.startswith(b"\x89PNG")

    def test_what_is_not_given_is_left_out(self, found: Evaluation, out: Path) -> None:
        give = pictures(found)

        def cases(ids: Sequence[str], entries: Sequence[str]) -> Mapping[str, CasePicture]:
            first = dict(list(give(ids, entries).items())[:1])
            return {name: replace(x, label=-1) for name, x in first.items()}

        made = groups(found, out, cases)
        assert {case.name.split(" · ")[1] for x in made for case in x.cases} == {"true: no finding"}
        assert sum(len(group.cases) for group in made) >= 1

    def test_columns_are_real_and_the_headline_has_both_levels(self, found: Evaluation) -> None:
        shown = columns(found)
        assert [x.name for x in shown[:2]] == [HEADLINE, "exact attention coarse"]
        assert all(entry.kind != "control" for entry in shown)


def picture(scores: Mapping[str, float]) -> CasePicture:
    image = np.zeros((2, 4, 4), dtype=np.float32)
    image[1, 0, 0] = 5
    return CasePicture(
        image=image,
        mask=None,
        label=1,
        prediction=1,
        scores={"a": scores},
        maps={},
        signed={},
    )


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ({"average_precision": 0.5, "pointing_game": 1.0}, "hit, AP 50 %"),
        ({"average_precision": 0.5, "pointing_game": 0.0}, "miss, AP 50 %"),
        ({"average_precision": 0.5, "pointing_game": 0.5}, "partly hit, AP 50 %"),
        ({"average_precision": 0.5}, "AP 50 %"),
        ({}, "no true region"),
    ],
)
def test_the_note_under_a_map(scores: dict[str, float], text: str) -> None:
    assert note(picture(scores), "a") == text


def test_uptake_is_dark_and_tissue_is_bright() -> None:
    assert greys(picture({}), "fdg-pet")[0, 0] == pytest.approx(SUV_BLACK)
    assert greys(picture({}), "brats18")[0, 0] == pytest.approx(0)
