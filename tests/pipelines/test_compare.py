"""A grid of runs end to end: what it leaves, what it measured, how it goes on, what it refuses."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from models.attention import ATTENTIONS
from models.networks import build
from pipelines import compare as compare_module
from pipelines import run as run_files
from pipelines import run_scores
from pipelines.assemble import network_of, open_for_training
from pipelines.cli import app
from pipelines.compare import CompareReport, compare
from pipelines.comparison_grid import chosen_variants, reference
from pipelines.comparison_measures import DISTANCE, UNIFORM, Truth
from pipelines.config import CompareConfig, ConfigError, GridConfig, TrainConfig
from pipelines.errors import DataError, DivergedError, RunError, RunExists, UsageError
from pipelines.feed import normalise
from pipelines.run_scores import MAP_SCORES, MEASURED
from pipelines.start import Start
from pipelines.train import train
from preprocessing.records import Died
from tests.pipelines.test_multilabel import SETTINGS as FINDINGS_SETTINGS
from tests.pipelines.test_multilabel import write_findings

TRAIN = TrainConfig(network="resnet10-narrow", epochs=1, batch_size=6, bootstrap=40, workers=0)
GRID = CompareConfig(variants=("baseline", "exact"), seeds=2, train=TRAIN)
RUNS = [(variant, seed) for variant in ("baseline", "exact") for seed in (0, 1)]
WEIGHTS = "best.safetensors"


def changed(**changes: Any) -> CompareConfig:
    return GRID.model_copy(update=changes)


def with_training(**changes: Any) -> CompareConfig:
    return changed(train=TRAIN.model_copy(update=changes))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def call(*words: str | Path) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def refusing(variant: str, seed: int) -> Callable[..., Any]:
    """Train as ever, but for one run, which diverges."""

    def stand_in(settings: TrainConfig, **others: Any) -> Any:
        if (settings.variant, settings.seed) == (variant, seed):
            raise DivergedError("LOSS_NOT_FINITE", "the loss is no number")
        return train(settings, **others)

    return stand_in


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished run was done again")


@pytest.fixture(scope="module")
def data(make_blobs: Callable[..., Path]) -> Path:
    return make_blobs(counts={"train": 12, "validation": 6, "test": 12}, size=32)


@pytest.fixture(scope="module")
def grid(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompareReport]:
    """Two variants, two seeds, one epoch of pictures of 32 x 32; read only."""
    out = tmp_path_factory.mktemp("compared") / "grid"
    return out, compare(GRID, data=data, out=out)


@pytest.fixture
def copied(grid: tuple[Path, CompareReport], tmp_path: Path) -> Path:
    return Path(shutil.copytree(grid[0], tmp_path / "grid"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figure, which takes longer than these runs."""
    drawn = {"png": b"", "svg": b""}
    monkeypatch.setattr(compare_module.comparison_figure, "draw", lambda _: drawn)


class TestAGrid:
    def test_it_leaves_ordinary_runs_and_tables(self, grid: tuple[Path, CompareReport]) -> None:
        out, report = grid
        assert {path.name for path in out.iterdir()} == {
            "baseline", "exact", "comparison.csv", "per_run.csv", "differences.csv",
            "comparison.md", "comparison.tex", "comparison.png", "comparison.svg", "config.yaml",
        }  # fmt: skip
        for variant, seed in RUNS:
            run = out / variant / f"seed-{seed}"
            found = run_files.read_config(run).train
            assert (found.variant, found.seed) == (variant, seed)
            assert {"run.json", "model_card.md", MAP_SCORES, MEASURED} <= {
                path.name for path in run.iterdir()
            }
        assert report.failed == 0

    def test_config_says_what_was_compared(self, grid: tuple[Path, CompareReport]) -> None:
        found = GridConfig.from_yaml(grid[0] / "config.yaml")
        assert found.compare == changed(against="baseline")
        assert found.data == run_files.read_config(grid[0] / "exact" / "seed-1").data

    def test_scores_of_a_run_are_those_that_training_reports(
        self, grid: tuple[Path, CompareReport]
    ) -> None:
        for row in table(grid[0] / "per_run.csv"):
            run = grid[0] / row["variant"] / f"seed-{row['seed']}"
            scores = json.loads((run / "test_scores.json").read_text())
            for name in ("accuracy", "balanced_accuracy", "auc"):
                assert float(row[name]) == pytest.approx(scores[name]["value"], abs=1e-6)
            expected = scores["calibration_error"]
            assert float(row["calibration_error"]) == pytest.approx(expected, abs=1e-5)
            epochs = table(run / "metrics.csv")
            assert float(row["seconds_per_epoch"]) == float(epochs[0]["seconds"])

    def test_map_scores_are_those_of_maps_repeated_to_the_picture(
        self, grid: tuple[Path, CompareReport], data: Path
    ) -> None:
        """Every cell repeated over its pixels, and scikit-learn's average precision of these."""
        run = grid[0] / "exact" / "seed-1"
        config = run_files.read_config(run)
        network = network_of(config).eval()
        run_files.load_weights(run, network)
        test = open_for_training(data, image_size=None).splits["test"]
        images = normalise(torch.stack([test[i] for i in range(12)]), config.normalisation)
        with torch.no_grad():
            fine, coarse = (level.double().numpy() for level in network(images).maps)
        for i, row in enumerate(table(run / MAP_SCORES)):
            assert row["sample_id"] == test.sample_ids[i]
            mask = test.rows.read(int(test.positions[i]), ("mask",))["mask"] > 0
            for name, level in (("fine", fine[i]), ("coarse", coarse[i])):
                cell = row[f"average_precision_{name}"]
                if not mask.any():
                    assert cell == row[UNIFORM] == ""
                    continue
                large = np.kron(level, np.ones((32 // level.shape[0], 32 // level.shape[1])))
                expected = average_precision_score(mask.ravel(), large.ravel())
                assert float(cell) == pytest.approx(expected, abs=1e-4)
                assert float(row[UNIFORM]) == pytest.approx(mask.mean())
            sums = fine[i].reshape(coarse.shape[1], -1, coarse.shape[2], fine.shape[2])
            pooled = fine[i].sum() if coarse[i].size == 1 else sums.sum(axis=(1, 3))
            assert float(row[DISTANCE]) == pytest.approx(
                np.abs(pooled - coarse[i]).sum() / 2, abs=1e-6
            )

    def test_a_variant_without_maps_has_empty_cells(self, grid: tuple[Path, CompareReport]) -> None:
        baseline, exact = table(grid[0] / "comparison.csv")
        for name in ("average_precision_fine", "average_precision_coarse", DISTANCE):
            assert baseline[name] == baseline[f"{name}_low"] == ""
            assert 0 <= float(exact[f"{name}_low"]) <= float(exact[f"{name}_high"])
        assert float(exact[DISTANCE]) < 1e-6
        assert baseline[UNIFORM] == exact[UNIFORM] != ""

    def test_means_are_those_of_the_runs(self, grid: tuple[Path, CompareReport]) -> None:
        runs = table(grid[0] / "per_run.csv")
        for row in table(grid[0] / "comparison.csv"):
            values = [float(run["auc"]) for run in runs if run["variant"] == row["variant"]]
            assert_allclose(float(row["auc"]), np.mean(values))
            assert_allclose(float(row["auc_sd"]), np.std(values, ddof=1))
        parameters = [int(row["parameters"]) for row in table(grid[0] / "comparison.csv")]
        network = build("resnet10-narrow", variant="exact", in_channels=1, classes=3, image_size=32)
        assert parameters[1] == sum(value.numel() for value in network.parameters())

    def test_nothing_names_a_path(self, grid: tuple[Path, CompareReport], data: Path) -> None:
        for path in grid[0].rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                for private in (str(data), str(grid[0]), "/root", "/home"):
                    assert private.encode() not in content, path.name

    def test_few_patients_are_called_few(self, grid: tuple[Path, CompareReport]) -> None:
        assert (
            "only 6 test patients: intervals are too narrow"
            in (grid[0] / "comparison.md").read_text()
        )

    @pytest.mark.usefixtures("sketched", "undrawn")
    def test_several_at_once(self, data: Path, tmp_path: Path) -> None:
        steps: list[tuple[str, int, int]] = []
        report = compare(
            changed(variants=("baseline",), jobs=2),
            data=data,
            out=tmp_path / "grid",
            progress=lambda *told: steps.append(told),
        )
        assert report.failed == 0
        rows = table(tmp_path / "grid" / "per_run.csv")
        assert [(row["variant"], row["seed"]) for row in rows] == [
            ("baseline", "0"), ("baseline", "1"),
        ]  # fmt: skip
        assert steps[-1] == ("2 runs", 4, 4)
        for seed in (0, 1):
            assert (tmp_path / "grid" / "baseline" / f"seed-{seed}" / "run.json").is_file()

    @pytest.mark.usefixtures("sketched", "undrawn")
    def test_pictures_of_several_findings(self, tmp_path: Path) -> None:
        data = write_findings(tmp_path)
        training = FINDINGS_SETTINGS.model_copy(update={"epochs": 1})
        grid = CompareConfig(variants=("fine",), train=training)
        compare(grid, data=data, out=tmp_path / "grid")
        (row,) = table(tmp_path / "grid" / "per_run.csv")
        scores = json.loads((tmp_path / "grid/fine/seed-0/test_scores.json").read_text())
        assert float(row["auc"]) == pytest.approx(scores["mean_auc"]["value"], abs=1e-6)
        expected = scores["calibration_error"]
        assert float(row["calibration_error"]) == pytest.approx(expected, abs=1e-5)
        assert "average_precision_fine" not in row  # no true regions in this data set


class TestAGridAgain:
    def test_finished_runs_are_not_done_again_and_tables_are_the_same(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [path.name for path in copied.iterdir() if path.is_file()]
        before = {name: (copied / name).read_bytes() for name in names}
        monkeypatch.setattr(compare_module, "train", never)
        monkeypatch.setattr(compare_module, "measure_run", never)
        compare(GRID, data=data, out=copied, resume=True)
        assert {name: (copied / name).read_bytes() for name in names} == before


@pytest.mark.usefixtures("sketched", "undrawn")
class TestGoingOn:
    def test_variants_and_seeds_can_be_added(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[tuple[str, int]] = []

        def noting(settings: TrainConfig, **others: Any) -> Any:
            done.append((settings.variant, settings.seed))
            return train(settings, **others)

        monkeypatch.setattr(compare_module, "train", noting)
        wider = changed(variants=("baseline", "exact", "fine"), seeds=1, against="exact")
        compare(wider, data=data, out=copied, resume=True)
        assert done == [("fine", 0)]
        rows = table(copied / "differences.csv")
        assert {(row["variant"], row["against"]) for row in rows} == {
            ("baseline", "exact"), ("fine", "exact"),
        }  # fmt: skip
        assert [row["runs"] for row in table(copied / "comparison.csv")] == ["1", "1", "1"]

    def test_interrupted_and_resumed_it_ends_as_the_uninterrupted(
        self, copied: Path, data: Path, tmp_path: Path
    ) -> None:
        def interrupt(stage: str, done: int, total: int) -> None:
            if done == 3:  # the second step of the second run
                raise KeyboardInterrupt

        out, once = tmp_path / "resumed", changed(seeds=1)
        with pytest.raises(KeyboardInterrupt):
            compare(once, data=data, out=out, progress=interrupt)
        assert not (out / "config.yaml").exists()
        assert (out / "baseline" / "seed-0" / MEASURED).exists()
        compare(once, data=data, out=out, resume=True)
        compare(once, data=data, out=copied, resume=True)
        for name in ("baseline/seed-0/" + WEIGHTS, "exact/seed-0/" + WEIGHTS, "differences.csv"):
            assert (out / name).read_bytes() == (copied / name).read_bytes()

    @pytest.mark.parametrize("name", [MAP_SCORES, MEASURED])
    def test_measured_again_where_what_was_measured_is_damaged(
        self, copied: Path, data: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = copied / "exact" / "seed-0"
        before = (run / MEASURED).read_bytes()
        (run / name).write_text("something else\n")
        monkeypatch.setattr(compare_module, "train", never)
        compare(GRID, data=data, out=copied, resume=True)
        assert (run / MEASURED).read_bytes() == before

    def test_a_run_that_fails_is_marked_and_tried_again(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(copied / "exact" / "seed-1")
        with monkeypatch.context() as during:
            during.setattr(compare_module, "train", refusing("exact", 1))
            report = compare(GRID, data=data, out=copied, resume=True)
        assert report.failed == 1
        assert "exact, seed 1 failed: LOSS_NOT_FINITE: the loss is no number" in report.lines()
        assert "1 of 4 runs did not end" in report.lines()[-1]
        baseline, exact = table(copied / "comparison.csv")
        assert (exact["runs"], exact["failed"], exact["errors"]) == ("1", "1", "LOSS_NOT_FINITE")
        assert (baseline["runs"], baseline["failed"], baseline["errors"]) == ("2", "0", "")
        assert float(exact["accuracy"]) == float(table(copied / "per_run.csv")[2]["accuracy"])
        again = compare(GRID, data=data, out=copied, resume=True)
        assert again.failed == 0
        assert table(copied / "comparison.csv")[1]["runs"] == "2"

    def test_a_reference_that_failed_is_compared_with_nothing(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(copied / "baseline" / "seed-0")
        monkeypatch.setattr(compare_module, "train", refusing("baseline", 0))
        compare(changed(seeds=1), data=data, out=copied, resume=True)
        assert table(copied / "differences.csv") == []
        assert table(copied / "comparison.csv")[0]["errors"] == "LOSS_NOT_FINITE"

    def test_a_process_that_died_is_marked(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dying(function: Any, items: Any, **_: Any) -> Any:
            assert [member.name for member in items] == ["baseline, seed 0"]
            yield 0, Died()

        shutil.rmtree(copied / "baseline" / "seed-0")
        monkeypatch.setattr(compare_module, "run_all", dying)
        report = compare(changed(seeds=1), data=data, out=copied, resume=True)
        (failure,) = report.found.failures
        assert (failure.variant, failure.code) == ("baseline", "PROCESS_DIED")
        assert "smaller --jobs or batch_size" in failure.message

    def test_where_all_fail_there_is_no_table(self, data: Path, tmp_path: Path) -> None:
        diverging = with_training(learning_rate=1e30, gradient_clip=0.0, warmup_epochs=0.0)
        once = diverging.model_copy(update={"seeds": 1})
        with pytest.raises(RunError, match=r"none of the 2 runs ended; the first with LOSS"):
            compare(once, data=data, out=tmp_path / "grid")
        assert not (tmp_path / "grid" / "comparison.csv").exists()


@pytest.mark.usefixtures("sketched", "undrawn")
class TestMasks:
    def test_true_regions_too_small_for_the_picture_are_counted(
        self, make_blobs: Callable[..., Path], tmp_path: Path
    ) -> None:
        """Discs of radius 5 at 64 pixels fill no pixel of 8 x 8 by half, now and then."""
        data = make_blobs(counts={"train": 6, "validation": 6, "test": 12}, size=64)
        test = open_for_training(data, image_size=32).splits["test"]
        masks, regions = run_scores.masks_of(test, range(12))
        assert masks is not None
        for i in range(12):
            mask = test.rows.read(int(test.positions[i]), ("mask",))["mask"]
            share = mask.reshape(32, 2, 32, 2).mean(axis=(1, 3))
            assert np.array_equal(masks[i].numpy(), share >= 0.5)
            assert regions[i] == mask.any()

    def test_lost_regions_are_told(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_scores, "MASK_SHARE", 1.1)
        (copied / "exact" / "seed-0" / MEASURED).unlink()
        compare(changed(variants=("exact",), seeds=1), data=data, out=copied, resume=True)
        text = (copied / "comparison.md").read_text()
        assert "8 of 8 true regions fill no pixel at this picture size" in text
        assert "average_precision_fine" not in table(copied / "comparison.csv")[0]


class TestChoosing:
    @pytest.mark.parametrize(
        ("network", "expected"),
        [("resnet10-narrow", tuple(ATTENTIONS)), ("vit-narrow", ("baseline",))],
    )
    def test_all_are_those_whose_levels_the_network_has(
        self, data: Path, network: str, expected: tuple[str, ...]
    ) -> None:
        found = open_for_training(data, image_size=None)
        wanted = CompareConfig(
            variants=("all",), train=TRAIN.model_copy(update={"network": network})
        )
        state = torch.get_rng_state()
        assert chosen_variants(wanted, found) == expected
        assert torch.equal(state, torch.get_rng_state())

    def test_one_that_is_named_and_cannot_be_gated_is_refused(self, data: Path) -> None:
        found = open_for_training(data, image_size=None)
        vit = TRAIN.model_copy(update={"network": "vit-narrow"})
        with pytest.raises(UsageError, match="'vit-narrow' has no stages that variant 'exact'"):
            chosen_variants(CompareConfig(variants=("exact",), train=vit), found)

    def test_all_refuses_a_size_that_no_level_fits(self, data: Path) -> None:
        found = open_for_training(data, image_size=48)
        odd = TRAIN.model_copy(update={"image_size": 48})
        with pytest.raises(UsageError, match="do not nest; use sides that are multiples of 32"):
            chosen_variants(CompareConfig(variants=("all",), train=odd), found)

    def test_each_variant_once(self, data: Path) -> None:
        found = open_for_training(data, image_size=None)
        twice = CompareConfig(variants=("fine", "exact", "fine"), train=TRAIN)
        assert chosen_variants(twice, found) == ("fine", "exact")

    def test_the_reference(self) -> None:
        assert reference("", ("exact", "baseline")) == "baseline"
        assert reference("", ("exact", "dual")) == "exact"
        assert reference("dual", ("exact", "dual")) == "dual"
        with pytest.raises(UsageError, match=r"compared with 'duel'.*did you mean 'dual'") as found:
            reference("duel", ("exact", "dual"))
        assert found.value.code == "AGAINST_MISSING"

    def test_an_unknown_variant(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no variant 'exakt'; did you mean 'exact'") as found:
            compare(changed(variants=("exakt",)), data=data, out=tmp_path / "grid")
        assert found.value.code == "UNKNOWN_VARIANT"
        assert not (tmp_path / "grid").exists()

    def test_no_variant_and_no_seed(self) -> None:
        with pytest.raises(ConfigError, match="variants: "):
            CompareConfig.of({"variants": [], "train": TRAIN})
        with pytest.raises(ConfigError, match=r"seeds: .*greater than or equal to 1"):
            CompareConfig.of({"variants": ["exact"], "seeds": 0, "train": TRAIN})


@pytest.mark.usefixtures("sketched", "undrawn")
class TestRefusals:
    def test_a_folder_that_holds_something(self, copied: Path, data: Path) -> None:
        with pytest.raises(RunExists, match="continue the comparison in it with --resume") as found:
            compare(GRID, data=data, out=copied)
        assert found.value.code == "RUN_EXISTS"

    def test_a_folder_that_is_no_comparison(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").touch()
        with pytest.raises(RunExists, match="holds 1 entries that no comparison") as found:
            compare(GRID, data=data, out=tmp_path, resume=True)
        assert found.value.code == "NOT_A_COMPARISON"
        with pytest.raises(RunExists, match="--out names a file"):
            compare(GRID, data=data, out=tmp_path / "letter.txt", resume=True)

    def test_other_settings(self, copied: Path, data: Path) -> None:
        with pytest.raises(UsageError, match=r"'baseline, seed 0'.*\(epochs 1 -> 2\)") as found:
            compare(with_training(epochs=2), data=data, out=copied, resume=True)
        assert found.value.code == "RESUME_DIFFERS"

    def test_settings_that_change_no_weight_may_differ(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compare_module, "train", never)
        report = compare(with_training(bootstrap=7), data=data, out=copied, resume=True)
        assert report.found.resamples == 7

    def test_other_first_weights(self, copied: Path, data: Path, grid: tuple) -> None:
        start = Start(source=grid[0] / "baseline" / "seed-0")
        with pytest.raises(UsageError, match="began with other weights") as found:
            compare(GRID, data=data, out=copied, start=start, resume=True)
        assert found.value.code == "RESUME_DIFFERS"

    def test_another_data_set(self, copied: Path, make_blobs: Callable[..., Path]) -> None:
        counts = {"train": 12, "validation": 6, "test": 12}
        other = make_blobs(counts=counts, size=32, seed=1)
        with pytest.raises(DataError, match="begun with another data set") as found:
            compare(GRID, data=other, out=copied, resume=True)
        assert found.value.code == "DATA_CHANGED"

    def test_a_run_that_was_changed(self, copied: Path, data: Path) -> None:
        shutil.copy(copied / "exact" / "seed-1" / WEIGHTS, copied / "exact" / "seed-0" / WEIGHTS)
        with pytest.raises(RunError, match=r"best\.safetensors changed after training"):
            compare(GRID, data=data, out=copied, resume=True)

    def test_scores_of_other_samples(self, copied: Path) -> None:
        truth = Truth(labels=np.zeros(2, dtype=np.int64), subject_ids=("one", "two"))
        run = copied / "exact" / "seed-0"
        with pytest.raises(RunError, match="does not hold the 2 samples of the test split"):
            run_scores.read_scores(run, variant="exact", seed=0, truth=truth)

    def test_no_test_split(self, make_blobs: Callable[..., Path], tmp_path: Path) -> None:
        data = make_blobs(counts={"train": 6, "validation": 6, "test": 0}, size=32)
        with pytest.raises(DataError, match="larger test_fraction") as found:
            compare(GRID, data=data, out=tmp_path / "grid")
        assert found.value.code == "EMPTY_SPLIT"

    def test_started_by_torchrun(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launched = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
        for name, value in launched.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match="without torchrun and give it --jobs") as found:
            compare(GRID, data=data, out=tmp_path / "grid")
        assert found.value.code == "COMPARISON_LAUNCHED"


@pytest.mark.usefixtures("sketched", "undrawn")
class TestCommandLine:
    QUICK = ("--network", "resnet10-narrow", "--epochs", "1", "--set", "batch_size=6",
             "--set", "bootstrap=40", "--set", "workers=0")  # fmt: skip

    def test_variants_and_seeds(self, copied: Path, data: Path) -> None:
        words = ("--variants", "baseline, exact", "--seeds", "2", "--resume", "--json")
        code, stdout, stderr = call("train", "--data", data, "--out", copied, *self.QUICK, *words)
        assert code == 0, stderr
        told = json.loads(stdout)
        assert [row["variant"] for row in told["variants"]] == ["baseline", "exact"]
        assert [row["seed"] for row in told["runs"]] == [0, 1, 0, 1]
        assert {row["against"] for row in told["differences"]} == {"baseline"}
        assert told["failures"] == []
        mean = told["variants"][1]["accuracy"]
        assert f"exact     accuracy {mean:.3f} ± " in stderr
        assert f"tables: {copied / 'comparison.md'}" in stderr

    def test_several_seeds_of_one_variant(self, copied: Path, data: Path) -> None:
        words = ("--variant", "exact", "--seeds", "2", "--resume")
        code, stdout, stderr = call("train", "--data", data, "--out", copied, *self.QUICK, *words)
        assert (code, stdout) == (0, "")
        (row,) = table(copied / "comparison.csv")
        assert (row["variant"], row["runs"]) == ("exact", "2")
        mean, sd = float(row["accuracy"]), float(row["accuracy_sd"])
        assert f"exact  accuracy {mean:.3f} ± {sd:.3f}" in stderr
        assert table(copied / "differences.csv") == []

    def test_a_run_that_failed_is_told_by_the_exit_code(
        self, copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.rmtree(copied / "exact" / "seed-0")
        monkeypatch.setattr(compare_module, "train", refusing("exact", 0))
        words = ("--variants", "baseline,exact", "--seeds", "1", "--resume", "--json")
        code, stdout, stderr = call("train", "--data", data, "--out", copied, *self.QUICK, *words)
        assert code == 1
        assert json.loads(stdout)["failures"][0]["code"] == "LOSS_NOT_FINITE"
        assert "exact     no run ended" in stderr
        assert "with --resume tries them again" in stderr

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--variants", "exakt"), "UNKNOWN_VARIANT: no variant 'exakt'; did you mean 'exact'?"),
            (("--variants", "fine", "--variant", "dual"), "TWO_VARIANTS: --variant and --variants"),
            (("--jobs", "2"), "NO_GRID: --against and --jobs belong to several runs"),
            (("--against", "dual"), "NO_GRID: --against and --jobs belong to several runs"),
            (("--seeds", "2", "--dry-run"), "NO_DRY_RUN: --dry-run forecasts one run"),
            (("--variants", ","), "variants: "),
            (("--variants", "fine", "--against", "coarse"), "AGAINST_MISSING: nothing can be"),
        ],
    )
    def test_what_cannot_be_compared(
        self, data: Path, tmp_path: Path, words: tuple[str, ...], message: str
    ) -> None:
        out = tmp_path / "grid"
        code, stdout, stderr = call("train", "--data", data, "--out", out, *self.QUICK, *words)
        assert (code, stdout) == (2, "")
        assert message in stderr
        assert not out.exists()
