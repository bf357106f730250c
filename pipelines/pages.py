"""Self-contained HTML pages: one file, no network, no script, readable in ten years.

Pictures travel inside the page as ``data:`` URIs and a content security policy forbids everything
else. Every text is escaped, so that a label or a file's content cannot become markup.
"""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipelines.marks import label_of

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
Row = Mapping[str, str | int | float]
"""One row of a table: column heading -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseView:
    """One case on a page.

    Attributes
    ----------
    sample_id
        Pseudonym.
    label
        True class, or "" where it is not known.
    prediction
        Predicted class; of label sets, the most probable.
    findings
        Every true class, where a picture may be of several or of none; None where it is of one.
    probabilities
        Class -> probability, in the order of the classes.
    images
        (method, PNG, caption) in the order of display, the scan alone first.
    notes
        Sentences under the pictures.
    """

    sample_id: str
    label: str
    prediction: str
    probabilities: Mapping[str, float]
    images: Sequence[tuple[str, bytes, str]]
    notes: Sequence[str] = ()
    findings: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its heading and what its columns mean."""

    heading: str
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryColumn:
    """A map's column.

    Attributes
    ----------
    signed
        Which of the colour bars holds.
    check
        Verdict of the method's check on the model; "" where none was made.
    """

    name: str
    signed: bool
    check: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryCell:
    """A map's picture, its verdict ("" where it was not checked) and lines under it."""

    image: bytes
    word: str
    lines: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryRow:
    """A case: its name, the scan alone, and name of the map -> cell."""

    name: str
    scan: bytes
    cells: Mapping[str, GalleryCell]


def explanation_page(
    title: str,
    *,
    cases: Sequence[CaseView],
    summary: Sequence[Row] = (),
    intro: Sequence[str] = (),
    tables: Sequence[Table] = (),
    gallery: str = "",
) -> str:
    """Return one HTML page: paragraphs, a summary table, further tables, then every case.

    Parameters
    ----------
    title
        Heading of the page.
    cases
        Shown in this order; an index with links comes first where there are several.
    summary
        One mapping per row; the columns are all keys in the order of their first appearance.
    intro
        Paragraphs under the heading: what was explained, how to read it, what it does not show.
    tables
        Shown after the summary; those without rows are left out.
    gallery
        Name of the gallery's page beside this one; "" where there is none.

    Raises
    ------
    ValueError
        If a picture is not a PNG.
    """
    return render(
        "explanation.html",
        title=title,
        cases=cases,
        summary=summary,
        intro=intro,
        tables=[table for table in tables if table.rows],
        gallery=gallery,
    )


def gallery_page(
    title: str,
    *,
    columns: Sequence[GalleryColumn],
    rows: Sequence[GalleryRow],
    legend: bytes,
    intro: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> str:
    """Return one HTML page: cases below each other, their maps beside each other.

    Parameters
    ----------
    legend
        The colour bars as PNG.

    Raises
    ------
    ValueError
        If a picture is not a PNG.
    """
    return render(
        "gallery.html",
        title=title,
        columns=columns,
        rows=rows,
        legend=legend,
        intro=intro,
        tables=[table for table in tables if table.rows],
    )


def render(template: str, **values: object) -> str:
    """Fill a template of this room; a value that the template needs and does not get is an error.

    Raises
    ------
    ValueError
        If a picture is not a PNG.
    """
    return _environment().get_template(template).render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": cell,
        "columns": columns,
        "numeric": is_number,
        "verdict": label_of,
        "png": data_uri,
        "percent": percent,
    }
    return environment


def data_uri(png: bytes) -> str:
    """Return a PNG as a ``data:`` URI.

    Raises
    ------
    ValueError
        If the bytes do not start as a PNG does.
    """
    if not png.startswith(PNG_SIGNATURE):
        raise ValueError(f"a picture of the page is not a PNG: it starts with {png[:4]!r}")
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def columns(rows: Sequence[Row]) -> list[str]:
    """Return all keys of the rows in the order of their first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def cell(value: str | int | float | None) -> str:
    """Write a value of a table: three decimals, and a dash for what is missing or undefined."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def is_number(value: str | int | float | None) -> bool:
    """Tell whether a value stands to the right of its column."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def percent(share: float) -> str:
    """Write a share as a percentage, clipped to 0 and 100, for the length of a bar."""
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%" if math.isfinite(share) else "0%"
