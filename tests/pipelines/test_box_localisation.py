"""From finished runs to box scores: what is explained, what stands beside it, what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.explainers import EXPLAINERS
from models.scoped import evaluating
from pipelines import run as run_files
from pipelines.assemble import open_for_training
from pipelines.box_localisation import box_localisation, trained_on
from pipelines.box_measures import TrueBoxes, measured
from pipelines.box_records import MEAN, MEAN_BOX, TRUE_BOX, BoxScores
from pipelines.config import TrainConfig
from pipelines.errors import DataError, MemoryShortError, RunError, UsageError
from pipelines.evaluation_runs import runs_of
from pipelines.evaluation_work import loaded
from pipelines.feed import normalise
from pipelines.train import train
from tests.pipelines.boxed import CLASSES, write_boxed

SETTINGS = TrainConfig(
    network="densenet-narrow-stride8",
    variant="baseline",
    epochs=1,
    batch_size=8,
    balance="w-cel",
    bootstrap=0,
    statistics_pictures=0,
    workers=0,
)
MODEL, EXACT = "baseline", "exact"
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxed(tmp_path_factory.mktemp("boxed"))


@pytest.fixture(scope="session")
def boxed_runs(boxed: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of a baseline, and one network with attention."""
    folder, runs = tmp_path_factory.mktemp("boxed-runs"), []
    for name, changes in {
        "a": {},
        "b": {"seed": 1},
        "c": {"variant": "exact", "balance": "batch"},
    }.items():
        train(SETTINGS.model_copy(update=changes), data=boxed, run=folder / name)
        runs.append(folder / name)
    return runs


def altered(run: Path, copy: Path, **changes: Any) -> Path:
    """Copy a run as if it had been trained with other settings."""
    kept = run_files.read_config(run)
    (trained,) = runs_of([run], kept.data)
    shutil.copytree(run, copy)
    settings = kept.train.model_copy(update=changes)
    text = kept.model_copy(update={"train": settings}).to_yaml()
    (copy / "config.yaml").write_text(text)
    run_files.save_weights(copy, loaded(trained, CPU))
    run_files.seal(copy)
    return copy


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def same(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return images


def upside_down(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return images.flip(2)


def scored(runs: Any, data: Path, *methods: str, **changes: Any) -> BoxScores:
    options = {"generator": generator(), "resamples": 20, **changes}
    return box_localisation(runs, data, methods, **options)


@pytest.fixture(scope="session")
def found(boxed: Path, boxed_runs: list[Path]) -> BoxScores:
    return scored(boxed_runs, boxed, attacks={"turned": upside_down})


class TestWhatIsMeasured:
    def test_cases_are_the_boxed_findings_of_the_test_split(self, found: BoxScores) -> None:
        kinds = [CLASSES[case.finding] for case in found.cases]
        assert (kinds.count("Mass"), kinds.count("Effusion")) == (6, 6)
        assert found.findings == ("Effusion", "Mass")
        assert (found.boxes_of("Mass"), found.boxes_of("Effusion")) == (7, 6)
        assert found.patients_of("Mass") == 6
        assert (found.samples, found.patients) == (12, 6)

    def test_entries_are_models_then_controls_and_the_truth_last(self, found: BoxScores) -> None:
        names = [entry.name for entry in found.entries.values() if not entry.condition]
        assert names == [
            f"{MODEL} cam",
            f"{MODEL} gradcam",
            f"{EXACT} cam",
            f"{EXACT} gradcam",
            f"{EXACT} attention-fine",
            f"{EXACT} attention-coarse",
            *("random", "uniform", "centred Gaussian", MEAN_BOX, TRUE_BOX),
        ]
        kinds = {entry.method: entry.kind for entry in found.entries.values()}
        assert kinds["cam"] == "post-hoc"
        assert kinds[TRUE_BOX] == "control"
        assert any(
            entry.kind == "attention" and entry.explainer == "attention"
            for entry in found.entries.values()
        )

    def test_runs_of_one_model_are_its_seeds(self, found: BoxScores) -> None:
        entry = found.entries[f"{MODEL} cam"]
        assert entry.seeds == (0, 1)
        score = found.scores[entry.name]["Mass"]["iou_equal_area"]
        assert len(score.values) == 2
        assert score.sd == pytest.approx(np.std(score.values, ddof=1))
        alone = found.scores[f"{EXACT} cam"][MEAN]["iou_equal_area"]
        assert math.isnan(alone.sd)

    def test_each_map_explains_the_finding_that_is_boxed(
        self, found: BoxScores, boxed: Path, boxed_runs: list[Path]
    ) -> None:
        data = open_for_training(boxed, image_size=None)
        (run,) = runs_of(boxed_runs[:1], data.summary)
        network, test = loaded(run, CPU), data.splits["test"]
        for i, case in enumerate(found.cases[:4]):
            image = normalise(test[case.index][None], run.config.normalisation)
            with evaluating(network):
                (level,) = EXPLAINERS["cam"](network, image, torch.tensor([case.finding]))
            mask = torch.zeros(1, 32, 32, dtype=torch.bool)
            left, top, width, height = case.boxes[0].astype(int)
            mask[:, top : top + height, left : left + width] = True
            from_scratch = measured(level.values.relu(), _single(mask))
            np.testing.assert_allclose(
                found.per_case[f"{MODEL} cam"][0][i], from_scratch[0], atol=1e-6
            )

    def test_signed_maps_are_told(self, found: BoxScores) -> None:
        assert found.entries[f"{MODEL} cam"].signed
        assert not found.entries[TRUE_BOX].signed

    def test_the_true_box_is_the_bound(self, found: BoxScores) -> None:
        for finding in ("Mass", "Effusion"):
            for name, score in found.scores[TRUE_BOX][finding].items():
                if name.startswith(("best", "union", "ior", "iou", "pointing")):
                    assert score.mean >= max(
                        found.scores[entry.name][finding][name].mean
                        for entry in found.entries.values()
                    ), name

    def test_an_attack_stands_beside_the_clean_pictures(self, found: BoxScores) -> None:
        clean = [entry for entry in found.models() if not entry.condition]
        turned_of = [entry for entry in found.models() if entry.condition == "turned"]
        assert [entry.method for entry in clean] == [entry.method for entry in turned_of]
        assert set(found.areas) == {MODEL, EXACT, f"{MODEL}, turned", f"{EXACT}, turned"}
        turned = found.per_case[f"{MODEL} cam, turned"][0]
        assert not np.array_equal(turned, found.per_case[f"{MODEL} cam"][0])

    def test_the_mean_box_is_of_other_test_patients_where_training_has_none(
        self, found: BoxScores
    ) -> None:
        assert found.prior == "boxes of other test patients"
        assert any("The training split has no box" in note for note in found.notes)


def _single(mask: Tensor) -> TrueBoxes:
    return TrueBoxes(union=mask, single=mask, owner=torch.tensor([0]))


class TestHow:
    def test_the_batch_size_changes_nothing_and_bounds_what_is_alive(
        self, boxed: Path, boxed_runs: list[Path]
    ) -> None:
        sizes: list[int] = []

        def watch(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            sizes.append(len(images))
            return images

        one, other = (
            scored(boxed_runs[0], boxed, "gradcam", batch_size=size, attacks={"watched": watch})
            for size in (5, 16)
        )
        for name, tables in one.per_case.items():
            for seed, table in tables.items():
                np.testing.assert_allclose(table, other.per_case[name][seed], atol=1e-6)
        assert sizes == [5, 5, 2, 12]
        clean, watched = (one.per_case[f"{MODEL} gradcam{end}"][0] for end in ("", ", watched"))
        np.testing.assert_array_equal(clean, watched)
        areas = [one.areas[f"{MODEL}{end}"]["Mass"].values for end in ("", ", watched")]
        assert areas[0] == areas[1]

    def test_the_mean_box_is_of_training_where_it_has_boxes(
        self, tmp_path: Path, boxed_runs: list[Path]
    ) -> None:
        data = write_boxed(tmp_path, boxed=("train", "test"))
        assert scored(boxed_runs[0], data, "gradcam").prior == "boxes of training patients"

    def test_pictures_that_the_run_enlarges(
        self, boxed: Path, boxed_runs: list[Path], tmp_path: Path
    ) -> None:
        run = altered(boxed_runs[0], tmp_path / "run", image_size=64)
        found = scored(run, boxed, "gradient")
        assert found.failures == {}
        (entry,) = found.models()
        assert np.isfinite(found.per_case[entry.name][0]).all()

    def test_a_method_that_fits_some_models_is_left_out_of_the_others(
        self, boxed: Path, boxed_runs: list[Path]
    ) -> None:
        found = scored([boxed_runs[0], boxed_runs[2]], boxed, "attention")
        assert {entry.model for entry in found.models()} == {EXACT}
        assert set(found.failures) == {f"{MODEL} attention, seed 0"}

    def test_a_map_that_is_no_number_fails_with_its_reason(
        self, boxed: Path, boxed_runs: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(values: Tensor, truth: Any) -> np.ndarray:
            return measured(values * torch.nan, truth)

        monkeypatch.setattr("pipelines.box_units.measured", broken)
        with pytest.raises(UsageError, match="MAP_HOLDS_NAN: a map holds NaN"):
            scored(boxed_runs[0], boxed, "cam")

    def test_weights_and_random_state_are_left_alone(
        self, boxed: Path, boxed_runs: list[Path]
    ) -> None:
        before, state = (boxed_runs[0] / "best.safetensors").read_bytes(), torch.get_rng_state()
        scored(boxed_runs[0], boxed, "cam")
        assert (boxed_runs[0] / "best.safetensors").read_bytes() == before
        assert torch.equal(torch.get_rng_state(), state)

    def test_names_tell_models_apart_by_what_differs(
        self, boxed: Path, boxed_runs: list[Path], tmp_path: Path
    ) -> None:
        run = altered(boxed_runs[0], tmp_path / "run", balance="none")
        found = trained_on([boxed_runs[0], run], open_for_training(boxed, image_size=None))
        assert {item.model for item in found} == {
            f"{MODEL} balance w-cel",
            f"{MODEL} balance none",
        }

    def test_both_weightings_were_trained_with(self, boxed_runs: list[Path]) -> None:
        for run in boxed_runs:
            row = (run / "metrics.csv").read_text().splitlines()[1].split(",")
            assert all(math.isfinite(float(value)) for value in row if value)


class TestRefusals:
    @pytest.mark.parametrize(
        ("methods", "changes", "code", "message"),
        [
            (("camm",), {}, "UNKNOWN_METHOD", "no method 'camm'; did you mean 'cam'"),
            (("cam",), {"batch_size": 0}, "BAD_BATCH_SIZE", "batch_size is 0; it must be 1"),
            (("cam",), {"attacks": {"": same}}, "BAD_CONDITION", "an attack has no name"),
            (
                ("cam",),
                {"attacks": {"half": lambda model, images, labels: images[:, :, ::2]}},
                "BAD_CONDITION",
                "the attack 'half' gives pictures of",
            ),
            (
                ("attention", "cam"),
                {},
                "NO_METHOD_FITS",
                "attention can explain none of the models",
            ),
        ],
    )
    def test_what_cannot_be_asked(
        self,
        boxed: Path,
        boxed_runs: list[Path],
        methods: tuple[str, ...],
        changes: dict[str, Any],
        code: str,
        message: str,
    ) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            scored(boxed_runs[0], boxed, *methods, **changes)
        assert caught.value.code == code

    def test_runs_that_are_none_or_one_twice(
        self, boxed: Path, boxed_runs: list[Path], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match="no run is named"):
            scored([], boxed)
        again = Path(shutil.copytree(boxed_runs[0], tmp_path / "again"))
        with pytest.raises(UsageError, match="2 runs are 'baseline, seed 0' with the same"):
            scored([boxed_runs[0], again], boxed)

    def test_a_run_that_has_not_ended(
        self, boxed: Path, boxed_runs: list[Path], tmp_path: Path
    ) -> None:
        run = Path(shutil.copytree(boxed_runs[0], tmp_path / "run"))
        (run / "run.json").unlink()
        with pytest.raises(RunError, match="the training of the run 'baseline, seed 0' did not"):
            scored(run, boxed)

    def test_data_without_boxes(self, tmp_path: Path, boxed_runs: list[Path]) -> None:
        wrong: dict[str, dict[str, Any]] = {"field": {"field": "other"}, "rows": {"boxed": ()}}
        for place, changes in wrong.items():
            (tmp_path / place).mkdir()
            data = write_boxed(tmp_path / place, **changes)
            with pytest.raises(DataError, match="none of the 12 test pictures has a box") as caught:
                scored(boxed_runs[0], data)
            assert caught.value.code == "NO_BOXES"

    def test_data_of_one_class_each(self, blobs: Path, boxed_runs: list[Path]) -> None:
        with pytest.raises(DataError, match="pictures of this data set have one class") as caught:
            scored(boxed_runs[0], blobs)
        assert caught.value.code == "NO_LABEL_SETS"

    def test_another_build_of_the_data(self, tmp_path: Path, boxed_runs: list[Path]) -> None:
        data = write_boxed(tmp_path)
        manifest = json.loads((data / "manifest.json").read_text())
        (data / "manifest.json").write_text(json.dumps(manifest | {"config": {"seed": 9}}))
        with pytest.raises(DataError, match="was trained on another build of the data set"):
            scored(boxed_runs[0], data)

    def test_memory_that_runs_out(
        self, boxed: Path, boxed_runs: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def short(*_: Any) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr("models.explainers.cam._maps", short)
        with pytest.raises(MemoryShortError, match="memory ran out while 'cam' explained 16"):
            scored(boxed_runs[0], boxed, "cam")

    @pytest.mark.parametrize("balance", ["batch", "w-cel"])
    def test_weights_of_findings_where_there_are_classes(
        self, blobs: Path, tmp_path: Path, balance: str
    ) -> None:
        config = SETTINGS.model_copy(update={"balance": balance})
        with pytest.raises(UsageError, match=f"balance={balance} weighs findings") as caught:
            train(config, data=blobs, run=tmp_path / "run")
        assert caught.value.code == "BALANCE_NEEDS_LABEL_SETS"
        assert not (tmp_path / "run").exists()
