"""When the dose was measured: the administration time, and whether it can be believed."""

from math import log2

import numpy as np

from preprocessing.dicom_values import (
    SECONDS_PER_DAY,
    Vendor,
    attribute_name,
    has_offset,
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
    if drug.start_datetime or drug.start_time:
        return drug.start_datetime, attribute_name(START_DATETIME)
    found = series.private(0x0009, 0x3B, creator="GEMS_PETD_01", allow_bare=maker == "GE")
    if found is None:
        return "", ""
    try:
        instants = series.datetimes(found[0])
    except HeaderError:
        return "", ""
    if np.ptp(instants) != 0:  # also where a slice lacks it
        return "", ""
    notes.add(
        "INJ_TIME_PRIVATE",
        f"{attribute_name(START_TIME)} is missing; {private_name(found[0])} is used",
    )
    return series.texts(found[0])[0], private_name(found[0])


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


def _time_of_day(text: str, stated: float | None, notes: Notes) -> float | None:
    """Return RadiopharmaceuticalStartTime, ``None`` where absent or, beside a date, unreadable."""
    if not text:
        return None
    try:
        return parse_time(text, name=attribute_name(START_TIME), code="INJ_TIME_INVALID")
    except HeaderError as error:
        if stated is None:
            raise
        notes.add("INJ_TIME_IGNORED", f"{error}; {attribute_name(START_DATETIME)} is used")
        return None


def _rebuild(time_of_day: float, scan_s: float) -> float:
    """Put a time of day on the scan's day, or the day before where that is after the scan."""
    day, _ = to_days(scan_s)
    instant = day + time_of_day
    return instant - SECONDS_PER_DAY if instant > scan_s + CLOCKS_APART_S else instant


def _times_apart(stated: float | None, time_of_day: float | None, half_life_s: float) -> float:
    """Return how far the two times of day lie apart, 0 where that changes SUV by 1 % or less."""
    if stated is None or time_of_day is None:
        return 0.0
    apart = abs(to_days(stated)[1] - time_of_day)
    apart = min(apart, SECONDS_PER_DAY - apart)
    return apart if apart > half_life_s * log2(1 + TIME_CONFLICT) else 0.0


def _note_times_apart(apart: float, used: str, notes: Notes) -> None:
    if apart:
        notes.add(
            "INJ_TIME_CONFLICT",
            f"{attribute_name(START_TIME)} and {attribute_name(START_DATETIME)} lie "
            f"{apart / 60:.0f} min apart; {attribute_name(used)} is used",
        )


def _trusted(uptake_s: float, half_life_s: float) -> bool:
    return -CLOCKS_APART_S <= uptake_s < TRUSTED_HALF_LIVES * half_life_s


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
    on the day before where it would be more than one hour after the scan. Where a date and time
    states an offset from UTC that nothing else in the header shares, it gives way to a time of day
    that contradicts it.

    Raises
    ------
    HeaderError
        ``INJ_TIME_MISSING`` without any; ``INJ_TIME_INVALID`` if unreadable; ``UPTAKE_RANGE`` where
        the half-life is too long to rebuild the date, or the uptake is impossible.
    """
    text, name = _datetime_text(series, drug, maker, notes)
    stated = _stated_instant(series, text, name, drug.start_time, notes)
    time_of_day = _time_of_day(drug.start_time, stated, notes)
    apart = _times_apart(stated, time_of_day, half_life_s)
    if apart and has_offset(text) and series.utc_offset() is None:
        stated = None
    if stated is not None and _trusted(scan_s - stated, half_life_s):
        _note_times_apart(apart, START_DATETIME, notes)
        check_uptake(scan_s - stated, drug, half_life_s, notes)
        return stated
    if stated is None and time_of_day is None:
        raise _missing()
    if half_life_s >= LONG_HALF_LIFE_S:
        raise _cannot_rebuild(stated, scan_s, half_life_s)
    _note_times_apart(apart, START_TIME, notes)
    rebuilt = _rebuild(to_days(stated or 0.0)[1] if time_of_day is None else time_of_day, scan_s)
    _check_rebuilt(rebuilt, stated, name, scan_s, half_life_s, notes)
    check_uptake(scan_s - rebuilt, drug, half_life_s, notes)
    return rebuilt


def _check_rebuilt(
    rebuilt: float,
    stated: float | None,
    name: str,
    scan_s: float,
    half_life_s: float,
    notes: Notes,
) -> None:
    """Note a date that was replaced; refuse it where the new one cannot be believed either."""
    if stated is None or abs(rebuilt - stated) <= SECONDS_PER_DAY / 2:
        return
    if not _trusted(scan_s - rebuilt, half_life_s):
        raise HeaderError(
            "UPTAKE_RANGE",
            f"{name} lies {(scan_s - stated) / 3600:.1f} h before the scan, and on the day of the "
            f"scan it would be {(scan_s - rebuilt) / 3600:.1f} h: neither is within one hour after "
            "to two half-lives before the scan; correct the times",
        )
    notes.add(
        "DATE_REBUILT",
        f"{name} lies outside one hour after to two half-lives before the scan; the time of "
        "day is put on the day of the scan",
    )


def _missing() -> HeaderError:
    return HeaderError(
        "INJ_TIME_MISSING",
        f"{attribute_name(START_DATETIME)} and {attribute_name(START_TIME)} are missing: the "
        "dose cannot be decayed; export the injection time",
    )


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
