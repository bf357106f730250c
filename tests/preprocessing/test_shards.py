import errno
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import case_files, shards
from preprocessing.errors import OutputError, ShardError
from preprocessing.records import Example, Exclusion
from preprocessing.shards import (
    FieldSpec,
    ShardRecord,
    difference_hash,
    file_sha256,
    open_dataset,
    read_case,
    read_manifest,
    verify,
    write_case,
    write_manifest,
    write_shard,
)

ROOT = Path(__file__).parents[2]
CLASSES = ("normal", "mild", "severe")
LAYOUT = {
    "image": FieldSpec((1, 24, 20), "uint8", "picture"),
    "suv": FieldSpec((24, 20), "float16", "projection", "g/mL"),
    "depth": FieldSpec((24, 20), "int32", "voxel each maximum came from"),
    "volume_affine": FieldSpec((4, 4), "float64", "index to patient", "mm"),
    "scale": FieldSpec((), "float32", "one number per row"),
}


def example(i: int, *, subject: int | None = None, label: int | None = None) -> Example:
    rng = np.random.default_rng(i)
    suv = rng.gamma(2, 1, (24, 20)).astype(np.float16)
    suv[0, 0] = np.nan  # bytes count, not equality of numbers
    return Example(
        sample_id=f"s{i:05d}",
        subject_id=f"p{i if subject is None else subject:05d}",
        label=i % 3 if label is None else label,
        provenance={"suv_factor": 0.1 * i, "suv_route": "series"},
        arrays={
            "image": rng.integers(0, 255, (1, 24, 20), np.uint8),
            "suv": suv,
            "depth": rng.integers(-1, 9999, (24, 20), np.int32),
            "volume_affine": rng.normal(size=(4, 4)),
            "scale": np.array(i, np.float32),
        },
    )


def cases(folder: Path, examples: Sequence[Example]) -> list[tuple[Path, int]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, sample in enumerate(examples):
        write_case(folder / f"{i}.case", [sample], layout=LAYOUT)
        rows.append((folder / f"{i}.case", 0))
    return rows


def shard(out: Path, rows, *, name="train-00000-of-00001", **changes) -> ShardRecord:
    workspace = out / ".tmp"
    workspace.mkdir(parents=True, exist_ok=True)
    options = {
        "layout": LAYOUT,
        "split": name.partition("-")[0],
        "name": "fdg-pet",
        "classes": CLASSES,
        "workspace": workspace,
    } | changes
    return write_shard(out / "shards" / f"{name}.h5", rows, **options)


def data_set(out: Path, *, sizes=(4, 2, 3)) -> Path:
    """Write a small but whole data set, as a build does."""
    records, table, first = [], ["sample_id,subject_id,split,label,shard,row,suv_route"], 0
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        samples = [example(first + i) for i in range(size)]
        first += size
        record = shard(out, cases(out / ".tmp" / split, samples), name=f"{split}-00000-of-00001")
        records.append(record)
        table += [
            f"{s.sample_id},{s.subject_id},{split},{CLASSES[s.label]},{record.file},{row},series"
            for row, s in enumerate(samples)
        ]
    (out / "samples.csv").write_text("\n".join(table) + "\n")
    (out / "exclusions.csv").write_text(
        "code,subject_id,where,detail,files\nGAP,p,series x,gap,2\n"
    )
    (out / "README.md").write_text("card")
    (out / "croissant.json").write_text('{"@context": {}}')
    (out / "qc").mkdir()
    (out / "qc" / "sheet.png").write_bytes(b"picture")
    samples = dict(zip(("train", "validation", "test"), sizes, strict=True))
    files = {"seen": 12, "used": 9, "excluded": 2, "skipped": 1}
    write_manifest(
        out,
        {
            "name": "fdg-pet",
            "classes": list(CLASSES),
            "counts": {"samples": samples, "files": files},
            "shards": [asdict(record) for record in records],
        },
    )
    return out


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return data_set(tmp_path_factory.mktemp("template") / "out")


@pytest.fixture
def built(template, tmp_path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "out"))


def flipped(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def same(one: Example, other: Example) -> bool:
    return all(
        one.arrays[name].dtype == other.arrays[name].dtype
        and one.arrays[name].tobytes() == other.arrays[name].tobytes()
        and one.arrays[name].shape == other.arrays[name].shape
        for name in LAYOUT
    )


class TestCases:
    def test_rows_come_back(self, tmp_path):
        samples = [example(3), example(4, label=-1)]
        rows = write_case(tmp_path / "a", samples, layout=LAYOUT)
        assert read_case(tmp_path / "a").rows == rows
        for row, sample in zip(rows, samples, strict=True):
            assert (row.sample_id, row.subject_id, row.label) == (
                sample.sample_id,
                sample.subject_id,
                sample.label,
            )
            assert row.provenance == sample.provenance

    def test_notes_come_back(self, tmp_path):
        notes = tuple(
            Exclusion(code="CODE", subject_id="s", where=f"slice {i}", detail="why\n", files=0)
            for i in range(2)
        )
        write_case(tmp_path / "a", [example(1)], layout=LAYOUT, notes=notes)
        assert read_case(tmp_path / "a").notes == notes
        write_case(tmp_path / "b", [example(1)], layout=LAYOUT)
        assert read_case(tmp_path / "b").notes == ()

    def test_a_file_of_an_earlier_version_is_derived_again(self, tmp_path):
        write_case(tmp_path / "a", [example(1)], layout=LAYOUT)
        content = (tmp_path / "a").read_bytes()
        (tmp_path / "a").write_bytes(b"DWCASE1\n" + content[8:])
        with pytest.raises(ShardError, match="the case is derived anew"):
            read_case(tmp_path / "a")

    def test_digests_tell_contents_apart_and_pictures_together(self, tmp_path):
        first, second = example(1), example(2)
        twin = Example(
            sample_id="x",
            subject_id="y",
            label=0,
            arrays={**second.arrays, "image": first.arrays["image"]},
        )
        rows = write_case(tmp_path / "a", [first, second, twin], layout=LAYOUT)
        assert len({row.digest for row in rows}) == 3
        assert rows[0].image_digest == rows[2].image_digest != rows[1].image_digest
        assert rows[0].perceptual_hash == rows[2].perceptual_hash
        assert shards.content_digest(first.arrays) == rows[0].digest

    def test_layout_digest_ignores_memory_order_and_byte_order(self):
        a = np.arange(12, dtype=np.int32).reshape(3, 4)
        for other in (np.asfortranarray(a), a.astype(">i4")):
            assert shards.content_digest({"a": a}) == shards.content_digest({"a": other})
        assert shards.content_digest({"a": a}) != shards.content_digest({"a": a.T.copy()})

    def test_every_flipped_bit_is_seen(self, tmp_path):
        path = tmp_path / "a"
        write_case(path, [example(1)], layout=LAYOUT)
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            flipped(path, place, place % 8)
            with pytest.raises(ShardError, match="missing, cut off or damaged") as caught:
                read_case(path)
            assert caught.value.code == "CASE_CORRUPT"
            path.write_bytes(content)
        assert len(read_case(path).rows) == 1

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
    def test_a_torn_file_is_seen(self, tmp_path, share):
        path = tmp_path / "a"
        write_case(path, [example(1)], layout=LAYOUT)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ShardError, match="the case is derived anew"):
            read_case(path)

    def test_inserted_bytes_and_a_missing_file_are_seen(self, tmp_path):
        path = tmp_path / "a"
        write_case(path, [example(1)], layout=LAYOUT)
        content = path.read_bytes()
        index = content.index(b'{"chunks"')
        path.write_bytes(content[:index] + b"gap" + content[index:])
        with pytest.raises(ShardError, match="damaged"):
            read_case(path)
        with pytest.raises(ShardError, match="missing"):
            read_case(tmp_path / "none")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"suv": np.zeros((24, 20), np.float32)}, r"'suv' is float32\(24, 20\).*float16"),
            ({"suv": np.zeros((24, 21), np.float16)}, r"'suv' is float16\(24, 21\)"),
            ({"more": np.zeros(1)}, "a sample has the fields"),
        ],
    )
    def test_samples_that_do_not_fit_are_refused(self, tmp_path, change, message):
        sample = example(1)
        wrong = Example(sample_id="a", subject_id="b", label=0, arrays={**sample.arrays, **change})
        with pytest.raises(ShardError, match=message) as caught:
            write_case(tmp_path / "a", [wrong], layout=LAYOUT)
        assert caught.value.code == "LAYOUT"
        assert not (tmp_path / "a").exists()

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            ({"suv": LAYOUT["suv"]}, "needs a field 'image'"),
            ({"image": LAYOUT["suv"]}, "axes channel, row, column"),
            ({**LAYOUT, "label": LAYOUT["scale"]}, "'label' is written for every shard"),
            ({**LAYOUT, "text": FieldSpec((), "S5", "words")}, "no plain number"),
        ],
    )
    def test_impossible_layouts_are_refused(self, tmp_path, layout, message):
        with pytest.raises(ShardError, match=message) as caught:
            write_case(tmp_path / "a", [example(1)], layout=layout)
        assert caught.value.code == "LAYOUT"

    def test_what_does_not_decode_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(case_files, "_bytes_of", lambda array: np.random.default_rng().bytes(9))
        with pytest.raises(ShardError, match="does not decode to what was given") as caught:
            write_case(tmp_path / "a", [example(1)], layout=LAYOUT)
        assert caught.value.code == "READ_BACK"

    @given(st.integers(0, 1000), st.floats(0.5, 2), st.floats(0, 20))
    def test_difference_hash_ignores_brightness_and_contrast(self, seed, gain, offset):
        picture = np.random.default_rng(seed).uniform(0, 100, (40, 37))
        assert difference_hash(picture) == difference_hash(gain * picture + offset)

    def test_difference_hash_against_loops(self):
        picture = np.random.default_rng(0).uniform(0, 100, (33, 50))
        rows = [int(x) for x in np.linspace(0, 33, 9)]
        columns = [int(x) for x in np.linspace(0, 50, 10)]
        bits = ""
        for r in range(8):
            cells = [
                picture[rows[r] : rows[r + 1], columns[c] : columns[c + 1]].mean() for c in range(9)
            ]
            bits += "".join("1" if cells[c + 1] > cells[c] else "0" for c in range(8))
        assert difference_hash(picture) == f"{int(bits, 2):016x}"
        assert difference_hash(np.zeros((4, 4))) == "0" * 16


class TestShards:
    def test_values_come_back_through_plain_h5py(self, tmp_path):
        samples = [example(i) for i in range(5)]
        record = shard(tmp_path, cases(tmp_path / "c", samples))
        assert (record.file, record.rows, record.split) == (
            "shards/train-00000-of-00001.h5",
            5,
            "train",
        )
        path = tmp_path / record.file
        assert file_sha256(path) == record.sha256
        with h5py.File(path) as file:
            assert file.attrs["encoding-type"] == b"dualwitness-shard"
            assert json.loads(file.attrs["classes"]) == list(CLASSES)
            for row, sample in enumerate(samples):
                for name in LAYOUT:
                    stored = np.asarray(file[name][row])
                    assert stored.tobytes() == sample.arrays[name].tobytes()
            assert file["suv"].attrs["unit"] == b"g/mL"
            assert file["image"].chunks == (1, 1, 24, 20)
            assert file["image"].fletcher32
            assert list(file["label"]) == [s.label for s in samples]
            assert list(file["sample_id"]) == [s.sample_id.encode() for s in samples]

    def test_the_workspace_is_left_clean(self, tmp_path):
        shard(tmp_path, cases(tmp_path / "c", [example(1)]))
        assert list((tmp_path / ".tmp").iterdir()) == []

    def test_bytes_depend_on_content_alone(self, tmp_path):
        """Another process, second, folder, case order and grouping of cases: the same file."""
        samples = [example(i) for i in range(4)]
        first = shard(tmp_path / "1", cases(tmp_path / "1" / "c", samples))
        time.sleep(1.1)
        code = (
            "import sys; from pathlib import Path;"
            "from tests.preprocessing import test_shards as t;"
            "out = Path(sys.argv[1]); out.mkdir();"
            "t.write_case(out / 'b', [t.example(3), t.example(1)], layout=t.LAYOUT);"
            "t.write_case(out / 'a', [t.example(2), t.example(0)], layout=t.LAYOUT);"
            "rows = [(out / 'a', 1), (out / 'b', 1), (out / 'a', 0), (out / 'b', 0)];"
            "print(t.shard(out, rows).sha256)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "2")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == first.sha256

    def test_writing_the_same_again_is_no_error_and_other_content_is(self, tmp_path):
        rows = cases(tmp_path / "c", [example(1), example(2)])
        assert shard(tmp_path, rows) == shard(tmp_path, rows)
        with pytest.raises(OutputError, match="with other content") as caught:
            shard(tmp_path, rows[:1])
        assert caught.value.code == "EXISTS"
        assert list((tmp_path / ".tmp").iterdir()) == []

    @pytest.mark.parametrize("count", [1, 50, 300])
    def test_the_space_claimed_is_enough(self, tmp_path, monkeypatch, count):
        claimed = []
        monkeypatch.setattr(shards, "reserve", lambda path, size: claimed.append(size))
        samples = [example(i) for i in range(count)]
        write_case(tmp_path / "c", samples, layout=LAYOUT)
        record = shard(tmp_path, [(tmp_path / "c", row) for row in range(count)])
        size = (tmp_path / record.file).stat().st_size
        assert size <= claimed[0] <= 2 * size + 200_000

    def test_labels_may_be_given_anew(self, tmp_path):
        record = shard(tmp_path, cases(tmp_path / "c", [example(1), example(2)]), labels=[2, -1])
        with h5py.File(tmp_path / record.file) as file:
            assert list(file["label"]) == [2, -1]

    @pytest.mark.parametrize(
        ("labels", "message"),
        [([3, 0], "label 3 names none of the 3"), ([-2, 0], "label -2"), ([0], "2 samples have 1")],
    )
    def test_wrong_labels_are_refused(self, tmp_path, labels, message):
        rows = cases(tmp_path / "c", [example(1), example(2)])
        with pytest.raises(ShardError, match=message) as caught:
            shard(tmp_path, rows, labels=labels)
        assert caught.value.code == "LABEL_RANGE"

    def test_empty_repeated_and_ill_fitting_rows_are_refused(self, tmp_path):
        rows = cases(tmp_path / "c", [example(1)])
        with pytest.raises(ShardError, match="at least one sample") as caught:
            shard(tmp_path, [])
        assert caught.value.code == "NO_ROWS"
        with pytest.raises(ShardError, match="2 samples have 1 different sample_id") as caught:
            shard(tmp_path, rows * 2)
        assert caught.value.code == "SAMPLE_ID_REPEATED"
        fewer = {name: LAYOUT[name] for name in ("image", "suv")}
        with pytest.raises(ShardError, match="a case file has the fields") as caught:
            shard(tmp_path, rows, layout=fewer)
        assert caught.value.code == "LAYOUT"

    def test_a_damaged_case_stops_the_shard(self, tmp_path):
        rows = cases(tmp_path / "c", [example(1), example(2)])
        flipped(rows[1][0], 500)
        with pytest.raises(ShardError, match="damaged"):
            shard(tmp_path, rows)
        assert not (tmp_path / "shards" / "train-00000-of-00001.h5").exists()
        assert list((tmp_path / ".tmp").iterdir()) == []

    @pytest.mark.parametrize("what", ["chunk", "column"])
    def test_a_disk_that_returns_something_else_is_seen(self, tmp_path, monkeypatch, what):
        rows = cases(tmp_path / "c", [example(1)])
        if what == "chunk":
            monkeypatch.setattr(shards, "stored_bytes", lambda stream, chunk: b"other")
        else:
            monkeypatch.setattr(shards, "read_column", lambda fields, name: np.array([9]))
        with pytest.raises(ShardError, match="does not return what was written") as caught:
            shard(tmp_path, rows)
        assert caught.value.code == "READ_BACK"
        assert not (tmp_path / "shards" / "train-00000-of-00001.h5").exists()
        assert list((tmp_path / ".tmp").iterdir()) == []

    @pytest.mark.parametrize("limit", [0, 300, 5_000, 20_000, 70_000])
    def test_a_full_disk_leaves_nothing_and_the_next_try_succeeds(self, tmp_path, limit):
        rows = cases(tmp_path / "c", [example(i) for i in range(20)])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OutputError, match="free some space") as caught:
                shard(tmp_path, rows)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.code == "DISK_FULL"
        assert list((tmp_path / ".tmp").iterdir()) == []
        assert not list((tmp_path / "shards").iterdir())
        assert shard(tmp_path, rows).rows == 20

    def test_space_is_claimed_by_writing_where_the_system_cannot_reserve(
        self, tmp_path, monkeypatch
    ):
        rows = cases(tmp_path / "c", [example(1), example(2)])
        expected = shard(tmp_path / "1", rows).sha256

        def no_reservation(descriptor, start, size):
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(os, "posix_fallocate", no_reservation)
        assert shard(tmp_path / "2", rows).sha256 == expected
        self.test_a_full_disk_leaves_nothing_and_the_next_try_succeeds(tmp_path / "3", 70_000)

    def test_a_write_that_fails_under_hdf5_is_named_too(self, tmp_path):
        """In a process of its own: HDF5 is not usable after a failed write."""
        code = """
import os, resource, sys
from pathlib import Path
from tests.preprocessing import test_shards as t
out = Path(sys.argv[1])
rows = t.cases(out / "c", [t.example(i) for i in range(20)])
t.shards.reserve = lambda path, size: None
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    t.shard(out, rows)
except t.OutputError as error:
    print(error.code, os.listdir(out / ".tmp"), os.listdir(out / "shards"), flush=True)
os._exit(0)
"""
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "DISK_FULL [] []"


WRITER = """
import sys
from pathlib import Path
from tests.preprocessing import test_shards as t
out = Path(sys.argv[1])
print("ready", flush=True)
rows = t.cases(out / ".tmp" / "cases", [t.example(i) for i in range(60)])
for start in range(0, 60, 6):
    t.shard(out, rows[start : start + 6], name=f"train-{start // 6:05d}-of-00010")
print("done", flush=True)
"""


def test_kill_9_leaves_only_whole_files_and_the_next_try_ends_with_the_same_bytes(tmp_path):
    rows = cases(tmp_path / "reference" / "cases", [example(i) for i in range(60)])
    expected = {
        f"train-{start // 6:05d}-of-00010.h5": shard(
            tmp_path / "reference", rows[start : start + 6], name=f"train-{start // 6:05d}-of-00010"
        ).sha256
        for start in range(0, 60, 6)
    }
    out, rng = tmp_path / "out", random.Random(1)
    last = ""
    for attempt in range(7):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if attempt < 6:
            time.sleep(rng.uniform(0.01, 0.45))
            process.kill()
        last = process.stdout.read()
        process.wait()
        process.stdout.close()
        for path in (out / "shards").glob("*"):
            assert file_sha256(path) == expected[path.name]
        for path in (out / ".tmp" / "cases").glob("*.case"):
            assert len(read_case(path).rows) == 1
    assert last == "done\n"
    assert {path.name for path in (out / "shards").iterdir()} == set(expected)


class TestDataset:
    def test_rows_splits_labels_and_names(self, built):
        data = open_dataset(built)
        assert (data.name, data.classes, len(data)) == ("fdg-pet", CLASSES, 9)
        assert data.labels.tolist() == [i % 3 for i in range(9)]
        assert data.labels.dtype == np.int64
        assert data.sample_ids == tuple(f"s{i:05d}" for i in range(9))
        assert data.subject_ids == tuple(f"p{i:05d}" for i in range(9))
        assert data.layout == dict(LAYOUT)
        assert set(data.fields) == set(LAYOUT)
        sizes = {name: len(data.split(name)) for name in ("train", "validation", "test")}
        assert sizes == {"train": 4, "validation": 2, "test": 3}
        test = data.split("test")
        assert test.splits == ("test",) * 3
        assert test.sample_ids == ("s00006", "s00007", "s00008")
        assert repr(test).startswith("Dataset('fdg-pet', rows=3")

    def test_examples_are_what_was_written(self, built):
        data = open_dataset(str(built))
        for i, found in enumerate(data):
            assert same(found, example(i))
            assert (found.sample_id, found.label) == (f"s{i:05d}", i % 3)
            assert found.provenance == {"suv_route": "series"}
        assert same(data.split("test")[-1], example(8))
        assert same(data.split("test")[0], example(6))

    def test_read_gives_only_what_is_asked(self, built):
        view = open_dataset(built).split("validation")
        found = view.read(1, ["suv", "scale"])
        assert list(found) == ["suv", "scale"]
        assert found["suv"].tobytes() == example(5).arrays["suv"].tobytes()
        assert list(view.read(0)) == ["image"]
        view.read(0)["image"][:] = 0  # the reader's own copy
        assert view.read(0)["image"].any()

    def test_wrong_asks_are_refused(self, built):
        data = open_dataset(built)
        with pytest.raises(ShardError, match="no field 'mask', it has depth, image") as caught:
            data.read(0, ["mask"])
        assert caught.value.code == "FIELD_MISSING"
        with pytest.raises(ShardError, match="no split 'dev': the splits are") as caught:
            data.split("dev")
        assert caught.value.code == "UNKNOWN_SPLIT"
        for i in (9, -10):
            with pytest.raises(IndexError, match="of a view with 9 rows"):
                data[i]

    def test_nothing_in_it_can_be_changed(self, built):
        data = open_dataset(built)
        with pytest.raises(ValueError, match="read-only"):
            data.labels[0] = 2
        with pytest.raises(TypeError):
            data.manifest["name"] = "x"  # pyright: ignore[reportIndexIssue]

    def test_an_empty_split_is_empty(self, tmp_path):
        out = tmp_path / "out"
        record = shard(out, cases(out / ".tmp" / "c", [example(0)]))
        write_manifest(out, {"name": "x", "classes": ["a"], "shards": [asdict(record)]})
        view = open_dataset(out).split("test")
        assert (len(view), view.labels.tolist(), view.sample_ids) == (0, [], ())
        assert open_dataset(out)[0].provenance == {}

    def test_pickled_while_open(self, built):
        data = open_dataset(built)
        assert same(data[0], example(0))
        copy = pickle.loads(pickle.dumps(data.split("test")))
        assert same(copy[0], example(6))
        assert copy.labels.tolist() == [0, 1, 2]

    def test_threads_read_the_right_rows(self, built):
        data = open_dataset(built)
        order = [i % 9 for i in range(200)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: data.read(i, ["depth"])["depth"], order))
        for i, depth in zip(order, found, strict=True):
            assert np.array_equal(depth, example(i).arrays["depth"])

    def test_more_shards_than_may_be_open(self, built, monkeypatch):
        monkeypatch.setattr("preprocessing.dataset.MAX_OPEN_SHARDS", 1)
        data = open_dataset(built)
        for i in (0, 8, 4, 0, 5, 8):
            assert same(data[i], example(i))

    def test_forked_children_open_their_own_files(self, built):
        """Three children read at once while the parent's files are open; none shares a handle."""
        code = """
import os, sys
from tests.preprocessing import test_shards as t
def files():
    places = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(p) for p in places if os.path.islink(p) and p and os.path.exists(p)]
data = t.open_dataset(sys.argv[1])
assert t.same(data[0], t.example(0))
before = sum(name.endswith(".h5") for name in files())
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        ok = all(t.same(data[i], t.example(i)) for i in range(9) for _ in range(20))
        os._exit(0 if ok and sum(n.endswith(".h5") for n in files()) == 3 else 1)
    children.append(pid)
good = all(t.same(data[i % 9], t.example(i % 9)) for i in range(200))
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
print(before, good, codes)
"""
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, str(built)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "1 True [0, 0, 0]"


def foreign(path: Path, **changes) -> Path:
    """Write a shard as any other software would: no chunks, no checksums, no pseudonyms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "dualwitness-shard"
        file.attrs["encoding-version"] = changes.get("version", "1.3")
        file["image"] = changes.get("image", np.arange(48, dtype=">f4").reshape(3, 1, 4, 4))
        file["label"] = changes.get("label", np.array([0, 1, -1], np.int8))
        file.create_group("notes").attrs["free"] = "text"
    return path


def declared(out: Path, **shard_keys) -> Path:
    manifest = {
        "encoding-type": "dualwitness-dataset",
        "encoding-version": "1.0",
        "name": "mine",
        "classes": ["a", "b"],
        "shards": [{"file": "any.h5", "split": "train"} | shard_keys],
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


class TestForeign:
    def test_the_example_of_the_documentation_opens(self, tmp_path):
        text = (ROOT / "docs" / "shard-format.md").read_text(encoding="utf-8")
        code = text.partition("```python\n")[2].partition("```")[0]
        (tmp_path / "mine").mkdir()
        command = [sys.executable, "-c", code]
        subprocess.run(command, cwd=tmp_path, check=True)
        data = open_dataset(tmp_path / "mine")
        assert data.labels.tolist() == [0, 1] * 5
        assert data.read(9)["image"].shape == (1, 512, 512)
        said = " ".join(verify(tmp_path / "mine").problems)
        assert "no digest of itself" in said
        assert "no sha256 of any.h5" in said

    def test_a_plain_file_with_the_layout_trains(self, tmp_path):
        foreign(tmp_path / "any.h5")
        data = open_dataset(declared(tmp_path))
        assert data.labels.tolist() == [0, 1, -1]
        assert data.sample_ids == ("any-0", "any-1", "any-2") == data.subject_ids
        image = data.read(1)["image"]
        assert image.dtype.isnative
        assert image.tolist() == np.arange(16, 32).reshape(1, 4, 4).tolist()
        assert data[2].label == -1

    def test_other_chunks_filters_and_string_kinds(self, tmp_path):
        with h5py.File(foreign(tmp_path / "any.h5"), "a") as file:
            file.create_dataset(
                "suv", data=np.ones((3, 4, 4)), chunks=(2, 3, 3), compression="gzip"
            )
            file["sample_id"] = np.array([b"x", b"y", b"z"])
            file["subject_id"] = np.array(["p", "p", "q"], dtype=h5py.string_dtype("utf-8", 4))
        data = open_dataset(declared(tmp_path))
        assert data.sample_ids == ("x", "y", "z")
        assert data.subject_ids == ("p", "p", "q")
        assert data.read(2, ["suv"])["suv"].sum() == 16

    def test_fields_that_only_some_shards_have_are_left_out(self, tmp_path):
        foreign(tmp_path / "any.h5")
        with h5py.File(foreign(tmp_path / "other.h5"), "a") as file:
            file["suv"] = np.ones((3, 4, 4))
        manifest = json.loads((declared(tmp_path) / "manifest.json").read_text())
        manifest["shards"].append({"file": "other.h5", "split": "test"})
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        assert open_dataset(tmp_path).fields == ("image",)

    def test_shards_that_disagree_are_refused(self, tmp_path):
        foreign(tmp_path / "any.h5")
        foreign(tmp_path / "other.h5", image=np.zeros((3, 1, 5, 4), np.float32))
        manifest = json.loads((declared(tmp_path) / "manifest.json").read_text())
        manifest["shards"].append({"file": "other.h5", "split": "test"})
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(
            ShardError, match=r"'image' is float32\(1, 4, 4\) in one shard"
        ) as caught:
            open_dataset(tmp_path)
        assert caught.value.code == "FIELD_SHAPE"

    @pytest.mark.parametrize("version", ["2.0", "0.9", 1.0])
    def test_another_schema_version_is_named(self, tmp_path, version):
        foreign(tmp_path / "any.h5", version=version)
        with pytest.raises(ShardError, match="shard from another schema version") as caught:
            open_dataset(declared(tmp_path))
        assert caught.value.code == "SCHEMA_VERSION"

    @pytest.mark.parametrize(
        ("changes", "code", "message"),
        [
            ({"label": np.array([0, 1, 2])}, "LABEL_RANGE", "run from 0 to 2, but there are 2"),
            ({"label": np.array([0.0, 1, 1])}, "DTYPE", "'label' is float64, it needs whole"),
            ({"label": np.zeros((3, 1), int)}, "FIELD_SHAPE", "'label' has 2 axes, it needs one"),
            ({"label": np.array([0, 1])}, "FIELD_SHAPE", "the datasets of a shard differ in rows"),
            ({"image": np.zeros((3, 4, 4))}, "FIELD_SHAPE", "'image' has 3 axes, it needs four"),
            ({"image": np.float32(1)}, "FIELD_SHAPE", "'image' has no row axis"),
        ],
    )
    def test_what_the_layout_forbids_is_refused(self, tmp_path, changes, code, message):
        foreign(tmp_path / "any.h5", **changes)
        with pytest.raises(ShardError, match=message) as caught:
            open_dataset(declared(tmp_path))
        assert caught.value.code == code

    def test_missing_parts_are_named(self, tmp_path):
        with pytest.raises(ShardError, match="that the manifest names is not there") as caught:
            open_dataset(declared(tmp_path))
        assert caught.value.code == "SHARD_MISSING"
        with h5py.File(foreign(tmp_path / "any.h5"), "a") as file:
            del file["label"]
        with pytest.raises(ShardError, match="no dataset 'label'") as caught:
            open_dataset(tmp_path)
        assert caught.value.code == "FIELD_MISSING"
        with h5py.File(tmp_path / "any.h5", "a") as file:
            del file.attrs["encoding-type"]
        with pytest.raises(ShardError, match="encoding-type is None") as caught:
            open_dataset(tmp_path)
        assert caught.value.code == "NOT_A_SHARD"
        (tmp_path / "any.h5").write_bytes(b"not hdf5")
        with pytest.raises(ShardError, match="cannot be read as HDF5") as caught:
            open_dataset(tmp_path)
        assert caught.value.code == "SHARD_CORRUPT"

    def test_rows_must_be_those_of_the_manifest(self, tmp_path):
        foreign(tmp_path / "any.h5")
        with pytest.raises(ShardError, match="a shard has 3 rows, the manifest says 4") as caught:
            open_dataset(declared(tmp_path, rows=4))
        assert caught.value.code == "ROWS"

    def test_a_broken_checksum_is_seen_on_reading(self, built):
        data = open_dataset(built)
        path = built / "shards" / "train-00000-of-00001.h5"
        with h5py.File(path) as file:
            place = file["suv"].id.get_chunk_info(2).byte_offset
        flipped(path, place + 40)
        assert data.read(2)["image"].shape == (1, 24, 20)
        with pytest.raises(ShardError, match="a checksum in it does not match") as caught:
            data.read(2, ["suv"])
        assert caught.value.code == "SHARD_CORRUPT"
        assert str(built) not in str(caught.value)


class TestHostile:
    """Files made to reach other files, run a plugin or fill the memory."""

    @pytest.fixture
    def file(self, tmp_path):
        with h5py.File(foreign(tmp_path / "any.h5"), "a") as file:
            yield file

    def refused(self, file: h5py.File, code: str, message: str) -> None:
        folder = Path(file.filename).parent
        file.close()
        with pytest.raises(ShardError, match=message) as caught:
            open_dataset(declared(folder))
        assert caught.value.code == code

    def test_external_link(self, file):
        file["suv"] = h5py.ExternalLink("/etc/passwd", "/x")
        self.refused(file, "LINK", "soft or external link")

    def test_soft_link(self, file):
        file["suv"] = h5py.SoftLink("/image")
        self.refused(file, "LINK", "soft or external link")

    def test_external_storage(self, file):
        file.create_dataset("suv", (3, 4), "u1", external=[("/etc/passwd", 0, 12)])
        self.refused(file, "EXTERNAL_STORAGE", "'suv' keeps its values in another file")

    def test_virtual_dataset(self, file):
        layout = h5py.VirtualLayout((3, 4), "u1")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3, 4))
        file.create_virtual_dataset("suv", layout)
        self.refused(file, "EXTERNAL_STORAGE", "'suv' keeps its values in another file")

    @pytest.mark.parametrize(
        "dtype", [h5py.string_dtype(), h5py.ref_dtype, h5py.vlen_dtype("i4"), [("a", "i4")]]
    )
    def test_objects_and_compounds(self, file, dtype):
        file.create_dataset("suv", (3,), dtype)
        self.refused(file, "DTYPE", "neither number nor fixed-length text")

    def test_variable_length_names(self, file):
        file["sample_id"] = ["a", "b", "c"]
        self.refused(file, "DTYPE", "'sample_id' has values of a type")

    def test_names_that_are_numbers(self, file):
        file["sample_id"] = [1, 2, 3]
        self.refused(file, "DTYPE", "'sample_id' is int64, it needs fixed-length UTF-8 text")

    def test_plugin_filter(self, file):
        file.create_dataset("suv", (3, 4), "u1", chunks=(1, 4), compression="lzf")
        self.refused(file, "FILTER", "needs the HDF5 filter plugin 32000")

    @pytest.mark.parametrize(
        ("shape", "options"),
        [
            ((3, 1 << 31), {"chunks": (1, 1 << 10)}),
            ((1 << 40, 2), {"chunks": (1, 2)}),
            ((3, 2), {"chunks": (1 << 29, 2), "maxshape": (None, 2)}),
        ],
    )
    def test_sizes_that_fill_the_memory(self, file, shape, options):
        file.create_dataset("suv", shape, "f4", **options)
        self.refused(file, "SIZE_CAP", "the file is damaged or hostile")

    def test_a_column_that_fills_the_memory(self, file):
        for name, dtype in (("image", "u1"), ("label", "i8")):
            del file[name]
            shape = (90_000_000, 1, 1, 1) if name == "image" else (90_000_000,)
            file.create_dataset(name, shape, dtype, chunks=True)
        self.refused(file, "SIZE_CAP", "'label' declares 720000000 bytes")

    def test_too_many_members(self, file):
        for i in range(300):
            file.create_group(f"g{i}")
        self.refused(file, "SIZE_CAP", "the file declares 302 members|303 members")


class TestManifest:
    def test_missing_manifest_means_incomplete(self, tmp_path):
        with pytest.raises(ShardError, match=r"run its build-dataset command again") as caught:
            open_dataset(tmp_path)
        assert caught.value.code == "INCOMPLETE"

    def test_comes_back_with_hashes_of_the_tables(self, built):
        manifest = read_manifest(built)
        assert (manifest["encoding-type"], manifest["encoding-version"]) == (
            "dualwitness-dataset",
            "1.0",
        )
        assert set(manifest["files"]) == {
            "samples.csv",
            "exclusions.csv",
            "README.md",
            "croissant.json",
            "qc/sheet.png",
        }
        assert manifest["files"]["README.md"] == file_sha256(built / "README.md")

    def test_written_twice_is_no_error_and_other_content_is(self, tmp_path):
        record = shard(tmp_path, cases(tmp_path / ".tmp" / "c", [example(0)]))
        content = {"name": "x", "classes": ["a"], "shards": [asdict(record)]}
        write_manifest(tmp_path, content)
        write_manifest(tmp_path, content)
        with pytest.raises(OutputError, match="with other content"):
            write_manifest(tmp_path, {**content, "name": "y"})

    def test_a_shard_that_is_not_there_cannot_be_declared(self, tmp_path):
        entry = {"file": "shards/a.h5", "split": "train"}
        with pytest.raises(ShardError, match=r"names shards/a\.h5, which is not there") as caught:
            write_manifest(tmp_path, {"name": "x", "classes": [], "shards": [entry]})
        assert caught.value.code == "MANIFEST"

    def test_every_changed_byte_is_seen(self, built):
        content = (built / "manifest.json").read_bytes()
        rng = random.Random(0)
        for _ in range(200):
            damaged = bytearray(content)
            damaged[rng.randrange(len(content) - 1)] ^= 1 << rng.randrange(8)
            (built / "manifest.json").write_bytes(damaged)
            if json_of(damaged) == json_of(content):
                continue  # one blank for another: JSON says the same
            assert verify(built).problems

    @pytest.mark.parametrize(
        ("change", "code", "message"),
        [
            ({"encoding-type": "zarr"}, "MANIFEST", "encoding-type is not"),
            ({"encoding-version": "2.0"}, "SCHEMA_VERSION", "data set from another schema version"),
            ({"name": None}, "MANIFEST", "no 'name'"),
            ({"classes": "ab"}, "MANIFEST", "'classes' are no list of names"),
            ({"shards": []}, "MANIFEST", "'shards' are no list, or an empty one"),
            ({"shards": [{"file": "a"}]}, "MANIFEST", "has no 'file' or no 'split'"),
            ({"shards": [{"file": 1, "split": "x"}]}, "MANIFEST", "is no text"),
            ({"shards": [{"file": "a", "split": "x"}] * 2}, "MANIFEST", "names a shard twice"),
            ({"manifest_blake2b": "0"}, "MANIFEST", "changed or damaged after it was written"),
        ],
    )
    def test_wrong_manifests_are_refused(self, tmp_path, change, code, message):
        path = declared(tmp_path) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ShardError, match=message) as caught:
            open_dataset(tmp_path)
        assert caught.value.code == code

    @pytest.mark.parametrize("file", ["/etc/passwd", "../any.h5", "a/../../b", "..\\b", "a\0b", ""])
    def test_shards_outside_the_folder_are_refused(self, tmp_path, file):
        with pytest.raises(ShardError, match="leads out of the data set's folder"):
            open_dataset(declared(tmp_path, file=file))

    def test_a_symbolic_link_out_of_the_folder_is_refused(self, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "any.h5").symlink_to(foreign(tmp_path / "elsewhere.h5"))
        with pytest.raises(ShardError, match="symbolic link that leads out") as caught:
            open_dataset(declared(out))
        assert caught.value.code == "LINK"

    def test_no_json_and_too_much_json(self, tmp_path, monkeypatch):
        (tmp_path / "manifest.json").write_text("{")
        with pytest.raises(ShardError, match="cannot be read as JSON"):
            read_manifest(tmp_path)
        (tmp_path / "manifest.json").write_text("[" * 200_000)
        with pytest.raises(ShardError, match="cannot be read as JSON"):
            read_manifest(tmp_path)
        monkeypatch.setattr("preprocessing.manifest.MAX_MANIFEST_BYTES", 10)
        with pytest.raises(ShardError, match="more than 10 bytes"):
            read_manifest(tmp_path)


def json_of(content: bytes | bytearray) -> object:
    try:
        return json.loads(bytes(content))
    except ValueError:
        return None


class TestVerify:
    def test_a_whole_data_set_has_no_problems(self, built):
        steps = []
        report = verify(built, progress=lambda done, total: steps.append((done, total)))
        assert report.problems == ()
        assert report.counts == {"shards": 3, "samples": 9, "subjects": 9, "files": 5}
        assert steps == [(1, 3), (2, 3), (3, 3)]

    def test_every_flipped_byte_of_a_shard_is_found(self, built):
        path = built / "shards" / "test-00000-of-00001.h5"
        content = path.read_bytes()
        rng = random.Random(0)
        for _ in range(150):
            flipped(path, rng.randrange(len(content)), rng.randrange(8))
            assert any("SHA-256 differs" in problem for problem in verify(built).problems)
            path.write_bytes(content)
        assert verify(built).problems == ()

    @pytest.mark.parametrize(
        "name", ["samples.csv", "exclusions.csv", "README.md", "croissant.json", "qc/sheet.png"]
    )
    def test_every_file_beside_the_shards_is_hashed(self, built, name):
        flipped(built / name, 3)
        assert f"{name} is not the file that was written" in " ".join(verify(built).problems)

    @pytest.mark.parametrize(
        "name", ["samples.csv", "exclusions.csv", "README.md", "croissant.json"]
    )
    def test_missing_files_are_named(self, built, name):
        (built / name).unlink()
        assert f"{name} is missing" in verify(built).problems

    def test_missing_and_unlisted_shards_are_named(self, built):
        path = built / "shards" / "test-00000-of-00001.h5"
        path.rename(path.with_name("stray.h5"))
        problems = verify(built).problems
        assert "shards/test-00000-of-00001.h5 is missing" in problems
        assert "shards/stray.h5 is not in the manifest" in problems
        assert "samples.csv lists 3 samples that no readable shard holds" in problems
        assert any("the manifest says {'test': 3" in problem for problem in problems)

    def test_an_incomplete_data_set_is_one_problem(self, tmp_path):
        (problem,) = verify(tmp_path).problems
        assert "no manifest.json" in problem

    def rewritten(self, out: Path, change) -> str:
        """Change the manifest, sign it anew, and return what verify says."""
        manifest = read_manifest(out)
        manifest.pop("manifest_blake2b")
        change(manifest)
        (out / "manifest.json").unlink()
        write_manifest(out, manifest)
        return " | ".join(verify(out).problems)

    def test_counts_must_add_up(self, built):
        said = self.rewritten(built, lambda m: m["counts"]["files"].update(seen=13))
        assert "13 files were seen, but used, excluded and skipped are [9, 2, 1]" in said
        said = self.rewritten(built, lambda m: m["counts"]["files"].update(excluded=3))
        assert "exclusions.csv accounts for 2 files, the manifest for 3" in said
        said = self.rewritten(built, lambda m: m.pop("counts"))
        assert "no account of the files" in said

    def test_rows_and_hashes_of_the_manifest(self, built):
        said = self.rewritten(built, lambda m: m["shards"][0].update(rows=5))
        assert "has 4 rows, the manifest says 5" in said
        said = self.rewritten(built, lambda m: m["shards"][0].pop("sha256"))
        assert "no sha256 of shards/train-00000-of-00001.h5" in said

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("p00000,", "p00001,", "row 0: 'subject_id' differs from samples.csv"),
            (",train,normal", ",test,normal", "row 0: 'split' differs"),
            (",train,normal", ",train,mild", "row 0: 'label' differs"),
            ("s00000", "s00099", "row 0 is not in samples.csv"),
            ("h5,0,", "h5,7,", "row 0: 'row' differs"),
            ("s00001,p00001", "s00000,p00001", "samples.csv lists 1 samples twice"),
        ],
    )
    def test_the_table_must_be_that_of_the_shards(self, built, old, new, said):
        text = (built / "samples.csv").read_text()
        (built / "samples.csv").write_text(text.replace(old, new, 1))
        assert said in " ".join(verify(built).problems)

    def test_a_patient_in_two_splits_is_found(self, tmp_path):
        out = tmp_path / "out"
        records = [
            shard(out, cases(out / ".tmp" / "a", [example(0, subject=7)])),
            shard(
                out, cases(out / ".tmp" / "b", [example(1, subject=7)]), name="test-00000-of-00001"
            ),
        ]
        write_manifest(
            out,
            {
                "name": "x",
                "classes": list(CLASSES),
                "shards": [asdict(record) for record in records],
            },
        )
        assert "1 of 1 patients have samples in more than one split" in " ".join(
            verify(out).problems
        )

    def test_values_that_do_not_match_their_digest_are_found(self, built):
        """A shard changed with its checksums kept right and its hash signed anew."""
        path = built / "shards" / "test-00000-of-00001.h5"
        with h5py.File(path, "a") as file:
            file["depth"][1, 0, 0] += 1
            file["label"][2] = 7
        said = self.rewritten(built, lambda m: m["shards"][2].update(sha256=file_sha256(path)))
        assert "row 1: its values do not match their digest" in said
        assert "row 2: label 7 names no class" in said

    def test_two_rows_of_one_name_and_unreadable_shards(self, tmp_path):
        foreign(tmp_path / "any.h5")
        foreign(tmp_path / "sub" / "any.h5")
        manifest = json.loads((declared(tmp_path) / "manifest.json").read_text())
        manifest["shards"].append({"file": "sub/any.h5", "split": "train"})
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "samples.csv").write_text("sample_id\n")
        assert "two rows of the shards have the same sample_id" in verify(tmp_path).problems
        foreign(tmp_path / "any.h5", version="3.0")
        assert any("another schema version" in problem for problem in verify(tmp_path).problems)

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_a_croissant_that_is_none(self, built, content):
        (built / "croissant.json").write_text(content)
        assert "croissant.json is no JSON-LD" in verify(built).problems
