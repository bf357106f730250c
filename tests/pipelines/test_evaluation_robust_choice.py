"""What models on robust objectives are called, who judges, and how far pictures are moved."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.networks import build
from pipelines import run as run_files
from pipelines.config import (
    DataSummary,
    Normalisation,
    RobustConfig,
    RobustnessConfig,
    RunConfig,
    TrainConfig,
)
from pipelines.evaluation_robust_choice import OF_RANGE, OF_SCORES, methods_on, radii_of
from pipelines.evaluation_runs import EvaluatedRun, judge_of, runs_of

DATA = DataSummary(name="blobs", classes=("a", "b"), in_channels=1, picture_size=(32, 32))


def write(folder: Path, place: str, **given: Any) -> None:
    (folder / place).mkdir(parents=True)
    config = RunConfig(
        data=DATA,
        normalisation=Normalisation(mean=(0.0,), sd=(1.0,)),
        train=TrainConfig(**given),
    )
    run_files.write_text(folder / place / run_files.CONFIG, config.to_yaml())
    (folder / place / run_files.WEIGHTS).write_bytes(place.encode())
    run_files.seal(folder / place)


def runs(folder: Path) -> tuple[EvaluatedRun, ...]:
    return runs_of([folder], DATA)


class TestNames:
    def test_a_robust_objective_is_said_also_where_no_other_run_needs_it(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path, "a", variant="exact", objective="l1")
        assert [run.model for run in runs(tmp_path)] == ["exact l1"]

    def test_objectives_and_their_radii_tell_models_apart(self, tmp_path: Path) -> None:
        write(tmp_path, "a", variant="baseline")
        write(tmp_path, "b", variant="baseline", objective="pgd")
        write(tmp_path, "c", variant="baseline", objective="l1")
        wide = RobustConfig(radius=0.02)
        write(tmp_path, "d", variant="baseline", objective="l1", robust=wide)
        assert sorted(run.model for run in runs(tmp_path)) == [
            "baseline", "baseline l1 radius 0.02", "baseline l1 radius default", "baseline pgd",
        ]  # fmt: skip


class TestJudges:
    def test_one_of_standard_training_goes_before_robust_ones(self, tmp_path: Path) -> None:
        for seed in (0, 1):
            write(tmp_path, f"l1-{seed}", variant="baseline", objective="l1", seed=seed)
        write(tmp_path, "plain", variant="baseline", seed=1)
        found = runs(tmp_path)
        assert {judge_of(run, found).model for run in found} == {"baseline"}

    def test_robust_ones_judge_where_there_is_no_other(self, tmp_path: Path) -> None:
        write(tmp_path, "l1", variant="baseline", objective="l1")
        write(tmp_path, "exact", variant="exact")
        found = runs(tmp_path)
        assert {judge_of(run, found).model for run in found} == {"baseline l1"}


class TestRadii:
    @pytest.mark.parametrize(("scored", "usual"), [(False, OF_RANGE), (True, OF_SCORES)])
    def test_those_not_given_fit_the_units_of_the_data(
        self, scored: bool, usual: dict[str, tuple[float, ...]]
    ) -> None:
        assert radii_of(RobustnessConfig(), scored=scored) == dict(usual)

    def test_given_ones_hold_and_none_leaves_an_attack_out(self) -> None:
        settings = RobustnessConfig(linf_radii=(0.03,), l2_radii=())
        assert radii_of(settings, scored=True) == {"linf": (0.03,), "l2": ()}


def test_methods_that_fit_are_found_by_trying() -> None:
    network = build("resnet10-narrow", variant="baseline", in_channels=1, classes=2, image_size=32)
    names = ("gradient", "attention", "gradcam")
    image = torch.rand(1, 1, 32, 32)
    found = methods_on(names, network.eval(), image, batch_size=4)
    assert [method.name for method in found] == ["gradient", "gradcam"]
    assert [level for level, _ in found[1].parts] == ["fine", "coarse"]
