"""Networks retrained without pixels: what a right, a wrong and a random map come to."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import (
    outcome,
    retraining,
    retraining_cells,
    retraining_console,
    retraining_maps,
    retraining_pictures,
)
from pipelines import run as run_files
from pipelines.assemble import TrainingData, open_for_training
from pipelines.comparison_scores import MeanScore
from pipelines.config import (
    ConfigError,
    RetrainConfig,
    RetrainingConfig,
    TrainConfig,
)
from pipelines.errors import DataError, DivergedError, RunError, RunExists, UsageError
from pipelines.launch import Launch
from pipelines.loading import load_network
from pipelines.progress import silent
from pipelines.retraining import RetrainReport, retrain
from pipelines.retraining_cells import PICTURES, Cell, retrain_cell
from pipelines.retraining_maps import (
    CONTROLS,
    EDGES,
    RANDOM,
    TRUE_MASK,
    Part,
    Source,
    read_maps,
    true_targets,
    write_maps,
)
from pipelines.retraining_pictures import NOTHING, Recipe, Removal, without, write_pictures
from pipelines.retraining_scores import MEAN, averaged, less, points_of, removals_of
from pipelines.train import train
from preprocessing.records import Died
from tests.pipelines.blocks import BLOCK, CLASSES, QUICK, SIDE, write_blocks
from tests.pipelines.test_multilabel import SETTINGS as FINDINGS_SETTINGS
from tests.pipelines.test_multilabel import write_findings

COUNTS = {"train": 24, "validation": 12, "test": 40}
ROAR = RetrainConfig(fractions=(0.1,))
WEIGHTS = "best.safetensors"
RESULTS = ("retraining.csv", "per_run.csv", "retraining.md", "retraining.tex", "retraining.svg")
INVERTED = "inverted"


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """Leave out the plots of single runs, which take longer than their training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "draw_curves", lambda *_, **__: None)
        patch.setattr(outcome, "_plots", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("blocks") / "data", COUNTS)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that tells the classes apart; read only."""
    out = tmp_path_factory.mktemp("explained") / "run"
    train(QUICK, data=data, run=out)
    return out


@pytest.fixture(scope="module")
def roar(run: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("roar") / "out"
    return out, retrain(ROAR, run=run, data=data, out=out, methods=(TRUE_MASK,))


@pytest.fixture
def copied(roar: tuple[Path, RetrainReport], tmp_path: Path) -> Path:
    return Path(shutil.copytree(roar[0], tmp_path / "copied"))


def _inverted(part: Part) -> torch.Tensor:
    return 1 - CONTROLS[TRUE_MASK](part)


@pytest.fixture
def with_inverted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a map of everything but the block be asked for."""
    controls = MappingProxyType({**CONTROLS, INVERTED: _inverted})
    monkeypatch.setattr(retraining_maps, "CONTROLS", controls)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("what is done was done again")


def source_of(
    run: Path, data: Path, folder: Path, *, methods: tuple[str, ...], batch_size: int = 8
) -> Source:
    config = run_files.read_config(run)
    return Source(
        config=config,
        retrain=RetrainConfig(batch_size=batch_size),
        methods=methods,
        network=load_network(run, config),
        device=torch.device("cpu"),
        data=open_for_training(data, image_size=None),
        folder=folder,
    )


class TestRoar:
    def test_removing_what_tells_the_class_leaves_chance_and_removing_else_does_not(
        self, roar: tuple[Path, RetrainReport]
    ) -> None:
        found = roar[1].found
        assert found.untouched is not None
        assert found.untouched.mean > 0.9
        assert found.points[RANDOM][0.1].mean > 0.9
        assert abs(found.points[TRUE_MASK][0.1].mean - found.chance) < 0.15
        contrast = found.contrast(TRUE_MASK, 0.1)
        assert contrast is not None
        assert contrast.high < -0.2
        assert contrast.p_holm < 0.05
        assert found.contrast(RANDOM, 0.1) is None

    def test_it_leaves_tables_curves_and_ordinary_runs_but_no_pictures(
        self, roar: tuple[Path, RetrainReport]
    ) -> None:
        out = roar[0]
        assert {path.name for path in out.iterdir()} == {
            *RESULTS, "retraining.png", "config.yaml", "retraining.json", "maps", NOTHING, RANDOM,
            TRUE_MASK,
        }  # fmt: skip
        for cell in (NOTHING, f"{RANDOM}/removed-0.1", f"{TRUE_MASK}/removed-0.1"):
            assert [path.name for path in (out / cell).iterdir()] == ["seed-0"]
            assert (out / cell / "seed-0" / "run.json").is_file()
            assert run_files.read_config(out / cell / "seed-0").train == QUICK
        assert (out / "retraining.png").read_bytes().startswith(b"\x89PNG")
        svg = (out / "retraining.svg").read_text()
        assert "guessing" in svg
        assert TRUE_MASK in svg

    def test_tables_say_what_was_measured(self, roar: tuple[Path, RetrainReport]) -> None:
        out, report = roar
        nothing, random, mask = (
            next(row for row in table(out / "retraining.csv") if row["map"] == name)
            for name in ("", RANDOM, TRUE_MASK)
        )
        assert (nothing["fraction"], nothing["pixels_removed"]) == ("0.0", "0")
        assert (mask["fraction"], mask["pixels_removed"]) == ("0.1", "102")
        assert float(mask["value"]) == report.found.points[TRUE_MASK][0.1].mean
        assert random["against_random_value"] == ""
        difference = float(mask["value"]) - float(random["value"])
        assert float(mask["against_random_value"]) == pytest.approx(difference)
        networks = table(out / "per_run.csv")
        assert [(row["map"], row["pictures"], row["seed"]) for row in networks] == [
            ("", NOTHING, "0"),
            (RANDOM, "removed", "0"),
            (TRUE_MASK, "removed", "0"),
        ]
        scores = json.loads((out / TRUE_MASK / "removed-0.1/seed-0/test_scores.json").read_text())
        assert float(mask["value"]) == pytest.approx(scores["balanced_accuracy"]["value"])
        page = (out / "retraining.md").read_text()
        for said in (
            "The lower, the more of what tells the classes apart",
            "Maps are of the true class",
            "shows the mean of the training pictures in its channel (127.",
            "guessing gives 0.500",
            f"| {TRUE_MASK} |",
        ):
            assert said in page
        latex = (out / "retraining.tex").read_text()
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 2

    def test_config_says_what_was_asked_for(
        self, roar: tuple[Path, RetrainReport], run: Path
    ) -> None:
        found = RetrainingConfig.from_yaml(roar[0] / "config.yaml")
        assert found.retrain == ROAR
        assert found.methods == (TRUE_MASK,)
        assert found.explained == run_files.read_config(run)

    def test_the_report_tells_people_and_programs(self, roar: tuple[Path, RetrainReport]) -> None:
        lines = roar[1].lines()
        assert lines[0] == "balanced accuracy, at 0.1 (roar):"
        assert [line.split()[0] for line in lines[1:]] == [RANDOM, TRUE_MASK]
        plain = json.loads(json.dumps(roar[1].as_json()))
        assert len(plain["curves"]) == 3
        assert plain["failures"] == []


class TestDiffRoar:
    def test_the_right_map_is_high_a_random_one_zero_and_the_inverted_one_negative(
        self, run: Path, data: Path, tmp_path: Path, with_inverted: None
    ) -> None:
        config = RetrainConfig(protocol="diffroar", fractions=(0.5,))
        report = retrain(
            config, run=run, data=data, out=tmp_path / "out", methods=(TRUE_MASK, INVERTED)
        )
        points = {name: each[0.5] for name, each in report.found.points.items()}
        most = 1 - report.found.chance
        assert points[TRUE_MASK].mean > most - 0.2
        assert abs(points[RANDOM].mean) < 0.15
        assert points[INVERTED].mean < -most + 0.2
        assert points[INVERTED].high < 0 < points[TRUE_MASK].low
        for ranking in (TRUE_MASK, INVERTED):
            for what in ("top", "bottom"):
                assert (tmp_path / "out" / ranking / f"{what}-0.5" / "seed-0" / WEIGHTS).is_file()
        assert "DiffROAR" in (tmp_path / "out" / "retraining.md").read_text()
        assert "no difference" in (tmp_path / "out" / "retraining.svg").read_text()
        row = next(r for r in table(tmp_path / "out" / "retraining.csv") if r["map"] == TRUE_MASK)
        assert row["pixels_removed"] == "512"


class TestResuming:
    def test_two_jobs_give_the_same_bytes(
        self, roar: tuple[Path, RetrainReport], run: Path, data: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        jobs = ROAR.model_copy(update={"jobs": 2})
        retrain(jobs, run=run, data=data, out=out, methods=(TRUE_MASK,))
        for name in RESULTS:
            assert (out / name).read_bytes() == (roar[0] / name).read_bytes(), name
        for cell in (NOTHING, f"{RANDOM}/removed-0.1", f"{TRUE_MASK}/removed-0.1"):
            place = Path(cell) / "seed-0" / WEIGHTS
            assert (out / place).read_bytes() == (roar[0] / place).read_bytes(), cell

    def test_an_interrupted_retraining_goes_on_to_the_same_result(
        self, roar: tuple[Path, RetrainReport], run: Path, data: Path, tmp_path: Path
    ) -> None:
        out, seen = tmp_path / "out", []

        def interrupting(stage: str, done: int, total: int) -> None:
            if stage == "3 retrainings":
                seen.append(done)
                if done > total / 2:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            retrain(ROAR, run=run, data=data, out=out, methods=(TRUE_MASK,), progress=interrupting)
        assert seen
        assert not (out / "config.yaml").exists()
        assert not list(out.rglob(PICTURES))
        with pytest.raises(RunExists, match="continue the retraining in it with --resume"):
            retrain(ROAR, run=run, data=data, out=out, methods=(TRUE_MASK,))
        retrain(ROAR, run=run, data=data, out=out, methods=(TRUE_MASK,), resume=True)
        for name in RESULTS:
            assert (out / name).read_bytes() == (roar[0] / name).read_bytes(), name

    def test_what_is_done_is_not_done_again(
        self, copied: Path, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retraining_cells, "train", never)
        monkeypatch.setattr(retraining_cells, "write_pictures", never)
        monkeypatch.setattr(retraining_maps, "_maps", never)
        before = (copied / "retraining.csv").read_bytes()
        (copied / "retraining.csv").unlink()
        retrain(ROAR, run=run, data=data, out=copied, methods=(TRUE_MASK,), resume=True)
        assert (copied / "retraining.csv").read_bytes() == before

    def test_seeds_may_be_added_and_one_that_fails_takes_no_other_with_it(
        self, copied: Path, run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(settings: TrainConfig, **others: Any) -> Any:
            assert settings.seed == 1
            if TRUE_MASK in str(others["run"]):
                raise DivergedError("LOSS_NOT_FINITE", "the loss is no number")
            return train(settings.model_copy(update={"epochs": 1}), **others)

        monkeypatch.setattr(retraining_cells, "train", failing)
        config = ROAR.model_copy(update={"seeds": 2})
        report = retrain(config, run=run, data=data, out=copied, methods=(TRUE_MASK,), resume=True)
        (failure,) = report.found.failures
        assert (failure.variant, failure.seed) == (f"{TRUE_MASK}/removed-0.1", 1)
        assert report.failed == 1
        assert len(report.found.points[RANDOM][0.1].values) == 2
        assert len(report.found.points[TRUE_MASK][0.1].values) == 1
        assert "seed 1 failed: LOSS_NOT_FINITE" in "\n".join(report.lines())
        rows = [row for row in table(copied / "per_run.csv") if row["map"] == TRUE_MASK]
        assert [row["error"] for row in rows] == ["", "LOSS_NOT_FINITE"]
        assert "## Networks that did not end" in (copied / "retraining.md").read_text()


class TestRefusals:
    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
    def test_a_fraction_of_nothing_or_everything(self, fraction: float) -> None:
        with pytest.raises(ConfigError, match=r"fractions\.0: Input should be (greater|less) than"):
            RetrainConfig.of({"fractions": [fraction]})

    @pytest.mark.parametrize("fractions", [(0.5, 0.1), (0.3, 0.3)])
    def test_fractions_out_of_order(self, fractions: tuple[float, ...]) -> None:
        with pytest.raises(ConfigError, match="fractions are to ascend, each one named once"):
            RetrainConfig.of({"fractions": fractions})

    def test_an_unknown_method(self, run: Path, data: Path, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match="no method 'gradcan'; did you mean 'gradcam'"
        ) as found:
            retrain(ROAR, run=run, data=data, out=tmp_path / "out", methods=("gradcan",))
        assert found.value.code == "UNKNOWN_METHOD"
        assert not (tmp_path / "out").exists()

    def test_a_method_that_cannot_explain_the_network(
        self, run: Path, data: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=r"^attention: "):
            retrain(ROAR, run=run, data=data, out=tmp_path / "out", methods=("attention",))

    def test_another_data_set(self, run: Path, tmp_path: Path) -> None:
        other = write_blocks(tmp_path / "other", COUNTS, seed=1)
        with pytest.raises(DataError, match="is not the one that the run was trained on") as found:
            retrain(ROAR, run=run, data=other, out=tmp_path / "out", methods=(TRUE_MASK,))
        assert found.value.code == "RUN_DATA_MISMATCH"

    def test_a_run_that_did_not_end(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"the run folder holds no config\.yaml"):
            retrain(ROAR, run=tmp_path, data=data, out=tmp_path / "out")

    def test_no_test_patients(self, tmp_path: Path) -> None:
        counts = {"train": 12, "validation": 6, "test": 0}
        data = write_blocks(tmp_path / "data", counts)
        train(QUICK.model_copy(update={"epochs": 1}), data=data, run=tmp_path / "run")
        with pytest.raises(DataError, match="the test split has no labelled sample"):
            retrain(ROAR, run=tmp_path / "run", data=data, out=tmp_path / "out")

    def test_a_fraction_finer_than_a_pixel(self, run: Path, data: Path, tmp_path: Path) -> None:
        for protocol in ("roar", "diffroar"):
            config = RetrainConfig(protocol=protocol, fractions=(0.0001,))
            with pytest.raises(UsageError, match=r"0\.0001 of a picture of 32 x 32 pixels leaves"):
                retrain(config, run=run, data=data, out=tmp_path / "out")

    def test_a_frozen_trunk(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = run_files.read_config(run)
        frozen = config.model_copy(
            update={"train": config.train.model_copy(update={"freeze_trunk": True})}
        )
        monkeypatch.setattr(run_files, "read_config", lambda _: frozen)
        with pytest.raises(UsageError, match="the run's trunk is frozen"):
            retrain(ROAR, run=run, data=data, out=tmp_path / "out")

    def test_several_processes(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retraining, "launched", lambda: Launch(world=2, local_world=2))
        with pytest.raises(UsageError, match="start it without torchrun"):
            retrain(ROAR, run=run, data=data, out=tmp_path / "out")

    def test_folders_of_others(self, copied: Path, run: Path, data: Path, tmp_path: Path) -> None:
        def begin(out: Path, config: RetrainConfig = ROAR) -> None:
            retrain(config, run=run, data=data, out=out, methods=(TRUE_MASK,), resume=True)

        with pytest.raises(RunExists, match=r"holds no retraining\.json"):
            begin(data)
        (tmp_path / "file").write_text("")
        with pytest.raises(RunExists, match="--out names a file"):
            begin(tmp_path / "file")
        with pytest.raises(UsageError, match=r"was begun otherwise \(protocol\)"):
            begin(copied, RetrainConfig(protocol="diffroar"))
        (copied / "retraining.json").write_text("[]")
        with pytest.raises(UsageError, match="its own record, which is damaged"):
            begin(copied)

    def test_no_network_that_ends(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: Any, **__: Any) -> None:
            raise DivergedError("LOSS_NOT_FINITE", "the loss is no number")

        monkeypatch.setattr(retraining_cells, "train", failing)
        with pytest.raises(RunError, match="none of the 3 networks ended; the first with LOSS_NOT"):
            retrain(ROAR, run=run, data=data, out=tmp_path / "out", methods=(TRUE_MASK,))

    def test_processes_that_die_and_pictures_that_cannot_be_written(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def dying(*_: Any, **__: Any) -> Iterator[tuple[int, Any]]:
            yield 0, []
            yield 1, Died()

        monkeypatch.setattr(retraining_cells, "run_all", dying)
        work = retraining_cells.Work(
            config=ROAR,
            settings=run_files.read_config(run),
            data=data,
            out=tmp_path,
            origin={},
        )
        (failure,) = retraining_cells.train_cells(work, (RANDOM,), silent)
        assert failure.code == "PROCESS_DIED"
        cell = retraining_cells.cells_of(work, (RANDOM,))[1]
        (tmp_path / "gone").mkdir()
        broken = Cell(
            recipe=cell.recipe,
            train=cell.train,
            seeds=(0, 1),
            data=tmp_path / "gone",
            folder=cell.folder,
        )
        failures = retrain_cell(broken, silent)
        assert [(item.seed, item.code) for item in failures] == [
            (0, "INCOMPLETE"),
            (1, "INCOMPLETE"),
        ]


class TestMaps:
    def test_controls_are_what_they_say(self, run: Path, data: Path, tmp_path: Path) -> None:
        source = source_of(run, data, tmp_path, methods=(TRUE_MASK, EDGES))
        assert write_maps(source, silent) == (RANDOM, EDGES, TRUE_MASK)
        mask = read_maps(tmp_path, TRUE_MASK, "test", 0)
        expected = np.zeros((SIDE, SIDE))
        expected[BLOCK] = 1
        assert (mask == expected).all()
        drawn = np.concatenate([read_maps(tmp_path, RANDOM, s, 0) for s in COUNTS])
        assert len(np.unique(drawn.reshape(len(drawn), -1), axis=0)) == sum(COUNTS.values())

    def test_an_explainers_maps_are_of_the_true_class_whatever_the_batch(
        self, run: Path, data: Path, tmp_path: Path
    ) -> None:
        names = [
            write_maps(
                source_of(run, data, tmp_path / str(size), methods=("gradient",), batch_size=size),
                silent,
            )
            for size in (5, 8)
        ]
        assert names == [("gradient", RANDOM)] * 2
        five, eight = (read_maps(tmp_path / str(size), "gradient", "test", 0) for size in (5, 8))
        np.testing.assert_allclose(five, eight, rtol=1e-4, atol=1e-7)
        source = source_of(run, data, tmp_path, methods=("gradient",))
        pictures = source.data.splits["test"]
        mean, sd = (
            torch.tensor(v)
            for v in (source.config.normalisation.mean, source.config.normalisation.sd)
        )
        images = torch.stack([pictures[i] for i in range(4)]).float()
        leaf = ((images - mean) / sd).requires_grad_()
        logits = source.network(leaf).logits
        logits[torch.arange(4), torch.from_numpy(pictures.labels[:4])].sum().backward()
        assert leaf.grad is not None
        np.testing.assert_allclose(eight[:4], leaf.grad.abs().sum(1), rtol=1e-3, atol=1e-6)

    def test_files_that_are_there_are_kept(self, run: Path, data: Path, tmp_path: Path) -> None:
        source = source_of(run, data, tmp_path, methods=(TRUE_MASK,))
        write_maps(source, silent)
        path = tmp_path / TRUE_MASK / "test-0000000.npy"
        np.save(path, 2 * np.load(path))
        (tmp_path / TRUE_MASK / "train-0000000.npy").unlink()
        write_maps(source, silent)
        assert np.load(path).max() == 2
        assert np.load(tmp_path / TRUE_MASK / "train-0000000.npy").max() == 1

    def test_no_masks(self, make_blobs: Callable[..., Path], tmp_path: Path) -> None:
        data = make_blobs(
            counts={"train": 6, "validation": 4, "test": 4}, size=32, with_truth=False
        )
        pictures = open_for_training(data, image_size=None).splits["test"]
        part = Part(
            split="test",
            pictures=pictures,
            indices=range(2),
            images=torch.zeros(2, 1, 32, 32),
            seed=0,
        )
        with pytest.raises(UsageError, match="the data set has no field 'mask'"):
            CONTROLS[TRUE_MASK](part)

    def test_a_map_that_is_not_finite(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(part: Part) -> torch.Tensor:
            return torch.full((len(part.indices), *part.size), torch.nan)

        monkeypatch.setattr(
            retraining_maps, "CONTROLS", MappingProxyType({**CONTROLS, "broken": broken})
        )
        source = source_of(run, data, tmp_path, methods=("broken",))
        with pytest.raises(UsageError, match="a map of 'broken' holds NaN or an infinite value"):
            write_maps(source, silent)

    def test_the_target_of_a_label_set_is_the_likeliest_true_class(self) -> None:
        logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
        sets = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 0]])
        assert true_targets(sets, logits).tolist() == [2, 0, 1]
        assert true_targets(torch.tensor([1, 0, 2]), logits).tolist() == [1, 0, 2]


class TestPictures:
    IMPORTANCE = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    IMAGES = torch.rand(3, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.77])
    @pytest.mark.parametrize("what", ["removed", "top", "bottom"])
    def test_exactly_the_fraction_goes_and_in_the_right_order(
        self, fraction: float, what: Any
    ) -> None:
        removal = Removal(ranking="m", what=what, fraction=fraction)
        found = without(self.IMAGES, self.IMPORTANCE, removal, fill=(7.0, 9.0), seed=0)
        gone = (found != self.IMAGES).all(dim=1)
        share = fraction if what == "removed" else 1 - fraction
        assert gone.flatten(1).sum(1).tolist() == [round(share * SIDE * SIDE)] * 3
        assert removal.pixels((SIDE, SIDE)) == round(share * SIDE * SIDE)
        for picture, importance, mask in zip(found, self.IMPORTANCE, gone, strict=True):
            assert picture[0][mask].unique().tolist() == [7.0]
            assert picture[1][mask].unique().tolist() == [9.0]
            if what == "top":
                assert importance[mask].max() < importance[~mask].min()
            else:
                assert importance[mask].min() > importance[~mask].max()
        kept = ~gone[:, None].expand_as(found)
        assert torch.equal(found[kept], self.IMAGES[kept])

    def test_ties_go_in_the_same_order_in_every_picture(self) -> None:
        flat = torch.zeros(3, 4, 4)
        removal = Removal(ranking="m", what="removed", fraction=0.5)
        found = without(torch.ones(3, 1, SIDE, SIDE), flat, removal, fill=(0.0,), seed=3)
        assert torch.equal(found[0], found[1])
        assert 0.3 < float(found[0, :, :16].mean()) < 0.7

    def written(self, out: Path, run: Path, data: Path, removal: Removal) -> TrainingData:
        source = source_of(run, data, out / "maps", methods=(TRUE_MASK,))
        write_maps(source, silent)
        recipe = Recipe(
            removal=removal, maps=out / "maps", fill=(100.5,), seed=0, origin={"run_sha256": "0"}
        )
        write_pictures(out / "data", source.data, recipe)
        return open_for_training(out / "data", image_size=None)

    def test_the_data_set_holds_the_same_rows_without_the_pixels(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (retraining_maps, retraining_pictures):
            monkeypatch.setattr(module, "PICTURES_IN_FILE", 7)
        removal = Removal(ranking=TRUE_MASK, what="removed", fraction=64 / 1024)
        found = self.written(tmp_path / "one", run, data, removal)
        own = open_for_training(data, image_size=None)
        outside = np.ones((SIDE, SIDE), dtype=bool)
        outside[BLOCK] = False
        for split, pictures in own.splits.items():
            other = found.splits[split]
            assert other.sample_ids == pictures.sample_ids
            assert other.subject_ids == pictures.subject_ids
            assert (other.labels == pictures.labels).all()
            for i in range(len(pictures)):
                before, after = pictures[i].numpy()[0], other[i].numpy()[0]
                assert (after[BLOCK] == 100.5).all()
                assert (after[outside] == before[outside]).all()
        assert found.summary.classes == CLASSES
        assert found.summary.name == "blocks, pixels removed"
        self.written(tmp_path / "two", run, data, removal)
        files = sorted(p for p in (tmp_path / "one" / "data").rglob("*") if p.is_file())
        assert len(files) == 1 + 4  # the manifest; 40 test pictures are more than a shard of 28
        for path in files:
            twin = tmp_path / "two" / path.relative_to(tmp_path / "one")
            assert path.read_bytes() == twin.read_bytes()

    def test_nothing_removed_are_the_pictures_themselves(
        self, run: Path, data: Path, tmp_path: Path
    ) -> None:
        found = self.written(tmp_path, run, data, Removal())
        own = open_for_training(data, image_size=None)
        assert torch.equal(found.splits["test"][3], own.splits["test"][3].float())


class TestLabelSets:
    def test_findings_are_retrained_and_scored_by_their_area(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        data = write_findings(tmp_path / "data")
        settings = FINDINGS_SETTINGS.model_copy(update={"epochs": 1, "bootstrap": 10})
        train(settings, data=data, run=tmp_path / "run")
        config = RetrainConfig(fractions=(0.5,), batch_size=16)
        report = retrain(
            config, run=tmp_path / "run", data=data, out=tmp_path / "out", methods=("gradient",)
        )
        assert report.found.measure == "auc"
        assert report.found.chance == 0.5
        assert set(report.found.points) == {"gradient", RANDOM}
        assert all(0 <= each[0.5].mean <= 1 for each in report.found.points.values())


def score(*values: float, drawn: tuple[float, ...] = (0.0, 1.0)) -> MeanScore:
    return MeanScore(
        values=values,
        mean=float(np.mean(values)),
        sd=0.0,
        low=0.0,
        high=1.0,
        drawn=np.array(drawn),
    )


class TestScores:
    def test_a_difference_is_over_all_pairs(self) -> None:
        found = less(score(0.9, 0.7), score(0.5, 0.4, 0.3))
        pairs = [t - b for t in (0.9, 0.7) for b in (0.5, 0.4, 0.3)]
        assert found.values == pytest.approx(pairs)
        assert found.mean == pytest.approx(0.8 - 0.4)
        assert found.sd == pytest.approx(np.std(pairs, ddof=1))

    def test_the_mean_over_fractions_pairs_seeds_and_resamples(self) -> None:
        found = averaged([score(0.9, 0.7, drawn=(0.2, 0.4)), score(0.5, 0.1, drawn=(0.4, 0.4))])
        assert found.values == pytest.approx((0.7, 0.4))
        assert found.drawn.tolist() == pytest.approx([0.3, 0.4])
        uneven = averaged([score(0.9, 0.7), score(0.5)])
        assert uneven.values == pytest.approx((0.65,))
        assert np.isnan(averaged([score(0.5, drawn=()), score(0.5, drawn=())]).low)

    def test_points_need_all_their_networks(self) -> None:
        config = RetrainConfig(protocol="diffroar", fractions=(0.1, 0.5))
        removals = removals_of(config, ("m",))
        names = [removal.name for removal in removals]
        assert names == [NOTHING, "m/top-0.1", "m/bottom-0.1", "m/top-0.5", "m/bottom-0.5"]
        scores = {name: score(0.5) for name in names}
        assert set(points_of(config, ("m",), scores)["m"]) == {0.1, 0.5, MEAN}
        del scores["m/bottom-0.5"]
        assert set(points_of(config, ("m",), scores)["m"]) == {0.1}


class TestConsole:
    def test_choices_in_and_lines_out(
        self,
        copied: Path,
        run: Path,
        data: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        settings = retraining_console.settings_of(
            {"protocol": "roar", "seeds": None}, None, ["fractions=[0.1]"]
        )
        assert settings == ROAR
        choices = retraining_console.RetrainChoices(
            run=run, data=data, out=copied, methods=(TRUE_MASK,), resume=True, as_json=True
        )
        retraining_console.retrain_and_tell(settings, choices)
        said = capsys.readouterr()
        assert len(json.loads(said.out)["curves"]) == 3
        assert "retraining.md" in said.err
