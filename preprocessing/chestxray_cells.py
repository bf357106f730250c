"""Cells of tables that went through anybody's hands: separators, blank lines, numbers, ages."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from preprocessing.errors import LabelError

OLDEST_YEARS = 120
_AGE = re.compile(r"0*(\d+)\s*([YMWD]?)", re.IGNORECASE)
_YEARS_PER = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def read_cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the normalised header and the numbered rows that are not blank.

    Names are lower-case letters and digits; the first line is row 1.

    Raises
    ------
    LabelError
        ``CXR_TABLE_UNREADABLE``: empty, no UTF-8 text, or no CSV.
    """
    lines = [
        (number, line)
        for number, line in enumerate(read_text(path).splitlines(), start=1)
        if line.strip(" ,;\t\"'")
    ]
    if not lines:
        raise LabelError("CXR_TABLE_UNREADABLE", "a table of the data set is empty")
    separator = max(",;\t", key=lines[0][1].count)
    try:
        cells = [(n, next(csv.reader([line], delimiter=separator), [])) for n, line in lines]
    except csv.Error:
        raise LabelError("CXR_TABLE_UNREADABLE", "a table of the data set is no CSV") from None
    # A quoted "Bbox [x,y,w,h]" stands over four columns, as the unquoted one does.
    header = ",".join(cells[0][1]).split(",")
    return [re.sub(r"[^a-z0-9]", "", name.lower()) for name in header], cells[1:]


def read_text(path: Path) -> str:
    """Read UTF-8 text, with or without a byte-order mark; raises as ``read_cells``."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise LabelError(
            "CXR_TABLE_UNREADABLE",
            "a table or list of the data set cannot be read as UTF-8 text: fetch it again",
        ) from None


def cell_at(cells: Sequence[str], at: int) -> str:
    """Return a stripped cell, "" where the row is too short."""
    return cells[at].strip() if 0 <= at < len(cells) else ""


def file_name(text: str) -> str:
    """Return the last part of a path, whichever way its slashes lean."""
    return PurePosixPath(text.strip().replace("\\", "/")).name


def code_word(text: str) -> str:
    """Pass on a code such as PA or F, and no free text."""
    return text.upper() if re.fullmatch(r"[A-Za-z]{1,8}", text) else ""


def whole_number(text: str) -> int | None:
    """Return a whole number of up to six digits, or None."""
    return int(text) if re.fullmatch(r"\d{1,6}", text) else None


def length_mm(text: str) -> float | None:
    """Return a positive finite number, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def age_years(text: str) -> int | None:
    """Return whole years of ages such as ``058Y``, ``13M`` or ``58``, or None."""
    match = _AGE.fullmatch(text)
    if match is None:
        return None
    years = int(match[1]) * _YEARS_PER[match[2].upper()]
    return int(years) if years <= OLDEST_YEARS else None
