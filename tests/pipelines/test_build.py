import csv
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from pipelines.build import BuildReport, build, derive_examples, rehearse
from pipelines.config import FdgPetConfig
from pipelines.derive import derive_all
from pipelines.errors import DataError, RunExists
from pipelines.workers import Died
from preprocessing.errors import LabelError, OutputError
from preprocessing.fdg_pet import Sources
from preprocessing.journal import OutputLock
from preprocessing.shards import open_dataset, verify

KEY = bytes(range(32))
CONFIG = FdgPetConfig(image_size=64, samples_per_shard=2)


def sources(folder: Path, *, truth: bool = True) -> Sources:
    return Sources(
        dicom_dir=folder / "dicom",
        labels=folder / "labels.csv",
        truth=folder / "truth" if truth else None,
    )


def run(
    folder: Path, out: Path, *, workers: int = 1, config: FdgPetConfig = CONFIG, truth: bool = True
) -> BuildReport:
    return build("fdg-pet", config, sources(folder, truth=truth), out=out, key=KEY, workers=workers)


def shard_bytes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "shards").iterdir())}


@pytest.fixture(scope="session")
def built(small_phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    run(small_phantoms, out)
    return out


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def changed_copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def series_folder(folder: Path, patient: int) -> list[Path]:
    """Files of one patient's PET series."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in (folder / "dicom").rglob("*") if p.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except pydicom.errors.InvalidDicomError:
            continue
        if header.Modality == "PT":
            found.setdefault(header.PatientID, []).append(path)
    return found[sorted(found)[patient]]


class TestDataSet:
    def test_keeps_every_promise(self, built: Path) -> None:
        report = verify(built)
        assert report.problems == ()
        assert report.counts["samples"] == 9

    def test_accounts_for_every_file(self, small_phantoms: Path, built: Path) -> None:
        files = json.loads((built / "manifest.json").read_text())["counts"]["files"]
        assert files["seen"] == sum(path.is_file() for path in small_phantoms.rglob("dicom/**/*"))
        assert files["seen"] == files["used"] + files["excluded"] + files["skipped"]

    def test_has_each_patient_in_one_split_with_the_right_label(
        self, small_phantoms: Path, built: Path
    ) -> None:
        rows = table(built / "samples.csv")
        split_of: dict[str, set[str]] = {}
        for row in rows:
            split_of.setdefault(row["subject_id"], set()).add(row["split"])
        assert all(len(splits) == 1 for splits in split_of.values())
        truth = table(small_phantoms / "labels.csv")
        assert sorted(row["label"] for row in rows) == sorted(row["label"] for row in truth)

    def test_has_masks_where_muscle_is_altered_and_only_there(self, built: Path) -> None:
        dataset = open_dataset(built)
        for i in range(len(dataset)):
            assert bool(dataset[i].arrays["mask"].any()) == (dataset.labels[i] > 0)

    def test_carries_depth_to_the_voxel_that_is_seen(self, built: Path) -> None:
        for example in open_dataset(built):
            depth = example.arrays["depth"]
            voxels = int(np.prod(example.arrays["volume_shape"]))
            assert depth.min() >= 0
            assert depth.max() < voxels

    def test_leaves_nothing_unfinished_behind(self, built: Path) -> None:
        names = {path.name for path in built.iterdir()}
        assert {"manifest.json", "samples.csv", "exclusions.csv", "README.md"} <= names
        assert ".tmp" not in names
        assert not list(built.rglob("*.part"))

    def test_logs_what_was_done(self, built: Path) -> None:
        events = [json.loads(line) for line in (built / "build.log.jsonl").read_text().splitlines()]
        assert [event["event"] for event in events] == ["begin", "complete"]
        assert events[1]["samples"] == {"train": 3, "validation": 3, "test": 3}


class TestSameBytes:
    def test_whatever_the_workers_and_the_order_of_the_listing(
        self,
        small_phantoms: Path,
        built: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        real = os.scandir

        class Shuffled:
            def __init__(self, path: object = ".") -> None:
                with real(path) as entries:  # type: ignore[call-overload]
                    self.entries = list(entries)
                random.Random(5).shuffle(self.entries)

            def __enter__(self) -> Iterator[os.DirEntry[str]]:
                return iter(self.entries)

            def __exit__(self, *_: object) -> None: ...

            def __iter__(self) -> Iterator[os.DirEntry[str]]:
                return iter(self.entries)

        monkeypatch.setattr(os, "scandir", Shuffled)
        run(small_phantoms, tmp_path / "out", workers=4)
        assert shard_bytes(tmp_path / "out") == shard_bytes(built)

    def test_whatever_the_files_are_called(
        self, small_phantoms: Path, built: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        (copy / "dicom").mkdir(parents=True)
        shutil.copy(small_phantoms / "labels.csv", copy)
        shutil.copytree(small_phantoms / "truth", copy / "truth")
        paths = [path for path in (small_phantoms / "dicom").rglob("*") if path.is_file()]
        random.Random(7).shuffle(paths)
        for number, path in enumerate(paths):
            shutil.copy(path, copy / "dicom" / f"{number}")
        run(copy, tmp_path / "out")
        assert shard_bytes(tmp_path / "out") == shard_bytes(built)

    def test_when_run_again_nothing_is_written(self, small_phantoms: Path, built: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
        report = run(small_phantoms, built)
        assert report.already_complete
        assert sum(report.samples.values()) == 9
        after = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
        assert {p: t for p, t in after.items() if p != built} == {
            p: t for p, t in before.items() if p != built
        }


class TestRefusals:
    def test_other_settings_into_the_same_folder(self, small_phantoms: Path, built: Path) -> None:
        other = FdgPetConfig(image_size=64, samples_per_shard=3)
        with pytest.raises(RunExists, match="a complete data set that differs in config"):
            run(small_phantoms, built, config=other)

    def test_other_input_into_the_same_folder(
        self, small_phantoms: Path, built: Path, tmp_path: Path
    ) -> None:
        copy = changed_copy(small_phantoms, tmp_path / "copy")
        for path in series_folder(copy, 0):
            path.unlink()
        with pytest.raises(RunExists, match="differs in inputs_sha256"):
            run(copy, built)

    def test_an_unfinished_build_with_other_settings(
        self, small_phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.build.place_rows", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(small_phantoms, tmp_path / "out")
        log = (tmp_path / "out" / "build.log.jsonl").read_text().splitlines()
        assert json.loads(log[-1])["error"] == "ZeroDivisionError"
        assert any("build:_complete" in frame for frame in json.loads(log[-1])["trace"])
        monkeypatch.undo()
        other = FdgPetConfig(image_size=32)
        with pytest.raises(RunExists, match="an unfinished build that differs in config"):
            run(small_phantoms, tmp_path / "out", config=other)
        assert sum(run(small_phantoms, tmp_path / "out").samples.values()) == 9

    def test_a_folder_of_something_else(self, small_phantoms: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("my thesis")
        with pytest.raises(RunExists, match="holds something that is no data set"):
            run(small_phantoms, tmp_path)

    def test_a_file(self, small_phantoms: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(RunExists, match="--out names a file"):
            run(small_phantoms, tmp_path / "file")

    def test_a_second_builder(self, small_phantoms: Path, tmp_path: Path) -> None:
        with (
            OutputLock(tmp_path / "out"),
            pytest.raises(
                OutputError, match=r"another builder .* is writing to this output"
            ) as caught,
        ):
            run(small_phantoms, tmp_path / "out")
        assert caught.value.code == "LOCKED"

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "dicom").mkdir()
        empty = Sources(dicom_dir=tmp_path / "dicom")
        with pytest.raises(DataError, match="the folder holds no files"):
            build("fdg-pet", CONFIG, empty, out=tmp_path / "out", key=KEY)
        assert not (tmp_path / "out").exists()

    def test_a_folder_without_scans_says_what_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "dicom").mkdir()
        (tmp_path / "dicom" / "a.txt").write_text("x" * 200)
        found = Sources(dicom_dir=tmp_path / "dicom")
        with pytest.raises(DataError, match=r"none of the 1 files can be used \(NOT_DICOM 1\)"):
            build("fdg-pet", CONFIG, found, out=tmp_path / "out", key=KEY)
        with pytest.raises(DataError, match="NOT_DICOM 1"):
            derive_examples("fdg-pet", CONFIG, found, key=KEY)
        with pytest.raises(DataError, match="NOT_DICOM 1"):
            rehearse("fdg-pet", CONFIG, found, key=KEY)

    def test_a_table_without_labels(self, small_phantoms: Path, tmp_path: Path) -> None:
        (tmp_path / "labels.csv").write_text("PatientID,klass\nA,normal\n")
        found = Sources(dicom_dir=small_phantoms / "dicom", labels=tmp_path / "labels.csv")
        with pytest.raises(LabelError, match="needs a column PatientID"):
            build("fdg-pet", CONFIG, found, out=tmp_path / "out", key=KEY)


class TestExclusions:
    def test_a_case_that_cannot_be_decoded_takes_only_itself(
        self, small_phantoms: Path, tmp_path: Path
    ) -> None:
        copy = changed_copy(small_phantoms, tmp_path / "copy")
        for path in series_folder(copy, 0):
            dataset = pydicom.dcmread(path)
            dataset.PatientWeight = None
            dataset.save_as(path)
        report = run(copy, tmp_path / "out")
        assert sum(report.samples.values()) == 8
        assert "WEIGHT_MISSING" in {item.code for item in report.exclusions}
        assert verify(tmp_path / "out").problems == ()

    def test_labels_that_are_missing_or_unknown(self, small_phantoms: Path, tmp_path: Path) -> None:
        copy = changed_copy(small_phantoms, tmp_path / "copy")
        rows = (copy / "labels.csv").read_text().splitlines()
        name = rows[1].split(",")[0]
        (copy / "labels.csv").write_text("\n".join([rows[0], f"{name},sever", *rows[3:]]))
        report = run(copy, tmp_path / "out")
        found = {item.code: item.detail for item in report.exclusions}
        assert "did you mean 'severe'" in found["LABEL_UNKNOWN"]
        assert "no row for this PatientID" in found["LABEL_MISSING"]

    def test_a_truth_that_is_missing(self, small_phantoms: Path, tmp_path: Path) -> None:
        copy = changed_copy(small_phantoms, tmp_path / "copy")
        next(iter((copy / "truth").glob("*.nii.gz"))).unlink()
        report = run(copy, tmp_path / "out")
        assert "TRUTH_MISSING" in {item.code for item in report.exclusions}

    def test_one_scan_under_two_patients(self, small_phantoms: Path, tmp_path: Path) -> None:
        copy = changed_copy(small_phantoms, tmp_path / "copy")
        for path in series_folder(copy, 0):
            dataset = pydicom.dcmread(path)
            dataset.PatientID = "SOMEBODY-ELSE"
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                dataset[keyword].value = f"{dataset[keyword].value}.7"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.save_as(path.with_name(f"{path.name}-twin"))
        found = Sources(dicom_dir=copy / "dicom")
        report = build("fdg-pet", CONFIG, found, out=tmp_path / "out", key=KEY)
        twins = [item for item in report.exclusions if item.code == "CROSS_PATIENT_DUP"]
        assert len(twins) == 2
        assert "stands under 2 PatientIDs" in twins[0].detail
        assert sum(report.samples.values()) == 8

    def test_one_person_under_two_names_when_told_so(
        self, small_phantoms: Path, tmp_path: Path
    ) -> None:
        names = [row["PatientID"] for row in table(small_phantoms / "labels.csv")]
        (tmp_path / "map.csv").write_text(f"PatientID,same_as\n{names[0]},{names[1]}\n")
        found = Sources(
            dicom_dir=small_phantoms / "dicom",
            labels=small_phantoms / "labels.csv",
            patient_map=tmp_path / "map.csv",
        )
        build("fdg-pet", CONFIG, found, out=tmp_path / "out", key=KEY)
        rows = table(tmp_path / "out" / "samples.csv")
        assert len(rows) == 9
        assert len({row["subject_id"] for row in rows}) == 8

    def test_a_worker_that_dies_leaves_an_exclusion(self, small_phantoms: Path) -> None:
        found = rehearsed_cases(small_phantoms)[:1]
        derived, refused = derive_all(
            found,
            recipe="fdg-pet",
            config=CONFIG,
            layout={},
            folder=Path(),
            mapper=lambda function, items: [Died()],
            progress=lambda stage, done, total: None,
        )
        assert derived == []
        assert refused[0].code == "PARSER_CRASH"
        assert refused[0].files == found[0].files


def rehearsed_cases(folder: Path) -> list:  # type: ignore[type-arg]
    from preprocessing.fdg_pet import Options, discover
    from preprocessing.pseudonyms import Pseudonyms

    return list(discover(sources(folder), Options(), pseudonyms=Pseudonyms(KEY)).cases)


def test_a_rehearsal_writes_nothing_and_counts_the_same(small_phantoms: Path, built: Path) -> None:
    report = rehearse("fdg-pet", CONFIG, sources(small_phantoms), key=KEY)
    files = json.loads((built / "manifest.json").read_text())["counts"]["files"]
    assert dict(report.files) == files


def test_examples_in_memory_are_those_of_the_shards(small_phantoms: Path, built: Path) -> None:
    examples, _ = derive_examples("fdg-pet", CONFIG, sources(small_phantoms), key=KEY)
    stored = {example.sample_id: example for example in open_dataset(built)}
    assert {example.sample_id for example in examples} == set(stored)
    for example in examples:
        np.testing.assert_array_equal(
            example.arrays["image"], stored[example.sample_id].arrays["image"]
        )
