"""Whether the images of one PET series may become one volume: every check but geometry and SUV.

Each check takes the series' instances, raises with its code, or returns notes that begin with a
code. None repairs a value.

References
----------
DICOM PS3.3 C.8.9 (PET modules), C.7.6.1 (General Image Module: image type).
"""

import re
from collections.abc import Sequence
from datetime import date

from preprocessing.dicom_file import ENHANCED_PET, PET, SOP_CLASS, Instance
from preprocessing.dicom_values import attribute_name, element_text, tag_of
from preprocessing.errors import HeaderError
from preprocessing.intake_records import Rescale
from preprocessing.raw_elements import decimals, raw, text, whole, words

DERIVED_TYPES = frozenset(
    {
        *("MIP", "MINIP", "MPR", "REFORMATTED", "PROJECTION", "PROJECTION IMAGE", "REPROJECTION"),
        *("VOLUME_RENDERED", "LOCALIZER", "FUSED", "FUSION", "SCREEN SAVE", "SCREENSHOT"),
        *("SCREENSAVE", "COLLAGE", "MOSAIC"),
    }
)
"""Values of ImageType (0008,0008) of pictures that no scanner measured slice by slice."""
PHANTOM = re.compile(r"phantom|\bnema\b|jaszcza[ck]|uniformity|quality control", re.IGNORECASE)
PHANTOM_TRACER = re.compile(
    r"\b(68[ -]?ge|ge[ -]?68|germanium|22[ -]?na|na[ -]?22)\b", re.IGNORECASE
)
UNCORRECTED = re.compile(
    r"(?<![a-z])(nac|noac|non?[ _-]?(ac|att\w*)|uncorr\w*|without[ _-]?a(c|tt\w*))(?![a-z])",
    re.IGNORECASE,
)
MANUALLY_CORRECTED = re.compile(r"(?<![a-z])mac(?![a-z])", re.IGNORECASE)
SCREEN_SAVE = re.compile(r"screen[ _-]?(save|shot|cap)|(?<![a-z])save[ds]?(?![a-z])", re.IGNORECASE)
DESCRIPTIONS = ("SeriesDescription", "StudyDescription", "ProtocolName")
ONE_VALUE = (
    *("SOPClassUID", "Modality", "PatientBirthDate", "PatientSex", "PatientWeight", "PatientSize"),
    *("FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing", "BitsAllocated", "BitsStored"),
    *("PixelRepresentation", "Units", "DecayCorrection", "CorrectedImage", "SeriesType", "SUVType"),
    *("Manufacturer", "StudyDate", "SeriesDate", "SeriesTime", "PatientName"),
)
"""Attributes that have one value in all slices of one scan of one patient."""
IMAGE_TYPE = tag_of("ImageType")
SERIES_TYPE = tag_of("SeriesType")
SLOPE = tag_of("RescaleSlope")
INTERCEPT = tag_of("RescaleIntercept")
MAPPING = tag_of("RealWorldValueMappingSequence")


def check_kind(instances: Sequence[Instance]) -> None:
    """Refuse pictures that are no measured slices of a patient.

    Raises
    ------
    HeaderError
        ``DERIVED``, ``BURNED_IN``, ``PHANTOM`` or ``ANIMAL``.
    """
    for instance in _distinct(instances, ("SOPClassUID", "ImageType", "SeriesType")):
        _check_class(instance)
    for instance in _distinct(instances, ("BurnedInAnnotation", "ImageType", "SeriesDescription")):
        _check_burned_in(instance)
    first = instances[0]
    described = " ".join(text(first.elements, tag_of(keyword)) for keyword in DESCRIPTIONS)
    if PHANTOM.search(described) or PHANTOM_TRACER.search(_tracer(first)):
        raise HeaderError(
            "PHANTOM",
            "the description or the tracer (RadiopharmaceuticalInformationSequence (0054,0016)) is "
            "that of a test object, not of a patient",
        )
    species = text(first.elements, tag_of("PatientSpeciesDescription")).upper()
    if species and not species.startswith(("HOMO SAPIENS", "HUMAN")):
        raise HeaderError(
            "ANIMAL", f"{attribute_name('PatientSpeciesDescription')} names no human being"
        )


def _distinct(instances: Sequence[Instance], keywords: tuple[str, ...]) -> list[Instance]:
    """Return one instance for each combination of values."""
    tags = [tag_of(keyword) for keyword in keywords]
    kinds = {tuple(raw(each.elements, tag) for tag in tags): each for each in instances}
    return list(kinds.values())


def _check_class(instance: Instance) -> None:
    if text(instance.elements, SOP_CLASS) not in {PET, ENHANCED_PET}:
        raise HeaderError(
            "DERIVED",
            f"{attribute_name('SOPClassUID')} is not that of PET images: a secondary capture or a "
            "processed picture; use the series that the scanner reconstructed",
        )
    kinds = {word.replace("_", " ") for word in words(instance.elements, IMAGE_TYPE)}
    derived = sorted(kinds & DERIVED_TYPES)
    if "REPROJECTION" in words(instance.elements, SERIES_TYPE)[1:]:
        derived.append("REPROJECTION")
    if derived:
        raise HeaderError(
            "DERIVED",
            f"{attribute_name('ImageType')} or {attribute_name('SeriesType')} holds {derived[0]}: "
            "the pictures were computed from slices; use the slices themselves",
        )


def _check_burned_in(instance: Instance) -> None:
    saved = any("SAVE" in word for word in words(instance.elements, IMAGE_TYPE))
    described = text(instance.elements, tag_of("SeriesDescription"))
    annotated = text(instance.elements, tag_of("BurnedInAnnotation")).upper() == "YES"
    if annotated or saved or SCREEN_SAVE.search(described):
        raise HeaderError(
            "BURNED_IN",
            f"{attribute_name('BurnedInAnnotation')}, {attribute_name('ImageType')} or the series "
            "description says that text is part of the pixels: it may name the patient",
        )


def _tracer(instance: Instance) -> str:
    """Return the bytes of the isotope sequence as text, codes and meanings in it."""
    return text(instance.elements, tag_of("RadiopharmaceuticalInformationSequence"))


def check_consistent(instances: Sequence[Instance]) -> None:
    """Refuse a series whose slices disagree on what one scan of one patient has only once.

    Raises
    ------
    HeaderError
        ``INCONSISTENT_<KEYWORD>``.
    """
    for keyword in ONE_VALUE:
        tag = tag_of(keyword)
        values = {raw(instance.elements, tag) for instance in instances}
        if len(values) > 1 and not _same_numbers(instances, keyword):
            raise HeaderError(
                f"INCONSISTENT_{keyword.upper()}",
                f"{attribute_name(keyword)} has {len(values)} different values inside one series: "
                "slices of different scans or patients are mixed; separate them",
            )


def _same_numbers(instances: Sequence[Instance], keyword: str) -> bool:
    """Tell whether values that are written differently (``70`` and ``70.0``) are equal numbers."""
    if keyword not in {"PatientWeight", "PatientSize", "PixelSpacing"}:
        return False
    values = {decimals(instance.elements, tag_of(keyword)) for instance in instances}
    return len(values) == 1 and None not in values and () not in values


def check_corrected(instances: Sequence[Instance]) -> tuple[str, ...]:
    """Refuse a picture that was not corrected for attenuation.

    Returns
    -------
    tuple
        A note ``MAC`` where the description says that the correction was made otherwise than usual.

    Raises
    ------
    HeaderError
        ``NAC``.
    """
    for instance in _distinct(instances, ("CorrectedImage", "AttenuationCorrected")):
        flags = words(instance.elements, tag_of("CorrectedImage"))
        stated = text(instance.elements, tag_of("AttenuationCorrected")).upper()
        if (flags and "ATTN" not in flags) or stated == "NO":
            raise _uncorrected(f"{attribute_name('CorrectedImage')} lacks ATTN")
    described = text(instances[0].elements, tag_of("SeriesDescription"))
    if UNCORRECTED.search(described):
        raise _uncorrected("the series description says so")
    if MANUALLY_CORRECTED.search(described):
        return ("MAC: the series description says MAC; taken as corrected for attenuation",)
    return ()


def _uncorrected(reason: str) -> HeaderError:
    return HeaderError(
        "NAC",
        f"not corrected for attenuation: {reason}; the values are no concentrations, use the "
        "corrected series",
    )


def read_rescale(
    instances: Sequence[Instance], *, allow_intercept: bool
) -> tuple[Rescale, tuple[str, ...]]:
    """Return slope and intercept of every slice.

    Returns
    -------
    tuple
        The rescale, and a note ``INTERCEPT_USED`` where intercepts other than 0 were allowed.

    Raises
    ------
    HeaderError
        ``SLOPE`` where one is absent, not finite or not positive; ``INTERCEPT`` where one is not 0
        and that was not allowed, or is no number.
    """
    slopes = tuple(_slope(instance) for instance in instances)
    intercepts = tuple(_intercept(instance) for instance in instances)
    used = sum(intercept != 0 for intercept in intercepts)
    if used and not allow_intercept:
        raise HeaderError(
            "INTERCEPT",
            f"{attribute_name('RescaleIntercept')} is {max(intercepts, key=abs):g}: in PET it is "
            "0, no activity without counts; if that is right, allow it with --allow-intercept",
        )
    notes = (f"INTERCEPT_USED: not 0 in {used} of {len(instances)} slices",) if used else ()
    return Rescale(slopes=slopes, intercepts=intercepts), notes


def _slope(instance: Instance) -> float:
    value = decimals(instance.elements, SLOPE)
    if value == () and MAPPING in instance.elements:
        return 1.0  # an enhanced frame may be scaled by its real world value mapping alone
    if value is None or len(value) != 1 or value[0] <= 0:
        seen = "not one finite number" if value is None or len(value) != 1 else f"{value[0]:g}"
        raise HeaderError(
            "SLOPE",
            f"{attribute_name('RescaleSlope')} is {seen}: the pixels have no scale; export the "
            "series again",
        )
    return value[0]


def _intercept(instance: Instance) -> float:
    value = decimals(instance.elements, INTERCEPT)
    if value is None or len(value) > 1:
        raise HeaderError(
            "INTERCEPT",
            f"{attribute_name('RescaleIntercept')} is not one finite number: the pixels have no "
            "zero; export the series again",
        )
    return value[0] if value else 0.0


PRIVATE_DATES = ((0x0009, 0x0D), (0x0009, 0x3B), (0x0071, 0x22))
PUBLIC_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_DAY = re.compile(r"(\d{4})(\d\d)(\d\d)")


def private_date_leak(instance: Instance) -> tuple[str, ...]:
    """Note private dates that contradict the public ones by more than a day.

    De-identification has shifted the public dates and left the true ones in the private elements:
    the files identify more than they seem to. Nothing of it is written to a data set.
    """
    header = instance.header
    public = [_day(element_text(header, keyword)) for keyword in PUBLIC_DATES]
    known = [day for day in public if day is not None]
    for group, low in PRIVATE_DATES:
        for tag in instance.elements:
            if tag.group != group or tag.element & 0xFF != low or tag.element <= 0xFF:
                continue
            day = _day(element_text(header, tag))
            if day is not None and known and min(abs(day - other) for other in known) > 1:
                return (
                    f"PRIVATE_DATE_LEAK: ({group:04X},xx{low:02X}) and the public dates differ by "
                    "days; the files hold a date that de-identification meant to hide",
                )
    return ()


def _day(value: str) -> int | None:
    match = _DAY.match(value)
    if match is None:
        return None
    try:
        return date(*(int(part) for part in match.groups())).toordinal()
    except ValueError:
        return None


def count_note(instances: Sequence[Instance]) -> tuple[str, ...]:
    """Note a count of slices that is not what the header announces: the export may be cut short."""
    announced = whole(instances[0].elements, tag_of("NumberOfSlices"))
    if announced is None or announced == len(instances):
        return ()
    return (
        f"SLICE_COUNT: {attribute_name('NumberOfSlices')} announces {announced}, {len(instances)} "
        "were found",
    )
