"""Which PET series of a study becomes the sample, and why.

A study often holds the same scan several times: with and without attenuation correction, other
reconstructions, a part of the body once more. One is taken; the others are named with the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from preprocessing.dicom_values import tag_of
from preprocessing.intake_records import SeriesIntake
from preprocessing.raw_elements import raw, text, words

WHOLE_BODY_MM = 600.0
"""Axial extent from which a scan counts as whole-body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """One question asked of every candidate; the larger answer wins."""

    reason: str
    answer: Callable[[SeriesIntake], float | tuple[bytes, bytes]]


def axial_extent_mm(series: SeriesIntake) -> float:
    """Return the length of the scan along the patient."""
    if series.shape is None or series.spacing_mm is None:
        return 0.0
    return series.shape[0] * series.spacing_mm[0]


def _is_confirmed_corrected(series: SeriesIntake) -> float:
    elements = series.instances[0].elements
    stated = text(elements, tag_of("AttenuationCorrected")).upper() == "YES"
    return float(stated or "ATTN" in words(elements, tag_of("CorrectedImage")))


def _is_original(series: SeriesIntake) -> float:
    kind = words(series.instances[0].elements, tag_of("ImageType"))
    return float(kind[:1] == ("ORIGINAL",))


def _is_static(series: SeriesIntake) -> float:
    kind = words(series.instances[0].elements, tag_of("SeriesType"))
    return float(kind[:1] != ("DYNAMIC",))


def _instant(series: SeriesIntake) -> tuple[bytes, bytes]:
    elements = series.instances[0].elements
    return raw(elements, tag_of("SeriesDate")), raw(elements, tag_of("SeriesTime"))


CRITERIA: tuple[Criterion, ...] = (
    Criterion(reason="attenuation correction is confirmed", answer=_is_confirmed_corrected),
    Criterion(reason="original, not derived", answer=_is_original),
    Criterion(
        reason=f"whole body ({WHOLE_BODY_MM:g} mm or more)",
        answer=lambda series: float(axial_extent_mm(series) >= WHOLE_BODY_MM),
    ),
    Criterion(reason="not dynamic", answer=_is_static),
    Criterion(reason="more slices", answer=lambda series: float(len(series.instances))),
    Criterion(reason="latest", answer=_instant),
    Criterion(reason="first by its pseudonym", answer=lambda series: (b"", _reversed_id(series))),
)
"""In the order in which they decide."""


def _reversed_id(series: SeriesIntake) -> bytes:
    """Return bytes that are larger for a pseudonym that comes earlier."""
    return bytes(255 - byte for byte in series.series_id.encode())


def choose(candidates: Sequence[SeriesIntake]) -> tuple[SeriesIntake, ...]:
    """Accept the best of a study's series; exclude the others, each with the reason.

    Parameters
    ----------
    candidates
        Series of one study that could all be converted.

    Returns
    -------
    tuple
        The same series in the same order: the winner with a note ``SELECTED``, the others excluded
        with ``SERIES_NOT_SELECTED``.
    """
    if len(candidates) < 2:
        return tuple(candidates)
    best = max(candidates, key=lambda series: [each.answer(series) for each in CRITERIA])
    reasons = {id(series): _reason(best, series) for series in candidates if series is not best}
    note = f"SELECTED: among {len(candidates)} series of the study: " + "; ".join(
        dict.fromkeys(reasons.values())
    )
    return tuple(
        replace(series, warnings=(*series.warnings, note))
        if series is best
        else not_selected(
            series, f"another PET series of the study was chosen: {reasons[id(series)]}"
        )
        for series in candidates
    )


def _reason(best: SeriesIntake, other: SeriesIntake) -> str:
    return next(
        criterion.reason
        for criterion in CRITERIA
        if criterion.answer(best) != criterion.answer(other)
    )


def not_selected(series: SeriesIntake, detail: str) -> SeriesIntake:
    """Exclude a series that could have been converted, keeping what is known of it."""
    return replace(
        series, status="excluded", code="SERIES_NOT_SELECTED", detail=detail, instances=()
    )
