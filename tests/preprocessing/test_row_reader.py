"""Rows read outside HDF5's lock are what HDF5 itself reads, and never anything else."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from preprocessing import row_reader
from preprocessing.chunk_filters import (
    DEFLATE,
    FLETCHER32,
    SHUFFLE,
    decoded_chunk,
    isal_zlib,
    stored_chunk,
)
from preprocessing.errors import ShardError
from preprocessing.layout import FieldSpec
from preprocessing.records import Example
from preprocessing.row_reader import RowReader
from preprocessing.shards import open_dataset, write_case, write_manifest, write_shard

ROWS, SIDE = 3, 48
ALL = (SHUFFLE, DEFLATE, FLETCHER32)


def values(dtype: str) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 200, (ROWS, 2, SIDE, SIDE))
    return np.where(noise > 0, noise, 0).astype(dtype)


def dataset(path: Path, array: np.ndarray, **options) -> Path:
    with h5py.File(path, "w", userblock_size=options.pop("userblock_size", 0)) as file:
        file.create_dataset("image", data=array, **options)
    return path


def rows_of(path: Path) -> list[np.ndarray]:
    with h5py.File(path) as file:
        reader = RowReader(file, file["image"])
        return [reader[row] for row in range(ROWS)]


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows were decoded without HDF5, as the length of a list."""
    seen: list[int] = []

    def counting(content: bytes, *arguments, **options):
        found = decoded_chunk(content, *arguments, **options)
        seen.extend([len(content)] if found is not None else [])
        return found

    monkeypatch.setattr(row_reader, "decoded_chunk", counting)
    return seen


ONE_ROW = (1, 2, SIDE, SIDE)
OURS = {"chunks": ONE_ROW, "shuffle": True, "compression": "gzip", "fletcher32": True}


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", "<u2", "<f2", "<i4", "<f4", "<i8", "<f8"])
@pytest.mark.parametrize(
    "options",
    [
        OURS,
        {"chunks": ONE_ROW, "compression": "gzip", "compression_opts": 9},
        {"chunks": ONE_ROW, "shuffle": True, "fletcher32": True},
        {"chunks": ONE_ROW},
    ],
)
def test_common_storage_is_decoded_here(
    tmp_path: Path, decodings: list[int], dtype: str, options: dict
) -> None:
    array = values(dtype)
    found = rows_of(dataset(tmp_path / "any.h5", array, **options))
    assert len(decodings) == ROWS
    for row, expected in zip(found, array, strict=True):
        assert row.dtype == expected.dtype
        assert row.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("<f4", {}),
        ("<f4", {"chunks": (2, 2, SIDE, SIDE), "compression": "gzip"}),
        ("<f4", {"chunks": (1, 1, SIDE, SIDE), "compression": "gzip"}),
        (">f4", OURS),
        (">i2", OURS),
        ("?", OURS),
        ("<i2", {"chunks": ONE_ROW, "scaleoffset": 0}),
        ("<i2", OURS | {"userblock_size": 512}),
    ],
)
def test_uncommon_storage_is_left_to_hdf5(
    tmp_path: Path, decodings: list[int], dtype: str, options: dict
) -> None:
    array = values(dtype)
    found = rows_of(dataset(tmp_path / "any.h5", array, **options))
    assert not decodings
    for row, expected in zip(found, array, strict=True):
        assert row.dtype.isnative
        assert np.array_equal(row, expected)


def test_rows_never_written_and_chunks_without_filters(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "any.h5", "w") as file:
        made = file.create_dataset("image", (ROWS, 2, SIDE, SIDE), "<i2", fillvalue=7, **OURS)
        plain = values("<i2")[1]
        made.id.write_direct_chunk((1, 0, 0, 0), plain.tobytes(), filter_mask=0b111)
    first, second, third = rows_of(tmp_path / "any.h5")
    assert (first == 7).all()
    assert np.array_equal(second, plain)
    assert (third == 7).all()


def test_integers_of_fewer_bits_than_their_bytes_hold(tmp_path: Path, decodings: list[int]) -> None:
    """Their bytes are not their values."""
    array = values("<i2")
    kind = h5py.h5t.NATIVE_INT16.copy()
    kind.set_precision(12)
    kind.set_offset(4)
    with h5py.File(tmp_path / "any.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk(ONE_ROW)
        creation.set_deflate(2)
        space = h5py.h5s.create_simple(array.shape)
        made = h5py.h5d.create(file.id, b"image", kind, space, creation)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, array)
    assert np.array_equal(np.stack(rows_of(tmp_path / "any.h5")), array)
    assert not decodings


@pytest.mark.parametrize("options", [OURS, {"chunks": ONE_ROW, "compression": "gzip"}])
def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(
    tmp_path: Path, options: dict
) -> None:
    array = values("<i2")
    path = dataset(tmp_path / "any.h5", array, **options)
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(1)
    intact = path.read_bytes()
    refused = 0
    places = [0, 1, 2, 3, chunk.size - 9, *range(chunk.size - 6, chunk.size)]
    for place in [*places, *range(40, chunk.size, chunk.size // 25)]:
        damaged = bytearray(intact)
        damaged[chunk.byte_offset + place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with h5py.File(path) as file:
            reader = RowReader(file, file["image"])
            try:
                found = reader[1]
            except OSError:
                refused += 1
            else:
                assert np.array_equal(found, array[1])
            assert np.array_equal(reader[0], array[0])
    assert refused >= 25


def test_a_file_cut_off_is_an_error(tmp_path: Path) -> None:
    path = dataset(tmp_path / "any.h5", values("<i2"), **OURS)
    with h5py.File(path) as file:
        reader = RowReader(file, file["image"])
        with path.open("rb+") as stream:
            stream.truncate(file["image"].id.get_chunk_info(2).byte_offset + 100)
        with pytest.raises(OSError, match="Can't synchronously read data"):
            reader[2]


class TestDecodedChunk:
    array = values("<i2")[0]

    def decoded(self, content: bytes, filters: tuple[int, ...] = ALL) -> np.ndarray | None:
        return decoded_chunk(content, filters, shape=self.array.shape, dtype=self.array.dtype)

    @pytest.mark.parametrize("dtype", ["<i2", "u1"])
    def test_what_was_stored_comes_back_and_may_be_changed(self, dtype: str) -> None:
        array = values(dtype)[0]
        found = decoded_chunk(stored_chunk(array), ALL, shape=array.shape, dtype=array.dtype)
        assert found is not None
        assert np.array_equal(found, array)
        found += 1

    @pytest.mark.parametrize(
        ("content", "filters"),
        [
            (b"", ALL),
            (b"abcd", ALL),
            (stored_chunk(array)[:-1], ALL),
            (stored_chunk(array)[:200], ALL),
            (stored_chunk(array[:1]), ALL),
            (stored_chunk(np.concatenate([array, array])), ALL),
            (isal_zlib.compress(array.tobytes(), 2)[:-5], (DEFLATE,)),
            (isal_zlib.compress(bytes(1 << 26), 2), (DEFLATE,)),
            (array.tobytes()[1:], (SHUFFLE,)),
            (array.tobytes(), (32000,)),
        ],
        ids=[
            "empty",
            "four-bytes",
            "one-byte-short",
            "cut-off",
            "too-few-values",
            "too-many-values",
            "deflate-without-its-end",
            "a-bomb",
            "half-a-value",
            "unknown-filter",
        ],
    )
    def test_anything_else_is_refused(self, content: bytes, filters: tuple[int, ...]) -> None:
        assert self.decoded(content, filters) is None

    def test_values_of_an_odd_size_are_refused(self) -> None:
        found = decoded_chunk(bytes(32), (SHUFFLE,), shape=(2,), dtype=np.dtype("c16"))
        assert found is None


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six rows of 2 x 48 x 48 in one shard."""
    out = tmp_path_factory.mktemp("small")
    layout = {"image": FieldSpec((2, SIDE, SIDE), "int16", "noise")}
    pictures = np.concatenate([values("<i2"), values("<i2")[::-1]])
    examples = [
        Example(sample_id=f"s{i}", subject_id=f"p{i}", arrays={"image": picture}, label=i % 2)
        for i, picture in enumerate(pictures)
    ]
    write_case(out / "one.case", examples, layout=layout)
    record = write_shard(
        out / "shards" / "train-00000-of-00001.h5",
        [(out / "one.case", i) for i in range(len(examples))],
        layout=layout,
        split="train",
        name="small",
        classes=("a", "b"),
        workspace=out,
    )
    shard = {"file": record.file, "sha256": record.sha256, "rows": 6, "split": "train"}
    write_manifest(out, {"name": "small", "classes": ["a", "b"], "shards": [shard]})
    return out


def test_threads_read_what_one_thread_reads(small: Path) -> None:
    data = open_dataset(small)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: data.read(i % 6)["image"], range(120)))
    for i, picture in enumerate(found):
        assert np.array_equal(picture, data.read(i % 6)["image"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
class TestProcesses:
    def map(self, method: str, function: Callable, items: range) -> list:
        with multiprocessing.get_context(method).Pool(1) as pool:
            return pool.map(function, items)

    def test_a_view_that_was_read_here_reads_there(self, small: Path, method: str) -> None:
        data = open_dataset(small)
        here = [data.read(i)["image"] for i in range(6)]
        there = self.map(method, data.read, range(6))
        for one, other in zip(here, there, strict=True):
            assert np.array_equal(one, other["image"])
        assert np.array_equal(here[0], data.read(0)["image"])

    def test_an_error_arrives_as_what_it_is(self, small: Path, tmp_path: Path, method: str) -> None:
        data = open_dataset(small)
        place = small / "shards" / "train-00000-of-00001.h5"
        intact = place.read_bytes()
        with h5py.File(place, locking=False) as file:
            offset = file["image"].id.get_chunk_info(4).byte_offset
        damaged = bytearray(intact)
        damaged[offset + 30] ^= 1
        place.write_bytes(damaged)
        try:
            with pytest.raises(ShardError, match="a checksum in it does not match") as caught:
                self.map(method, data.read, range(6))
        finally:
            place.write_bytes(intact)
        assert caught.value.code == "SHARD_CORRUPT"
