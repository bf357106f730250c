"""Pictures for a human eye beside a data set: samples on contact sheets, SUV per class.

What a check by program cannot see (a patient upside down, burned-in text, the wrong organ, half a
body) is seen on a contact sheet within seconds. Sheets hold shortened sample ids, labels and splits
only. The same data set gives the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Int64
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipelines.pictures import QUIET, Canvas, encode, printable
from pipelines.thumbnails import (
    HISTOGRAM_BINS,
    HISTOGRAM_TOP_SUV,
    THUMBNAIL_WIDTH,
    Thumbnail,
    has_suv,
    shown,
    tasks,
    thumbnails,
)
from preprocessing.atomic_files import atomic_write
from preprocessing.records import Mapper

PER_SHEET = 100
COLUMNS = 10
_GAP, _CAPTION, _HEADER, _TITLE_COLUMNS = 10, 34, 34, 3
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
_SHORT_ID = 8
_LONGEST_LABEL = 14


def write_all(
    out: Path,
    manifest: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    *,
    mapper: Mapper = map,
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
    chosen = shown(manifest, samples)
    pictures = chain.from_iterable(mapper(thumbnails, tasks(out, manifest, chosen)))
    told = f"{len(samples)} samples"
    if len(chosen) < len(samples):
        told = f"{len(chosen)} of {told}"
    if not has_suv(manifest):
        return write_contact_sheets(pictures, folder, total=len(chosen), told=told)
    histogram = SuvHistogram(tuple(manifest["classes"]))
    watched = histogram.watching(pictures)
    written = write_contact_sheets(watched, folder, total=len(chosen), told=told)
    path = folder / "suv-histogram.png"
    write_suv_histogram(histogram, path)
    return (*written, path)


def write_contact_sheets(
    pictures: Iterable[Thumbnail], folder: Path, *, total: int, told: str
) -> tuple[Path, ...]:
    """Write samples as inverted grey thumbnails, ``PER_SHEET`` to a page.

    Parameters
    ----------
    total
        How many there are.
    told
        What the title of each page says of their number.
    """
    pages = max(1, -(-total // PER_SHEET))
    written: list[Path] = []
    page: list[Thumbnail] = []

    def finish() -> None:
        path = folder / f"contact-sheet-{len(written) + 1:03d}.png"
        write_contact_sheet(page, path, title=f"page {len(written) + 1} of {pages}   {told}")
        written.append(path)
        page.clear()

    for each in pictures:
        page.append(each)
        if len(page) == PER_SHEET:
            finish()
    if page:
        finish()
    return tuple(written)


def write_contact_sheet(pictures: Sequence[Thumbnail], path: Path, *, title: str = "") -> None:
    """Write one page of thumbnails, each with its short id, label and split."""
    height, width = max((len(each.picture) for each in pictures), default=0), THUMBNAIL_WIDTH
    columns = max(1, min(COLUMNS, len(pictures)))
    lines = -(-len(pictures) // columns)
    canvas = Canvas(
        height=_HEADER + lines * (height + _CAPTION + _GAP) + _GAP,
        width=max(columns, _TITLE_COLUMNS) * (width + _GAP) + _GAP,
    )
    canvas.write(title, _GAP, _GAP, size=14, weight="bold")
    for index, each in enumerate(pictures):
        line, column = divmod(index, columns)
        top = _HEADER + line * (height + _CAPTION + _GAP)
        middle = _GAP + column * (width + _GAP) + width // 2
        canvas.paste(each.picture, middle - each.picture.shape[1] // 2, top)
        below = top + height
        canvas.write(each.sample_id[:_SHORT_ID], middle, below + 5, size=11, align="center")
        caption = f"{_short(each.label)}, {each.split}"
        canvas.write(caption, middle, below + 19, size=11, colour=QUIET, align="center")
    atomic_write(path, canvas.png())


def _short(label: str) -> str:
    fits = len(label) <= _LONGEST_LABEL
    return label if fits else label[: _LONGEST_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"


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

    def watching(self, pictures: Iterable[Thumbnail]) -> Iterator[Thumbnail]:
        """Pass samples on and add their counts."""
        for each in pictures:
            self.add(each)
            yield each

    def add(self, picture: Thumbnail) -> None:
        """Add one sample's counts."""
        before = self.counts.get(picture.label, np.zeros(HISTOGRAM_BINS, dtype=np.int64))
        self.counts[picture.label] = before + picture.counts
        self.samples[picture.label] = self.samples.get(picture.label, 0) + 1


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
