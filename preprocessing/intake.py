"""Any folder to checked series: every file is used, excluded with a code, or skipped and counted.

Files are known by their content, read once and under limits, and grouped by patient, study and
series. Each PET series is checked and converted on paper (geometry, rescale, SUV); of those that a
study offers, one is chosen. The answer does not depend on the order of the folder, on file names or
on how many workers read.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Literal

from preprocessing import ranking
from preprocessing.dicom_file import FileRead
from preprocessing.errors import HeaderError
from preprocessing.folder_walk import list_files
from preprocessing.intake_parts import (
    Found,
    Knowledge,
    Open,
    Task,
    answered,
    joined,
    look,
    read_files,
    regrouped,
    tasks,
)
from preprocessing.intake_records import Intake, SeriesIntake
from preprocessing.labels import Table
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Died, Exclusion, Mapper, Progress
from preprocessing.series_judge import SeriesOptions
from preprocessing.suv import ROUTES

__all__ = ["Intake", "SeriesIntake", "scan"]


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
    knowledge = Knowledge(
        pseudonyms=pseudonyms,
        weights=weights,
        options=SeriesOptions(
            suv_formula=suv_formula,
            prefer_route=prefer_route,
            fill_gaps=fill_gaps,
            allow_intercept=allow_intercept,
        ),
    )
    cut = tasks(listing.files, place)
    found = _look_at_all(cut, knowledge, mapper, progress)
    for path, read in sorted(_outside_series(cut, found), key=itemgetter(0)):
        if read.skip:
            skipped[read.skip] += 1
        else:
            code, detail = (read.code, read.detail) if read.code else _NAMELESS
            where = pseudonyms.file(path.relative_to(place))
            exclusions.append(_single(code, "file", where, detail, 1))
    decided, unknown = joined(cut, found)
    series = _judge_rest(decided, unknown, knowledge, mapper, progress)
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


def _outside_series(cut: Sequence[Task], found: Sequence[Found]) -> Iterator[tuple[Path, FileRead]]:
    for task, each in zip(cut, found, strict=True):
        for place, read in each.single:
            yield task.files[place], read


def _look_at_all(
    cut: Sequence[Task], knowledge: Knowledge, mapper: Mapper, progress: Progress | None
) -> list[Found]:
    files, seen = sum(len(task.files) for task in cut), 0
    found: list[Found | Died] = []
    for task, each in zip(cut, mapper(partial(look, knowledge=knowledge), cut), strict=True):
        found.append(each)
        seen += len(task.files)
        if progress is not None:
            progress("read", seen, files)
    return [
        regrouped(_read_singly(task, mapper), knowledge) if isinstance(each, Died) else each
        for task, each in zip(cut, found, strict=True)
    ]


def _read_singly(task: Task, mapper: Mapper) -> list[FileRead]:
    """Find the file that ended the process which read it; the others are read all the same."""
    reads: list[FileRead] = []
    for read in mapper(read_files, [[path] for path in task.files]):
        crashed = isinstance(read, Died)
        reads.extend([FileRead(code="PARSER_CRASH", detail=_CRASHED)] if crashed else read)
    return reads


_CRASHED = (
    "reading ended its process, or took too long: the file is damaged in a way that no parser "
    "survives"
)


def _judge_rest(
    decided: Sequence[SeriesIntake],
    unknown: Sequence[Open],
    knowledge: Knowledge,
    mapper: Mapper,
    progress: Progress | None,
) -> list[SeriesIntake]:
    """Judge the series that no task had before it as a whole; return all, by pseudonym."""
    series = list(decided)
    total = len(decided) + len(unknown)
    if progress is not None and total:
        progress("check", len(decided), total)
    answers = mapper(partial(answered, knowledge=knowledge), unknown)
    for asked, answer in zip(unknown, answers, strict=True):
        crashed = replace(asked.record, code="PARSER_CRASH", detail=_CRASHED)
        series.append(crashed if isinstance(answer, Died) else answer)
        if progress is not None:
            progress("check", len(series), total)
    return sorted(series, key=_order)


def _order(series: SeriesIntake) -> tuple[str, str, str]:
    return series.subject_id, series.study_id, series.series_id


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
