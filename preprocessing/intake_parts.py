"""What one task finds in some files, and how the findings of all tasks become series.

A folder of ordinary size is read and judged by one task: what travels between processes is the
answer, not hundreds of headers. The headers of larger folders come back, and their series are
judged when all are there. A series that turns out to lie in several such folders is looked at
again, with all its files together.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from preprocessing.dicom_file import ENHANCED_PET, MODALITY, PET, SOP_CLASS, FileRead, read_file
from preprocessing.dicom_values import tag_of
from preprocessing.dicom_walk import Encoding, Shared
from preprocessing.intake_records import SeriesIntake
from preprocessing.labels import Table
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.raw_elements import Header, text, written_text
from preprocessing.series_judge import SeriesJob, SeriesOptions, identity_fault, judge

WHOLE_FOLDER = 1024
"""Files of a folder that one task reads and judges: a PET/CT study, read in a tenth of a second."""
WHOLE_TREE = 512
"""Files of a folder with all its subfolders for one task: exports cut series into subfolders."""
FILES_PER_TASK = 64
"""Large enough that handing over a task costs little, small enough that all finish together."""

PATIENT_ID = tag_of("PatientID")
PATIENT_NAME = tag_of("PatientName")
BIRTH_DATE = tag_of("PatientBirthDate")
STUDY_UID = tag_of("StudyInstanceUID")
SERIES_UID = tag_of("SeriesInstanceUID")


class Key(NamedTuple):
    """What the files of one series have in common; never to be written anywhere."""

    patient_id: str
    study_uid: str
    series_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Files for one process.

    Attributes
    ----------
    whole
        The files are all that their folders hold: their series are probably complete.
    """

    files: tuple[Path, ...] = field(repr=False)
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What a task needs beside the files: how to name, weigh and judge a series."""

    pseudonyms: Pseudonyms
    weights: Table | None
    options: SeriesOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The files of one series that one task met.

    Attributes
    ----------
    record
        The series as excluded, with all that grouping knows.
    members
        Places of the files in the task.
    judged
        The answer, if these are all files of the series; None where it was not asked for.
    reads
        The headers, where they came back.
    """

    record: SeriesIntake
    members: tuple[int, ...]
    judged: SeriesIntake | None = None
    reads: tuple[FileRead, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one task found.

    Attributes
    ----------
    parts
        By series.
    single
        Place in the task and outcome of each file that belongs to no series.
    """

    parts: Mapping[Key, Part] = field(repr=False)
    single: tuple[tuple[int, FileRead], ...]


def tasks(files: Sequence[Path], root: Path) -> list[Task]:
    """Cut a listing into tasks: small trees and folders of ordinary size whole, others in pieces.

    Parameters
    ----------
    root
        The folder that was listed.
    """
    cut: list[Task] = []
    small: list[Path] = []
    for members in _by_tree(files, root).values():
        if len(members) > WHOLE_FOLDER:
            pieces = (
                tuple(members[i : i + FILES_PER_TASK])
                for i in range(0, len(members), FILES_PER_TASK)
            )
            cut.extend(Task(files=piece, whole=False) for piece in pieces)
            continue
        small.extend(members)
        if len(small) >= FILES_PER_TASK:
            cut.append(Task(files=tuple(small), whole=True))
            small = []
    if small:
        cut.append(Task(files=tuple(small), whole=True))
    return cut


def _by_tree(files: Sequence[Path], root: Path) -> dict[Path, list[Path]]:
    """Group files by the highest folder above them that holds few, or else by their own."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        folders[path.parent].append(path)
    counts: Counter[Path] = Counter()
    for folder, members in folders.items():
        for above in _upwards(folder, root):
            counts[above] += len(members)
    trees: dict[Path, list[Path]] = defaultdict(list)
    for folder, members in folders.items():
        few = [above for above in _upwards(folder, root) if counts[above] <= WHOLE_TREE]
        trees[few[-1] if few else folder].extend(members)
    return trees


def _upwards(folder: Path, root: Path) -> Iterator[Path]:
    """Yield a folder and those above it, below the root."""
    while folder != root:
        yield folder
        folder = folder.parent


def look(task: Task, knowledge: Knowledge) -> Found:
    """Read the headers of some files, group them, and judge the series if they may be complete."""
    found = _grouped(read_files(task.files), knowledge)
    if not task.whole:
        return found
    parts = {key: _judged(part, knowledge) for key, part in found.parts.items()}
    return replace(found, parts=parts)


def read_files(paths: Iterable[Path]) -> list[FileRead]:
    """Read the headers of some files; equal elements come back as one object."""
    shared: dict[Encoding, Shared] = {}
    return [read_file(path, shared=shared) for path in paths]


def regrouped(reads: Sequence[FileRead], knowledge: Knowledge) -> Found:
    """Group headers that were read one by one; nothing is judged."""
    return _grouped(reads, knowledge)


def _grouped(reads: Sequence[FileRead], knowledge: Knowledge) -> Found:
    members: dict[Key, list[int]] = defaultdict(list)
    single: list[tuple[int, FileRead]] = []
    for place, read in enumerate(reads):
        key = None if read.skip else _key(read.elements)
        if key is None:
            single.append((place, replace(read, elements={})))
        else:
            members[key].append(place)
    parts = {}
    for key, places in members.items():
        group = tuple(reads[place] for place in places)
        record = _record(key, group, knowledge.pseudonyms)
        # Of a series that is not judged, the number of files is all that counts.
        kept = () if record.code else group
        parts[key] = Part(record=record, members=tuple(places), reads=kept)
    return Found(parts=parts, single=tuple(single))


def _judged(part: Part, knowledge: Knowledge) -> Part:
    if part.record.code:
        return part
    return replace(part, judged=judge(_job(part, knowledge), knowledge.options), reads=())


def _job(part: Part, knowledge: Knowledge) -> SeriesJob:
    record, weight = part.record, None
    if knowledge.weights is not None:
        weight = knowledge.weights.find(patient_id=record.patient_id, series_uid=record.series_uid)
    return SeriesJob(record=record, reads=part.reads, weight=weight)


def _key(elements: Header) -> Key | None:
    series_uid = text(elements, SERIES_UID)
    if not series_uid:
        return None
    return Key(written_text(elements, PATIENT_ID), text(elements, STUDY_UID), series_uid)


def _record(key: Key, reads: Sequence[FileRead], pseudonyms: Pseudonyms) -> SeriesIntake:
    """Describe a series before it is judged: excluded, until it turns out to be right."""
    first = reads[0].elements
    modality = _modality([read.elements for read in reads])
    code, detail = ("", "") if modality == "PT" else _not_selected(modality)
    subject, notes = _subject(key, first)
    return SeriesIntake(
        modality=modality,
        status="excluded",
        code=code,
        detail=detail,
        warnings=notes,
        subject_id=pseudonyms.patient(subject),
        study_id=pseudonyms.study(key.study_uid or key.series_uid),
        series_id=pseudonyms.series(key.series_uid),
        patient_id=key.patient_id,
        series_uid=key.series_uid,
        files=len(reads),
    )


def _modality(headers: Sequence[Header]) -> str:
    """Return PT where one file says so (judging refuses a mixture), or else what the first says."""
    stated = [
        text(elements, MODALITY).upper()
        or ("PT" if text(elements, SOP_CLASS) in {PET, ENHANCED_PET} else "")
        for elements in headers
    ]
    return "PT" if "PT" in stated else stated[0]


def _not_selected(modality: str) -> tuple[str, str]:
    detail = f"a {modality or 'nameless'} series: only PT series become samples"
    return "SERIES_NOT_SELECTED", detail


def _subject(key: Key, elements: Header) -> tuple[str, tuple[str, ...]]:
    """Return what tells the patient apart: the identifier, or else name and birth date."""
    if key.patient_id:
        return key.patient_id, ()
    name, birth = written_text(elements, PATIENT_NAME), text(elements, BIRTH_DATE)
    if name and birth:
        return f"name|{name}|{birth}", (_NO_ID + "name and birth date stand for it",)
    study = key.study_uid or key.series_uid
    return f"study|{study}", (_NO_ID + "each study counts as a patient of its own",)


_NO_ID = "PATIENT_UNKNOWN: PatientID (0010,0020) is empty; "


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A series whose answer is still to be found.

    Attributes
    ----------
    record
        The series as excluded.
    part
        All its headers, where they are at hand.
    files
        All its files, to be looked at together where they are not.
    """

    record: SeriesIntake
    part: Part | None = field(default=None, repr=False)
    files: tuple[Path, ...] = field(default=(), repr=False)


def joined(cut: Sequence[Task], found: Sequence[Found]) -> tuple[list[SeriesIntake], list[Open]]:
    """Put the parts of each series together; return what is decided, and what is still open."""
    pieces: dict[Key, list[tuple[Task, Part]]] = defaultdict(list)
    for task, each in zip(cut, found, strict=True):
        for key, part in each.parts.items():
            pieces[key].append((task, part))
    sharing: dict[str, list[Key]] = defaultdict(list)
    for key in pieces:
        sharing[key.series_uid].append(key)
    decided: list[SeriesIntake] = []
    unknown: list[Open] = []
    for key, of_series in pieces.items():
        answer = _joined(of_series, sharing[key.series_uid])
        if isinstance(answer, Open):
            unknown.append(answer)
        else:
            decided.append(answer)
    return decided, unknown


def _joined(pieces: Sequence[tuple[Task, Part]], sharing: Sequence[Key]) -> SeriesIntake | Open:
    # One piece of PET makes the whole a series to judge, as one file does within a piece.
    first = next((part for _, part in pieces if not part.record.code), pieces[0][1])
    record = replace(first.record, files=sum(len(part.members) for _, part in pieces))
    if record.code:
        return record
    if len(sharing) > 1:
        patients = {key.patient_id for key in sharing}
        fault = identity_fault("PatientID" if len(patients) > 1 else "StudyInstanceUID")
        return replace(record, code=fault.code, detail=str(fault))
    if len(pieces) == 1 and first.judged is not None:
        return first.judged
    if all(len(part.reads) == len(part.members) for _, part in pieces):
        reads = chain.from_iterable(part.reads for _, part in pieces)
        members = range(record.files)
        return Open(
            record=record, part=Part(record=record, members=tuple(members), reads=tuple(reads))
        )
    files = (task.files[place] for task, part in pieces for place in part.members)
    return Open(record=record, files=tuple(files))


def answered(unknown: Open, knowledge: Knowledge) -> SeriesIntake:
    """Judge a series with all its files together."""
    part = unknown.part
    if part is None:
        reads = tuple(read_files(unknown.files))
        part = Part(record=unknown.record, members=tuple(range(len(reads))), reads=reads)
    return judge(_job(part, knowledge), knowledge.options)
