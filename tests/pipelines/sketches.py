"""A stand-in for drawing: the layout and the letters of a figure take longer than a small training.

What would be drawn decides the bytes all the same, so that equal pictures mean equal figures.
"""

import hashlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image


class SketchCanvas:
    """Writes as PNG the digest of what a figure holds: lines, areas, dots, pictures and words."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def print_png(self, buffer: BytesIO, **_: object) -> None:
        digest = hashlib.sha256()
        for artist in self.figure.findobj():
            for part in held(artist):
                digest.update(part)
        pixels = np.frombuffer(digest.digest(), dtype=np.uint8).reshape(4, 8)
        Image.fromarray(pixels).save(buffer, format="png")


def held(artist: Artist) -> Iterator[bytes]:
    yield type(artist).__name__.encode()
    if isinstance(artist, Text):
        yield artist.get_text().encode()
    elif isinstance(artist, Line2D):
        yield np.asarray(artist.get_xydata(), dtype=float).tobytes()
        yield f"{artist.get_color()} {artist.get_linestyle()}".encode()
    elif isinstance(artist, Patch):
        yield np.asarray(artist.get_path().vertices, dtype=float).tobytes()
        yield np.asarray(artist.get_facecolor(), dtype=float).tobytes()
    elif isinstance(artist, Collection):
        yield np.asarray(np.ma.filled(artist.get_offsets(), np.nan)).tobytes()
        for path in artist.get_paths():
            yield np.asarray(path.vertices, dtype=float).tobytes()
    elif isinstance(artist, AxesImage):
        yield np.asarray(artist.get_array()).tobytes()
