"""The tables and lists that come with NIH ChestX-ray14, in the forms in which people ship them.

``Data_Entry_2017.csv`` writes ages as ``058Y`` and ends its lines with a comma; the form of 2020
writes ``58``. ``BBox_List_2017.csv`` has brackets and commas inside its header, often more commas
behind it. Copies that went through other software have CRLF, a byte-order mark, blank lines, an
index column or another separator. Columns are found by name, box coordinates by their place behind
the label.

References
----------
Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks, CVPR 2017; the README
and FAQ of the NIH Clinical Center's release.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from preprocessing.chestxray_cells import (
    age_years,
    cell_at,
    code_word,
    file_name,
    length_mm,
    read_cells,
    read_text,
    whole_number,
)
from preprocessing.errors import LabelError, SplitError

CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The 14 findings; the first eight are those that have boxes."""
NO_FINDING = "No Finding"
BOX_FRAME = 1024
"""Boxes are given in pixels of the release's 1024 x 1024 images, also where a copy is smaller."""
BOX_OVERSHOOT = 1.0
"""A box may leave the picture by this many pixels (rounding) before it is refused."""
TRAIN, TEST = "train_val", "test"

_INDEX = {finding.replace("_", "").lower(): index for index, finding in enumerate(CLASSES)}
_INDEX["infiltrate"] = _INDEX["infiltration"]
_BLANKS = re.compile(r"[\s_]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row of the table of images.

    Attributes
    ----------
    image
        File name; it begins with the patient's number and never leaves the process.
    patient
        The patient's number without leading zeros.
    findings
        Indices into ``CLASSES``, rising; empty for "No Finding".
    age_years
        Whole years, or None where the table has none or an impossible one.
    columns, rows
        Extent of the detector's image before the release was resized to 1024 x 1024.
    spacing_x_mm, spacing_y_mm
        Pixel spacing of the detector's image.
    """

    image: str = field(repr=False)
    patient: str = field(repr=False)
    findings: tuple[int, ...]
    view: str = ""
    sex: str = ""
    age_years: int | None = None
    follow_up: int | None = None
    columns: int | None = None
    rows: int | None = None
    spacing_x_mm: float | None = None
    spacing_y_mm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One box of the list: a finding and where it is, in pixels of the 1024 x 1024 image.

    Attributes
    ----------
    finding
        Index into ``CLASSES``.
    x, y
        Left and upper edge; pixel i covers i to i + 1.
    """

    image: str = field(repr=False)
    finding: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A row that cannot be used, by its number (the header is row 1)."""

    code: str
    row: int
    detail: str
    image: str = field(default="", repr=False)


def read_entries(path: Path) -> tuple[tuple[Entry, ...], tuple[Fault, ...]]:
    """Read ``Data_Entry_2017.csv`` in its form of 2017 or of 2020.

    Returns
    -------
    entries
        One per image, in the order of the table.
    faults
        ``CXR_ROW``: no image name or no patient, ``CXR_LABEL``: a label that is none of the 14 or
        contradicts itself, ``CXR_PATIENT_CONFLICT``: file name and ``Patient ID`` differ,
        ``CXR_ROW_CONFLICT``: the image has another row that says something else.

    Raises
    ------
    LabelError
        ``CXR_TABLE_UNREADABLE`` or ``CXR_TABLE_COLUMNS``.
    """
    header, rows = read_cells(path)
    names = {name: at for at, name in reversed(list(enumerate(header)))}
    at_label = names.get("findinglabels", names.get("findinglabel", -1))
    if "imageindex" not in names or at_label < 0:
        raise _columns("Image Index", "Finding Labels", header)
    names["findinglabels"] = at_label
    entries: dict[str, Entry] = {}
    twice: dict[str, int] = {}
    faults: list[Fault] = []
    for number, cells in rows:
        found = _entry(number, lambda name, cells=cells: cell_at(cells, names.get(name, -1)))
        if isinstance(found, Fault):
            faults.append(found)
        elif entries.setdefault(found.image, found) != found:
            twice[found.image] = number
    faults += [_conflict(image, number) for image, number in twice.items()]
    refused = {fault.image for fault in faults}
    return tuple(e for e in entries.values() if e.image not in refused), tuple(faults)


def read_boxes(path: Path) -> tuple[tuple[Box, ...], tuple[Fault, ...]]:
    """Read ``BBox_List_2017.csv``.

    Faults are ``CXR_BOX``: a finding that is none of the 14, fewer than four numbers, no extent,
    or a place outside the picture.

    Raises
    ------
    LabelError
        ``CXR_TABLE_UNREADABLE`` or ``CXR_TABLE_COLUMNS``.
    """
    header, rows = read_cells(path)
    at_label = next((at for at, name in enumerate(header) if name.startswith("findinglabel")), -1)
    if "imageindex" not in header or at_label < 0:
        raise _columns("Image Index", "Finding Label", header)
    at_image = header.index("imageindex")
    boxes: list[Box] = []
    faults: list[Fault] = []
    for number, cells in rows:
        image = file_name(cell_at(cells, at_image))
        try:
            finding = finding_index(cell_at(cells, at_label))
            boxes.append(_box(image, finding, cells[at_label + 1 : at_label + 5]))
        except LabelError as error:
            faults.append(Fault(code=error.code, row=number, detail=str(error), image=image))
    return tuple(boxes), tuple(faults)


def read_list(path: Path) -> tuple[str, ...]:
    """Read one file name per line, as in ``train_val_list.txt``; folders before it are dropped.

    Raises
    ------
    LabelError
        ``CXR_TABLE_UNREADABLE``.
    """
    return tuple(file_name(line) for line in read_text(path).splitlines() if line.strip())


def official_parts(
    train_val: Sequence[str] | None, test: Sequence[str] | None
) -> Callable[[str], str]:
    """Tell which official part a patient is in: ``train_val``, ``test``, or "" where in none.

    The two lists together hold every image of the release, so one list alone says it all: whoever
    is not in it is in the other.

    Parameters
    ----------
    train_val, test
        File names, or None where the list is missing.

    Raises
    ------
    SplitError
        ``CXR_LISTS_OVERLAP``: a patient has images in both lists.
    """
    in_train = {patient_of(name) for name in train_val or ()} - {""}
    in_test = {patient_of(name) for name in test or ()} - {""}
    if shared := len(in_train & in_test):
        raise SplitError(
            "CXR_LISTS_OVERLAP",
            f"{shared} patients have images in the train/val list and in the test list, so test "
            "figures would be flattered: use the official lists, or remove both for a split of "
            "our own",
        )
    if train_val is None and test is None:
        return lambda patient: ""
    elsewhere = TRAIN if train_val is None else TEST if test is None else ""

    def part(patient: str) -> str:
        return TRAIN if patient in in_train else TEST if patient in in_test else elsewhere

    return part


def patient_of(image: str) -> str:
    """Return the patient's number in a file name such as ``00000001_000.png``; "" if none."""
    match = re.match(r"0*(\d+)_", image)
    return match[1] if match else ""


def finding_index(text: str) -> int:
    """Return the index of a finding; "Infiltrate" is "Infiltration", case and "_" do not matter.

    Raises
    ------
    LabelError
        ``CXR_LABEL``.
    """
    index = _INDEX.get(_BLANKS.sub("", text).lower())
    if index is None:
        raise LabelError("CXR_LABEL", f"label {text[:40]!r} is none of the 14 findings")
    return index


def _entry(number: int, cell: Callable[[str], str]) -> Entry | Fault:
    image = file_name(cell("imageindex"))
    named, written = patient_of(image), cell("patientid").lstrip("0")
    written = written.removesuffix(".0")  # pandas turns a column with gaps into floats
    if not image or not (named or written):
        detail = f"row {number} of the table of images names no image or no patient"
        return Fault(code="CXR_ROW", row=number, detail=detail, image=image)
    if named and written and named != written:
        detail = f"row {number} of the table of images: file name and Patient ID name two patients"
        return Fault(code="CXR_PATIENT_CONFLICT", row=number, detail=detail, image=image)
    try:
        findings = _findings(cell("findinglabels"))
    except LabelError as error:
        return Fault(code=error.code, row=number, detail=f"row {number}: {error}", image=image)
    return Entry(
        image=image,
        patient=written or named,
        findings=findings,
        view=code_word(cell("viewposition")),
        sex=code_word(cell("patientgender")),
        age_years=age_years(cell("patientage")),
        follow_up=whole_number(cell("followup")),
        columns=whole_number(cell("originalimagewidth")),
        rows=whole_number(cell("height") or cell("originalimageheight")),
        spacing_x_mm=length_mm(cell("originalimagepixelspacingx")),
        spacing_y_mm=length_mm(cell("y") or cell("originalimagepixelspacingy")),
    )


def _findings(text: str) -> tuple[int, ...]:
    names = [name.strip() for name in text.split("|") if name.strip()]
    plain = [_BLANKS.sub("", name).lower() for name in names]
    if plain == ["nofinding"]:
        return ()
    if not names or "nofinding" in plain:
        raise LabelError(
            "CXR_LABEL", f"the labels are {text[:80]!r}: give findings, or '{NO_FINDING}' alone"
        )
    return tuple(sorted({finding_index(name) for name in names}))


def _box(image: str, finding: int, cells: Sequence[str]) -> Box:
    try:
        x, y, width, height = (float(cell) for cell in cells)
    except ValueError:
        raise LabelError("CXR_BOX", "a box needs four numbers: x, y, width, height") from None
    right, lower = x + width, y + height
    is_number = all(math.isfinite(value) for value in (x, y, right, lower))
    slack = BOX_OVERSHOOT
    is_inside = min(x, y) >= -slack and max(right, lower) <= BOX_FRAME + slack
    if not image or not is_number or min(width, height) <= 0 or not is_inside:
        raise LabelError(
            "CXR_BOX",
            f"the box x {x:g}, y {y:g}, width {width:g}, height {height:g} lies on no part of a "
            f"{BOX_FRAME} x {BOX_FRAME} picture",
        )
    x, y = max(x, 0.0), max(y, 0.0)
    width, height = min(right, BOX_FRAME) - x, min(lower, BOX_FRAME) - y
    return Box(image=image, finding=finding, x=x, y=y, width=width, height=height)


def _conflict(image: str, number: int) -> Fault:
    detail = f"row {number} of the table of images contradicts an earlier row: keep one"
    return Fault(code="CXR_ROW_CONFLICT", row=number, detail=detail, image=image)


def _columns(first: str, second: str, header: Sequence[str]) -> LabelError:
    return LabelError(
        "CXR_TABLE_COLUMNS",
        f"a table needs the columns '{first}' and '{second}'; it has {len(header)} columns without "
        "them: fetch the release's own file",
    )
