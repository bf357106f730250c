"""Weight, dose, half-life, units and corrections: each rule on both sides of its threshold."""

import numpy as np
import pytest
from pydicom.dataset import Dataset

from preprocessing.errors import HeaderError
from preprocessing.suv import ROUTES, suvbw
from preprocessing.suv_dose import HALF_LIVES_S, nuclide_of
from tests.preprocessing.suv_headers import (
    ADMIN_FACTOR,
    DECAYED_FACTOR,
    coded,
    drug_item,
    instance,
    put,
    put_items,
    put_private,
    series,
)

PHILIPS = "Philips PET Private Group"


def codes(result):
    return [warning.split(":")[0] for warning in result.warnings]


def refusal(instances, **options):
    with pytest.raises(HeaderError) as caught:
        suvbw(instances, **options)
    return caught.value


def check(instances, factor, expected_codes=(), **options):
    result = suvbw(instances, **options)
    np.testing.assert_allclose(result.factors, factor, rtol=1e-9)
    assert sorted(codes(result)) == sorted(expected_codes)
    return result


def test_a_plain_series():
    result = check(series(), DECAYED_FACTOR)
    assert result.route == "START / AcquisitionTime (0008,0032) equal to SeriesTime (0008,0031)"
    assert (result.weight_kg, result.dose_bq, result.uptake_s) == (70, 350e6, 3600)
    assert (result.half_life_s, result.nuclide, result.units) == (6586.2, "F-18", "BQML")
    assert not result.factors.flags.writeable


def test_a_series_needs_an_instance():
    with pytest.raises(HeaderError, match="holds no instance") as caught:
        suvbw([])
    assert caught.value.code == "SERIES_EMPTY"


@pytest.mark.parametrize(
    ("options", "message"),
    [({"formula": "suv"}, "formula is 'suv'; known: suvbw, paper"),
     ({"prefer": "privat"}, "prefer is 'privat'; known routes: private, acq")],
)  # fmt: skip
def test_unknown_names(options, message):
    unchecked = getattr(suvbw, "__wrapped__", suvbw)  # past the type check of the suite
    with pytest.raises(ValueError, match=message):
        unchecked(series(), **options)


def test_routes_are_listed():
    assert ROUTES == ("private", "acquisition", "series", "activity-factor", "suv-factor")


# Weight ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kilograms", "expected"),
    [("350", 350, []), ("1000", 1, ["WEIGHT_G", "WEIGHT_RANGE"]), ("70000", 70, ["WEIGHT_G"]),
     ("350000", 350, ["WEIGHT_G"]), ("2", 2, []), ("1.99", 1.99, ["WEIGHT_RANGE"])],
)  # fmt: skip
def test_weight_accepted(text, kilograms, expected):
    instances = series(PatientWeight=text, PatientSize=None)
    check(instances, DECAYED_FACTOR * kilograms / 70, expected)


@pytest.mark.parametrize(
    ("weight", "size", "expected"),
    [("154.3", "1.75", ["BMI_RANGE"]), ("137", "1.75", []), ("138", "1.75", ["BMI_RANGE"]),
     ("31", "1.75", []), ("30", "1.75", ["BMI_RANGE"]), ("154.3", "175", ["BMI_RANGE"]),
     ("1.75", "70", ["WEIGHT_RANGE", "BMI_RANGE"]), ("154.3", "", []), ("154.3", "x", []),
     ("3.5", "0.5", [])],
)  # fmt: skip
def test_a_weight_that_does_not_go_with_the_height_is_noted(weight, size, expected):
    instances = series(PatientWeight=weight, PatientSize=size)
    check(instances, DECAYED_FACTOR * float(weight) / 70, expected)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [(None, "WEIGHT_MISSING", r"PatientWeight \(0010,1030\) is empty: SUVbw is undefined"),
     ("", "WEIGHT_MISSING", "is empty"), ("0", "WEIGHT_MISSING", "is '0'"),
     ("-70", "WEIGHT_MISSING", "is '-70'"), ("NaN", "WEIGHT_MISSING", "is 'NAN'"),
     ("350.1", "WEIGHT_RANGE", "is 350.1 kg, not within 0 to 350 kg"),
     ("999", "WEIGHT_RANGE", "is 999 kg"), ("350001", "WEIGHT_RANGE", "is 350.001 kg"),
     ("inf", "WEIGHT_RANGE", "is inf kg"), ("70,5", "WEIGHT_INVALID", "is '70,5': not one finite"),
     ("1e", "WEIGHT_INVALID", "is '1E'"), ("70\\71", "WEIGHT_INVALID", "not one finite"),
     ("heavy", "WEIGHT_INVALID", "is a text of 5 characters")],
)  # fmt: skip
def test_weight_refused(text, code, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(series(PatientWeight=text))
    assert caught.value.code == code


def test_a_given_weight_replaces_the_header():
    check(series(PatientWeight="0"), DECAYED_FACTOR * 80 / 70, ["WEIGHT_OVERRIDE"], weight_kg=80.0)
    assert refusal(series(), weight_kg=float("nan")).code == "WEIGHT_RANGE"
    assert refusal(series(), weight_kg=-1.0).code == "WEIGHT_RANGE"


# Dose --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "becquerel", "expected"),
    [("368.08", 368.08e6, ["DOSE_MBQ"]), ("9999.99", 9999.99e6, ["DOSE_MBQ", "DOSE_RANGE"]),
     ("10001", 10001, ["DOSE_RANGE"]), ("10000", 10000, ["DOSE_RANGE"]),
     ("37", 37e6, ["DOSE_MBQ"]), ("36.9", 36.9e6, ["DOSE_MBQ", "DOSE_RANGE"]),
     ("1.11E9", 1.11e9, []), ("1.12E9", 1.12e9, ["DOSE_RANGE"]),
     ("9.95", 9.95e6, ["DOSE_MBQ", "DOSE_RANGE"])],
)  # fmt: skip
def test_dose_accepted(text, becquerel, expected):
    instances = series(drug={"RadionuclideTotalDose": text})
    result = check(instances, DECAYED_FACTOR * 350e6 / becquerel, expected)
    assert result.dose_bq == pytest.approx(becquerel)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [(None, "DOSE_MISSING", r"RadionuclideTotalDose \(0018,1074\) is empty: without the injected"),
     ("0", "DOSE_MISSING", "is '0'"), ("-350", "DOSE_MISSING", "is '-350'"),
     ("nan", "DOSE_MISSING", "is 'nan'"), ("inf", "DOSE_INVALID", "not one finite"),
     ("3,5E8", "DOSE_INVALID", "is '3,5E8'"), ("1e", "DOSE_INVALID", "is '1e'"),
     ("1\\2", "DOSE_INVALID", "not one finite")],
)  # fmt: skip
def test_dose_refused(text, code, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(series(drug={"RadionuclideTotalDose": text}))
    assert caught.value.code == code


def test_the_dose_window_is_that_of_fluorine():
    gallium = ("C-131A3", "SRT", "^68^Gallium")
    drug = {"RadionuclideTotalDose": "20000000", "RadionuclideHalfLife": "4062.6"}
    assert codes(suvbw(series(drug=drug, code=gallium))) == []


@pytest.mark.parametrize("items", [None, []])
def test_without_the_sequence_there_is_no_dose(items):
    instances = series()
    for header in instances:
        put(header, "RadiopharmaceuticalInformationSequence", None)
        if items is not None:
            put_items(header, "RadiopharmaceuticalInformationSequence", items)
    with pytest.raises(HeaderError, match=r"Sequence \(0054,0016\) is absent or empty") as caught:
        suvbw(instances)
    assert caught.value.code == "DOSE_MISSING"


def test_equal_items_are_one_and_different_items_are_ambiguous():
    instances = series()
    for header in instances:
        put_items(header, "RadiopharmaceuticalInformationSequence", [drug_item(), drug_item()])
    check(instances, DECAYED_FACTOR)
    other = drug_item(RadionuclideTotalDose="1E8")
    put_items(instances[1], "RadiopharmaceuticalInformationSequence", [drug_item(), other])
    with pytest.raises(HeaderError, match="holds 2 items that differ") as caught:
        suvbw(instances)
    assert caught.value.code == "RADIOPHARM_AMBIGUOUS"


def test_values_outside_the_sequence_are_found():
    instances = series()
    for header in instances:
        put(header, "RadiopharmaceuticalInformationSequence", None)
        put(header, "RadionuclideTotalDose", "350000000")
        put(header, "RadionuclideHalfLife", "6586.2")
        put(header, "RadiopharmaceuticalStartTime", "100000")
    check(instances, DECAYED_FACTOR, ["RADIOPHARM_TOP_LEVEL"])


# Half-life ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "0", "-1", "NaN"])
@pytest.mark.parametrize(
    "code", [("C-111A1", "99SDM", "18F"), ("77004003", "SCT", ""), ("?", "X", "Fluorine-18")]
)
def test_half_life_from_the_nuclide(text, code):
    instances = series(drug={"RadionuclideHalfLife": text}, code=code)
    check(instances, DECAYED_FACTOR, ["HALFLIFE_FROM_CODE"])


@pytest.mark.parametrize(
    ("text", "code", "error", "message"),
    [(None, None, "HALFLIFE_MISSING", r"RadionuclideHalfLife \(0018,1075\) is empty and the nucl"),
     ("0", ("X", "Y", "unknown"), "HALFLIFE_MISSING", "is '0'"),
     ("109.8", ("C-111A1", "SRT", ""), "HALFLIFE_MISMATCH", "is 109.8 s but F-18 has 6586.2 s"),
     ("6653", ("C-111A1", "SRT", ""), "HALFLIFE_MISMATCH", "is 6653 s"),
     ("6519", ("C-111A1", "SRT", ""), "HALFLIFE_MISMATCH", "is 6519 s"),
     ("6586.2", ("C-105A1", "SRT", ""), "HALFLIFE_MISMATCH", "but C-11 has"),
     ("0.99", None, "HALFLIFE_RANGE", "is 0.99 s: nothing would be left"),
     ("1e-300", None, "HALFLIFE_RANGE", "is 1e-300 s"),
     ("6586,2", ("C-111A1", "SRT", ""), "HALFLIFE_INVALID", "is '6586,2'"),
     ("inf", ("C-111A1", "SRT", ""), "HALFLIFE_INVALID", "not one finite")],
)  # fmt: skip
def test_half_life_refused(text, code, error, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(series(drug={"RadionuclideHalfLife": text}, code=code))
    assert caught.value.code == error


@pytest.mark.parametrize(("text", "expected"), [("6588", []), ("6651", []), ("6521", [])])
def test_half_life_within_one_percent(text, expected):
    factor = 70000 / (350e6 * 2 ** (-3600 / float(text)))
    check(series(drug={"RadionuclideHalfLife": text}), factor, expected)


def test_half_life_without_a_nuclide():
    check(series(code=None), DECAYED_FACTOR)
    factor = 70000 / (350e6 * 2 ** (-3600 / 7000))
    check(series(code=None, drug={"RadionuclideHalfLife": "7000"}), factor, ["HALFLIFE_UNVERIFIED"])


@pytest.mark.parametrize(
    ("code", "drug", "expected"),
    [(("C-B1038", "SRT", ""), None, "O-15"), (("35337001", "SCT", ""), None, "GA-68"),
     (("99", "L", "^89^Zirconium"), None, "ZR-89"), (("99", "L", "89Zr"), None, "ZR-89"),
     (("99", "L", "Zr-89"), None, "ZR-89"), (("99", "L", "Copper 64"), None, "CU-64"),
     (("99", "L", "Cu^64^"), None, "CU-64"), (("99", "L", "C-111A1X"), None, ""),
     (("99", "L", "Tc-99"), None, ""), (None, "FDG -- fluorodeoxyglucose", "F-18"),
     (None, "18F-PSMA-1007", "F-18"), (None, "Ga68 DOTATATE", "GA-68"), (None, "Solution", ""),
     (None, None, "")],
)  # fmt: skip
def test_nuclide(code, drug, expected):
    item = drug_item(code)
    put(item, "Radiopharmaceutical", drug)
    assert nuclide_of(item) == expected


def test_nuclide_from_the_code_of_the_radiopharmaceutical():
    item = drug_item(None)
    put_items(item, "RadiopharmaceuticalCodeSequence", [coded("C-B1031", "SRT", "FDG F^18^")])
    assert nuclide_of(item) == "F-18"


def test_half_lives_are_those_in_use():
    in_use = {"F-18": 6588, "C-11": 1223.4, "N-13": 597.8, "O-15": 122.1, "GA-68": 4057.7,
              "RB-82": 76.4, "CU-64": 45720, "ZR-89": 282240, "I-124": 360806}  # fmt: skip
    for nuclide, seconds in in_use.items():
        assert abs(HALF_LIVES_S[nuclide] / seconds - 1) < 0.01


# Units -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "code"),
    [(None, "UNITS_MISSING"), ("", "UNITS_MISSING"), ("PROPCNTS", "UNITS_PROPCNTS"),
     ("PROPCPS", "UNITS_PROPCPS"), ("CPS", "UNITS_CPS"), ("1CM", "UNITS_1CM"),
     ("NONE", "UNITS_NONE"), ("CNTS", "UNITS_CNTS"), ("DOE JOHN", "UNITS_UNKNOWN")],
)  # fmt: skip
@pytest.mark.parametrize("formula", ["suvbw", "paper"])
def test_units_refused(units, code, formula):
    error = refusal(series(Units=units), formula=formula)
    assert error.code == code
    assert "Units (0054,1001) is" in str(error)
    assert "DOE" not in str(error)


MEN, WOMEN = 1.10 * 70 - 128 * 0.4**2, 1.07 * 70 - 148 * 0.4**2
BMI = 70 / 1.75**2
IDEAL_MEN, IDEAL_WOMEN = 48.0 + 1.06 * 23, 45.5 + 0.91 * 23
JAN_MEN, JAN_WOMEN = 9270 * 70 / (6680 + 216 * BMI), 9270 * 70 / (8780 + 244 * BMI)


@pytest.mark.parametrize(
    ("kind", "sex", "mass"),
    [(None, "M", 70), ("BW", "F", 70), ("LBM", "M", MEN), ("LBMJAMES128", "F", WOMEN),
     ("LBMJAMES128", "O", (MEN + WOMEN) / 2), ("LBMJANMA", "M", JAN_MEN),
     ("LBMJANMA", "F", JAN_WOMEN), ("LBMJANMA", "O", (JAN_MEN + JAN_WOMEN) / 2),
     ("IBW", "M", IDEAL_MEN), ("IBW", "F", IDEAL_WOMEN),
     ("IBW", "O", (IDEAL_MEN + IDEAL_WOMEN) / 2)],
)  # fmt: skip
def test_gml_is_turned_back_to_body_weight(kind, sex, mass):
    noted = ["SUVTYPE_LBM"] if kind == "LBM" else []
    result = check(series(Units="GML", SUVType=kind, PatientSex=sex), 70 / mass, noted)
    assert result.route == f"UNITS GML {kind or 'BW'}"
    assert result.weight_kg == 70


def test_gml_by_body_weight_needs_nothing_else():
    bare = {"PatientWeight": None, "DecayCorrection": None, "SeriesTime": None}
    result = check(series(Units="GML", **bare, drug={"RadionuclideTotalDose": None}), 1.0)
    assert result.weight_kg is None


def test_stored_suv_takes_a_given_weight():
    check(series(Units="GML"), 80 / 70, ["WEIGHT_OVERRIDE"], weight_kg=80.0)
    both = ["WEIGHT_OVERRIDE", "WEIGHT_OVERRIDE_UNUSED"]
    check(series(Units="GML", PatientWeight=None), 1.0, both, weight_kg=80.0)


@pytest.mark.parametrize("suv_type", [None, "BSA"])
def test_cm2ml_is_turned_back_by_the_body_surface(suv_type):
    surface = 0.007184 * 175**0.725 * 70**0.425 * 1e4
    result = check(series(Units="CM2ML", SUVType=suv_type), 70000 / surface)
    assert result.route == "UNITS CM2ML BSA"


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [({"SUVType": "BSA"}, "SUVTYPE_UNKNOWN", r"SUVType \(0054,1006\) does not belong to Units GML"),
     ({"SUVType": "BW", "Units": "CM2ML"}, "SUVTYPE_UNKNOWN", "does not belong to Units CM2ML"),
     ({"SUVType": "LBM", "PatientSize": None}, "HEIGHT_MISSING", r"PatientSize \(0010,1020\) is m"),
     ({"SUVType": "LBM", "PatientSize": "0"}, "HEIGHT_MISSING", "not positive"),
     ({"SUVType": "LBM", "PatientSize": "2.6"}, "HEIGHT_RANGE", "is 2.6 m: no patient"),
     ({"SUVType": "LBM", "PatientSize": "1750"}, "HEIGHT_RANGE", "is 1750 m"),
     ({"SUVType": "LBM", "PatientSize": "1,75"}, "HEIGHT_INVALID", "is '1,75'"),
     ({"SUVType": "LBM", "PatientWeight": None}, "WEIGHT_MISSING", "is empty"),
     ({"SUVType": "LBM", "PatientSex": None}, "SEX_MISSING", r"PatientSex \(0010,0040\) is not M"),
     ({"SUVType": "IBW", "PatientSex": "X"}, "SEX_MISSING", "is not M, F or O"),
     ({"SUVType": "LBM", "PatientWeight": "300", "PatientSize": "1.4"}, "MASS_UNDEFINED",
      "the formula LBM gives -257.8 kg for 300 kg and 140 cm")],
)  # fmt: skip
def test_other_suvs_refused(changes, code, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(series(**{"Units": "GML", **changes}))
    assert caught.value.code == code


@pytest.mark.parametrize(("text", "expected"), [("2.5", []), ("0.3", []), ("175", ["HEIGHT_CM"])])
def test_heights(text, expected):
    metres = float(text) / 100 if expected else float(text)
    surface = 0.007184 * (metres * 100) ** 0.725 * 70**0.425 * 1e4
    result = suvbw(series(Units="CM2ML", PatientSize=text))
    np.testing.assert_allclose(result.factors, 70000 / surface, rtol=1e-9)
    assert [code for code in codes(result) if code != "BMI_RANGE"] == expected


# Philips -----------------------------------------------------------------------------------------


def philips(*, suv=None, activity=None, creator=PHILIPS, manufacturer="Philips", **changes):
    instances = series(Units="CNTS", Manufacturer=manufacturer, **changes)
    for header in instances:
        for element, text in ((0x00, suv), (0x09, activity)):
            if text is not None:
                put_private(header, 0x7053, element, text, creator=creator, representation="DS")
    return instances


def test_counts_by_either_factor():
    result = check(philips(suv="0.0005"), 0.0005)
    assert result.route == "PHILIPS SUV factor (7053,1000)"
    result = check(philips(activity="2.5"), 2.5 * DECAYED_FACTOR)
    assert result.route.startswith("PHILIPS activity factor (7053,1009) / START / Acquisition")
    assert result.dose_bq == 350e6


@pytest.mark.parametrize("zero", ["0", "0.0", ""])
def test_a_factor_of_zero_is_none(zero):
    check(philips(suv="0.0005", activity=zero), 0.0005)
    check(philips(suv=zero, activity="2"), 2 * DECAYED_FACTOR)
    assert refusal(philips(suv=zero, activity=zero)).code == "UNITS_CNTS"


def test_counts_without_creator_and_without_manufacturer():
    check(philips(suv="0.0005", creator=""), 0.0005, ["PRIVATE_BARE"])
    check(philips(suv="0.0005", manufacturer=None), 0.0005)


@pytest.mark.parametrize("maker", ["GE MEDICAL SYSTEMS", "SIEMENS", "Synthetic"])
def test_counts_of_others_are_refused(maker):
    assert refusal(philips(suv="0.0005", manufacturer=maker)).code == "UNITS_CNTS"


@pytest.mark.parametrize(
    ("ratio", "expected"), [(1.009, []), (1 / 1.009, []), (1.015, ["ROUTE_DIFFERENCE"]),
                            (1.049, ["ROUTE_DIFFERENCE"]), (1 / 1.049, ["ROUTE_DIFFERENCE"])]
)  # fmt: skip
def test_both_factors_are_compared(ratio, expected):
    check(philips(suv=f"{DECAYED_FACTOR * ratio:.8e}", activity="1"), DECAYED_FACTOR, expected)


@pytest.mark.parametrize(
    ("ratio", "amount"), [(1.06, "6.0 %"), (1 / 1.06, "6.0 %"), (20, "more than tenfold")]
)
def test_both_factors_in_conflict(ratio, amount):
    instances = philips(suv=f"{DECAYED_FACTOR * ratio:.8e}", activity="1")
    with pytest.raises(
        HeaderError, match=r"name the route to believe \(activity-factor or suv-f"
    ) as e:
        suvbw(instances)
    assert e.value.code == "ROUTE_CONFLICT"
    assert f"differ by {amount}: one of them" in str(e.value)
    note = ["ROUTE_DIFFERENCE"]
    check(instances, DECAYED_FACTOR, note, prefer="activity-factor")
    result = suvbw(instances, prefer="suv-factor")
    np.testing.assert_allclose(result.factors, DECAYED_FACTOR * ratio, rtol=1e-6)
    assert codes(result) == note


def test_a_closed_activity_route_leaves_the_suv_factor():
    instances = philips(suv="0.0005", activity="1", DecayCorrection=None)
    check(instances, 0.0005, ["DECAY_UNKNOWN"])


def test_suv_factors_take_a_given_weight():
    check(philips(suv="0.0007"), 0.0008, ["WEIGHT_OVERRIDE"], weight_kg=80.0)


@pytest.mark.parametrize(("text", "message"), [("-1", "not positive"), ("1,5", "not one finite")])
def test_impossible_factors_are_refused(text, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(philips(suv=text))
    assert caught.value.code == "PHILIPS_FACTOR"


def test_factors_that_some_slices_lack_are_refused():
    instances = philips(suv="0.0005")
    del instances[1][0x70531000]
    assert refusal(instances).code == "PHILIPS_FACTOR"


# Corrections -------------------------------------------------------------------------------------


def test_admin_needs_no_time_and_no_half_life():
    changes = {"SeriesTime": None, "AcquisitionTime": "oops", "FrameReferenceTime": None}
    drug = {"RadionuclideHalfLife": "1", "RadiopharmaceuticalStartTime": None}
    result = check(series(DecayCorrection="ADMIN", drug=drug, **changes), ADMIN_FACTOR)
    assert (result.route, result.uptake_s, result.half_life_s) == ("ADMIN", None, None)


@pytest.mark.parametrize("text", [None, "", "YES", "STARTED"])
def test_an_unknown_decay_correction_is_refused(text):
    with pytest.raises(
        HeaderError, match=r"DecayCorrection \(0054,1102\) is (absent|not START)"
    ) as e:
        suvbw(series(DecayCorrection=text))
    assert e.value.code == "DECAY_UNKNOWN"


@pytest.mark.parametrize("correction", ["START", "ADMIN"])
def test_a_correction_that_was_not_applied_is_refused(correction):
    instances = series(DecayCorrection=correction, CorrectedImage="ATTN\\SCAT")
    with pytest.raises(HeaderError, match=r"but CorrectedImage \(0028,0051\) lacks DECY") as caught:
        suvbw(instances)
    assert caught.value.code == "DECAY_UNKNOWN"


def test_decay_flags():
    check(series(CorrectedImage="DECAY\\ATTN"), DECAYED_FACTOR)
    assert codes(suvbw(series(DecayCorrection="NONE"))) == ["DECAY_FLAGS"]


@pytest.mark.parametrize("units", ["BQML", "GML", "CNTS"])
def test_attenuation_is_required(units):
    instances = series(Units=units, CorrectedImage="DECY\\SCAT")
    with pytest.raises(HeaderError, match=r"CorrectedImage \(0028,0051\) lacks ATTN") as caught:
        suvbw(instances)
    assert caught.value.code == "NAC"


def test_one_uncorrected_slice_is_enough():
    assert refusal([*series(), instance(CorrectedImage="DECY")]).code == "NAC"
    assert refusal(series(CorrectedImage=None, AttenuationCorrected="NO")).code == "NAC"


@pytest.mark.parametrize("text", [None, ""])
def test_unstated_corrections_are_noted(text):
    check(series(CorrectedImage=text), DECAYED_FACTOR, ["CORRECTION_UNKNOWN"])


# Inside one series -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "keyword"),
    [({"PatientWeight": "71"}, "PatientWeight"),
     ({"Units": "GML"}, "Units"), ({"DecayCorrection": "NONE"}, "DecayCorrection"),
     ({"Manufacturer": "GE"}, "Manufacturer"), ({"SeriesTime": "110001"}, "SeriesTime"),
     ({"drug": {"RadionuclideTotalDose": "1"}}, "RadionuclideTotalDose"),
     ({"drug": {"RadionuclideHalfLife": "6588"}}, "RadionuclideHalfLife"),
     ({"drug": {"RadiopharmaceuticalStartTime": "1001"}}, "RadiopharmaceuticalStartTime"),
     ({"drug": {"RadiopharmaceuticalStartDateTime": None}}, "RadiopharmaceuticalStartDateTime"),
     ({"code": None}, "RadionuclideCodeSequence")],
)  # fmt: skip
def test_slices_must_agree(changes, keyword):
    with pytest.raises(HeaderError, match=f"{keyword} .* has 2 different values inside") as caught:
        suvbw([*series(), instance(**changes)])
    assert caught.value.code == f"INCONSISTENT_{keyword.upper()}"


def test_weights_written_differently_agree():
    check([*series(), instance(PatientWeight="70.0")], DECAYED_FACTOR)
    for text in (None, "NaN", "70,0"):
        with pytest.raises(HeaderError, match=r"PatientWeight \(0010,1030\) is") as caught:
            suvbw([*series(), instance(PatientWeight=text)])
        assert caught.value.code == "INCONSISTENT_PATIENTWEIGHT"


def test_sizes_must_agree_where_they_matter():
    mixed = [*series(Units="CM2ML"), instance(Units="CM2ML", PatientSize="1.80")]
    assert refusal(mixed).code == "INCONSISTENT_PATIENTSIZE"


# Paper -------------------------------------------------------------------------------------------


def test_the_paper_formula():
    result = check(series(DecayCorrection=None), ADMIN_FACTOR, ["PAPER_FORMULA"], formula="paper")
    assert result.route == "PAPER weight / dose"
    assert (result.weight_kg, result.dose_bq) == (70, 350e6)
    assert refusal(series(Units="GML"), formula="paper").code == "UNITS_GML"
    assert refusal(series(PatientWeight="0"), formula="paper").code == "WEIGHT_MISSING"
    assert refusal(series(CorrectedImage="DECY"), formula="paper").code == "NAC"


def test_a_factor_that_overflows_is_refused():
    instances = series(code=None, drug={"RadionuclideHalfLife": "1"})
    with pytest.raises(HeaderError, match="no positive number") as caught:
        suvbw(instances)
    assert caught.value.code == "SUV_IMPLAUSIBLE"


# Enhanced PET ------------------------------------------------------------------------------------

ENHANCED = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.130",
    "Units": None,
    "DecayCorrection": None,
    "CorrectedImage": None,
    "SeriesTime": None,
    "AcquisitionTime": None,
    "ActualFrameDuration": None,
    "AttenuationCorrected": "YES",
    "DecayCorrected": "YES",
    "DecayCorrectionDateTime": "20210310110000",
    "RescaleSlope": "1",
}
DRUG_MBQ = {"RadionuclideTotalDose": "350"}


def frames(*, unit="Bq/ml", slope=1.0, intercept=0.0, drug=None, **changes):
    made = []
    for _ in range(3):
        header = instance(drug={**DRUG_MBQ, **(drug or {})}, **{**ENHANCED, **changes})
        if unit is not None:
            mapping = Dataset()
            mapping.RealWorldValueSlope = slope
            mapping.RealWorldValueIntercept = intercept
            put_items(mapping, "MeasurementUnitsCodeSequence", [coded(unit, "UCUM", "")])
            other = Dataset()
            put_items(other, "MeasurementUnitsCodeSequence", [coded("1", "UCUM", "no units")])
            put_items(header, "RealWorldValueMappingSequence", [other, mapping])
        made.append(header)
    return made


def test_enhanced_corrected_to_an_instant():
    result = check(frames(), DECAYED_FACTOR)
    assert result.route == "ENHANCED / DecayCorrectionDateTime (0018,9701)"
    assert result.dose_bq == 350e6


def test_enhanced_mapping_replaces_the_rescale_slope():
    check(frames(slope=3.0, RescaleSlope="2"), DECAYED_FACTOR * 1.5)
    check(frames(slope=3.0, RescaleSlope=None), DECAYED_FACTOR * 3)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("g/ml", 1.0), ("{SUVbw}g/ml", 1.0), ("g/ml{SUVlbm(James128)}", 70 / MEN),
     ("cm2/ml{SUVbsa}", 70000 / (0.007184 * 175**0.725 * 70**0.425 * 1e4))],
)  # fmt: skip
def test_enhanced_suv(unit, factor):
    check(frames(unit=unit), factor)


def test_enhanced_without_mapping_uses_units_or_rescale_type():
    check(frames(unit=None, Units="BQML"), DECAYED_FACTOR)
    check(frames(unit=None, RescaleType="BQML"), DECAYED_FACTOR)
    assert refusal(frames(unit=None)).code == "UNITS_MISSING"
    assert refusal(frames(unit="[ppm]")).code == "UNITS_MISSING"


def test_enhanced_uncorrected():
    changes = {"DecayCorrected": "NO", "FrameAcquisitionDateTime": "20210310110000"}
    durations = {"ActualFrameDuration": "180000"}
    classic = suvbw(
        series(DecayCorrection="NONE", CorrectedImage="ATTN", ActualFrameDuration="180000")
    )
    check(frames(**changes, **durations), classic.factors)
    check(frames(**changes, FrameReferenceDateTime="20210310110000"), DECAYED_FACTOR)
    instances = frames(**changes)
    for header in instances:
        header.FrameAcquisitionDuration = 180000.0
    check(instances, classic.factors)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [({"DecayCorrectionDateTime": None}, "DECAY_UNKNOWN", "is YES but DecayCorrectionDateTime"),
     ({"DecayCorrected": "MAYBE"}, "DECAY_UNKNOWN", "is absent"),
     ({"AttenuationCorrected": "NO"}, "NAC", r"AttenuationCorrected \(0018,9759\) is NO"),
     ({"slope": 0.0}, "SLOPE", r"RealWorldValueSlope \(0040,9225\) is missing or not positive"),
     ({"intercept": 1.0}, "INTERCEPT", r"RealWorldValueIntercept \(0040,9224\) is not 0"),
     ({"RescaleSlope": "0"}, "SLOPE", r"RescaleSlope \(0028,1053\) is not positive")],
)  # fmt: skip
def test_enhanced_refused(changes, code, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(frames(**changes))
    assert caught.value.code == code


def test_enhanced_frames_must_agree():
    assert refusal([*frames(), *frames(unit="g/ml")]).code == "INCONSISTENT_UNITS"
    assert refusal([*frames(), *frames(unit=None)]).code == "INCONSISTENT_UNITS"
    later = frames(DecayCorrectionDateTime="20210310110003")
    assert refusal([*frames(), *later]).code == "SUV_TREF_INCONSISTENT"


def test_enhanced_dose_in_becquerel_is_noted():
    check(frames(drug={"RadionuclideTotalDose": "350000000"}), DECAYED_FACTOR, ["DOSE_BQ"])
