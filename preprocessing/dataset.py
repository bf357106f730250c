"""A data set on disk as training sees it: rows, whatever process or thread asks for them."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int64, Shaped

from preprocessing.errors import ShardError
from preprocessing.layout import LABEL, RESERVED, SAMPLE_ID, SUBJECT_ID, FieldSpec, layout_of
from preprocessing.manifest import SAMPLES, read_manifest
from preprocessing.records import Example
from preprocessing.row_reader import RowReader
from preprocessing.safe_hdf5 import fields_of, open_shard, read_column, read_texts, reading
from preprocessing.splits import SPLITS

MAX_OPEN_SHARDS = 64
PLACE_COLUMNS = frozenset({SAMPLE_ID, SUBJECT_ID, "split", LABEL, "shard", "row"})


class Dataset:
    """A view over the rows of a data set; make one with ``open_dataset``.

    Shards are opened on first use, once per process: a view may be pickled, inherited by ``fork``
    and read by several threads. Rows are in the order of the manifest's shards.

    Attributes
    ----------
    name
        As ``fdg-pet``.
    classes
        Label i means ``classes[i]``.
    labels
        Class of each row of the view, -1 where it has none.
    sample_ids, subject_ids
        Pseudonyms of each row of the view.
    """

    def __init__(self, store: "_Store", rows: Int64[np.ndarray, " row"]) -> None:
        self._store = store
        self._rows = rows
        self.name = store.name
        self.classes = store.classes
        self.labels: Int64[np.ndarray, " row"] = store.labels[rows]
        self.labels.flags.writeable = False
        self.sample_ids: tuple[str, ...] = tuple(store.sample_ids[row] for row in rows)
        self.subject_ids: tuple[str, ...] = tuple(store.subject_ids[row] for row in rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        """Return row ``i`` of the view with all its fields and what ``samples.csv`` adds."""
        row = self._row(i)
        return Example(
            sample_id=self._store.sample_ids[row],
            subject_id=self._store.subject_ids[row],
            arrays=self.read(i, self.fields),
            label=int(self._store.labels[row]),
            provenance=self._store.provenance.get(self._store.sample_ids[row], {}),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}, rows={len(self)}, fields={list(self.fields)})"

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The whole data set's manifest."""
        return MappingProxyType(self._store.manifest)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that ``read`` knows."""
        return tuple(self._store.layout)

    @property
    def layout(self) -> Mapping[str, FieldSpec]:
        """The fields that every shard has, beside labels and pseudonyms."""
        return MappingProxyType(self._store.layout)

    @property
    def splits(self) -> tuple[str, ...]:
        """Split of each row of the view."""
        return tuple(self._store.splits[row] for row in self._rows)

    def split(self, name: str) -> "Dataset":
        """Return the rows of one split; none where the data set leaves that split empty.

        Raises
        ------
        ShardError
            ``UNKNOWN_SPLIT``.
        """
        known = sorted({*SPLITS, *self._store.splits})
        if name not in known:
            raise ShardError(
                "UNKNOWN_SPLIT", f"there is no split '{name}': the splits are {', '.join(known)}"
            )
        chosen = [row for row in self._rows if self._store.splits[row] == name]
        return Dataset(self._store, np.array(chosen, dtype=np.int64))

    def read(
        self, i: int, names: Sequence[str] = ("image",)
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Read only the named fields of row ``i``: the fast way, for training.

        Threads that read at the same time do not wait for one another where a row is one chunk of
        a common kind.

        Raises
        ------
        ShardError
            ``FIELD_MISSING`` where a name is not in ``fields``, ``SHARD_CORRUPT`` where a checksum
            does not match.
        IndexError
            Where the view has no row ``i``.
        """
        for name in names:
            if name not in self._store.layout:
                raise ShardError(
                    "FIELD_MISSING",
                    f"the data set has no field '{name}', it has {', '.join(self.fields)}",
                )
        return self._store.read(self._row(i), names)

    def _row(self, i: int) -> int:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of a view with {len(self)} rows")
        return int(self._rows[i])


def open_dataset(path: Path | str) -> Dataset:
    """Open a complete data set, by whatever software it was written.

    Declarations are checked here, values when they are read; ``verify`` checks everything.

    Parameters
    ----------
    path
        The folder with ``manifest.json``.

    Raises
    ------
    ShardError
        ``INCOMPLETE`` without a manifest, ``SCHEMA_VERSION`` where it or a shard comes from another
        version of the format, ``SHARD_MISSING``, ``FIELD_SHAPE`` where shards disagree,
        ``LABEL_RANGE``, and the codes of ``safe_hdf5.fields_of``.

    Examples
    --------
    >>> from preprocessing.shards import open_dataset
    >>> train = open_dataset("out").split("train")  # doctest: +SKIP
    >>> train.read(0, ["image"])["image"].shape  # doctest: +SKIP
    (1, 512, 512)
    """
    out = Path(path)
    manifest = read_manifest(out)
    classes = tuple(manifest["classes"])
    parts = [_open_part(out, shard, classes) for shard in manifest["shards"]]
    store = _Store(
        out=out,
        manifest=manifest,
        layout=_common_layout([part.layout for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        sample_ids=tuple(text for part in parts for text in part.sample_ids),
        subject_ids=tuple(text for part in parts for text in part.subject_ids),
        splits=tuple(part.split for part in parts for _ in part.sample_ids),
        starts=np.cumsum([0, *(len(part.labels) for part in parts)]),
    )
    return Dataset(store, np.arange(len(store.labels), dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What one shard declares, and its small columns."""

    layout: Mapping[str, FieldSpec]
    labels: Int64[np.ndarray, " row"]
    sample_ids: tuple[str, ...]
    subject_ids: tuple[str, ...]
    split: str


class _Store:
    """What all views of a data set share: columns in memory, shards opened when asked."""

    def __init__(
        self,
        *,
        out: Path,
        manifest: dict[str, Any],
        layout: dict[str, FieldSpec],
        labels: Int64[np.ndarray, " row"],
        sample_ids: tuple[str, ...],
        subject_ids: tuple[str, ...],
        splits: tuple[str, ...],
        starts: Int64[np.ndarray, " edge"],
    ) -> None:
        self.name: str = manifest["name"]
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.manifest, self.layout = manifest, layout
        self.labels, self.sample_ids, self.subject_ids = labels, sample_ids, subject_ids
        self.splits = splits
        self._out, self._starts = out, starts
        self._open: dict[int, tuple[h5py.File, Mapping[str, RowReader]]] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open shards to this process."""
        return {**self.__dict__, "_open": {}}

    def read(self, row: int, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Read fields of one row of the data set."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        place = row - int(self._starts[shard])
        # The file is named here so that it stays open while another thread drops it.
        _file, fields = self._opened(shard)
        with reading():
            return {name: fields[name][place] for name in names}

    @cached_property
    def provenance(self) -> Mapping[str, Mapping[str, str]]:
        """Sample to what the recipe added to ``samples.csv``, as text; empty without that file."""
        path = self._out / SAMPLES
        if not path.is_file():
            return {}
        with path.open(newline="", encoding="utf-8") as stream:
            return {
                row.get(SAMPLE_ID, ""): {
                    key: value for key, value in row.items() if key not in PLACE_COLUMNS
                }
                for row in csv.DictReader(stream)
            }

    def _opened(self, shard: int) -> tuple[h5py.File, Mapping[str, RowReader]]:
        if self._process != os.getpid():
            # Forked: a file left open here would be shared with the parent, position and all.
            inherited, self._open, self._process = self._open, {}, os.getpid()
            for file, _ in inherited.values():
                file.close()
        found = self._open.get(shard)
        if found is None:
            file = open_shard(_place(self._out, self.manifest["shards"][shard]))
            fields = fields_of(file)
            with reading():
                found = file, {name: RowReader(file, fields[name]) for name in self.layout}
            self._open[shard] = found
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.pop(next(iter(self._open)), None)
        return found


def _open_part(out: Path, shard: Mapping[str, Any], classes: Sequence[str]) -> _Part:
    with open_shard(_place(out, shard)) as file:
        fields = fields_of(file)
        labels = read_column(fields, LABEL).astype(np.int64)
        if labels.size and not -1 <= labels.min() <= labels.max() < len(classes):
            raise ShardError(
                "LABEL_RANGE",
                f"labels run from {labels.min()} to {labels.max()}, but there are {len(classes)} "
                "classes: labels count from 0, and -1 means unlabelled",
            )
        if shard.get("rows", len(labels)) != len(labels):
            raise ShardError(
                "ROWS",
                f"a shard has {len(labels)} rows, the manifest says {shard['rows']}: copy or build "
                "the data set again",
            )
        stem = Path(shard["file"]).stem
        names = read_texts(fields, SAMPLE_ID) or tuple(f"{stem}-{i}" for i in range(len(labels)))
        return _Part(
            layout=layout_of({key: fields[key] for key in fields if key not in RESERVED}),
            labels=labels,
            sample_ids=names,
            subject_ids=read_texts(fields, SUBJECT_ID) or names,
            split=shard["split"],
        )


def _place(out: Path, shard: Mapping[str, Any]) -> Path:
    """Return the shard's path; the manifest has checked that its text stays inside."""
    path = out / shard["file"]
    if not path.resolve().is_relative_to(out.resolve()):
        raise ShardError(
            "LINK",
            "a shard is a symbolic link that leads out of the data set's folder: copy the file "
            "itself there",
        )
    return path


def _common_layout(layouts: Sequence[Mapping[str, FieldSpec]]) -> dict[str, FieldSpec]:
    first, *others = layouts
    common = {name: spec for name, spec in first.items() if all(name in other for other in others)}
    for name, spec in common.items():
        for other in others:
            if (other[name].shape, other[name].dtype) != (spec.shape, spec.dtype):
                raise ShardError(
                    "FIELD_SHAPE",
                    f"field '{name}' is {spec.dtype}{spec.shape} in one shard and "
                    f"{other[name].dtype}{other[name].shape} in another: rows of one data set have "
                    "one shape",
                )
    return common
