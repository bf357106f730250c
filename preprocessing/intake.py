"""Any folder to checked series: every file is used, excluded with a code, or skipped and counted.

Files are known by their content, read once and under limits, and grouped by patient, study and
series. Each PET series is checked and converted on paper (geometry, rescale, SUV); of those that a
study offers, one is chosen. The answer does not depend on the order of the folder, on file names or
on how many workers read.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from preprocessing import ranking
from preprocessing.dicom_file import ENHANCED_PET, MODALITY, PET, SOP_CLASS, FileRead, read_file
from preprocessing.dicom_values import tag_of
from preprocessing.dicom_walk import Encoding, Shared
from preprocessing.errors import HeaderError
from preprocessing.folder_walk import list_files
from preprocessing.intake_records import Intake, SeriesIntake
from preprocessing.labels import Table
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.raw_elements import Header, text, written_text
from preprocessing.records import Died, Exclusion
from preprocessing.series_judge import SeriesJob, SeriesOptions, identity_fault, judge
from preprocessing.suv import ROUTES

__all__ = ["Intake", "SeriesIntake", "scan"]

FILES_PER_CHUNK = 64
"""Large enough that sending a chunk costs little, small enough that workers finish together."""

PATIENT_ID = tag_of("PatientID")
PATIENT_NAME = tag_of("PatientName")
BIRTH_DATE = tag_of("PatientBirthDate")
STUDY_UID = tag_of("StudyInstanceUID")
SERIES_UID = tag_of("SeriesInstanceUID")

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Files that share patient, study and series."""

    patient_id: str
    study_uid: str
    series_uid: str
    modality: str
    reads: list[FileRead] = field(default_factory=list)


def scan(
    root: Path,
    *,
    pseudonyms: Pseudonyms,
    weights: Table | None = None,
    suv_formula: Literal["suvbw", "paper"] = "suvbw",
    prefer_route: str = "",
    fill_gaps: int = 0,
    allow_intercept: bool = False,
    choose: Literal["best", "all"] = "best",
    mapper: Mapper = map,
    progress: Progress | None = None,
) -> Intake:
    """Look at every file below ``root`` and say what each series of images would become.

    Parameters
    ----------
    weights
        Weights in kg, by patient or by series, that override the headers'.
    suv_formula, prefer_route
        As ``suv.suvbw`` takes them.
    fill_gaps
        Longest run of missing slices to fill by linear interpolation; 0 refuses gaps.
    allow_intercept
        Accept a ``RescaleIntercept`` other than 0.
    choose
        ``best`` accepts one PET series of each study, ``all`` every one that can be converted.
    mapper
        Like ``map``, or the ``map`` of a process pool; results come back in order.
    progress
        Called with ``"read"`` and files, then ``"check"`` and series: done, and all.

    Raises
    ------
    FileError
        ``INPUT_MISSING`` or ``INPUT_NOT_A_FOLDER``. Whatever the files hold ends in the answer.
    HeaderError
        ``ROUTE_UNKNOWN`` for a ``prefer_route`` that is none.
    """
    if prefer_route and prefer_route not in ROUTES:
        raise HeaderError(
            "ROUTE_UNKNOWN", f"there is no route '{prefer_route}'; known: {', '.join(ROUTES)}"
        )
    listing = list_files(root)
    place = root.resolve()
    skipped: Counter[str] = Counter(listing.skipped)
    exclusions = [
        _single("UNREADABLE", "folder", pseudonyms.file(path.relative_to(place)), _CLOSED, 0)
        for path in listing.closed
    ]
    groups: dict[tuple[str, str, str], _Group] = {}
    reads = _read_all(listing.files, mapper, progress)
    for path, read in zip(listing.files, reads, strict=True):
        if read.skip:
            skipped[read.skip] += 1
        elif not _joins_group(read, groups):
            code, detail = (read.code, read.detail) if read.code else _NAMELESS
            where = pseudonyms.file(path.relative_to(place))
            exclusions.append(_single(code, "file", where, detail, 1))
    options = SeriesOptions(
        suv_formula=suv_formula,
        prefer_route=prefer_route,
        fill_gaps=fill_gaps,
        allow_intercept=allow_intercept,
    )
    jobs = _jobs(groups.values(), pseudonyms, weights)
    series = _judge_all(jobs, options, mapper, progress)
    if choose == "best":
        series = _one_per_study(series)
    return _account(series, exclusions, skipped, len(listing.files) + sum(listing.skipped.values()))


_CLOSED = "the folder cannot be listed: check its permissions"
_NAMELESS = (
    "UID_MISSING",
    "SeriesInstanceUID (0020,000E) is missing: which series the image belongs to is unknown",
)


def _single(code: str, kind: str, where: str, detail: str, files: int) -> Exclusion:
    return Exclusion(code=code, subject_id="", where=f"{kind} {where}", detail=detail, files=files)


def read_chunk(paths: Sequence[Path]) -> list[FileRead]:
    """Read the headers of some files; equal elements come back as one object."""
    shared: dict[Encoding, Shared] = {}
    return [read_file(path, shared=shared) for path in paths]


def _read_all(
    files: Sequence[Path], mapper: Mapper, progress: Progress | None
) -> Iterator[FileRead]:
    chunks = [files[i : i + FILES_PER_CHUNK] for i in range(0, len(files), FILES_PER_CHUNK)]
    found: list[list[FileRead] | Died] = []
    for chunk, reads in zip(chunks, mapper(read_chunk, chunks), strict=True):
        found.append(reads)
        if progress is not None:
            progress("read", (len(found) - 1) * FILES_PER_CHUNK + len(chunk), len(files))
    for chunk, reads in zip(chunks, found, strict=True):
        yield from _read_singly(chunk, mapper) if isinstance(reads, Died) else reads


def _read_singly(chunk: Sequence[Path], mapper: Mapper) -> Iterator[FileRead]:
    """Find the file that ended the process which read it; the others are read all the same."""
    for reads in mapper(read_chunk, [[path] for path in chunk]):
        if isinstance(reads, Died):
            yield FileRead(code="PARSER_CRASH", detail=_CRASHED)
        else:
            yield from reads


_CRASHED = (
    "reading ended its process, or took too long: the file is damaged in a way that no parser "
    "survives"
)


def _joins_group(read: FileRead, groups: dict[tuple[str, str, str], _Group]) -> bool:
    """Put a file beside the others of its series; tell whether it says which series that is."""
    series_uid = text(read.elements, SERIES_UID)
    if not series_uid:
        return False
    patient_id = written_text(read.elements, PATIENT_ID)
    study_uid = text(read.elements, STUDY_UID)
    key = patient_id, study_uid, series_uid
    if key not in groups:
        groups[key] = _Group(
            patient_id=patient_id,
            study_uid=study_uid,
            series_uid=series_uid,
            modality=_modality(read.elements),
        )
    groups[key].reads.append(read)
    return True


def _modality(elements: Header) -> str:
    stated = text(elements, MODALITY).upper()
    return stated or ("PT" if text(elements, SOP_CLASS) in {PET, ENHANCED_PET} else "")


def _jobs(
    groups: Iterable[_Group], pseudonyms: Pseudonyms, weights: Table | None
) -> list[SeriesJob]:
    """Prepare every series to be judged, in an order that depends on pseudonyms alone."""
    jobs: list[SeriesJob] = []
    by_uid: dict[str, list[_Group]] = defaultdict(list)
    for group in groups:
        by_uid[group.series_uid].append(group)
    for sharing in by_uid.values():
        for group in sharing:
            record = _record(group, pseudonyms, _mixed(sharing))
            weight = None
            if weights is not None:
                weight = weights.find(patient_id=group.patient_id, series_uid=group.series_uid)
            jobs.append(SeriesJob(record=record, reads=tuple(group.reads), weight=weight))
    jobs.sort(key=lambda job: _order(job.record))
    return jobs


def _order(series: SeriesIntake) -> tuple[str, str, str]:
    return series.subject_id, series.study_id, series.series_id


def _mixed(sharing: Sequence[_Group]) -> HeaderError | None:
    if len({group.patient_id for group in sharing}) > 1:
        return identity_fault("PatientID")
    return identity_fault("StudyInstanceUID") if len(sharing) > 1 else None


def _record(group: _Group, pseudonyms: Pseudonyms, fault: HeaderError | None) -> SeriesIntake:
    """Describe a series before it is judged: excluded, until it turns out to be right."""
    code, detail = ("", "") if fault is None else (fault.code, str(fault))
    if group.modality != "PT":
        code = "SERIES_NOT_SELECTED"
        detail = f"a {group.modality or 'nameless'} series: only PT series become samples"
    subject, notes = _subject(group)
    return SeriesIntake(
        modality=group.modality,
        status="excluded",
        code=code,
        detail=detail,
        warnings=notes,
        subject_id=pseudonyms.patient(subject),
        study_id=pseudonyms.study(group.study_uid or group.series_uid),
        series_id=pseudonyms.series(group.series_uid),
        patient_id=group.patient_id,
        series_uid=group.series_uid,
        files=len(group.reads),
    )


def _subject(group: _Group) -> tuple[str, tuple[str, ...]]:
    """Return what tells the patient apart: the identifier, or else name and birth date."""
    if group.patient_id:
        return group.patient_id, ()
    elements = group.reads[0].elements
    name, birth = written_text(elements, PATIENT_NAME), text(elements, BIRTH_DATE)
    if name and birth:
        return f"name|{name}|{birth}", (_NO_ID + "name and birth date stand for it",)
    study = group.study_uid or group.series_uid
    return f"study|{study}", (_NO_ID + "each study counts as a patient of its own",)


_NO_ID = "PATIENT_UNKNOWN: PatientID (0010,0020) is empty; "


def _judge_all(
    jobs: Sequence[SeriesJob],
    options: SeriesOptions,
    mapper: Mapper,
    progress: Progress | None,
) -> list[SeriesIntake]:
    open_jobs = [job for job in jobs if not job.record.code]
    judged: dict[tuple[str, str, str], SeriesIntake] = {}
    answers = zip(open_jobs, mapper(partial(judge, options=options), open_jobs), strict=True)
    for done, (job, answer) in enumerate(answers, start=1):
        crashed = replace(job.record, code="PARSER_CRASH", detail=_CRASHED)
        judged[_order(job.record)] = crashed if isinstance(answer, Died) else answer
        if progress is not None:
            progress("check", done, len(open_jobs))
    return [judged.get(_order(job.record), job.record) for job in jobs]


def _one_per_study(series: Sequence[SeriesIntake]) -> list[SeriesIntake]:
    studies: dict[tuple[str, str], list[SeriesIntake]] = defaultdict(list)
    for each in series:
        if each.status == "accepted":
            studies[each.subject_id, each.study_id].append(each)
    chosen = {
        _order(each): each for candidates in studies.values() for each in ranking.choose(candidates)
    }
    return [chosen.get(_order(each), each) for each in series]


def _account(
    series: Sequence[SeriesIntake],
    single: Sequence[Exclusion],
    skipped: Mapping[str, int],
    seen: int,
) -> Intake:
    """Add everything up; the record refuses counts that do not."""
    refused = [
        Exclusion(
            code=each.code,
            subject_id=each.subject_id,
            where=f"series {each.series_id}",
            detail=each.detail,
            files=each.files,
        )
        for each in series
        if each.status == "excluded"
    ]
    copies = sum(each.duplicates for each in series)
    counted = {**skipped, "DUP_INSTANCE": copies} if copies else dict(skipped)
    exclusions = (*refused, *single)
    return Intake(
        series=tuple(series),
        exclusions=exclusions,
        skipped=dict(sorted(counted.items())),
        seen=seen,
        used=sum(each.files for each in series if each.status == "accepted"),
        excluded=sum(each.files for each in exclusions),
    )
