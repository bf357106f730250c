"""Tables for people: one sheet of text cells, written as Markdown and as LaTeX.

Names come from users and data sets: every cell is escaped for the language it is written in.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.comparison_scores import MeanScore

EMPTY = ""
LEAST_SHOWN = 5e-4
"""A mean below it is written with an exponent: three decimals would call it zero."""
LATEX_SPECIAL: Mapping[str, str] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": "--",
    "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "τ": r"$\tau$",
    "∞": r"$\infty$",
    "\n": " ",
    "\r": " ",
}
MARKDOWN_SPECIAL: Mapping[str, str] = {
    **{character: f"\\{character}" for character in "\\`*|"},
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "\n": " ",
    "\r": " ",
}
EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)")
"""Underscores inside a word mean nothing in Markdown; others do."""
LINK = re.compile(r"\](?=[(:\[])")


@dataclass(frozen=True, slots=True)
class Cell:
    """Plain text, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows under one label; "" for none."""

    label: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table in blocks, each as wide as the heading."""

    heading: Sequence[str]
    blocks: Sequence[Block]


def plain_sheet(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Sheet:
    """Return a sheet of one block in which nothing is the best."""
    return Sheet(
        heading=heading,
        blocks=[Block(label=EMPTY, rows=[[Cell(text) for text in row] for row in rows])],
    )


def spread(score: MeanScore | None) -> str:
    """Write mean, standard deviation and interval; nothing where there is no score."""
    if score is None or not math.isfinite(score.mean):
        return EMPTY
    form = ".1e" if 0 < score.mean < LEAST_SHOWN else ".3f"
    sd = f" ± {score.sd:{form}}" if math.isfinite(score.sd) else ""
    bounds = f" ({score.low:{form}} to {score.high:{form}})" if math.isfinite(score.low) else ""
    return f"{score.mean:{form}}{sd}{bounds}"


def latex_escaped(text: str) -> str:
    """Write plain text so that LaTeX sets it as it is."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def markdown_escaped(text: str) -> str:
    """Write plain text so that it ends no cell and becomes neither emphasis nor HTML."""
    escaped = "".join(MARKDOWN_SPECIAL.get(character, character) for character in text)
    return LINK.sub(r"\]", EMPHASIS.sub(r"\_", escaped))


def markdown_lines(sheet: Sheet) -> list[str]:
    """Write a sheet as a Markdown table; the best are bold, a block's label is a row of its own."""
    width = len(sheet.heading)
    lines = [[markdown_escaped(text) for text in sheet.heading], ["---"] * width]
    for block in sheet.blocks:
        if block.label:
            lines.append([f"*{markdown_escaped(block.label)}*", *[""] * (width - 1)])
        lines += [[_markdown_cell(cell) for cell in row] for row in block.rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _markdown_cell(cell: Cell) -> str:
    text = markdown_escaped(cell.text)
    return f"**{text}**" if cell.best else text


def latex_lines(sheet: Sheet) -> list[str]:
    """Write a sheet as a ``tabular`` that needs the package ``booktabs``."""
    width = len(sheet.heading)
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        _latex_row([latex_escaped(text) for text in sheet.heading]),
    ]
    for block in sheet.blocks:
        lines.append(r"\midrule")
        if block.label:
            label = latex_escaped(block.label)
            lines.append(_latex_row([rf"\multicolumn{{{width}}}{{l}}{{\emph{{{label}}}}}"]))
        lines += [_latex_row([_latex_cell(cell) for cell in row]) for row in block.rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _latex_cell(cell: Cell) -> str:
    text = latex_escaped(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else text


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket after the end of a line would be read as its optional skip.
    first = f"{{{cells[0]}}}" if cells[0].startswith(("[", "*")) else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"
