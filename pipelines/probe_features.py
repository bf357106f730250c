"""What must not matter about a picture: outline, acquisition, place in the scan, stored size.

Of the pixels only zero or not zero is looked at. One picture is in memory at a time; what is kept
of each is about two kilobytes. Reading and decompressing is shared between processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from scipy.ndimage import minimum_filter, uniform_filter
from scipy.stats import rankdata

from preprocessing.records import Mapper
from preprocessing.safe_hdf5 import fields_of, open_shard, reading
from preprocessing.shards import difference_hash

ACQUISITION = (
    "vendor",
    "suv_route",
    "suv_factor",
    "uptake_min",
    "slices",
    "spacing_z_mm",
    "spacing_y_mm",
    "spacing_x_mm",
    "view",
    "original_rows",
    "original_columns",
    "pixel_mode",
    "scale",
)
"""Columns of ``samples.csv`` that say how a scan was made."""
PLACE = ("slice", "slice_index", "z", "z_index", "side")
"""Columns that say where in the scan a picture lies."""
OUTLINE_PART, ACQUISITION_PART, PLACE_PART, SIZE_PART = (
    "outline",
    "acquisition",
    "place in the scan",
    "stored size",
)
LABEL_SETS = "labels"
"""Field of a shard with one entry per class, where a picture may show several."""
OUTLINE_CELLS = 16
THUMBNAIL_CELLS = 32
FULL_CELL = 0.99
"""Share of non-zero pixels from which a cell counts as inside: scans have zeros of their own."""
MIDDLE_GREY = 127
MOST_CATEGORIES = 20
ROWS_PER_TASK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRows:
    """What the probe knows of each sample.

    Attributes
    ----------
    parts
        Name of a part to its features, one row per sample; NaN where a value is missing.
    outline
        Share of non-zero pixels in each cell of a coarse grid.
    truth
        One column per class: 1, 0, or NaN where the sample has no label. Where a picture may show
        several classes, a last column says whether it shows any.
    hashes, thumbnails
        Of the first channel, for finding near-duplicates only.
    """

    parts: Mapping[str, Float[np.ndarray, "n _"]] = field(repr=False)
    outline: Float[np.ndarray, "n cell"] = field(repr=False)
    truth: Float[np.ndarray, "n k"] = field(repr=False)
    subjects: tuple[str, ...] = field(repr=False)
    splits: tuple[str, ...] = field(repr=False)
    hashes: UInt8[np.ndarray, "n 64"] = field(repr=False)
    thumbnails: UInt8[np.ndarray, "n thumbnail"] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """What is kept of one picture."""

    shape: Float[np.ndarray, " f"]
    outline: Float[np.ndarray, " cell"]
    stored_bytes: float
    label_set: UInt8[np.ndarray, " k"] | None
    hash_bits: UInt8[np.ndarray, " 64"]
    thumbnail: UInt8[np.ndarray, " thumbnail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """Some rows of one shard."""

    shard: Path = field(repr=False)
    rows: tuple[int, ...]


def read_rows(
    out: Path,
    manifest: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    *,
    mapper: Mapper = map,
) -> ProbeRows:
    """Look at every picture of a data set once.

    Parameters
    ----------
    out, manifest, samples
        The folder, the content of its manifest, and the rows of ``samples.csv``; the manifest need
        not stand in the folder yet.

    Raises
    ------
    ShardError
        A shard cannot be read.
    """
    order = sorted(samples, key=lambda sample: (str(sample["shard"]), int(sample["row"])))
    found = list(chain.from_iterable(mapper(_pictures, list(_tasks(out, manifest, order)))))
    classes = [str(name) for name in manifest["classes"]]
    return ProbeRows(
        parts={
            OUTLINE_PART: np.stack([item.shape for item in found]),
            ACQUISITION_PART: _columns(order, ACQUISITION),
            PLACE_PART: _columns(order, PLACE),
            SIZE_PART: np.array([[item.stored_bytes] for item in found]),
        },
        outline=np.stack([item.outline for item in found]),
        truth=_truth(found, order, classes),
        subjects=tuple(str(sample["subject_id"]) for sample in order),
        splits=tuple(str(sample["split"]) for sample in order),
        hashes=np.stack([item.hash_bits for item in found]),
        thumbnails=np.stack([item.thumbnail for item in found]),
    )


def silhouette(
    image: Shaped[np.ndarray, "channel row column"],
) -> Bool[np.ndarray, "row column"]:
    """Return where any channel is not zero: all that the probe sees of the pixels."""
    return np.any(image != 0, axis=0)


def facing_left(
    mask: Bool[np.ndarray, "row column"],
) -> tuple[Bool[np.ndarray, "row column"], bool]:
    """Mirror a silhouette that lies mostly right of the middle; say whether it was.

    What an outline tells on either side then needs to be learnt once only. With some dozens of
    patients, each with a disease on one side, a classifier would else learn little but sides.
    """
    by_column = mask.sum(axis=0)
    moment = by_column @ (2 * np.arange(len(by_column)) - len(by_column) + 1)
    is_right = bool(moment > 0)
    return (mask[:, ::-1] if is_right else mask), is_right


def shape_features(mask: Bool[np.ndarray, "row column"]) -> Float[np.ndarray, " f"]:
    """Area, bounding box, its extent, centroid, proportions, share of the box that is filled.

    Lengths and areas are shares of the picture; all are 0 where it is empty.
    """
    by_row, by_column = mask.sum(axis=1), mask.sum(axis=0)
    area = by_row.sum()
    if not area:
        return np.zeros(11)
    rows, columns = np.flatnonzero(by_row), np.flatnonzero(by_column)
    height, width = mask.shape
    box = (rows[0] / height, (rows[-1] + 1) / height, columns[0] / width, (columns[-1] + 1) / width)
    extent = (box[1] - box[0], box[3] - box[2])
    centroid = (
        (by_row @ np.arange(height)) / (area * height),
        (by_column @ np.arange(width)) / (area * width),
    )
    share = area / mask.size
    proportions = (extent[1] / extent[0], share / (extent[0] * extent[1]))
    return np.array([share, *box, *extent, *centroid, *proportions])


def cell_means(picture: Shaped[np.ndarray, "row column"], cells: int) -> Float[np.ndarray, " cell"]:
    """Mean over the cells of a coarse grid, at most one per pixel."""
    rows = np.unique(np.linspace(0, picture.shape[0], cells + 1).astype(int))
    columns = np.unique(np.linspace(0, picture.shape[1], cells + 1).astype(int))
    sums = np.add.reduceat(picture, rows[:-1], axis=0, dtype=np.float32)
    sums = np.add.reduceat(sums, columns[:-1], axis=1)
    return (sums / np.outer(np.diff(rows), np.diff(columns))).ravel()


def _tasks(
    out: Path, manifest: Mapping[str, Any], order: Sequence[Mapping[str, Any]]
) -> Iterator[_Task]:
    files = {Path(str(shard["file"])).name: str(shard["file"]) for shard in manifest["shards"]}
    for shard, members in groupby(order, key=lambda sample: str(sample["shard"])):
        rows = tuple(int(sample["row"]) for sample in members)
        for start in range(0, len(rows), ROWS_PER_TASK):
            some = rows[start : start + ROWS_PER_TASK]
            yield _Task(shard=out / files[Path(shard).name], rows=some)


def _pictures(task: _Task) -> list[_Picture]:
    with open_shard(task.shard) as file, reading():
        fields = fields_of(file)
        return [_picture(fields, row) for row in task.rows]


def _picture(fields: Mapping[str, h5py.Dataset], row: int) -> _Picture:
    image = np.asarray(fields["image"][row])
    mask, is_mirrored = facing_left(silhouette(image))
    labels = fields.get(LABEL_SETS)
    return _Picture(
        shape=np.append(shape_features(mask), is_mirrored),
        outline=cell_means(mask, OUTLINE_CELLS),
        stored_bytes=_stored_bytes(fields["image"], row),
        label_set=None if labels is None else np.asarray(labels[row]).astype(np.uint8),
        hash_bits=np.unpackbits(np.frombuffer(bytes.fromhex(difference_hash(image[0])), np.uint8)),
        thumbnail=detail(image[0]),
    )


def detail(picture: Shaped[np.ndarray, "row column"]) -> UInt8[np.ndarray, " thumbnail"]:
    """Rank the cells of a coarse grid by how much they stand out from those around them.

    Cells with background in or beside them stay middle grey: two heads share their outline, and
    what they share must not make them alike. A change of contrast hardly changes ranks.
    """
    means, full = (
        cell_means(values, THUMBNAIL_CELLS).reshape(-1, _columns_of(values))
        for values in (picture, picture != 0)
    )
    inside = minimum_filter(full, 3, mode="constant") > FULL_CELL
    stands_out = (means - uniform_filter(means, 3))[inside]
    shown = np.full(means.shape, MIDDLE_GREY, dtype=np.uint8)
    if stands_out.size and np.ptp(stands_out) > 0:
        ranks = rankdata(stands_out) / (len(stands_out) + 1)
        shown[inside] = np.rint(2 * MIDDLE_GREY * ranks).astype(np.uint8)
    return shown.ravel()


def _columns_of(picture: Shaped[np.ndarray, "row column"]) -> int:
    return min(picture.shape[1], THUMBNAIL_CELLS)


def _stored_bytes(image: h5py.Dataset, row: int) -> float:
    """Compressed size of one picture, NaN where a chunk is not one picture."""
    if image.chunks != (1, *image.shape[1:]):
        return np.nan
    info = image.id.get_chunk_info_by_coord((row, *(0 for _ in image.shape[1:])))
    return float(info.size)


def _truth(
    found: Sequence[_Picture], order: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> Float[np.ndarray, "n k"]:
    sets = [item.label_set for item in found if item.label_set is not None]
    if len(sets) == len(found) and all(len(labels) == len(classes) for labels in sets):
        truth = np.stack(sets).astype(float)
        return np.concatenate([truth, truth.any(axis=1, keepdims=True)], axis=1)
    index = {str(at): at for at in range(len(classes))}
    index |= {name: at for at, name in enumerate(classes)}
    truth = np.full((len(order), len(classes)), np.nan)
    for row, sample in enumerate(order):
        at = index.get(str(sample["label"]), -1)
        if at >= 0:
            truth[row] = np.arange(len(classes)) == at
    return truth


def _columns(
    samples: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Float[np.ndarray, "n _"]:
    """Numbers as they are, with a column for what is missing; words as one column for each."""
    blocks = [np.empty((len(samples), 0))]
    for name in names:
        texts = [str(sample.get(name, "")) for sample in samples]
        if not any(texts):
            continue
        blocks.append(_numbers(texts) if _are_numbers(texts) else _categories(texts))
    return np.concatenate(blocks, axis=1)


def _are_numbers(texts: Sequence[str]) -> bool:
    try:
        return bool(np.isfinite([float(text) for text in texts if text]).all())
    except ValueError:
        return False


def _numbers(texts: Sequence[str]) -> Float[np.ndarray, "n 2"]:
    values: Float[np.ndarray, " n"] = np.array([float(text) if text else np.nan for text in texts])
    return np.stack([values, np.isnan(values)], axis=1)


def _categories(texts: Sequence[str]) -> Float[np.ndarray, "n _"]:
    words, counts = np.unique(np.asarray(texts, dtype=str), return_counts=True)
    common: Int64[np.ndarray, " c"] = np.argsort(-counts, kind="stable")[:MOST_CATEGORIES]
    return (np.asarray(texts)[:, None] == words[common][None, :]).astype(float)
