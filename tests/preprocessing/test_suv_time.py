"""Every route to the scan start, how they are compared, and when an injection is believed."""

from datetime import timedelta

import numpy as np
import pytest

from preprocessing.errors import HeaderError
from preprocessing.suv import suvbw
from tests.preprocessing.suv_headers import (
    HALF_LIFE,
    INJECTION,
    SCAN,
    clock,
    instance,
    put_private,
    series,
)

GE, SIEMENS = "GE MEDICAL SYSTEMS", "SIEMENS"
PRIVATE = {GE: (0x0009, 0x0D, "GEMS_PETD_01"), SIEMENS: (0x0071, 0x22, "SIEMENS MED PT")}
AVERAGE_S = 59.96  # of 120 s of F-18: half the duration less 0.06 %


def codes(result):
    return [warning.split(":")[0] for warning in result.warnings]


def refusal(instances, **options):
    with pytest.raises(HeaderError) as caught:
        suvbw(instances, **options)
    return caught.value


def factor_at(uptake_s, half_life=HALF_LIFE):
    return 70000 / (350e6 * 2 ** (-uptake_s / half_life))


def at(date_keyword, time_keyword, moment):
    date, time = clock(moment)
    return {date_keyword: date, time_keyword: time}


def acquired(moment):
    return at("AcquisitionDate", "AcquisitionTime", moment)


def started(moment):
    return at("SeriesDate", "SeriesTime", moment)


def injected(moment=None, *, dated=None):
    """An injection by time of day alone, or by date and time."""
    return {
        "RadiopharmaceuticalStartTime": f"{moment:%H%M%S}" if moment else None,
        "RadiopharmaceuticalStartDateTime": f"{dated:%Y%m%d%H%M%S}" if dated else None,
    }


def seconds(number):
    return timedelta(seconds=number)


def with_private(manufacturer, moment, *, creator=None, block=0x10, **changes):
    group, element, name = PRIVATE[manufacturer]
    instances = series(Manufacturer=manufacturer, **changes)
    for header in instances:
        text = f"{moment:%Y%m%d%H%M%S.%f}"
        put_private(
            header, group, element, text, creator=name if creator is None else creator, block=block
        )
    return instances


# Routes ------------------------------------------------------------------------------------------


def test_ge_counts_back_by_the_frame_reference_time():
    changes = acquired(SCAN + seconds(900)) | started(SCAN + seconds(4000))
    result = suvbw(series(Manufacturer=GE, FrameReferenceTime="900000", **changes))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["SERIES_TIME_LATER"]
    assert result.route == "START / AcquisitionTime (0008,0032) - FrameReferenceTime (0054,1300)"


@pytest.mark.parametrize("manufacturer", [None, "SIEMENS", "Philips", "GENERIC"])
def test_others_count_back_from_the_average_count_rate_time(manufacturer):
    changes = acquired(SCAN + seconds(900)) | started(SCAN + seconds(4000))
    reference = f"{(900 + AVERAGE_S) * 1000:.3f}"
    result = suvbw(series(Manufacturer=manufacturer, FrameReferenceTime=reference, **changes))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-5)
    assert "average count rate time" in result.route


@pytest.mark.parametrize("manufacturer", [GE, SIEMENS])
@pytest.mark.parametrize("block", [0x10, 0x11, 0xF0])
def test_the_private_scan_time_comes_first(manufacturer, block):
    times = acquired(SCAN + seconds(50)) | started(SCAN + seconds(50))
    result = suvbw(with_private(manufacturer, SCAN, block=block, **times))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert result.route.startswith("START / private scan time (00")
    assert codes(result) == []


@pytest.mark.parametrize("manufacturer", [GE, SIEMENS])
def test_a_bare_private_time_is_read_with_a_warning(manufacturer):
    times = acquired(SCAN + seconds(50)) | started(SCAN + seconds(50))
    result = suvbw(with_private(manufacturer, SCAN, creator="", **times))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["PRIVATE_BARE"]


def test_a_creator_names_a_private_time_whoever_the_manufacturer():
    times = acquired(SCAN + seconds(50)) | started(SCAN + seconds(50))
    result = suvbw(with_private(GE, SCAN, creator="SOMEBODY", **times))
    np.testing.assert_allclose(result.factors, factor_at(3650), rtol=1e-9)
    instances = with_private(GE, SCAN, **times)
    bare = with_private(GE, SCAN, creator="", **times)
    for header in (*instances, *bare):
        header.Manufacturer = "Philips"
    np.testing.assert_allclose(suvbw(bare).factors, factor_at(3650), rtol=1e-9)
    np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600), rtol=1e-9)


def test_without_manufacturer_a_named_private_time_counts_and_a_bare_one_does_not():
    times = acquired(SCAN + seconds(50)) | started(SCAN + seconds(50))
    for creator, uptake in ((None, 3600), ("", 3650)):
        instances = with_private(GE, SCAN, creator=creator, **times)
        for header in instances:
            del header.Manufacturer
        np.testing.assert_allclose(suvbw(instances).factors, factor_at(uptake), rtol=1e-9)


def test_an_unreadable_private_time_is_noted():
    instances = with_private(GE, SCAN)
    put_private(instances[1], 0x0009, 0x0D, "not a time", creator="GEMS_PETD_01")
    result = suvbw(instances)
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert result.warnings == ("PRIVATE_TIME_IGNORED: (0009,100D) is no instant in every slice",)


# Comparison --------------------------------------------------------------------------------------


def offset_for(percent):
    return HALF_LIFE * np.log2(1 + percent / 100)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0.9, []), (0.99, []), (1.01, ["ROUTE_DIFFERENCE"]), (1.5, ["ROUTE_DIFFERENCE"]),
     (4.9, ["ROUTE_DIFFERENCE"])],
)  # fmt: skip
def test_two_routes_that_nearly_agree(percent, expected, sign):
    instances = with_private(GE, SCAN + seconds(sign * offset_for(percent)))
    result = suvbw(instances)
    np.testing.assert_allclose(
        result.factors, factor_at(3600 + sign * offset_for(percent)), rtol=1e-6
    )
    assert codes(result) == expected
    if expected:
        assert f"differ by {percent:.1f} %; the former is used" in result.warnings[0]


@pytest.mark.parametrize("offset", [offset_for(5.1), offset_for(6), -offset_for(6), -7000, 10799])
def test_two_routes_in_conflict(offset):
    instances = with_private(GE, SCAN + seconds(offset))
    with pytest.raises(
        HeaderError, match=r"name the route to believe \(private or acqui"
    ) as caught:
        suvbw(instances)
    assert caught.value.code == "ROUTE_CONFLICT"
    result = suvbw(instances, prefer="acquisition")
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["ROUTE_DIFFERENCE"]


def test_the_private_route_can_be_preferred():
    instances = with_private(GE, SCAN + seconds(600))
    result = suvbw(instances, prefer="private")
    np.testing.assert_allclose(result.factors, factor_at(4200), rtol=1e-9)
    assert suvbw(series(), prefer="private").route == suvbw(series()).route


@pytest.mark.parametrize(
    "moved", [seconds(10801), seconds(-10801), timedelta(days=400), timedelta(days=-9000)]
)
def test_a_private_time_outside_the_uptake_window_is_not_believed(moved):
    result = suvbw(with_private(SIEMENS, SCAN + moved))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["PRIVATE_TIME_IGNORED"]
    hours = abs(moved) / timedelta(hours=1)
    assert f"lies {hours:.1f} h from the public scan times" in result.warnings[0]
    assert not any(str(year) in result.warnings[0] for year in (1996, 2021, 2022))


def test_a_third_route_settles_a_conflict():
    times = acquired(SCAN + seconds(1800)) | started(SCAN)
    result = suvbw(with_private(GE, SCAN, FrameReferenceTime="150000", **times))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["ROUTE_DIFFERENCE"]


def test_an_earlier_series_time_counts():
    reference = {"FrameReferenceTime": f"{AVERAGE_S * 1000}", "Manufacturer": "Philips"}
    for offset, expected in ((60, []), (200, ["ROUTE_DIFFERENCE"])):
        result = suvbw(series(**started(SCAN - seconds(offset)), **reference))
        np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-5)
        assert codes(result) == expected
    instances = series(**started(SCAN - seconds(600)), **reference)
    assert refusal(instances).code == "ROUTE_CONFLICT"
    result = suvbw(instances, prefer="series")
    np.testing.assert_allclose(result.factors, factor_at(3000), rtol=1e-9)


@pytest.mark.parametrize("offset", [3, 3600, 86400 * 300 + 1])
def test_a_later_series_time_is_benign(offset):
    reference = f"{AVERAGE_S * 1000}"
    result = suvbw(series(**started(SCAN + seconds(offset)), FrameReferenceTime=reference))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-5)
    assert codes(result) == ["SERIES_TIME_LATER"]


def test_a_series_date_moved_back_alone_does_not_count():
    reference = f"{AVERAGE_S * 1000}"
    moved = started(SCAN - timedelta(days=300, seconds=1))
    result = suvbw(series(**moved, FrameReferenceTime=reference))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-5)
    assert codes(result) == ["SERIES_TIME_IGNORED"]
    assert "lies 7200.0 h before the earliest" in result.warnings[0]


# Agreement of the slices -------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [1.9, 2.1, 60])
def test_slices_refer_to_one_instant(offset):
    late = SCAN + seconds(900 + offset)
    common = {"Manufacturer": GE, "FrameReferenceTime": "900000", **started(SCAN)}
    first = instance(**common, **acquired(SCAN + seconds(900)))
    instances = [first, first, instance(**common, **acquired(late))]
    if offset < 2:
        np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600), rtol=3e-4)
        return
    with pytest.raises(HeaderError, match=rf"instants {offset:.1f} s apart, more than 2 s") as e:
        suvbw(instances)
    assert e.value.code == "SUV_TREF_INCONSISTENT"
    result = suvbw(instances, prefer="series")
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["ROUTE_UNUSABLE"]


def test_beds_of_one_scan_share_one_instant():
    instances = [
        instance(Manufacturer=GE, FrameReferenceTime=f"{bed * 180000}", **started(SCAN),
                 **acquired(SCAN + seconds(bed * 180)))
        for bed in range(6)
    ]  # fmt: skip
    np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600), rtol=1e-9)


def test_one_time_for_all_beds_makes_the_frame_reference_irrelevant():
    instances = [instance(Manufacturer=GE, FrameReferenceTime=f"{n * 243000}") for n in range(6)]
    result = suvbw(instances)
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == []


# Missing and unreadable times --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"AcquisitionTime": None}, {"AcquisitionTime": None, "SeriesTime": None},
     {"SeriesTime": "105500", "FrameReferenceTime": None},
     {"SeriesTime": "105500", "FrameReferenceTime": "0"},
     {"SeriesTime": "105500", "ActualFrameDuration": None},
     {"SeriesTime": "105500", "ActualFrameDuration": "0"}],
)  # fmt: skip
def test_without_a_scan_start(changes):
    with pytest.raises(HeaderError, match="the start of the scan is unknown") as caught:
        suvbw(series(**changes))
    assert caught.value.code == "SCAN_TIME_MISSING"


def test_series_time_alone_is_believed_on_request():
    instances = series(SeriesTime="105500", FrameReferenceTime=None)
    np.testing.assert_allclose(suvbw(instances, prefer="series").factors, factor_at(3300))
    instances = series(AcquisitionTime=None)
    np.testing.assert_allclose(suvbw(instances, prefer="series").factors, factor_at(3600))


def test_a_private_time_alone_is_enough():
    instances = with_private(SIEMENS, SCAN, AcquisitionTime=None, SeriesTime=None)
    np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600), rtol=1e-9)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [({"AcquisitionTime": "11h"}, "TIME_INVALID", r"AcquisitionTime \(0008,0032\) is not of the f"),
     ({"SeriesDate": "10.3.21"}, "TIME_INVALID", r"SeriesDate \(0008,0021\) is not of the form YY"),
     ({"TimezoneOffsetFromUTC": "1h"}, "TIME_INVALID", r"UTC \(0008,0201\) is not of the form .HH"),
     ({"SeriesTime": "10", "FrameReferenceTime": "x"}, "FRAME_TIME_INVALID", "not one finite"),
     ({"SeriesTime": "10", "ActualFrameDuration": "x"}, "FRAME_DURATION_INVALID", "not one fin"),
     ({"DecayCorrection": "NONE", "ActualFrameDuration": None}, "FRAME_DURATION_MISSING",
      r"ActualFrameDuration \(0018,1242\) is missing"),
     ({"DecayCorrection": "NONE", "AcquisitionTime": None}, "SCAN_TIME_MISSING",
      r"AcquisitionTime \(0008,0032\) is missing and the picture is not corrected")],
)  # fmt: skip
def test_times_refused(changes, code, message):
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(series(**changes))
    assert caught.value.code == code


@pytest.mark.parametrize("missing", ["AcquisitionDate", "SeriesDate"])
def test_a_missing_date_is_taken_from_the_other(missing):
    np.testing.assert_allclose(suvbw(series(**{missing: None})).factors, factor_at(3600))


def test_times_of_day_alone_are_enough_for_a_short_half_life():
    dates = {"AcquisitionDate": None, "SeriesDate": None}
    result = suvbw(series(drug=injected(INJECTION), **dates))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)


def test_the_date_and_time_of_acquisition_is_preferred_to_its_parts():
    stamp = {"AcquisitionDateTime": "20210310110000.000000"}
    np.testing.assert_allclose(
        suvbw(series(**stamp, AcquisitionTime="105900")).factors, factor_at(3600)
    )
    moved = {"AcquisitionDateTime": "19990310110000.000000"}
    result = suvbw(series(**moved))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["DATE_MISMATCH"]


@pytest.mark.parametrize(("hours", "used"), [(0.1, True), (11.9, True), (12.1, False)])
def test_half_a_day_tells_a_moved_date(hours, used):
    stamp = {"AcquisitionDateTime": f"{SCAN + timedelta(hours=hours):%Y%m%d%H%M%S}"}
    drug = injected(dated=INJECTION + timedelta(hours=hours if used else 0))
    result = suvbw(series(**stamp, drug=drug, FrameReferenceTime=f"{AVERAGE_S * 1000}"),
                   prefer="acquisition")  # fmt: skip
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-5)
    assert ("DATE_MISMATCH" in codes(result)) is not used


def test_zones_are_brought_together():
    drug = injected(dated=INJECTION - timedelta(hours=1))
    drug["RadiopharmaceuticalStartDateTime"] += "+0000"
    result = suvbw(series(drug=drug, TimezoneOffsetFromUTC="+0100"))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)


# Injection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "drug",
    [injected(INJECTION), injected(dated=INJECTION), injected(INJECTION, dated=INJECTION)],
)
def test_either_injection_time_is_enough(drug):
    result = suvbw(series(drug=drug))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert result.warnings == ()


@pytest.mark.parametrize("days", [-40000, -1, 1, 400])
@pytest.mark.parametrize("with_time", [True, False])
def test_a_shifted_date_is_rebuilt(days, with_time):
    dated = INJECTION + timedelta(days=days)
    result = suvbw(series(drug=injected(INJECTION if with_time else None, dated=dated)))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["DATE_REBUILT"]


def test_midnight_between_injection_and_scan():
    scan = SCAN.replace(hour=0, minute=20)
    times = acquired(scan) | started(scan)
    injection = scan - timedelta(hours=1)
    for drug in (injected(injection), injected(injection, dated=injection)):
        result = suvbw(series(drug=drug, **times))
        np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
        assert result.warnings == ()
    unshifted = injected(injection, dated=injection + timedelta(days=1))
    assert codes(suvbw(series(drug=unshifted, **times))) == ["DATE_REBUILT"]


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(-59, ["UPTAKE_RANGE"]), (-1, ["UPTAKE_RANGE"]), (19, ["UPTAKE_RANGE"]), (20, []), (21, []),
     (179, []), (180, []), (181, ["UPTAKE_RANGE"]), (219, ["UPTAKE_RANGE"]),
     (221, ["UPTAKE_RANGE"]), (359, ["UPTAKE_RANGE"])],
)  # fmt: skip
@pytest.mark.parametrize("dated", [True, False])
def test_uptake_window(minutes, expected, dated):
    injection = SCAN - timedelta(minutes=minutes)
    result = suvbw(series(drug=injected(injection, dated=injection if dated else None)))
    np.testing.assert_allclose(result.factors, factor_at(minutes * 60), rtol=1e-9)
    assert codes(result) == expected


@pytest.mark.parametrize("minutes", [361, 600, -61, -120, -600, -1000])
@pytest.mark.parametrize("dated", [True, False])
def test_impossible_uptake(minutes, dated):
    injection = SCAN - timedelta(minutes=minutes)
    drug = injected(injection, dated=injection if dated else None)
    after = dated and minutes < 0
    message = "on the day of the scan it would be" if after else "before the scan, more than 360"
    with pytest.raises(HeaderError, match=message) as caught:
        suvbw(series(drug=drug))
    assert caught.value.code == "UPTAKE_RANGE"


@pytest.mark.parametrize(("hours", "believed"), [(22, True), (20.5, True), (20, False), (2, False)])
def test_an_injection_dated_after_the_scan(hours, believed):
    instances = series(drug=injected(dated=SCAN + timedelta(hours=hours)))
    if not believed:
        assert refusal(instances).code == "UPTAKE_RANGE"
        return
    result = suvbw(instances)
    np.testing.assert_allclose(result.factors, factor_at((24 - hours) * 3600), rtol=1e-9)
    assert "DATE_REBUILT" in codes(result)


def test_the_uptake_window_is_that_of_fluorine():
    injection = SCAN - timedelta(minutes=10)
    for code, half_life, expected in (
        (None, "6588", ["UPTAKE_RANGE"]),
        (None, "1223.4", []),
        (("C-131A3", "SRT", ""), "4062.6", []),
    ):
        drug = injected(injection) | {"RadionuclideHalfLife": half_life}
        assert codes(suvbw(series(drug=drug, code=code))) == expected


def test_no_injection_time():
    with pytest.raises(HeaderError, match=r"StartDateTime \(0018,1078\) and .* are missing") as e:
        suvbw(series(drug=injected()))
    assert e.value.code == "INJ_TIME_MISSING"


def private_injection(text="20210310100000.00", manufacturer=GE, creator="GEMS_PETD_01"):
    instances = series(drug=injected(), Manufacturer=manufacturer)
    for header in instances:
        put_private(header, 0x0009, 0x3B, text, creator=creator)
    return instances


def test_ge_keeps_the_injection_in_a_private_element():
    for instances in (private_injection(), private_injection(creator="")):
        result = suvbw(instances)
        np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
        assert codes(result) == ["INJ_TIME_PRIVATE"]
    result = suvbw(private_injection("19600310100000"))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["INJ_TIME_PRIVATE", "DATE_REBUILT"]


def test_the_private_injection_is_ges_and_the_same_in_all_slices():
    bare = private_injection(manufacturer=SIEMENS, creator="")
    assert refusal(bare).code == "INJ_TIME_MISSING"
    for text in ("20210310100100", "", "ten"):
        instances = private_injection()
        put_private(instances[0], 0x0009, 0x3B, text, creator="GEMS_PETD_01")
        assert refusal(instances).code == "INJ_TIME_MISSING"
    instances = private_injection()
    put_private(instances[0], 0x0009, 0x3B, "202103101000", creator="GEMS_PETD_01")
    assert codes(suvbw(instances)) == ["INJ_TIME_PRIVATE"]


@pytest.mark.parametrize("text", ["10 o'clock", "2500"])
def test_an_unreadable_injection_time(text):
    drug = {"RadiopharmaceuticalStartTime": text, "RadiopharmaceuticalStartDateTime": None}
    with pytest.raises(HeaderError, match=r"StartTime \(0018,1072\) is not of the form") as caught:
        suvbw(series(drug=drug))
    assert caught.value.code == "INJ_TIME_INVALID"


def test_an_unreadable_injection_date_and_time():
    drug = {"RadiopharmaceuticalStartDateTime": "20210310"}
    result = suvbw(series(drug=drug))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["INJ_TIME_IGNORED"]
    drug["RadiopharmaceuticalStartTime"] = None
    assert refusal(series(drug=drug)).code == "INJ_TIME_INVALID"


@pytest.mark.parametrize(("apart", "expected"), [(90, []), (100, ["INJ_TIME_CONFLICT"])])
def test_two_injection_times_are_compared(apart, expected):
    drug = injected(INJECTION + seconds(apart), dated=INJECTION)
    result = suvbw(series(drug=drug))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == expected


def test_an_unreadable_time_beside_a_good_date_and_time_is_noted():
    drug = injected(dated=INJECTION) | {"RadiopharmaceuticalStartTime": "noon"}
    result = suvbw(series(drug=drug))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["INJ_TIME_IGNORED"]
    assert "StartDateTime (0018,1078) is used" in result.warnings[0]


def test_a_conflict_of_injection_times_is_noted_where_the_date_is_rebuilt():
    drug = injected(INJECTION, dated=INJECTION - timedelta(days=400, minutes=10))
    result = suvbw(series(drug=drug))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["INJ_TIME_CONFLICT", "DATE_REBUILT"]
    assert "10 min apart; RadiopharmaceuticalStartTime (0018,1072) is used" in result.warnings[0]


@pytest.mark.parametrize(("zone", "uptake"), [("+0000", 3600), ("", 7200)])
def test_an_offset_that_nothing_shares_gives_way_to_the_time_of_day(zone, uptake):
    drug = injected(INJECTION, dated=INJECTION - timedelta(hours=1))
    drug["RadiopharmaceuticalStartDateTime"] += zone
    result = suvbw(series(drug=drug))
    np.testing.assert_allclose(result.factors, factor_at(uptake), rtol=1e-9)
    assert codes(result) == ["INJ_TIME_CONFLICT"]
    shared = suvbw(series(drug=drug, TimezoneOffsetFromUTC="+0100"))
    np.testing.assert_allclose(shared.factors, factor_at(3600 if zone else 7200), rtol=1e-9)
    assert codes(shared) == ([] if zone else ["INJ_TIME_CONFLICT"])


# Other nuclides ----------------------------------------------------------------------------------

ZIRCONIUM = ("C-168A4", "SRT", "^89^Zirconium")


def long_lived(drug, code=ZIRCONIUM, half_life=282276.0):
    return series(drug=drug | {"RadionuclideHalfLife": f"{half_life}"}, code=code)


def test_days_of_uptake_need_a_date():
    injection = SCAN - timedelta(days=5)
    result = suvbw(long_lived(injected(injection, dated=injection)))
    np.testing.assert_allclose(result.factors, factor_at(5 * 86400, 282276.0), rtol=1e-9)
    assert result.warnings == ()
    with pytest.raises(HeaderError, match="282276 s the day of the injection matters") as caught:
        suvbw(long_lived(injected(INJECTION)))
    assert caught.value.code == "INJ_TIME_MISSING"


@pytest.mark.parametrize("days", [7, 400, -2])
def test_a_date_is_not_rebuilt_for_a_long_half_life(days):
    drug = injected(INJECTION, dated=SCAN - timedelta(days=days))
    with pytest.raises(HeaderError, match=rf"lies {days * 24}\.0 h before the scan, not") as caught:
        suvbw(long_lived(drug))
    assert caught.value.code == "UPTAKE_RANGE"


def test_the_limit_of_rebuilding_is_on_the_half_life():
    for half_life, rebuilt in ((41399.0, True), (41400.0, False)):
        instances = long_lived(injected(INJECTION), code=None, half_life=half_life)
        if rebuilt:
            np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600, half_life))
        else:
            assert refusal(instances).code == "INJ_TIME_MISSING"


def test_carbon_may_be_imaged_after_more_than_two_half_lives():
    carbon, half_life = ("C-105A1", "SRT", "^11^Carbon"), 1223.4
    instances = long_lived(injected(INJECTION, dated=INJECTION), code=carbon, half_life=half_life)
    result = suvbw(instances)
    np.testing.assert_allclose(result.factors, factor_at(3600, half_life), rtol=1e-9)
    assert result.warnings == ()


# Second reading ----------------------------------------------------------------------------------


def test_beds_without_manufacturer_tell_the_convention_of_ge():
    beds = [
        instance(FrameReferenceTime=f"{bed * 180000}", **started(SCAN + seconds(4000)),
                 **acquired(SCAN + seconds(bed * 180)))
        for bed in range(4)
    ]  # fmt: skip
    result = suvbw(beds)
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert "average" not in result.route
    for header in beds:
        header.Manufacturer = "GENERIC"
    assert refusal(beds).code == "SCAN_TIME_MISSING"


def test_one_bed_without_manufacturer_needs_series_time_to_tell():
    frame = {"FrameReferenceTime": "180000", **acquired(SCAN + seconds(180))}
    met = suvbw(series(**started(SCAN), **frame))
    np.testing.assert_allclose(met.factors, factor_at(3600), rtol=1e-9)
    neutral = suvbw(series(**started(SCAN + seconds(4000)), **frame))
    np.testing.assert_allclose(neutral.factors, factor_at(3600 + AVERAGE_S), rtol=1e-5)


@pytest.mark.parametrize(("days", "block"), [(1, 0x10), (-3000, 0x11)])
def test_a_series_date_moved_alone_leaves_equal_times_equal(days, block):
    moved = started(SCAN + timedelta(days=days))
    result = suvbw(series(**moved, FrameReferenceTime=None))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == ["DATE_MISMATCH"]
    assert f"lie {abs(days)} days apart" in result.warnings[0]
    private = suvbw(with_private(GE, SCAN, block=block, **moved))
    np.testing.assert_allclose(private.factors, factor_at(3600), rtol=1e-9)


@pytest.mark.parametrize(("hours", "believed"), [(-2.9, True), (3.1, False), (-30, False)])
def test_a_private_time_is_held_against_acquisition_times_that_are_no_route(hours, believed):
    late = started(SCAN + seconds(7200))
    private = SCAN + timedelta(hours=hours)
    injection = private - seconds(3600)
    instances = with_private(SIEMENS, private, FrameReferenceTime=None, **late,
                             drug=injected(dated=injection))  # fmt: skip
    if believed:
        np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600), rtol=1e-9)
        return
    assert refusal(instances).code == "SCAN_TIME_MISSING"


def test_beds_after_midnight_without_dates_belong_to_the_next_day():
    scan = SCAN.replace(hour=23, minute=50)
    beds = [
        instance(Manufacturer=GE, FrameReferenceTime=f"{bed * 300000}", SeriesTime="235000",
                 AcquisitionDate=None, SeriesDate=None, drug=injected(scan - seconds(3600)),
                 AcquisitionTime=clock(scan + seconds(bed * 300))[1])
        for bed in range(5)
    ]  # fmt: skip
    np.testing.assert_allclose(suvbw(beds).factors, factor_at(3600), rtol=1e-9)
    for header in beds:
        header.SeriesDate = "20210310"
    np.testing.assert_allclose(suvbw(beds).factors, factor_at(3600), rtol=1e-9)


@pytest.mark.parametrize(("apart", "expected"), [(59, []), (120, ["ACQUISITION_TIME_CONFLICT"])])
def test_two_acquisition_times_are_compared(apart, expected):
    stamp = {"AcquisitionDateTime": "20210310110000"}
    result = suvbw(series(**stamp, AcquisitionTime=clock(SCAN + seconds(apart))[1]))
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-9)
    assert codes(result) == expected
    if expected:
        assert "lie 2 min apart; the former is used" in result.warnings[0]


def test_a_preferred_route_that_is_not_there_is_noted():
    assert codes(suvbw(series(), prefer="private")) == ["ROUTE_UNAVAILABLE"]
    assert codes(suvbw(series(), prefer="suv-factor")) == []


def test_an_exact_creator_comes_before_one_that_only_begins_so():
    instances = with_private(SIEMENS, SCAN + seconds(600), creator="SIEMENS MED PT WAVEFORM")
    for header in instances:
        put_private(header, 0x0071, 0x22, f"{SCAN:%Y%m%d%H%M%S}", creator="SIEMENS MED PT",
                    block=0x11)  # fmt: skip
    np.testing.assert_allclose(suvbw(instances).factors, factor_at(3600), rtol=1e-9)


@pytest.mark.parametrize("zone", ["+0100", "-0330"])
def test_every_date_and_time_may_state_its_offset(zone):
    drug = injected(dated=INJECTION)
    drug["RadiopharmaceuticalStartDateTime"] += zone
    stamp = {"AcquisitionDateTime": f"20210310110000{zone}", "TimezoneOffsetFromUTC": zone}
    np.testing.assert_allclose(suvbw(series(drug=drug, **stamp)).factors, factor_at(3600))


@pytest.mark.parametrize("text", ["-1", "-900000"])
@pytest.mark.parametrize("manufacturer", [GE, SIEMENS])
def test_a_negative_frame_reference_time_is_no_route(text, manufacturer):
    changes = {"Manufacturer": manufacturer, "FrameReferenceTime": text, "SeriesTime": "105900"}
    assert refusal(series(**changes)).code == "SCAN_TIME_MISSING"


@pytest.mark.parametrize("manufacturer", [GE, SIEMENS, None])
def test_one_acquisition_time_of_all_beds_is_the_start_of_the_first(manufacturer):
    """SeriesTime was rewritten later; the reference times tell the beds apart."""
    middle = 0.0 if manufacturer == GE else AVERAGE_S
    late = {"Manufacturer": manufacturer, **started(SCAN + seconds(7200))}
    beds = [
        instance(FrameReferenceTime=f"{(n // 3 * 243 + middle) * 1000}", **late) for n in range(12)
    ]
    result = suvbw(beds)
    np.testing.assert_allclose(result.factors, factor_at(3600), rtol=1e-5)
    assert sorted(codes(result)) == ["ACQUISITION_TIME_SHARED", "SERIES_TIME_LATER"]
    assert result.route == "START / AcquisitionTime (0008,0032) that all beds share"
    assert refusal(beds[2:]).code == "SUV_TREF_INCONSISTENT"  # one slice is no bed
    assert refusal(beds[3:]).code == "SUV_TREF_INCONSISTENT"  # the first bed is missing
