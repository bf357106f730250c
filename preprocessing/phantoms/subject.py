"""One synthetic patient: build, injection, uptake of every region, and which muscles are altered.

Three classes as in the study of altered muscular uptake in FDG-PET (Ron, Weiler-Sagie and Hazan,
ICML 2022): ``normal``, ``mild`` and ``severe``. A patient's ``severity`` sets how many muscle
groups take up too much and how much too much; the severities of mild and severe patients overlap.
What misleads a careless reader occurs in every class alike: hot bowel, a full bladder, a tense
spot in the trapezius, tracer left at the injection site, brown fat, a tumour.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from preprocessing.phantoms.anatomy import (
    MOVABLE_ORGANS,
    MUSCLE_GROUPS,
    SIDES,
    SKIN,
    BodyPlan,
    body_parts,
)
from preprocessing.phantoms.shapes import Grid, Part, paint_parts
from preprocessing.phantoms.viscera import draw_bladder, draw_bowel, draw_foci

FDG_PET_CLASSES = ("normal", "mild", "severe")

UPTAKES: Mapping[str, tuple[float, float, float, float]] = {
    "fat": (0.22, 0.20, 0.12, 0.4),
    "soft": (0.56, 0.10, 0.42, 0.75),
    "extremity": (0.45, 0.15, 0.3, 0.7),
    "head": (0.8, 0.12, 0.55, 1.1),
    "bone": (0.5, 0.15, 0.3, 0.8),
    "marrow": (1.4, 0.18, 0.9, 2.2),
    "lung": (0.4, 0.15, 0.28, 0.6),
    "blood": (1.6, 0.12, 1.2, 2.2),
    "myocardium": (4.0, 0.7, 1.4, 13.0),
    "liver": (2.2, 0.14, 1.6, 3.0),
    "spleen": (1.8, 0.14, 1.3, 2.5),
    "stomach": (1.7, 0.25, 1.0, 3.2),
    "kidney": (2.6, 0.15, 1.9, 3.6),
    "renal_pelvis": (7.0, 0.45, 3.0, 18.0),
    "ureter": (4.0, 0.4, 1.5, 9.0),
    "bladder": (18.0, 0.45, 6.0, 45.0),
    "small_bowel": (1.2, 0.2, 0.8, 2.2),
    "colon": (1.3, 0.25, 0.8, 2.6),
    "cortex": (7.6, 0.2, 4.8, 12.0),
    "white_matter": (3.2, 0.2, 2.0, 5.0),
    "basal_ganglia": (8.2, 0.2, 5.0, 13.0),
    "cerebellum": (6.6, 0.2, 4.2, 10.5),
    "eye_muscle": (3.0, 0.25, 1.5, 5.5),
    "tonsil": (2.8, 0.3, 1.4, 5.5),
    "salivary": (1.7, 0.25, 1.0, 3.2),
    "larynx": (1.8, 0.3, 1.0, 4.0),
}
"""Region: median SUV, standard deviation of its logarithm, lowest and highest value."""

_MUSCLE = (0.64, 0.09, 0.5, 0.8)
_MUSCLE_SPREAD = 0.05
_SEVERITY = {"mild": (0.38, 0.13, 0.12, 0.85), "severe": (0.68, 0.14, 0.30, 1.0)}
_RAISE_AT_ZERO, _RAISE_PER_SEVERITY = 0.3, 1.7
_BILATERAL_SHARE = 0.75
_HOT_BOWEL_SHARE = 0.2
_SURVEY_SPACING_MM = (9.0, 9.0, 9.0)
_DENSITY_KG_PER_L = {"fat": 0.92, "lung": 0.3}
_LEAN_DENSITY_KG_PER_L = 1.05
_RETAINED_SHARE = 0.97  # no more tracer than was injected, less some excreted before the scan
_GIRTH_LIMIT = 1.18  # wider arms would leave a 700 mm field of view
_FAT_FOLLOWS_GIRTH = 0.45  # muscles and organs grow with this power of the girth


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomSubject:
    """Everything that is true of one synthetic patient.

    Attributes
    ----------
    patient_id
        Invented identifier; it exists so that de-identification has something to remove.
    label
        One of ``FDG_PET_CLASSES``.
    severity
        0 for normal; 0 to 1 otherwise.
    plan, extras
        The body, and the solids that differ from patient to patient (bowel, bladder, foci), in
        patient coordinates.
    suv
        True body-weight SUV in g/mL of every region, altered muscles included.
    altered
        Altered muscle regions and how much SUV was added to each.
    weight_kg, dose_bq, uptake_s
        Weight, activity at injection, and seconds from injection to the start of the scan.
    counts_per_suv_ml
        Noise level: expected counts per millilitre at SUV 1.
    lowest_mm
        Where the field of view begins above the heels.
    shift_mm
        Patient's midline and mid-depth off the centre of the field of view, x and y.
    """

    patient_id: str
    label: str
    severity: float
    sex: str
    age_years: int
    plan: BodyPlan
    extras: tuple[Part, ...]
    suv: Mapping[str, float]
    altered: Mapping[str, float]
    weight_kg: float
    dose_bq: float
    uptake_s: float
    counts_per_suv_ml: float
    lowest_mm: float
    shift_mm: tuple[float, float]


def draw_subject(patient_id: str, *, label: str, rng: np.random.Generator) -> PhantomSubject:
    """Draw one patient of a class.

    Raises
    ------
    ValueError
        If the label is not one of ``FDG_PET_CLASSES``.
    """
    if label not in FDG_PET_CLASSES:
        raise ValueError(f"label {label!r} is unknown: one of {', '.join(FDG_PET_CLASSES)}")
    sex = "M" if rng.random() < 0.5 else "F"
    plan = _draw_plan(sex, rng)
    severity = 0.0 if label == "normal" else _bounded(rng, _SEVERITY[label])
    altered = _draw_altered(severity, rng)
    extras, suv = _draw_contents(plan, altered, rng)
    litres = _survey(plan, extras)
    weight_kg = _draw_weight(litres, rng)
    factor = min(1.0, _RETAINED_SHARE * weight_kg / _tracer_kg(suv, litres))
    return PhantomSubject(
        patient_id=patient_id,
        label=label,
        severity=severity,
        sex=sex,
        age_years=int(rng.integers(24, 86)),
        plan=plan,
        extras=extras,
        suv={region: value * factor for region, value in suv.items()},
        altered={region: value * factor for region, value in altered.items()},
        weight_kg=weight_kg,
        dose_bq=float(round(weight_kg * rng.uniform(4.2e6, 6.2e6), -3)),
        uptake_s=float(rng.integers(50 * 60, 95 * 60)),
        counts_per_suv_ml=float(rng.uniform(60.0, 110.0)),
        lowest_mm=-18.0 if rng.random() < 0.6 else float(rng.uniform(0.0, 140.0)),
        shift_mm=(float(rng.uniform(-6.0, 6.0)), float(rng.uniform(-12.0, 12.0))),
    )


def _draw_plan(sex: str, rng: np.random.Generator) -> BodyPlan:
    height_mm = float(np.clip(rng.normal(1760 if sex == "M" else 1640, 65), 1500, 1900))
    girth = float(np.clip(rng.normal(1.03, 0.08), 0.88, _GIRTH_LIMIT))
    shifts = rng.normal(0.0, (3.0, 3.0, 8.0), size=(len(MOVABLE_ORGANS), 3)).tolist()
    scales = rng.uniform(0.9, 1.1, size=len(MOVABLE_ORGANS)).tolist()
    return BodyPlan(
        height_mm=height_mm,
        girth=girth,
        leanness=girth**_FAT_FOLLOWS_GIRTH,
        arm_spread_mm=float(rng.uniform(-10.0, 8.0)),
        organs={
            organ: (dx, dy, dz, scale)
            for organ, (dx, dy, dz), scale in zip(MOVABLE_ORGANS, shifts, scales, strict=True)
        },
    )


def _draw_contents(
    plan: BodyPlan, altered: Mapping[str, float], rng: np.random.Generator
) -> tuple[tuple[Part, ...], dict[str, float]]:
    """Return what differs between bodies of one build, and the SUV of every region."""
    bowel, bladder = draw_bowel(plan, rng), draw_bladder(plan, rng)
    foci, focus_suv = draw_foci(plan, rng)
    suv = _draw_uptakes(rng) | focus_suv
    for region, added in altered.items():
        suv[region] += added
    return (*bowel, *bladder, *foci), suv


def _survey(plan: BodyPlan, extras: tuple[Part, ...]) -> dict[str, float]:
    """Return each region's volume in litres, from a coarse grid around the whole body."""
    z, y, x = _SURVEY_SPACING_MM
    shape = (int((plan.height_mm + 100) / z), int(500 / y), int(900 / x))
    corner = (-(shape[2] - 1) / 2 * x, -(shape[1] - 1) / 2 * y, -50.0)
    grid = Grid(shape=shape, spacing_mm=_SURVEY_SPACING_MM, origin_mm=corner)
    parts = (*body_parts(plan), *extras)
    names, regions = paint_parts(parts, grid=grid, outline=SKIN)
    voxels = np.bincount(regions.ravel(), minlength=len(names))[1:]
    litres = voxels * grid.voxel_ml / 1000.0
    return dict(zip(names[1:], litres.tolist(), strict=True))


def _draw_weight(litres: Mapping[str, float], rng: np.random.Generator) -> float:
    mass = sum(
        volume * _DENSITY_KG_PER_L.get(region, _LEAN_DENSITY_KG_PER_L)
        for region, volume in litres.items()
    )
    return round(mass * float(rng.normal(1.0, 0.02)), 1)


def _tracer_kg(suv: Mapping[str, float], litres: Mapping[str, float]) -> float:
    """Return all tracer in the body, in kilograms of body weight at SUV 1."""
    return sum(suv[region] * volume for region, volume in litres.items())


def _draw_uptakes(rng: np.random.Generator) -> dict[str, float]:
    suv = {region: _log_bounded(rng, spread) for region, spread in UPTAKES.items()}
    if rng.random() < _HOT_BOWEL_SHARE:
        suv["colon"] *= rng.uniform(2.0, 4.0)
        suv["small_bowel"] *= rng.uniform(1.0, 2.5)
    muscle = _log_bounded(rng, _MUSCLE)
    for group in MUSCLE_GROUPS:
        group_suv = muscle * rng.normal(1.0, _MUSCLE_SPREAD)
        for side in SIDES:
            suv[f"{group}_{side}"] = float(
                np.clip(group_suv * rng.normal(1.0, _MUSCLE_SPREAD), *_MUSCLE[2:])
            )
    return suv


def _draw_altered(severity: float, rng: np.random.Generator) -> dict[str, float]:
    """Return the regions that take up too much; the more severe, the more of them and the more."""
    if severity == 0.0:
        return {}
    extent = int(np.clip(round(1 + 9 * severity + rng.normal(0.0, 1.3)), 1, len(MUSCLE_GROUPS)))
    added: dict[str, float] = {}
    for group in rng.choice(MUSCLE_GROUPS, size=extent, replace=False).tolist():
        raised = (_RAISE_AT_ZERO + _RAISE_PER_SEVERITY * severity) * rng.lognormal(0.0, 0.15)
        sides = SIDES if rng.random() < _BILATERAL_SHARE else (str(rng.choice(SIDES)),)
        for side in sides:
            added[f"{group}_{side}"] = float(raised * rng.uniform(0.85, 1.15))
    return added


def _bounded(rng: np.random.Generator, spread: tuple[float, float, float, float]) -> float:
    mean, deviation, low, high = spread
    return float(np.clip(rng.normal(mean, deviation), low, high))


def _log_bounded(rng: np.random.Generator, spread: tuple[float, float, float, float]) -> float:
    median, deviation, low, high = spread
    return float(np.clip(median * rng.lognormal(0.0, deviation), low, high))
