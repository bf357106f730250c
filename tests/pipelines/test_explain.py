"""Explaining: what is written belongs together, and what cannot be explained is refused."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from models.explainers import EXPLAINERS
from pipelines import explain as explain_module
from pipelines import explain_batches, explain_sources, figures
from pipelines import run as run_files
from pipelines.assemble import network_of
from pipelines.config import ExplainConfig, TrainConfig
from pipelines.errors import DataError, RunError, RunExists, UsageError
from pipelines.explain import ExplainReport, explain
from pipelines.feed import normalise
from pipelines.figures import SUV_BLACK
from pipelines.train import train
from preprocessing.errors import OutputError
from preprocessing.journal import OutputLock
from preprocessing.records import Example, Exclusion
from preprocessing.shards import Dataset, open_dataset

MakeBlobs = Callable[..., Path]
PNG = b"\x89PNG"


def train_run(data: Path, run: Path, **changes: Any) -> Path:
    settings = {"network": "resnet10-narrow", "epochs": 1, "batch_size": 6, "bootstrap": 10}
    train(TrainConfig.of(settings | changes), data=data, run=run)
    return run


@pytest.fixture(scope="module")
def run(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(blobs, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def explained(
    run: Path, blobs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExplainReport]:
    out = tmp_path_factory.mktemp("explained") / "out"
    return out, explain(ExplainConfig(batch_size=4), run=run, out=out, data=blobs)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "explanations.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def read_map(out: Path, row: Mapping[str, str]) -> np.ndarray:
    with np.load(out / row["map"], allow_pickle=False) as arrays:
        return arrays[row["method"]]


class TestOutput:
    def test_every_test_sample_has_every_map(self, explained: tuple, blobs: Path) -> None:
        out, report = explained
        rows = table(out)
        names = open_dataset(blobs).split("test").sample_ids
        methods = ["attention-fine", "attention-coarse", "gradcam"]
        assert [(row["sample_id"], row["method"]) for row in rows] == [
            (name, method) for name in names for method in methods
        ]
        assert tuple(report.probabilities) == names

    def test_maps_are_those_of_the_stored_weights(
        self, explained: tuple, run: Path, blobs: Path
    ) -> None:
        out, report = explained
        config = run_files.read_config(run)
        network = network_of(config).eval()
        run_files.load_weights(run, network)
        rows = open_dataset(blobs).split("test")
        images = normalise(
            torch.stack([torch.from_numpy(rows.read(i, ("image",))["image"]) for i in range(6)]),
            config.normalisation,
        )
        with torch.no_grad():
            found = network(images)
        probabilities = found.logits.double().softmax(dim=1).numpy()
        written = np.array([list(shares.values()) for shares in report.probabilities.values()])
        np.testing.assert_allclose(written, probabilities, atol=1e-6)
        cam = EXPLAINERS["gradcam"](network, images, found.logits.argmax(dim=1))[0]
        expected = {
            "attention-fine": found.maps[0],
            "attention-coarse": found.maps[1],
            "gradcam": cam.values,
        }
        for row in table(out):
            place = rows.sample_ids.index(row["sample_id"])
            values = read_map(out, row)
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, expected[row["method"]][place].numpy(), atol=1e-6)

    def test_scores_are_those_of_scikit_learn(self, explained: tuple, blobs: Path) -> None:
        out, _ = explained
        rows = open_dataset(blobs).split("test")
        seen = 0
        for row in table(out):
            mask = rows.read(rows.sample_ids.index(row["sample_id"]), ("mask",))["mask"] > 0
            if not mask.any():
                assert row["average_precision"] == row["uniform_average_precision"] == ""
                continue
            values = read_map(out, row)
            spread = values.repeat(64 // values.shape[0], 0).repeat(64 // values.shape[1], 1)
            expected = average_precision_score(mask.ravel(), spread.ravel())
            assert float(row["average_precision"]) == pytest.approx(expected, abs=1e-6)
            assert float(row["uniform_average_precision"]) == pytest.approx(mask.mean(), abs=1e-6)
            if values.any():
                assert 0 <= float(row["mass_inside"]) <= 1
            else:  # a rectified map may be empty: where its mass lies is not defined
                assert row["mass_inside"] == ""
            seen += 1
        assert seen == 4 * 3

    def test_overlaps_hold_the_same_numbers(self, explained: tuple) -> None:
        out, report = explained
        rows = table(out)
        assert [overlap.method for overlap in report.overlaps] == [
            "attention-fine", "attention-coarse", "gradcam",
        ]  # fmt: skip
        for overlap in report.overlaps:
            own = [row for row in rows if row["method"] == overlap.method]
            assert overlap.subject_ids == tuple(row["subject_id"] for row in own)
            expected = [float(row["average_precision"] or "nan") for row in own]
            np.testing.assert_allclose(overlap.model, expected)

    def test_volumes_lie_in_patient_space(self, explained: tuple, blobs: Path) -> None:
        """The blobs' volumes have one voxel per pixel, so that the map must come back whole."""
        out, _ = explained
        rows = open_dataset(blobs).split("test")
        for row in table(out):
            image = nibabel.load(out / row["volume"])
            fields = rows.read(
                rows.sample_ids.index(row["sample_id"]), ("volume_affine", "volume_shape")
            )
            # NIfTI's world is RAS where DICOM's is LPS, and its axes run x, y, z
            np.testing.assert_allclose(
                image.affine, np.diag([-1, -1, 1, 1]) @ fields["volume_affine"]
            )
            assert image.shape == tuple(fields["volume_shape"][::-1])
            voxels = np.asarray(image.dataobj)[:, 0, :].T
            values = read_map(out, row)
            assert voxels.max() <= values.max() + 1e-6
            share = 64 // values.shape[0]
            blocks = voxels.reshape(values.shape[0], share, values.shape[1], share).mean((1, 3))
            if values.std() > 1e-9:  # a rectified map may be empty
                assert np.corrcoef(blocks.ravel(), values.ravel())[0, 1] > 0.9

    def test_pictures_and_page(self, explained: tuple) -> None:
        out, _ = explained
        for row in table(out):
            for method in ("scan", row["method"]):
                png = out / "overlays" / f"{row['sample_id']}_{method}.png"
                assert png.read_bytes().startswith(PNG)
        page = (out / "index.html").read_text()
        assert "resnet10-narrow / exact on blobs" in page
        assert "sample0024" in page
        assert "http://" not in page.replace("http://www.w3.org", "")

    def test_predictions_agree_with_training(self, explained: tuple, run: Path) -> None:
        out, _ = explained
        with (run / "predictions.csv").open(newline="") as stream:
            trained = [row for row in csv.DictReader(stream) if row["split"] == "test"]
        with (out / "predictions.csv").open(newline="") as stream:
            found = list(csv.DictReader(stream))
        assert [row["sample_id"] for row in found] == [row["sample_id"] for row in trained]
        for one, other in zip(found, trained, strict=True):
            assert one["label"] == other["label"]
            assert float(one["probability_mild"]) == pytest.approx(
                float(other["probability_mild"]), abs=1e-5
            )

    def test_the_report_is_plain(self, explained: tuple) -> None:
        _, report = explained
        read = json.loads(json.dumps(report.as_json(), allow_nan=False))
        assert len(read["explanations"]) == 18
        assert report.summary() == (
            "6 scans explained by attention-coarse, attention-fine, gradcam"
        )

    def test_the_callers_generator_is_given_back(
        self, run: Path, blobs: Path, tmp_path: Path
    ) -> None:
        before = torch.get_rng_state()
        settings = ExplainConfig(limit=1, overlays=False, volumes=False)
        explain(settings, run=run, out=tmp_path / "out", data=blobs)
        assert torch.equal(before, torch.get_rng_state())


class TestGreys:
    """What the grey bar of an overlay says it measures."""

    @pytest.mark.parametrize(
        ("recipe_config", "unit"), [({}, "SUV"), ({"suv_formula": "suvbw"}, "SUV"),
                                    ({"suv_formula": "paper"}, "paper")],
    )  # fmt: skip
    def test_uptake_has_the_unit_of_its_formula(
        self,
        run: Path,
        blobs: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        recipe_config: dict,
        unit: str,
    ) -> None:
        config = run_files.read_config(run)
        data = config.data.model_copy(update={"recipe_config": recipe_config})
        changed = config.model_copy(update={"data": data})
        monkeypatch.setattr(run_files, "read_config", lambda path: changed)
        drawn = self.drawn(run, blobs, tmp_path, monkeypatch)
        assert {call["unit"] for call in drawn} == {unit}
        suv = next(iter(open_dataset(blobs).split("test"))).arrays["suv"]
        np.testing.assert_array_equal(drawn[0]["suv"], suv.astype(np.float32))

    def test_other_pictures_have_none(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fields = tuple(name for name in open_dataset(blobs).fields if name != "suv")
        monkeypatch.setattr(Dataset, "fields", property(lambda view: fields))
        drawn = self.drawn(run, blobs, tmp_path, monkeypatch)
        assert {call["unit"] for call in drawn} == {""}
        greys = drawn[0]["suv"]
        image = next(iter(open_dataset(blobs).split("test"))).arrays["image"][0]
        assert (greys.min(), greys.max()) == (0, SUV_BLACK)
        # Figures draw what is bright black: air stays black only if it is handed over bright.
        assert np.corrcoef(greys.ravel(), image.ravel())[0, 1] < -0.999

    def drawn(
        self, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def overlay(suv: np.ndarray, values: Any = None, **options: Any) -> bytes:
            calls.append({"suv": suv, **options})
            return PNG + b"\r\n\x1a\n"

        monkeypatch.setattr(figures, "overlay", overlay)
        settings = ExplainConfig(limit=1, volumes=False)
        explain(settings, run=run, out=tmp_path / "out", data=data)
        return calls


class TestChoices:
    def test_batches_do_not_matter(
        self, run: Path, blobs: Path, tmp_path: Path, explained: tuple
    ) -> None:
        settings = ExplainConfig(batch_size=1, overlays=False, volumes=False)
        explain(settings, run=run, out=tmp_path / "out", data=blobs)
        for one, other in zip(table(tmp_path / "out"), table(explained[0]), strict=True):
            np.testing.assert_allclose(
                read_map(tmp_path / "out", one), read_map(explained[0], other), atol=1e-6
            )

    def test_one_method_of_another_split_without_pictures(
        self, run: Path, blobs: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        settings = ExplainConfig(
            methods=("gradcam",),
            split="validation",
            overlays=False,
            volumes=False,
            target="truth",
            limit=3,
        )
        explain(settings, run=run, out=out, data=blobs)
        rows = table(out)
        assert [row["method"] for row in rows] == ["gradcam"] * 3
        assert {row["split"] for row in rows} == {"validation"}
        assert [row["target"] for row in rows] == [row["label"] for row in rows]
        assert not (out / "overlays").exists()
        assert not (out / "volumes").exists()

    def test_the_truth_is_explained_by_the_prediction_where_it_is_unknown(
        self, run: Path, make_blobs: MakeBlobs, tmp_path: Path
    ) -> None:
        data = make_blobs(label=lambda i: -1, with_truth=False)
        settings = ExplainConfig(methods=("gradcam",), target="truth", overlays=False)
        report = explain(settings, run=run, out=tmp_path / "out", data=data)
        rows = table(tmp_path / "out")
        assert [row["label"] for row in rows] == [""] * 6
        assert [row["target"] for row in rows] == [row["prediction"] for row in rows]
        assert "average_precision" not in rows[0]
        assert report.overlaps == ()

    def test_a_smaller_network_size_is_explained_at_the_pictures_size(
        self, blobs: Path, tmp_path: Path
    ) -> None:
        small = train_run(blobs, tmp_path / "run", image_size=32)
        report = explain(
            ExplainConfig(split="all", limit=2), run=small, out=tmp_path / "out", data=blobs
        )
        assert len(report.probabilities) == 2
        assert {row["split"] for row in table(tmp_path / "out")} == {"train"}

    def test_a_long_page_is_cut_and_says_so(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(explain_module, "PICTURES_ON_PAGE", 2 * 4)
        explain(ExplainConfig(volumes=False), run=run, out=tmp_path / "out", data=blobs)
        page = (tmp_path / "out" / "index.html").read_text()
        assert "The first 2 of 6 scans are shown here" in page
        assert len(list((tmp_path / "out" / "overlays").iterdir())) == 6 * 4

    def test_a_baseline_is_explained_by_gradcam_alone(self, blobs: Path, tmp_path: Path) -> None:
        baseline = train_run(blobs, tmp_path / "run", variant="baseline")
        settings = ExplainConfig(overlays=False, volumes=False)
        explain(settings, run=baseline, out=tmp_path / "out", data=blobs)
        assert {row["method"] for row in table(tmp_path / "out")} == {"gradcam"}
        with pytest.raises(UsageError, match=r"attention: the model has no .* by 'gradcam'"):
            explain(
                ExplainConfig(methods=("attention",)),
                run=baseline,
                out=tmp_path / "other",
                data=blobs,
            )


class TestNewScans:
    """The reading of DICOM has tests of its own; here a recipe that reads a data set stands in."""

    @pytest.fixture
    def pet_run(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The run, as if its data set had come from a recipe."""
        read = run_files.read_config

        def with_recipe(path: Path) -> Any:
            config = read(path)
            data = config.data.model_copy(
                update={"recipe": "fdg-pet", "recipe_config": {"image_size": 64}}
            )
            return config.model_copy(update={"data": data})

        monkeypatch.setattr(run_files, "read_config", with_recipe)
        return run

    @pytest.fixture
    def derive(self, blobs: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        asked: dict[str, Any] = {}

        def derived(name: str, config: Any, sources: Any, *, key: bytes, progress: Any) -> tuple:
            asked.update(name=name, config=config, sources=sources, key=key)
            first = next(iter(open_dataset(blobs).split("test")))
            example = Example(
                sample_id=first.sample_id,
                subject_id=first.subject_id,
                arrays=first.arrays,
                label=-1,
                provenance={"suv_route": "acquisition", "warnings": "dose unusual"},
            )
            refused = Exclusion(
                code="UNITS_UNKNOWN", subject_id="", where="series x", detail="mend it", files=3
            )
            return [example], [refused]

        monkeypatch.setattr(explain_sources, "derive_examples", derived)
        return asked

    def test_a_new_scan_is_prepared_as_the_run_was(
        self, pet_run: Path, derive: dict, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        report = explain(ExplainConfig(), run=pet_run, out=out, dicom_dir=tmp_path)
        assert derive["name"] == "fdg-pet"
        assert derive["config"].image_size == 64
        assert derive["sources"].dicom_dir == tmp_path
        assert len(derive["key"]) == 32
        assert report.exclusions[0].code == "UNITS_UNKNOWN"
        summary = report.summary()
        assert summary.startswith("1 scan explained by")
        assert "normal 0." in summary
        assert summary.endswith("1 refused (UNITS_UNKNOWN)")
        assert {row["split"] for row in table(out)} == {"new"}
        page = (out / "index.html").read_text()
        assert "Refused, UNITS_UNKNOWN: mend it" in page
        assert "Warnings: dose unusual" in page
        assert "UNITS_UNKNOWN" in (out / "exclusions.csv").read_text()

    def test_a_given_key_is_used(self, pet_run: Path, derive: dict, tmp_path: Path) -> None:
        key = bytes(range(32))
        explain(
            ExplainConfig(overlays=False, volumes=False),
            run=pet_run,
            out=tmp_path / "out",
            dicom_dir=tmp_path,
            key=key,
        )
        assert derive["key"] == key

    def test_a_run_of_unknown_origin(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="data set 'blobs', which no recipe of this toolkit"):
            explain(ExplainConfig(), run=run, out=tmp_path / "out", dicom_dir=tmp_path)

    def test_a_recipe_with_foreign_settings(
        self, pet_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = run_files.read_config

        def foreign(path: Path) -> Any:
            config = read(path)
            data = config.data.model_copy(update={"recipe_config": {"image_siz": 64}})
            return config.model_copy(update={"data": data})

        monkeypatch.setattr(run_files, "read_config", foreign)
        with pytest.raises(RunError, match=r"recipe_config .* did you mean 'image_size'"):
            explain(ExplainConfig(), run=pet_run, out=tmp_path / "out", dicom_dir=tmp_path)

    def test_a_folder_without_scans(self, pet_run: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="the folder holds no files") as refusal:
            explain(
                ExplainConfig(), run=pet_run, out=tmp_path / "out", dicom_dir=tmp_path / "empty"
            )
        assert refusal.value.code == "NOTHING_USABLE"
        assert not (tmp_path / "out").exists()


class TestRefusals:
    @pytest.mark.parametrize("both", [True, False])
    def test_not_one_source(self, run: Path, blobs: Path, tmp_path: Path, both: bool) -> None:
        source = blobs if both else None
        with pytest.raises(UsageError, match="name either a data set or a folder of DICOM"):
            explain(ExplainConfig(), run=run, out=tmp_path / "o", data=source, dicom_dir=source)

    @pytest.mark.parametrize(
        ("methods", "message"),
        [
            (("gradcan",), r"no method 'gradcan'; did you mean 'gradcam'\? known: attention"),
            (("gradcam", "al"), r"no method 'al'; did you mean 'all'\? known: .*, all$"),
        ],
    )
    def test_methods_that_are_none(
        self, run: Path, blobs: Path, tmp_path: Path, methods: tuple, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            explain(ExplainConfig(methods=methods), run=run, out=tmp_path / "out", data=blobs)
        assert not (tmp_path / "out").exists()

    def test_no_run(self, blobs: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"the run folder holds no config\.yaml"):
            explain(ExplainConfig(), run=tmp_path, out=tmp_path / "out", data=blobs)

    def test_an_empty_split(self, run: Path, make_blobs: MakeBlobs, tmp_path: Path) -> None:
        data = make_blobs(counts={"train": 4})
        with pytest.raises(DataError, match="the test split has no sample to explain"):
            explain(ExplainConfig(), run=run, out=tmp_path / "out", data=data)

    def test_other_channels(self, run: Path, make_blobs: MakeBlobs, tmp_path: Path) -> None:
        data = make_blobs(channels=2)
        with pytest.raises(DataError, match=r"pictures are 2 x 64 x 64 .* on 1 x 64 x 64") as e:
            explain(ExplainConfig(), run=run, out=tmp_path / "out", data=data)
        assert e.value.code == "RUN_DATA_MISMATCH"

    def test_other_classes(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read = run_files.read_config

        def renamed(path: Path) -> Any:
            config = read(path)
            data = config.data.model_copy(update={"classes": ("no", "some", "much")})
            return config.model_copy(update={"data": data})

        monkeypatch.setattr(run_files, "read_config", renamed)
        with pytest.raises(
            DataError, match="classes are normal, mild, severe, the run was trained"
        ):
            explain(ExplainConfig(), run=run, out=tmp_path / "out", data=blobs)

    def test_an_output_folder_in_use(self, run: Path, blobs: Path, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(RunExists, match="the output folder exists and is not empty") as refusal:
            explain(ExplainConfig(), run=run, out=tmp_path, data=blobs)
        assert refusal.value.exit_code == 4
        out = tmp_path / "out"
        out.mkdir()
        with OutputLock(out), pytest.raises((OutputError, RunExists)):
            explain(ExplainConfig(), run=run, out=out, data=blobs)

    def test_pictures_that_are_not_finite(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            explain_batches, "normalise", lambda images, _: torch.full(images.shape, torch.nan)
        )
        with pytest.raises(UsageError, match="NaN or infinity"):
            explain(ExplainConfig(), run=run, out=tmp_path / "out", data=blobs)

    def test_sample_names_cannot_lead_out_of_the_folder(
        self, run: Path, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = explain_sources.open_dataset

        def renamed(path: Path) -> Any:
            dataset = opened(path).split("test")
            dataset.sample_ids = ("../../evil", *dataset.sample_ids[1:])
            return dataset

        monkeypatch.setattr(explain_sources, "open_dataset", renamed)
        explain(
            ExplainConfig(split="all", limit=1, volumes=False),
            run=run,
            out=tmp_path / "out",
            data=blobs,
        )
        assert {row["sample_id"] for row in table(tmp_path / "out")} == {"row-000000"}
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
