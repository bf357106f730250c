"""One patient's visit to the scanner: who came, when, and how the scan was run. All invented."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from preprocessing.phantoms.subject import PhantomSubject

F18_HALF_LIFE_S = 6588.0
BED_LENGTH_MM = 138.0
BED_CHANGE_S = 3
_FAMILY_NAMES = ("Phantom", "Testa", "Muster", "Sample", "Ficta", "Mockwell", "Beispiel", "Ejemplo")
_GIVEN_NAMES = {
    "F": ("Ada", "Berta", "Clara", "Dora", "Elsa", "Frida"),
    "M": ("Anton", "Bruno", "Carl", "David", "Emil", "Felix"),
}
_EPOCH = date(2019, 1, 7)
_YEARS_DAYS = 5 * 365


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """What a header says beyond the picture.

    Attributes
    ----------
    scan_start
        The time that all images are decay-corrected to.
    series_time
        SeriesTime (0008,0031); later than the scan where post-processing has rewritten it.
    bed_s
        Seconds per bed position.
    bed_slices
        Slices per bed position.
    head_first_numbers
        InstanceNumber (0020,0013) 1 is at the head; otherwise at the feet.
    jitter_mm
        Rounding noise of the slice positions.
    datetime_given
        Whether the header holds the injection's date beside its time.
    layout
        Which of ``LAYOUTS`` the export followed.
    """

    patient_name: str
    birth_date: date
    study_uid: str
    series_uid: str
    frame_uid: str
    injection: datetime
    scan_start: datetime
    series_time: datetime
    bed_s: int
    bed_slices: int
    head_first_numbers: bool
    jitter_mm: float
    datetime_given: bool
    transfer_syntax_uid: str
    layout: int
    has_scout: bool
    has_note: bool


def draw_visit(
    subject: PhantomSubject, *, slice_mm: float, slices: int, rng: np.random.Generator
) -> Visit:
    """Draw the circumstances of one scan."""
    day = _EPOCH + timedelta(days=int(rng.integers(0, _YEARS_DAYS)))
    injection = datetime(day.year, day.month, day.day, 7) + timedelta(
        seconds=int(rng.integers(0, 8 * 3600))
    )
    scan_start = injection + timedelta(seconds=subject.uptake_s)
    bed_s, bed_slices = int(rng.choice((120, 150, 180))), max(1, int(BED_LENGTH_MM / slice_mm))
    beds = -(-slices // bed_slices)
    rewritten = rng.random() < 0.25
    finished = scan_start + timedelta(seconds=beds * (bed_s + BED_CHANGE_S) + 240)
    birthday = timedelta(days=int(rng.integers(0, 365)))
    return Visit(
        patient_name=f"{rng.choice(_FAMILY_NAMES)}^{rng.choice(_GIVEN_NAMES[subject.sex])}",
        birth_date=date(day.year - subject.age_years - 1, day.month, 1) + birthday,
        study_uid=_uid(rng),
        series_uid=_uid(rng),
        frame_uid=_uid(rng),
        injection=injection,
        scan_start=scan_start,
        series_time=finished if rewritten else scan_start,
        bed_s=bed_s,
        bed_slices=bed_slices,
        head_first_numbers=bool(rng.random() < 0.6),
        jitter_mm=4e-4,
        datetime_given=bool(rng.random() < 0.4),
        transfer_syntax_uid=str(
            ImplicitVRLittleEndian if rng.random() < 0.5 else ExplicitVRLittleEndian
        ),
        layout=int(rng.integers(0, 3)),
        has_scout=bool(rng.random() < 0.2),
        has_note=bool(rng.random() < 0.2),
    )


def _uid(rng: np.random.Generator) -> str:
    """Return a UID made from a random UUID (PS3.5 B.2), drawn from the subject's own stream."""
    return f"2.25.{int.from_bytes(rng.bytes(16), 'big')}"
