"""Does the picture hold the dose? A check of SUVbw against the patient it was computed for.

The activity in view cannot exceed the dose, so ``f = sum(SUV * voxel volume) / weight`` cannot
exceed 1 (1.10 with noise and calibration). The weight cancels out of ``f``: it tells a wrong
dose or time. The mean SUV of a body that is wholly in view is near 1: it tells a wrong weight.
"""

import numpy as np
from jaxtyping import Float32

from preprocessing.errors import HeaderError
from preprocessing.records import Unit, Volume

LARGEST_SHARE = 1.10
HEAD_TO_THIGH_SHARE = (0.3, 1.05)
BODY_MEAN_SUV = (0.4, 1.6)
HEAD_TO_THIGH_MM = 600.0
"""Shorter axial fields of view hold too little of a body for the shares to mean anything."""
BODY_THRESHOLD = 0.25
"""Share of the mean of all voxels above the mean: the body's outline, whatever the scale."""

ALL_VOXELS = 2_000_000
"""Up to this size every voxel is looked at."""

POUNDS_PER_KG = 2.2046
MBQ_PER_MCI = 37.0
BQ_PER_KBQ = 1000.0


def dose_share(volume: Volume, *, weight_kg: float) -> float:
    """Return the activity in the field of view over the dose decayed to the same instant.

    Parameters
    ----------
    volume
        In SUVbw.
    weight_kg
        The weight that the SUVs were computed with.
    """
    voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
    return _total(volume.voxels) * voxel_ml / (weight_kg * 1000.0)


def _total(voxels: Float32[np.ndarray, "z y x"]) -> float:
    # numpy adds a plane pairwise, which keeps float32 to 1e-6; converting it would cost more.
    return sum(float(plane.sum()) for plane in voxels)


def body_mean(volume: Volume) -> float:
    """Return the mean of the body, told from air by a threshold that scales with the picture.

    NaN where nothing is positive. Of a large volume every second row of every second slice is
    looked at: a body has hundreds of thousands of voxels, and the figure is read to two digits.
    """
    step = 2 if volume.voxels.size > ALL_VOXELS else 1
    voxels = volume.voxels[::step, ::step]
    mean = _total(voxels) / max(voxels.size, 1)
    above = _mean_above(voxels, max(mean, 0.0))
    return _mean_above(voxels, BODY_THRESHOLD * above) if np.isfinite(above) else float("nan")


def _mean_above(voxels: Float32[np.ndarray, "z y x"], threshold: float) -> float:
    total, count = 0.0, 0
    for plane in voxels:
        inside = plane > threshold
        total += float(np.vdot(plane, inside.astype(np.float32)))
        count += int(np.count_nonzero(inside))
    return total / count if count else float("nan")


def check_dose_balance(volume: Volume, *, weight_kg: float) -> tuple[str, ...]:
    """Compare the picture with the dose and the body it stands for.

    Parameters
    ----------
    volume
        In SUVbw. A volume in another unit is not checked.
    weight_kg
        The weight that the SUVs were computed with.

    Returns
    -------
    tuple of str
        Warnings ``CODE: text`` with the figure and the likely cause: ``DOSE_BALANCE`` and
        ``BODY_MEAN_SUV``, both only for a field of view of 600 mm and more along the body.

    Raises
    ------
    HeaderError
        ``SUV_IMPLAUSIBLE``, if more activity is in view than was injected, or a voxel is no finite
        number.
    """
    if volume.unit is not Unit.SUVBW:
        return ()
    share = dose_share(volume, weight_kg=weight_kg)
    if not share <= LARGEST_SHARE:  # also where a voxel is no number
        raise HeaderError(
            "SUV_IMPLAUSIBLE",
            f"the field of view would hold {share:.2f} times the injected dose, more than "
            f"{LARGEST_SHARE:g}: dose, half-life or a time is wrong{_dose_cause(share)}; correct "
            "the header",
        )
    if volume.voxels.shape[0] * volume.spacing_mm[0] < HEAD_TO_THIGH_MM:
        return ()
    low, high = HEAD_TO_THIGH_SHARE
    if not low <= share <= high:
        return (
            f"DOSE_BALANCE: the field of view holds {share:.2f} of the injected dose, outside "
            f"{low:g} to {high:g} for head to thigh: dose, half-life or a time may be wrong",
        )
    return _body_warnings(body_mean(volume))


def _dose_cause(share: float) -> str:
    low, high = HEAD_TO_THIGH_SHARE
    if low <= share / MBQ_PER_MCI <= high:
        return " (a dose in mCi read as MBq would do this)"
    if low <= share / BQ_PER_KBQ <= high:
        return " (a dose in kBq read as Bq would do this)"
    return ""


def _body_warnings(mean: float) -> tuple[str, ...]:
    low, high = BODY_MEAN_SUV
    if low <= mean <= high:
        return ()
    cause = ""
    if low <= mean / POUNDS_PER_KG <= high:
        cause = "; a weight in pounds read as kg would do this"
    elif low <= mean * POUNDS_PER_KG <= high:
        cause = "; a weight too small by half would do this"
    return (
        f"BODY_MEAN_SUV: the mean SUV of the body is {mean:.2f}, outside {low:g} to {high:g}: "
        f"PatientWeight (0010,1030) may be wrong{cause}",
    )
