"""When the dose was measured: the administration time, and whether it can be believed."""

from math import log2

from preprocessing.dicom_values import (
    Vendor,
    attribute_name,
    parse_datetime,
    parse_time,
)
from preprocessing.errors import HeaderError
from preprocessing.suv_dose import (
    HALF_LIVES_S,
    START_DATETIME,
    START_TIME,
    Radiopharmaceutical,
)
from preprocessing.suv_series import Notes, SeriesColumns, private_name, to_days

CLOCKS_APART_S = 3600.0
"""An injection up to this much after the scan is a matter of two clocks."""
TRUSTED_HALF_LIVES = 2.0
LONG_HALF_LIFE_S = 41400.0
"""From here on a wrong day cannot be told from a late scan: the date is not rebuilt."""
LONGEST_UPTAKE_S = 6 * 3600.0
FDG_UPTAKE_S = (20 * 60.0, 180 * 60.0)
TIME_CONFLICT = 0.01


def _datetime_text(
    series: SeriesColumns, drug: Radiopharmaceutical, maker: Vendor, notes: Notes
) -> tuple[str, str]:
    """Return the text and the name of the administration date and time."""
    if drug.start_datetime or drug.start_time or maker not in ("GE", ""):
        return drug.start_datetime, attribute_name(START_DATETIME)
    found = series.private(0x0009, 0x3B, creator="GEMS_PETD_01", allow_bare=maker == "GE")
    if found is None:
        return "", ""
    texts = set(series.texts(found[0]))
    if len(texts) > 1 or not all(texts):
        return "", ""
    notes.add(
        "INJ_TIME_PRIVATE",
        f"{attribute_name(START_TIME)} is missing; {private_name(found[0])} is used",
    )
    return texts.pop(), private_name(found[0])


def _stated_instant(
    series: SeriesColumns, text: str, name: str, time_text: str, notes: Notes
) -> float | None:
    if not text:
        return None
    try:
        return parse_datetime(
            text, name=name, utc_offset_s=series.utc_offset(), code="INJ_TIME_INVALID"
        )
    except HeaderError as error:
        if not time_text:
            raise
        notes.add("INJ_TIME_IGNORED", f"{error}; {attribute_name(START_TIME)} is used")
        return None


def _rebuild(time_of_day: float, scan_s: float) -> float:
    """Put a time of day on the scan's day, or the day before where that is after the scan."""
    day, _ = to_days(scan_s)
    instant = day + time_of_day
    return instant - 86400.0 if instant > scan_s + CLOCKS_APART_S else instant


def _note_time_conflict(stated: float, time_text: str, half_life_s: float, notes: Notes) -> None:
    if not time_text:
        return
    other = parse_time(time_text, name=attribute_name(START_TIME), code="INJ_TIME_INVALID")
    apart = abs(to_days(stated)[1] - other)
    apart = min(apart, 86400.0 - apart)
    if apart > half_life_s * log2(1 + TIME_CONFLICT):
        notes.add(
            "INJ_TIME_CONFLICT",
            f"{attribute_name(START_TIME)} and {attribute_name(START_DATETIME)} lie "
            f"{apart / 60:.0f} min apart; the latter is used",
        )


def administration_time(
    series: SeriesColumns,
    drug: Radiopharmaceutical,
    *,
    scan_s: float,
    half_life_s: float,
    maker: Vendor,
    notes: Notes,
) -> float:
    """Return the administration time in seconds on the axis of ``scan_s``.

    A date is believed where the scan lies from one hour before to two half-lives after it.
    Otherwise (a date moved on one side, or none) the time of day is put on the scan's own day, or
    on the day before where it would be more than one hour after the scan.

    Raises
    ------
    HeaderError
        ``INJ_TIME_MISSING`` without any; ``INJ_TIME_INVALID`` if unreadable; ``UPTAKE_RANGE`` where
        the half-life is too long to rebuild the date, or the uptake is impossible.
    """
    text, name = _datetime_text(series, drug, maker, notes)
    stated = _stated_instant(series, text, name, drug.start_time, notes)
    if stated is not None:
        if -CLOCKS_APART_S <= scan_s - stated < TRUSTED_HALF_LIVES * half_life_s:
            _note_time_conflict(stated, drug.start_time, half_life_s, notes)
            check_uptake(scan_s - stated, drug, half_life_s, notes)
            return stated
    elif not drug.start_time:
        raise HeaderError(
            "INJ_TIME_MISSING",
            f"{attribute_name(START_DATETIME)} and {attribute_name(START_TIME)} are missing: the "
            "dose cannot be decayed; export the injection time",
        )
    if half_life_s >= LONG_HALF_LIFE_S:
        raise _cannot_rebuild(stated, scan_s, half_life_s)
    if drug.start_time:
        code = "INJ_TIME_INVALID"
        time_of_day = parse_time(drug.start_time, name=attribute_name(START_TIME), code=code)
    else:
        time_of_day = to_days(stated or 0.0)[1]
    rebuilt = _rebuild(time_of_day, scan_s)
    check_uptake(scan_s - rebuilt, drug, half_life_s, notes)
    if stated is not None and abs(rebuilt - stated) > 1:
        notes.add(
            "DATE_REBUILT",
            f"{name} lies outside one hour after to two half-lives before the scan; the time of "
            "day is put on the day of the scan",
        )
    return rebuilt


def _cannot_rebuild(stated: float | None, scan_s: float, half_life_s: float) -> HeaderError:
    if stated is None:
        return HeaderError(
            "INJ_TIME_MISSING",
            f"{attribute_name(START_DATETIME)} is missing and at a half-life of {half_life_s:g} s "
            "the day of the injection matters: export the date and time of the injection",
        )
    return HeaderError(
        "UPTAKE_RANGE",
        f"{attribute_name(START_DATETIME)} lies {(scan_s - stated) / 3600:.1f} h before the scan, "
        f"not within one hour after to two half-lives ({half_life_s:g} s each) before: one of the "
        "times is wrong; correct the header",
    )


def check_uptake(
    uptake_s: float, drug: Radiopharmaceutical, half_life_s: float, notes: Notes
) -> None:
    """Note an unusual time between injection and scan, and refuse an impossible one.

    Raises
    ------
    HeaderError
        ``UPTAKE_RANGE`` above six hours and two half-lives.
    """
    minutes = uptake_s / 60
    limit = max(LONGEST_UPTAKE_S, TRUSTED_HALF_LIVES * half_life_s)
    if uptake_s > limit:
        raise HeaderError(
            "UPTAKE_RANGE",
            f"the injection lies {minutes:.0f} min before the scan, more than {limit / 60:.0f} min "
            "(or it lies after the scan): SUVbw would be wrong many times over; correct the times",
        )
    fdg = drug.nuclide == "F-18" or (
        not drug.nuclide and abs(half_life_s / HALF_LIVES_S["F-18"] - 1) < 0.01
    )
    low, high = FDG_UPTAKE_S if fdg else (0.0, limit)
    if not low <= uptake_s <= high:
        notes.add(
            "UPTAKE_RANGE",
            f"the injection lies {minutes:.0f} min before the scan, outside {low / 60:.0f} to "
            f"{high / 60:.0f} min",
        )
