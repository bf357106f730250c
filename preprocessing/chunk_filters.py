"""A chunk as HDF5 stores it, made and read outside HDF5: shuffled, deflated, checksummed.

Deflating is most of what storing a sample costs, and HDF5 brings a deflate of its own. ISA-L writes
the same format six times as fast, as small, and inflates it more than twice as fast. HDF5 also
works under one lock, whatever the file; what is here lets threads read beside each other.

References
----------
HDF5 File Format Specification 3.0, section IV.A.2.l (filter pipeline message: shuffle, deflate,
Fletcher32).
"""

from collections.abc import Sequence

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import DECOMP_ZLIB, IgzipDecompressor, IsalError
from jaxtyping import Shaped

from preprocessing.errors import ShardError

LEVEL = 2
"""ISA-L's 1 and 2 write a brain as small as zlib's 2; its 3 takes five times as long."""
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
"""HDF5's numbers of the filters that are known here."""
_MODULUS = 65535
_CHECKSUM_BYTES = 4
_BLOCK = 8192  # words: they and their copies stay in a processor's cache
_WEIGHTS = np.arange(_BLOCK, 0, -1, dtype=np.float64)


def stored_chunk(array: Shaped[np.ndarray, "..."]) -> bytes:
    """Return what HDF5's filters shuffle, deflate and Fletcher32 make of an array.

    Raises
    ------
    ShardError
        ``READ_BACK`` where it does not inflate to what was given.
    """
    shuffled = _shuffled(array)
    content = isal_zlib.compress(shuffled, LEVEL)
    try:
        inflated = isal_zlib.decompress(content, bufsize=max(shuffled.nbytes, 1))
        intact = np.array_equal(np.frombuffer(inflated, dtype=np.uint8), shuffled)
    except IsalError:  # pyright: ignore[reportGeneralTypeIssues] - its stub calls it an instance
        intact = False
    if not intact:
        raise unlike()
    return content + fletcher32(content).to_bytes(4, "little")


def decoded_chunk(
    content: bytes, filters: Sequence[int], *, shape: tuple[int, ...], dtype: np.dtype
) -> Shaped[np.ndarray, "..."] | None:
    """Return the values of a stored chunk, or None where anything in it is amiss.

    A reader asks HDF5 itself about a chunk that is refused here: it may be damaged, or of a kind
    that only HDF5 knows. No more memory is taken than the values need.

    Parameters
    ----------
    filters
        HDF5's numbers, in the order they were applied.
    dtype
        Of this machine's byte order.
    """
    values = memoryview(content)
    size = int(np.prod(shape)) * dtype.itemsize
    for number in reversed(filters):
        found = _undone(values, number, size=size, itemsize=dtype.itemsize)
        if found is None:
            return None
        values = found
    if values.nbytes != size:
        return None
    found = np.frombuffer(values, dtype=dtype).reshape(shape)
    return found.copy() if values.readonly else found


def _undone(values: memoryview, number: int, *, size: int, itemsize: int) -> memoryview | None:
    if number == FLETCHER32:
        body, stored = values[:-_CHECKSUM_BYTES], values[-_CHECKSUM_BYTES:]
        intact = fletcher32(body) == int.from_bytes(stored, "little")
        return body if intact and values.nbytes > _CHECKSUM_BYTES else None
    if number == DEFLATE:
        return _inflated(values, size)
    if number == SHUFFLE:
        return _unshuffled(values, itemsize)
    return None


def _inflated(values: memoryview, size: int) -> memoryview | None:
    engine = IgzipDecompressor(flag=DECOMP_ZLIB)
    try:
        found = engine.decompress(values, size)
    except IsalError:  # pyright: ignore[reportGeneralTypeIssues] - its stub calls it an instance
        return None
    return memoryview(found) if engine.eof else None


def _unshuffled(values: memoryview, itemsize: int) -> memoryview | None:
    """Put the bytes of a value beside each other again: the last plane holds the highest ones."""
    if itemsize == 1:
        return values
    if itemsize not in (2, 4, 8) or values.nbytes % itemsize:
        return None
    planes = np.frombuffer(values, dtype=np.uint8).reshape(itemsize, -1)
    joined = planes[-1].astype(f"<u{itemsize}")
    for plane in planes[-2::-1]:
        joined <<= 8
        joined |= plane
    return memoryview(joined.view(np.uint8))


def unlike() -> ShardError:
    """Return the refusal of a chunk that does not decode to what was given."""
    return ShardError(
        "READ_BACK",
        "a compressed sample does not decode to what was given: check this machine's memory and "
        "its HDF5 library",
    )


def _shuffled(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, " byte"]:
    """Put the first bytes of all values first, then the second ones, and so on."""
    by_value = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.itemsize)
    return np.ascontiguousarray(by_value.T).reshape(-1)


def fletcher32(content: bytes | memoryview) -> int:
    """Return HDF5's Fletcher checksum: big-endian words of 16 bit, an odd byte at the end first.

    Both sums are taken modulo 65535, but are 0 only where everything is.
    """
    whole = bytes(content) + b"\0" if len(content) % 2 else content
    words = np.frombuffer(whole, dtype=">u2")
    first = second = 0
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].astype(np.float64)  # its sums stay exact below 2**53
        # every word counts once more for each word after it, those of later blocks included
        second += len(block) * first + int(block @ _WEIGHTS[-len(block) :])
        first += int(block.sum())
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    return (total - 1) % _MODULUS + 1 if total else 0
