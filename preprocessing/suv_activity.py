"""From activity concentration (Bq/mL) to SUVbw: the dose decayed to the picture's own instant."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from preprocessing.dicom_values import Vendor, attribute_name
from preprocessing.errors import HeaderError
from preprocessing.suv_dose import (
    Radiopharmaceutical,
    dose_bq,
    half_life_s,
    read_radiopharmaceutical,
)
from preprocessing.suv_injection import administration_time
from preprocessing.suv_routes import DECAY_ROUTE, TREF_TOLERANCE_S, TimeRoute, choose_route
from preprocessing.suv_series import Notes, SeriesColumns
from preprocessing.suv_subject import read_weight_kg
from preprocessing.suv_time import (
    acquisition_times,
    average_count_rate_time,
    frame_durations,
    time_routes,
)
from preprocessing.suv_units import is_enhanced, read_correction


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What was used to turn Bq/mL into SUVbw.

    Attributes
    ----------
    factors
        Per slice: Bq/mL -> g/mL.
    route
        Decay correction and source of the times.
    uptake_s
        Time from injection to the (first) instant the picture is corrected to; ``None`` for ADMIN.
    dose_bq, weight_kg, half_life_s, nuclide
        As used; the half-life is ``None`` for ADMIN.
    """

    factors: Float64[np.ndarray, " n"]
    route: str
    uptake_s: float | None
    dose_bq: float
    weight_kg: float
    half_life_s: float | None
    nuclide: str


def activity_factors(
    series: SeriesColumns,
    *,
    maker: Vendor,
    prefer: str,
    weight_override_kg: float | None,
    notes: Notes,
) -> Activity:
    """Return the factors from Bq/mL to SUVbw.

    Raises
    ------
    HeaderError
        Where weight, dose, half-life, decay correction or a time is missing, impossible or
        contradictory.
    """
    weight = read_weight_kg(series, notes, override_kg=weight_override_kg)
    drug = read_radiopharmaceutical(series, notes, in_mbq=is_enhanced(series))
    dose = dose_bq(drug, notes)
    correction = read_correction(series, notes)
    undecayed = weight * 1000.0 / dose
    if correction == "ADMIN":
        uptake, half_life, route = np.zeros(len(series)), None, "ADMIN"
        factors = np.full(len(series), undecayed)
    else:
        half_life = half_life_s(drug, notes)
        if correction == "START":
            routes = time_routes(series, maker=maker, half_life_s=half_life, notes=notes)
            found = choose_route(routes, half_life_s=half_life, prefer=prefer, notes=notes)
            instants = np.full(len(series), found.instant())
        elif correction == "DATETIME":
            found = _decay_correction_time(series, half_life, notes)
            instants = np.full(len(series), found.instant())
        else:
            found = _measurement_times(series, half_life, notes)
            instants = found.seconds
        uptake = instants - _injection(series, drug, found, half_life, maker, notes)
        route = f"{correction if correction in ('START', 'NONE') else 'ENHANCED'} / {found.label}"
        with np.errstate(over="ignore"):
            factors = undecayed * np.exp2(uptake / half_life)
    return Activity(
        factors=factors,
        route=route,
        uptake_s=None if half_life is None else float(uptake.min()),
        dose_bq=dose,
        weight_kg=weight,
        half_life_s=half_life,
        nuclide=drug.nuclide,
    )


def _injection(
    series: SeriesColumns,
    drug: Radiopharmaceutical,
    scan: TimeRoute,
    half_life: float,
    maker: Vendor,
    notes: Notes,
) -> float:
    earliest = scan.instant() if scan.spread_s() <= TREF_TOLERANCE_S else float(scan.seconds.min())
    return administration_time(
        series, drug, scan_s=earliest, half_life_s=half_life, maker=maker, notes=notes
    )


def _measurement_times(series: SeriesColumns, half_life: float, notes: Notes) -> TimeRoute:
    """When each slice's own activity was its average over the frame: no correction was made."""
    references = series.datetimes("FrameReferenceDateTime")
    if not np.isnan(references).any():
        return TimeRoute(label="FrameReferenceDateTime (0018,9151)", seconds=references)
    acquired, durations = acquisition_times(series, notes), frame_durations(series)
    if np.isnan(acquired).any():
        raise HeaderError(
            "SCAN_TIME_MISSING",
            f"{attribute_name('AcquisitionTime')} is missing and the picture is not corrected for "
            "decay: the dose cannot be decayed to it; export the times",
        )
    if np.isnan(durations).any():
        raise HeaderError(
            "FRAME_DURATION_MISSING",
            f"{attribute_name('ActualFrameDuration')} is missing or not positive and the picture "
            "is not corrected for decay: when its average activity was is not known; export it",
        )
    seconds = acquired + average_count_rate_time(durations, half_life)
    label = "AcquisitionTime (0008,0032) + average count rate time, per slice"
    return TimeRoute(label=label, seconds=seconds)


def _decay_correction_time(series: SeriesColumns, half_life: float, notes: Notes) -> TimeRoute:
    seconds = series.datetimes("DecayCorrectionDateTime")
    if np.isnan(seconds).any():
        raise HeaderError(
            "DECAY_UNKNOWN",
            f"{attribute_name('DecayCorrected')} is YES but "
            f"{attribute_name('DecayCorrectionDateTime')} is missing: to what instant the picture "
            "is corrected is not known; send the object again",
        )
    route = TimeRoute(label="DecayCorrectionDateTime (0018,9701)", seconds=seconds)
    return choose_route(
        {DECAY_ROUTE: route}, half_life_s=half_life, prefer=DECAY_ROUTE, notes=notes
    )
