"""Runs under attack, end to end: laws of radius and batch, the same numbers however computed."""

import csv
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from typer.testing import CliRunner

from models.metrics import stability
from models.metrics.complexity import gini
from pipelines import evaluate as evaluate_module
from pipelines import evaluation_console, evaluation_robustness, evaluation_unit
from pipelines.assemble import open_for_training
from pipelines.cli import app
from pipelines.config import ConfigError, EvaluateConfig, RobustnessConfig, TrainConfig
from pipelines.errors import UsageError
from pipelines.evaluate import EvaluationReport, evaluate
from pipelines.evaluation_console import settings_of
from pipelines.evaluation_json import RECORD, read_evaluation
from pipelines.evaluation_records import Robustness
from pipelines.evaluation_robust_choice import attacked_samples
from pipelines.evaluation_robust_scores import reference
from pipelines.evaluation_samples import samples_of
from pipelines.train import train
from tests.pipelines.test_multilabel import SETTINGS as FINDINGS_SETTINGS
from tests.pipelines.test_multilabel import write_findings

TRAIN = TrainConfig(
    network="resnet10-narrow", epochs=1, batch_size=6, bootstrap=0, seed=0, workers=0
)
RUNS = [("baseline", "standard", 0), ("baseline", "standard", 1), ("fine", "l1", 0)]
ATTACKED = RobustnessConfig(
    enabled=True,
    samples=6,
    explained=3,
    radii=(0.1,),
    linf_radii=(0.01, 0.05),
    l2_radii=(0.5,),
    methods=("gradient", "attention"),
    steps=2,
    restarts=2,
)
EVALUATE = EvaluateConfig(
    methods=("gradcam",),
    fills=(),
    resamples=20,
    verify=False,
    controls=False,
    batch_size=8,
    robustness=ATTACKED,
)


def changed(**changes: Any) -> EvaluateConfig:
    robustness = ATTACKED.model_copy(update=changes)
    return EVALUATE.model_copy(update={"robustness": robustness})


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def under_attack(out: Path) -> dict[str, bytes]:
    """Return everything that was measured under attack, to the bit."""
    paths = [*out.glob("robustness/*"), *out.glob("robustness-maps/*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("what is measured was measured again")


@pytest.fixture(scope="module")
def data(make_blobs: Callable[..., Path]) -> Path:
    return make_blobs(counts={"train": 6, "validation": 3, "test": 12}, size=32)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one epoch of pictures of 32 x 32; read only."""
    folder = tmp_path_factory.mktemp("runs")
    for variant, objective, seed in RUNS:
        changes = {"variant": variant, "objective": objective, "seed": seed}
        settings = TRAIN.model_copy(update=changes)
        train(settings, data=data, run=folder / variant / f"seed-{seed}")
    return folder


@pytest.fixture(scope="module")
def undrawn() -> Any:
    """Leave out tables and figures, which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate_module, "write_report", lambda _, out, **__: Path(out) / "report.html"
        )
        yield patch


@pytest.fixture(scope="module")
def done(
    undrawn: Any, runs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, EvaluationReport]:
    out = tmp_path_factory.mktemp("attacked") / "out"
    return out, evaluate(EVALUATE, runs=[runs], data=data, out=out)


@pytest.fixture(scope="module")
def found(done: tuple[Path, EvaluationReport]) -> Robustness:
    robustness = done[1].found.robustness
    assert robustness is not None
    return robustness


class TestAnEvaluationUnderAttack:
    def test_a_model_is_called_by_its_objective(self, done: tuple[Path, EvaluationReport]) -> None:
        models = done[1].found.models
        assert list(models) == ["baseline", "fine l1"]
        assert [model.objective for model in models.values()] == ["standard", "l1"]
        assert reference(models) == "baseline"
        assert not done[1].found.failures

    def test_every_fitting_method_of_every_run_is_an_entry(self, found: Robustness) -> None:
        assert list(found.entries) == [
            "baseline gradient", "fine l1 gradient", "fine l1 attention fine",
        ]  # fmt: skip
        assert found.entries["baseline gradient"].seeds == (0, 1)
        assert (found.samples, found.explained, found.patients) == (6, 3, 4)
        assert found.notes == (
            "Stability between seeds is not defined for models that were trained once.",
        )

    def test_pictures_of_all_classes_are_attacked_and_explained_ones_among_them(
        self, done: tuple[Path, EvaluationReport], data: Path
    ) -> None:
        opened = open_for_training(data, image_size=None)
        samples = samples_of(opened.splits["test"], opened.summary.classes, perturbed=1)
        chosen = attacked_samples(samples, ATTACKED, seed=0)
        assert sorted(samples.truths[chosen.predicted]) == [0, 0, 1, 1, 2, 2]
        assert sorted(samples.truths[chosen.explained]) == [0, 1, 2]
        assert set(chosen.explained) <= set(chosen.predicted)
        rows = table(done[0] / "robustness" / "baseline-seed-0.csv")
        ids = samples.pictures.sample_ids
        assert {r["sample_id"] for r in rows} == {ids[i] for i in chosen.predicted}
        explained = {r["sample_id"] for r in rows if r["method"] and r["attack"] != "clean"}
        assert explained == {ids[i] for i in chosen.explained}

    def test_clean_answers_are_those_of_the_evaluation(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        out, _ = done
        for name in ("baseline-seed-0", "baseline-seed-1", "fine l1-seed-0"):
            plain = {row["sample_id"]: row for row in table(out / "predictions" / f"{name}.csv")}
            rows = [r for r in table(out / "robustness" / f"{name}.csv") if not r["method"]]
            clean = [row for row in rows if row["attack"] == "clean"]
            assert len(clean) == 6
            for row in clean:
                for share in (x for x in row if x.startswith("probability_")):
                    theirs = float(plain[row["sample_id"]][share])
                    assert float(row[share]) == pytest.approx(theirs, abs=1e-5)

    def test_scores_under_attack_are_scikit_learns(
        self, done: tuple[Path, EvaluationReport], found: Robustness
    ) -> None:
        out, report = done
        classes = report.found.classes
        for attack, radius in (("clean", 0.0), ("linf", 0.05), ("l2", 0.5)):
            name = "clean" if attack == "clean" else f"{attack}:{radius:g}"
            for seed in (0, 1):
                rows = [
                    row
                    for row in table(out / "robustness" / f"baseline-seed-{seed}.csv")
                    if (row["method"], row["attack"], float(row["radius"])) == ("", attack, radius)
                ]
                truth = [classes.index(row["label"]) for row in rows]
                shares = np.array(
                    [[float(row[f"probability_{x}"]) for x in classes] for row in rows]
                )
                answers = shares.argmax(axis=1)
                ours = {
                    metric: found.predictions["baseline"][f"attacked_{metric}@{name}"].values[seed]
                    for metric in ("accuracy", "balanced_accuracy", "auc")
                }
                assert ours["accuracy"] == pytest.approx(accuracy_score(truth, answers))
                assert ours["balanced_accuracy"] == pytest.approx(
                    balanced_accuracy_score(truth, answers)
                )
                assert ours["auc"] == pytest.approx(
                    roc_auc_score(truth, shares, multi_class="ovr", average="macro")
                )

    def test_accuracy_does_not_rise_with_the_radius(self, found: Robustness) -> None:
        for scores in found.predictions.values():
            names = ["clean", *(f"linf:{r:g}" for r in found.linf_radii)]
            for metric in ("accuracy", "balanced_accuracy"):
                means = [scores[f"attacked_{metric}@{name}"].values for name in names]
                for smaller, larger in pairwise(means):
                    assert all(a >= b for a, b in zip(smaller, larger, strict=True))
            clean, attacked = (scores[f"attacked_accuracy@{x}"].mean for x in ("clean", "l2:0.5"))
            assert attacked <= clean

    def test_the_mean_over_radii_is_that(self, found: Robustness) -> None:
        for scores in found.predictions.values():
            own = [scores[f"attacked_accuracy@linf:{radius:g}"] for radius in found.linf_radii]
            averaged = scores["attacked_accuracy@linf:mean"]
            assert averaged.mean == pytest.approx(np.mean([score.mean for score in own]))
            assert_allclose(averaged.drawn, np.mean([score.drawn for score in own], axis=0))

    def test_the_worst_attack_is_no_better_than_each_and_noise_is_apart(
        self, found: Robustness
    ) -> None:
        for scores in found.scores.values():
            worst = scores["top_k_intersection@worst:0.1"].mean
            names = [f"top_k_intersection@{x}:0.1" for x in ("top-k", "transfer")]
            assert worst <= min(scores[name].mean for name in names) + 1e-12
            assert "top_k_intersection@noise:0.1" in scores

    def test_sparsity_is_that_of_the_maps_that_are_kept(
        self, done: tuple[Path, EvaluationReport]
    ) -> None:
        kept = load_file(done[0] / "robustness-maps" / "baseline-seed-1.safetensors")
        assert list(kept) == ["gradient|"]
        rows = [
            row
            for row in table(done[0] / "robustness" / "baseline-seed-1.csv")
            if row["method"] == "gradient"
        ]
        explained = {row["sample_id"] for row in rows if row["attack"] != "clean"}
        clean = [r for r in rows if r["attack"] == "clean" and r["sample_id"] in explained]
        expected = gini(torch.from_numpy(kept["gradient|"])).tolist()
        assert [float(row["gini"]) for row in clean] == pytest.approx(expected)
        assert kept["gradient|"].shape == (3, 32, 32)

    def test_stability_is_that_between_the_kept_maps_of_seeds(
        self, done: tuple[Path, EvaluationReport], found: Robustness
    ) -> None:
        folder = done[0] / "robustness-maps"
        maps = [load_file(folder / f"baseline-seed-{seed}.safetensors") for seed in (0, 1)]
        expected = stability([torch.from_numpy(held["gradient|"]) for held in maps])
        scores = found.scores["baseline gradient"]
        assert scores["stability_top_k_intersection"].mean == pytest.approx(float(expected.mean()))
        assert {"stability_structural_similarity", "stability_cosine"} <= set(scores)
        assert not any(x.startswith("stability") for x in found.scores["fine l1 gradient"])

    def test_differences_are_paired_at_equal_method_and_radius(self, found: Robustness) -> None:
        names = {(x.variant, x.against) for x in found.differences}
        assert ("fine l1", "baseline") in names
        assert ("fine l1 gradient", "baseline gradient") in names
        item = next(
            x
            for x in found.differences
            if (x.variant, x.measure) == ("fine l1 gradient", "top_k_intersection@worst:0.1")
        )
        ours, theirs = (found.scores[name][item.measure] for name in (item.variant, item.against))
        assert item.value == pytest.approx(ours.mean - theirs.mean)
        low, high = np.percentile(ours.drawn - theirs.drawn, (2.5, 97.5))
        assert_allclose((item.low, item.high), (low, high))

    def test_gradients_that_hide_are_looked_for(self, found: Robustness) -> None:
        assert [(x.model, x.attack, x.radius, x.seeds) for x in found.masking] == [
            ("baseline", "linf", 0.05, 2), ("baseline", "l2", 0.5, 2),
            ("fine l1", "linf", 0.05, 1), ("fine l1", "l2", 0.5, 1),
        ]  # fmt: skip
        for check in found.masking:
            weaker = min(check.one_step, check.noise)
            assert check.suspected <= check.seeds
            assert (check.suspected == 0) or weaker < check.iterative or check.seeds > 1

    def test_the_record_is_read_back(self, done: tuple[Path, EvaluationReport]) -> None:
        held = json.loads((done[0] / RECORD).read_text())
        assert held["encoding-version"] == "1.1"
        again = read_evaluation(done[0] / RECORD).robustness
        ours = done[1].found.robustness
        assert again is not None
        assert ours is not None
        assert (again.entries, again.masking, again.radii) == (
            ours.entries, ours.masking, ours.radii,
        )  # fmt: skip
        for name, scores in ours.scores.items():
            assert {x: s.mean for x, s in scores.items()} == {
                x: s.mean for x, s in again.scores[name].items()
            }
        assert read_evaluation(done[0] / RECORD).models["fine l1"].objective == "l1"

    def test_nothing_names_a_path(self, done: tuple[Path, EvaluationReport], data: Path) -> None:
        for name, content in under_attack(done[0]).items():
            for private in (str(data), str(done[0]), "/root", "/home"):
                assert private.encode() not in content, name


@pytest.mark.usefixtures("undrawn")
class TestTheSameNumbers:
    def test_resumed_nothing_is_measured_again(
        self,
        done: tuple[Path, EvaluationReport],
        runs: Path,
        data: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        before = under_attack(done[0])
        monkeypatch.setattr(evaluate_module, "measure_unit", never)
        evaluate(EVALUATE, runs=[runs], data=data, out=done[0], resume=True)
        assert under_attack(done[0]) == before
        assert len(before) == 9

    def test_interrupted_several_at_once_and_with_other_batches(
        self,
        done: tuple[Path, EvaluationReport],
        runs: Path,
        data: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        settings = EVALUATE.model_copy(update={"batch_size": 3})
        real = evaluation_robustness._explained
        calls = []

        def interrupted(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:  # in the second unit under attack
                raise KeyboardInterrupt
            return real(*args)

        out, folders = tmp_path / "out", [runs / "baseline"]
        with monkeypatch.context() as patch:
            patch.setattr(evaluation_robustness, "_explained", interrupted)
            with pytest.raises(KeyboardInterrupt):
                evaluate(settings, runs=folders, data=data, out=out)
        assert not (out / "robustness" / "baseline-seed-1.csv").exists()
        (out / "robustness" / ".baseline-seed-1.csv.1.part").write_text("left by a kill")
        evaluate(settings, runs=folders, data=data, out=out, resume=True, jobs=2)
        theirs = under_attack(done[0])
        for name, content in under_attack(out).items():
            if name.endswith(".safetensors"):
                for key, maps in load_file(out / name).items():
                    assert_allclose(maps, load_file(done[0] / name)[key], atol=1e-5)
            elif name.endswith(".csv"):
                assert content == theirs[name]

    def test_another_radius_measures_the_attacks_anew_and_nothing_else(
        self,
        done: tuple[Path, EvaluationReport],
        runs: Path,
        data: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        out = Path(shutil.copytree(done[0], tmp_path / "out"))
        units: list[str] = []

        def counting(unit: Any, *args: Any, **others: Any) -> Any:
            units.append(unit.name)
            return evaluation_unit.measure_unit(unit, *args, **others)

        monkeypatch.setattr(evaluate_module, "measure_unit", counting)
        settings = changed(radii=(), methods=("gradient",), linf_radii=(0.02,), l2_radii=())
        found = evaluate(settings, runs=[runs], data=data, out=out, resume=True).found.robustness
        assert units == [
            f"{name} under attack" for name in ("baseline, seed 0", "baseline, seed 1",
            "fine l1, seed 0")
        ]  # fmt: skip
        assert found is not None
        assert set(found.scores["fine l1 gradient"]) == {"gini", "group_gini"}
        assert "attacked_accuracy@linf:0.02" in found.predictions["fine l1"]

    def test_without_attacks_there_is_no_record_of_any(
        self, done: tuple[Path, EvaluationReport], runs: Path, data: Path, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(done[0], tmp_path / "out"))
        found = evaluate(changed(enabled=False), runs=[runs], data=data, out=out, resume=True).found
        assert found.robustness is None


@pytest.mark.usefixtures("undrawn")
class TestEdges:
    def test_a_method_that_fails_on_the_way_is_left_out(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = evaluation_robustness.robustness_rows

        def failing(*args: Any, **given: Any) -> Any:
            if "gradient" in given["methods"]:
                raise UsageError("NO_DERIVATIVE", "gradient: has none")
            return real(*args, **given)

        monkeypatch.setattr(evaluation_robustness, "robustness_rows", failing)
        settings = changed(samples=2, explained=1)
        found = evaluate(settings, runs=[runs / "fine"], data=data, out=tmp_path / "out").found
        assert found.robustness is not None
        assert list(found.robustness.entries) == ["fine l1 attention fine"]
        assert found.failures == {"fine l1, seed 0 under attack: gradient": "gradient: has none"}

    def test_memory_that_runs_out_is_told_of(
        self, runs: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(evaluation_robustness, "robustness_rows", failing)
        settings = changed(samples=2, explained=1, l2_radii=())
        folders = [runs / "fine"]
        report = evaluate(settings, runs=folders, data=data, out=tmp_path / "out")
        assert report.found.robustness is None
        reason = report.found.failures["fine l1, seed 0 under attack"]
        assert reason.startswith("OUT_OF_MEMORY: memory ran out while the maps of 'gradient' were")

    def test_pictures_of_several_findings(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path)
        settings = FINDINGS_SETTINGS.model_copy(update={"epochs": 1, "bootstrap": 0, "workers": 0})
        train(settings, data=data, run=tmp_path / "run")
        given = changed(methods=("gradient",), samples=4, explained=2, l2_radii=())
        found = evaluate(given, runs=[tmp_path / "run"], data=data, out=tmp_path / "out").found
        assert found.robustness is not None
        scores = found.robustness.predictions["baseline"]
        clean, attacked = (scores[f"attacked_auc@{x}"].mean for x in ("clean", "linf:0.05"))
        assert 0 <= attacked <= clean <= 1
        assert found.robustness.masking == ()
        rows = table(tmp_path / "out" / "robustness" / "baseline-seed-0.csv")
        assert len({row["sample_id"] for row in rows}) == 4
        for name, score in found.robustness.scores["baseline gradient"].items():
            assert np.isfinite(score.mean), name


class TestSettings:
    def test_attacks_are_off_unless_asked_for(self) -> None:
        assert not EvaluateConfig().robustness.enabled
        asked = settings_of({"robustness": {"enabled": True}}, None, ["robustness.samples=7"])
        assert asked.robustness == RobustnessConfig(enabled=True, samples=7)

    def test_the_option_asks_for_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[EvaluateConfig] = []
        monkeypatch.setattr(
            evaluation_console, "evaluate_and_tell", lambda settings, _: asked.append(settings)
        )
        given = ["evaluate", "--run", "r", "--data", "d", "--out", str(tmp_path / "out")]
        for more in ([], ["--robust"]):
            assert CliRunner().invoke(app, [*given, *more]).exit_code == 0
        assert [settings.robustness.enabled for settings in asked] == [False, True]

    @pytest.mark.parametrize("name", ["radii", "linf_radii", "l2_radii"])
    def test_radii_ascend(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"{name} are to ascend, each one named once"):
            RobustnessConfig.of({name: (0.3, 0.1)})

    def test_methods_are_named_once(self) -> None:
        with pytest.raises(ConfigError, match="methods are to be named once each"):
            RobustnessConfig.of({"methods": ("gradient", "gradient")})

    def test_a_radius_of_zero_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="greater than 0"):
            RobustnessConfig.of({"radii": (0.0,)})

    def test_an_unknown_method_is_refused(self, runs: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no method under attack 'gradiant'"):
            evaluate(changed(methods=("gradiant",)), runs=[runs], data=data, out=tmp_path / "out")
