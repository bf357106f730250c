"""Maximum intensity projection: what a parallel ray through the patient meets at its brightest.

Axes: z to the head, y to posterior, x to the patient's left; a ray is a picture's (row, column) and
its samples run away from the viewer. Every slice of the volume is cut by its own picture row, so
rays never leave their slice and the volume is worked through in thin slabs of slices: no resampled
copy of it ever exists.

At azimuth a the viewer stands at (sin a, -cos a, 0), looks along (-sin a, cos a, 0), and sees
columns run along (cos a, sin a, 0). Rays start on both sides of the volume's centre.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches

import numpy as np
from jaxtyping import Float32, Int32, Int64

from preprocessing.errors import GeometryError, ProjectionError
from preprocessing.mapper_process import mapper_available, render_in_child
from preprocessing.rays import (
    OUTSIDE,
    RayGrid,
    brightest_neighbour,
    ray_grid,
    resliced_slabs,
)
from preprocessing.records import Projection, Volume

ALIGNMENT_TOLERANCE = 0.02
"""Largest sine between a volume axis and its patient axis (1.1 degrees): headers round cosines."""

EXACT_SLAB_SLICES = 4
"""Slices per slab at right angles: what is compared stays in the processor's cache."""


def project(
    volume: Volume, *, azimuth_deg: float | int = 0.0, projector: str = "vtk"
) -> Projection:
    """Project the maximum along parallel rays that cross the patient's long axis at right angles.

    The picture has one row per slice, the head first, and as many columns as cover the turned box.
    A pixel whose ray misses the volume holds 0 and depth -1. Where a ray meets its maximum more
    than once, the depth is the one nearest the viewer.

    Parameters
    ----------
    volume
        Axes along the patient's own (LPS).
    azimuth_deg
        Where the viewer stands: 0 in front of the patient, positive towards the patient's left.
    projector
        A name in ``PROJECTORS``. ``vtk`` keeps float values and needs no graphics library;
        ``vtk-mapper`` draws with VTK's volume mapper.

    Raises
    ------
    ProjectionError
        If the projector is unknown or cannot run here, or the azimuth is not a finite number.
    GeometryError
        If the volume is empty, not along the patient's axes, or holds NaN or infinite values.

    References
    ----------
    Wallis, Miller, Lerner, Kleerup: Three-dimensional display in nuclear medicine.
    IEEE Trans. Med. Imaging 8(4), 1989.
    """
    if projector not in PROJECTORS:
        close = get_close_matches(projector, PROJECTORS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(PROJECTORS)}"
        raise ProjectionError("UNKNOWN_PROJECTOR", f"unknown projector '{projector}'; {hint}")
    if not math.isfinite(azimuth_deg):
        raise ProjectionError(
            "BAD_AZIMUTH", f"azimuth is {azimuth_deg} degrees, no view is there; give a number"
        )
    _check_volume(volume)
    return PROJECTORS[projector](volume, float(azimuth_deg))


def back_project(
    values: Float32[np.ndarray, "row column"],
    projection_depth: Int32[np.ndarray, "_row _column"],
    shape: tuple[int, int, int],
) -> Float32[np.ndarray, "z y x"]:
    """Put each picture value at the voxel that the picture's pixel came from.

    Where several pixels share a voxel, the value of largest magnitude stays (the positive one of a
    tie): a map's peak keeps its height, and a signed map its strongest statement. Voxels that no
    pixel came from hold 0, and pixels with depth -1 go nowhere.

    Raises
    ------
    ProjectionError
        If picture and depth differ in shape, a value is not finite, or a depth points outside.
    """
    if values.shape != projection_depth.shape:
        raise ProjectionError(
            "DEPTH_MISMATCH",
            f"the picture is {values.shape}, its depth {projection_depth.shape}: "
            "pixels have no voxel; resample both to one grid",
        )
    if not np.isfinite(values).all():
        raise ProjectionError("NOT_FINITE", "the picture holds NaN or infinite values")
    low, high = int(projection_depth.min(initial=-1)), int(projection_depth.max(initial=-1))
    if low < -1 or high >= math.prod(shape):
        raise ProjectionError(
            "DEPTH_MISMATCH",
            f"depth runs from {low} to {high}, a volume of {shape} has voxels 0 to "
            f"{math.prod(shape) - 1}: this depth belongs to another volume",
        )
    seen = projection_depth >= 0
    depths, shown = projection_depth[seen], values[seen]
    order = np.lexsort((shown, np.abs(shown)))
    voxels = np.zeros(shape, dtype=np.float32)
    voxels.reshape(-1)[depths[order]] = shown[order]  # of repeated indices the last one stays
    return voxels


def project_exactly(volume: Volume, azimuth_deg: float) -> Projection:
    """Project at a multiple of 90 degrees by reading voxels along the axes, without a sampler.

    VTK's reslice gives the same pixels and depths there, and takes longer.
    """
    voxels = volume.voxels
    nz, ny, nx = voxels.shape
    grid = ray_grid(voxels.shape, volume.spacing_mm, azimuth_deg)
    view = int(azimuth_deg % 360)
    axis = 1 if view in (0, 180) else 2
    pixels = np.empty((nz, grid.columns), dtype=np.float32)
    place = np.empty((nz, grid.columns), dtype=np.int64)
    for start in range(0, nz, EXACT_SLAB_SLICES):
        rows = slice(start, start + EXACT_SLAB_SLICES)
        pixels[rows], place[rows] = _nearest_maximum(
            voxels[rows], axis=axis, viewer_at_end=view in (90, 180)
        )
    z, across = np.arange(nz)[:, None], np.arange(grid.columns)
    y, x = (place, across) if axis == 1 else (across, place)
    depth = (z * ny + y) * nx + x
    if view in (180, 270):
        pixels, depth = pixels[:, ::-1], depth[:, ::-1]
    return _projection(pixels, depth, volume, grid, azimuth_deg)


def project_resliced(volume: Volume, azimuth_deg: float) -> Projection:
    """Project at any angle; VTK's reslice samples the rays (``preprocessing.rays``)."""
    voxels = volume.voxels
    grid = ray_grid(voxels.shape, volume.spacing_mm, azimuth_deg)
    pixels = np.empty((len(voxels), grid.columns), dtype=np.float32)
    sample = np.empty(pixels.shape, dtype=np.int64)
    for rows, rays in resliced_slabs(volume, grid):
        np.argmax(rays, axis=2, out=sample[rows])
        pixels[rows] = np.take_along_axis(rays, sample[rows][..., None], axis=2)[..., 0]
    depth = brightest_neighbour(volume, grid, sample)
    missed = pixels == np.float32(OUTSIDE)
    pixels[missed], depth[missed] = 0.0, -1
    return _projection(pixels, depth, volume, grid, azimuth_deg)


def _project_vtk(volume: Volume, azimuth_deg: float) -> Projection:
    exact = azimuth_deg % 90 == 0
    return (project_exactly if exact else project_resliced)(volume, azimuth_deg)


def _project_with_mapper(volume: Volume, azimuth_deg: float) -> Projection:
    available, reason = mapper_available()
    if not available:
        raise ProjectionError("MAPPER_UNAVAILABLE", reason)
    reference = _project_vtk(volume, azimuth_deg)  # the mapper tells no depth: same rays, sampled
    grid = ray_grid(volume.voxels.shape, volume.spacing_mm, azimuth_deg)
    drawn = render_in_child(volume.voxels, volume.spacing_mm, grid)[::-1]
    pixels = np.where(reference.depth < 0, np.float32(0), drawn)
    pixels.flags.writeable = False
    return replace(reference, pixels=pixels)


PROJECTORS: Mapping[str, Callable[[Volume, float], Projection]] = {
    "vtk": _project_vtk,
    "vtk-mapper": _project_with_mapper,
}
"""How to project, by name; takes a checked volume and a finite azimuth in degrees."""


def _check_volume(volume: Volume) -> None:
    shape = volume.voxels.shape
    if volume.voxels.size == 0:
        raise GeometryError("EMPTY_VOLUME", f"the volume is {shape}: nothing to project")
    if volume.voxels.size > np.iinfo(np.int32).max:
        raise GeometryError(
            "VOLUME_TOO_LARGE",
            f"the volume is {shape}, more voxels than a 32-bit depth can name; crop it",
        )
    axes = volume.affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(volume.affine).all() and (lengths > 0).all()):
        raise GeometryError(
            "BAD_AFFINE", f"voxel spacing x, y, z is {lengths.tolist()} mm: no space to look into"
        )
    if np.abs(axes / lengths - np.eye(3)).max() > ALIGNMENT_TOLERANCE:
        tilt = math.degrees(math.acos(np.clip(np.diag(axes) / lengths, -1, 1).min()))
        raise GeometryError(
            "NOT_ORIENTED",
            f"a volume axis is {tilt:.1f} degrees off the patient's: an azimuth would mean "
            "nothing; resample the volume to the patient's axes first",
        )


def _nearest_maximum(
    slab: Float32[np.ndarray, "z y x"], *, axis: int, viewer_at_end: bool
) -> tuple[Float32[np.ndarray, "z column"], Int64[np.ndarray, "z column"]]:
    """Return the maximum along an axis and, of the places that hold it, the one nearest the viewer.

    Comparing with the maximum and ranking the hits takes half the time of ``argmax``, which first
    copies what does not run along memory.
    """
    count = slab.shape[axis]
    rank = np.arange(1, count + 1, dtype=np.min_scalar_type(count))
    rank = rank if viewer_at_end else rank[::-1]
    peak = slab.max(axis=axis, keepdims=True)
    hits = (slab == peak).view(np.uint8)
    nearest = (hits * (rank[:, None] if axis == 1 else rank)).max(axis=axis).astype(np.int64)
    nearest = np.maximum(nearest, 1)  # NaN equals nothing: any place will do
    return peak.squeeze(axis), nearest - 1 if viewer_at_end else count - nearest


def _projection(
    pixels: np.ndarray, depth: np.ndarray, volume: Volume, grid: RayGrid, azimuth_deg: float
) -> Projection:
    """Turn rows head up, refuse what is not finite, freeze."""
    if not np.isfinite(pixels).all():
        raise GeometryError(
            "NOT_FINITE",
            "the volume holds NaN or infinite values: a maximum means nothing; "
            "mend them before projecting",
        )
    upright = np.ascontiguousarray(pixels[::-1], dtype=np.float32)
    depth_upright = np.ascontiguousarray(depth[::-1], dtype=np.int32)
    upright.flags.writeable = depth_upright.flags.writeable = False
    return Projection(
        pixels=upright,
        depth=depth_upright,
        spacing_mm=(volume.spacing_mm[0], grid.column_spacing_mm),
        azimuth_deg=azimuth_deg,
    )
