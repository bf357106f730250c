"""Every picture as PNG bytes: overlays and panels here, plots for reviewers in ``plots``.

A scan is drawn as a nuclear-medicine physician reads it: inverted grey, white is no uptake and
black is ``suv_max``; the patient's right is on the viewer's left. All scans share one window unless
the caller says otherwise, so that two pictures can be compared. A map lies on top in colour that
fades with its importance, scaled to its own peak; the colour bar says how many times the map's mean
that peak is, so that a map without contrast cannot pass for a finding. Maps of single pixels, whose
peaks are specks, are in full colour from their 99th percentile on, and say so.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from pipelines.finding_plots import calibration_of_each, roc_of_each
from pipelines.marks import COLOURS, label_of, marked
from pipelines.pictures import (
    CONTOUR,
    QUIET,
    Canvas,
    blend,
    outline,
    shrink_mask,
    wrap,
)
from pipelines.plots import Estimate, bars, calibration, confusion, curves, roc
from pipelines.resampling import inverted_grey, resample
from pipelines.svg_canvas import Surface

__all__ = [
    "SUV_BLACK",
    "Estimate",
    "Legend",
    "ScanPicture",
    "bars",
    "calibration",
    "calibration_of_each",
    "confusion",
    "curves",
    "full_colour",
    "overlay",
    "picture_extent_mm",
    "roc",
    "roc_of_each",
    "scale_lines",
    "write_sides",
]

SUV_BLACK = 7.0
"""SUV shown black unless the caller says otherwise: liver is grey, brain and bladder are black."""
PICTURE_HEIGHT = 640
MARGIN = 18
BAR_COLUMN = 124
COARSE_CELLS = 64 * 64
"""Up to so many cells, a map is scaled to its peak."""
FULL_COLOUR = 0.99
"""Share of a finer map's cells, zeros aside, that are not in full colour."""
NEGATIVE_TOLERANCE = 1e-6
"""Share of the peak below which a negative value of an unsigned map is rounding."""


def overlay(
    suv: Float[np.ndarray, "row column"],
    values: Float[np.ndarray, "map_row map_column"] | None = None,
    *,
    mask: Shaped[np.ndarray, "mask_row mask_column"] | None = None,
    suv_max: float | None = None,
    unit: str = "SUV",
    extent_mm: tuple[float, float] | None = None,
    signed: bool = False,
    word: str | None = None,
    title: str = "",
    caption: str = "",
) -> bytes:
    """Draw a map over a coronal SUV projection.

    Parameters
    ----------
    suv
        The projection in SUV, head up, the patient's right in column 0.
    values
        Importance on any grid that covers the picture; None draws the scan alone.
    mask
        True region, drawn as a contour.
    suv_max
        SUV shown black; ``SUV_BLACK`` by default.
    unit
        What the grey bar says it measures; "" draws no bar, for a picture whose greys mean nothing.
    extent_mm
        Height and width of the picture, to show the patient in proportion; None means square
        pixels. See ``picture_extent_mm``.
    signed
        Values below zero speak against the class: blue below zero, red above.
    word
        Verdict over the map, written above the caption; a doubtful map is framed, a refused one
        struck through. "" says that it was not checked, None says nothing.
    title, caption
        Plain text above and below.

    Returns
    -------
    bytes
        PNG; equal input gives equal bytes.

    Raises
    ------
    ValueError
        If a picture is empty or not finite, shapes do not fit, or a map that is not ``signed``
        holds negative values.
    """
    scan = ScanPicture(suv=suv, mask=mask, suv_max=suv_max, extent_mm=extent_mm)
    height, width = PICTURE_HEIGHT, scan.width(PICTURE_HEIGHT)
    total = max(width, 300) + BAR_COLUMN + 2 * MARGIN
    heading = wrap(title, total - 2 * MARGIN, size=20, lines=2)
    footer = wrap(caption, total - 2 * MARGIN, lines=5)
    top = MARGIN + 27 * len(heading) + 24
    below = top + height + 12
    bottom = below + 23 * (len(footer) + (word is not None))
    canvas = Canvas(bottom + MARGIN, total)
    for line, text in enumerate(heading):
        canvas.write(text, MARGIN, MARGIN + 27 * line, size=20, weight="bold")
    left = MARGIN + (total - 2 * MARGIN - BAR_COLUMN - width) // 2
    picture = scan.draw(values, height=height, signed=signed)
    canvas.paste(marked(picture, word or ""), left, top)
    write_sides(canvas, left, top - 23, width)
    legend = Legend(canvas, left=left + width + 24, top=top, length=150)
    legend.grey(scan.black, unit)
    if values is not None:
        legend.map(_bar_label(values, signed=signed), signed=signed)
    if mask is not None:
        legend.contour()
    if word is not None:
        canvas.write(label_of(word), MARGIN, below, colour=COLOURS[word], weight="bold")
        below += 23
    for line, text in enumerate(footer):
        canvas.write(text, MARGIN, below + 23 * line, colour=QUIET)
    return canvas.png()


def picture_extent_mm(
    volume_affine: Float[np.ndarray, "4 4"],
    volume_shape: Int[np.ndarray, "3"],
    *,
    keep_aspect: bool = False,
) -> tuple[float, float]:
    """Return height and width in millimetres of the coronal picture of a volume.

    ``volume_affine`` maps (x, y, z, 1) to LPS millimetres and ``volume_shape`` counts z, y, x, as
    in the shards. Pictures made with ``keep_aspect`` are padded to a square.
    """
    spacing_x, _, spacing_z = np.linalg.norm(volume_affine[:3, :3], axis=0)
    height, width = float(spacing_z * volume_shape[0]), float(spacing_x * volume_shape[2])
    longer = max(height, width)
    return (longer, longer) if keep_aspect else (height, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPicture:
    """A projection with what is drawn on it besides a map; the fields are those of ``overlay``."""

    suv: Float[np.ndarray, "row column"]
    mask: Shaped[np.ndarray, "mask_row mask_column"] | None = None
    suv_max: float | None = None
    extent_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_picture("the SUV projection", self.suv)
        if self.mask is not None and self.mask.shape != self.suv.shape:
            raise ValueError(f"mask {self.mask.shape} does not fit the picture {self.suv.shape}")
        if not self.black > 0:
            raise ValueError(f"suv_max is {self.black}: the window must end above SUV 0")
        if self.extent_mm is not None and not min(self.extent_mm) > 0:
            raise ValueError(f"extent_mm is {self.extent_mm}: height and width must be positive")

    @property
    def black(self) -> float:
        """Return the SUV shown black."""
        return SUV_BLACK if self.suv_max is None else self.suv_max

    def width(self, height: int) -> int:
        """Return the width that keeps the patient in proportion."""
        tall, wide = self.suv.shape if self.extent_mm is None else self.extent_mm
        return round(height * min(max(wide / tall, 0.2), 2.0))

    def draw(
        self,
        values: Float[np.ndarray, "map_row map_column"] | None,
        *,
        height: int,
        signed: bool = False,
    ) -> UInt8[np.ndarray, "_height _width 3"]:
        """Draw the projection, a map over it, and the true region's contour."""
        width = self.width(height)
        picture = inverted_grey(resample(self.suv, height, width), self.black)
        if values is not None:
            full = full_colour(values, signed=signed)  # refuses what cannot be resampled
            smooth = resample(values, height, width)
            picture = blend(picture, smooth, peak=full, signed=signed)
        if self.mask is not None:
            picture = outline(picture, shrink_mask(self.mask, height, width))
        return picture


def _check_picture(name: str, pixels: Float[np.ndarray, "row column"]) -> None:
    if pixels.size == 0:
        raise ValueError(f"{name} is empty: shape {pixels.shape}")
    if not np.isfinite(pixels).all():
        count = int(np.count_nonzero(~np.isfinite(pixels)))
        raise ValueError(f"{name} holds {count} values that are not finite")


def _peak(values: Float[np.ndarray, "row column"], *, signed: bool) -> float:
    _check_picture("the map", values)
    largest = float(np.abs(values).max())
    lowest = float(values.min())
    if not signed and lowest < -NEGATIVE_TOLERANCE * largest:
        raise ValueError(f"the map holds negative values (down to {lowest:.3g}): draw it as signed")
    return largest


def full_colour(values: Float[np.ndarray, "row column"], *, signed: bool) -> float:
    """Return the magnitude from which a map is in full colour.

    Raises
    ------
    ValueError
        If the map is empty or not finite, or is not ``signed`` and holds negative values.
    """
    peak = _peak(values, signed=signed)
    if values.size <= COARSE_CELLS or peak == 0:
        return peak
    magnitudes = np.abs(values[values != 0])
    return float(np.quantile(magnitudes, FULL_COLOUR))


def scale_lines(values: Float[np.ndarray, "row column"], *, signed: bool) -> tuple[str, ...]:
    """Say how large a map's peak is and, where that is another value, what has full colour.

    A magnitude for maps with signs, a multiple of the mean for others.
    """
    peak, full = _peak(values, signed=signed), full_colour(values, signed=signed)
    if peak == 0:
        return ("zero everywhere",)
    line = f"peak {_amount(peak, values, signed=signed)}"
    return (
        (line,) if full == peak else (line, f"full colour {_amount(full, values, signed=signed)}")
    )


def _amount(value: float, values: Float[np.ndarray, "row column"], *, signed: bool) -> str:
    if signed:
        return f"±{value:.2g}"
    return f"{value / float(values.mean(dtype=np.float64)):.3g} × mean"


def _bar_label(values: Float[np.ndarray, "row column"], *, signed: bool) -> str:
    peak, full = _peak(values, signed=signed), full_colour(values, signed=signed)
    if peak == 0:
        return "zero everywhere"
    label = _amount(full, values, signed=signed).replace(" × ", " ×\n")
    return label if full == peak else f"{label}\nor more"


def write_sides(canvas: Surface, left: int, top: int, width: int) -> None:
    """Say which side of the patient lies where, above a picture."""
    canvas.write("R", left, top, colour=QUIET, weight="bold")
    canvas.write("L", left + width, top, colour=QUIET, weight="bold", align="right")


@dataclass(slots=True)
class Legend:
    """Colour bars and what the contour means, one below the other."""

    canvas: Surface
    left: int
    top: int
    length: int

    def grey(self, black: float, unit: str) -> None:
        """Show what the greys measure; nothing without a unit."""
        if unit:
            bar = np.repeat(self._ramp(1.0, 0.0), 20, axis=1)
            self._bar(unit, inverted_grey(bar, 1.0), high=f"≥ {black:g}")

    def map(self, high: str, *, signed: bool = False) -> None:
        """Show every colour as it looks over white, on the left, and over black."""
        ground = np.zeros((self.length, 20, 3), dtype=np.uint8)
        ground[:, :10] = 255
        ramp = np.repeat(self._ramp(1.0, -1.0 if signed else 0.0), 20, axis=1)
        bar = blend(ground, ramp, peak=1.0, signed=signed)
        self._bar("map", bar, high=high, zero=0.5 if signed else 1.0)

    def contour(self) -> None:
        """Say what a contour means."""
        for text in ("contour:", "true region"):
            self.canvas.write(text, self.left, self.top, colour=CONTOUR)
            self.top += 21

    def _bar(
        self, name: str, bar: UInt8[np.ndarray, "row column 3"], *, high: str, zero: float = 1.0
    ) -> None:
        self.canvas.write(name, self.left, self.top, weight="bold")
        self.canvas.paste(bar, self.left, self.top + 24)
        for line, text in enumerate(high.split("\n")):
            self.canvas.write(text, self.left + 28, self.top + 21 + 20 * line)
        bottom = self.top + 24 + round(zero * self.length)
        self.canvas.write("0", self.left + 28, bottom - 14)
        self.top += self.length + 52

    def _ramp(self, high: float, low: float) -> Float[np.ndarray, "_length 1"]:
        return np.linspace(high, low, self.length, dtype=np.float32)[:, None]
