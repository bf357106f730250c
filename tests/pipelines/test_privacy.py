"""No identifier of a patient survives: plant canaries everywhere, search every output byte."""

import base64
import gzip
import secrets
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from pipelines.build import build
from pipelines.cli import app
from pipelines.config import ExplainConfig, FdgPetConfig, TrainConfig
from pipelines.explain import explain
from pipelines.train import train
from preprocessing.fdg_pet import Sources

TEXT_TAGS = {
    "PatientName": "PN",
    "PatientID": "LO",
    "OtherPatientIDs": "LO",
    "PatientAddress": "LO",
    "PatientMotherBirthName": "PN",
    "PatientTelephoneNumbers": "SH",
    "PatientComments": "LT",
    "AccessionNumber": "SH",
    "InstitutionName": "LO",
    "InstitutionAddress": "ST",
    "InstitutionalDepartmentName": "LO",
    "StationName": "SH",
    "ReferringPhysicianName": "PN",
    "PhysiciansOfRecord": "PN",
    "PerformingPhysicianName": "PN",
    "OperatorsName": "PN",
    "StudyID": "SH",
    "StudyDescription": "LO",
    "SeriesDescription": "LO",
    "ProtocolName": "LO",
    "RequestedProcedureDescription": "LO",
    "PerformedProcedureStepID": "SH",
    "DeviceSerialNumber": "LO",
    "ImageComments": "LT",
    "AdditionalPatientHistory": "LT",
    "MedicalRecordLocator": "LO",
    "Occupation": "SH",
    "ManufacturerModelName": "LO",
    "SoftwareVersions": "LO",
}
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
BIRTH = "19470213"


class Canaries:
    """Invented identifiers, and a scan that carries them in every corner of its headers."""

    def __init__(self) -> None:
        token = secrets.token_hex(4).upper()
        self.texts = {name: f"CANARY{token}{i:02d}" for i, name in enumerate(TEXT_TAGS)}
        self.uids = {name: f"1.2.826.0.1.{9_000_000_000 + i}.77" for i, name in enumerate(UIDS)}
        self.nested = [f"NESTED{token}{i}" for i in range(3)]
        self.private = [f"PRIVAT{token}{i}" for i in range(3)]
        self.names = [f"FOLDER{token}", f"FILE{token}"]
        self.birth = BIRTH

    def all(self) -> list[str]:
        return [
            *self.texts.values(),
            *self.uids.values(),
            *self.nested,
            *self.private,
            *self.names,
            self.birth,
        ]

    def plant(self, dataset: Dataset) -> None:
        for name, text in self.texts.items():
            setattr(dataset, name, text)
        for name, uid in self.uids.items():
            setattr(dataset, name, uid)
        dataset.PatientBirthDate = self.birth
        inner, outer = Dataset(), Dataset()
        inner.PatientName = self.nested[0]
        inner.add_new(0x00081190, "UR", self.nested[1])
        outer.ReferencedPatientSequence = Sequence([inner])
        outer.IssuerOfPatientID = self.nested[2]
        dataset.OtherPatientIDsSequence = Sequence([outer])
        block = dataset.private_block(0x0011, "CANARY MAKER", create=True)
        for i, text in enumerate(self.private):
            block.add_new(i, "LO", text)


@pytest.fixture(scope="module")
def planted(
    small_phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Canaries]:
    """All phantoms, one of them full of canaries, one without weight, one cut, one not DICOM."""
    canaries = Canaries()
    root = tmp_path_factory.mktemp("planted") / "dicom"
    shutil.copytree(small_phantoms / "dicom", root)
    series: dict[str, list[Path]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if header.Modality == "PT":
            series.setdefault(header.PatientID, []).append(path)
    for number, paths in enumerate(series.values()):
        if number > 2:
            break
        folder = root / f"{canaries.names[0]}-{number}"
        folder.mkdir()
        for i, path in enumerate(paths):
            dataset = pydicom.dcmread(path)
            canaries.plant(dataset)
            dataset.PatientID += f"-{number}"
            dataset.StudyInstanceUID += f".{number}"
            dataset.SeriesInstanceUID += f".{number}"
            dataset.SOPInstanceUID += f".{number}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            if number == 1:
                dataset.PatientWeight = None
            target = folder / f"{canaries.names[1]}-{i}.dcm"
            dataset.save_as(target)
            if number == 2 and i == 3:
                target.write_bytes(target.read_bytes()[:-300])
            path.unlink()
        (folder / f"{canaries.names[1]}.txt").write_text(canaries.texts["PatientID"])
    return root, canaries


def encodings(text: str) -> Iterator[bytes]:
    yield text.encode()
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")
    for offset in range(3):  # the three ways that a text can fall into base64
        encoded = base64.b64encode(b"\0" * offset + text.encode())
        yield encoded[4 : len(encoded) - 4]
    yield text.lower().encode()


def readings(path: Path) -> Iterator[bytes]:
    """Bytes of a file, raw and with every compression undone."""
    raw = path.read_bytes()
    yield raw
    if path.suffix == ".gz":
        yield gzip.decompress(raw)
    if path.suffix == ".png":
        yield b"".join(png_texts(raw))
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            for name in file:
                yield np.asarray(file[name]).tobytes()
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            for name in arrays:
                yield name.encode() + arrays[name].tobytes()


def png_texts(raw: bytes) -> Iterator[bytes]:
    place = 8
    while place < len(raw):
        length, kind = int.from_bytes(raw[place : place + 4], "big"), raw[place + 4 : place + 8]
        content = raw[place + 8 : place + 8 + length]
        if kind in (b"tEXt", b"iTXt", b"zTXt"):
            yield content
            yield zlib.decompress(content.split(b"\0", 2)[-1]) if kind == b"zTXt" else b""
        place += 12 + length


def hits(folder: Path, canaries: Canaries) -> list[str]:
    wanted = {form: text for text in canaries.all() for form in encodings(text) if len(form) > 7}
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix().encode()
        contents = [name, *(readings(path) if path.is_file() else ())]
        found += [
            f"{path.name}: {text}"
            for content in contents
            for form, text in wanted.items()
            if form in content
        ]
    return found


def test_there_are_forty_canaries_and_the_search_finds_each(
    planted: tuple[Path, Canaries], tmp_path: Path
) -> None:
    root, canaries = planted
    assert len(set(canaries.all())) >= 40
    found = {hit.split(": ")[1] for hit in hits(root, canaries)}
    assert found == set(canaries.all())
    for i, text in enumerate(canaries.all()):
        (tmp_path / f"{i}.gz").write_bytes(gzip.compress(text.encode("utf-16-le")))
    assert len(hits(tmp_path, canaries)) >= 40


def test_none_survives_a_build_with_exclusions(
    planted: tuple[Path, Canaries], tmp_path: Path
) -> None:
    root, canaries = planted
    (tmp_path / "key").write_bytes(bytes(range(32)))
    (tmp_path / "key").chmod(0o600)
    words = ["build-dataset", "fdg-pet", "--dicom-dir", root, "--out", tmp_path / "out"]
    options = ["--pseudonym-key", tmp_path / "key", "--workers", "1", "--json"]
    done = CliRunner().invoke(app, [str(word) for word in (*words, *options)])
    assert done.exit_code == 0, done.stderr
    assert "WEIGHT_MISSING" in done.stdout
    assert "PIXEL_TRUNCATED" in done.stdout
    assert hits(tmp_path / "out", canaries) == []
    assert [text for text in canaries.all() if text in done.stdout + done.stderr] == []


def test_none_survives_a_build_that_fails(
    planted: tuple[Path, Canaries], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, canaries = planted
    monkeypatch.setattr("pipelines.build.finish.write_beside", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(
            "fdg-pet",
            FdgPetConfig(image_size=64),
            Sources(dicom_dir=root),
            out=tmp_path / "out",
            key=bytes(range(32)),
        )
    assert (tmp_path / "out" / "shards").exists()
    assert hits(tmp_path / "out", canaries) == []


def test_none_survives_inspection(planted: tuple[Path, Canaries]) -> None:
    root, canaries = planted
    done = CliRunner().invoke(app, ["inspect", str(root), "--json"])
    assert done.exit_code == 0
    assert [text for text in canaries.all() if text in done.stdout + done.stderr] == []


def test_none_survives_an_explanation_of_a_new_scan(
    planted: tuple[Path, Canaries], small_phantoms: Path, tmp_path: Path
) -> None:
    root, canaries = planted
    data = tmp_path / "data"
    build(
        "fdg-pet",
        FdgPetConfig(image_size=64),
        Sources(dicom_dir=small_phantoms / "dicom", labels=small_phantoms / "labels.csv"),
        out=data,
        key=bytes(range(32)),
    )
    settings = TrainConfig(
        network="resnet10-narrow",
        variant="exact",
        epochs=1,
        batch_size=3,
        bootstrap=10,
        image_size=64,
        workers=0,
    )
    train(settings, data=data, run=tmp_path / "run")
    report = explain(ExplainConfig(), run=tmp_path / "run", out=tmp_path / "out", dicom_dir=root)
    assert len(report.probabilities) == 7
    assert {item.code for item in report.exclusions} >= {"WEIGHT_MISSING", "PIXEL_TRUNCATED"}
    assert hits(tmp_path / "run", canaries) + hits(tmp_path / "out", canaries) == []
