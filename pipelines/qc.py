"""Pictures for a human eye beside a data set: every projection on contact sheets, SUV per class.

What a check by program cannot see (a patient upside down, burned-in text, the wrong organ, half a
body) is seen on a contact sheet within seconds. Sheets hold shortened sample ids, labels and splits
only. The same data set gives the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import h5py
import matplotlib
import numpy as np
from jaxtyping import Float, Int64, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipelines.pictures import QUIET, Canvas, encode, inverted_grey, printable, resample
from preprocessing.atomic_files import atomic_write
from preprocessing.safe_hdf5 import fields_of, open_shard, reading

PER_SHEET = 100
COLUMNS = 10
THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH = 230, 130
WINDOW_SUV = 6.0
"""Black on a contact sheet; physicians read FDG between 0 and 5 to 7."""
HISTOGRAM_TOP_SUV = 15.0
HISTOGRAM_BINS = 150
BODY_SUV = 0.1
"""Projected pixels below are air, and would drown the body in a histogram."""
_GAP, _CAPTION, _HEADER, _TITLE_COLUMNS = 10, 34, 34, 3
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
_SHORT_ID = 8
_UNLABELLED = "no label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample as a sheet shows it.

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


def write_all(
    out: Path, manifest: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> tuple[Path, ...]:
    """Write ``qc/contact-sheet-*.png`` and, where rows hold SUV, ``qc/suv-histogram.png``.

    Raises
    ------
    ShardError
        If a shard cannot be read.
    OutputError
        If the disk is full or refuses the files.
    """
    folder = out / "qc"
    folder.mkdir(parents=True, exist_ok=True)
    histogram = SuvHistogram(tuple(manifest["classes"])) if _has_suv(manifest) else None
    rows = read_rows(out, manifest, samples)
    if histogram is not None:
        rows = histogram.watching(rows)
    written = write_contact_sheets(rows, folder, total=len(samples))
    if histogram is None:
        return written
    path = folder / "suv-histogram.png"
    write_suv_histogram(histogram, path)
    return (*written, path)


def read_rows(
    out: Path, manifest: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> Iterator[Row]:
    """Read what a sheet shows, split by split and within it in the order of the ids."""
    key, padded = _field(manifest), bool(manifest.get("config", {}).get("keep_aspect", False))
    files = {Path(str(shard["file"])).name: str(shard["file"]) for shard in manifest["shards"]}
    order = sorted(samples, key=lambda sample: (str(sample["shard"]), int(sample["row"])))
    for shard, members in groupby(order, key=lambda sample: str(sample["shard"])):
        with open_shard(out / files[Path(shard).name]) as file:
            fields = fields_of(file)
            for sample in members:
                row = int(sample["row"])
                with reading():
                    pixels = _picture(fields[key], row)
                    aspect = 1.0 if padded else _aspect(fields, row)
                yield Row(
                    sample_id=str(sample["sample_id"]),
                    label=str(sample["label"]) or _UNLABELLED,
                    split=str(sample["split"]),
                    pixels=pixels,
                    aspect=aspect,
                )


def write_contact_sheets(rows: Iterable[Row], folder: Path, *, total: int) -> tuple[Path, ...]:
    """Write all samples as inverted grey thumbnails, ``PER_SHEET`` to a page.

    Parameters
    ----------
    total
        How many samples there are, for the pages' titles.
    """
    pages = max(1, -(-total // PER_SHEET))
    written: list[Path] = []
    page: list[Row] = []

    def finish() -> None:
        path = folder / f"contact-sheet-{len(written) + 1:03d}.png"
        title = f"page {len(written) + 1} of {pages}   {total} samples"
        write_contact_sheet(page, path, title=title)
        written.append(path)
        page.clear()

    for row in rows:
        page.append(row)
        if len(page) == PER_SHEET:
            finish()
    if page:
        finish()
    return tuple(written)


def write_contact_sheet(rows: Sequence[Row], path: Path, *, title: str = "") -> None:
    """Write one page of thumbnails, each with its short id, label and split."""
    pictures = [_thumbnail(row) for row in rows]
    height, width = max((len(picture) for picture in pictures), default=0), THUMBNAIL_WIDTH
    columns = max(1, min(COLUMNS, len(rows)))
    lines = -(-len(rows) // columns)
    canvas = Canvas(
        height=_HEADER + lines * (height + _CAPTION + _GAP) + _GAP,
        width=max(columns, _TITLE_COLUMNS) * (width + _GAP) + _GAP,
    )
    canvas.write(title, _GAP, _GAP, size=14, weight="bold")
    for index, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        line, column = divmod(index, columns)
        top = _HEADER + line * (height + _CAPTION + _GAP)
        middle = _GAP + column * (width + _GAP) + width // 2
        canvas.paste(picture, middle - picture.shape[1] // 2, top)
        below = top + height
        canvas.write(row.sample_id[:_SHORT_ID], middle, below + 5, size=11, align="center")
        caption = f"{row.label}, {row.split}"
        canvas.write(caption, middle, below + 19, size=11, colour=QUIET, align="center")
    atomic_write(path, canvas.png())


class SuvHistogram:
    """Counts of projected SUV for each class, gathered in passing.

    Attributes
    ----------
    edges
        Bin edges in g/mL; what lies above the last edge is counted in the last bin.
    counts
        Class name to counts; samples without label have a name of their own.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.edges = np.linspace(0.0, HISTOGRAM_TOP_SUV, HISTOGRAM_BINS + 1)
        empty = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
        self.counts: dict[str, Int64[np.ndarray, " bin"]] = {name: empty.copy() for name in classes}
        self.samples = dict.fromkeys(classes, 0)

    def watching(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Pass rows on and count their pixels."""
        for row in rows:
            self.add(row)
            yield row

    def add(self, row: Row) -> None:
        """Count one sample's pixels above ``BODY_SUV``."""
        body = row.pixels[row.pixels > BODY_SUV]
        bins = (body * (HISTOGRAM_BINS / HISTOGRAM_TOP_SUV)).astype(np.int64)
        counts = np.bincount(np.minimum(bins, HISTOGRAM_BINS - 1), minlength=HISTOGRAM_BINS)
        before = self.counts.get(row.label, np.zeros(HISTOGRAM_BINS, dtype=np.int64))
        self.counts[row.label] = before + counts
        self.samples[row.label] = self.samples.get(row.label, 0) + 1


def write_suv_histogram(histogram: SuvHistogram, path: Path) -> None:
    """Plot how often each projected SUV occurs, one line per class, as shares of the body."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"text.parse_math": False, "font.size": 11})
        figure = Figure(figsize=(7.5, 4.5), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        for index, (name, counts) in enumerate(histogram.counts.items()):
            if not counts.any():
                continue
            axes.stairs(
                counts / counts.sum(),
                histogram.edges,
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_DASHES[index % len(_DASHES)],
                label=f"{printable(name)} (n = {histogram.samples[name]})",
                linewidth=1.6,
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
        axes.set_xlim(0.0, HISTOGRAM_TOP_SUV)
        axes.set_xlabel(f"projected SUV (g/mL); the last bin holds all above {HISTOGRAM_TOP_SUV:g}")
        axes.set_ylabel("share of the body's pixels")
        axes.grid(color="#e3e6ea")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
        content = encode(figure)
    atomic_write(path, content)


def _has_suv(manifest: Mapping[str, Any]) -> bool:
    return "suv" in manifest.get("fields", ("suv",))


def _field(manifest: Mapping[str, Any]) -> str:
    return "suv" if _has_suv(manifest) else "image"


def _picture(dataset: h5py.Dataset, row: int) -> Float[np.ndarray, "row column"]:
    """Read a projection, or the first channel of a picture scaled to the window of a sheet."""
    values = np.asarray(dataset[row], dtype=np.float32)
    if values.ndim == 2:
        return values
    channel = values[0]
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


def _thumbnail(row: Row) -> UInt8[np.ndarray, "row column 3"]:
    """Fit a picture into the cell of a sheet, in the proportions of what it shows."""
    aspect = min(max(row.aspect, 0.1), 10.0)
    width = min(THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT / aspect)
    rows, columns = round(width * aspect), round(width)
    return inverted_grey(resample(_binned(row.pixels, rows, columns), rows, columns), WINDOW_SUV)


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
