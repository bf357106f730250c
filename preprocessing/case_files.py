"""One file per derived case: compressed chunks that a shard takes over byte for byte.

A worker compresses and inflates again, the parent only copies. The file is private to a build::

    magic, 8 bytes
    chunks as HDF5 stores them (shuffled, deflated, checksummed), row by row, fields in name order
    index: JSON with the rows, the notes, and place and BLAKE2b of every chunk
    length of the index, 8 bytes little-endian; BLAKE2b of the index, 16 bytes

Every byte is under a hash, so a torn or damaged file is seen and derived again.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np
from jaxtyping import Shaped, UInt8

from preprocessing.atomic_files import atomic_write
from preprocessing.chunk_filters import stored_chunk, unlike
from preprocessing.errors import ShardError
from preprocessing.layout import (
    DIGEST_BYTES,
    Layout,
    check_layout,
    combined_digest,
    conformed,
    create_field,
    field_digest,
)
from preprocessing.records import Example, Exclusion

MAGIC = b"DWCASE2\n"
FOOTER_BYTES = 8 + DIGEST_BYTES
HASH_SIDE = 8


class Chunk(NamedTuple):
    """Place of one stored chunk in a case file, and how to check it."""

    offset: int
    size: int
    filter_mask: int
    blake2b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """One sample of a case file, without its arrays.

    Attributes
    ----------
    sample_id, subject_id, label, provenance
        As in ``Example``.
    digest
        BLAKE2b of all arrays, 32 hex digits: ``layout.content_digest``.
    image_digest
        ``layout.field_digest`` of ``image``: equal pictures of two patients have it in common.
    perceptual_hash
        64-bit difference hash of the picture in hex; near-duplicates differ in few bits.
    """

    sample_id: str
    subject_id: str
    label: int
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)
    digest: str
    image_digest: str
    perceptual_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseIndex:
    """Rows of a case file and, row by row, the place of each field's chunk.

    ``notes`` are the parts of the case that were left out: ``Derivation.notes``.
    """

    rows: tuple[CaseRow, ...]
    chunks: tuple[Mapping[str, Chunk], ...]
    notes: tuple[Exclusion, ...] = ()


def write_case(
    path: Path, examples: Sequence[Example], *, layout: Layout, notes: Sequence[Exclusion] = ()
) -> tuple[CaseRow, ...]:
    """Compress the samples of one case into one file, decode them again and compare.

    The file appears under its name complete or not at all, and replaces an earlier one.

    Parameters
    ----------
    notes
        Kept beside the rows, so that a build that goes on tells what was left out as well.

    Raises
    ------
    ShardError
        ``LAYOUT`` where a sample does not fit the layout, ``READ_BACK`` where what was compressed
        does not decode to what was given.
    OutputError
        As ``atomic_files.writing``.
    """
    check_layout(layout)
    stored = [conformed(example.arrays, layout) for example in examples]
    body, chunks = _compressed(stored, layout)
    rows = [_row_of(example, arrays) for example, arrays in zip(examples, stored, strict=True)]
    index = json.dumps(
        {
            "rows": [_plain(row) for row in rows],
            "chunks": chunks,
            "notes": [_plain(note) for note in notes],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    footer = len(index).to_bytes(8, "little") + _blake2b(index).digest()
    atomic_write(path, b"".join((MAGIC, *body, index, footer)))
    return tuple(rows)


def read_case(path: Path) -> CaseIndex:
    """Return what a case file holds after checking every byte of it.

    Raises
    ------
    ShardError
        ``CASE_CORRUPT``: the case has to be derived again.
    """
    with opened(path) as stream:
        index = read_index(stream)
        end = len(MAGIC)
        for chunk in _in_order(index):
            if chunk.offset != end:
                raise _corrupt()
            read_chunk(stream, chunk)
            end += chunk.size
        if end != _index_place(stream)[0]:
            raise _corrupt()
    return index


def opened(path: Path) -> BinaryIO:
    """Open a case file; ``CASE_CORRUPT`` where it is gone."""
    try:
        return path.open("rb")
    except OSError:
        raise _corrupt() from None


def read_index(stream: BinaryIO) -> CaseIndex:
    """Read and check the index of an open case file.

    Raises
    ------
    ShardError
        ``CASE_CORRUPT``.
    """
    stream.seek(0)
    if stream.read(len(MAGIC)) != MAGIC:
        raise _corrupt()
    start, size, digest = _index_place(stream)
    stream.seek(start)
    content = stream.read(size)
    if _blake2b(content).digest() != digest:
        raise _corrupt()
    index = json.loads(content)
    chunks = tuple(
        {name: Chunk(*place) for name, place in sorted(row.items())} for row in index["chunks"]
    )
    return CaseIndex(
        rows=tuple(CaseRow(**row) for row in index["rows"]),
        chunks=chunks,
        notes=tuple(Exclusion(**note) for note in index["notes"]),
    )


def read_chunk(stream: BinaryIO, chunk: Chunk) -> bytes:
    """Read one stored chunk; ``CASE_CORRUPT`` where it is not what was written."""
    content = stored_bytes(stream, chunk)
    if _blake2b(content).hexdigest() != chunk.blake2b:
        raise _corrupt()
    return content


def stored_bytes(stream: BinaryIO, chunk: Chunk) -> bytes:
    """Read one stored chunk, unchecked."""
    stream.seek(chunk.offset)
    return stream.read(chunk.size)


def difference_hash(picture: Shaped[np.ndarray, "row column"]) -> str:
    """Return 64 bits, as hex, that say in which cells of an 8 x 9 grid brightness rises rightwards.

    Pictures that differ by noise, scaling or compression differ in few bits.
    """
    rows = np.linspace(0, picture.shape[0], HASH_SIDE + 1).astype(int)[:-1]
    columns = np.linspace(0, picture.shape[1], HASH_SIDE + 2).astype(int)[:-1]
    if len(set(rows)) < len(rows) or len(set(columns)) < len(columns):
        return "0" * (HASH_SIDE * HASH_SIDE // 4)  # too small to have cells
    sums = np.add.reduceat(np.add.reduceat(picture, rows, axis=0, dtype=float), columns, axis=1)
    widths = np.diff([*columns, picture.shape[1]])
    means = sums / widths
    return np.packbits(means[:, 1:] > means[:, :-1]).tobytes().hex()


def _compressed(
    samples: Sequence[Mapping[str, Shaped[np.ndarray, "..."]]], layout: Layout
) -> tuple[list[bytes], list[dict[str, Chunk]]]:
    """Make HDF5's chunks; return them and their places in the case file."""
    body: list[bytes] = []
    places: list[dict[str, Chunk]] = []
    end = len(MAGIC)
    for arrays in samples:
        places.append({})
        for name, array in arrays.items():
            content = stored_chunk(array)
            places[-1][name] = Chunk(end, len(content), 0, _blake2b(content).hexdigest())
            body.append(content)
            end += len(content)
    if samples:
        _decode_by_hdf5(body[: len(layout)], samples[0], layout)
    return body, places


def _decode_by_hdf5(
    chunks: Sequence[bytes], arrays: Mapping[str, Shaped[np.ndarray, "..."]], layout: Layout
) -> None:
    """Let HDF5 itself read the first sample of a case: its chunks were made outside HDF5."""
    with h5py.File(
        secrets.token_hex(8), "w", driver="core", backing_store=False, rdcc_nbytes=0
    ) as file:
        for content, (name, array) in zip(chunks, arrays.items(), strict=True):
            dataset = create_field(file, name, layout[name], rows=1)
            dataset.id.write_direct_chunk((0, *(0 for _ in array.shape)), content)
            try:
                decoded = np.asarray(dataset[0])
            except OSError:
                raise unlike() from None
            if not np.array_equal(_bytes_of(decoded), _bytes_of(array)):
                raise unlike()


def _plain(record: Any) -> dict[str, Any]:
    """Return the fields of a flat record; ``asdict`` would copy every value."""
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _bytes_of(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, " byte"]:
    """View values as bytes, so that NaN equals itself."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _row_of(example: Example, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> CaseRow:
    digests = {name: field_digest(name, array) for name, array in arrays.items()}
    return CaseRow(
        sample_id=example.sample_id,
        subject_id=example.subject_id,
        label=int(example.label),
        provenance=dict(example.provenance),
        digest=combined_digest(digests),
        image_digest=digests["image"],
        perceptual_hash=difference_hash(arrays["image"][0]),
    )


def _index_place(stream: BinaryIO) -> tuple[int, int, bytes]:
    """Return start and length of the index and its digest."""
    total = stream.seek(0, 2)
    if total < len(MAGIC) + FOOTER_BYTES:
        raise _corrupt()
    stream.seek(total - FOOTER_BYTES)
    footer = stream.read(FOOTER_BYTES)
    size = int.from_bytes(footer[:8], "little")
    start = total - FOOTER_BYTES - size
    if start < len(MAGIC):
        raise _corrupt()
    return start, size, footer[8:]


def _in_order(index: CaseIndex) -> Iterator[Chunk]:
    for chunks in index.chunks:
        yield from chunks.values()


def _blake2b(content: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES)


def _corrupt() -> ShardError:
    return ShardError(
        "CASE_CORRUPT",
        "a case file of an unfinished build is missing, cut off or damaged: run the same command "
        "again, the case is derived anew",
    )
