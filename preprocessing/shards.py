"""HDF5 shards: write cases, assemble shards from them, open and verify a data set.

This is the room's door to data sets on disk; ``docs/shard-format.md`` specifies the layout.

::

    write_case  (workers)   samples of one case -> compressed chunks in one file
    write_shard (parent)    chunks of many cases -> one shard, without decompressing
    write_manifest          last of all: its presence means that the data set is complete
    open_dataset            what training reads
    verify                  re-hash and re-read everything
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from preprocessing.atomic_files import publish, require_space, reserve, sync, writing
from preprocessing.case_files import (
    CaseIndex,
    CaseRow,
    Chunk,
    difference_hash,
    opened,
    read_case,
    read_chunk,
    read_index,
    stored_bytes,
    write_case,
)
from preprocessing.dataset import Dataset, open_dataset
from preprocessing.errors import ShardError
from preprocessing.layout import (
    DIGEST,
    ENCODING_VERSION,
    LABEL,
    RESERVED,
    SAMPLE_ID,
    SHARD_TYPE,
    SUBJECT_ID,
    FieldSpec,
    Layout,
    check_layout,
    content_digest,
    create_column,
    create_field,
    describe_field,
    file_sha256,
    set_text,
)
from preprocessing.manifest import MANIFEST, read_manifest, write_manifest
from preprocessing.safe_hdf5 import fields_of, open_shard, read_column, reading
from preprocessing.verify import VerifyReport, verify

__all__ = [
    "MANIFEST",
    "CaseRow",
    "Dataset",
    "FieldSpec",
    "Layout",
    "ShardRecord",
    "VerifyReport",
    "content_digest",
    "difference_hash",
    "file_sha256",
    "open_dataset",
    "read_case",
    "read_manifest",
    "require_space",
    "verify",
    "write_case",
    "write_manifest",
    "write_shard",
]

# Space that HDF5's own records take: per dataset, and per chunk an entry of the B-tree.
DATASET_OVERHEAD_BYTES = 16_384
CHUNK_OVERHEAD_BYTES = 256
COLUMN_BYTES = 256  # label, pseudonyms and digest of one row


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """A finished shard as the manifest names it.

    Attributes
    ----------
    file
        Place in the data set, as ``shards/train-00000-of-00004.h5``.
    sha256
        Of the file's bytes.
    rows, split
        Number of samples, and the part they belong to.
    """

    file: str
    sha256: str
    rows: int
    split: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """One row to be: where its chunks are and what stands beside them."""

    path: Path
    row: CaseRow
    chunks: Mapping[str, Chunk]


def write_shard(
    path: Path,
    rows: Sequence[tuple[Path, int]],
    *,
    layout: Layout,
    split: str,
    name: str,
    classes: Sequence[str],
    workspace: Path,
    labels: Sequence[int] | None = None,
) -> ShardRecord:
    """Assemble one shard from case files, re-read it and give it its final name.

    The bytes depend on the arguments and the cases' content alone. A shard that stands there with
    the same bytes counts as written.

    Parameters
    ----------
    path
        ``OUT/shards/<split>-<number>-of-<count>.h5``.
    rows
        Case file and row in it, in the order of the shard's rows.
    name, classes, split
        Stored as attributes.
    workspace
        Folder for the ``.part`` file, on the disk of ``path``.
    labels
        In place of the labels in the case files.

    Raises
    ------
    ShardError
        ``NO_ROWS``, ``LABEL_RANGE``, ``SAMPLE_ID_REPEATED``, ``LAYOUT``, ``CASE_CORRUPT``, or
        ``READ_BACK`` where the disk does not return what was written.
    OutputError
        ``EXISTS`` where another shard has the name; else as ``atomic_files.writing``.
    """
    check_layout(layout)
    members = _members(rows, layout)
    values = [member.row.label for member in members] if labels is None else list(labels)
    _check_rows(members, values, classes)
    part = workspace / f"{path.name}.part"
    with writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A full disk must show before HDF5 opens the file: HDF5 does not survive a failed write.
        reserve(part, _size_bound(members))
        with h5py.File(part, "w", libver=("earliest", "v110")) as file:
            reserve(part, _size_bound(members))
            _set_attributes(file, split=split, name=name, classes=classes)
            _copy_chunks(file, members, layout)
            _write_columns(file, members, values)
            file.flush()
            size = file.id.get_filesize()
        _truncate(part, size)
        _compare(part, members, values)
        digest = file_sha256(part)
        publish(part, path)
        sync(path.parent.parent)
    return ShardRecord(
        file=f"{path.parent.name}/{path.name}", sha256=digest, rows=len(members), split=split
    )


def _members(rows: Sequence[tuple[Path, int]], layout: Layout) -> list[_Member]:
    indices: dict[Path, CaseIndex] = {}
    members: list[_Member] = []
    for path, number in rows:
        if path not in indices:
            with opened(path) as stream:
                indices[path] = read_index(stream)
        index = indices[path]
        chunks = index.chunks[number]
        if chunks.keys() != layout.keys():
            raise ShardError(
                "LAYOUT",
                f"a case file has the fields {sorted(chunks)}, the layout asks for "
                f"{sorted(layout)}: remove the output's temporary folder and build again",
            )
        members.append(_Member(path=path, row=index.rows[number], chunks=chunks))
    return members


def _check_rows(members: Sequence[_Member], labels: Sequence[int], classes: Sequence[str]) -> None:
    if not members:
        raise ShardError("NO_ROWS", "a shard needs at least one sample: leave the empty one out")
    if len(labels) != len(members):
        raise ShardError("LABEL_RANGE", f"{len(members)} samples have {len(labels)} labels")
    wrong = [label for label in labels if not -1 <= label < len(classes)]
    if wrong:
        raise ShardError(
            "LABEL_RANGE",
            f"label {wrong[0]} names none of the {len(classes)} classes: labels count from 0, and "
            "-1 means unlabelled",
        )
    names = {member.row.sample_id for member in members}
    if len(names) < len(members):
        raise ShardError(
            "SAMPLE_ID_REPEATED",
            f"{len(members)} samples have {len(names)} different sample_id: each needs its own",
        )


def _size_bound(members: Sequence[_Member]) -> int:
    """Return more bytes than the shard will have."""
    chunks = [chunk for member in members for chunk in member.chunks.values()]
    datasets = len(members[0].chunks) + len(RESERVED)
    columns = len(members) * COLUMN_BYTES
    return (
        sum(chunk.size + CHUNK_OVERHEAD_BYTES for chunk in chunks)
        + datasets * DATASET_OVERHEAD_BYTES
        + columns
    )


def _truncate(part: Path, size: int) -> None:
    with part.open("rb+") as stream:
        stream.truncate(size)


def _set_attributes(file: h5py.File, *, split: str, name: str, classes: Sequence[str]) -> None:
    set_text(file, "encoding-type", SHARD_TYPE)
    set_text(file, "encoding-version", ENCODING_VERSION)
    set_text(file, "dataset", name)
    set_text(file, "split", split)
    set_text(file, "classes", json.dumps(list(classes), ensure_ascii=False))


def _copy_chunks(file: h5py.File, members: Sequence[_Member], layout: Layout) -> None:
    fields = {
        name: create_field(file, name, layout[name], rows=len(members)) for name in sorted(layout)
    }
    for name, dataset in fields.items():
        describe_field(dataset, layout[name])
    for row, member in enumerate(members):
        with opened(member.path) as stream:
            for name, chunk in member.chunks.items():
                place = (row, *(0 for _ in layout[name].shape))
                fields[name].id.write_direct_chunk(
                    place, read_chunk(stream, chunk), filter_mask=chunk.filter_mask
                )


def _columns(members: Sequence[_Member], labels: Sequence[int]) -> dict[str, np.ndarray]:
    texts = {
        SAMPLE_ID: [member.row.sample_id for member in members],
        SUBJECT_ID: [member.row.subject_id for member in members],
        DIGEST: [member.row.digest for member in members],
    }
    columns = {name: np.array([text.encode() for text in values]) for name, values in texts.items()}
    return {LABEL: np.array(labels, dtype="<i8"), **columns}


def _write_columns(file: h5py.File, members: Sequence[_Member], labels: Sequence[int]) -> None:
    for name, values in _columns(members, labels).items():
        create_column(file, name, values)


def _compare(part: Path, members: Sequence[_Member], labels: Sequence[int]) -> None:
    """Re-read the closed file, every chunk of it, and compare with what was meant."""
    with open_shard(part) as file:
        fields = fields_of(file)
        for name, values in _columns(members, labels).items():
            if not np.array_equal(read_column(fields, name), values):
                raise _read_back()
        for row, member in enumerate(members):
            with opened(member.path) as stream, reading():
                for name, chunk in member.chunks.items():
                    place = (row, *(0 for _ in fields[name].shape[1:]))
                    stored = fields[name].id.read_direct_chunk(place)
                    # The case was checked against its hashes when its chunks were copied.
                    if stored != (chunk.filter_mask, stored_bytes(stream, chunk)):
                        raise _read_back()


def _read_back() -> ShardError:
    return ShardError(
        "READ_BACK",
        "the disk does not return what was written to a shard, which was dropped: check the disk "
        "and run the same command again",
    )
