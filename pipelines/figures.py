"""Every picture as PNG bytes: overlays and panels here, plots for reviewers in ``plots``.

A scan is drawn as a nuclear-medicine physician reads it: inverted grey, white is no uptake and
black is ``suv_max``; the patient's right is on the viewer's left. All scans share one window unless
the caller says otherwise, so that two pictures can be compared. A map lies on top in colour that
fades with its importance, scaled to its own peak; the colour bar says how many times the map's mean
that peak is, so that a map without contrast cannot pass for a finding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

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

__all__ = [
    "SUV_BLACK",
    "Estimate",
    "PanelCase",
    "bars",
    "calibration",
    "confusion",
    "curves",
    "overlay",
    "panel",
    "picture_extent_mm",
    "roc",
]

SUV_BLACK = 7.0
"""SUV shown black unless the caller says otherwise: liver is grey, brain and bladder are black."""
PICTURE_HEIGHT = 640
PANEL_HEIGHT = 400
MARGIN = 18
BAR_COLUMN = 124
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
    scan = _Scan(suv=suv, mask=mask, suv_max=suv_max, extent_mm=extent_mm)
    height, width = PICTURE_HEIGHT, scan.width(PICTURE_HEIGHT)
    total = max(width, 300) + BAR_COLUMN + 2 * MARGIN
    heading = wrap(title, total - 2 * MARGIN, size=20, lines=2)
    footer = wrap(caption, total - 2 * MARGIN, lines=5)
    top = MARGIN + 27 * len(heading) + 24
    bottom = top + height + 12 + 23 * len(footer)
    canvas = Canvas(bottom + MARGIN, total)
    for line, text in enumerate(heading):
        canvas.write(text, MARGIN, MARGIN + 27 * line, size=20, weight="bold")
    left = MARGIN + (total - 2 * MARGIN - BAR_COLUMN - width) // 2
    canvas.paste(scan.draw(values, height=height, signed=signed), left, top)
    _write_sides(canvas, left, top - 23, width)
    legend = _Legend(canvas, left=left + width + 24, top=top, length=150)
    legend.grey(scan.black, unit)
    if values is not None:
        legend.map(_peak_label(values, signed=signed).replace(" × ", " ×\n"), signed=signed)
    if mask is not None:
        legend.contour()
    for line, text in enumerate(footer):
        canvas.write(text, MARGIN, top + height + 12 + 23 * line, colour=QUIET)
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
class PanelCase:
    """One row of a gallery.

    Attributes
    ----------
    name
        Written over the row: pseudonym, true and predicted class.
    suv
        The projection in SUV.
    maps
        Method -> importance on any grid that covers the picture.
    mask
        True region, drawn as a contour on every picture of the row.
    extent_mm
        Height and width of the picture; None means square pixels.
    notes
        Method -> one short line under its picture (a score, a verdict).
    """

    name: str
    suv: Float[np.ndarray, "row column"]
    maps: Mapping[str, Float[np.ndarray, "_map_row _map_column"]]
    mask: Shaped[np.ndarray, "mask_row mask_column"] | None = None
    extent_mm: tuple[float, float] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


def panel(
    cases: Sequence[PanelCase],
    *,
    suv_max: float | None = None,
    unit: str = "SUV",
    signed: Sequence[str] = (),
) -> bytes:
    """Draw a gallery: one row per case, the scan first and then one column per method.

    Methods keep the order of their first appearance. Every map is scaled to its own peak, which is
    written under it as a multiple of the map's mean (of the largest magnitude where the method is
    among ``signed``). A case without a method shows a dash.

    Raises
    ------
    ValueError
        Without cases, and for whatever ``overlay`` refuses.
    """
    if not cases:
        raise ValueError("no case to draw: a panel needs at least one")
    scans = [
        _Scan(suv=case.suv, mask=case.mask, suv_max=suv_max, extent_mm=case.extent_mm)
        for case in cases
    ]
    methods = list(dict.fromkeys(method for case in cases for method in case.maps))
    column = max(170, *(scan.width(PANEL_HEIGHT) for scan in scans)) + MARGIN
    row = PANEL_HEIGHT + 80
    canvas = Canvas(
        MARGIN + 24 + row * len(cases), 2 * MARGIN + column * (1 + len(methods)) + BAR_COLUMN
    )
    for index, method in enumerate(["scan", *methods]):
        canvas.write(method, MARGIN + index * column, MARGIN, weight="bold", size=16)
    for index, (case, scan) in enumerate(zip(cases, scans, strict=True)):
        top = MARGIN + 24 + row * index
        canvas.write(case.name, MARGIN, top, colour=QUIET)
        canvas.paste(scan.draw(None, height=PANEL_HEIGHT), MARGIN, top + 24)
        _write_sides(canvas, MARGIN, top + 24 + PANEL_HEIGHT + 8, scan.width(PANEL_HEIGHT))
        for place, method in enumerate(methods, start=1):
            corner = MARGIN + place * column, top + 24
            _draw_cell(canvas, case, scan, method=method, signed=method in signed, corner=corner)
    left = MARGIN + (1 + len(methods)) * column
    _panel_legend(canvas, scans, methods=methods, signed=signed, unit=unit, left=left)
    return canvas.png()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """A projection with what is drawn on it besides a map."""

    suv: Float[np.ndarray, "row column"]
    mask: Shaped[np.ndarray, "mask_row mask_column"] | None
    suv_max: float | None
    extent_mm: tuple[float, float] | None

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
        return SUV_BLACK if self.suv_max is None else self.suv_max

    def width(self, height: int) -> int:
        tall, wide = self.suv.shape if self.extent_mm is None else self.extent_mm
        return round(height * min(max(wide / tall, 0.2), 2.0))

    def draw(
        self,
        values: Float[np.ndarray, "map_row map_column"] | None,
        *,
        height: int,
        signed: bool = False,
    ) -> UInt8[np.ndarray, "_height _width 3"]:
        width = self.width(height)
        picture = inverted_grey(resample(self.suv, height, width), self.black)
        if values is not None:
            peak = _peak(values, signed=signed)
            smooth = resample(values, height, width)
            picture = blend(picture, smooth, peak=peak, signed=signed)
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


def _peak_label(values: Float[np.ndarray, "row column"], *, signed: bool) -> str:
    peak = _peak(values, signed=signed)
    if peak == 0:
        return "zero everywhere"
    if signed:
        return f"±{peak:.2g}"
    return f"{peak / float(values.mean(dtype=np.float64)):.3g} × mean"


def _write_sides(canvas: Canvas, left: int, top: int, width: int) -> None:
    canvas.write("R", left, top, colour=QUIET, weight="bold")
    canvas.write("L", left + width, top, colour=QUIET, weight="bold", align="right")


def _draw_cell(
    canvas: Canvas,
    case: PanelCase,
    scan: _Scan,
    *,
    method: str,
    signed: bool,
    corner: tuple[int, int],
) -> None:
    left, top = corner
    if method not in case.maps:
        canvas.write("–", left, top, colour=QUIET)
        return
    values = case.maps[method]
    canvas.paste(scan.draw(values, height=PANEL_HEIGHT, signed=signed), left, top)
    lines = f"peak {_peak_label(values, signed=signed)}", case.notes.get(method, "")
    for line, text in enumerate(lines):
        canvas.write(text, left, top + PANEL_HEIGHT + 8 + 18 * line, size=14, colour=QUIET)


def _panel_legend(
    canvas: Canvas,
    scans: Sequence[_Scan],
    *,
    methods: Sequence[str],
    signed: Sequence[str],
    unit: str,
    left: int,
) -> None:
    legend = _Legend(canvas, left=left, top=MARGIN + 48, length=80)
    legend.grey(scans[0].black, unit)
    if set(methods) - set(signed):
        legend.map("peak")
    if set(methods) & set(signed):
        legend.map("± peak", signed=True)
    if any(scan.mask is not None for scan in scans):
        legend.contour()


@dataclass(slots=True)
class _Legend:
    """Colour bars and what the contour means, one below the other."""

    canvas: Canvas
    left: int
    top: int
    length: int

    def grey(self, black: float, unit: str) -> None:
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
