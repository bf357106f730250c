"""Open a shard that anyone may have written, and touch nothing that its format does not hold.

HDF5 files can point into other files, name plugins to load, and declare sizes that fill the memory.
All of that is refused by looking at the declarations, before any value is read.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Shaped

from preprocessing.errors import ShardError
from preprocessing.layout import ENCODING_VERSION, LABEL, SHARD_TYPE, text_attribute

MAX_ROW_BYTES = 1 << 30
MAX_COLUMN_BYTES = 1 << 28
MAX_ROWS = 100_000_000
MAX_MEMBERS = 256
# deflate, shuffle, fletcher32, szip, nbit, scaleoffset: any other filter is a plugin's code.
BUILT_IN_FILTERS = frozenset({1, 2, 3, 4, 5, 6})


@contextmanager
def reading() -> Iterator[None]:
    """Turn HDF5's errors, which quote the file's path, into ``ShardError``.

    Raises
    ------
    ShardError
        ``SHARD_CORRUPT`` where HDF5 cannot read on or a checksum does not match.
    """
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError):
        raise ShardError(
            "SHARD_CORRUPT",
            "a shard cannot be read as HDF5 or a checksum in it does not match: run `dualwitness "
            "verify`, and copy or build the data set again",
        ) from None


def open_shard(path: Path) -> h5py.File:
    """Open a shard read-only after checking that it is one, of this version.

    Locks are not taken: shards never change, and read-only and network disks have none.

    Raises
    ------
    ShardError
        ``SHARD_MISSING``, ``SHARD_CORRUPT``, ``NOT_A_SHARD`` or ``SCHEMA_VERSION``.
    """
    if not path.is_file():
        raise ShardError(
            "SHARD_MISSING",
            "a shard that the manifest names is not there: copy the data set again as a whole",
        )
    with reading():
        file = h5py.File(path, "r", locking=False)
        kind, version = (
            text_attribute(file, "encoding-type"),
            text_attribute(file, "encoding-version"),
        )
    if kind == SHARD_TYPE and version is not None and _major(version) == _major(ENCODING_VERSION):
        return file
    file.close()
    if kind != SHARD_TYPE:
        raise ShardError(
            "NOT_A_SHARD",
            f"the file's encoding-type is {kind!r}, a shard's is '{SHARD_TYPE}': name a data set's "
            "folder, or add the attribute to a file with a shard's layout",
        )
    raise ShardError(
        "SCHEMA_VERSION",
        f"shard from another schema version: its encoding-version is {version!r}, this release "
        f"reads {_major(ENCODING_VERSION)}.x: use the release that wrote it, or build it again",
    )


def fields_of(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the datasets of a shard, all declarations checked, none read.

    Groups are ignored, whatever they hold.

    Raises
    ------
    ShardError
        ``LINK``, ``EXTERNAL_STORAGE``, ``DTYPE``, ``FILTER``, ``SIZE_CAP``, ``FIELD_MISSING`` or
        ``FIELD_SHAPE``.
    """
    with reading():
        if len(file) > MAX_MEMBERS:
            raise _too_large("the file", f"{len(file)} members", f"{MAX_MEMBERS}")
        fields: dict[str, h5py.Dataset] = {}
        for name in map(str, file):
            _check_link(file, name)
            if file.get(name, getclass=True) is h5py.Dataset:
                dataset = file[name]
                if isinstance(dataset, h5py.Dataset):
                    _check_declaration(name, dataset)
                    fields[name] = dataset
        _check_rows(fields)
    return fields


def read_column(fields: dict[str, h5py.Dataset], name: str) -> Shaped[np.ndarray, " row"]:
    """Read one small value per row.

    Raises
    ------
    ShardError
        ``SIZE_CAP``, ``FIELD_SHAPE`` or ``SHARD_CORRUPT``.
    """
    dataset = fields[name]
    if dataset.ndim != 1:
        raise ShardError("FIELD_SHAPE", f"'{name}' has {dataset.ndim} axes, it needs one: the rows")
    size = dataset.size * dataset.dtype.itemsize
    if size > MAX_COLUMN_BYTES:
        raise _too_large(f"'{name}'", f"{size} bytes", f"{MAX_COLUMN_BYTES} bytes")
    with reading():
        return dataset[()]


def read_texts(fields: dict[str, h5py.Dataset], name: str) -> tuple[str, ...] | None:
    """Read one short text per row, or None where there is no such column; raises as the above."""
    if name not in fields:
        return None
    if fields[name].dtype.kind != "S":
        raise ShardError(
            "DTYPE", f"'{name}' is {fields[name].dtype.name}, it needs fixed-length UTF-8 text"
        )
    return tuple(bytes(text).decode("utf-8", "replace") for text in read_column(fields, name))


def _major(version: str) -> str:
    return version.partition(".")[0]


def _check_link(file: h5py.File, name: str) -> None:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ShardError(
            "LINK",
            "a shard holds a soft or external link, which could lead to any file of this machine: "
            "write the values into the shard itself",
        )


def _check_declaration(name: str, dataset: h5py.Dataset) -> None:
    if dataset.is_virtual or dataset.external:
        raise ShardError(
            "EXTERNAL_STORAGE",
            f"'{name}' keeps its values in another file, which could be any file of this machine: "
            "write the values into the shard itself",
        )
    if dataset.dtype.kind not in "iufbS":
        raise ShardError(
            "DTYPE",
            f"'{name}' has values of a type that is neither number nor fixed-length text (object, "
            "reference, compound, enumeration): store plain numbers",
        )
    creation = dataset.id.get_create_plist()
    filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
    plugins = filters - BUILT_IN_FILTERS
    if plugins:
        raise ShardError(
            "FILTER",
            f"'{name}' needs the HDF5 filter plugin {min(plugins)}: write it with HDF5's own "
            "filters (gzip, shuffle, fletcher32)",
        )
    _check_size(name, dataset)


def _check_size(name: str, dataset: h5py.Dataset) -> None:
    if dataset.shape is None or not dataset.shape:
        raise ShardError("FIELD_SHAPE", f"'{name}' has no row axis: its first axis is the rows")
    if dataset.shape[0] > MAX_ROWS:
        raise _too_large(f"'{name}'", f"{dataset.shape[0]} rows", f"{MAX_ROWS} rows")
    row = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    chunk = math.prod(dataset.chunks or (0,)) * dataset.dtype.itemsize
    if max(row, chunk) > MAX_ROW_BYTES:
        raise _too_large(f"'{name}'", f"rows of {max(row, chunk)} bytes", f"{MAX_ROW_BYTES} bytes")


def _check_rows(fields: dict[str, h5py.Dataset]) -> None:
    for needed in ("image", LABEL):
        if needed not in fields:
            raise ShardError(
                "FIELD_MISSING", f"a shard has no dataset '{needed}': see docs/shard-format.md"
            )
    if fields["image"].ndim != 4:
        raise ShardError(
            "FIELD_SHAPE",
            f"'image' has {fields['image'].ndim} axes, it needs four: row of the shard, channel, "
            "row, column",
        )
    if fields[LABEL].dtype.kind not in "iu":
        raise ShardError("DTYPE", f"'label' is {fields[LABEL].dtype.name}, it needs whole numbers")
    rows = {name: dataset.shape[0] for name, dataset in fields.items()}
    if len(set(rows.values())) > 1:
        raise ShardError("FIELD_SHAPE", f"the datasets of a shard differ in rows: {rows}")


def _too_large(what: str, seen: str, limit: str) -> ShardError:
    return ShardError(
        "SIZE_CAP", f"{what} declares {seen}, the limit is {limit}: the file is damaged or hostile"
    )
