"""What the stored values mean: units, corrections, and the mapping of enhanced objects.

DICOM PS3.3 C.8.9.1.1.3 (Units), C.8.9.1.1.13 (SUV Type), C.7.6.16.2.11 (Real World Value Mapping).
"""

import re
from typing import Literal

import numpy as np
from jaxtyping import Float64
from pydicom.dataset import Dataset

from preprocessing.dicom_values import (
    attribute_name,
    read_code,
    read_decimal,
    read_items,
)
from preprocessing.errors import HeaderError
from preprocessing.suv_series import Notes, SeriesColumns, inconsistent

ENHANCED_PET = "1.2.840.10008.5.1.4.1.1.130"
UNITS_TERMS = frozenset(
    {"CNTS", "NONE", "CM2", "PCNT", "CPS", "BQML", "MGMINML", "UMOLMINML", "MLMING", "MLG", "1CM"}
    | {"UMOLML", "PROPCNTS", "PROPCPS", "MLMINML", "MLML", "GML", "STDDEV", "CM2ML"}
)
"""Defined terms of Units (0054,1001)."""

UCUM_UNITS: dict[tuple[str, str], tuple[str, str]] = {
    ("BQ/ML", ""): ("BQML", ""),
    ("G/ML", ""): ("GML", "BW"),
    ("G/ML", "SUVBW"): ("GML", "BW"),
    ("G/ML", "SUVLBM"): ("GML", "LBM"),
    ("G/ML", "SUVLBM(JAMES128)"): ("GML", "LBMJAMES128"),
    ("G/ML", "SUVLBM(JANMA)"): ("GML", "LBMJANMA"),
    ("G/ML", "SUVIBW"): ("GML", "IBW"),
    ("CM2/ML", ""): ("CM2ML", "BSA"),
    ("CM2/ML", "SUVBSA"): ("CM2ML", "BSA"),
}
"""UCUM unit and annotation of a real world value mapping (PS3.16 CID 84 and 85; the annotation
stands before or behind the unit) -> Units (0054,1001) and SUVType (0054,1006)."""
_ANNOTATION = re.compile(r"\{([^{}]*)\}")

Correction = Literal["START", "ADMIN", "NONE", "DATETIME", "FRAME"]
"""``DATETIME``: enhanced, corrected to DecayCorrectionDateTime; ``FRAME``: not corrected."""


def units_refused(units: str) -> HeaderError:
    """Return the refusal of units that do not lead to SUVbw."""
    name = attribute_name("Units")
    if not units:
        return HeaderError(
            "UNITS_MISSING",
            f"{name} is absent or empty: what a pixel means is unknown; export the series in BQML",
        )
    term = units if units in UNITS_TERMS else "UNKNOWN"
    shown = f"'{units}'" if units in UNITS_TERMS else "no defined term"
    return HeaderError(
        f"UNITS_{term}",
        f"{name} is {shown}, from which SUVbw cannot be computed; export the series in BQML",
    )


def is_enhanced(series: SeriesColumns) -> bool:
    """Say whether the slices are frames of an Enhanced PET object."""
    return ENHANCED_PET in series.texts("SOPClassUID")


def _mapping(instance: Dataset) -> tuple[str, str, float] | None:
    """Return units, SUV type and slope of the first mapping to a unit that leads to SUVbw."""
    for item in read_items(instance, "RealWorldValueMappingSequence"):
        code = read_code(item, "MeasurementUnitsCodeSequence")
        unit = _ANNOTATION.sub("", code.value) if code is not None else ""
        annotation = "".join(_ANNOTATION.findall(code.value)) if code is not None else ""
        meaning = UCUM_UNITS.get((unit, annotation))
        if meaning is None:
            continue
        slope = read_decimal(item, "RealWorldValueSlope", code="SLOPE")
        if slope is None or slope <= 0:
            raise HeaderError(
                "SLOPE",
                f"{attribute_name('RealWorldValueSlope')} is missing or not positive: the values "
                "cannot be scaled; send the object again",
            )
        if read_decimal(item, "RealWorldValueIntercept", code="INTERCEPT"):
            raise HeaderError(
                "INTERCEPT",
                f"{attribute_name('RealWorldValueIntercept')} is not 0, but without counts there "
                "is no activity; correct the header",
            )
        return (*meaning, slope)
    return None


def enhanced_units(
    series: SeriesColumns,
) -> tuple[str, str, Float64[np.ndarray, " n"]]:
    """Return units, SUV type and what the rescaled values of each frame must be multiplied with.

    The real world value mapping of a frame comes first; it maps stored values, so the slope that
    the caller has applied already is divided out. Without a mapping Units (0054,1001), then
    RescaleType (0028,1054) say what the rescaled values mean.

    Raises
    ------
    HeaderError
        ``SLOPE`` or ``INTERCEPT`` of an impossible mapping; ``INCONSISTENT_UNITS``.
    """
    mappings = [_mapping(instance) for instance in series.instances]
    found = [mapping for mapping in mappings if mapping is not None]
    if not found:
        units = series.text("Units") or series.text("RescaleType")
        return units, series.text("SUVType"), np.ones(len(series))
    if len(found) < len(mappings) or len({mapping[:2] for mapping in found}) > 1:
        raise inconsistent("Units", max(2, len({mapping[:2] for mapping in found})))
    applied = np.nan_to_num(series.decimals("RescaleSlope", code="SLOPE"), nan=1.0)
    slopes = np.array([mapping[2] for mapping in found])
    if np.any(applied <= 0):
        raise HeaderError(
            "SLOPE", f"{attribute_name('RescaleSlope')} is not positive; send the object again"
        )
    return found[0][0], found[0][1], slopes / applied


def _flags(series: SeriesColumns) -> list[set[str]]:
    return [
        {flag.strip().upper() for flag in text.split("\\")}
        for text in dict.fromkeys(series.texts("CorrectedImage"))
        if text
    ]


def check_attenuation(series: SeriesColumns, notes: Notes) -> None:
    """Refuse a picture that was not corrected for attenuation: its values are no concentrations.

    An absent CorrectedImage (0028,0051), which the standard allows to be empty, is noted only:
    nothing says that the picture is uncorrected.

    Raises
    ------
    HeaderError
        ``NAC``, if CorrectedImage lacks ATTN, or AttenuationCorrected (0018,9759) is NO.
    """
    name, present = attribute_name("CorrectedImage"), "ATTN"
    flags = _flags(series)
    stated = {text.upper() for text in series.texts("AttenuationCorrected") if text}
    if any(present not in group for group in flags) or "NO" in stated:
        raise HeaderError(
            "NAC",
            f"{name} lacks {present}, or {attribute_name('AttenuationCorrected')} is NO: without "
            "attenuation correction the values are no concentrations; use the corrected series",
        )
    if not flags and not stated:
        notes.add(
            "CORRECTION_UNKNOWN", f"{name} is absent: attenuation correction is not confirmed"
        )


def read_correction(series: SeriesColumns, notes: Notes) -> Correction:
    """Return what instant the picture's activity was decay-corrected to.

    Raises
    ------
    HeaderError
        ``DECAY_UNKNOWN`` where the header does not say, or contradicts itself.
    """
    stated = series.text("DecayCorrection")
    if not stated and (enhanced := series.text("DecayCorrected")) in ("YES", "NO"):
        return "DATETIME" if enhanced == "YES" else "FRAME"
    name = attribute_name("DecayCorrection")
    if stated not in ("START", "ADMIN", "NONE"):
        raise HeaderError(
            "DECAY_UNKNOWN",
            f"{name} is {'absent' if not stated else 'not START, ADMIN or NONE'}: SUV would be "
            "wrong by tens of percent if it were guessed; correct the header",
        )
    corrected = [bool({"DECY", "DECAY"} & group) for group in _flags(series)]
    if stated == "NONE" and any(corrected):
        notes.add(
            "DECAY_FLAGS", f"{name} is NONE but CorrectedImage (0028,0051) holds DECY; NONE is used"
        )
    if stated != "NONE" and not all(corrected):
        raise HeaderError(
            "DECAY_UNKNOWN",
            f"{name} is {stated} but CorrectedImage (0028,0051) lacks DECY: whether the picture "
            "was corrected for decay is not known; correct the header",
        )
    return "START" if stated == "START" else "ADMIN" if stated == "ADMIN" else "NONE"
