"""Cases to case files, in worker processes; what is refused becomes an exclusion."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipelines.config import BuildConfig
from pipelines.progress import Progress
from pipelines.recipes import RECIPES
from preprocessing.errors import OutputError, PreprocessingError, ShardError
from preprocessing.records import Case, Died, Exclusion, Mapper
from preprocessing.shards import CaseRow, FieldSpec, read_case, write_case


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """The rows of one case, in its case file, and what of the case was left out."""

    case: Case = field(repr=False)
    path: Path = field(repr=False)
    rows: tuple[CaseRow, ...]
    notes: tuple[Exclusion, ...] = ()


def derive_case(
    case: Case,
    *,
    recipe: str,
    config: BuildConfig,
    layout: Mapping[str, FieldSpec],
    folder: Path,
) -> Derived | Exclusion:
    """Derive one case into its case file, or take the file that an earlier try has left."""
    settings = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(f"{settings}|{sorted(layout)}|{case.fingerprint}".encode())
    path = folder / f"{case.case_id}-{digest.hexdigest()[:16]}.case"
    try:
        if not _intact(path):
            found = RECIPES[recipe].derive(case, config)
            write_case(path, found.examples, layout=layout, notes=found.notes)
        index = read_case(path)
        return Derived(case=case, path=path, rows=index.rows, notes=index.notes)
    except OutputError:
        raise
    except PreprocessingError as error:
        return refusal(case, error.code, str(error))
    except MemoryError:
        return refusal(case, "TOO_LARGE", "the case needs more memory than a worker may take")


def _intact(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        read_case(path)
    except ShardError:
        path.unlink()
        return False
    return True


def refusal(case: Case, code: str, detail: str) -> Exclusion:
    """Exclude all files of a case."""
    return Exclusion(
        code=code,
        subject_id=case.subject_id,
        where=f"case {case.case_id}",
        detail=detail,
        files=case.files,
    )


def derive_all(
    cases: Sequence[Case],
    *,
    recipe: str,
    config: BuildConfig,
    layout: Mapping[str, FieldSpec],
    folder: Path,
    mapper: Mapper,
    progress: Progress,
) -> tuple[list[Derived], list[Exclusion]]:
    """Derive every case into its case file; a refused case becomes an exclusion."""
    derive = partial(derive_case, recipe=recipe, config=config, layout=layout, folder=folder)
    derived: list[Derived] = []
    refused: list[Exclusion] = []
    results = zip(cases, mapper(derive, cases), strict=True)
    for done, (case, result) in enumerate(results, start=1):
        match result:
            case Derived():
                derived.append(result)
            case Exclusion():
                refused.append(result)
            case Died():
                refused.append(
                    refusal(
                        case,
                        "PARSER_CRASH",
                        "reading the case ended its process, or took too long: the files are "
                        "damaged in a way that the decoder does not survive",
                    )
                )
        progress("cases", done, len(cases))
    return derived, refused


def without_twins(
    derived: Sequence[Derived], *, identifiers: str
) -> tuple[list[Derived], list[Exclusion]]:
    """Exclude cases of different patients with the same picture: one of the names is wrong.

    ``identifiers`` says what tells patients apart.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for item in derived:
        for row in item.rows:
            owners[row.image_digest].add(row.subject_id)
    kept: list[Derived] = []
    twins: list[Exclusion] = []
    for item in derived:
        shared = max(len(owners[row.image_digest]) for row in item.rows)
        if shared == 1:
            kept.append(item)
            continue
        twins.append(
            refusal(
                item.case,
                "CROSS_PATIENT_DUP",
                f"the same picture stands under {shared} {identifiers}: one person with several "
                "identifiers (tell with --patient-map where the command has it, else keep one), or "
                "a scan filed under a wrong name",
            )
        )
    return kept, twins
