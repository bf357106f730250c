"""What was injected: the dose, the nuclide and its half-life, from the radiopharmaceutical item.

DICOM PS3.3 C.8.9.2 (PET Isotope Module), C.8.22.4 (Enhanced PET Isotope Module).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from preprocessing.dicom_values import (
    attribute_name,
    element_text,
    parse_datetime,
    parse_decimal,
    parse_time,
    read_code,
    seen,
)
from preprocessing.errors import HeaderError
from preprocessing.suv_series import Notes, SeriesColumns, inconsistent

SEQUENCE = "RadiopharmaceuticalInformationSequence"
DOSE = "RadionuclideTotalDose"
HALF_LIFE = "RadionuclideHalfLife"
START_TIME = "RadiopharmaceuticalStartTime"
START_DATETIME = "RadiopharmaceuticalStartDateTime"

LARGEST_MBQ = 1e4
"""A positive dose below this is in MBq: 10 kBq would not make a picture, 10 GBq is not injected."""
HALF_LIFE_TOLERANCE = 0.01
SHORTEST_HALF_LIFE_S = 1.0
FDG_DOSE_MBQ = (37.0, 1110.0)

HALF_LIVES_S: dict[str, float] = {
    "C-11": 1221.8,
    "N-13": 597.9,
    "O-15": 122.24,
    "F-18": 6586.2,
    "K-38": 458.2,
    "SC-43": 14007.6,
    "SC-44": 14551.0,
    "TI-45": 11088.0,
    "MN-52": 483062.0,
    "CU-60": 1422.0,
    "CU-61": 12020.0,
    "CU-62": 580.2,
    "CU-64": 45721.0,
    "GA-66": 33494.0,
    "GA-68": 4069.8,
    "GE-68": 23408352.0,
    "BR-76": 58320.0,
    "RB-82": 75.9,
    "Y-86": 53064.0,
    "Y-90": 230580.0,
    "ZR-89": 282276.0,
    "I-124": 360806.0,
    "TB-152": 63000.0,
}
"""Half-lives in seconds: Decay Data Evaluation Project (LNE-LNHB) where it evaluated the nuclide,
else NUBASE2020 (Kondev et al., Chinese Physics C 45, 030001, 2021); F-18 as the QIBA FDG-PET
profile and the scanners use it (DDEP: 6584 s)."""

NUCLIDE_CODES: dict[str, str] = {
    "C-105A1": "C-11", "40565003": "C-11",
    "C-107A1": "N-13", "21576001": "N-13",
    "C-B1038": "O-15", "129504001": "O-15",
    "C-111A1": "F-18", "77004003": "F-18",
    "C-135A4": "K-38", "423764008": "K-38",
    "126605": "SC-43", "126600": "SC-44",
    "C-166A2": "TI-45", "75696008": "TI-45",
    "C-149A1": "MN-52", "37225000": "MN-52",
    "C-127A4": "CU-60", "425364008": "CU-60",
    "C-127A1": "CU-61", "71425003": "CU-61",
    "C-127A5": "CU-62", "422934004": "CU-62",
    "C-127A2": "CU-64", "3932008": "CU-64",
    "C-131A1": "GA-66", "79477007": "GA-66",
    "C-131A3": "GA-68", "35337001": "GA-68",
    "C-128A2": "GE-68", "53315004": "GE-68",
    "C-113A2": "BR-76", "79523006": "BR-76",
    "C-159A2": "RB-82", "79197006": "RB-82",
    "C-162A3": "Y-86", "10738001": "Y-86",
    "C-162A7": "Y-90", "14691008": "Y-90",
    "C-168A4": "ZR-89", "63360001": "ZR-89",
    "C-114A5": "I-124", "40937006": "I-124",
    "126606": "TB-152",
}  # fmt: skip
"""DICOM PS3.16 CID 4020 (PET Radionuclides): SNOMED-RT, SNOMED CT and DCM code values."""

_ELEMENTS = {
    "CARBON": "C", "NITROGEN": "N", "OXYGEN": "O", "FLUORINE": "F", "POTASSIUM": "K",
    "SCANDIUM": "SC", "TITANIUM": "TI", "MANGANESE": "MN", "COPPER": "CU", "GALLIUM": "GA",
    "GERMANIUM": "GE", "BROMINE": "BR", "RUBIDIUM": "RB", "YTTRIUM": "Y", "ZIRCONIUM": "ZR",
    "IODINE": "I", "TERBIUM": "TB",
}  # fmt: skip
_SYMBOL = "|".join(sorted({*_ELEMENTS, *_ELEMENTS.values()}, key=len, reverse=True))
_NUCLIDE_TEXT = re.compile(
    rf"(?<![A-Z0-9])(?:\^?(\d{{2,3}})\^?[ -]?({_SYMBOL})|({_SYMBOL})[ -]?\^?(\d{{2,3}})\^?)"
    r"(?![A-Z0-9])"
)
_FDG = re.compile(r"(?<![A-Z])(FDG|FLUDEOXYGLUCOSE|FLUORODEOXYGLUCOSE)(?![A-Z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiopharmaceutical:
    """The radiopharmaceutical item, as texts: nothing is converted before it is needed.

    Attributes
    ----------
    nuclide
        ``F-18`` and the like, upper case; ``""`` where the item does not say.
    dose, half_life, start_time, start_datetime
        Texts of the attributes, ``""`` where absent.
    in_mbq
        The object class states the dose in MBq (Enhanced PET).
    """

    nuclide: str
    dose: str
    half_life: str
    start_time: str
    start_datetime: str
    in_mbq: bool


def _name_to_nuclide(text: str) -> str:
    match = _NUCLIDE_TEXT.search(text)
    if match is None:
        return ""
    mass, symbol = match.group(1) or match.group(4), match.group(2) or match.group(3)
    name = f"{_ELEMENTS.get(symbol, symbol)}-{mass}"
    return name if name in HALF_LIVES_S else ""


def nuclide_of(item: Dataset) -> str:
    """Return the nuclide of a radiopharmaceutical item, ``""`` where it does not say.

    The code value decides; where it is not in CID 4020 the code's meaning, then the name of the
    radiopharmaceutical (FDG carries fluorine 18).
    """
    code = read_code(item, "RadionuclideCodeSequence")
    if code is not None:
        nuclide = NUCLIDE_CODES.get(code.value) or _name_to_nuclide(code.meaning)
        if nuclide:
            return nuclide
    drug = read_code(item, "RadiopharmaceuticalCodeSequence")
    names = (element_text(item, "Radiopharmaceutical").upper(), drug.meaning if drug else "")
    for name in names:
        nuclide = _name_to_nuclide(name) or ("F-18" if _FDG.search(name) else "")
        if nuclide:
            return nuclide
    return ""


def _read_item(item: Dataset, in_mbq: bool) -> Radiopharmaceutical:
    return Radiopharmaceutical(
        nuclide=nuclide_of(item),
        dose=element_text(item, DOSE),
        half_life=element_text(item, HALF_LIFE),
        start_time=element_text(item, START_TIME),
        start_datetime=element_text(item, START_DATETIME),
        in_mbq=in_mbq,
    )


def _datetime_value(text: str, *, name: str) -> float:
    return parse_datetime(text, name=name, utc_offset_s=0.0)


_VALUES: Mapping[str, Callable[..., float | str]] = {
    DOSE: parse_decimal,
    HALF_LIFE: parse_decimal,
    START_DATETIME: _datetime_value,
    START_TIME: parse_time,
    "RadionuclideCodeSequence": lambda text, name: text,
}
"""How the texts of an item are compared: ``350``, ``350.0`` and ``3.5e2`` are one dose."""


def _value(keyword: str, text: str) -> float | str:
    """Return what a text stands for; one that cannot be read stands for itself."""
    try:
        return _VALUES[keyword](text, name=keyword) if text else text
    except HeaderError:
        return text


def _values(record: Radiopharmaceutical) -> dict[str, float | str]:
    texts = (record.dose, record.half_life, record.start_datetime, record.start_time)
    pairs = zip(_VALUES, (*texts, record.nuclide), strict=True)
    return {keyword: _value(keyword, text) for keyword, text in pairs}


def _difference(records: Sequence[Radiopharmaceutical]) -> HeaderError | None:
    """Return the refusal of items that differ in value, ``None`` where they say the same."""
    if all(record == records[0] for record in records):
        return None
    values = [_values(record) for record in records]
    for keyword in _VALUES:
        distinct = {record[keyword] for record in values}
        if len(distinct) > 1:
            return inconsistent(keyword, len(distinct))
    return None


def read_radiopharmaceutical(
    series: SeriesColumns, notes: Notes, *, in_mbq: bool = False
) -> Radiopharmaceutical:
    """Return the one radiopharmaceutical that all slices agree on.

    Several items that say the same are one. Several that differ (two tracers, a split injection)
    are refused: which of them the picture shows is not written down.

    Raises
    ------
    HeaderError
        ``DOSE_MISSING`` without the sequence; ``RADIOPHARM_AMBIGUOUS`` with items that differ
        inside a slice; ``INCONSISTENT_<KEYWORD>`` with slices that differ; ``PARSE_ERROR``.
    """
    per_slice: list[Radiopharmaceutical] = []
    lists = series.items(SEQUENCE)
    if any(lists) and not all(lists):
        raise inconsistent(SEQUENCE, 2)
    for items in lists:
        records = [_read_item(item, in_mbq) for item in items]
        if len(records) > 1 and _difference(records) is not None:
            raise HeaderError(
                "RADIOPHARM_AMBIGUOUS",
                f"{attribute_name(SEQUENCE)} holds {len(records)} items that differ: the dose that "
                "made this picture is not known; keep the item that belongs to it",
            )
        per_slice.extend(records[:1])
    if not per_slice:
        per_slice = _from_top_level(series, notes, in_mbq)
    difference = _difference(per_slice)
    if difference is not None:
        raise difference
    return per_slice[0]


def _from_top_level(series: SeriesColumns, notes: Notes, in_mbq: bool) -> list[Radiopharmaceutical]:
    if not any(series.texts(DOSE)):
        raise HeaderError(
            "DOSE_MISSING",
            f"{attribute_name(SEQUENCE)} is absent or empty: without the injected dose SUV is "
            "undefined; export the series with its radiopharmaceutical information",
        )
    notes.add(
        "RADIOPHARM_TOP_LEVEL",
        f"{attribute_name(DOSE)} stands outside {attribute_name(SEQUENCE)}; read from there",
    )
    return [_read_item(instance, in_mbq) for instance in series.instances]


def dose_bq(drug: Radiopharmaceutical, notes: Notes) -> float:
    """Return the injected dose in Bq.

    Raises
    ------
    HeaderError
        ``DOSE_MISSING`` if absent, zero, negative or NaN; ``DOSE_INVALID`` if no decimal number.
    """
    name = attribute_name(DOSE)
    missing = not drug.dose or drug.dose.upper() == "NAN"
    dose = 0.0 if missing else parse_decimal(drug.dose, name=name, code="DOSE_INVALID")
    if dose <= 0:
        raise HeaderError(
            "DOSE_MISSING",
            f"{name} is {seen(drug.dose)}: without the injected dose SUV is undefined; "
            "correct the header",
        )
    if dose < LARGEST_MBQ:
        if not drug.in_mbq:
            notes.add("DOSE_MBQ", f"{name} is {dose:g}, too little for Bq; read as MBq")
        dose *= 1e6
    elif drug.in_mbq:
        notes.add("DOSE_BQ", f"{name} is {dose:g}, too much for MBq; read as Bq")
    _check_dose_window(dose / 1e6, drug, notes)
    return dose


def _check_dose_window(dose_mbq: float, drug: Radiopharmaceutical, notes: Notes) -> None:
    low, high = FDG_DOSE_MBQ
    if drug.nuclide in ("F-18", "") and not low <= dose_mbq <= high:
        notes.add(
            "DOSE_RANGE",
            f"{attribute_name(DOSE)} gives {dose_mbq:g} MBq, outside {low:g} to {high:g} MBq; "
            "is it in mCi or kBq?",
        )


def half_life_s(drug: Radiopharmaceutical, notes: Notes) -> float:
    """Return the half-life in seconds; from the nuclide where the header has none.

    Raises
    ------
    HeaderError
        ``HALFLIFE_MISSING`` if it is absent, zero, negative or NaN and the nuclide is unknown;
        ``HALFLIFE_MISMATCH`` if it differs from the nuclide's by more than 1 %, or, where the
        nuclide is unknown, is that of a nuclide in minutes or hours;
        ``HALFLIFE_RANGE`` below 1 s; ``HALFLIFE_INVALID`` if it is no decimal number.
    """
    name = attribute_name(HALF_LIFE)
    missing = not drug.half_life or drug.half_life.upper() == "NAN"
    stated = 0.0 if missing else parse_decimal(drug.half_life, name=name, code="HALFLIFE_INVALID")
    expected = HALF_LIVES_S.get(drug.nuclide)
    if stated <= 0:
        if expected is None:
            raise HeaderError(
                "HALFLIFE_MISSING",
                f"{name} is {seen(drug.half_life)} and the nuclide is not given: the dose cannot "
                "be decayed; fill in the half-life or RadionuclideCodeSequence (0054,0300)",
            )
        notes.add("HALFLIFE_FROM_CODE", f"{name} is not given; {expected:g} s of {drug.nuclide}")
        return expected
    if stated < SHORTEST_HALF_LIFE_S:
        raise HeaderError(
            "HALFLIFE_RANGE",
            f"{name} is {stated:g} s: nothing would be left to measure; correct the header",
        )
    if expected is None:
        _check_unverified(stated, notes)
    elif abs(stated / expected - 1) > HALF_LIFE_TOLERANCE:
        raise HeaderError(
            "HALFLIFE_MISMATCH",
            f"{name} is {stated:g} s but {drug.nuclide} has {expected:g} s: one of them is wrong "
            "(minutes for seconds?) and the dose cannot be decayed; correct the header",
        )
    return stated


def _nuclide_with(half_life: float) -> str:
    for nuclide, known in HALF_LIVES_S.items():
        if abs(half_life / known - 1) <= HALF_LIFE_TOLERANCE:
            return nuclide
    return ""


def _check_unverified(stated: float, notes: Notes) -> None:
    if _nuclide_with(stated):
        return
    name = attribute_name(HALF_LIFE)
    for unit, seconds in (("minutes", 60.0), ("hours", 3600.0)):
        if nuclide := _nuclide_with(stated * seconds):
            raise HeaderError(
                "HALFLIFE_MISMATCH",
                f"{name} is {stated:g} s, which fits no nuclide used in PET but is that of "
                f"{nuclide} in {unit}: the dose cannot be decayed; correct the header",
            )
    notes.add(
        "HALFLIFE_UNVERIFIED",
        f"{name} is {stated:g} s, which fits no nuclide used in PET, and the nuclide is not given",
    )
