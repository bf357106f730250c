"""HDF5 reads what is made outside it; what does not decode is never kept."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing import chunk_filters
from preprocessing.chunk_filters import fletcher32, stored_chunk
from preprocessing.errors import ShardError
from preprocessing.layout import FieldSpec, create_field

ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "<i2", "<f2", "<i4", "<f4", "<i8", "<f8"]),
    hnp.array_shapes(min_dims=0, max_dims=3, max_side=9),
)


def decoded(array: np.ndarray, chunk: bytes) -> np.ndarray:
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        spec = FieldSpec(array.shape, array.dtype.str, "any")
        dataset = create_field(file, "any", spec, rows=1)
        dataset.id.write_direct_chunk((0, *(0 for _ in array.shape)), chunk)
        return np.asarray(dataset[0])


@given(ARRAYS)
def test_hdf5_decodes_what_was_given(array):
    found = decoded(array, stored_chunk(array))
    assert found.dtype == array.dtype
    assert found.tobytes() == array.tobytes()


def test_hdf5_holds_the_checksum_against_the_content():
    array = np.arange(3000, dtype="<i2")
    chunk = stored_chunk(array)
    for place in (5, len(chunk) - 1):
        damaged = bytearray(chunk)
        damaged[place] ^= 1
        with pytest.raises(OSError, match="filter returned failure"):
            decoded(array, bytes(damaged))


def slow_fletcher32(content: bytes) -> int:
    """As HDF5 does it: word by word, folded after each step."""
    first = second = 0
    padded = content + b"\0" * (len(content) % 2)
    for place in range(0, len(padded), 2):
        first += padded[place] << 8 | padded[place + 1]
        second += first
        first = (first & 0xFFFF) + (first >> 16)
        second = (second & 0xFFFF) + (second >> 16)
    first = (first & 0xFFFF) + (first >> 16)
    second = (second & 0xFFFF) + (second >> 16)
    return second << 16 | first


@given(st.one_of(st.binary(max_size=80), st.integers(0, 70).map(lambda n: b"\xff" * n)))
def test_the_checksum_is_the_slow_one(content):
    assert fletcher32(content) == slow_fletcher32(content)


def test_the_checksum_of_a_large_chunk():
    content = np.random.default_rng(0).bytes(200_001)
    assert fletcher32(content) == slow_fletcher32(content)
    assert fletcher32(b"\xff" * 10**6) == slow_fletcher32(b"\xff" * 10**6)


@pytest.mark.parametrize("content", [b"no deflate", chunk_filters.isal_zlib.compress(b"other", 2)])
def test_what_does_not_inflate_to_what_was_given_is_refused(monkeypatch, content):
    monkeypatch.setattr(chunk_filters.isal_zlib, "compress", lambda *_: content)
    with pytest.raises(ShardError, match="does not decode to what was given") as caught:
        stored_chunk(np.arange(9))
    assert caught.value.code == "READ_BACK"
