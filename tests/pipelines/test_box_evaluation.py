"""Runs measured against boxes one by one: resumed, attacked, compared, and put on the page."""

import html
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import box_evaluation
from pipelines.assemble import open_for_training
from pipelines.box_attacks import BoxAttack
from pipelines.box_evaluation import BoxSettings, evaluate_boxes
from pipelines.box_localisation import box_localisation
from pipelines.box_records import BoxScores
from pipelines.box_tables import tables
from pipelines.box_training import AREA, HEADLINE, pairs_of, training_sentences, worst
from pipelines.config import EvaluateConfig, TrainConfig
from pipelines.errors import UsageError
from pipelines.evaluation_runs import runs_of
from pipelines.evaluation_work import loaded
from pipelines.feed import normalise
from pipelines.pages import PNG_SIGNATURE
from pipelines.reproduce_judges import BOX_NUMBERS, evaluated_with_boxes
from pipelines.train import train
from tests.pipelines.boxed import write_boxed

ATTACK = BoxAttack(radius=0.1, steps=3)
SETTINGS = BoxSettings(methods=("cam", "attention"), attacks=(ATTACK,), resamples=30)
ROBUST = {"objective": "l1", "robust": {"radius": 0.0}}
"""A radius of 0 is standard training, to the bit."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxed(tmp_path_factory.mktemp("boxes-data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a baseline, and two of the same on an objective that changes nothing."""
    folder, found = tmp_path_factory.mktemp("boxes-runs"), []
    for place in range(4):
        settings = TrainConfig.of(
            {
                "network": "densenet-narrow-stride8",
                "variant": "baseline",
                "epochs": 1,
                "bootstrap": 0,
                "workers": 0,
                "seed": place % 2,
                **(ROBUST if place > 1 else {}),
            }
        )
        train(settings, data=data, run=folder / str(place))
        found.append(folder / str(place))
    return found


@pytest.fixture(scope="module")
def measured(
    data: Path, runs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[BoxScores, Path]:
    """Scores, and the folder of their numbers; read only."""
    out = tmp_path_factory.mktemp("boxes-numbers") / "boxes"
    return evaluate_boxes(SETTINGS, runs=runs, data=data, out=out), out


def same(one: BoxScores, other: BoxScores) -> bool:
    assert list(one.per_case) == list(other.per_case)
    for name, own in one.per_case.items():
        for seed, table in own.items():
            np.testing.assert_array_equal(table, other.per_case[name][seed])
    return one.failures == other.failures and one.seeds == other.seeds


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("what is done was done again")


class TestUnits:
    def test_each_run_alone_is_as_all_at_once(
        self, measured: tuple[BoxScores, Path], data: Path, runs: list[Path]
    ) -> None:
        generator = torch.Generator().manual_seed(SETTINGS.seed)
        whole = box_localisation(runs, data, ("cam",), generator=generator, resamples=30)
        found, out = measured
        for name, own in whole.per_case.items():
            for seed, table in own.items():
                np.testing.assert_array_equal(found.per_case[name][seed], table)
        assert len(list(out.iterdir())) == len(runs)
        assert found.failures == {}

    def test_what_is_measured_is_not_measured_again(
        self,
        measured: tuple[BoxScores, Path],
        data: Path,
        runs: list[Path],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        found, out = measured
        monkeypatch.setattr(box_evaluation.Measured, "take_run", never)
        assert same(found, evaluate_boxes(SETTINGS, runs=runs, data=data, out=out))
        few = evaluate_boxes(SETTINGS, runs=runs[:2], data=data, out=out)
        assert {entry.model for entry in few.models()} == {"baseline"}
        other = replace(SETTINGS, methods=("gradcam",))
        with pytest.raises(AssertionError, match="done again"):
            evaluate_boxes(other, runs=runs, data=data, out=out)

    @pytest.mark.parametrize("damage", ["cut", "changed", "none"])
    def test_a_damaged_file_is_measured_anew(
        self,
        measured: tuple[BoxScores, Path],
        data: Path,
        runs: list[Path],
        tmp_path: Path,
        damage: str,
    ) -> None:
        found, out = measured
        for path in out.iterdir():
            content = bytearray(path.read_bytes())
            if damage == "changed":
                content[-1] ^= 1
            kept = content[:-9] if damage == "cut" else content
            (tmp_path / path.name).write_bytes(kept)
        before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        again = evaluate_boxes(SETTINGS, runs=runs[0], data=data, out=tmp_path)
        changed = [p for p in tmp_path.iterdir() if p.stat().st_mtime_ns != before[p.name]]
        assert len(changed) == (0 if damage == "none" else 1)
        for name, own in again.per_case.items():
            for seed, table in own.items():
                np.testing.assert_array_equal(found.per_case[name][seed], table)

    def test_a_run_that_fails_is_told_and_takes_no_other_with_it(
        self, data: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = box_evaluation.Measured.take_run

        def failing(self: Any, run: Any, explainers: Any) -> None:
            if run.seed == 1:
                raise UsageError("BAD_CONDITION", "no pictures")
            original(self, run, explainers)

        monkeypatch.setattr(box_evaluation.Measured, "take_run", failing)
        found = evaluate_boxes(SETTINGS, runs=runs[:2], data=data, out=tmp_path)
        assert found.failures == {"baseline, seed 1": "BAD_CONDITION: no pictures"}
        assert found.entries["baseline cam"].seeds == (0,)

    def test_where_nothing_could_be_measured(
        self, data: Path, runs: list[Path], tmp_path: Path
    ) -> None:
        wanted = BoxSettings(methods=("rollout",), resamples=5)
        with pytest.raises(UsageError, match="no method can explain none of the models: ") as no:
            evaluate_boxes(wanted, runs=runs[:1], data=data, out=tmp_path)
        assert no.value.code == "NO_METHOD_FITS"


class TestAttacks:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_pictures_stay_in_the_ball_and_in_range_and_the_loss_rises(
        self, data: Path, runs: list[Path], norm: Any
    ) -> None:
        found = open_for_training(data, image_size=None)
        (run,) = runs_of(runs[:1], found.summary)
        test, network = found.splits["test"], loaded(run, torch.device("cpu"))
        raw = torch.stack([test[i] for i in range(6)]).float()
        labels = torch.from_numpy(np.asarray(test.labels)[:6]).float()
        radius = 0.02 if norm == "linf" else 0.4
        attack = BoxAttack(norm=norm, radius=radius).on(run, found.splits["train"])
        normal = normalise(raw, run.config.normalisation)
        moved = attack(network, normal, labels)
        scale = torch.tensor(run.config.normalisation.sd)[:, None, None]
        shift = torch.tensor(run.config.normalisation.mean)[:, None, None]
        before, after = (pictures * scale + shift for pictures in (normal, moved))
        change = (after - before) / 255
        size = change.abs().amax() if norm == "linf" else change.flatten(1).norm(dim=1).amax()
        assert 0.5 * radius < float(size) <= radius * (1 + 1e-4)
        assert float(after.min()) >= -1e-3
        assert float(after.max()) <= 255 + 1e-3
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        with torch.no_grad():
            clean, attacked = (loss(network(x).logits, labels) for x in (normal, moved))
        assert attacked > clean
        parts = [attack(network, normal[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)]
        assert torch.allclose(torch.cat(parts), moved, atol=1e-3)
        assert BoxAttack(norm=norm, radius=radius).name == f"PGD {norm} {radius}"


class TestTraining:
    def test_a_model_is_paired_with_the_same_without_its_objective(
        self, data: Path, runs: list[Path]
    ) -> None:
        summary = open_for_training(data, image_size=None).summary
        models = {run.model for run in runs_of(runs, summary)}
        (robust,) = models - {"baseline"}
        assert "l1" in robust
        assert pairs_of(runs_of(runs, summary)) == {robust: "baseline"}
        assert pairs_of(runs_of(runs[:2], summary)) == {}
        assert pairs_of(runs_of(runs[2:], summary)) == {}

    def test_training_that_is_the_same_changes_nothing(
        self, measured: tuple[BoxScores, Path]
    ) -> None:
        found = measured[0]
        assert {(x.method, x.condition) for x in found.training} == {
            (method, condition) for method in ("cam", "") for condition in ("", ATTACK.name)
        }
        assert {x.measure for x in found.training} >= {AREA, HEADLINE}
        for effect in found.training:
            assert effect.advantage.value == 0
            assert effect.advantage.seeds == 2
            assert effect.advantage.verdict == "not shown"

    def test_it_is_said_and_shown(self, measured: tuple[BoxScores, Path]) -> None:
        found = measured[0]
        claim, cost = training_sentences(found)
        assert "claim: not shown for 'baseline l1" in claim
        assert "cam +0.000 (+0.000 to +0.000)" in claim
        assert f"on clean pictures; under {ATTACK.name} +0.000" in cost
        table = tables(found)["boxes-training"]
        assert len(table.rows) == len(found.training)
        assert {row["verdict"] for row in table.rows} == {"not shown"}
        assert "boxes-training" not in tables(replace(found, training=()))

    @pytest.mark.parametrize(("shift", "word"), [(1.0, "holds"), (-1.0, "does not hold")])
    def test_every_answer_can_be_given(
        self, measured: tuple[BoxScores, Path], shift: float, word: str
    ) -> None:
        def moved(effect: Any) -> Any:
            parts = ("value", "low", "high", "seeds_mean", "seeds_low", "seeds_high")
            changes = {name: getattr(effect.advantage, name) + shift for name in parts}
            return replace(effect, advantage=replace(effect.advantage, **changes))

        found = replace(measured[0], training=tuple(moved(x) for x in measured[0].training))
        assert f"claim: {word} for" in training_sentences(found)[0]

    def test_a_claim_is_as_good_as_its_worst_comparison(self) -> None:
        assert worst(["holds", "not shown"]) == "not shown"
        assert worst(["holds", "does not hold", "not shown"]) == "does not hold"


def test_boxes_and_maps_are_on_one_page(
    data: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures are left out: they take longer than all the rest, and have tests of their own."""
    empty = {"png": PNG_SIGNATURE, "svg": b""}
    monkeypatch.setattr("pipelines.box_figures.in_both_formats", lambda _: empty)
    monkeypatch.setattr("pipelines.evaluation_report.draw", lambda _: {})
    config = EvaluateConfig(
        methods=("gradcam",), fills=(), verify=False, controls=False, resamples=20, synthetic=True
    )
    out = tmp_path / "evaluation"
    where = {"boxes": SETTINGS, "runs": runs[1:3], "data": data, "out": out}
    said = evaluated_with_boxes(config, **where)
    page = html.unescape((out / "report.html").read_text())
    assert all(sentence in page for sentence in said[:3])
    assert said[0].startswith("The maps that cover the boxes best are those of baseline")
    assert page.count('id="boxes"') == 1
    assert 'href="#boxes"' in page
    assert "Robust training less standard training" in page
    assert (out / "tables/boxes-training.csv").is_file()
    assert (out / "tables/table-3.csv").is_file()
    assert len(list((tmp_path / BOX_NUMBERS).iterdir())) == 2
