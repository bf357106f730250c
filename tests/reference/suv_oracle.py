"""SUVbw factors the slow way: one slice at a time, calendar arithmetic, numerical integrals.

Follows the definitions and none of the structure of ``preprocessing.suv``: the average over a frame
is integrated, instants are ``datetime`` objects, the dose is decayed step by step.
"""

import math
from datetime import datetime, timedelta

from scipy.integrate import quad
from scipy.optimize import brentq


def activity_at(dose_bq, half_life_s, seconds):
    """Activity of a dose after a time: whole half-lives first, then the rest."""
    halvings = math.floor(seconds / half_life_s)
    rest = seconds - halvings * half_life_s
    return dose_bq / 2.0**halvings * math.exp(-math.log(2) * rest / half_life_s)


def average_time(duration_s, half_life_s):
    """When the activity equals its mean over a frame, found by integration and bisection."""
    mean, _ = quad(lambda t: activity_at(1.0, half_life_s, t), 0, duration_s, epsabs=1e-13)
    mean /= duration_s
    return brentq(
        lambda t: activity_at(1.0, half_life_s, t) - mean, 0, duration_s, xtol=1e-9, rtol=1e-14
    )


def moment(date, time):
    padded = time if "." in time else time + ".0"
    return datetime.strptime(date + padded, "%Y%m%d%H%M%S.%f")


def scan_start(header, *, vendor, half_life_s, private=None):
    """The scan start of one slice, in the order of trust of the reference manual."""
    if private is not None:
        return private
    acquired = moment(header["AcquisitionDate"], header["AcquisitionTime"])
    started = moment(header["SeriesDate"], header["SeriesTime"])
    if acquired == started:
        return acquired
    reference = float(header["FrameReferenceTime"]) / 1000
    if vendor == "GE":
        return acquired - timedelta(seconds=reference)
    average = average_time(float(header["ActualFrameDuration"]) / 1000, half_life_s)
    return acquired + timedelta(seconds=average - reference)


def injected(drug, scan, half_life_s):
    """The administration: the stated date if it can be believed, else the nearest earlier time."""
    text = drug.get("RadiopharmaceuticalStartDateTime")
    if text:
        stated = moment(text[:8], text[8:])
        if -3600 <= (scan - stated).total_seconds() < 2 * half_life_s:
            return stated
    time = drug.get("RadiopharmaceuticalStartTime") or text[8:]
    for days in (0, 1):
        candidate = moment(f"{scan - timedelta(days=days):%Y%m%d}", time)
        if candidate <= scan + timedelta(hours=1):
            return candidate
    raise AssertionError("no day fits")


def factor(header, drug, *, vendor="", private=None):
    """SUVbw per Bq/mL of one slice given as plain dictionaries of texts."""
    weight_g = float(header["PatientWeight"]) * 1000
    if weight_g >= 1e6:
        weight_g /= 1000
    dose = float(drug["RadionuclideTotalDose"])
    dose = dose * 1e6 if dose < 1e4 else dose
    half_life = float(drug["RadionuclideHalfLife"])
    if header["DecayCorrection"] == "ADMIN":
        return weight_g / dose
    if header["DecayCorrection"] == "START":
        scan = scan_start(header, vendor=vendor, half_life_s=half_life, private=private)
        elapsed = (scan - injected(drug, scan, half_life)).total_seconds()
        return weight_g / activity_at(dose, half_life, elapsed)
    acquired = moment(header["AcquisitionDate"], header["AcquisitionTime"])
    elapsed = (acquired - injected(drug, acquired, half_life)).total_seconds()
    duration = float(header["ActualFrameDuration"]) / 1000
    mean, _ = quad(
        lambda t: activity_at(dose, half_life, elapsed + t), 0, duration, epsrel=1e-12, epsabs=0
    )
    return weight_g / (mean / duration)
