"""``explain --dicom-out`` as it is typed: maps in the patient's study, and only there."""

import json
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

from pipelines import explain_methods
from pipelines.build import build
from pipelines.cli import app
from pipelines.config import ExplainConfig, FdgPetConfig
from pipelines.errors import RunExists, UsageError
from pipelines.explain import explain
from pipelines.parametric_map import ParametricMaps
from preprocessing.fdg_pet import Sources
from preprocessing.pseudonyms import create_key
from tests.pipelines.test_explain import table, train_run
from tests.pipelines.test_explain_verdicts import Broken, Edges


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    create_key(path)
    return path


@pytest.fixture(scope="module")
def run(small_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pet")
    build(
        "fdg-pet",
        FdgPetConfig(image_size=64),
        Sources(dicom_dir=small_phantoms / "dicom", labels=small_phantoms / "labels.csv"),
        out=folder / "data",
        key=bytes(range(32)),
    )
    return train_run(folder / "data", folder / "run", batch_size=3)


@pytest.fixture(scope="module")
def scan(small_phantoms: Path) -> Path:
    return min((small_phantoms / "dicom").iterdir())


def call(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(
    run: Path, scan: Path, key: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("made")
    words = ("--dicom-dir", scan, "--out", folder / "out", "--dicom-out", folder / "dicom")
    code, stdout, stderr = call("explain", "--run", run, *words, "--pseudonym-key", key, "--json")
    assert code == 0, stderr
    return folder / "out", folder / "dicom", json.loads(stdout)


class TestExport:
    def test_one_series_for_each_map_in_the_study_of_the_scan(
        self, made: tuple, scan: Path
    ) -> None:
        _, dicom, told = made
        maps = [pydicom.dcmread(path) for path in sorted(dicom.iterdir())]
        sources = [pydicom.dcmread(path, force=True) for path in scan.rglob("*") if path.is_file()]
        own = {s.SeriesInstanceUID: s for s in sources if s.get("Modality") == "PT"}
        assert len(maps) == len(told["explanations"]) == 3
        for found in maps:
            source = next(s for s in own.values() if s.StudyInstanceUID == found.StudyInstanceUID)
            assert found.PatientID == source.PatientID
            assert found.FrameOfReferenceUID == source.FrameOfReferenceUID
            assert found.SeriesInstanceUID not in own
        assert len({found.SeriesInstanceUID for found in maps}) == 3
        assert len({found.SeriesNumber for found in maps}) == 3

    def test_identifiers_and_pseudonyms_never_meet(self, made: tuple) -> None:
        out, dicom, told = made
        ((name, _),) = told["probabilities"].items()
        maps = [pydicom.dcmread(path) for path in dicom.iterdir()]
        for found in maps:
            assert name not in str(found)
            assert name[:8] not in str(found)
        assert not any(name[:8] in path.name for path in dicom.iterdir())
        secrets = {str(maps[0].PatientID), str(maps[0].PatientName), maps[0].StudyInstanceUID}
        secrets |= {found.SOPInstanceUID for found in maps}
        for path in out.rglob("*"):
            held = path.read_bytes() if path.is_file() else b""
            assert not any(secret.encode() in held for secret in secrets), path.name

    def test_the_values_are_the_volumes(self, made: tuple) -> None:
        out, dicom, _ = made
        rows = {row["method"]: row for row in table(out)}
        for path in dicom.iterdir():
            held = np.frombuffer(pydicom.dcmread(path).FloatPixelData, dtype="<f4")
            volume = nibabel.load(out / rows[path.name.partition("_")[0]]["volume"])
            voxels = np.asarray(volume.dataobj, dtype=np.float32)
            assert voxels.any()
            np.testing.assert_array_equal(np.sort(held), np.sort(voxels.ravel()))

    def test_refused_maps_do_not_enter_an_archive(
        self, run: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = {"broken": Broken(), "edges": Edges()}
        monkeypatch.setattr(explain_methods, "EXPLAINERS", both)
        explain(
            ExplainConfig(methods=("all",), overlays=False, volumes=False),
            run=run,
            out=tmp_path / "out",
            dicom_dir=scan,
            export=ParametricMaps(folder=tmp_path / "dicom"),
        )
        names = {path.name.partition("_")[0] for path in (tmp_path / "dicom").iterdir()}
        assert names == {"edges"}
        page = (tmp_path / "out" / "index.html").read_text()
        assert "Maps that are refused were not written as DICOM: broken" in page


class TestRefusals:
    @pytest.mark.parametrize("inside", ["out/dicom", ".", "out"])
    def test_identifiers_beside_pseudonyms(
        self, run: Path, scan: Path, tmp_path: Path, inside: str
    ) -> None:
        with pytest.raises(UsageError, match="two folders of which neither lies") as refusal:
            explain(
                ExplainConfig(),
                run=run,
                out=tmp_path / "out",
                dicom_dir=scan,
                export=ParametricMaps(folder=tmp_path / inside),
            )
        assert refusal.value.code == "IDENTIFIED_OUTPUT"

    def test_a_folder_that_is_full(self, run: Path, scan: Path, tmp_path: Path) -> None:
        (tmp_path / "dicom").mkdir()
        (tmp_path / "dicom" / "letter.txt").touch()
        with pytest.raises(RunExists, match="name another --out or --dicom-out"):
            explain(
                ExplainConfig(),
                run=run,
                out=tmp_path / "out",
                dicom_dir=scan,
                export=ParametricMaps(folder=tmp_path / "dicom"),
            )
        assert not (tmp_path / "out").exists()

    def test_without_the_package(
        self, run: Path, scan: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delitem(sys.modules, "pipelines.parametric_map")
        monkeypatch.setitem(sys.modules, "highdicom", None)
        words = ("--dicom-dir", scan, "--out", tmp_path / "out", "--pseudonym-key", key)
        code, _, stderr = call("explain", "--run", run, *words, "--dicom-out", tmp_path / "dicom")
        assert code == 2
        assert "NO_HIGHDICOM: --dicom-out needs the package highdicom" in stderr
        assert "pip install 'dualwitness[dicom]'" in stderr
        assert not (tmp_path / "out").exists()
