"""Heads for MR phantoms: a folded, nearly symmetric brain with a tumour, and its true plane.

Head coordinates are millimetres from the brain's centre: u to the patient's left, v to posterior, w
to the head; the symmetry plane is u = 0. The head stands turned and shifted in the scanner.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

HALF_AXES_MM = (68.0, 84.0, 62.0)
"""Half width, half length, half height of an average adult brain."""
LARGEST_TURN_DEG = 6.0
"""Yaw and roll left over after a rigid registration to an atlas, generously."""
LARGEST_SHIFT_MM = 6.0
LARGEST_SHARE = 0.4
"""Of a hemisphere that a tumour takes."""
FALX_MM = 2.0
"""A tumour that does not cross stops short of the falx."""
FALX_HALF_WIDTH_MM = 1.2
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4
CSF, GREY, WHITE, GLIOSIS, VESSEL = 0, 1, 2, 3, 4
GLIOSIS_RADIUS_MM = (2.0, 9.0)
"""White-matter hyperintensities, from points to confluent patches."""
VESSEL_RADIUS_MM = (1.5, 4.0)


class TissueValues(NamedTuple):
    """Intensity of each tissue in one modality."""

    csf: float
    grey: float
    white: float
    gliosis: float
    vessel: float
    oedema: float
    necrosis: float
    enhancing: float


CONTRASTS = {
    "T1": TissueValues(160, 390, 520, 400, 300, 360, 230, 330),
    "T1ce": TissueValues(170, 410, 530, 410, 900, 370, 230, 900),
    "T2": TissueValues(820, 420, 290, 620, 200, 640, 760, 560),
    "FLAIR": TissueValues(110, 400, 320, 700, 250, 720, 330, 600),
}
"""Skull-stripped 3 T contrasts in arbitrary units, fat and bone absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One drawn patient.

    Attributes
    ----------
    rotation, centre_mm
        Scanner minus centre, times rotation, is head coordinates; rows are u, v, w.
    half_axes_mm
        Of the brain.
    asymmetry
        Left-right difference of width front to back (the brain's torque) and of the ventricles.
    side
        1: the tumour lies left, -1: right.
    crosses
        The tumour takes part of both hemispheres.
    tumour_mm, radii_mm
        Centre and half axes of the tumour in head coordinates.
    high_grade
        With necrosis and an enhancing rim.
    mimics
        What is bright and no tumour, in either hemisphere: u, v, w, radius in mm, and 0 for a patch
        of gliosis or 1 for a vessel seen in cross section.
    waves, folds, own_folds
        Wave vectors (u, v, w) per mm and phases: of the tumour's outline, of the folds that both
        hemispheres share, and of those that they do not.
    """

    rotation: Float64[np.ndarray, "3 3"]
    centre_mm: Float64[np.ndarray, "3"]
    half_axes_mm: Float64[np.ndarray, "3"]
    asymmetry: Float64[np.ndarray, "2"]
    side: int
    crosses: bool
    tumour_mm: Float64[np.ndarray, "3"]
    radii_mm: Float64[np.ndarray, "3"]
    high_grade: bool
    mimics: Float64[np.ndarray, "mimic 5"]
    waves: Float64[np.ndarray, "wave 4"]
    folds: Float64[np.ndarray, "fold 4"]
    own_folds: Float64[np.ndarray, "own_fold 4"]


class HeadMap(NamedTuple):
    """A head on a grid of voxels z, y, x.

    ``tissue`` holds ``CSF``, ``GREY``, ``WHITE``, ``GLIOSIS`` or ``VESSEL`` where there is
    ``brain``; ``labels`` those of a BraTS segmentation; ``lateral_mm`` the signed distance to the
    symmetry plane.
    """

    brain: Bool[np.ndarray, "z y x"]
    tissue: UInt8[np.ndarray, "z y x"]
    labels: UInt8[np.ndarray, "z y x"]
    lateral_mm: Float32[np.ndarray, "z y x"]


def draw_head(
    *,
    side: int,
    crosses: bool,
    high_grade: bool,
    rng: np.random.Generator,
    mimics: float,
) -> Head:
    """Draw size, posture, asymmetry, tumour and ``mimics`` (mean number) of one patient."""
    axes = np.array(HALF_AXES_MM) * rng.normal(1.0, 0.03, 3).clip(0.92, 1.08)
    share = LARGEST_SHARE * rng.uniform(0.1, 1.0) ** 1.5
    # The flat base takes a tenth of the ellipsoid.
    radius = float((0.9 * share / 2 * np.prod(axes)) ** (1 / 3))
    stretch = rng.normal(0.0, 0.12, 3)
    radii = radius * np.exp(stretch - stretch.mean())
    return Head(
        rotation=_turned(*np.radians(rng.uniform(-1, 1, 3) * LARGEST_TURN_DEG * [1, 1, 1.5])),
        centre_mm=rng.uniform(-LARGEST_SHIFT_MM, LARGEST_SHIFT_MM, 3),
        half_axes_mm=axes,
        asymmetry=rng.normal(0.0, [0.008, 0.08]),
        side=side,
        crosses=crosses,
        tumour_mm=_tumour_place(axes, radius, side=side, crosses=crosses, rng=rng),
        radii_mm=radii,
        high_grade=high_grade,
        waves=_waves(6, 1 / radius, rng),
        folds=_waves(5, 0.28, rng),
        own_folds=_waves(4, 0.28, rng),
        mimics=_mimics(axes, mimics, rng),
    )


def _waves(count: int, per_mm: float, rng: np.random.Generator) -> Float64[np.ndarray, "wave 4"]:
    """Draw wave vectors and phases."""
    return np.column_stack([rng.normal(0, per_mm, (count, 3)), rng.uniform(0, 2 * np.pi, count)])


def _mimics(
    axes: Float64[np.ndarray, "3"], mean: float, rng: np.random.Generator
) -> Float64[np.ndarray, "mimic 5"]:
    """Draw gliosis and vessels; their number differs between patients as with age, not by side."""
    if mean == 0:
        return np.zeros((0, 5))
    count = int(rng.poisson(mean * rng.exponential()))
    kind = (rng.random(count) < 0.4).astype(np.float64)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    depth = np.where(kind == 0, rng.uniform(0.25, 0.75, count), rng.uniform(0.5, 0.95, count))
    low, high = np.where(kind[:, None] == 0, GLIOSIS_RADIUS_MM, VESSEL_RADIUS_MM).T
    radius = low * (high / low) ** (rng.random(count) ** 2)  # small ones are the most frequent
    return np.column_stack([direction * depth[:, None] * axes, radius, kind])


def _tumour_place(
    axes: Float64[np.ndarray, "3"],
    radius: float,
    *,
    side: int,
    crosses: bool,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "3"]:
    across = rng.uniform(0.0, 0.35) * radius if crosses else rng.uniform(0.35, 0.6) * axes[0]
    along = rng.uniform(-0.45, 0.45) * axes[1]
    up = rng.uniform(-0.2, 0.45) * axes[2]
    return np.array([side * across, along, up])


def _turned(yaw: float, roll: float, pitch: float) -> Float64[np.ndarray, "3 3"]:
    """Turn about the long axis, the front-back axis, the ear-to-ear axis."""
    (a, b, c), (d, e, f) = np.cos([yaw, roll, pitch]), np.sin([yaw, roll, pitch])
    about_w = np.array([[a, -d, 0], [d, a, 0], [0, 0, 1]])
    about_v = np.array([[b, 0, -e], [0, 1, 0], [e, 0, b]])
    about_u = np.array([[1, 0, 0], [0, c, -f], [0, f, c]])
    return about_u @ about_v @ about_w


def rasterise(
    head: Head,
    axes_mm: tuple[Float64[np.ndarray, " z"], Float64[np.ndarray, " y"], Float64[np.ndarray, " x"]],
) -> HeadMap:
    """Put a head on the voxels at the given LPS places along z, y, x."""
    u, v, w = _head_coordinates(head, axes_mm)
    tilted = u * (1 + np.float32(head.asymmetry[0] / head.half_axes_mm[1]) * v * np.sign(u))
    radius = _brain_radius(head, tilted, v, w)
    brain = radius < 1
    fold = _folds(head.folds, np.abs(u), v, w) + _folds(head.own_folds, u, v, w)
    tissue = np.where(radius < 0.80 + 0.11 * fold, np.uint8(WHITE), np.uint8(GREY))
    tissue[_grey_nuclei(u, v, w)] = GREY
    tissue[_fluid(head, u, v, w, radius) | (radius > 0.985 + 0.03 * fold)] = CSF
    _put_mimics(tissue, head, u, v, w)
    labels = _tumour(head, u, v, w)
    labels[~brain | (radius > 0.97)] = 0
    return HeadMap(brain=brain, tissue=tissue, labels=labels, lateral_mm=u)


Grid3 = Float32[np.ndarray, "z y x"]


def _head_coordinates(
    head: Head, axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[Grid3, Grid3, Grid3]:
    z, y, x = (axis.astype(np.float32) for axis in axes_mm)
    x, y, z = (x - head.centre_mm[0], y - head.centre_mm[1], z - head.centre_mm[2])
    u, v, w = (
        (
            np.float32(a) * x[None, None, :]
            + (np.float32(b) * y[None, :, None] + np.float32(c) * z[:, None, None])
        ).astype(np.float32)
        for a, b, c in head.rotation
    )
    return u, v, w


def _brain_radius(head: Head, u: Grid3, v: Grid3, w: Grid3) -> Grid3:
    """Return 1 on the brain's surface: an ellipsoid, narrow in front, flat below."""
    a, b, c = head.half_axes_mm.astype(np.float32)
    width = a * (1 + np.float32(0.08) * v / b)
    height = np.where(w < 0, c * np.float32(0.8), c)
    return np.sqrt((u / width) ** 2 + (v / b) ** 2 + (w / height) ** 2)


def _folds(waves: Float64[np.ndarray, "fold 4"], u: Grid3, v: Grid3, w: Grid3) -> Grid3:
    """Return a folded pattern, mostly between -1 and 1."""
    pattern = np.zeros_like(u)
    for a, b, c, phase in waves.astype(np.float32):
        pattern += np.cos(a * u + b * v + c * w + phase)
    return pattern / np.float32(np.sqrt(len(waves) / 2) * 2)


def _grey_nuclei(u: Grid3, v: Grid3, w: Grid3) -> Bool[np.ndarray, "z y x"]:
    return ((np.abs(u) - 20) / 9) ** 2 + ((v - 2) / 20) ** 2 + (w / 11) ** 2 < 1


def _fluid(head: Head, u: Grid3, v: Grid3, w: Grid3, radius: Grid3) -> Bool[np.ndarray, "z y x"]:
    """Mark the lateral ventricles and the fissure between the hemispheres."""
    size = np.where(u > 0, np.float32(1 + head.asymmetry[1]), np.float32(1 - head.asymmetry[1]))
    bent = np.abs(u) - (9 + np.float32(0.004) * v**2)
    ventricles = (bent / (6 * size)) ** 2 + (v / 38) ** 2 + ((w - 8) / 10) ** 2 < 1
    core = (v / 40) ** 2 + ((w + 2) / 26) ** 2 < 1  # corpus callosum, thalami, brain stem
    fissure = (np.abs(u) < FALX_HALF_WIDTH_MM) & ~core & (radius > 0.3)
    return ventricles | fissure


def _tumour(head: Head, u: Grid3, v: Grid3, w: Grid3) -> UInt8[np.ndarray, "z y x"]:
    """Label a lobed tumour: oedema, and in high grade an enhancing rim around necrosis."""
    labels = np.zeros(u.shape, dtype=np.uint8)
    box = _box_around(head, head.tumour_mm, 1.5 * float(head.radii_mm.max()), (u, v, w))
    p, q, r = (
        axis[box] - np.float32(centre)
        for axis, centre in zip((u, v, w), head.tumour_mm, strict=True)
    )
    a, b, c = head.radii_mm.astype(np.float32)
    radius = np.sqrt((p / a) ** 2 + (q / b) ** 2 + (r / c) ** 2)
    for i, j, k, phase in head.waves.astype(np.float32):
        radius += np.float32(0.05) * np.cos(2 * (i * p + j * q + k * r) + phase)
    whole = radius < 1
    if not head.crosses:
        whole &= u[box] * head.side > FALX_MM
    inner = labels[box]
    inner[whole] = OEDEMA
    core = 0.55 if head.high_grade else 0.4
    inner[whole & (radius < core)] = ENHANCING if head.high_grade else NECROSIS
    inner[whole & (radius < 0.4)] = NECROSIS
    return labels


def _put_mimics(
    tissue: UInt8[np.ndarray, "z y x"], head: Head, u: Grid3, v: Grid3, w: Grid3
) -> None:
    """Write gliosis into white matter, vessels anywhere but into fluid; in place."""
    for *place, radius, vessel in head.mimics:
        box = _box_around(head, np.array(place), 1.2 * radius, (u, v, w))
        apart = sum(
            (axis[box] - np.float32(centre)) ** 2
            for axis, centre in zip((u, v, w), place, strict=True)
        )
        inside = apart < radius**2
        inner = tissue[box]
        if vessel:
            inner[inside & (inner != CSF)] = VESSEL
        else:
            inner[inside & (inner == WHITE)] = GLIOSIS


def _box_around(
    head: Head, centre_mm: Float64[np.ndarray, "3"], reach: float, axes: tuple[Grid3, Grid3, Grid3]
) -> tuple[slice, ...]:
    """Voxels within ``reach`` mm of a place in head coordinates, and some around them."""
    place = head.rotation.T @ centre_mm  # scanner axes, from the head's centre
    shape = axes[0].shape
    middle = [count // 2 for count in shape]
    steps = [
        float(abs(np.linalg.norm([f[tuple(a)] - f[tuple(middle)] for f in axes])))
        for a in (np.add(middle, unit) for unit in np.eye(3, dtype=int))
    ]
    origin = head.rotation.T @ [f[tuple(middle)] for f in axes]
    edges = []
    for axis, (step, centre) in enumerate(zip(steps, (place - origin)[::-1], strict=True)):
        at = middle[axis] + centre / step
        low, high = int(at - reach / step), int(at + reach / step) + 1
        edges.append(slice(max(low, 0), max(min(high, shape[axis]), 0)))
    return tuple(edges)
