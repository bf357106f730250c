"""What intake answers with: one record per series, and the account of every file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from preprocessing.dicom_file import Instance
from preprocessing.dicom_geometry import SliceGeometry
from preprocessing.errors import PreprocessingError
from preprocessing.records import Exclusion, Unit
from preprocessing.suv import SUVConversion


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """Modality rescale of each slice: value = slope * stored + intercept."""

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeriesIntake:
    """One series that was seen, and what it would become.

    Attributes
    ----------
    modality
        ``PT``, ``CT``, ...; "" where no file says it.
    status, code, detail
        Accepted, or excluded with a code and a sentence that says what was seen.
    warnings
        What was mended or is unusual, each text beginning with its code. The warnings of the SUV
        conversion are in ``suv.warnings``.
    subject_id, study_id, series_id
        Pseudonyms.
    patient_id, series_uid
        As in the files, for the join with a table that people keep; never to be written anywhere.
    files, duplicates
        Files of the series, and copies of them that were dropped beside.
    instances
        Images along the slice normal, the end that lies at the feet (or to the right, or in front)
        first; empty where excluded. The first keeps its header, the others what decoding reads.
    shape, spacing_mm
        Of the volume that ``load_volume`` would give: z, y, x; None where they are not known.
    geometry, rescale, suv
        What ``load_volume`` needs; None where excluded.
    unit
        Of the volume.
    vendor
        GE, SIEMENS, PHILIPS or OTHER; "" where the manufacturer is not given.
    fingerprint
        Changes with the size, time, header or order of any file; "" where excluded.
    """

    modality: str
    status: Literal["accepted", "excluded"]
    code: str = ""
    detail: str = ""
    warnings: tuple[str, ...] = ()
    subject_id: str
    study_id: str
    series_id: str
    patient_id: str = field(repr=False)
    series_uid: str = field(repr=False)
    files: int
    duplicates: int = 0
    instances: tuple[Instance, ...] = field(default=(), repr=False)
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    geometry: SliceGeometry | None = field(default=None, repr=False)
    rescale: Rescale | None = field(default=None, repr=False)
    suv: SUVConversion | None = field(default=None, repr=False)
    unit: Unit = Unit.SUVBW
    vendor: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Intake:
    """A folder's account: every file is used, excluded with a code, or skipped and counted.

    Attributes
    ----------
    series
        Every series of images, accepted or not, in a stable order.
    exclusions
        Excluded series, and single files that belong to no series.
    skipped
        Files that are no images, and dropped duplicates, counted by reason.
    seen, used, excluded
        Files.

    Raises
    ------
    PreprocessingError
        ``ACCOUNT_BROKEN`` where the counts do not add up: a mistake in the program.
    """

    series: tuple[SeriesIntake, ...]
    exclusions: tuple[Exclusion, ...]
    skipped: Mapping[str, int]
    seen: int
    used: int
    excluded: int

    def __post_init__(self) -> None:
        accounted = self.used + self.excluded + sum(self.skipped.values())
        if self.seen != accounted:
            raise PreprocessingError(
                "ACCOUNT_BROKEN",
                f"{self.seen} files were seen, {accounted} are accounted for: please report this",
            )
