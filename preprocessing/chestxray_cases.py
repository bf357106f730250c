"""Images, rows, boxes and lists of ChestX-ray14, matched by file name; no image is opened.

Every file ends in one place: a case, an exclusion, or a count of what was skipped. Rows and boxes
without image are exclusions that no file belongs to.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from preprocessing.chestxray_folder import BOXES, ENTRIES, TEST_LIST, TRAIN_LIST, Folder, sort_files
from preprocessing.chestxray_tables import (
    Box,
    Entry,
    Fault,
    official_parts,
    read_boxes,
    read_entries,
    read_list,
)
from preprocessing.errors import LabelError
from preprocessing.folder_walk import list_files
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Discovery, Exclusion

Progress = Callable[[str, int, int], None]
_CLOSED = "the folder cannot be listed: check its permissions"
_TWICE = "different images have this file name: keep the release's own"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChestCase:
    """One image with its row, its boxes and its part of the official split.

    Attributes
    ----------
    part
        ``train_val``, ``test``, or "" where there are no official lists.
    image_id
        Pseudonym of the file's name.
    stamp
        Size and time of the file.
    """

    path: Path = field(repr=False)
    entry: Entry = field(repr=False)
    boxes: tuple[Box, ...] = field(repr=False)
    part: str
    subject_id: str
    image_id: str
    stamp: tuple[int, int] = field(repr=False)

    @property
    def case_id(self) -> str:
        """Patient and image pseudonym, shortened."""
        return f"{self.subject_id[:8]}-{self.image_id[:8]}"

    @property
    def files(self) -> int:
        """One image."""
        return 1

    @property
    def guarded(self) -> bool:
        """Pixels are inflated by a codec in C."""
        return True

    @property
    def fingerprint(self) -> str:
        """Hash over the file's size and time, its row, its boxes and its official part."""
        facts = (self.stamp, astuple(self.entry), [astuple(box) for box in self.boxes], self.part)
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def find_cases(
    root: Path, *, pseudonyms: Pseudonyms, progress: Progress | None = None
) -> Discovery:
    """Match what lies below ``root``; raises as ``chestxray.discover``."""
    listing = list_files(root)
    folder = sort_files(listing.files)
    places = _Places(root=root.resolve(), pseudonyms=pseudonyms)
    exclusions = [places.excluded("UNREADABLE", path, _CLOSED, files=0) for path in listing.closed]
    cases: list[ChestCase] = []
    if folder.images or folder.ambiguous:
        found, refused = _match_all(folder, places, progress)
        cases += found
        exclusions += refused
    return Discovery(
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        exclusions=tuple(exclusions),
        skipped=dict(folder.skipped + Counter(listing.skipped)),
        seen=len(listing.files) + sum(listing.skipped.values()),
    )


def _match_all(
    folder: Folder, places: "_Places", progress: Progress | None
) -> tuple[list[ChestCase], list[Exclusion]]:
    rows = _read_tables(folder.tables)
    cases: list[ChestCase] = []
    exclusions = _unused_rows(rows, {*folder.images, *folder.ambiguous}, places.pseudonyms)
    exclusions += [
        places.excluded("CXR_IMAGE_TWICE", paths[0], _TWICE, files=len(paths))
        for _, paths in sorted(folder.ambiguous.items())
    ]
    for done, (name, path) in enumerate(sorted(folder.images.items()), start=1):
        match = _match(name, path, rows, places)
        if isinstance(match, ChestCase):
            cases.append(match)
        else:
            exclusions.append(match)
        if progress is not None:
            progress("check", done, len(folder.images))
    return cases, exclusions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Pseudonymous names of files."""

    root: Path
    pseudonyms: Pseudonyms

    def excluded(
        self, code: str, path: Path, detail: str, *, files: int = 1, subject_id: str = ""
    ) -> Exclusion:
        where = f"file {self.pseudonyms.file(path.relative_to(self.root))}"
        return Exclusion(code=code, subject_id=subject_id, where=where, detail=detail, files=files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What the tables say, by file name.

    Attributes
    ----------
    part_of
        Patient to part of the official split.
    is_split
        There is an official list, so that every patient must be in a part.
    """

    entries: Mapping[str, Entry]
    faults: Mapping[str, Fault]
    boxes: Mapping[str, Sequence[Box]]
    loose: Sequence[Fault]
    part_of: Callable[[str], str]
    is_split: bool


def _read_tables(tables: Mapping[str, Path]) -> _Rows:
    if ENTRIES not in tables:
        raise LabelError(
            "CXR_NO_TABLE",
            "there are images, but no Data_Entry_2017*.csv with their labels: put the release's "
            "table into the folder",
        )
    entries, faults = read_entries(tables[ENTRIES])
    boxes, box_faults = read_boxes(tables[BOXES]) if BOXES in tables else ((), ())
    train_val, test = (
        read_list(tables[name]) if name in tables else None for name in (TRAIN_LIST, TEST_LIST)
    )
    grouped: dict[str, list[Box]] = defaultdict(list)
    for box in boxes:
        grouped[box.image].append(box)
    return _Rows(
        entries={entry.image: entry for entry in entries},
        faults={fault.image: fault for fault in faults},
        boxes=grouped,
        loose=(*(fault for fault in faults if not fault.image), *box_faults),
        part_of=official_parts(train_val, test),
        is_split=train_val is not None or test is not None,
    )


def _match(name: str, path: Path, rows: _Rows, places: _Places) -> ChestCase | Exclusion:
    entry, fault = rows.entries.get(name), rows.faults.get(name)
    if fault is not None:
        return places.excluded(fault.code, path, fault.detail)
    if entry is None:
        return places.excluded("CXR_NO_ROW", path, "the table of images has no row for this image")
    subject = places.pseudonyms.patient(entry.patient)
    part = rows.part_of(entry.patient)
    if rows.is_split and not part:
        detail = "the patient is in neither official list: complete the lists, or remove both"
        return places.excluded("CXR_NOT_LISTED", path, detail, subject_id=subject)
    try:
        status = path.stat()
    except OSError:
        detail = "the image cannot be reached: check its permissions"
        return places.excluded("CXR_UNREADABLE", path, detail, subject_id=subject)
    return ChestCase(
        path=path,
        entry=entry,
        boxes=tuple(rows.boxes.get(name, ())),
        part=part,
        subject_id=subject,
        image_id=places.pseudonyms.file(name),
        stamp=(status.st_size, status.st_mtime_ns),
    )


def _unused_rows(rows: _Rows, images: set[str], pseudonyms: Pseudonyms) -> list[Exclusion]:
    """Account for rows and boxes without image, and for rows that name none; no file is theirs."""
    unused = [
        ("CXR_NO_IMAGE", name, "the image of this row is not in the folder: fetch it")
        for name in rows.entries
    ]
    unused += [(fault.code, name, fault.detail) for name, fault in rows.faults.items() if name]
    unused += [
        ("CXR_BOX_NO_IMAGE", name, f"the image of {len(boxes)} boxes is not in the folder")
        for name, boxes in rows.boxes.items()
    ]
    exclusions = [
        Exclusion(
            code=code, subject_id="", where=f"file {pseudonyms.file(name)}", detail=detail, files=0
        )
        for code, name, detail in unused
        if name not in images
    ]
    exclusions += [
        Exclusion(
            code=fault.code,
            subject_id="",
            where=f"row {fault.row}",
            detail=fault.detail,
            files=0,
        )
        for fault in rows.loose
    ]
    return exclusions
