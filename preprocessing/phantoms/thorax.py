"""A chest from the front in attenuation: body, lungs, heart, diaphragm, bones, vessels, findings.

Coordinates: u runs from -1 at the picture's left edge (the patient's right) to +1, v from 0 at the
upper edge to 1 at the lower. Values are attenuation in units in which air is 0 and the mediastinum
about 1; a radiograph shows more attenuation brighter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

Picture = Float32[np.ndarray, "row column"]

RIB_PAIRS = 9
LUNG_LOSS = 0.62
"""How much less the lungs attenuate than the tissue around them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """One patient's chest.

    Attributes
    ----------
    scale, shift
        Size, and place of the midline in u.
    width
        Half of the body's width.
    heart
        Half width and half height of the heart's shadow.
    domes
        Height (v) of the right and the left dome of the diaphragm.
    bones
        Brightness of bone.
    texture
        Seed of the vessels' pattern.
    """

    scale: float
    shift: float
    width: float
    heart: tuple[float, float]
    domes: tuple[float, float]
    bones: float
    texture: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """What findings are painted on: coordinates and organs on one pixel grid.

    Attributes
    ----------
    u, v
        Coordinates of the pixel centres in the patient's own frame.
    lungs
        Share of lung, 0 to 1, of the right and the left one.
    heart
        Signed size: below 1 inside the heart's ellipse.
    """

    u: Picture
    v: Picture
    lungs: tuple[Picture, Picture]
    heart: Picture


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw a patient."""
    dome = rng.uniform(0.74, 0.80)
    half_width = rng.uniform(0.22, 0.26)
    return Anatomy(
        scale=rng.uniform(0.94, 1.06),
        shift=rng.normal(0, 0.02),
        width=rng.uniform(0.86, 0.98),
        heart=(half_width, half_width * rng.uniform(0.66, 0.74)),
        domes=(dome, dome + rng.uniform(0.01, 0.035)),
        bones=rng.uniform(0.10, 0.18),
        texture=int(rng.integers(2**31)),
    )


def canvas(anatomy: Anatomy, *, side: int) -> Canvas:
    """Lay the organs out on a square of ``side`` pixels."""
    line = (np.arange(side, dtype=np.float32) + 0.5) / side
    v, u = np.meshgrid(line, 2 * line - 1, indexing="ij")
    u = (u - np.float32(anatomy.shift)) / np.float32(anatomy.scale)
    v = (v - np.float32(0.5)) / np.float32(anatomy.scale) + np.float32(0.5)
    lungs = (_lung(u, v, -1.0, anatomy.domes[0]), _lung(u, v, 1.0, anatomy.domes[1]))
    width, height = anatomy.heart
    heart = ((u - 0.10) / width) ** 2 + ((v - anatomy.domes[1] + height * 0.72) / height) ** 2
    return Canvas(u=u, v=v, lungs=lungs, heart=heart)


def chest(anatomy: Anatomy, on: Canvas) -> Picture:
    """Attenuation of a chest without findings."""
    u, v = on.u, on.v
    body = _body(anatomy, u, v)
    lungs = on.lungs[0] + on.lungs[1]
    picture = body * (1 - LUNG_LOSS * lungs)
    picture += 0.30 * _soft(1 - on.heart, 0.10) * lungs
    picture += 0.22 * np.exp(-((u / 0.075) ** 2)) * body  # spine and sternum
    picture += 0.10 * np.exp(-(((u - 0.12) / 0.07) ** 2) - ((v - 0.30) / 0.06) ** 2)  # aortic knob
    picture += _vessels(anatomy, u, v) * lungs
    picture += anatomy.bones * _bones(u, v) * body
    return picture.astype(np.float32)


def blurred_noise(shape: tuple[int, ...], width: float, rng: np.random.Generator) -> Picture:
    """Smooth noise of unit variance whose grains are ``width`` pixels wide."""
    step = max(1, int(width / 2))
    small = rng.standard_normal([-(-extent // step) + 4 for extent in shape], dtype=np.float32)
    smooth = ndimage.gaussian_filter(small, width / step)
    large = np.asarray(ndimage.zoom(smooth, step, order=1))[: shape[0], : shape[1]]
    return (large / max(float(large.std()), 1e-6)).astype(np.float32)


def _body(anatomy: Anatomy, u: Picture, v: Picture) -> Picture:
    """Trunk with shoulders and neck, thicker towards the middle."""
    shoulders = anatomy.width * np.clip(0.16 + 4.2 * np.maximum(v - 0.02, 0), 0, 1) ** 0.5
    inside = _soft(1 - np.abs(u) / np.maximum(shoulders, 0.05), 0.06)
    thickness = np.sqrt(np.clip(1 - (u / 1.25) ** 2, 0, 1))
    return inside * (0.45 + 0.4 * thickness + 0.1 * v)


def _lung(u: Picture, v: Picture, side: float, dome: float) -> Picture:
    """Share of lung: an upright oval whose base rests on the diaphragm."""
    across = (side * u - 0.42) / 0.31
    along = (v - 0.52) / 0.42
    oval = _soft(1 - (np.abs(across) ** 2.4 + np.abs(along) ** 2.4), 0.10)
    floor = dome + 0.34 * (side * u - 0.34) ** 2
    return oval * _soft((floor - v) / 0.02, 0.5)


def _vessels(anatomy: Anatomy, u: Picture, v: Picture) -> Picture:
    """Branches that thin out from the hila."""
    noise = blurred_noise(u.shape, u.shape[0] / 110, np.random.default_rng(anatomy.texture))
    reach = np.exp(-(((np.abs(u) - 0.18) / 0.22) ** 2) - ((v - 0.50) / 0.22) ** 2)
    hila = np.exp(-(((np.abs(u) - 0.18) / 0.06) ** 2) - ((v - 0.46) / 0.07) ** 2)
    return (0.02 + 0.07 * reach) * np.maximum(noise, 0) + 0.14 * hila


def _bones(u: Picture, v: Picture) -> Picture:
    """Ribs behind, fainter ribs in front, clavicles; never more than one thickness of bone."""
    bone = np.zeros_like(u)
    aside = np.abs(u)
    cage = np.sqrt(np.clip(1 - (aside / 0.80) ** 2, 0, 1))
    for rib in range(RIB_PAIRS):
        top = 0.12 + 0.078 * rib
        behind = top - 0.05 * cage + 0.10 * aside**2
        bone = np.maximum(bone, _band(v - behind, 0.011) * (aside > 0.06))
        front = top + 0.02 + 0.16 * (0.80 - aside)
        bone = np.maximum(bone, 0.55 * _band(v - front, 0.012) * (aside > 0.30))
    clavicle = 0.17 - 0.10 * aside
    bone = np.maximum(bone, 1.3 * _band(v - clavicle, 0.014) * (aside < 0.62))
    return bone * _soft((0.82 - aside) / 0.04, 0.5)


def _band(distance: Picture, half_width: float) -> Picture:
    return np.sqrt(np.clip(1 - (distance / half_width) ** 2, 0, 1))


def _soft(inside: Picture, softness: float) -> Picture:
    """Step from 0 to 1 around zero, linear over ``softness`` either way."""
    return np.clip(inside / (2 * softness) + 0.5, 0, 1)


Painter = Callable[[Canvas, int, np.random.Generator], tuple[Picture, Picture]]
"""Canvas, side of the body (0 right, 1 left) and random numbers to added attenuation and extent."""


def _patch(
    on: Canvas,
    side: int,
    rng: np.random.Generator,
    *,
    radii: tuple[float, float],
    tallness: float = 1.0,
    place_v: tuple[float, float] = (0.32, 0.66),
) -> Picture:
    """Distance from a random place in a lung, 1 on the rim of an oval."""
    radius = rng.uniform(*radii)
    sign = 2 * side - 1
    centre_u, centre_v = sign * rng.uniform(0.34, 0.50), rng.uniform(*place_v)
    along = (on.v - centre_v) / (radius * tallness)
    return np.sqrt(((on.u - centre_u) / (2 * radius)) ** 2 + along**2)


def _mass(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    inside = _soft(1 - _patch(on, side, rng, radii=(0.045, 0.075)), 0.08) * on.lungs[side]
    return 0.38 * inside, inside


def _nodule(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    inside = _soft(1 - _patch(on, side, rng, radii=(0.016, 0.026)), 0.15) * on.lungs[side]
    return 0.34 * inside, inside


def _opacity(density: float, softness: float, grain: float, radii: tuple[float, float]) -> Painter:
    """Patch of filled air spaces: how dense, how blurred its rim, how uneven, how large."""

    def paint(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
        distance = _patch(on, side, rng, radii=radii, tallness=1.3)
        inside = _soft(1 - distance, softness) * on.lungs[side]
        noise = blurred_noise(on.u.shape, on.u.shape[0] / 60, rng)
        return density * inside * np.clip(1 + grain * noise, 0, 2), inside

    return paint


def _atelectasis(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    sign, height, slope = 2 * side - 1, rng.uniform(0.58, 0.68), rng.uniform(-0.25, 0.25)
    start, length = rng.uniform(0.26, 0.36), rng.uniform(0.18, 0.26)
    aside = sign * on.u
    middle = height + slope * (aside - start)
    reach = _soft((length / 2 - np.abs(aside - start - length / 2)) / length, 0.08)
    inside = reach * _soft((0.022 - np.abs(on.v - middle)) / 0.022, 0.5) * on.lungs[side]
    return 0.36 * inside, inside


def _effusion(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    level = rng.uniform(0.60, 0.70)
    aside = (2 * side - 1) * on.u
    meniscus = level - 0.35 * np.clip(aside - 0.45, 0, 1) ** 1.5
    inside = _soft((on.v - meniscus) / 0.02, 0.5) * on.lungs[side]
    return LUNG_LOSS * 0.72 * inside, inside


def _pneumothorax(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    """Air without vessels around a lung that has come off the wall, along a fine line."""
    edge = rng.uniform(0.70, 0.82)
    across = ((2 * side - 1) * on.u - 0.40) / 0.31
    distance = np.sqrt(np.maximum(across, -0.2) ** 2 + ((on.v - 0.56) / 0.42) ** 2)
    outside = _soft((distance - edge) / 0.02, 0.5) * on.lungs[side] * (on.v < 0.60) * (across > 0)
    line = _band(distance - edge, 0.018) * on.lungs[side] * (on.v < 0.60) * (across > 0)
    return 0.14 * line - 0.16 * outside, np.maximum(outside, line)


def _edema(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    haze = np.exp(-(((np.abs(on.u) - 0.22) / 0.20) ** 2) - ((on.v - 0.52) / 0.18) ** 2)
    noise = blurred_noise(on.u.shape, on.u.shape[0] / 90, rng)
    inside = haze * (on.lungs[0] + on.lungs[1])
    return rng.uniform(0.22, 0.30) * inside * np.clip(1 + 0.3 * noise, 0, 2), inside


def _emphysema(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    inside = on.lungs[0] + on.lungs[1]
    return -rng.uniform(0.10, 0.14) * inside, inside


def _fibrosis(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    net = np.abs(blurred_noise(on.u.shape, on.u.shape[0] / 150, rng))
    inside = (on.lungs[0] + on.lungs[1]) * _soft((on.v - 0.55) / 0.1, 0.5)
    return 0.15 * inside * np.clip(1 - 1.6 * net, 0, 1), inside


def _pleural_thickening(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    aside = (2 * side - 1) * on.u
    wall = 0.42 + 0.31 * np.clip(1 - np.abs((on.v - 0.52) / 0.42) ** 2.4, 0, 1) ** (1 / 2.4)
    rim = _soft((aside - wall + rng.uniform(0.05, 0.08)) / 0.012, 0.5) * on.lungs[side]
    rim *= on.v > 0.3
    return 0.42 * rim, rim


def _hernia(on: Canvas, side: int, rng: np.random.Generator) -> tuple[Picture, Picture]:
    """Stomach behind the heart: a round shadow with gas above a level."""
    radius, height = rng.uniform(0.06, 0.08), rng.uniform(0.64, 0.68)
    distance = np.sqrt(((on.u - 0.06) / (2 * radius)) ** 2 + ((on.v - height) / radius) ** 2)
    inside = _soft(1 - distance, 0.06)
    gas = _soft(0.8 - distance, 0.06) * (on.v < height)
    return 0.12 * inside - 0.40 * gas, inside


FINDINGS: Mapping[str, Painter] = {
    "Atelectasis": _atelectasis,
    "Effusion": _effusion,
    "Infiltration": _opacity(0.20, 0.45, 0.5, (0.08, 0.12)),
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _opacity(0.32, 0.30, 0.35, (0.09, 0.13)),
    "Pneumothorax": _pneumothorax,
    "Consolidation": _opacity(0.42, 0.12, 0.1, (0.07, 0.11)),
    "Edema": _edema,
    "Emphysema": _emphysema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
"""Finding to what it adds; Cardiomegaly is not added but is a larger heart."""
