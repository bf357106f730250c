"""What differs between patients beyond size: bowel, bladder, ureters, and misleading foci."""

import itertools
from collections.abc import Iterator

import numpy as np

from preprocessing.phantoms.anatomy import BodyPlan, moved, place
from preprocessing.phantoms.shapes import Capsule, Ellipsoid, Part, Point, Shape

_COLON: tuple[Point, ...] = (
    (-92, -20, 905),
    (-100, -14, 985),
    (-88, -34, 1052),
    (-34, -66, 1024),
    (30, -64, 1018),
    (84, -36, 1060),
    (100, -8, 1090),
    (102, 2, 985),
    (92, -6, 905),
    (46, -10, 872),
    (8, 34, 880),
)
_TUMOUR_PLACES: tuple[Point, ...] = (
    (-80, 0, 1300),
    (76, 10, 1270),
    (-60, -8, 1130),
    (0, 44, 1120),
)
_FOCUS_SHARES = {"trapezius_focus": 0.3, "injection": 0.15, "brown_fat": 0.12, "tumour": 0.3}
_FOCUS_SUV = {
    "trapezius_focus": (1.2, 2.4),
    "injection": (2.0, 12.0),
    "brown_fat": (2.0, 6.0),
    "tumour": (3.0, 12.0),
}


def draw_bowel(plan: BodyPlan, rng: np.random.Generator) -> tuple[Part, ...]:
    """Draw colon and small bowel as chains of short tubes."""
    parts = [_placed("small_bowel", loop, plan) for loop in _small_bowel_loops(rng)]
    wander = [tuple(np.add(point, rng.normal(0.0, (5, 4, 7))).tolist()) for point in _COLON]
    radii = rng.uniform(11.0, 19.0, size=len(wander))
    for index, (start, end) in enumerate(itertools.pairwise(wander)):
        first, second = radii[index : index + 2].tolist()
        shape = Capsule(start=start, end=end, start_radius=first, end_radius=second)
        parts.append(_placed("colon", shape, plan))
    return tuple(parts)


def draw_bladder(plan: BodyPlan, rng: np.random.Generator) -> tuple[Part, ...]:
    """Draw a bladder of 60 to 500 mL and what urine is in the ureters at the moment."""
    volume_ml = 60.0 + 440.0 * rng.beta(1.3, 3.0)
    radius = (volume_ml * 1000.0 * 3 / (4 * np.pi * 1.15 * 1.0 * 0.9)) ** (1 / 3)
    bottom = place(Ellipsoid(centre=(0, -38, 838), radii=(1, 1, 1)), plan, across=plan.leanness)
    radii = (radius * 1.15, radius * 1.0, radius * 0.9)
    parts = [_segment(piece, plan) for piece in _ureter_pieces(rng)]
    bladder = moved(Ellipsoid(centre=_centre(bottom), radii=radii), (0, 0, radii[2]), 1.0)
    return (*parts, Part(region="bladder", shape=bladder))


def draw_foci(
    plan: BodyPlan, rng: np.random.Generator
) -> tuple[tuple[Part, ...], dict[str, float]]:
    """Draw findings that are no altered muscle, with the SUV of each."""
    makers = {
        "trapezius_focus": _trapezius_focus,
        "injection": _injection_site,
        "brown_fat": _brown_fat,
        "tumour": _tumour,
    }
    parts: list[Part] = []
    suv: dict[str, float] = {}
    for name, share in _FOCUS_SHARES.items():
        present, value = rng.random() < share, float(rng.uniform(*_FOCUS_SUV[name]))
        shapes = list(makers[name](plan, rng))
        if present:
            parts += [Part(region=name, shape=shape) for shape in shapes]
            suv[name] = value
    return tuple(parts), suv


def _small_bowel_loops(rng: np.random.Generator) -> Iterator[Capsule]:
    point = np.array([40.0, -40.0, 1030.0])
    for _ in range(16):
        step = np.append(rng.normal(0.0, (38.0, 16.0)), rng.normal(-8.0, 22.0))
        end = np.clip(point + step, (-72, -68, 895), (72, 2, 1040))
        radius = rng.uniform(9.0, 13.0)
        yield Capsule(
            start=tuple(point.tolist()),
            end=tuple(end.tolist()),
            start_radius=radius,
            end_radius=radius,
        )
        point = end


def _ureter_pieces(rng: np.random.Generator) -> Iterator[Capsule]:
    for side in (-1.0, 1.0):
        upper, lower = np.array([side * 48, 36, 1030.0]), np.array([side * 26, 0, 862.0])
        for begin in rng.uniform(0.0, 0.8, size=rng.integers(0, 3)):
            ends = [
                upper + share * (lower - upper)
                for share in (begin, begin + rng.uniform(0.08, 0.25))
            ]
            start, end = (tuple(point.tolist()) for point in ends)
            yield Capsule(start=start, end=end, start_radius=4.0, end_radius=4.0)


def _trapezius_focus(plan: BodyPlan, rng: np.random.Generator) -> Iterator[Shape]:
    side, radius = rng.choice((-1.0, 1.0)), rng.uniform(9.0, 15.0)
    share = rng.uniform(0.15, 0.85)
    centre = (side * (36 + 96 * share), 39.0, 1462 - 70 * share)
    spot = Ellipsoid(centre=centre, radii=(radius * 1.6, radius, radius), tilt_deg=side * 30)
    yield place(spot, plan, across=plan.leanness)


def _injection_site(plan: BodyPlan, rng: np.random.Generator) -> Iterator[Shape]:
    side, radius = rng.choice((-1.0, 1.0)), rng.uniform(6.0, 11.0)
    x, z = ((236.0, 1095.0), (252.0, 800.0))[int(rng.integers(0, 2))]
    spot = Ellipsoid(centre=(side * x, 0.0, z), radii=(radius, radius, radius * 1.5))
    yield place(spot, plan, across=plan.girth)


def _brown_fat(plan: BodyPlan, rng: np.random.Generator) -> Iterator[Shape]:
    radius = rng.uniform(7.0, 11.0)
    for side in (-1.0, 1.0):
        for x, y, z in ((62.0, 4.0, 1416.0), (92.0, 8.0, 1402.0)):
            centre = (side * x + rng.normal(0, 4), y, z + rng.normal(0, 4))
            spot = Ellipsoid(centre=centre, radii=(radius * 1.3, radius, radius))
            yield place(spot, plan, across=plan.leanness)


def _tumour(plan: BodyPlan, rng: np.random.Generator) -> Iterator[Shape]:
    places = (
        (-80.0, 0.0, 1300.0),
        (76.0, 10.0, 1270.0),
        (-60.0, -8.0, 1130.0),
        (0.0, 44.0, 1120.0),
    )
    x, y, z = places[int(rng.integers(0, len(places)))]
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(7.0, 20.0)
        centre = (x + rng.normal(0, 16), y + rng.normal(0, 12), z + rng.normal(0, 24))
        yield place(
            Ellipsoid(centre=centre, radii=(radius, radius, radius)), plan, across=plan.leanness
        )


def _segment(piece: Capsule, plan: BodyPlan) -> Part:
    return _placed("ureter", piece, plan)


def _placed(region: str, shape: Shape, plan: BodyPlan) -> Part:
    return Part(region=region, shape=place(shape, plan, across=plan.leanness))


def _centre(shape: Shape) -> Point:
    lower, upper = shape.bounds()
    x, y, z = np.add(lower, upper) / 2
    return float(x), float(y), float(z)
