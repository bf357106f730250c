"""Random valid headers: the fast conversion against the slow one and against the truth."""

import contextlib
from datetime import datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import HeaderError
from preprocessing.suv import suvbw
from preprocessing.suv_time import average_count_rate_time
from tests.preprocessing.suv_headers import DRUG, SERIES, clock, instance, put_private
from tests.reference import suv_oracle

NUCLIDES = {
    "F-18": (("C-111A1", "SRT", ""), 6586.2, (20 * 60, 170 * 60)),
    "C-11": (("40565003", "SCT", ""), 1223.4, (0, 90 * 60)),
    "GA-68": (("", "", "^68^Gallium"), 4062.6, (30 * 60, 130 * 60)),
    "CU-64": (("C-127A2", "SRT", ""), 45721.0, (3600, 80000)),
    "ZR-89": (("C-168A4", "SRT", ""), 282276.0, (3600, 500000)),
}
MANUFACTURERS = {"GE": "GE MEDICAL SYSTEMS", "SIEMENS": "SIEMENS", "PHILIPS": "Philips", "": ""}


@st.composite
def headers(draw):
    """A multi-bed series of a known scan start; every route that is there tells the truth."""
    code, half_life, uptakes = draw(st.sampled_from(list(NUCLIDES.values())))
    vendor = draw(st.sampled_from(list(MANUFACTURERS)))
    start = draw(st.datetimes(datetime(1960, 1, 1), datetime(2035, 1, 1)))
    uptake = draw(st.integers(*uptakes))
    injection = (start - timedelta(seconds=uptake)).replace(microsecond=0)
    duration = draw(st.integers(30, 600))
    beds = draw(st.integers(1, 4))
    average = suv_oracle.average_time(duration, half_life)
    correction = draw(st.sampled_from(["START", "START", "ADMIN", "NONE"]))
    gap = draw(st.integers(1, 30))  # between SeriesTime and the first bed
    weight = draw(st.integers(20, 3000)) / 10
    weight_text = draw(st.sampled_from([f"{weight}", f"{weight * 1000:.0f}"]))
    if weight * 1000 < 1000:
        weight_text = f"{weight}"
    drug = dict(
        DRUG,
        RadionuclideTotalDose=draw(st.sampled_from(["350000000", "350", "4.1E8"])),
        RadionuclideHalfLife=f"{half_life}",
        RadiopharmaceuticalStartTime=f"{injection:%H%M%S}",
        RadiopharmaceuticalStartDateTime=f"{injection:%Y%m%d%H%M%S}",
    )
    if half_life < 41400 and draw(st.booleans()):
        drug["RadiopharmaceuticalStartDateTime"] = None
    later = draw(st.booleans())  # SeriesTime rewritten by post-processing
    shown = start + timedelta(hours=5) if later else start
    slices = []
    for bed in range(beds):
        acquired = start + timedelta(seconds=gap + bed * (duration + 5))
        elapsed = (acquired - start).total_seconds()
        reference = elapsed if vendor == "GE" else elapsed + average
        header = dict(SERIES, DecayCorrection=correction, PatientWeight=weight_text)
        header["AcquisitionDate"], header["AcquisitionTime"] = clock(acquired)
        header["SeriesDate"], header["SeriesTime"] = clock(shown)
        header["FrameReferenceTime"] = f"{reference * 1000:.6f}"
        header["ActualFrameDuration"] = f"{duration * 1000}"
        slices.append(header)
    private = draw(st.booleans()) and vendor in ("GE", "SIEMENS")
    return slices, drug, code, vendor, start if private else None, start, half_life


def build(slices, drug, code, vendor, private):
    made = []
    for header in slices:
        item = instance(drug=drug, code=code, **header, Manufacturer=MANUFACTURERS[vendor] or None)
        if private and vendor == "GE":
            put_private(item, 0x0009, 0x0D, f"{private:%Y%m%d%H%M%S.%f}", creator="GEMS_PETD_01")
        if private and vendor == "SIEMENS":
            put_private(item, 0x0071, 0x22, f"{private:%Y%m%d%H%M%S.%f}", creator="SIEMENS MED PT")
        made.append(item)
    return made


@settings(max_examples=300, deadline=None)
@given(headers())
def test_conversion_equals_the_slow_one(case):
    slices, drug, code, vendor, private, start, half_life = case
    result = suvbw(build(slices, drug, code, vendor, private))
    expected = [
        suv_oracle.factor(header, drug, vendor=vendor, private=private) for header in slices
    ]
    np.testing.assert_allclose(result.factors, expected, rtol=1e-6)
    if slices[0]["DecayCorrection"] == "START":
        injection = suv_oracle.injected(drug, start, half_life)
        assert abs(result.uptake_s - (start - injection).total_seconds()) < 0.01


@settings(max_examples=50)
@given(st.floats(1e-3, 3600), st.floats(70, 3e5))
def test_average_count_rate_time_is_that_of_the_integral(duration, half_life):
    found = average_count_rate_time(np.array([duration]), half_life)[0]
    expected = suv_oracle.average_time(duration, half_life)
    assert abs(found - expected) < 1e-4 * duration
    assert 0 < found <= duration / 2 * (1 + 1e-9)


def test_uncorrected_slices_follow_the_closed_form():
    decay, duration = np.log(2) / 6586.2, 180.0
    slices, expected = [], []
    for bed in range(3):
        acquired = datetime(2021, 3, 10, 11) + timedelta(seconds=bed * 200)
        date, time = clock(acquired)
        slices.append(
            instance(DecayCorrection="NONE", CorrectedImage="ATTN", AcquisitionDate=date,
                     AcquisitionTime=time, ActualFrameDuration="180000")
        )  # fmt: skip
        elapsed = 3600 + bed * 200
        share = decay * duration / (1 - np.exp(-decay * duration))
        expected.append(70000 / 350e6 * share * np.exp(decay * elapsed))
    result = suvbw(slices)
    np.testing.assert_allclose(result.factors, expected, rtol=1e-9)
    assert result.warnings == ()
    assert len(set(result.factors)) == 3


TEXTS = st.one_of(
    st.none(),
    st.sampled_from(["", "0", "-1", "nan", "inf", "1e308", "1e-308", "70,5", "1e", "1\\2", "\0"]),
    st.sampled_from(["START", "NONE", "ADMIN", "GML", "CM2ML", "CNTS", "LBM", "GE", "YES", "NO"]),
    st.sampled_from(["000000", "235960", "20210310", "00010101", "99991231", "2021031011"]),
    st.floats().map(repr),
    st.datetimes().map(lambda moment: f"{moment.year:04}{moment:%m%d%H%M%S.%f}"),
    st.text(st.characters(max_codepoint=255), max_size=20),
)
OTHERS = {"Manufacturer", "SUVType", "AcquisitionDateTime", "DecayCorrected"} | {
    "TimezoneOffsetFromUTC",
    "AttenuationCorrected",
    "FrameReferenceDateTime",
}
KEYWORDS = sorted({*SERIES, *OTHERS})


@settings(max_examples=1500, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYWORDS), TEXTS, max_size=3),
    st.dictionaries(st.sampled_from(sorted(DRUG)), TEXTS, max_size=2),
    st.dictionaries(st.sampled_from([(0x0009, 0x0D), (0x0009, 0x3B), (0x0071, 0x22),
                                     (0x7053, 0x00), (0x7053, 0x09)]), TEXTS, max_size=2),
)  # fmt: skip
def test_any_fault_ends_in_factors_or_in_a_code(changes, drug, private):
    header = instance(drug=drug, **changes)
    for (group, element), text in private.items():
        put_private(header, group, element, text or "", representation="UN")
    instances = [instance(), header] if len(changes) % 2 else [header, header]
    with contextlib.suppress(HeaderError):  # any other exception fails the test
        factors = suvbw(instances).factors
        assert factors.shape == (2,)
        assert np.all(np.isfinite(factors) & (factors > 0))
