"""Rows of one dataset of an open shard, as fast as its storage allows.

HDF5 works under one lock, so that threads wait for one another however many there are. A row that
is one chunk of plain numbers, deflated as this toolkit and most others do, is therefore only looked
up by HDF5; its bytes are read, checked and inflated here. Whatever else a dataset may be is left to
HDF5, and so is the verdict on a chunk that does not decode.
"""

import math
import os

import h5py
import numpy as np
from jaxtyping import Shaped

from preprocessing.chunk_filters import DEFLATE, FLETCHER32, SHUFFLE, decoded_chunk

SMALL_ROW_BYTES = 4096  # below this, HDF5 is done before a decoder has started


class RowReader:
    """Rows of a dataset whose declaration ``safe_hdf5.fields_of`` has checked.

    Several threads may ask at once, as long as the file stays open.
    """

    def __init__(self, file: h5py.File, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._shape = tuple(int(extent) for extent in dataset.shape[1:])
        self._dtype = dataset.dtype
        self._size = math.prod(self._shape) * self._dtype.itemsize
        self._corner = tuple(0 for _ in self._shape)
        self._filters = _known_filters(dataset)
        self._direct = file.driver == "sec2" and not file.userblock_size and self._is_plain()
        self._handle = file.id.get_vfd_handle() if self._direct else -1

    def __getitem__(self, row: int) -> Shaped[np.ndarray, "..."]:
        """Return one row in this machine's byte order.

        Raises
        ------
        OSError
            If a checksum does not match, or the row cannot be read.
        """
        found = self._decoded(row) if self._direct else None
        if found is None:
            found = np.asarray(self._dataset[row])
        return found.astype(found.dtype.newbyteorder("="), copy=False)

    def _decoded(self, row: int) -> Shaped[np.ndarray, "..."] | None:
        chunk = self._dataset.id.get_chunk_info_by_coord((row, *self._corner))
        # Deflate lengthens what it cannot shorten by a thousandth; more than that is a forgery.
        largest = self._size + self._size // 8 + 64
        if chunk.byte_offset is None or chunk.filter_mask or chunk.size > largest:
            return None
        content = os.pread(self._handle, chunk.size, chunk.byte_offset)
        return decoded_chunk(content, self._filters or (), shape=self._shape, dtype=self._dtype)

    def _is_plain(self) -> bool:
        """Tell whether a row is one chunk, and its bytes are numbers of this machine's kind."""
        return (
            self._filters is not None
            and self._dataset.chunks == (1, *self._shape)
            and self._size >= SMALL_ROW_BYTES
            and self._dtype.kind in "iuf"
            and self._dtype.isnative
            and h5py.h5t.py_create(self._dtype) == self._dataset.id.get_type()
        )


def _known_filters(dataset: h5py.Dataset) -> tuple[int, ...] | None:
    """Return the filters of a dataset in order, or None where one is not known here."""
    creation = dataset.id.get_create_plist()
    found = [creation.get_filter(i) for i in range(creation.get_nfilters())]
    for number, _, values, *_ in found:
        if number not in (DEFLATE, SHUFFLE, FLETCHER32):
            return None
        if number == SHUFFLE and tuple(values) != (dataset.dtype.itemsize,):
            return None
    return tuple(number for number, *_ in found)
