"""Parallel rays through a volume, sampled slice by slice with VTK's reslice.

Axes: z to the head, y to posterior, x to the patient's left; a ray is a (z, column), and its
samples run away from the viewer. Seen from azimuth a, columns run along (cos a, sin a) in x and y
and rays along (-sin a, cos a), on both sides of the volume's centre.

A ray is sampled where it crosses the planes of voxel centres that it meets most often, by linear
interpolation along the plane. So no sample lies more than a voxel from the next, none is
interpolated twice, and at right angles samples are voxels.

References
----------
P. M. Joseph: An improved algorithm for reprojecting rays through pixel images.
IEEE Trans. Med. Imaging 1(3), 1982.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonDataModel import vtkImageData
from vtkmodules.vtkCommonMath import vtkMatrix4x4
from vtkmodules.vtkImagingCore import vtkImageReslice

from preprocessing.records import Volume

Rays = Float32[np.ndarray, "z column sample"]

GRID_ROUNDING = 1e-6
"""Share of a voxel below which a position counts as on a voxel's centre or a box as covered."""

OUTSIDE = float(np.finfo(np.float32).min)
"""Value of samples outside the volume: beats no voxel, however negative."""

SLAB_SAMPLES = 2**20
"""Samples held at once (4 MiB): enough to keep VTK's threads busy, few enough for a cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayGrid:
    """Where the rays of one slice are sampled, in voxels.

    Sample ``k`` of column ``c`` lies at ``first + c * per_column + k * per_sample``; each is a pair
    (x, y) of voxel positions, integers at voxel centres.
    """

    cosine: float
    sine: float
    columns: int
    column_spacing_mm: float
    samples: int
    first: tuple[float, float]
    per_column: tuple[float, float]
    per_sample: tuple[float, float]


def ray_grid(
    shape: tuple[int, ...], spacing_mm: tuple[float, float, float], azimuth_deg: float
) -> RayGrid:
    """Lay out rays that cover a box of voxels seen from ``azimuth_deg``.

    Columns lie as far apart as the picture of a step of one voxel along x and one along y, added
    squared: at right angles there is one column per voxel. ``shape`` and ``spacing_mm`` are in the
    order z, y, x.
    """
    (_, ny, nx), (_, dy, dx) = shape, spacing_mm
    angle = math.radians(azimuth_deg)
    cosine, sine = math.cos(angle), math.sin(angle)
    column_spacing = math.hypot(dx * cosine, dy * sine)
    width = abs(nx * dx * cosine) + abs(ny * dy * sine)
    columns = math.ceil(width / column_spacing - GRID_ROUNDING)
    # the tolerance lets opposite views agree on a diagonal, whatever their cosines' last digits
    if dx * abs(cosine) >= dy * abs(sine) * (1 - GRID_ROUNDING):
        samples = ny
        per_column = (column_spacing / cosine / dx, 0.0)
        per_sample = (-math.copysign(dy, cosine) * sine / cosine / dx, math.copysign(1.0, cosine))
    else:
        samples = nx
        per_column = (0.0, column_spacing / sine / dy)
        per_sample = (-math.copysign(1.0, sine), math.copysign(dx, sine) * cosine / sine / dy)
    first_x, first_y = (
        (count - 1) / 2 - (columns - 1) / 2 * column_step - (samples - 1) / 2 * sample_step
        for count, column_step, sample_step in zip((nx, ny), per_column, per_sample, strict=True)
    )
    return RayGrid(
        cosine=cosine,
        sine=sine,
        columns=columns,
        column_spacing_mm=column_spacing,
        samples=samples,
        first=(first_x, first_y),
        per_column=per_column,
        per_sample=per_sample,
    )


def resliced_slabs(volume: Volume, grid: RayGrid) -> Iterator[tuple[slice, Rays]]:
    """Sample the rays of a few slices at a time; samples outside the volume hold ``OUTSIDE``."""
    slices = max(1, SLAB_SAMPLES // (grid.columns * grid.samples))
    for start in range(0, len(volume.voxels), slices):
        rows = slice(start, start + slices)
        yield rows, _reslice(np.ascontiguousarray(volume.voxels[rows]), grid)


def brightest_neighbour(
    volume: Volume, grid: RayGrid, sample: Int64[np.ndarray, "z column"]
) -> Int64[np.ndarray, "z column"]:
    """Return the flat index of the brighter of the two voxels that each sample lies between.

    Of equally bright ones the nearer.
    """
    _, ny, nx = volume.voxels.shape
    column = np.arange(grid.columns)
    x, y = (
        _on_grid(first + column * per_column + sample * per_sample, count)
        for first, per_column, per_sample, count in zip(
            grid.first, grid.per_column, grid.per_sample, (nx, ny), strict=True
        )
    )
    slice_start = np.arange(len(sample))[:, None] * ny
    voxels = volume.voxels.reshape(-1)
    best = (slice_start + np.rint(y).astype(np.int64)) * nx + np.rint(x).astype(np.int64)
    for to_voxel in (np.floor, np.ceil):
        other = (slice_start + to_voxel(y).astype(np.int64)) * nx + to_voxel(x).astype(np.int64)
        np.copyto(best, other, where=voxels[other] > voxels[best])
    return best


def _reslice(slab: Float32[np.ndarray, "z y x"], grid: RayGrid) -> Rays:
    """Sample the rays of a slab; its slices keep their index as third coordinate."""
    nz, ny, nx = slab.shape
    image = vtkImageData()
    image.SetDimensions(nx, ny, nz)
    image.GetPointData().SetScalars(numpy_to_vtk(slab.reshape(-1)))
    sample_to_voxel = np.eye(4)
    sample_to_voxel[:2, 0] = grid.per_sample
    sample_to_voxel[:2, 1] = grid.per_column
    sample_to_voxel[:2, 3] = grid.first
    matrix = vtkMatrix4x4()
    matrix.DeepCopy(sample_to_voxel.reshape(-1).tolist())
    reslice = vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceAxes(matrix)
    reslice.SetOutputDimensionality(3)
    reslice.SetOutputOrigin(0.0, 0.0, 0.0)
    reslice.SetOutputSpacing(1.0, 1.0, 1.0)
    reslice.SetOutputExtent(0, grid.samples - 1, 0, grid.columns - 1, 0, nz - 1)
    reslice.SetInterpolationModeToLinear()
    # A ray stands for a strip as wide as a column: where that holds an outer voxel's centre, the
    # ray meets this voxel's value. At right angles that is half a voxel beyond the centre.
    reslice.BorderOn()
    reslice.SetBorderThickness(max(map(abs, grid.per_column)) / 2 + GRID_ROUNDING)
    reslice.SetBackgroundLevel(OUTSIDE)
    reslice.Update()
    scalars = vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
    return scalars.reshape(nz, grid.columns, grid.samples)


def _on_grid(position: Float64[np.ndarray, "z column"], count: int) -> np.ndarray:
    """Clip voxel positions to the centres' range; what is on a centre but for rounding is on it."""
    nearest = np.rint(position)
    on_centre = np.abs(position - nearest) < GRID_ROUNDING
    return np.clip(np.where(on_centre, nearest, position), 0, count - 1)
