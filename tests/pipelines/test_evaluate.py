"""Runs to tables end to end: laws of the controls, the same numbers however they are computed."""

import csv
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from models.metrics import iou_cap
from pipelines import evaluate as evaluate_module
from pipelines import evaluation_unit, run_scores
from pipelines import run as run_files
from pipelines.assemble import open_for_training
from pipelines.config import ConfigError, EvaluateConfig, TrainConfig
from pipelines.errors import DataError, RunError, RunExists, UsageError
from pipelines.evaluate import EvaluationReport, evaluate
from pipelines.evaluation_console import EvaluateChoices, evaluate_and_tell, settings_of
from pipelines.evaluation_json import RECORD, read_evaluation
from pipelines.evaluation_maps import LevelMaps
from pipelines.evaluation_samples import regions_of, samples_of
from pipelines.train import train
from preprocessing.records import Died
from tests.pipelines.test_multilabel import SETTINGS as FINDINGS_SETTINGS
from tests.pipelines.test_multilabel import write_findings

pytestmark = pytest.mark.usefixtures("sketched")

TRAIN = TrainConfig(network="resnet10-narrow", epochs=1, batch_size=6, bootstrap=0, workers=0)
EVALUATE = EvaluateConfig(
    fills=("zero",), perturbation_samples=6, resamples=20, verify=False, batch_size=8
)
RUNS = [("baseline", 0), ("exact", 0), ("exact", 1)]
AREA, OPPOSITE = "input_perturbation@zero", "input_perturbation_opposite@zero"
CONTROLS = ["random", "uniform", "gaussian", "edges", "mean-mask", "true-mask"]


def changed(**changes: Any) -> EvaluateConfig:
    return EVALUATE.model_copy(update=changes)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def measured(out: Path) -> dict[str, bytes]:
    """Return everything that was measured, and the record, to the bit."""
    paths = [*out.glob("scores/*"), *out.glob("curves/*"), *out.glob("predictions/*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*paths, out / RECORD]}


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("what is measured was measured again")


@pytest.fixture(scope="module")
def data(make_blobs: Callable[..., Path]) -> Path:
    return make_blobs(counts={"train": 12, "validation": 6, "test": 12}, size=32)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one epoch of pictures of 32 x 32; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for variant, seed in RUNS:
        settings = TRAIN.model_copy(update={"variant": variant, "seed": seed})
        train(settings, data=data, run=folder / variant / f"seed-{seed}")
    return folder


@pytest.fixture(scope="module")
def done(
    runs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EvaluationReport]:
    """All runs with usual methods and all controls; read only."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return out, evaluate(EVALUATE, runs=[runs], data=data, out=out)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out tables and figures, which take longer than these runs."""

    def stand_in(_: Any, out: Path, **__: Any) -> Path:
        return out / "report.html"

    monkeypatch.setattr(evaluate_module, "write_report", stand_in)


class TestAnEvaluation:
    def test_every_map_of_every_run_is_an_entry(self, done: tuple[Path, EvaluationReport]) -> None:
        found = done[1].found
        own = [name for name, entry in found.entries.items() if entry.kind != "control"]
        assert own == [
            "baseline gradcam fine", "baseline gradcam coarse",
            "baseline gradient-x-input",
            "baseline gradient-x-input fine", "baseline gradient-x-input coarse",
            "baseline deeplift", "baseline deeplift fine", "baseline deeplift coarse",
            "baseline lrp", "baseline lrp fine", "baseline lrp coarse",
            "exact attention fine", "exact attention coarse",
        ]  # fmt: skip
        assert [name for name in found.entries if name not in own] == CONTROLS
        assert found.entries["exact attention fine"].seeds == (0, 1)
        assert found.against == "exact attention fine"
        assert not found.failures
        assert (found.samples, found.patients, found.scored) == (12, 6, 6)
        assert (done[0] / "report.html").is_file()

    def test_scores_hold_one_row_for_each_sample_and_map(
        self, done: tuple[Path, EvaluationReport], data: Path
    ) -> None:
        test = open_for_training(data, image_size=None).splits["test"]
        rows = table(done[0] / "scores" / "exact-seed-1.csv")
        assert len(rows) == 2 * 12
        fine = [row for row in rows if row["level"] == "fine"]
        assert [row["sample_id"] for row in fine] == list(test.sample_ids)
        assert [row["subject_id"] for row in fine] == list(test.subject_ids)
        assert {(row["model"], row["seed"], row["method"]) for row in rows} == {
            ("exact", "1", "attention")
        }
        assert all(row["target"] == row["label"] for row in rows)
        assert sum(row[AREA] != "" for row in fine) == 6

    def test_a_class_that_means_absence_has_no_true_region(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        for row in table(done[0] / "scores" / "exact-seed-0.csv"):
            assert (row["average_precision"] == "") == (row["label"] == "normal")

    def test_the_true_mask_scores_its_cap_and_a_uniform_map_the_prevalence(
        self, done: tuple[Path, EvaluationReport], data: Path
    ) -> None:
        opened = open_for_training(data, image_size=None)
        samples = samples_of(opened.splits["test"], opened.summary.classes, perturbed=0)
        regions = regions_of(samples, range(12))
        marked = regions[regions.flatten(1).any(dim=1)]
        scores = done[1].found.scores
        assert scores["true-mask"]["average_precision"].mean == 1
        assert scores["true-mask"]["iou_equal_area"].mean == 1
        for name, quantile in (("iou_975", 0.975), ("iou_900", 0.9)):
            cap = float(iou_cap(marked, quantile=quantile).mean())
            assert scores["true-mask"][name].mean == pytest.approx(cap)
        prevalence = float(marked.double().mean())
        for name in ("average_precision", "pointing_game", "mass_inside"):
            assert scores["uniform"][name].mean == pytest.approx(prevalence)

    def test_precision_is_that_of_the_comparison_of_variants(
        self, done: tuple[Path, EvaluationReport], runs: Path, data: Path, tmp_path: Path
    ) -> None:
        run = Path(shutil.copytree(runs / "exact" / "seed-1", tmp_path / "run"))
        run_scores.measure_run(run, open_for_training(data, image_size=None))
        rows = table(done[0] / "scores" / "exact-seed-1.csv")
        for level in ("fine", "coarse"):
            own = [row for row in rows if row["level"] == level]
            for row, expected in zip(own, table(run / run_scores.MAP_SCORES), strict=True):
                if row["average_precision"]:
                    value = float(expected[f"average_precision_{level}"])
                    assert float(row["average_precision"]) == pytest.approx(value, abs=1e-5)
                assert float(row["total_variation"]) == pytest.approx(
                    float(expected["total_variation"]), abs=1e-5
                )

    def test_areas_are_those_under_balanced_accuracy(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        """scikit-learn's balanced accuracy at each fraction, and numpy's trapezoid."""
        out, report = done
        for file, entry in (
            ("baseline-seed-0.csv", "baseline gradcam coarse"),
            ("exact-seed-0.csv", "exact attention fine"),
        ):
            method, level = entry.split()[1:]
            rows = [
                row
                for row in table(out / "curves" / file)
                if (row["method"], row["level"]) == (method, level)
            ]
            for order, measure in (("ascending", AREA), ("descending", OPPOSITE)):
                own = [row for row in rows if row["order"] == order]
                heights = []
                fractions = list(own[0])[9:]
                labels = [report.found.classes.index(row["label"]) for row in own]
                for fraction in fractions:
                    right = [float(row[fraction]) for row in own]
                    answers = [x if hit else -1 for x, hit in zip(labels, right, strict=True)]
                    kinds = [[i for i, x in enumerate(labels) if x == kind] for kind in set(labels)]
                    each = [
                        accuracy_score([labels[i] for i in own], [answers[i] for i in own])
                        for own in kinds
                    ]
                    heights.append(float(np.mean(each)))
                area = np.trapezoid(heights, [float(x) for x in fractions])
                assert report.found.scores[entry][measure].values[0] == pytest.approx(area)

    def test_model_scores_are_scikit_learns(self, done: tuple[Path, EvaluationReport]) -> None:
        out, report = done
        for seed in (0, 1):
            rows = table(out / "predictions" / f"exact-seed-{seed}.csv")
            classes = report.found.classes
            labels = [classes.index(row["label"]) for row in rows]
            shares = [[float(row[f"probability_{name}"]) for name in classes] for row in rows]
            expected = balanced_accuracy_score(labels, np.argmax(shares, axis=1))
            scores = report.found.models["exact"].scores["balanced_accuracy"]
            assert scores.values[seed] == pytest.approx(expected)

    def test_levels_that_agree_by_construction_agree(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        scores = done[1].found.scores["exact attention fine"]
        assert scores["total_variation"].mean < 1e-6
        assert "total_variation" not in done[1].found.scores["baseline gradcam fine"]

    @pytest.mark.usefixtures("undrawn")
    def test_maps_are_compared_with_those_of_random_weights(
        self, runs: Path, data: Path, tmp_path: Path
    ) -> None:
        settings = changed(methods=("attention", "gradient"), verify=True, fills=())
        folders = [runs / "exact" / "seed-0"]
        found = evaluate(settings, runs=folders, data=data, out=tmp_path / "out").found
        for entry in ("exact gradient", "exact attention fine"):
            assert 0 <= found.scores[entry]["randomised_similarity"].mean <= 1
        assert "randomised_similarity" not in found.scores["random"]
        assert sum(found.verdicts["exact attention fine"].values()) == 12
        assert "random" not in found.verdicts

    def test_above_chance_is_the_area_less_chance(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        scores = done[1].found.scores["baseline lrp"]
        above = scores["input_perturbation_above_chance@zero"].mean
        assert above == pytest.approx(scores[AREA].mean - 1 / 3)
        assert done[1].found.chance == pytest.approx(1 / 3)

    def test_only_random_maps_have_seeds_of_their_own(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        found = done[1].found
        assert found.entries["random"].seeds == (0,)
        assert found.entries["uniform"].seeds == ()

    def test_differences_are_paired_with_the_headline(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        found = done[1].found
        item = next(
            x
            for x in found.differences
            if (x.variant, x.measure) == ("baseline gradcam fine", "average_precision")
        )
        ours, theirs = (
            found.scores[name]["average_precision"] for name in (item.variant, item.against)
        )
        assert item.against == "exact attention fine"
        assert item.value == pytest.approx(ours.mean - theirs.mean)
        low, high = np.percentile(ours.drawn - theirs.drawn, (2.5, 97.5))
        assert_allclose((item.low, item.high), (low, high))
        assert item.p_holm >= item.p

    def test_the_record_is_read_back(self, done: tuple[Path, EvaluationReport]) -> None:
        out, report = done
        found = read_evaluation(out / RECORD)
        assert found.entries == report.found.entries
        assert found.notes == report.found.notes
        for entry, scores in report.found.scores.items():
            for name, score in scores.items():
                again = found.scores[entry][name]
                ours = (score.mean, score.sd, score.low, score.high, *score.values)
                theirs = (again.mean, again.sd, again.low, again.high, *again.values)
                assert_allclose(theirs, ours, rtol=0, atol=0)
        for ours, theirs in zip(report.found.differences, found.differences, strict=True):
            assert (ours.variant, ours.measure) == (theirs.variant, theirs.measure)
            assert_allclose((theirs.value, theirs.p_holm), (ours.value, ours.p_holm), rtol=0)
        for ours, theirs in zip(report.found.curves, found.curves, strict=True):
            assert (ours.entry, ours.fill, ours.order) == (theirs.entry, theirs.fill, theirs.order)
            assert_allclose(theirs.mean, ours.mean, rtol=0)

    def test_nothing_names_a_path(self, done: tuple[Path, EvaluationReport], data: Path) -> None:
        for path in done[0].rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for private in (str(data), str(done[0]), "/root", "/home"):
                    assert private.encode() not in content, path.name

    def test_pictures_are_shown_with_the_maps_that_were_measured(
        self, done: tuple[Path, EvaluationReport], runs: Path, data: Path
    ) -> None:
        out, report = done
        asked: dict[str, Any] = {}

        def keeping(_: Any, folder: Path, *, cases: Any, **__: Any) -> Path:
            entries = ["exact attention fine", "baseline gradient-x-input", "true-mask"]
            rows = table(folder / "scores" / "exact-seed-0.csv")
            names = [row["sample_id"] for row in rows if row["average_precision"]][:2]
            asked.update(cases([*names, "unknown"], entries))
            asked["none"] = cases(["unknown"], entries)
            return folder / "report.html"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate_module, "write_report", keeping)
            patch.setattr(evaluate_module, "measure_unit", never)
            evaluate(EVALUATE, runs=[runs], data=data, out=out, resume=True)
        assert asked.pop("none") == {}
        assert len(asked) == 2
        for name, shown in asked.items():
            assert shown.image.shape == (1, 32, 32)
            assert shown.mask is not None
            assert shown.signed["baseline gradient-x-input"]
            assert not shown.signed["exact attention fine"]
            assert_allclose(shown.maps["true-mask"], shown.mask)
            row = next(
                x for x in table(out / "scores" / "exact-seed-0.csv") if x["sample_id"] == name
            )
            assert report.found.classes[shown.prediction] == row["prediction"]
            found = shown.scores["exact attention fine"]["average_precision"]
            assert found == float(row["average_precision"])


@pytest.mark.usefixtures("undrawn")
class TestTheSameNumbers:
    def test_nothing_is_measured_again_and_the_order_of_runs_does_not_matter(
        self,
        done: tuple[Path, EvaluationReport],
        runs: Path,
        data: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        before = measured(done[0])
        monkeypatch.setattr(evaluate_module, "measure_unit", never)
        folders = [runs / "exact" / "seed-1", runs / "exact", runs / "baseline"]
        evaluate(EVALUATE, runs=folders, data=data, out=done[0], resume=True)
        assert measured(done[0]) == before

    def test_interrupted_and_resumed(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = changed(methods=("gradcam", "attention"))
        begun = evaluation_unit._measured
        calls = []

        def interrupted(*args: Any) -> Iterator[Any]:
            calls.append(1)
            if len(calls) == 4:  # in the middle of the second unit
                raise KeyboardInterrupt
            return begun(*args)

        with monkeypatch.context() as patch:
            patch.setattr(evaluation_unit, "_measured", interrupted)
            with pytest.raises(KeyboardInterrupt):
                evaluate(settings, runs=[runs], data=data, out=tmp_path / "a")
        (tmp_path / "a" / "scores" / ".exact-seed-0.csv.1.part").write_text("left by a kill")
        units: list[str] = []

        def counting(unit: Any, *args: Any, **others: Any) -> Any:
            units.append(unit.name)
            return evaluation_unit.measure_unit(unit, *args, **others)

        monkeypatch.setattr(evaluate_module, "measure_unit", counting)
        evaluate(settings, runs=[runs], data=data, out=tmp_path / "a", resume=True)
        assert units == ["exact, seed 0", "exact, seed 1", "control, seed 0"]
        assert not list((tmp_path / "a" / "scores").glob(".*"))
        evaluate(settings, runs=[runs], data=data, out=tmp_path / "b", resume=True)
        assert measured(tmp_path / "a") == measured(tmp_path / "b")

    def test_several_at_once(self, runs: Path, data: Path, tmp_path: Path) -> None:
        settings = changed(methods=("gradcam",), controls=False)
        folders = [runs / "exact"]
        for jobs in (1, 2):
            out = tmp_path / str(jobs)
            evaluate(settings, runs=folders, data=data, out=out, jobs=jobs)
        assert measured(tmp_path / "1") == measured(tmp_path / "2")

    def test_batches_of_any_size(
        self, done: tuple[Path, EvaluationReport], runs: Path, data: Path, tmp_path: Path
    ) -> None:
        folders = [runs / "baseline"]
        settings = changed(batch_size=5, methods=("gradcam",))
        evaluate(settings, runs=folders, data=data, out=tmp_path / "out")
        for name in ("baseline-seed-0.csv", "control-seed-0.csv"):
            ours = table(tmp_path / "out" / "scores" / name)
            theirs = table(done[0] / "scores" / name)
            assert len(ours) == (24 if name.startswith("base") else 72)
            key = ("method", "level", "sample_id")
            expected = {tuple(row[part] for part in key): row for row in theirs}
            for row in ours:
                same = expected[tuple(row[part] for part in key)]
                for measure in list(row)[9:]:
                    assert (row[measure] == "") == (same[measure] == ""), measure
                    if row[measure]:
                        assert float(row[measure]) == pytest.approx(
                            float(same[measure]), abs=1e-6
                        ), measure

    def test_another_setting_is_measured_anew(self, runs: Path, data: Path, tmp_path: Path) -> None:
        folders = [runs / "exact" / "seed-0"]
        settings = changed(controls=False, fills=())
        evaluate(settings, runs=folders, data=data, out=tmp_path / "out")
        assert AREA not in table(tmp_path / "out" / "scores" / "exact-seed-0.csv")[0]
        found = evaluate(
            changed(controls=False), runs=folders, data=data, out=tmp_path / "out", resume=True
        ).found
        assert AREA in found.scores["exact attention fine"]

    def test_pictures_in_memory_do_not_grow_with_the_data(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        most = {}
        for size in (6, 2):
            alive: weakref.WeakSet[Any] = weakref.WeakSet()
            counts: list[int] = []
            real = evaluation_unit.shown_to

            def watched(
                work: Any, batch: Any, real: Any = real, alive: Any = alive, counts: Any = counts
            ) -> Any:
                shown = real(work, batch)
                alive.add(shown.images)
                counts.append(len(alive))
                return shown

            with monkeypatch.context() as patch:
                patch.setattr(evaluation_unit, "shown_to", watched)
                evaluate(
                    changed(controls=False, batch_size=size),
                    runs=[runs / "exact" / "seed-0"],
                    data=data,
                    out=tmp_path / str(size),
                )
            most[size] = (len(counts), max(counts))
        assert most[6] == (2, 2)  # a batch, and the one before it
        assert most[2] == (6, 2)


def broken(level: str, after: int) -> Callable[..., list[LevelMaps]]:
    """Make maps as ever, but from some batch on NaN at one level."""
    calls = []

    def stand_in(work: Any, shown: Any, method: str) -> list[LevelMaps]:
        calls.append(method)
        maps = real_maps_of(work, shown, method)
        if method != "attention" or calls.count(method) <= after:
            return maps
        spoilt = [replace(x, values=torch.full_like(x.values, torch.nan)) for x in maps]
        return [bad if x.level == level else x for x, bad in zip(maps, spoilt, strict=True)]

    return stand_in


real_maps_of = evaluation_unit.maps_of


@pytest.mark.usefixtures("undrawn")
class TestEdges:
    def test_a_map_that_holds_nan_is_left_out_and_the_rest_goes_on(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation_unit, "maps_of", broken("coarse", 1))
        found = evaluate(
            changed(controls=False),
            runs=[runs / "exact" / "seed-0"],
            data=data,
            out=tmp_path / "out",
        ).found
        assert list(found.entries) == ["exact attention fine"]
        (name, reason), *others = found.failures.items()
        assert not others
        assert name == "exact, seed 0: attention coarse"
        assert "maps of 'attention coarse' in one batch hold NaN or infinity" in reason
        assert found.scores["exact attention fine"]["gini"].mean > 0

    def test_one_seed_and_no_baseline(self, runs: Path, data: Path, tmp_path: Path) -> None:
        report = evaluate(
            EVALUATE, runs=[runs / "exact" / "seed-1"], data=data, out=tmp_path / "out"
        )
        score = report.found.scores["exact attention fine"]["average_precision"]
        assert np.isnan(score.sd)
        assert any("No baseline was evaluated" in note for note in report.found.notes)
        assert any("intervals are too narrow" in note for note in report.found.notes)
        assert report.failed == 0
        assert report.lines()[0].startswith("exact attention fine")
        json.dumps(report.as_json(), allow_nan=False)

    def test_a_method_that_fits_some_networks_only(
        self, runs: Path, data: Path, tmp_path: Path
    ) -> None:
        settings = changed(methods=("attention",), controls=False, fills=())
        report = evaluate(settings, runs=[runs], data=data, out=tmp_path / "out")
        assert list(report.found.entries) == ["exact attention fine", "exact attention coarse"]
        assert "no attention maps" in report.found.failures["baseline, seed 0: attention"]
        assert any("was left out" in line for line in report.lines())
        assert set(report.found.models) == {"baseline", "exact"}

    def test_no_masks_one_sample_and_classes_never_seen(
        self, make_blobs: Callable[..., Path], tmp_path: Path
    ) -> None:
        data = make_blobs(
            counts={"train": 6, "validation": 3, "test": 1}, size=32, with_truth=False
        )
        train(TRAIN.model_copy(update={"variant": "fine"}), data=data, run=tmp_path / "run")
        found = evaluate(EVALUATE, runs=[tmp_path / "run"], data=data, out=tmp_path / "out").found
        assert "average_precision" not in found.scores["fine attention fine"]
        assert "true-mask" not in found.entries
        assert 0 <= found.scores["fine attention fine"][AREA].mean <= 1
        assert (found.samples, found.scored, found.chance) == (1, 1, 1)
        assert any("holds no true regions" in note for note in found.notes)
        assert any("No test picture is of the class 'mild', 'severe'" in x for x in found.notes)

    def test_pictures_of_several_findings(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path)
        settings = FINDINGS_SETTINGS.model_copy(update={"epochs": 1, "bootstrap": 0})
        train(settings, data=data, run=tmp_path / "run")
        found = evaluate(
            changed(methods=("gradcam",)), runs=[tmp_path / "run"], data=data, out=tmp_path / "out"
        ).found
        scores = found.scores["baseline gradcam fine"]
        assert scores[AREA].mean == pytest.approx(scores["insertion@zero"].mean)
        assert scores[OPPOSITE].mean == pytest.approx(scores["deletion@zero"].mean)
        assert "input_perturbation_above_chance@zero" not in scores
        rows = table(tmp_path / "out" / "scores" / "baseline-seed-0.csv")
        assert {row[AREA] for row in rows if row["label"] == ""} == {""}
        assert {row["target"] for row in rows if row["label"] == "b|c"} == {"b"}
        assert any("may show several findings" in note for note in found.notes)

    def test_a_run_that_cannot_be_measured_is_told_of(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(unit: Any, *args: Any, **others: Any) -> Any:
            if unit.name == "exact, seed 1":
                return Died()
            if unit.name == "baseline, seed 0":
                return "OUT_OF_MEMORY", "memory ran out"
            return evaluation_unit.measure_unit(unit, *args, **others)

        monkeypatch.setattr(evaluate_module, "measure_unit", failing)
        report = evaluate(changed(controls=False), runs=[runs], data=data, out=tmp_path / "out")
        assert report.found.failures["baseline, seed 0"] == "OUT_OF_MEMORY: memory ran out"
        assert "ended without an answer" in report.found.failures["exact, seed 1"]
        assert report.found.entries["exact attention fine"].seeds == (0,)


@pytest.mark.usefixtures("undrawn")
class TestRefusals:
    def test_a_full_folder(
        self, done: tuple[Path, EvaluationReport], runs: Path, data: Path
    ) -> None:
        with pytest.raises(RunExists, match="exists and is not empty"):
            evaluate(EVALUATE, runs=[runs], data=data, out=done[0])

    def test_a_folder_that_is_no_evaluation(self, runs: Path, data: Path) -> None:
        with pytest.raises(RunExists, match=r"holds no config\.yaml of an evaluation"):
            evaluate(EVALUATE, runs=[runs], data=data, out=runs / "baseline/seed-0", resume=True)

    def test_a_file(self, runs: Path, data: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunExists, match="names a file"):
            evaluate(EVALUATE, runs=[runs], data=data, out=tmp_path / "file")

    def test_an_unknown_method(self, runs: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="did you mean 'gradcam'"):
            evaluate(changed(methods=("gradcm",)), runs=[runs], data=data, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_method_that_explains_none(self, runs: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="'rollout' can explain none of the 3 runs"):
            evaluate(changed(methods=("rollout",)), runs=[runs], data=data, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_an_unknown_reference(self, runs: Path, data: Path, tmp_path: Path) -> None:
        settings = changed(against="exact attention", controls=False, fills=())
        with pytest.raises(UsageError, match="did you mean 'exact attention fine'"):
            evaluate(settings, runs=[runs / "exact/seed-0"], data=data, out=tmp_path / "out")

    def test_nothing_measured(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluate_module, "measure_unit", lambda *_, **__: Died())
        with pytest.raises(RunError, match="none of the runs could be measured"):
            evaluate(EVALUATE, runs=[runs], data=data, out=tmp_path / "out")

    def test_a_test_split_without_samples(
        self, make_blobs: Callable[..., Path], runs: Path, tmp_path: Path
    ) -> None:
        data = make_blobs(counts={"train": 6, "validation": 3, "test": 0}, size=32)
        with pytest.raises(DataError, match="test split has no labelled sample"):
            evaluate(EVALUATE, runs=[runs], data=data, out=tmp_path / "out")

    def test_a_damaged_record(self, tmp_path: Path) -> None:
        (tmp_path / RECORD).write_text('{"evaluation": {}}')
        with pytest.raises(RunError, match="record of the evaluation"):
            read_evaluation(tmp_path / RECORD)


@pytest.mark.usefixtures("undrawn")
class TestTheConsole:
    def choices(self, **changes: Any) -> EvaluateChoices:
        usual = {"jobs": 1, "resume": False, "as_json": True}
        return EvaluateChoices(**{**usual, **changes})

    def test_it_tells_what_was_found(
        self, runs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = settings_of({"methods": [], "against": None}, None, ["controls=false"])
        settings = settings.model_copy(update={"fills": (), "resamples": 5, "verify": False})
        folders = [runs / "exact" / "seed-0"]
        evaluate_and_tell(settings, self.choices(runs=folders, data=data, out=tmp_path / "out"))
        told = capsys.readouterr()
        assert "exact attention fine    average_precision 0." in told.err
        assert json.loads(told.out)["against"] == "exact attention fine"

    def test_no_run_and_no_folder(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="nothing to evaluate"):
            evaluate_and_tell(EVALUATE, self.choices(runs=[], data=data, out=tmp_path / "out"))
        with pytest.raises(ConfigError, match="--run"):
            evaluate_and_tell(
                EVALUATE, self.choices(runs=[tmp_path / "none"], data=data, out=tmp_path / "out")
            )

    def test_an_unknown_setting(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'fills'"):
            settings_of({}, None, ["fill=[zero]"])


def test_runs_are_as_training_left_them(done: tuple[Path, EvaluationReport], runs: Path) -> None:
    assert done[1].failed == 0
    for variant, seed in RUNS:
        run_files.check_seal(runs / variant / f"seed-{seed}")
        assert not (runs / variant / f"seed-{seed}" / run_scores.MEASURED).exists()
