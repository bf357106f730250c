"""A chunk as HDF5 stores it, made outside HDF5: shuffled, deflated, checksummed.

Deflating is most of what storing a sample costs, and HDF5 brings a deflate of its own. ISA-L writes
the same format six times as fast, as small, and inflates it faster as well.

References
----------
HDF5 File Format Specification 3.0, section IV.A.2.l (filter pipeline message: shuffle, deflate,
Fletcher32).
"""

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from jaxtyping import Shaped

from preprocessing.errors import ShardError

LEVEL = 2
"""ISA-L's 1 and 2 write a brain as small as zlib's 2; its 3 takes five times as long."""
_MODULUS = 65535


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


def fletcher32(content: bytes) -> int:
    """Return HDF5's Fletcher checksum: big-endian words of 16 bit, an odd byte at the end first.

    Both sums are taken modulo 65535, but are 0 only where everything is.
    """
    words = np.frombuffer(content + b"\0" * (len(content) % 2), dtype=">u2").astype(np.uint64)
    weights = np.arange(len(words), 0, -1, dtype=np.uint64)
    first, second = int(words.sum()), int(words @ weights)
    return _folded(second) << 16 | _folded(first)


def _folded(total: int) -> int:
    return (total - 1) % _MODULUS + 1 if total else 0
