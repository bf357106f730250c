"""The gallery: one row per case, the scan with the true region first, then one column per map.

The layout is that of Figures 4 and 5 of Ron, Weiler-Sagie, Hazan (ICML 2022). Each map is scaled to
its own peak, which stands under it; a map that may not be believed says so in the picture. Drawn as
PNG, as SVG, and cell by cell for a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from pipelines.figures import MARGIN, Legend, ScanPicture, scale_lines, write_sides
from pipelines.marks import COLOURS, label_of, marked
from pipelines.pictures import QUIET, Canvas, wrap
from pipelines.svg_canvas import Surface, SvgCanvas

PICTURE = 240
"""Height of a picture in pixels."""
NARROWEST = 150
LINE = 18
BELOW = 4 * LINE + 20
"""Verdict, scale, note and room under a picture."""
LEGEND, BAR = 116, 132
"""Width and height of a colour bar with its words."""
BESIDE = 8
"""Maps beside each other; more go on below, after the scan again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One map of one case.

    Attributes
    ----------
    values
        Importance on any grid that covers the picture.
    word
        Its verdict; "" where it was not checked.
    note
        A short line under it, such as a score.
    """

    values: Float[np.ndarray, "map_row map_column"] = field(repr=False)
    signed: bool
    word: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryCase:
    """One row.

    Attributes
    ----------
    name
        Written over the row: pseudonym, true and predicted class.
    cells
        Name of the map -> the map.
    unit
        What the greys measure; "" where they mean nothing.
    """

    name: str
    scan: ScanPicture = field(repr=False)
    cells: Mapping[str, Cell] = field(repr=False)
    unit: str = "SUV"


def gallery_png(cases: Sequence[GalleryCase]) -> bytes:
    """Draw the gallery as PNG; maps keep the order of their first appearance.

    Raises
    ------
    ValueError
        Without cases, and for whatever ``figures.overlay`` refuses.
    """
    layout = _Layout.of(cases)
    canvas = Canvas(layout.height, layout.width)
    layout.draw(canvas)
    return canvas.png()


def gallery_svg(cases: Sequence[GalleryCase]) -> bytes:
    """Draw the same as SVG, with its words as text.

    Raises
    ------
    ValueError
        As ``gallery_png``.
    """
    layout = _Layout.of(cases)
    canvas = SvgCanvas(layout.height, layout.width)
    layout.draw(canvas)
    return canvas.svg()


def cell_png(case: GalleryCase, name: str = "") -> bytes:
    """Draw one picture of a row without words: a map, or the scan alone.

    Raises
    ------
    KeyError
        If the case has no such map.
    """
    picture = _picture(case, name)
    canvas = Canvas(picture.shape[0] + 2, picture.shape[1] + 2)
    canvas.paste(picture, 1, 1)
    return canvas.png()


def legend_png(cases: Sequence[GalleryCase]) -> bytes:
    """Draw the colour bars that the cases need.

    Raises
    ------
    ValueError
        Without cases.
    """
    layout = _Layout.of(cases)
    canvas = Canvas(BAR + MARGIN, LEGEND * len(layout.legend))
    layout.draw_legend(canvas, MARGIN, MARGIN, step=(LEGEND, 0))
    return canvas.png()


def columns_of(cases: Sequence[GalleryCase]) -> list[str]:
    """Return the names of all maps in the order of their first appearance."""
    return list(dict.fromkeys(name for case in cases for name in case.cells))


def _picture(case: GalleryCase, name: str) -> np.ndarray:
    if not name:
        return case.scan.draw(None, height=PICTURE)
    cell = case.cells[name]
    drawn = case.scan.draw(cell.values, height=PICTURE, signed=cell.signed)
    return marked(drawn, cell.word)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where everything stands; the same for every surface."""

    cases: Sequence[GalleryCase]
    blocks: Sequence[Sequence[str]]

    @classmethod
    def of(cls, cases: Sequence[GalleryCase]) -> "_Layout":
        if not cases:
            raise ValueError("no case to draw: a gallery needs at least one")
        names = columns_of(cases)
        blocks = [names[i : i + BESIDE] for i in range(0, len(names), BESIDE)] or [[]]
        return cls(cases=cases, blocks=blocks)

    @property
    def column(self) -> int:
        return max(NARROWEST, *(case.scan.width(PICTURE) for case in self.cases)) + MARGIN

    @property
    def row(self) -> int:
        return LINE + 6 + PICTURE + BELOW

    @property
    def block_height(self) -> int:
        return 2 * LINE + 8 + self.row * len(self.cases)

    @property
    def height(self) -> int:
        drawn = MARGIN + self.block_height * len(self.blocks)
        return max(drawn, BAR * len(self.legend) + 2 * LINE + 2 * MARGIN)

    @property
    def width(self) -> int:
        return 2 * MARGIN + self.column * (1 + len(self.blocks[0])) + LEGEND

    @property
    def legend(self) -> tuple[str, ...]:
        """Name the parts of the legend that these cases need."""
        signs = {cell.signed for case in self.cases for cell in case.cells.values()}
        needed = {
            "grey": bool(self.cases[0].unit),
            "unsigned": False in signs,
            "signed": True in signs,
            "contour": any(case.scan.mask is not None for case in self.cases),
        }
        return tuple(name for name, is_needed in needed.items() if is_needed) or ("unsigned",)

    def draw(self, surface: Surface) -> None:
        for number, names in enumerate(self.blocks):
            top = MARGIN + number * self.block_height
            for place, name in enumerate(["scan", *names]):
                left = MARGIN + place * self.column
                for line, text in enumerate(wrap(name, self.column - 8, size=15, lines=2)):
                    surface.write(text, left, top + LINE * line, weight="bold", size=15)
            for index, case in enumerate(self.cases):
                corner = MARGIN, top + 2 * LINE + 8 + self.row * index
                self._draw_row(surface, case, names, corner=corner)
        left = MARGIN + (1 + len(self.blocks[0])) * self.column
        self.draw_legend(surface, left, MARGIN + 2 * LINE + 8)

    def _draw_row(
        self,
        surface: Surface,
        case: GalleryCase,
        names: Sequence[str],
        *,
        corner: tuple[int, int],
    ) -> None:
        left, top = corner
        surface.write(case.name, left, top, colour=QUIET, size=15)
        top += LINE + 6
        surface.paste(_picture(case, ""), left, top)
        write_sides(surface, left, top + PICTURE + 8, case.scan.width(PICTURE))
        for place, name in enumerate(names, start=1):
            self._draw_cell(surface, case, name, corner=(left + place * self.column, top))

    def _draw_cell(
        self, surface: Surface, case: GalleryCase, name: str, *, corner: tuple[int, int]
    ) -> None:
        left, top = corner
        if name not in case.cells:
            surface.write("–", left, top, colour=QUIET)
            return
        cell = case.cells[name]
        surface.paste(_picture(case, name), left, top)
        below = top + PICTURE + 8
        surface.write(
            label_of(cell.word), left, below, size=14, colour=COLOURS[cell.word], weight="bold"
        )
        lines = (*scale_lines(cell.values, signed=cell.signed), cell.note)
        for line, text in enumerate(lines, start=1):
            surface.write(text, left, below + LINE * line, size=14, colour=QUIET)

    def draw_legend(
        self, surface: Surface, left: int, top: int, *, step: tuple[int, int] = (0, BAR)
    ) -> None:
        for place, name in enumerate(self.legend):
            part = Legend(
                surface, left=left + place * step[0], top=top + place * step[1], length=BAR - 52
            )
            if name == "grey":
                part.grey(self.cases[0].scan.black, self.cases[0].unit)
            elif name == "contour":
                part.contour()
            else:
                signed = name == "signed"
                part.map("± full" if signed else "full", signed=signed)
