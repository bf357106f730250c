"""Runs that each begin with the run of their own seed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipelines import run as run_files
from pipelines.compare import compare
from pipelines.comparison_grid import members_of
from pipelines.config import CompareConfig, TrainConfig
from pipelines.errors import RunError
from pipelines.start import Start
from pipelines.train import train

SMALL = TrainConfig(
    network="resnet10-narrow", variant="baseline", epochs=1, batch_size=6, bootstrap=0, workers=0
)
FROZEN = SMALL.model_copy(update={"variant": "fine", "freeze_trunk": True})


@pytest.fixture(scope="module")
def data(make_blobs: Callable[..., Path]) -> Path:
    return make_blobs(counts={"train": 12, "validation": 6, "test": 6}, size=32)


@pytest.fixture(scope="module")
def baselines(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``seed-0`` and ``seed-1``; read only."""
    folder = tmp_path_factory.mktemp("baseline")
    for seed in (0, 1):
        train(SMALL.model_copy(update={"seed": seed}), data=data, run=folder / f"seed-{seed}")
    return folder


def trunk_of(run: Path) -> dict[str, bytes]:
    tensors = load_file(run / run_files.WEIGHTS)
    return {
        name: value.numpy().tobytes() for name, value in tensors.items() if name[:6] == "trunk."
    }


class TestOfSeed:
    def test_a_folder_of_seeds(self, baselines: Path) -> None:
        start = Start(source=baselines, allow=("head",))
        assert start.of_seed(1) == Start(source=baselines / "seed-1", allow=("head",))
        assert start.required(1) == start.of_seed(1)

    def test_what_does_not_depend_on_the_seed(self, baselines: Path, tmp_path: Path) -> None:
        for start in (
            Start(),
            Start(pretrained=tmp_path / "weights"),
            Start(source=baselines / "seed-0"),
            Start(source=tmp_path / "nothing"),
        ):
            assert start.of_seed(1) is start
            assert start.required(1) is start

    def test_a_seed_that_is_not_there(self, baselines: Path) -> None:
        with pytest.raises(RunError, match=r"no run of seed 2 \(it holds seed-0, seed-1\)") as no:
            Start(source=baselines).required(2)
        assert no.value.code == "SEED_MISSING"
        assert str(baselines) not in str(no.value)


class TestOneRun:
    def test_it_begins_with_that_of_its_seed_and_needs_it_no_more(
        self, baselines: Path, data: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(baselines, tmp_path / "baselines"))
        config = FROZEN.model_copy(update={"seed": 1})
        run, start = tmp_path / "run", Start(source=folder)
        train(config, data=data, run=run, start=start)
        assert trunk_of(run) == trunk_of(baselines / "seed-1") != trunk_of(baselines / "seed-0")
        shutil.rmtree(folder / "seed-1")
        train(config, data=data, run=run, start=start, resume=True)
        assert trunk_of(run) == trunk_of(baselines / "seed-1")

    def test_a_seed_that_is_not_there(self, baselines: Path, data: Path, tmp_path: Path) -> None:
        config = FROZEN.model_copy(update={"seed": 2})
        with pytest.raises(RunError, match="no run of seed 2"):
            train(config, data=data, run=tmp_path / "run", start=Start(source=baselines))
        assert not (tmp_path / "run").exists()


class TestAComparison:
    def test_every_run_takes_the_trunk_of_its_own_seed(
        self,
        baselines: Path,
        data: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("pipelines.comparison_figure.draw", lambda _: {"png": b"", "svg": b""})
        grid = CompareConfig(variants=("fine",), seeds=2, train=FROZEN)
        compare(grid, data=data, out=tmp_path / "grid", start=Start(source=baselines))
        for seed in (0, 1):
            run = tmp_path / "grid" / "fine" / f"seed-{seed}"
            assert trunk_of(run) == trunk_of(baselines / f"seed-{seed}")
        compare(grid, data=data, out=tmp_path / "grid", start=Start(source=baselines), resume=True)

    def test_nothing_is_begun_where_a_seed_is_missing(
        self, baselines: Path, data: Path, tmp_path: Path
    ) -> None:
        grid = CompareConfig(variants=("fine",), seeds=3, train=FROZEN)
        with pytest.raises(RunError, match="no run of seed 2"):
            compare(grid, data=data, out=tmp_path / "grid", start=Start(source=baselines))
        assert not (tmp_path / "grid").exists()

    def test_members_name_their_start(self, baselines: Path, data: Path, tmp_path: Path) -> None:
        grid = CompareConfig(variants=("fine", "dual"), seeds=2, train=FROZEN)
        members = members_of(
            grid, grid.variants, data=data, out=tmp_path, start=Start(source=baselines)
        )
        assert [(m.name, m.start.source) for m in members] == [
            (f"{variant}, seed {seed}", baselines / f"seed-{seed}")
            for seed in (0, 1)
            for variant in ("fine", "dual")
        ]
