"""A canvas with the interface of ``pictures.Canvas`` that becomes SVG: words stay words.

Pictures are embedded as PNG, so that the file needs no other. The same input gives the same bytes.
"""

import base64
import io
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipelines.pictures import INK, printable

CAPITAL = 0.73
"""Height of DejaVu Sans's capitals over its size."""
ANCHORS = {"left": "start", "center": "middle", "right": "end"}


@runtime_checkable
class Surface(Protocol):
    """What pictures are pasted and words are written on."""

    def paste(
        self, picture: UInt8[np.ndarray, "row column 3"], left: int, top: int, *, frame: bool = True
    ) -> None:
        """Put a picture down, with a hair line around it."""
        ...

    def write(
        self,
        text: str,
        left: int,
        top: int,
        *,
        size: int = 17,
        colour: tuple[int, int, int] = INK,
        align: str = "left",
        weight: str = "normal",
    ) -> None:
        """Write one line; ``top`` is the upper edge of its capitals, ``left`` its anchor."""
        ...


@dataclass(slots=True)
class SvgCanvas:
    """A white canvas; one unit is one pixel of the pasted pictures."""

    height: int
    width: int
    _parts: list[str] = field(init=False, default_factory=list)

    def paste(
        self, picture: UInt8[np.ndarray, "row column 3"], left: int, top: int, *, frame: bool = True
    ) -> None:
        """Put a picture down, with a hair line around it."""
        rows, columns = picture.shape[:2]
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="png")
        data = base64.b64encode(stream.getvalue()).decode("ascii")
        box = f'x="{left}" y="{top}" width="{columns}" height="{rows}"'
        self._parts.append(f'<image {box} href="data:image/png;base64,{data}"/>')
        if frame:
            self._parts.append(f'<rect {box} fill="none" stroke="#cbd0d7"/>')

    def write(
        self,
        text: str,
        left: int,
        top: int,
        *,
        size: int = 17,
        colour: tuple[int, int, int] = INK,
        align: str = "left",
        weight: str = "normal",
    ) -> None:
        """Write one line; ``top`` is the upper edge of its capitals, ``left`` its anchor."""
        fill = "#{:02x}{:02x}{:02x}".format(*colour)
        place = f'x="{left}" y="{top + round(CAPITAL * size)}" font-size="{size}"'
        style = f'fill="{fill}" text-anchor="{ANCHORS[align]}" font-weight="{weight}"'
        self._parts.append(f"<text {place} {style}>{escape(printable(text))}</text>")

    def svg(self) -> bytes:
        """Return the canvas as SVG."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" font-family="DejaVu Sans, sans-serif">'
        )
        white = '<rect width="100%" height="100%" fill="#ffffff"/>'
        return "\n".join((head, white, *self._parts, "</svg>\n")).encode("utf-8")
