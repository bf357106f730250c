"""A stylised human, supine with the arms beside the body, as solids with region names.

The tables describe a reference person 1,700 mm tall in reference coordinates: x from the midline
(given for the left side, mirrored for the right), y from the middle of the trunk, z from the heels.
A ``BodyPlan`` turns them into one patient: height along z, girth across, organs moved and scaled.
Proportions follow published segment lengths of adults (Drillis and Contini 1966); organ sizes are
those of reference adults (ICRP Publication 89), rounded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from preprocessing.phantoms.shapes import Capsule, Ellipsoid, Number, Part, Point, Shape, Tube

REFERENCE_HEIGHT_MM = 1700.0
SIDES = ("right", "left")
MUSCLE_GROUPS = (
    "neck",
    "trapezius",
    "shoulder",
    "pectoral",
    "paraspinal",
    "upper_arm",
    "forearm",
    "gluteal",
    "quadriceps",
    "hamstrings",
    "calf",
    "shin",
)
"""Skeletal muscles that exist on both sides; a region is called ``<group>_<side>``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyPlan:
    """One patient's build.

    Attributes
    ----------
    height_mm
        Heel to vertex.
    girth
        Width and depth of the body relative to the reference person.
    leanness
        Width and depth of what lies under the fat, relative to the reference person.
    arm_spread_mm
        How much farther from the trunk the wrists lie.
    organs
        Organ to (dx, dy, dz in millimetres, scale); absent organs lie where the table says.
    """

    height_mm: float
    girth: float
    leanness: float
    arm_spread_mm: float
    organs: Mapping[str, tuple[float, float, float, float]]


SKIN = frozenset({"fat", "extremity", "head"})
"""Regions that make up the outline; all others are painted inside it only."""

_TRUNK_Z = (790, 840, 900, 960, 1030, 1100, 1180, 1260, 1330, 1380, 1410, 1435)
_TRUNK_A = (140, 168, 170, 156, 142, 138, 146, 158, 160, 145, 110, 68)
_TRUNK_B = (80, 102, 106, 100, 96, 96, 102, 108, 106, 92, 74, 60)
# Limbs of the left side: heights of the knots, centres x and y, semi-axes a and b (arms: z, x, a).
_THIGH = (
    (455, 520, 600, 700, 800, 875),
    (85, 86, 88, 90, 91, 90),
    (0, 0, 2, 4, 8, 10),
    (57, 61, 70, 79, 85, 80),
    (59, 65, 75, 84, 91, 86),
)
_LEG = (
    (55, 90, 180, 280, 350, 430, 470),
    (84, 84, 84, 84, 85, 85, 85),
    (14, 12, 10, 9, 7, 2, 0),
    (34, 32, 39, 52, 56, 53, 58),
    (38, 36, 43, 55, 59, 56, 60),
)
_UPPER_ARM = (
    (1090, 1140, 1200, 1280, 1350, 1400),
    (236, 231, 222, 206, 192, 184),
    (40, 43, 46, 50, 52, 34),
)
_FOREARM = ((835, 880, 960, 1040, 1090), (250, 249, 245, 240, 236), (25, 28, 37, 43, 40))
_BELLY_KNOTS = 13
_SPREAD_TOP_MM, _SPREAD_LENGTH_MM = 1400.0, 565.0

_HEAD: tuple[tuple[str, Shape], ...] = (
    ("head", Ellipsoid(centre=(0, 4, 1590), radii=(77, 97, 113))),
    ("head", Ellipsoid(centre=(0, -36, 1532), radii=(58, 62, 62))),
    ("cortex", Ellipsoid(centre=(0, 10, 1614), radii=(66, 82, 62))),
)
_HEAD_PAIRED: tuple[tuple[str, Shape], ...] = (
    ("white_matter", Ellipsoid(centre=(30, 12, 1612), radii=(20, 60, 38))),
    ("basal_ganglia", Ellipsoid(centre=(19, 4, 1610), radii=(10, 21, 15))),
    ("cerebellum", Ellipsoid(centre=(24, 52, 1560), radii=(27, 28, 22))),
    ("tonsil", Ellipsoid(centre=(17, -18, 1508), radii=(8, 9, 11))),
    ("salivary", Ellipsoid(centre=(50, -8, 1520), radii=(10, 14, 22))),
    ("eye_muscle", Ellipsoid(centre=(30, -76, 1582), radii=(9, 8, 9))),
)
_TRUNK_ORGANS: tuple[tuple[str, str, Shape], ...] = (
    (
        "larynx",
        "neck",
        Capsule(start=(0, -28, 1440), end=(0, -30, 1462), start_radius=13, end_radius=11),
    ),
    ("lung", "lung", Ellipsoid(centre=(-74, 2, 1290), radii=(57, 82, 112), tilt_deg=7)),
    ("lung", "lung", Ellipsoid(centre=(78, 6, 1286), radii=(52, 80, 110), tilt_deg=-7)),
    ("blood", "vessels", Ellipsoid(centre=(2, -2, 1322), radii=(27, 38, 90))),
    (
        "blood",
        "vessels",
        Capsule(start=(12, 34, 1300), end=(8, 30, 960), start_radius=12, end_radius=9),
    ),
    ("blood", "heart", Ellipsoid(centre=(22, -38, 1236), radii=(56, 44, 47), tilt_deg=-35)),
    ("myocardium", "heart", Ellipsoid(centre=(46, -36, 1216), radii=(36, 34, 47), tilt_deg=-50)),
    ("blood", "heart", Ellipsoid(centre=(41, -36, 1222), radii=(23, 21, 38), tilt_deg=-50)),
    ("liver", "liver", Ellipsoid(centre=(-66, -8, 1136), radii=(70, 72, 64), tilt_deg=-18)),
    ("liver", "liver", Ellipsoid(centre=(14, -40, 1152), radii=(66, 40, 36), tilt_deg=14)),
    ("spleen", "spleen", Ellipsoid(centre=(100, 42, 1150), radii=(26, 32, 50), tilt_deg=18)),
    ("stomach", "stomach", Ellipsoid(centre=(70, -34, 1126), radii=(34, 30, 52), tilt_deg=35)),
    ("kidney", "kidney_right", Ellipsoid(centre=(-62, 42, 1062), radii=(27, 25, 52), tilt_deg=12)),
    (
        "renal_pelvis",
        "kidney_right",
        Ellipsoid(centre=(-56, 40, 1060), radii=(10, 10, 26), tilt_deg=12),
    ),
    ("kidney", "kidney_left", Ellipsoid(centre=(62, 42, 1072), radii=(27, 25, 52), tilt_deg=-12)),
    (
        "renal_pelvis",
        "kidney_left",
        Ellipsoid(centre=(56, 40, 1070), radii=(10, 10, 26), tilt_deg=-12),
    ),
)
MOVABLE_ORGANS = tuple(dict.fromkeys(organ for _, organ, _ in _TRUNK_ORGANS))

_LIMB_OUTLINE: tuple[Shape, ...] = (
    Ellipsoid(centre=(174, 12, 1362), radii=(52, 58, 66)),
    Capsule(start=(40, 14, 1418), end=(150, 14, 1378), start_radius=52, end_radius=50),
)
_HAMSTRINGS = Tube(
    z=(470, 490, 560, 680, 790, 835, 860),
    x=(84, 84, 86, 88, 89, 88, 88),
    y=(32, 33, 36, 40, 46, 46, 46),
    a=(6, 22, 42, 56, 54, 38, 8),
    b=(5, 14, 24, 32, 32, 24, 6),
)
_PARASPINAL = Tube(
    z=(880, 960, 1060, 1200, 1350),
    x=(30, 33, 35, 33, 28),
    y=(76, 72, 68, 76, 74),
    a=(18, 24, 25, 22, 14),
    b=(14, 20, 20, 18, 12),
)
_TRUNK_MUSCLES: tuple[tuple[str, Shape], ...] = (
    ("gluteal", Ellipsoid(centre=(76, 62, 886), radii=(60, 40, 72), tilt_deg=-12)),
    ("pectoral", Ellipsoid(centre=(82, -80, 1306), radii=(58, 16, 46), tilt_deg=20)),
    ("trapezius", Ellipsoid(centre=(54, 80, 1330), radii=(46, 15, 84), tilt_deg=20)),
    (
        "trapezius",
        Capsule(start=(36, 38, 1462), end=(132, 40, 1392), start_radius=19, end_radius=16),
    ),
    ("paraspinal", _PARASPINAL),
    ("neck", Capsule(start=(40, 6, 1522), end=(18, -26, 1424), start_radius=12, end_radius=9)),
    ("neck", Ellipsoid(centre=(22, 40, 1476), radii=(20, 17, 46))),
)
_NECK = Tube(z=(1395, 1470, 1540), x=(0,) * 3, y=(8, 4, 2), a=(62, 56, 56), b=(64, 60, 62))
_SPINE = Tube(
    z=(860, 930, 1030, 1180, 1330, 1440, 1520),
    x=(0,) * 7,
    y=(62, 44, 34, 46, 58, 34, 26),
    a=(26, 26, 25, 21, 17, 13, 11),
    b=(20, 21, 20, 18, 16, 12, 11),
)
_STERNUM = Capsule(start=(0, -88, 1230), end=(0, -84, 1360), start_radius=10, end_radius=13)
_ILIUM = Ellipsoid(centre=(72, 36, 952), radii=(44, 12, 50), tilt_deg=25)
_LONG_BONES: tuple[Shape, ...] = (
    Capsule(start=(86, -2, 470), end=(92, 0, 850), start_radius=14, end_radius=13),
    Capsule(start=(80, -14, 80), end=(82, -8, 440), start_radius=10, end_radius=14),
    Capsule(start=(234, 22, 1100), end=(188, 20, 1370), start_radius=9, end_radius=12),
)


def body_parts(plan: BodyPlan) -> Iterator[Part]:
    """List the solids of one patient in patient coordinates, outermost first."""
    yield from _outline(plan)
    yield from _muscles(plan)
    yield from _bones(plan)
    yield from _organs(plan)


def place(shape: Shape, plan: BodyPlan, *, across: float, size: float | None = None) -> Shape:
    """Turn reference coordinates into patient coordinates.

    ``across`` scales positions in x and y, ``size`` the extent in x and y (both alike if None);
    z always follows the patient's height.
    """
    size = across if size is None else size
    along = plan.height_mm / REFERENCE_HEIGHT_MM
    if isinstance(shape, Ellipsoid):
        rx, ry, rz = shape.radii
        centre = _scaled(shape.centre, across, along)
        return replace(shape, centre=centre, radii=(rx * size, ry * size, rz * along))
    if isinstance(shape, Capsule):
        ends = (_scaled(shape.start, across, along), _scaled(shape.end, across, along))
        radii = (shape.start_radius * size, shape.end_radius * size)
        return Capsule(start=ends[0], end=ends[1], start_radius=radii[0], end_radius=radii[1])
    if isinstance(shape, Tube):
        z = tuple(value * along for value in shape.z)
        x, y = (tuple(v * across for v in knots) for knots in (shape.x, shape.y))
        a, b = (tuple(v * size for v in knots) for knots in (shape.a, shape.b))
        return Tube(z=z, x=x, y=y, a=a, b=b)
    raise TypeError(f"a {type(shape).__name__} cannot be placed: Ellipsoid, Capsule or Tube needed")


def moved(shape: Shape, shift: Point, scale: float) -> Shape:
    """Shift a solid and scale it about its own centre; a tube stays where it is."""
    if isinstance(shape, Ellipsoid):
        rx, ry, rz = shape.radii
        centre = _plus(shape.centre, shift)
        return replace(shape, centre=centre, radii=(rx * scale, ry * scale, rz * scale))
    if isinstance(shape, Capsule):
        start, end = _plus(shape.start, shift), _plus(shape.end, shift)
        radii = (shape.start_radius * scale, shape.end_radius * scale)
        return Capsule(start=start, end=end, start_radius=radii[0], end_radius=radii[1])
    return shape


def mirrored(shape: Shape) -> Shape:
    """Reflect a solid at the midline: left becomes right."""
    if isinstance(shape, Ellipsoid):
        x, y, z = shape.centre
        return replace(shape, centre=(-x, y, z), tilt_deg=-shape.tilt_deg)
    if isinstance(shape, Capsule):
        (sx, sy, sz), (ex, ey, ez) = shape.start, shape.end
        return replace(shape, start=(-sx, sy, sz), end=(-ex, ey, ez))
    if isinstance(shape, Tube):
        return replace(shape, x=tuple(-value for value in shape.x))
    raise TypeError(f"a {type(shape).__name__} cannot be mirrored: Ellipsoid, Capsule, Tube needed")


def _both_sides(region: str, shape: Shape, *, named: bool) -> Iterator[Part]:
    for side, solid in zip(SIDES, (mirrored(shape), shape), strict=True):
        yield Part(region=f"{region}_{side}" if named else region, shape=solid)


def _trunk(*, skin_mm: Number) -> Tube:
    middle = (0.0,) * len(_TRUNK_Z)
    return _limb((_TRUNK_Z, middle, middle, _TRUNK_A, _TRUNK_B), skin_mm=skin_mm)


def _limb(knots: tuple[Sequence[Number], ...], *, skin_mm: Number) -> Tube:
    z, x, y, a, b = knots
    return Tube(z=z, x=x, y=y, a=[v - skin_mm for v in a], b=[v - skin_mm for v in b])


def _arm(knots: tuple[Sequence[Number], ...], *, skin_mm: Number, plan: BodyPlan) -> Tube:
    # The upper end stays in the shoulder, the wrist moves by the whole spread.
    z, x, a = knots
    spread = [plan.arm_spread_mm * (_SPREAD_TOP_MM - v) / _SPREAD_LENGTH_MM for v in z]
    lateral = [v + shift for v, shift in zip(x, spread, strict=True)]
    return _limb((z, lateral, [22.0] * len(z), a, [v * 1.08 for v in a]), skin_mm=skin_mm)


def _belly(limb: Tube, low: Number, high: Number) -> Tube:
    """Cut a limb between two heights and round both ends, as muscles end in tendons."""
    share = np.linspace(-1.0, 1.0, _BELLY_KNOTS)
    z = low + (share + 1.0) / 2 * (high - low)
    taper = np.sqrt(np.maximum(1.0 - np.abs(share) ** 3, 0.02))
    x, y = (np.interp(z, limb.z, knots).tolist() for knots in (limb.x, limb.y))
    a, b = ((np.interp(z, limb.z, knots) * taper).tolist() for knots in (limb.a, limb.b))
    return Tube(z=z.tolist(), x=x, y=y, a=a, b=b)


def _outline(plan: BodyPlan) -> Iterator[Part]:
    yield Part(region="fat", shape=place(_trunk(skin_mm=0), plan, across=plan.girth))
    yield Part(region="fat", shape=place(_NECK, plan, across=plan.girth))
    arms = (_arm(knots, skin_mm=0, plan=plan) for knots in (_UPPER_ARM, _FOREARM))
    legs = (_limb(knots, skin_mm=0) for knots in (_THIGH, _LEG))
    for shape in (*arms, *legs, *_LIMB_OUTLINE):
        yield from _both_sides("fat", place(shape, plan, across=plan.girth), named=False)
    hand = Ellipsoid(centre=(254 + plan.arm_spread_mm, 24, 768), radii=(21, 38, 84))
    foot = Capsule(start=(84, 20, 42), end=(98, -135, 14), start_radius=36, end_radius=25)
    for shape in (hand, foot):
        solid = place(shape, plan, across=plan.girth, size=1.0)
        yield from _both_sides("extremity", solid, named=False)
    yield Part(region="soft", shape=place(_trunk(skin_mm=13), plan, across=plan.leanness))
    yield Part(region="soft", shape=place(_NECK, plan, across=plan.leanness, size=0.92))


def _muscles(plan: BodyPlan) -> Iterator[Part]:
    upper_arm, forearm = (
        _arm(knots, skin_mm=skin, plan=plan) for knots, skin in ((_UPPER_ARM, 8), (_FOREARM, 7))
    )
    thigh, leg = (_limb(knots, skin_mm=skin) for knots, skin in ((_THIGH, 13), (_LEG, 9)))
    for shape in (upper_arm, forearm, thigh, leg):
        solid = place(shape, plan, across=plan.girth, size=plan.leanness)
        yield from _both_sides("soft", solid, named=False)
    limbs: tuple[tuple[str, Shape], ...] = (
        ("upper_arm", _belly(upper_arm, 1104, 1336)),
        ("forearm", _belly(forearm, 868, 1092)),
        ("shoulder", Ellipsoid(centre=(178, 14, 1350), radii=(40, 46, 66), tilt_deg=-16)),
        ("quadriceps", _belly(thigh, 478, 866)),
        ("hamstrings", _HAMSTRINGS),
        ("shin", _belly(leg, 130, 440)),
        ("calf", Ellipsoid(centre=(86, 28, 338), radii=(42, 30, 104))),
    )
    for region, shape in limbs:
        solid = place(shape, plan, across=plan.girth, size=plan.leanness)
        yield from _both_sides(region, solid, named=True)
    for region, shape in _TRUNK_MUSCLES:
        yield from _both_sides(region, place(shape, plan, across=plan.leanness), named=True)


def _bones(plan: BodyPlan) -> Iterator[Part]:
    for shape in _LONG_BONES:
        solid = place(shape, plan, across=plan.girth, size=1.0)
        yield from _both_sides("bone", solid, named=False)
    yield from _both_sides("marrow", place(_ILIUM, plan, across=plan.leanness), named=False)
    for shape in (_SPINE, _STERNUM):
        yield Part(region="marrow", shape=place(shape, plan, across=plan.leanness))


def _organs(plan: BodyPlan) -> Iterator[Part]:
    for region, shape in _HEAD:
        yield Part(region=region, shape=place(shape, plan, across=1.0))
    for region, shape in _HEAD_PAIRED:
        yield from _both_sides(region, place(shape, plan, across=1.0), named=False)
    for region, organ, shape in _TRUNK_ORGANS:
        dx, dy, dz, scale = plan.organs.get(organ, (0.0, 0.0, 0.0, 1.0))
        placed = place(shape, plan, across=plan.leanness)
        yield Part(region=region, shape=moved(placed, (dx, dy, dz), scale))


def _scaled(point: Point, across: float, along: float) -> Point:
    x, y, z = point
    return x * across, y * across, z * along


def _plus(point: Point, shift: Point) -> Point:
    return point[0] + shift[0], point[1] + shift[1], point[2] + shift[2]
