"""Laws of the conversion on random headers: what must not change it, and what must scale it."""

from datetime import datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.suv import suvbw
from tests.preprocessing.suv_headers import HALF_LIFE, clock, instance, put_private
from tests.reference.suv_oracle import average_time

MAKERS = {"GE": "GE MEDICAL SYSTEMS", "SIEMENS": "SIEMENS", "PHILIPS": "Philips", "": None}
PRIVATE = {"GE": (0x0009, 0x0D, "GEMS_PETD_01"), "SIEMENS": (0x0071, 0x22, "SIEMENS MED PT")}
DATE_KEYWORDS = ("AcquisitionDate", "SeriesDate")


@st.composite
def scans(draw):
    """A scan by its truth: everything that ``slices`` writes down."""
    return {
        "start": draw(st.datetimes(datetime(1961, 1, 1), datetime(2030, 1, 1))),
        "uptake": draw(st.integers(25 * 60, 175 * 60)),
        "duration": draw(st.integers(60, 300)),
        "beds": draw(st.integers(1, 5)),
        "gap": draw(st.integers(0, 30)),
        "maker": draw(st.sampled_from(list(MAKERS))),
        "private": draw(st.booleans()),
        "dated": draw(st.booleans()),
        "correction": draw(st.sampled_from(["START", "START", "NONE", "ADMIN"])),
    }


def slices(scan, *, dose="350000000", **changes):
    """Write a scan down, as the maker's headers have it."""
    start, maker = scan["start"], scan["maker"]
    injection = (start - timedelta(seconds=scan["uptake"])).replace(microsecond=0)
    stamp = f"{injection:%Y%m%d%H%M%S}" if scan["dated"] else None
    drug = {"RadionuclideTotalDose": dose, "RadiopharmaceuticalStartTime": f"{injection:%H%M%S}",
            "RadiopharmaceuticalStartDateTime": stamp}  # fmt: skip
    average, made = average_time(scan["duration"], HALF_LIFE), []
    for bed in range(scan["beds"]):
        elapsed = scan["gap"] + bed * (scan["duration"] + 7)
        acquired, shown = clock(start + timedelta(seconds=elapsed)), clock(start)
        reference = elapsed if maker == "GE" else elapsed + average
        header = instance(
            **{"drug": drug, "Manufacturer": MAKERS[maker], "DecayCorrection": scan["correction"],
               "AcquisitionDate": acquired[0], "AcquisitionTime": acquired[1],
               "SeriesDate": shown[0], "SeriesTime": shown[1],
               "FrameReferenceTime": f"{reference * 1000:.6f}",
               "ActualFrameDuration": f"{scan['duration'] * 1000}", **changes}
        )  # fmt: skip
        if scan["private"] and maker in PRIVATE:
            group, element, creator = PRIVATE[maker]
            put_private(header, group, element, f"{start:%Y%m%d%H%M%S.%f}", creator=creator)
        made.append(header)
    return made


def codes(result):
    return [warning.split(":")[0] for warning in result.warnings]


def assert_same(first, second):
    np.testing.assert_allclose(second.factors, first.factors, rtol=1e-7)
    assert codes(second) == codes(first)
    assert second.route == first.route


@settings(max_examples=100, deadline=None)
@given(scans(), st.integers(-20000, 20000))
def test_other_days_change_nothing(scan, days):
    moved = scan | {"start": scan["start"] + timedelta(days=days)}
    assert_same(suvbw(slices(scan)), suvbw(slices(moved)))


@settings(max_examples=100, deadline=None)
@given(scans(), st.integers(-3 * 3600, 3 * 3600))
def test_midnight_anywhere_changes_nothing(scan, seconds):
    midnight = scan["start"].replace(hour=0, minute=0, second=0) + timedelta(seconds=seconds)
    assert_same(suvbw(slices(scan)), suvbw(slices(scan | {"start": midnight})))


@settings(max_examples=60, deadline=None)
@given(scans(), st.integers(-3 * 3600, 3 * 3600))
def test_midnight_of_undated_times_changes_nothing(scan, seconds):
    scan = scan | {"private": False, "dated": False, "gap": 0}
    midnight = scan["start"].replace(hour=0, minute=0, second=0) + timedelta(seconds=seconds)
    undated = slices(scan | {"start": midnight}, **dict.fromkeys(DATE_KEYWORDS))
    np.testing.assert_allclose(suvbw(undated).factors, suvbw(slices(scan)).factors, rtol=1e-7)


@settings(max_examples=100, deadline=None)
@given(scans(), st.sampled_from(["SeriesDate", "AcquisitionDate", "injection"]),
       st.integers(2, 9000), st.booleans())  # fmt: skip
def test_days_moved_on_one_side_only_never_change_the_factors_silently(scan, side, days, back):
    shift = timedelta(days=-days if back else days)
    expected = suvbw(slices(scan)).factors
    moved = slices(scan)
    for header in moved:
        if side == "injection":
            item = header.RadiopharmaceuticalInformationSequence[0]
            if scan["dated"]:
                stamp = datetime.strptime(item.RadiopharmaceuticalStartDateTime, "%Y%m%d%H%M%S")
                item.RadiopharmaceuticalStartDateTime = f"{stamp + shift:%Y%m%d%H%M%S}"
        else:
            day = datetime.strptime(getattr(header, side), "%Y%m%d")
            setattr(header, side, f"{day + shift:%Y%m%d}")
    result = suvbw(moved)
    np.testing.assert_allclose(result.factors, expected, rtol=1e-3)
    found = set(codes(result))
    if scan["correction"] == "START" and side == "SeriesDate":
        assert found & {"DATE_MISMATCH", "SERIES_TIME_LATER", "SERIES_TIME_IGNORED"}
    if scan["correction"] == "START" and side == "AcquisitionDate":
        assert found
    if scan["correction"] != "ADMIN" and scan["dated"] and side != "SeriesDate":
        assert "DATE_REBUILT" in found


@settings(max_examples=60, deadline=None)
@given(scans(), st.randoms(use_true_random=False))
def test_permuting_the_slices_permutes_the_factors(scan, random):
    instances = slices(scan)
    order = list(range(len(instances)))
    random.shuffle(order)
    first, second = suvbw(instances), suvbw([instances[place] for place in order])
    np.testing.assert_array_equal(second.factors, first.factors[order])
    assert (second.route, second.warnings) == (first.route, first.warnings)


@settings(max_examples=60, deadline=None)
@given(scans(), st.floats(0.2, 3), st.floats(0.5, 2))
def test_dose_and_weight_scale_the_factors(scan, dose, weight):
    first = suvbw(slices(scan))
    scaled = suvbw(slices(scan, dose=f"{350e6 * dose:.8e}", PatientWeight=f"{70 * weight:.6f}"))
    np.testing.assert_allclose(scaled.factors, first.factors * weight / dose, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(scans())
def test_all_makers_agree_where_their_routes_do(scan):
    results = [
        suvbw(slices(scan | {"maker": maker, "private": private})).factors
        for maker in MAKERS
        for private in (True, False)
    ]
    for factors in results[1:]:
        np.testing.assert_allclose(factors, results[0], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(scans())
def test_ge_headers_without_manufacturer_give_the_same_factors(scan):
    """SeriesTime, or the beds, tell whose convention the frame reference time follows."""
    scan = scan | {"maker": "GE", "private": False}
    nameless = slices(scan, Manufacturer=None)
    expected = suvbw(slices(scan)).factors
    np.testing.assert_allclose(suvbw(nameless).factors, expected, rtol=1e-6)
