"""BraTS folders: which files belong to which case, and what can be told from their headers.

Names of all years are known: ``<case>_{t1,t1ce,t2,flair,seg}`` (2012 to 2021) and
``<case>-{t1n,t1c,t2w,t2f,seg}`` (from 2023), ``.nii`` or ``.nii.gz``, in letters of either case.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocessing.errors import GeometryError, PreprocessingError
from preprocessing.folder_walk import list_files
from preprocessing.nifti_reader import NiftiGrid, read_grid
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Died, Discovery, Exclusion, Mapper, Progress

MODALITIES = ("T1", "T1ce", "T2", "FLAIR")
"""Channels of every picture, in this order."""
SEGMENTATION = "seg"
KINDS: Mapping[str, str] = {
    "t1": "T1",
    "t1n": "T1",
    "t1ce": "T1ce",
    "t1c": "T1ce",
    "t1gd": "T1ce",
    "t2": "T2",
    "t2w": "T2",
    "flair": "FLAIR",
    "t2f": "FLAIR",
    "seg": SEGMENTATION,
}
SAME_PLACE_MM = 0.5
"""Half a voxel: headers of one case are rounded differently by the tools that wrote them."""
GRADES = ("HGG", "LGG")

_NIFTI = re.compile(r".+\.nii(\.gz)?", re.IGNORECASE)
_NAME = re.compile(
    rf"(?P<case>.+)[_-](?P<kind>{'|'.join(KINDS)})\.nii(\.gz)?", re.IGNORECASE | re.DOTALL
)
# The last number of these names is the time point: two of them are one patient.
_TIME_POINTS = (
    re.compile(r"(?P<patient>brats1[789]_.+)_\d"),
    re.compile(r"(?P<patient>brats-[a-z]+-\d+)-\d{3}"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BratsCase:
    """Four modalities and a segmentation of one head, on one grid as far as headers tell.

    Attributes
    ----------
    case_id, subject_id
        Pseudonyms of the scan and of the patient.
    paths
        A file for each of ``MODALITIES``, and the segmentation.
    shape, affine
        Of the common grid: voxels along z, y, x; (x, y, z, 1) index to LPS millimetres.
    grade
        ``HGG`` or ``LGG`` after the folder it lies in, or "".
    fingerprint
        Changes whenever a file changes.
    """

    case_id: str
    subject_id: str
    paths: Mapping[str, Path] = field(repr=False)
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    grade: str
    fingerprint: str

    @property
    def files(self) -> int:
        """Four modalities and the segmentation."""
        return len(self.paths)

    @property
    def guarded(self) -> bool:
        """Voxels are decoded by zlib and NumPy alone."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Files of one folder that share a case's name."""

    case_id: str
    subject_id: str
    grade: str
    paths: Mapping[str, tuple[Path, ...]]

    @property
    def files(self) -> int:
        return sum(len(found) for found in self.paths.values())


def find_cases(
    root: Path,
    *,
    pseudonyms: Pseudonyms,
    mapper: Mapper = map,
    progress: Progress | None = None,
) -> Discovery:
    """Account for every file below ``root``; a complete case is one whose headers agree.

    Raises
    ------
    FileError
        ``INPUT_MISSING`` or ``INPUT_NOT_A_FOLDER``.
    """
    listing = list_files(root)
    place = root.resolve()
    skipped: Counter[str] = Counter(listing.skipped)
    exclusions = [
        _nameless("UNREADABLE", f"folder {pseudonyms.file(path.relative_to(place))}", _CLOSED, 0)
        for path in listing.closed
    ]
    named: dict[tuple[Path, str], dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in listing.files:
        match = _NAME.fullmatch(path.name)
        if match:
            kind = KINDS[match["kind"].lower()]
            named[path.parent, match["case"].casefold()][kind].append(path)
        elif _NIFTI.fullmatch(path.name):
            where = f"file {pseudonyms.file(path.relative_to(place))}"
            exclusions.append(_nameless("NII_NAME", where, _UNKNOWN_NAME, 1))
        else:
            skipped["NOT_NIFTI"] += 1
    groups = _groups(named, place, pseudonyms)
    cases, refused = _examined(groups, mapper, progress)
    return Discovery(
        cases=cases,
        exclusions=(*exclusions, *refused),
        skipped=dict(sorted(skipped.items())),
        seen=len(listing.files) + sum(listing.skipped.values()),
    )


_CLOSED = "the folder cannot be listed: check its permissions"
_UNKNOWN_NAME = (
    "the name does not end in _t1, _t1ce, _t2, _flair or _seg (or a later year's -t1n, -t1c, -t2w, "
    "-t2f): which part of which case the file holds is unknown; rename it"
)


def patient_of(case: str) -> str:
    """Return the part of a case's name that stands for the patient: two time points share it."""
    name = case.casefold()
    for pattern in _TIME_POINTS:
        match = pattern.fullmatch(name)
        if match:
            return match["patient"]
    return name


def _groups(
    named: Mapping[tuple[Path, str], Mapping[str, Sequence[Path]]],
    place: Path,
    pseudonyms: Pseudonyms,
) -> list[_Group]:
    """Bring cases into an order that depends on pseudonyms alone; equal names become one group."""
    merged: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for (_, case), kinds in named.items():
        for kind, paths in kinds.items():
            merged[case][kind] += paths
    groups = []
    for case, kinds in merged.items():
        patient, scan = pseudonyms.patient(patient_of(case)), pseudonyms.study(case)
        paths = {kind: tuple(sorted(found)) for kind, found in sorted(kinds.items())}
        groups.append(
            _Group(
                case_id=f"{patient[:8]}-{scan[:8]}",
                subject_id=patient,
                grade=_grade(next(iter(paths.values()))[0].relative_to(place)),
                paths=paths,
            )
        )
    return sorted(groups, key=lambda group: group.case_id)


def _grade(path: Path) -> str:
    parts = {part.upper() for part in path.parts[:-1]}
    return next((grade for grade in GRADES if grade in parts), "")


def _examined(
    groups: Sequence[_Group], mapper: Mapper, progress: Progress | None
) -> tuple[tuple[BratsCase, ...], list[Exclusion]]:
    cases: list[BratsCase] = []
    refused: list[Exclusion] = []
    results = zip(groups, mapper(examine, groups), strict=True)
    for done, (group, result) in enumerate(results, start=1):
        match result:
            case BratsCase():
                cases.append(result)
            case Died():
                refused.append(
                    _refusal(group, "PARSER_CRASH", "reading a header ended its process")
                )
            case code, detail:
                refused.append(_refusal(group, code, detail))
        if progress is not None:
            progress("check", done, len(groups))
    return tuple(cases), refused


def examine(group: _Group) -> BratsCase | tuple[str, str]:
    """Read the headers of one group; return the case, or the code and reason why it is none."""
    repeated = [kind for kind, found in group.paths.items() if len(found) > 1]
    if repeated:
        return (
            "NII_DUPLICATE",
            f"{', '.join(repeated)} is there {len(group.paths[repeated[0]])} times under one "
            "case's name: which file counts is unknown; keep one",
        )
    missing = [kind for kind in MODALITIES if kind not in group.paths]
    if missing:
        return "NII_MISSING_MODALITY", f"the case has no {', '.join(missing)}: add the file"
    if SEGMENTATION not in group.paths:
        return (
            "NII_MISSING_SEG",
            "the case has no segmentation: whether a hemisphere holds tumour is unknown (the "
            "challenge's validation and test cases come without)",
        )
    try:
        grids = {kind: read_grid(found[0]) for kind, found in group.paths.items()}
        _check_grids(grids)
    except PreprocessingError as error:
        return error.code, str(error)
    return _case(group, grids)


def _case(group: _Group, grids: Mapping[str, NiftiGrid]) -> BratsCase:
    digest = hashlib.sha256()
    for kind, grid in sorted(grids.items()):
        digest.update(f"{kind}|{grid.fingerprint}\n".encode())
    common = grids[MODALITIES[0]]
    return BratsCase(
        case_id=group.case_id,
        subject_id=group.subject_id,
        paths={kind: found[0] for kind, found in group.paths.items()},
        shape=common.shape,
        affine=tuple(tuple(row) for row in common.affine.tolist()),
        grade=group.grade,
        fingerprint=digest.hexdigest(),
    )


def _check_grids(grids: Mapping[str, NiftiGrid]) -> None:
    first = grids[MODALITIES[0]]
    z, y, x = (extent - 1 for extent in first.shape)
    corners = np.array([(i, j, k, 1) for i in (0, x) for j in (0, y) for k in (0, z)], dtype=float)
    for kind, grid in grids.items():
        if grid.shape != first.shape:
            raise GeometryError(
                "NII_GRID",
                f"{kind} has {grid.shape} voxels along z, y, x, {MODALITIES[0]} {first.shape}: "
                "resample all files of the case to one grid",
            )
        apart = float(np.abs((corners @ (grid.affine - first.affine).T)[:, :3]).max())
        if not apart <= SAME_PLACE_MM:
            raise GeometryError(
                "NII_GRID",
                f"{kind} lies up to {apart:.3g} mm off {MODALITIES[0]}: pixels of the channels "
                "would not match; resample all files of the case to one grid",
            )


def _refusal(group: _Group, code: str, detail: str) -> Exclusion:
    return Exclusion(
        code=code,
        subject_id=group.subject_id,
        where=f"case {group.case_id}",
        detail=detail,
        files=group.files,
    )


def _nameless(code: str, where: str, detail: str, files: int) -> Exclusion:
    return Exclusion(code=code, subject_id="", where=where, detail=detail, files=files)
