"""Which runs are evaluated: found, refused, grouped and judged, without training any."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import run as run_files
from pipelines.config import DataSummary, Normalisation, Origin, RunConfig, TrainConfig
from pipelines.errors import DataError, RunError, UsageError
from pipelines.evaluation_runs import EvaluatedRun, judge_of, judges, runs_of

DATA = DataSummary(
    name="toy", classes=("a", "b"), in_channels=1, picture_size=(32, 32), manifest_sha256="x"
)
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a sealed run without weights that anyone could load."""

    def one(
        place: str,
        *,
        seal: bool = True,
        data: DataSummary = DATA,
        origin: str = "random",
        **given: Any,
    ) -> Path:
        folder = tmp_path / place
        folder.mkdir(parents=True)
        kind: Any = origin
        config = RunConfig(
            data=data,
            normalisation=Normalisation(mean=(0.0,), sd=(1.0,)),
            train=TrainConfig(**given),
            origin=Origin(kind=kind),
        )
        run_files.write_text(folder / run_files.CONFIG, config.to_yaml())
        (folder / run_files.WEIGHTS).write_bytes(place.encode())
        if seal:
            run_files.seal(folder)
        return folder

    return one


def names(found: tuple[EvaluatedRun, ...]) -> list[tuple[str, int]]:
    return [(run.model, run.seed) for run in found]


class TestGroups:
    def test_runs_that_differ_in_the_seed_only_are_one_model(
        self, make: Make, tmp_path: Path
    ) -> None:
        for seed in (1, 0):
            make(f"grid/exact/seed-{seed}", variant="exact", seed=seed, workers=seed)
        make("grid/baseline/seed-0", variant="baseline")
        found = runs_of([tmp_path / "grid"], DATA)
        assert names(found) == [("baseline", 0), ("exact", 0), ("exact", 1)]

    def test_the_order_of_folders_does_not_matter_and_none_counts_twice(
        self, make: Make, tmp_path: Path
    ) -> None:
        one = make("grid/exact/seed-0", variant="exact")
        other = make("grid/baseline/seed-0", variant="baseline")
        whole = runs_of([tmp_path / "grid"], DATA)
        assert runs_of([other, one, tmp_path / "grid" / "exact"], DATA) == whole

    def test_what_tells_models_of_a_variant_apart_is_said_in_as_few_words_as_needed(
        self, make: Make, tmp_path: Path
    ) -> None:
        make("a", variant="exact", epochs=6)
        make("b", variant="exact", epochs=8, freeze_trunk=True, origin="run")
        make("c", variant="baseline", network="vit-narrow")
        make("d", variant="baseline", image_size=64)
        make("e", variant="baseline", image_size=32)
        make("f", variant="dual", alpha=1.0)
        make("g", variant="dual")
        assert [name for name, _ in names(runs_of([tmp_path], DATA))] == [
            "baseline resnet18 32 px", "baseline resnet18 64 px", "baseline vit-narrow full size",
            "dual alpha 1.0", "dual alpha default", "exact", "exact frozen trunk",
        ]  # fmt: skip

    def test_models_that_no_word_tells_apart_are_numbered(self, make: Make, tmp_path: Path) -> None:
        for place, sha in (("a", "1"), ("b", "2")):
            folder = make(place, seal=False, variant="exact", origin="file")
            text = (folder / run_files.CONFIG).read_text()
            changed = text.replace("sha256: ''", f"sha256: '{sha}'")
            (folder / run_files.CONFIG).write_text(changed)
            run_files.seal(folder)
        found = names(runs_of([tmp_path], DATA))
        assert found == [("exact (1)", 0), ("exact (2)", 0)]


class TestRefusals:
    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="holds no run"):
            runs_of([tmp_path], DATA)

    def test_the_same_model_and_seed_twice(self, make: Make, tmp_path: Path) -> None:
        make("a", variant="exact")
        make("b", variant="exact")
        with pytest.raises(UsageError, match="2 runs are 'exact, seed 0'"):
            runs_of([tmp_path], DATA)

    def test_an_unfinished_run(self, make: Make, tmp_path: Path) -> None:
        make("a", variant="exact", seal=False)
        with pytest.raises(RunError, match="training of the run 'exact, seed 0' did not end"):
            runs_of([tmp_path], DATA)

    def test_an_altered_run(self, make: Make) -> None:
        folder = make("a", variant="exact")
        (folder / run_files.WEIGHTS).write_bytes(b"others")
        with pytest.raises(RunError, match="changed after training"):
            runs_of([folder], DATA)

    def test_other_classes(self, make: Make) -> None:
        folder = make("a", data=DATA.model_copy(update={"classes": ("a", "c")}))
        with pytest.raises(DataError, match="trained on data with classes") as raised:
            runs_of([folder], DATA)
        assert raised.value.code == "RUN_DATA_MISMATCH"

    def test_another_build_of_the_data(self, make: Make) -> None:
        folder = make("a", data=DATA.model_copy(update={"manifest_sha256": "y"}))
        with pytest.raises(DataError, match="tested on patients that it learned from") as raised:
            runs_of([folder], DATA)
        assert raised.value.code == "DATA_CHANGED"


class TestJudges:
    def test_the_baseline_of_the_same_seed_or_else_the_first(
        self, make: Make, tmp_path: Path
    ) -> None:
        for seed in (1, 2):
            make(f"b{seed}", variant="baseline", seed=seed)
            make(f"e{seed}", variant="exact", seed=seed)
        make("e3", variant="exact", seed=3)
        make("v", variant="baseline", network="vit-narrow", seed=1)
        found = runs_of([tmp_path], DATA)
        judged = {run.name: judge_of(run, found).name for run in found}
        assert judged["exact, seed 2"] == "baseline resnet18, seed 2"
        assert judged["exact, seed 3"] == "baseline resnet18, seed 1"
        assert judged["baseline vit-narrow, seed 1"] == "baseline resnet18, seed 1"
        before = judges(found, size=(32, 32))
        assert [run.name for run in before] == [
            "baseline resnet18, seed 1", "baseline resnet18, seed 2",
        ]  # fmt: skip

    def test_without_a_baseline_of_its_size_a_run_judges_itself(
        self, make: Make, tmp_path: Path
    ) -> None:
        make("b", variant="baseline", image_size=64)
        make("e", variant="exact")
        found = runs_of([tmp_path], DATA)
        assert judge_of(found[1], found) == found[1]
        assert judges(found, size=(32, 32)) == []
