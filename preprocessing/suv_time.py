"""When the picture's activity is valid: the routes to the scan start, compared with each other.

``DecayCorrection START`` refers every slice to one instant, the start of the scan. Headers give it
in up to three ways, none of them always right, so every way that can be followed is followed.

References
----------
DICOM PS3.3 C.8.9.1 (PET Series Module) and C.8.9.4 (PET Image Module). QIBA, vendor-neutral
pseudo-code for SUV calculation, 2018. Vácha et al., computing SUV from DICOM, edition 3.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from preprocessing.dicom_values import SECONDS_PER_DAY, Vendor, attribute_name
from preprocessing.errors import HeaderError
from preprocessing.suv_routes import (
    ACQUISITION_ROUTE,
    PRIVATE_ROUTE,
    SERIES_ROUTE,
    TREF_TOLERANCE_S,
    TimeRoute,
)
from preprocessing.suv_series import Notes, SeriesColumns, inconsistent, private_name

SAME_TIME_S = 1e-3
SAME_MINUTE_S = 60.0
SLICES_OF_A_BED = 2
SHARED_LABEL = "AcquisitionTime (0008,0032) that all beds share"
LONGEST_UPTAKE_S = 180 * 60.0
"""Upper end of the FDG uptake window: how far a private scan time may lie from the public ones."""

PRIVATE_SCAN_TIMES: tuple[tuple[Vendor, int, int, str], ...] = (
    ("GE", 0x0009, 0x0D, "GEMS_PETD_01"),
    ("SIEMENS", 0x0071, 0x22, "SIEMENS MED PT"),
)
"""Vendor, group, element and creator of the private scan start."""


def average_count_rate_time(
    duration_s: Float64[np.ndarray, " n"], half_life_s: float
) -> Float64[np.ndarray, " n"]:
    """Return when, after a frame's start, the activity equals its average over the frame.

    ``ln(x / (1 - exp(-x))) / lambda`` with ``x = lambda * duration``; half the duration as x -> 0.
    """
    decay = np.log(2) / half_life_s
    x = decay * duration_s
    safe = np.where(x > 1e-6, x, 1.0)
    return np.where(x > 1e-6, np.log(safe / -np.expm1(-safe)) / decay, duration_s / 2)


def acquisition_times(series: SeriesColumns, notes: Notes) -> Float64[np.ndarray, " n"]:
    """Return the start of each slice's frame in seconds, NaN where the header does not give it.

    A date and time of acquisition that lies more than half a day from AcquisitionDate and
    AcquisitionTime was missed, or moved alone, by a de-identification: those two are then used.
    """
    for keyword in ("FrameAcquisitionDateTime", "AcquisitionDateTime"):
        stamps = series.datetimes(keyword)
        if not np.isnan(stamps).any():
            break
    parts = series.moments("AcquisitionDate", "AcquisitionTime")
    if not any(series.texts("AcquisitionDate")):
        parts = _after_midnight(parts)
    difference = np.abs(stamps - parts)
    apart = difference > SECONDS_PER_DAY / 2
    if apart.any():
        notes.add(
            "DATE_MISMATCH",
            f"{attribute_name('AcquisitionDateTime')} contradicts AcquisitionDate and "
            "AcquisitionTime by more than half a day and is not used",
        )
    elif np.any(difference > SAME_MINUTE_S):
        notes.add(
            "ACQUISITION_TIME_CONFLICT",
            f"{attribute_name('AcquisitionDateTime')} and {attribute_name('AcquisitionTime')} lie "
            f"{np.nanmax(difference) / 60:.0f} min apart; the former is used",
        )
    return np.where(np.isnan(stamps) | apart, parts, stamps)


def _after_midnight(times: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Move to the next day what an undated series acquired after midnight."""
    if np.isnan(times).any() or np.ptp(times) <= SECONDS_PER_DAY / 2:
        return times
    return np.where(times.max() - times > SECONDS_PER_DAY / 2, times + SECONDS_PER_DAY, times)


def frame_durations(series: SeriesColumns) -> Float64[np.ndarray, " n"]:
    """Return each slice's frame duration in seconds, NaN where it is absent or not positive."""
    durations = series.decimals("ActualFrameDuration", code="FRAME_DURATION_INVALID")
    if np.isnan(durations).all():
        durations = series.decimals("FrameAcquisitionDuration", code="FRAME_DURATION_INVALID")
    return np.where(durations > 0, durations / 1000.0, np.nan)


def _private_route(series: SeriesColumns, maker: Vendor, notes: Notes) -> TimeRoute | None:
    """Return the private scan start: by its creator from anyone, bare from its own vendor."""
    for name, group, element, creator in PRIVATE_SCAN_TIMES:
        found = series.private(group, element, creator=creator, allow_bare=maker == name)
        if found is None:
            continue
        tag, named = found
        if not named:
            notes.add("PRIVATE_BARE", f"{private_name(tag)} has no private creator; read anyway")
        try:
            seconds = series.datetimes(tag)
        except HeaderError:
            seconds = np.full(len(series), np.nan)
        if np.isnan(seconds).any():
            notes.add("PRIVATE_TIME_IGNORED", f"{private_name(tag)} is no instant in every slice")
            continue
        return TimeRoute(label=f"private scan time {private_name(tag)}", seconds=seconds)
    return None


def _from_frame_reference(
    series: SeriesColumns, acquired: Float64[np.ndarray, " n"], maker: Vendor, half_life_s: float
) -> Float64[np.ndarray, " n"]:
    """Scan start from the frame's own reference time; GE counts it from the frame's start."""
    reference = series.decimals("FrameReferenceTime", code="FRAME_TIME_INVALID") / 1000.0
    if maker == "GE":
        return acquired - np.where(reference >= 0, reference, np.nan)
    average = average_count_rate_time(frame_durations(series), half_life_s)
    return acquired + average - np.where(reference > 0, reference, np.nan)


def _acquisition_route(
    series: SeriesColumns,
    acquired: Float64[np.ndarray, " n"],
    series_start: float,
    maker: Vendor,
    half_life_s: float,
) -> TimeRoute | None:
    same = np.abs(acquired - series_start) <= SAME_TIME_S
    if same.all():
        label = "AcquisitionTime (0008,0032) equal to SeriesTime (0008,0031)"
        return TimeRoute(label=label, seconds=acquired)
    route = _computed_route(series, acquired, same, maker, half_life_s)
    if maker:
        return route
    as_ge = _computed_route(series, acquired, same, "GE", half_life_s)
    return as_ge if _follows_ge(as_ge, route, acquired, series_start) else route


def _follows_ge(
    as_ge: TimeRoute | None,
    neutral: TimeRoute | None,
    acquired: Float64[np.ndarray, " n"],
    series_start: float,
) -> bool:
    """Say whether a header without manufacturer counts the frame reference time as GE does.

    SeriesTime tells where one reading meets it, and the beds where only one reading gives them a
    common start.
    """
    if as_ge is None or as_ge.spread_s() > TREF_TOLERANCE_S:
        return False
    meets = abs(as_ge.instant() - series_start) <= TREF_TOLERANCE_S
    if neutral is None or neutral.spread_s() > TREF_TOLERANCE_S:
        return bool(meets or np.ptp(acquired) > TREF_TOLERANCE_S)
    return bool(meets and not abs(neutral.instant() - series_start) <= TREF_TOLERANCE_S)


def _computed_route(
    series: SeriesColumns,
    acquired: Float64[np.ndarray, " n"],
    same: Bool[np.ndarray, " n"],
    maker: Vendor,
    half_life_s: float,
) -> TimeRoute | None:
    computed = _from_frame_reference(series, acquired, maker, half_life_s)
    seconds = np.where(same, acquired, computed)
    if np.isnan(seconds).any():
        return None
    if _is_common_start(acquired, seconds):
        return TimeRoute(label=SHARED_LABEL, seconds=acquired)
    middle = "" if maker == "GE" else "+ average count rate time "
    label = f"AcquisitionTime (0008,0032) {middle}- FrameReferenceTime (0054,1300)"
    return TimeRoute(label=label, seconds=seconds)


def _is_common_start(
    acquired: Float64[np.ndarray, " n"],
    computed: Float64[np.ndarray, " n"],
) -> bool:
    """Say whether one AcquisitionTime stands in all beds and is the start of the first.

    Frame reference times that tell the beds apart then count from it, not back to another start.
    A single slice is no bed.
    """
    if np.ptp(acquired) > SAME_TIME_S or np.ptp(computed) <= TREF_TOLERANCE_S:
        return False
    latest = np.abs(computed - computed.max()) <= SAME_TIME_S  # the least reference time
    starts = np.abs(computed[latest] - acquired[latest]).max() <= TREF_TOLERANCE_S
    return bool(np.count_nonzero(latest) >= SLICES_OF_A_BED and starts)


def _note_shared(route: TimeRoute, notes: Notes) -> None:
    if route.label == SHARED_LABEL:
        notes.add(
            "ACQUISITION_TIME_SHARED",
            "all beds hold one AcquisitionTime (0008,0032) and differ in FrameReferenceTime "
            "(0054,1300): it is taken for the start of the scan, which no other attribute confirms",
        )


def _series_start(series: SeriesColumns) -> float:
    seconds = series.moments("SeriesDate", "SeriesTime")
    if np.isnan(seconds).all():
        return np.nan
    if not np.ptp(seconds) == 0:
        raise inconsistent("SeriesTime", len(np.unique(seconds)))
    return float(seconds[0])


def time_routes(
    series: SeriesColumns, *, maker: Vendor, half_life_s: float, notes: Notes
) -> dict[str, TimeRoute]:
    """Return every route to the scan start that counts, in the order of trust.

    The private scan time first, then the acquisition time with the frame reference time, then
    SeriesTime. SeriesTime counts only where it is not later than the earliest acquisition (a later
    one was rewritten by post-processing) and not ``LONGEST_UPTAKE_S`` before it. A private time
    counts only where it lies within ``LONGEST_UPTAKE_S`` of a public one (a date moved on one side
    only lies further).
    """
    acquired = acquisition_times(series, notes)
    series_start = _series_start(series)
    routes: dict[str, TimeRoute] = {}
    if not np.isnan(acquired).any():
        earliest = float(acquired.min())
        series_start = _on_the_day_of(earliest, series_start, notes)
        acquisition = _acquisition_route(series, acquired, series_start, maker, half_life_s)
        if acquisition is not None:
            routes[ACQUISITION_ROUTE] = acquisition
            _note_shared(acquisition, notes)
        another = acquisition is None or abs(series_start - earliest) > SAME_TIME_S
        if another and _series_counts(series_start, earliest, notes):
            routes[SERIES_ROUTE] = _series_route(series, series_start)
    private = _private_route(series, maker, notes)
    public = [route.seconds for route in routes.values()] or [acquired]
    if private is not None and _within_public(private, public, notes):
        routes = {PRIVATE_ROUTE: private, **routes}
    if not routes and np.isnan(acquired).any() and not np.isnan(series_start):
        routes[SERIES_ROUTE] = _series_route(series, series_start)
    return routes


def _series_route(series: SeriesColumns, start: float) -> TimeRoute:
    return TimeRoute(label="SeriesTime (0008,0031)", seconds=np.full(len(series), start))


def _series_counts(series_start: float, earliest: float, notes: Notes) -> bool:
    """Say whether SeriesTime can be the start of the scan."""
    if series_start > earliest + TREF_TOLERANCE_S:
        notes.add(
            "SERIES_TIME_LATER",
            "SeriesTime (0008,0031) is later than the earliest AcquisitionTime (0008,0032): "
            "rewritten by post-processing, not used",
        )
        return False
    if earliest - series_start > LONGEST_UPTAKE_S:
        notes.add(
            "SERIES_TIME_IGNORED",
            f"SeriesTime (0008,0031) lies {(earliest - series_start) / 3600:.1f} h before the "
            "earliest AcquisitionTime (0008,0032) (a date moved on one side only?): not used",
        )
        return False
    return not np.isnan(series_start)


def _on_the_day_of(earliest: float, series_start: float, notes: Notes) -> float:
    """Return a SeriesTime that differs from the acquisition by whole days only on its day."""
    if np.isnan(series_start):
        return series_start
    moved = round((series_start - earliest) / SECONDS_PER_DAY) * SECONDS_PER_DAY
    if not moved or abs(series_start - moved - earliest) > SAME_TIME_S:
        return series_start
    notes.add(
        "DATE_MISMATCH",
        "SeriesTime (0008,0031) equals the earliest AcquisitionTime (0008,0032), but their dates "
        f"lie {abs(moved) / SECONDS_PER_DAY:.0f} days apart (moved on one side only?)",
    )
    return series_start - moved


def _within_public(
    private: TimeRoute, public: Sequence[Float64[np.ndarray, " n"]], notes: Notes
) -> bool:
    """Say whether the private time lies near a public one, or there is none to contradict it."""
    apart = np.array([np.abs(private.seconds - seconds).max() for seconds in public])
    nearest = float(apart.min())
    if np.isnan(nearest) or nearest <= LONGEST_UPTAKE_S:
        return True
    notes.add(
        "PRIVATE_TIME_IGNORED",
        f"{private.label} lies {nearest / 3600:.1f} h from the public scan times, more than the "
        "uptake window allows (a date moved on one side only?); the public times are used",
    )
    return False
