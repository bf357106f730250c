"""Who was scanned: weight, height, sex, and the masses and areas that other SUVs divide by."""

import math

from preprocessing.dicom_values import attribute_name, parse_decimal, seen
from preprocessing.errors import HeaderError
from preprocessing.suv_series import Notes, SeriesColumns

LARGEST_WEIGHT_KG = 350.0
SMALLEST_WEIGHT_KG = 2.0
SMALLEST_WEIGHT_G = 1000.0
"""From here on a weight is read in grams."""
HEIGHT_CM = (30.0, 250.0)
LEAN_MASS_WARNING = 0.01
BODY_MASS_INDEX = (10.0, 45.0)
"""kg/m2. A usual weight in pounds gives 45 and more."""


def read_weight_kg(series: SeriesColumns, notes: Notes, *, override_kg: float | None) -> float:
    """Return the patient's weight in kg.

    Raises
    ------
    HeaderError
        ``WEIGHT_MISSING`` if absent, zero, negative or NaN; ``WEIGHT_RANGE`` above 350 kg (1000 and
        more are grams); ``WEIGHT_INVALID`` if no decimal number; ``INCONSISTENT_PATIENTWEIGHT``.
    """
    name = attribute_name("PatientWeight")
    if override_kg is not None:
        notes.add("WEIGHT_OVERRIDE", f"{name} is not used; {override_kg:g} kg was given instead")
        return _in_range(override_kg, f"the weight given for {name}", series, notes)
    text = series.number_text("PatientWeight")
    missing = not text or text.upper() == "NAN"
    weight = 0.0 if missing else _finite(text, name)
    if weight <= 0:
        raise HeaderError(
            "WEIGHT_MISSING",
            f"{name} is {seen(text)}: SUVbw is undefined; give the weight in a weights table",
        )
    if weight >= SMALLEST_WEIGHT_G and math.isfinite(weight):
        notes.add("WEIGHT_G", f"{name} is {weight:g}, too much for kg; read as g")
        weight /= 1000.0
    return _in_range(weight, name, series, notes)


def _finite(text: str, name: str) -> float:
    if text.upper().lstrip("+") in ("INF", "INFINITY"):
        return math.inf
    return parse_decimal(text, name=name, code="WEIGHT_INVALID")


def _in_range(weight_kg: float, name: str, series: SeriesColumns, notes: Notes) -> float:
    if not 0 < weight_kg <= LARGEST_WEIGHT_KG:
        raise HeaderError(
            "WEIGHT_RANGE",
            f"{name} is {weight_kg:g} kg, not within 0 to {LARGEST_WEIGHT_KG:g} kg: SUVbw would be "
            "wrong by the same factor; give the weight in a weights table",
        )
    if weight_kg < SMALLEST_WEIGHT_KG:
        notes.add("WEIGHT_RANGE", f"{name} is {weight_kg:g} kg, less than {SMALLEST_WEIGHT_KG:g}")
    _note_build(weight_kg, series, notes)
    return weight_kg


def _note_build(weight_kg: float, series: SeriesColumns, notes: Notes) -> None:
    """Note a weight that does not go with the height; a height that is no height says nothing."""
    try:
        height_cm = read_height_cm(series, Notes())
    except HeaderError:
        return
    index, (low, high) = weight_kg / (height_cm / 100) ** 2, BODY_MASS_INDEX
    if not low <= index <= high:
        notes.add(
            "BMI_RANGE",
            f"PatientWeight (0010,1030) {weight_kg:g} kg and PatientSize (0010,1020) "
            f"{height_cm:g} cm give a body mass index of {index:.0f}, outside {low:g} to {high:g}: "
            "is the weight in pounds, or are both exchanged?",
        )


def read_height_cm(series: SeriesColumns, notes: Notes) -> float:
    """Return the patient's height in cm.

    Raises
    ------
    HeaderError
        ``HEIGHT_MISSING``, ``HEIGHT_RANGE`` or ``HEIGHT_INVALID``; ``INCONSISTENT_PATIENTSIZE``.
    """
    name = attribute_name("PatientSize")
    size = series.decimal("PatientSize", code="HEIGHT_INVALID")
    if size is None or size <= 0:
        raise HeaderError(
            "HEIGHT_MISSING",
            f"{name} is missing or not positive: an SUV by lean mass or surface cannot be turned "
            "into SUVbw; export the series in BQML or fill in the height",
        )
    low, high = HEIGHT_CM
    if low <= size * 100 <= high:
        return size * 100
    if low <= size <= high:
        notes.add("HEIGHT_CM", f"{name} is {size:g}, too much for m; read as cm")
        return size
    raise HeaderError(
        "HEIGHT_RANGE",
        f"{name} is {size:g} m: no patient's height, so an SUV by lean mass or surface cannot be "
        "turned into SUVbw; correct the header",
    )


def _james(weight: float, height: float) -> tuple[float, float]:
    ratio = (weight / height) ** 2
    return 1.10 * weight - 128 * ratio, 1.07 * weight - 148 * ratio


def _janmahasatian(weight: float, height: float) -> tuple[float, float]:
    bmi = weight / (height / 100) ** 2
    return 9270 * weight / (6680 + 216 * bmi), 9270 * weight / (8780 + 244 * bmi)


def _ideal(weight: float, height: float) -> tuple[float, float]:
    del weight  # the ideal weight depends on height alone
    return 48.0 + 1.06 * (height - 152), 45.5 + 0.91 * (height - 152)


MASS_FORMULAS = {
    "LBM": _james,
    "LBMJAMES128": _james,
    "LBMJANMA": _janmahasatian,
    "IBW": _ideal,
}
"""SUVType (0054,1006) -> masses in kg for men and women from weight in kg and height in cm: James
1976 with the coefficient 128, Janmahasatian et al. 2005, ideal body weight (Zasadny and Wahl 1993;
Sugawara et al. 1999)."""


def reference_mass_kg(suv_type: str, *, weight_kg: float, height_cm: float, sex: str) -> float:
    """Return the mass that an SUV of this type was normalised to.

    Parameters
    ----------
    suv_type
        A key of ``MASS_FORMULAS``.
    weight_kg, height_cm
        Of the patient.
    sex
        PatientSex (0010,0040): M, F, or O for the mean of both formulas.

    Raises
    ------
    HeaderError
        ``SEX_MISSING`` for any other sex; ``MASS_UNDEFINED`` where the formula gives no positive
        mass (James' formula falls again for the very heavy).
    """
    male, female = MASS_FORMULAS[suv_type](weight_kg, height_cm)
    masses = {"M": male, "F": female, "O": (male + female) / 2}
    if sex not in masses:
        raise HeaderError(
            "SEX_MISSING",
            f"{attribute_name('PatientSex')} is not M, F or O: an SUV normalised to {suv_type} "
            "cannot be turned into SUVbw; export the series in BQML or fill in the sex",
        )
    if masses[sex] <= 0:
        raise HeaderError(
            "MASS_UNDEFINED",
            f"the formula {suv_type} gives {masses[sex]:.1f} kg for {weight_kg:g} kg and "
            f"{height_cm:g} cm: SUVbw is undefined; export the series in BQML",
        )
    return masses[sex]


def note_lean_mass_variant(
    mass_kg: float, weight_kg: float, height_cm: float, sex: str, notes: Notes
) -> None:
    """Note what it would cost if SUVType LBM was made with the coefficient 120 in place of 128.

    Software in use has printed either for men, and LBM alone, unlike LBMJAMES128, leaves it open.
    """
    share = {"M": 1.0, "O": 0.5}.get(sex, 0.0)
    difference = share * 8 * (weight_kg / height_cm) ** 2 / mass_kg
    if difference > LEAN_MASS_WARNING:
        notes.add(
            "SUVTYPE_LBM",
            f"{attribute_name('SUVType')} is LBM, read as James' formula with 128; where it was "
            f"120 SUV would be {100 * difference / (1 + difference):.1f} % lower",
        )


def body_surface_cm2(*, weight_kg: float, height_cm: float) -> float:
    """Return the body surface in cm2 (Du Bois and Du Bois 1916)."""
    return 0.007184 * height_cm**0.725 * weight_kg**0.425 * 1e4
