"""The brain's own symmetry plane, from its pictures alone.

The plane is the one across which the brain resembles its mirror image most. A true reflection is
needed: the midpoints of a tilted ellipse's chords do not lie on its axis, so pairing voxels within
a row finds only a fraction of the tilt. Residuals are weighted after Geman and McClure: what one
hemisphere has and the other has not (a tumour, oedema, a cavity) stops counting instead of pulling.

Axes: millimetres along x (to the patient's left), y (to posterior) and z (to the head).

References
----------
Tuzikov, Colliot and Bloch, "Evaluation of the symmetry plane in 3D MR brain images", Pattern
Recognition Letters 24, 2003. Prima, Ourselin and Ayache, "Computation of the mid-sagittal plane in
3-D brain images", IEEE Transactions on Medical Imaging 21, 2002 (robust weights).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped
from scipy.ndimage import gaussian_filter

from preprocessing.errors import GeometryError

SMALLEST_BRAIN_VOXELS = 200
"""Of the coarse grid; a whole brain has some 20,000 of 4 mm."""
LARGEST_SLOPE = 0.6
"""Tangent of 31 degrees: no head is positioned so."""
SMALLEST_SYMMETRY = 0.7
"""Overlap of a brain with its mirror image; a whole brain reaches 0.95."""
TILT_PRIOR = 0.3
"""Standard deviation of the tangents before a picture is seen; it matters for round heads only."""
LEVELS_MM = (8.0, 4.0)
SCALE = 0.5
"""Residual, in robust standard deviations of the intensity, beyond which a voxel counts less."""
STARTS = (-0.24, -0.12, 0.0, 0.12, 0.24)
STEPS = 12
CONVERGED_MM = 0.03
PROBES = (0.5, 0.01, 0.01)
"""Steps of the numerical derivative: mm, and tangents."""
COARSE_SAMPLES, FINE_SAMPLES = 2500, 5000
MARGIN = 6
"""Coarse voxels added at every edge."""
PICTURES_WEIGHT = 0.25
"""Of all pictures together, beside the silhouette: a tumour changes every picture, hardly the
silhouette."""
STRAY_MM = 4.0
"""Standard deviation, at the brain's edge, of the plane about that of the silhouette alone."""
TINY = 1e-12
CLIP = 3.0
"""Standard deviations beyond which an intensity is no tissue's."""
PRIOR_WEIGHT = 1e-3
ARM_MM = 60.0
"""Distance at which a tangent is compared with a shift."""
PLACES, SLOPE_PLACES = 3, 5
"""Decimals kept: the plane must not depend on the last bit of a sum."""

Theta = Float64[np.ndarray, "3"]


class CutLine(NamedTuple):
    """Where a slice is cut: a pixel is the patient's right if column < offset + slope * row."""

    offset: float
    slope: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Midplane:
    """Plane ``x = offset + per_row * y + per_slice * z`` in voxel indices.

    Attributes
    ----------
    symmetry
        Share of the brain that its mirror image covers, 0 to 1.
    """

    offset: float
    per_row: float
    per_slice: float
    symmetry: float

    def line(self, z: int) -> CutLine:
        """Cut slice ``z``."""
        return CutLine(self.offset + self.per_slice * z, self.per_row)


class _Brain(NamedTuple):
    """A coarse brain.

    ``features[z, y, x]`` lie at ``origin + step * (x, y, z)`` millimetres from the brain's centre.
    """

    features: Float[np.ndarray, "z y x feature"]
    origin: Float64[np.ndarray, "3"]
    step: Float64[np.ndarray, "3"]


class _Sample(NamedTuple):
    """Voxels to compare with their mirror images: places (x, y, z) and features."""

    points: Float64[np.ndarray, "point 3"]
    values: Float64[np.ndarray, "point feature"]


class _Prior(NamedTuple):
    """What is expected of the plane before it is fitted, and how stiffly."""

    middle: Theta
    stiffness: Float64[np.ndarray, "3"]


class _Task(NamedTuple):
    """A coarse brain to be fitted at sampled voxels."""

    level: _Brain
    sample: _Sample
    prior: _Prior

    @property
    def shares(self) -> Float64[np.ndarray, " f"]:
        """How much each feature counts: the silhouette once, the pictures together."""
        pictures = self.level.features.shape[-1] - 1
        return np.array([1.0, *[PICTURES_WEIGHT / max(pictures, 1)] * pictures])


def estimate(
    pictures: Sequence[Shaped[np.ndarray, "z y x"]],
    brain: Bool[np.ndarray, "z y x"],
    *,
    spacing_mm: tuple[float, float, float],
) -> Midplane:
    """Find the symmetry plane of a brain.

    Parameters
    ----------
    pictures
        Modalities on one grid; each counts as much as any other.
    brain
        Where there is brain.
    spacing_mm
        Along z, y, x.

    Raises
    ------
    GeometryError
        ``NO_MIDLINE``: there is no brain, or none that resembles its mirror image.
    """
    box = _bounding_box(brain)
    corner = np.array([edge.start for edge in reversed(box)]) * spacing_mm[::-1]
    # Blurring follows, so some rows and slices stand for all; across the plane none is left out.
    thin = [max(int(LEVELS_MM[-1] / 2 / step), 1) for step in spacing_mm[:2]]
    box = tuple(
        slice(edge.start, edge.stop, step) for edge, step in zip(box, (*thin, 1), strict=True)
    )
    spacing = np.array([spacing_mm[2], thin[1] * spacing_mm[1], thin[0] * spacing_mm[0]])
    coarse, centre = _coarse([picture[box] for picture in pictures], brain[box], spacing)
    theta = _fitted(coarse)
    if not np.isfinite(theta).all() or np.abs(theta[1:]).max() > LARGEST_SLOPE:
        raise _no_midline("it resembles its mirror image in no upright plane")
    symmetry = _overlap(theta, coarse)
    if symmetry < SMALLEST_SYMMETRY:
        raise _no_midline(f"its mirror image covers only {symmetry:.0%} of it")
    return _in_voxels(theta, centre + corner, np.array(spacing_mm[::-1]), symmetry)


def _fitted(coarse: _Brain) -> Theta:
    """Fit the silhouette alone, coarse to fine, then the pictures near what it says."""
    silhouette = coarse._replace(features=coarse.features[..., :1])
    upright = _Prior(np.zeros(3), np.array([0.0, TILT_PRIOR**-2, TILT_PRIOR**-2]))
    level = _smoothed(silhouette, LEVELS_MM[0])
    task = _Task(level, _sample(level, COARSE_SAMPLES), upright)
    theta = _refined(_best_start(task), task)
    level = _smoothed(coarse, LEVELS_MM[1])
    sample = _sample(level, FINE_SAMPLES)
    outline = level._replace(features=level.features[..., :1])
    theta = _refined(theta, _Task(outline, sample._replace(values=sample.values[:, :1]), upright))
    near = _Prior(theta, np.array([1.0, ARM_MM**2, ARM_MM**2]) / STRAY_MM**2)
    return _refined(theta, _Task(level, sample, near))


def _bounding_box(brain: Bool[np.ndarray, "z y x"]) -> tuple[slice, slice, slice]:
    found = [np.flatnonzero(np.any(brain, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not len(found[0]):
        raise _no_midline("every voxel is zero")
    z, y, x = (slice(int(seen[0]), int(seen[-1]) + 1) for seen in found)
    return z, y, x


def _coarse(
    pictures: Sequence[Shaped[np.ndarray, "z y x"]],
    brain: Bool[np.ndarray, "z y x"],
    spacing: Float64[np.ndarray, "3"],
) -> tuple[_Brain, Float64[np.ndarray, "3"]]:
    """Average blocks; return them and the brain's centre in mm from voxel 0, both in x, y, z.

    The first feature is the share of brain in a block, the others are intensities in robust
    standard deviations, 0 outside.
    """
    blocks = np.maximum(np.rint(LEVELS_MM[-1] / spacing), 1).astype(int)
    share = _block_means(brain, blocks)
    solid = share > 0.5
    if solid.sum() < SMALLEST_BRAIN_VOXELS:
        raise _no_midline("there is too little of it")
    features = [share]
    for picture in pictures:
        mean = _block_means(picture, blocks) / np.maximum(share, 0.01)
        middle = np.median(mean[solid])
        spread = max(1.4826 * float(np.median(np.abs(mean[solid] - middle))), 1e-6)
        features.append(np.clip((mean - middle) / spread, -CLIP, CLIP) * share)
    first = (blocks - 1) / 2 * spacing
    step = blocks * spacing
    z, y, x = np.nonzero(solid)
    centre = np.stack([x, y, z], axis=1).mean(axis=0) * step + first
    stacked = np.stack(features, axis=-1)
    return _Brain(features=stacked, origin=first - centre, step=step), centre


def _block_means(
    picture: Shaped[np.ndarray, "z y x"], blocks: Int[np.ndarray, "3"]
) -> Float64[np.ndarray, "a b c"]:
    """Average blocks of so many voxels along x, y, z; those that stick out count zeros."""
    sums = picture
    for axis, block in enumerate(reversed(blocks.tolist())):
        sums = _added(sums, axis, block)
    return sums.astype(np.float64) / float(np.prod(blocks))


def _added(
    values: Shaped[np.ndarray, "z y x"], axis: int, block: int
) -> Float32[np.ndarray, "a b c"]:
    """Add blocks along an axis; several times faster than ``reduceat`` along the last one."""
    along = [slice(None)] * 3
    shape = list(values.shape)
    shape[axis] = -(-shape[axis] // block)
    sums = np.zeros(shape, dtype=np.float32)
    for first in range(min(block, values.shape[axis])):
        along[axis] = slice(first, None, block)
        part = values[tuple(along)]
        along[axis] = slice(0, part.shape[axis])
        sums[tuple(along)] += part
    return sums


def _smoothed(brain: _Brain, size: float) -> _Brain:
    """Blur to a size, with room at the edges for what is blurred outwards.

    Linear interpolation blurs too, by an amount that depends on the tilt. Blurred by a voxel or
    more beforehand, features no longer show it; else planes along the grid would be preferred.
    """
    z, y, x = (size / brain.step[::-1]).tolist()
    padded = np.pad(brain.features, [(MARGIN, MARGIN)] * 3 + [(0, 0)])
    features = gaussian_filter(padded, (z, y, x, 0.0), mode="constant", truncate=3.0)
    return _Brain(features, brain.origin - MARGIN * brain.step, brain.step)


def _sample(level: _Brain, count: int) -> _Sample:
    """Choose voxels that hold brain, a regular share of them where they are many."""
    z, y, x = np.nonzero(level.features[..., 0] > 0.05)
    stride = max(1, round(len(z) / count))
    keep = (x + 3 * y + 5 * z) % stride == 0
    z, y, x = z[keep], y[keep], x[keep]
    points = np.stack([x, y, z], axis=1) * level.step + level.origin
    return _Sample(points=points, values=level.features[z, y, x])


def _mirrored(
    points: Float64[np.ndarray, "point 3"], theta: Theta
) -> Float64[np.ndarray, "point 3"]:
    """Reflect places across the plane ``x = theta[0] + theta[1] * y + theta[2] * z``."""
    normal = np.array([1.0, -theta[1], -theta[2]])
    distance = (points @ normal - theta[0]) / (normal @ normal)
    return points - 2 * distance[:, None] * normal


def _read(level: _Brain, points: Float64[np.ndarray, "point 3"]) -> Float64[np.ndarray, "point f"]:
    """Interpolate features linearly; outside of the grid there is nothing."""
    depth, height, width, count = level.features.shape
    size = np.array([width, height, depth])
    place = (points - level.origin) / level.step
    inside = np.all((place >= 0) & (place < size - 1), axis=1)
    place = np.where(inside[:, None], place, 0.0)
    cell = place.astype(np.int64)
    x, y, z = (place - cell).T
    flat = level.features.reshape(-1, count)
    first = (cell[:, 2] * height + cell[:, 1]) * width + cell[:, 0]
    corners, weights = [], []
    for up, along_z in ((0, 1 - z), (1, z)):
        for back, along_y in ((0, 1 - y), (1, y)):
            for left, along_x in ((0, 1 - x), (1, x)):
                weights.append(along_z * along_y * along_x * inside)
                corners.append(first + (up * height + back) * width + left)
    return np.einsum("k p, k p f -> p f", np.array(weights), flat.take(np.array(corners), axis=0))


def _residuals(theta: Theta, task: _Task) -> Float64[np.ndarray, "point f"]:
    return _read(task.level, _mirrored(task.sample.points, theta)) - task.sample.values


def _best_start(task: _Task) -> Theta:
    """Try upright and tilted planes through the brain's centre."""
    starts = [np.array([0.0, b, c]) for b in STARTS for c in STARTS]
    costs = [_cost(theta, _residuals(theta, task), task) for theta in starts]
    return starts[int(np.argmin(costs))]


def _cost(theta: Theta, residuals: Float64[np.ndarray, "point f"], task: _Task) -> float:
    """Return the mean Geman-McClure penalty, and what is paid for straying from the prior."""
    square = (residuals / SCALE) ** 2
    paid = float(np.sum(task.prior.stiffness * (theta - task.prior.middle) ** 2))
    return float(np.mean(square / (1 + square), axis=0) @ task.shares) + PRIOR_WEIGHT * paid


def _refined(theta: Theta, task: _Task) -> Theta:
    """Descend by Gauss-Newton steps with weights renewed at each."""
    stiffness = PRIOR_WEIGHT * task.prior.stiffness
    residuals = _residuals(theta, task)
    cost = _cost(theta, residuals, task)
    for _ in range(STEPS):
        slopes = [
            (_residuals(theta + probe, task) - residuals) / probe.sum() for probe in np.diag(PROBES)
        ]
        weights = (1 + (residuals / SCALE) ** 2) ** -2 * (task.shares / SCALE**2 / len(residuals))
        weighted = [slope * weights for slope in slopes]
        normal = np.array([[float(np.vdot(a, b)) for b in slopes] for a in weighted])
        slope = np.array([float(np.vdot(a, residuals)) for a in weighted])
        pull = stiffness * (theta - task.prior.middle)
        change = -np.linalg.solve(normal + np.diag(stiffness + TINY), slope + pull)
        before, last = theta, cost
        for share in (1.0, 0.25, 0.0625):
            theta = before + share * change
            residuals = _residuals(theta, task)
            cost = _cost(theta, residuals, task)
            if cost < last:
                break
        else:
            return before
        if np.max(np.abs(theta - before) * [1.0, ARM_MM, ARM_MM]) < CONVERGED_MM:
            break
    return theta


def _overlap(theta: Theta, coarse: _Brain) -> float:
    z, y, x = np.nonzero(coarse.features[..., 0] > 0)
    points = np.stack([x, y, z], axis=1) * coarse.step + coarse.origin
    share = coarse.features[z, y, x, 0]
    mirrored = _read(coarse, _mirrored(points, theta))[:, 0]
    return float(np.minimum(share, mirrored).sum() / share.sum())


def _in_voxels(
    theta: Theta,
    centre: Float64[np.ndarray, "3"],
    spacing: Float64[np.ndarray, "3"],
    symmetry: float,
) -> Midplane:
    per_row, per_slice = theta[1:] * spacing[1:] / spacing[0]
    offset = centre[0] + theta[0] - theta[1] * centre[1] - theta[2] * centre[2]
    return Midplane(
        offset=round(float(offset / spacing[0]), PLACES),
        per_row=round(float(per_row), SLOPE_PLACES),
        per_slice=round(float(per_slice), SLOPE_PLACES),
        symmetry=round(symmetry, PLACES),
    )


def _no_midline(reason: str) -> GeometryError:
    return GeometryError(
        "NO_MIDLINE",
        f"the brain has no symmetry plane ({reason}): left and right cannot be told apart",
    )
