"""Check every promise of a data set on disk, and say what does not hold."""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from preprocessing.errors import PreprocessingError
from preprocessing.layout import (
    DIGEST,
    LABEL,
    RESERVED,
    SAMPLE_ID,
    SUBJECT_ID,
    content_digest,
    file_sha256,
)
from preprocessing.manifest import CARD, CROISSANT, EXCLUSIONS, SAMPLES, SELF, read_manifest
from preprocessing.safe_hdf5 import fields_of, open_shard, read_column, read_texts, reading
from preprocessing.splits import check_disjoint

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What ``verify`` found.

    Attributes
    ----------
    problems
        One sentence per broken promise; empty where everything holds.
    counts
        ``shards``, ``samples``, ``subjects`` and ``files`` that were looked at.
    """

    problems: tuple[str, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """Where a shard holds a sample, and what it says about it."""

    sample_id: str
    subject_id: str
    split: str
    label: int
    shard: str
    row: int


def verify(path: Path | str, *, progress: Progress = lambda done, total: None) -> VerifyReport:
    """Re-hash every file, re-read every chunk, and check that tables, shards and counts agree.

    Parameters
    ----------
    path
        The data set's folder.
    progress
        Called with shards done and in all.
    """
    out = Path(path)
    try:
        manifest = read_manifest(out)
    except PreprocessingError as error:
        return VerifyReport(
            problems=(str(error),), counts={"shards": 0, "samples": 0, "subjects": 0, "files": 0}
        )
    rows: list[_Row] = []
    problems: list[str] = []
    if SELF not in manifest:
        problems.append("the manifest has no digest of itself, so damage to it could go unseen")
    for done, shard in enumerate(manifest["shards"], start=1):
        found, wrong = _check_shard(out, shard)
        rows += found
        problems += wrong
        progress(done, len(manifest["shards"]))
    problems += _file_problems(out, manifest)
    problems += _table_problems(out, manifest, rows)
    problems += _split_problems(rows)
    problems += _count_problems(out, manifest, rows)
    counts = {
        "shards": len(manifest["shards"]),
        "samples": len(rows),
        "subjects": len({row.subject_id for row in rows}),
        "files": len(manifest.get("files", {})),
    }
    return VerifyReport(problems=tuple(problems), counts=counts)


def _check_shard(out: Path, shard: Mapping[str, Any]) -> tuple[list[_Row], list[str]]:
    """Hash first: what does not hash is not given to HDF5."""
    name, path = shard["file"], out / shard["file"]
    if not path.is_file():
        return [], [f"{name} is missing"]
    problems: list[str] = []
    if "sha256" not in shard:
        problems.append(f"the manifest has no sha256 of {name}, so damage could go unseen")
    elif file_sha256(path) != shard["sha256"]:
        return [], [f"{name} is not the file that was written: its SHA-256 differs"]
    try:
        with open_shard(path) as file:
            fields = fields_of(file)
            rows = _rows(shard, fields)
            problems += _content_problems(name, fields, len(rows))
    except PreprocessingError as error:
        return [], [*problems, f"{name}: {error}"]
    if shard.get("rows", len(rows)) != len(rows):
        problems.append(f"{name} has {len(rows)} rows, the manifest says {shard['rows']}")
    return rows, problems


def _rows(shard: Mapping[str, Any], fields: dict[str, h5py.Dataset]) -> list[_Row]:
    labels = read_column(fields, LABEL)
    stem = Path(shard["file"]).stem
    samples = read_texts(fields, SAMPLE_ID) or [f"{stem}-{row}" for row in range(len(labels))]
    subjects = read_texts(fields, SUBJECT_ID) or samples
    return [
        _Row(
            sample_id=sample,
            subject_id=subject,
            split=shard["split"],
            label=int(label),
            shard=shard["file"],
            row=row,
        )
        for row, (sample, subject, label) in enumerate(zip(samples, subjects, labels, strict=True))
    ]


def _content_problems(name: str, fields: dict[str, h5py.Dataset], count: int) -> Iterator[str]:
    digests = read_texts(fields, DIGEST)
    content = {key: dataset for key, dataset in fields.items() if key not in RESERVED}
    for row in range(count):
        with reading():
            arrays = {key: np.asarray(dataset[row]) for key, dataset in content.items()}
        if digests is not None and content_digest(arrays) != digests[row]:
            yield f"{name}, row {row}: its values do not match their digest"


def _file_problems(out: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    for name in (SAMPLES, EXCLUSIONS, CARD, CROISSANT):
        if not (out / name).is_file():
            yield f"{name} is missing"
    for name, digest in manifest.get("files", {}).items():
        path = out / name
        if path.is_file() and file_sha256(path) != digest:
            yield f"{name} is not the file that was written: its SHA-256 differs"
    named = {shard["file"] for shard in manifest["shards"]}
    for folder in {(out / name).parent for name in named}:
        for path in sorted(folder.glob("*.h5")):
            if path.relative_to(out).as_posix() not in named:
                yield f"{path.relative_to(out).as_posix()} is not in the manifest"
    yield from _croissant_problems(out / CROISSANT)


def _croissant_problems(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or "@context" not in content:
        yield f"{CROISSANT} is no JSON-LD"


def _table_problems(out: Path, manifest: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    """Compare ``samples.csv`` with what the shards hold, both ways."""
    table = _table(out / SAMPLES)
    if table is None:
        return
    listed = {entry.get(SAMPLE_ID, ""): entry for entry in table}
    if len(listed) < len(table):
        yield f"{SAMPLES} lists {len(table) - len(listed)} samples twice"
    if len({row.sample_id for row in rows}) < len(rows):
        yield "two rows of the shards have the same sample_id"
    for row in rows:
        entry = listed.pop(row.sample_id, None)
        if entry is None:
            yield f"{row.shard}, row {row.row} is not in {SAMPLES}"
        else:
            yield from _row_problems(row, entry, manifest["classes"])
    if listed:
        yield f"{SAMPLES} lists {len(listed)} samples that no readable shard holds"


def _row_problems(row: _Row, entry: Mapping[str, str], classes: Sequence[str]) -> Iterator[str]:
    is_class = 0 <= row.label < len(classes)
    labels = {str(row.label), classes[row.label] if is_class else ""}
    allowed = {
        SUBJECT_ID: {row.subject_id},
        "split": {row.split},
        LABEL: labels,
        "shard": {row.shard, Path(row.shard).name},
        "row": {str(row.row)},
    }
    for column, values in allowed.items():
        if entry.get(column) not in values:
            yield f"{row.shard}, row {row.row}: '{column}' differs from {SAMPLES}"
    if not is_class and row.label != -1:
        yield f"{row.shard}, row {row.row}: label {row.label} names no class"


def _split_problems(rows: Sequence[_Row]) -> Iterator[str]:
    try:
        check_disjoint((row.subject_id, row.split) for row in rows)
    except PreprocessingError as error:
        yield str(error)


def _count_problems(out: Path, manifest: Mapping[str, Any], rows: Sequence[_Row]) -> Iterator[str]:
    counts = manifest.get("counts", {})
    files = counts.get("files")
    if files is None:
        yield "the manifest has no account of the files that were seen"
    else:
        parts = [files.get(key, 0) for key in ("used", "excluded", "skipped")]
        if files.get("seen") != sum(parts):
            yield f"{files.get('seen')} files were seen, but used, excluded and skipped are {parts}"
        excluded = _table(out / EXCLUSIONS) or []
        listed = sum(int(entry.get("files") or 0) for entry in excluded)
        if all("files" in entry for entry in excluded) and listed != files.get("excluded", 0):
            yield f"{EXCLUSIONS} accounts for {listed} files, the manifest for {parts[1]}"
    samples = counts.get("samples")
    found = Counter(row.split for row in rows)
    if isinstance(samples, dict) and any(found[key] != count for key, count in samples.items()):
        yield f"the shards hold {dict(sorted(found.items()))} samples, the manifest says {samples}"


def _table(path: Path) -> list[dict[str, str]] | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        return list(csv.DictReader(stream))
