"""From header fields to SUVbw: one factor per slice, the route it came by, and its warnings.

SUVbw is the activity concentration (Bq/mL) times the body weight (g) over the injected dose (Bq),
both at the same instant; its unit is g/mL. The factors here multiply values *after* RescaleSlope
(0028,1053) and RescaleIntercept (0028,1052). What cannot be known is refused with a code; there is
no neutral factor.

References
----------
DICOM PS3.3 C.8.9 (PET modules). QIBA, vendor-neutral pseudo-code for SUV calculation, 2018. Vácha
et al., computing SUV from DICOM, edition 3 (oncoray/suv_computation).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydicom.dataset import Dataset

from preprocessing.dicom_values import Vendor, attribute_name, parse_decimal, vendor
from preprocessing.errors import HeaderError
from preprocessing.suv_activity import Activity, activity_factors
from preprocessing.suv_balance import check_dose_balance
from preprocessing.suv_dose import dose_bq, read_radiopharmaceutical
from preprocessing.suv_routes import (
    ACQUISITION_ROUTE,
    PRIVATE_ROUTE,
    SERIES_ROUTE,
    judge_difference,
)
from preprocessing.suv_series import Notes, SeriesColumns, convert_distinct, private_name
from preprocessing.suv_subject import (
    MASS_FORMULAS,
    body_surface_cm2,
    note_lean_mass_variant,
    read_height_cm,
    read_weight_kg,
    reference_mass_kg,
)
from preprocessing.suv_units import (
    check_attenuation,
    enhanced_units,
    is_enhanced,
    units_refused,
)

__all__ = ["ROUTES", "SUVConversion", "check_dose_balance", "suvbw"]

PHILIPS_CREATOR = "PHILIPS PET PRIVATE GROUP"
ACTIVITY_FACTOR_ROUTE = "activity-factor"
SUV_FACTOR_ROUTE = "suv-factor"
ROUTES = (
    PRIVATE_ROUTE,
    ACQUISITION_ROUTE,
    SERIES_ROUTE,
    ACTIVITY_FACTOR_ROUTE,
    SUV_FACTOR_ROUTE,
)
"""Names that ``prefer`` may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SUVConversion:
    """How one series becomes SUVbw.

    Attributes
    ----------
    factors
        Per slice, in the order of the instances given: value after rescale -> SUVbw in g/mL.
    route
        Readable: units, decay correction and where the times came from.
    warnings
        Each ``CODE: text``, free of identifiers and of absolute dates and times.
    units
        Units (0054,1001) that were converted.
    uptake_s
        Time from injection to the instant the picture is corrected to; ``None`` where not needed.
    dose_bq, weight_kg, half_life_s
        As used; ``None`` where not needed.
    nuclide
        ``F-18`` and the like; ``""`` where not stated or not needed.
    """

    factors: Float64[np.ndarray, " n"]
    route: str
    warnings: tuple[str, ...]
    units: str
    uptake_s: float | None = None
    dose_bq: float | None = None
    weight_kg: float | None = None
    half_life_s: float | None = None
    nuclide: str = ""


class _Job:
    """What every converter needs: the series, what was asked for, and where warnings go."""

    def __init__(self, series: SeriesColumns, *, prefer: str, weight_kg: float | None) -> None:
        self.series, self.notes = series, Notes()
        self.prefer, self.weight_kg = prefer, weight_kg
        self.maker: Vendor = vendor(series.text("Manufacturer"))
        if is_enhanced(series):
            self.units, self.suv_type, self.scale = enhanced_units(series)
        else:
            self.units, self.suv_type = series.text("Units"), series.text("SUVType")
            self.scale = np.ones(len(series))

    def activity(self) -> Activity:
        """Return the factors from Bq/mL to SUVbw."""
        return activity_factors(
            self.series,
            maker=self.maker,
            prefer=self.prefer,
            weight_override_kg=self.weight_kg,
            notes=self.notes,
        )

    def done(
        self, factors: float | Float64[np.ndarray, " n"], route: str, activity: Activity | None
    ) -> SUVConversion:
        """Return the finished conversion; ``activity`` says what was used, where it was."""
        array = np.array(factors * self.scale, dtype=np.float64)
        if not np.all(np.isfinite(array) & (array > 0)):
            raise HeaderError(
                "SUV_IMPLAUSIBLE",
                "dose, weight and times give a factor to SUVbw that is no positive number; correct "
                "the header",
            )
        array.setflags(write=False)
        result = SUVConversion(
            factors=array, route=route, warnings=self.notes.lines(), units=self.units
        )
        if activity is None:
            return replace(result, weight_kg=self.stated_weight())
        return replace(
            result,
            uptake_s=activity.uptake_s,
            dose_bq=activity.dose_bq,
            weight_kg=activity.weight_kg,
            half_life_s=activity.half_life_s,
            nuclide=activity.nuclide,
        )

    def stated_weight(self) -> float | None:
        """Return the weight for later checks, ``None`` where there is no usable one."""
        return self.header_weight() if self.weight_kg is None else self.weight_kg

    def header_weight(self) -> float | None:
        """Return the header's weight, which stored SUVs were made with; ``None`` if unusable."""
        try:
            return read_weight_kg(self.series, Notes(), override_kg=None)
        except HeaderError as error:
            if not error.code.startswith("WEIGHT"):
                raise
            return None

    def weight_ratio(self, source: str) -> float:
        """Return given weight / header's weight for values that hold the header's weight."""
        if self.weight_kg is None:
            return 1.0
        given = read_weight_kg(self.series, self.notes, override_kg=self.weight_kg)
        stated = self.header_weight()
        if stated is None:
            self.notes.add(
                "WEIGHT_OVERRIDE_UNUSED",
                f"the scanner put a weight into the {source}, but the header's is not usable: "
                "the values stay as they are",
            )
            return 1.0
        return given / stated


def _from_bqml(job: _Job) -> SUVConversion:
    activity = job.activity()
    return job.done(activity.factors, activity.route, activity)


def _from_gml(job: _Job) -> SUVConversion:
    kind = job.suv_type or "BW"
    if kind == "BW":
        return job.done(job.weight_ratio("stored SUV"), "UNITS GML BW", None)
    if kind not in MASS_FORMULAS:
        raise HeaderError(
            "SUVTYPE_UNKNOWN",
            f"{attribute_name('SUVType')} does not belong to Units GML: what the stored SUV is "
            "normalised to is not known; export the series in BQML",
        )
    weight = read_weight_kg(job.series, job.notes, override_kg=job.weight_kg)
    stored_with = job.header_weight() or weight
    height = read_height_cm(job.series, job.notes)
    sex = job.series.text("PatientSex")
    mass = reference_mass_kg(kind, weight_kg=stored_with, height_cm=height, sex=sex)
    if kind == "LBM":
        note_lean_mass_variant(mass, stored_with, height, sex, job.notes)
    return job.done(weight / mass, f"UNITS GML {kind}", None)


def _from_cm2ml(job: _Job) -> SUVConversion:
    if job.suv_type not in ("", "BSA"):
        raise HeaderError(
            "SUVTYPE_UNKNOWN",
            f"{attribute_name('SUVType')} does not belong to Units CM2ML: what the stored SUV is "
            "normalised to is not known; export the series in BQML",
        )
    weight = read_weight_kg(job.series, job.notes, override_kg=job.weight_kg)
    height = read_height_cm(job.series, job.notes)
    surface = body_surface_cm2(weight_kg=job.header_weight() or weight, height_cm=height)
    return job.done(weight * 1000.0 / surface, "UNITS CM2ML BSA", None)


def _philips_factor(job: _Job, element: int) -> tuple[Float64[np.ndarray, " n"], str] | None:
    """Return a factor of the Philips private group per slice and its name; None if absent or 0."""
    found = job.series.private_column(0x7053, element, creator=PHILIPS_CREATOR)
    if found is None:
        return None
    tag, named, texts = found
    name = private_name(tag)
    values = convert_distinct(
        texts, lambda text: parse_decimal(text, name=name, code="PHILIPS_FACTOR")
    )
    if not np.nan_to_num(values).any():
        return None
    if np.isnan(values).any() or np.any(values <= 0):
        raise HeaderError(
            "PHILIPS_FACTOR",
            f"{name} is missing or not positive in some slices: the counts cannot be "
            "scaled; export the series in BQML",
        )
    if not named:
        job.notes.add("PRIVATE_BARE", f"{name} has no private creator; read anyway")
    return values, name


def _from_cnts(job: _Job) -> SUVConversion:
    if job.maker not in ("PHILIPS", ""):
        raise units_refused("CNTS")
    activity_factor, suv_factor = _philips_factor(job, 0x09), _philips_factor(job, 0x00)
    if suv_factor is None:
        if activity_factor is None:
            raise units_refused("CNTS")
        return _by_activity_factor(job, activity_factor)
    ratio = job.weight_ratio("SUV factor")
    by_suv = suv_factor[0] * ratio
    suv_route = f"PHILIPS SUV factor {suv_factor[1]}"
    if activity_factor is None:
        return job.done(by_suv, suv_route, None)
    try:
        result = _by_activity_factor(job, activity_factor)
    except HeaderError as error:
        if error.code.startswith("INCONSISTENT") or error.code == "SUV_TREF_INCONSISTENT":
            raise
        job.notes.add(
            error.code, f"the route by the activity factor is closed ({error}); SUV factor used"
        )
        return job.done(by_suv, suv_route, None)
    return _compared(job, result, by_suv, suv_route)


def _by_activity_factor(job: _Job, factor: tuple[Float64[np.ndarray, " n"], str]) -> SUVConversion:
    activity = job.activity()
    route = f"PHILIPS activity factor {factor[1]} / {activity.route}"
    return job.done(factor[0] * activity.factors, route, activity)


def _compared(
    job: _Job, by_activity: SUVConversion, by_suv: Float64[np.ndarray, " n"], suv_route: str
) -> SUVConversion:
    routes = {ACTIVITY_FACTOR_ROUTE: by_activity.route, SUV_FACTOR_ROUTE: suv_route}
    name = SUV_FACTOR_ROUTE if job.prefer == SUV_FACTOR_ROUTE else ACTIVITY_FACTOR_ROUTE
    other = next(route for route in routes if route != name)
    quotient = by_suv / by_activity.factors
    judge_difference(
        (routes[name], routes[other]),
        float(np.max(np.maximum(quotient, 1 / quotient))) - 1,
        prefer_names=(name, other),
        settled=job.prefer == name,
        notes=job.notes,
    )
    if name == SUV_FACTOR_ROUTE:
        return job.done(by_suv, suv_route, None)
    return replace(by_activity, warnings=job.notes.lines())


def _paper(job: _Job) -> SUVConversion:
    """X * weight / dose without decay, as published; for comparison only."""
    if job.units != "BQML":
        raise units_refused(job.units)
    weight = read_weight_kg(job.series, job.notes, override_kg=job.weight_kg)
    in_mbq = is_enhanced(job.series)
    drug = read_radiopharmaceutical(job.series, job.notes, in_mbq=in_mbq)
    dose = dose_bq(drug, job.notes)
    job.notes.add("PAPER_FORMULA", "weight / dose without decay: not SUVbw, for comparison")
    result = job.done(weight * 1000.0 / dose, "PAPER weight / dose", None)
    return replace(result, dose_bq=dose, weight_kg=weight, nuclide=drug.nuclide)


CONVERTERS: Mapping[str, Callable[[_Job], SUVConversion]] = {
    "BQML": _from_bqml,
    "GML": _from_gml,
    "CM2ML": _from_cm2ml,
    "CNTS": _from_cnts,
}
"""Units (0054,1001) -> converter; all other units are refused."""


def suvbw(
    instances: Sequence[Dataset],
    *,
    formula: Literal["suvbw", "paper"] = "suvbw",
    prefer: str = "",
    weight_kg: float | None = None,
) -> SUVConversion:
    """Return the factors that turn the rescaled values of one PET series into SUVbw.

    Parameters
    ----------
    instances
        Headers of the series; pixels are not needed. The frames of an Enhanced PET object come as
        one data set per frame, with the values of the functional groups at its top level.
    formula
        ``paper`` gives weight / dose without decay, for comparison with published figures only.
    prefer
        One of ``ROUTES``: the route to believe where two disagree by more than 5 %.
    weight_kg
        Replaces PatientWeight (0010,1030).

    Raises
    ------
    HeaderError
        With a code, where SUVbw cannot be known.
    ValueError
        If ``formula`` or ``prefer`` is no known name.
    """
    if formula not in ("suvbw", "paper"):
        raise ValueError(f"formula is '{formula}'; known: suvbw, paper")
    if prefer and prefer not in ROUTES:
        raise ValueError(f"prefer is '{prefer}'; known routes: {', '.join(ROUTES)}")
    job = _Job(SeriesColumns(instances), prefer=prefer, weight_kg=weight_kg)
    check_attenuation(job.series, job.notes)
    if formula == "paper":
        return _paper(job)
    if job.units not in CONVERTERS:
        raise units_refused(job.units)
    return CONVERTERS[job.units](job)
