"""Tables that people keep beside their scans: labels, weights, patients known by two names."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from preprocessing.errors import LabelError

PATIENT_KEY = "PatientID"
SERIES_KEY = "SeriesInstanceUID"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One value per patient or per series; the keys never leave the process.

    Attributes
    ----------
    key
        ``PatientID`` or ``SeriesInstanceUID``: what the rows are keyed by.
    values
        Stripped key to stripped value.
    """

    key: str
    values: Mapping[str, str] = field(repr=False)

    def find(self, *, patient_id: str, series_uid: str) -> str | None:
        """Return the value for a series, or None where the table does not name it."""
        return self.values.get((patient_id if self.key == PATIENT_KEY else series_uid).strip())


def read_table(path: Path, value_column: str) -> Table:
    """Read a CSV with a key column (``PatientID`` or ``SeriesInstanceUID``) and one value column.

    A byte-order mark, CRLF, semicolons or tabs as separators and blank lines are fine. Further
    columns are ignored.

    Raises
    ------
    LabelError
        ``TABLE_UNREADABLE``, ``TABLE_COLUMNS``, ``TABLE_EMPTY``, or ``TABLE_CONFLICT`` where a
        key has two values. Rows are named by their number: the keys identify patients.
    """
    rows = _rows(path)
    key = next((name for name in (PATIENT_KEY, SERIES_KEY) if name in rows[0]), None)
    if key is None or value_column not in rows[0]:
        found = ", ".join(rows[0]) or "nothing"
        raise LabelError(
            "TABLE_COLUMNS",
            f"a table needs a column {PATIENT_KEY} or {SERIES_KEY} and a column {value_column}; "
            f"its header has: {found}",
        )
    at_key, at_value = rows[0].index(key), rows[0].index(value_column)
    values: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) <= max(at_key, at_value) or not row[at_key].strip():
            raise LabelError("TABLE_COLUMNS", f"row {number} of the table has no {key} or no value")
        name, value = row[at_key].strip(), row[at_value].strip()
        if values.setdefault(name, value) != value:
            raise LabelError(
                "TABLE_CONFLICT",
                f"row {number} of the table gives {value_column} {value!r} to a {key} that an "
                f"earlier row gives {values[name]!r}: keep one",
            )
    if not values:
        raise LabelError("TABLE_EMPTY", "the table has a header and no rows")
    return Table(key=key, values=values)


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise LabelError("TABLE_UNREADABLE", f"cannot read the table: {reason}") from None
    except UnicodeDecodeError:
        raise LabelError(
            "TABLE_UNREADABLE", "the table is not UTF-8 text: save it as CSV (UTF-8)"
        ) from None
    lines = [line for line in text.splitlines() if line.strip(" ,;\t")]
    if not lines:
        raise LabelError("TABLE_EMPTY", "the table is empty")
    separator = max(",;\t", key=lines[0].count)
    rows = [list(row) for row in csv.reader(lines, delimiter=separator)]
    rows[0] = [name.strip() for name in rows[0]]
    return rows


def class_index(value: str, classes: Sequence[str]) -> int:
    """Position of a label among the classes, upper and lower case alike.

    Raises
    ------
    LabelError
        ``LABEL_UNKNOWN`` with the classes and the nearest one.
    """
    names = [name.lower() for name in classes]
    if value.lower() in names:
        return names.index(value.lower())
    close = get_close_matches(value.lower(), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise LabelError(
        "LABEL_UNKNOWN", f"label {value!r} is none of the classes {', '.join(classes)}{hint}"
    )
