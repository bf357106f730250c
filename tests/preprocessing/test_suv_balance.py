from dataclasses import replace

import numpy as np
import pytest

from preprocessing.errors import HeaderError
from preprocessing.records import Unit, Volume
from preprocessing.suv import check_dose_balance
from preprocessing.suv_balance import body_mean, dose_share

WEIGHT = 64.0


def body(suv=1.0, *, slices=100, weight=WEIGHT, spacing=8.0):
    """A box of 64 L at unit density (100 slices of 8 mm) in air, of one SUV."""
    voxels = np.zeros((slices, 60, 60), dtype=np.float32)
    inside = round(np.sqrt(weight * 1000 / (slices * spacing**3 / 1000)))
    voxels[:, 5 : 5 + inside, 5 : 5 + inside] = suv
    affine = np.diag([spacing, spacing, spacing, 1.0])
    return Volume(voxels=voxels, affine=affine, unit=Unit.SUVBW, subject_id="s")


def test_share_is_activity_over_dose():
    volume = body(0.8)
    expected = float(volume.voxels.sum(dtype=np.float64)) * 0.512 / (WEIGHT * 1000)
    assert dose_share(volume, weight_kg=WEIGHT) == pytest.approx(expected)
    assert 0.7 < expected < 0.9


def test_the_body_is_told_from_air_at_any_scale():
    rng = np.random.default_rng(0)
    volume = body(1.0)
    noisy = volume.voxels * rng.uniform(0.6, 1.4, volume.voxels.shape).astype(np.float32)
    noisy = noisy + rng.uniform(0, 0.03, noisy.shape).astype(np.float32)
    for scale in (1.0, 2.2046, 0.1):
        scaled = replace(volume, voxels=(noisy * scale).astype(np.float32))
        assert body_mean(scaled) == pytest.approx(scale, rel=0.05)
    assert np.isnan(body_mean(replace(volume, voxels=np.zeros_like(volume.voxels))))


@pytest.mark.parametrize("slices", [10, 100])
@pytest.mark.parametrize("suv", [0.5, 1.0])
def test_a_plausible_body_passes(suv, slices):
    volume = body(suv)
    volume = replace(volume, voxels=volume.voxels[:slices])
    assert check_dose_balance(volume, weight_kg=WEIGHT) == ()


@pytest.mark.parametrize(
    ("suv", "cause"),
    [(1.2, "a time is wrong; correct"), (30.0, r"\(a dose in mCi read as MBq would do this\)"),
     (800.0, r"\(a dose in kBq read as Bq would do this\)")],
)  # fmt: skip
@pytest.mark.parametrize("slices", [100, 74])
def test_more_than_the_dose_is_impossible_whatever_is_in_view(suv, cause, slices):
    volume = body(suv * 100 / slices)
    volume = replace(volume, voxels=volume.voxels[:slices])
    with pytest.raises(HeaderError, match=cause) as caught:
        check_dose_balance(volume, weight_kg=WEIGHT)
    assert caught.value.code == "SUV_IMPLAUSIBLE"


def test_the_limit_lies_at_110_percent():
    volume = body(1.0)
    share = dose_share(volume, weight_kg=WEIGHT)
    below, above = (np.float32(limit / share) for limit in (1.0999, 1.1001))
    warnings = check_dose_balance(replace(volume, voxels=volume.voxels * below), weight_kg=WEIGHT)
    assert warnings[0].startswith("DOSE_BALANCE: the field of view holds 1.10 of")
    with pytest.raises(HeaderError, match=r"would hold 1\.10 times the injected dose"):
        check_dose_balance(replace(volume, voxels=volume.voxels * above), weight_kg=WEIGHT)


def test_a_value_that_is_no_number_is_refused():
    volume = body()
    voxels = volume.voxels.copy()
    voxels[0, 0, 0] = np.nan
    with pytest.raises(HeaderError, match="would hold nan times"):
        check_dose_balance(replace(volume, voxels=voxels), weight_kg=WEIGHT)


@pytest.mark.parametrize(("slices", "count"), [(74, 0), (75, 1)])
def test_shares_mean_something_from_600_mm_on(slices, count):
    volume = body(0.1)
    volume = replace(volume, voxels=volume.voxels[:slices])
    warnings = check_dose_balance(volume, weight_kg=WEIGHT)
    assert len(warnings) == count
    assert all(w.startswith("DOSE_BALANCE: the field of view holds 0.0") for w in warnings)


@pytest.mark.parametrize(
    ("stated_kg", "cause"),
    [(WEIGHT * 2.2046, "a weight in pounds read as kg"), (WEIGHT / 2.6, "a weight too small by")],
)
def test_a_wrong_weight_shows_in_the_mean_of_the_body(stated_kg, cause):
    volume = body(0.9 * stated_kg / WEIGHT)
    warnings = check_dose_balance(volume, weight_kg=stated_kg)
    assert len(warnings) == 1
    assert warnings[0].startswith("BODY_MEAN_SUV: the mean SUV of the body is")
    assert cause in warnings[0]


def test_a_far_off_mean_has_no_likely_cause():
    (warning,) = check_dose_balance(body(6.0), weight_kg=WEIGHT * 6)
    assert warning.endswith("PatientWeight (0010,1030) may be wrong")


def test_the_paper_unit_is_not_checked():
    volume = replace(body(50.0), unit=Unit.PAPER)
    assert check_dose_balance(volume, weight_kg=WEIGHT) == ()
