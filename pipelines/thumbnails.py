"""What a contact sheet shows of each sample, small enough to come from another process.

Worker processes import this module: it needs no drawing library. Reading, shrinking and counting
the pictures of a shard is shared between them; putting a page together is not worth it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int64, UInt8

from pipelines.resampling import inverted_grey, resample
from preprocessing.safe_hdf5 import fields_of, open_shard, reading

THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH = 230, 130
WINDOW_SUV = 6.0
"""Black on a contact sheet; physicians read FDG between 0 and 5 to 7."""
HISTOGRAM_TOP_SUV = 15.0
HISTOGRAM_BINS = 150
BODY_SUV = 0.1
"""Projected pixels below are air, and would drown the body in a histogram."""
ROWS_PER_TASK = 16
SHOWN_PER_PATIENT = 4
"""Of data sets with many slices of each patient, these many show whether they are right."""
MOST_SHOWN = 2000
UNLABELLED = "no label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample as it is stored.

    Attributes
    ----------
    pixels
        The projection in SUV, or any picture scaled to 0..``WINDOW_SUV``.
    aspect
        Height over width of what the picture shows, in millimetres.
    """

    sample_id: str
    label: str
    split: str
    pixels: Float[np.ndarray, "row column"]
    aspect: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """One sample as a sheet shows it.

    Attributes
    ----------
    picture
        Inverted grey, in the proportions of what it shows.
    counts
        Pixels of the body in each bin of SUV; what lies above the last edge is in the last bin.
    """

    sample_id: str
    label: str
    split: str
    picture: UInt8[np.ndarray, "row column 3"]
    counts: Int64[np.ndarray, " bin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Samples of one shard.

    Attributes
    ----------
    shard
        The file.
    dataset
        What is shown: ``suv``, or ``image`` where rows hold no SUV.
    padded
        Pictures have the proportions of what they show.
    """

    shard: Path = field(repr=False)
    dataset: str
    padded: bool
    samples: tuple[Mapping[str, Any], ...] = field(repr=False)


def tasks(
    out: Path, manifest: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> list[Task]:
    """Cut the samples into tasks, split by split and within it in the order of the ids."""
    padded = bool(manifest.get("config", {}).get("keep_aspect", False))
    files = {Path(str(shard["file"])).name: str(shard["file"]) for shard in manifest["shards"]}
    order = sorted(samples, key=lambda sample: (str(sample["shard"]), int(sample["row"])))
    cut: list[Task] = []
    for shard, members in groupby(order, key=lambda sample: str(sample["shard"])):
        rows = tuple(members)
        cut.extend(
            Task(
                shard=out / files[Path(shard).name],
                dataset="suv" if has_suv(manifest) else "image",
                padded=padded,
                samples=rows[start : start + ROWS_PER_TASK],
            )
            for start in range(0, len(rows), ROWS_PER_TASK)
        )
    return cut


def shown(
    manifest: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Sequence[Mapping[str, Any]]:
    """Choose what sheets show: every projection; of other data sets, some of each patient's rows.

    The choice is spread evenly over the rows, and the same for the same samples.
    """
    if has_suv(manifest):
        return samples
    by_patient: dict[str, list[Mapping[str, Any]]] = {}
    for sample in sorted(samples, key=lambda sample: str(sample["sample_id"])):
        by_patient.setdefault(str(sample["subject_id"]), []).append(sample)
    some = [each for rows in by_patient.values() for each in _spread(rows, SHOWN_PER_PATIENT)]
    return _spread(some, MOST_SHOWN)


def _spread(rows: list[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    if len(rows) <= most:
        return rows
    return [rows[(2 * place + 1) * len(rows) // (2 * most)] for place in range(most)]


def has_suv(manifest: Mapping[str, Any]) -> bool:
    """Tell whether the rows of a data set hold SUV."""
    return "suv" in manifest.get("fields", ("suv",))


def thumbnails(task: Task) -> list[Thumbnail]:
    """Read and shrink the samples of a task.

    Raises
    ------
    ShardError
        The shard is not there or cannot be read.
    """
    return [thumbnail(row) for row in read_rows(task)]


def read_rows(task: Task) -> Iterator[Row]:
    """Read the samples of a task as they are stored; raises as ``thumbnails`` does."""
    with open_shard(task.shard) as file:
        fields = fields_of(file)
        for sample in task.samples:
            row = int(sample["row"])
            with reading():
                pixels = _picture(fields[task.dataset], row)
                aspect = 1.0 if task.padded else _aspect(fields, row)
            yield Row(
                sample_id=str(sample["sample_id"]),
                label=str(sample["label"] or sample.get("findings", "")) or UNLABELLED,
                split=str(sample["split"]),
                pixels=pixels,
                aspect=aspect,
            )


def thumbnail(row: Row) -> Thumbnail:
    """Fit a picture into the cell of a sheet and count its SUV."""
    aspect = min(max(row.aspect, 0.1), 10.0)
    width = min(THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT / aspect)
    rows, columns = round(width * aspect), round(width)
    small = resample(_binned(row.pixels, rows, columns), rows, columns)
    return Thumbnail(
        sample_id=row.sample_id,
        label=row.label,
        split=row.split,
        picture=inverted_grey(small, WINDOW_SUV),
        counts=_counts(row.pixels),
    )


def _counts(pixels: Float[np.ndarray, "row column"]) -> Int64[np.ndarray, " bin"]:
    body = pixels[pixels > BODY_SUV]
    bins = (body * (HISTOGRAM_BINS / HISTOGRAM_TOP_SUV)).astype(np.int64)
    return np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)


def _picture(dataset: h5py.Dataset, row: int) -> Float[np.ndarray, "row column"]:
    """Read a projection, or the last channel (FLAIR, of brains) scaled to the window of a sheet."""
    values = np.asarray(dataset[row], dtype=np.float32)
    if values.ndim == 2:
        return values
    channel = values[-1]
    low, high = float(channel.min()), float(channel.max())
    # Pictures without SUV are shown as they are, bright on dark: the sheet inverts.
    return WINDOW_SUV * (1 - (channel - low) / max(high - low, 1e-6))


def _aspect(fields: Mapping[str, h5py.Dataset], row: int) -> float:
    """Return height over width of the coronal projection, 1 where the row does not say."""
    if not {"volume_shape", "volume_affine"} <= fields.keys():
        return 1.0
    z, _, x = (int(count) for count in fields["volume_shape"][row])
    step_x, _, step_z = np.linalg.norm(np.asarray(fields["volume_affine"][row])[:3, :3], axis=0)
    width = x * float(step_x)
    return z * float(step_z) / width if width > 0 and z > 0 else 1.0


def _binned(
    pixels: Float[np.ndarray, "row column"], rows: int, columns: int
) -> Float[np.ndarray, "_row _column"]:
    """Average whole blocks while the picture stays at least as large as asked: most of the work."""
    high, wide = (
        max(factor for factor in range(1, size // wanted + 1) if size % factor == 0)
        if size > wanted
        else 1
        for size, wanted in zip(pixels.shape, (rows, columns), strict=True)
    )
    blocks = pixels.reshape(pixels.shape[0] // high, high, pixels.shape[1] // wide, wide)
    return blocks.mean(axis=(1, 3))
