"""From a patient to what a PET scanner makes of it: voxels, counting noise and blur."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy.ndimage import gaussian_filter1d

from preprocessing.phantoms.anatomy import SKIN, body_parts
from preprocessing.phantoms.shapes import Grid, paint_parts
from preprocessing.phantoms.subject import PhantomSubject

PSF_FWHM_MM = 6.0
_FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
_KERNEL_SIGMAS = 4.0
_STRAY_COUNTS_PER_ML = 0.15  # counts that reconstruction puts into the air around the patient


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomMap:
    """The truth on a voxel grid.

    Attributes
    ----------
    suv
        Noise-free, unblurred body-weight SUV in g/mL, constant within each region.
    regions
        Number of each voxel's region in ``names``; 0 is air.
    altered
        Where muscle uptake was raised.
    """

    grid: Grid
    names: tuple[str, ...]
    regions: UInt8[np.ndarray, "z y x"]
    suv: Float32[np.ndarray, "z y x"]
    altered: Bool[np.ndarray, "z y x"]


def field_of_view(
    subject: PhantomSubject, *, spacing_mm: tuple[float, float, float], matrix: int
) -> Grid:
    """Return a grid from ``subject.lowest_mm`` to above the vertex, centred in the ring."""
    z, y, x = spacing_mm
    slices = int(np.ceil((subject.plan.height_mm + 20.0 - subject.lowest_mm) / z))
    dx, dy = subject.shift_mm
    corner = (-(matrix - 1) / 2 * x - dx, -(matrix - 1) / 2 * y - dy, subject.lowest_mm)
    return Grid(shape=(slices, matrix, matrix), spacing_mm=spacing_mm, origin_mm=corner)


def rasterise(subject: PhantomSubject, grid: Grid) -> PhantomMap:
    """Paint a patient onto a grid: the noise-free SUV of every voxel and the altered muscle."""
    parts = (*body_parts(subject.plan), *subject.extras)
    names, regions = paint_parts(parts, grid=grid, outline=SKIN)
    table = np.array([0.0, *(subject.suv[name] for name in names[1:])], dtype=np.float32)
    raised = np.array([name in subject.altered for name in names])
    return PhantomMap(
        grid=grid,
        names=names,
        regions=regions,
        suv=table[regions],
        altered=raised[regions],
    )


def acquire(
    truth: PhantomMap,
    *,
    counts_per_suv_ml: float,
    rng: np.random.Generator,
    noise: bool = True,
    blur: bool = True,
) -> Float32[np.ndarray, "z y x"]:
    """Return the SUV that a scanner would report.

    Counts are Poisson; the point spread, a Gaussian of ``PSF_FWHM_MM``, is applied after counting,
    which gives the noise the grain of a reconstructed image. Both leave the mean unchanged.
    """
    suv = truth.suv
    if noise:
        suv = _count(truth, counts_per_suv_ml=counts_per_suv_ml, rng=rng)
    if blur:
        for axis, spacing in enumerate(truth.grid.spacing_mm):
            sigma = PSF_FWHM_MM / _FWHM_PER_SIGMA / spacing
            suv = gaussian_filter1d(suv, sigma, axis=axis, mode="nearest", truncate=_KERNEL_SIGMAS)
    return suv


def _count(
    truth: PhantomMap, *, counts_per_suv_ml: float, rng: np.random.Generator
) -> Float32[np.ndarray, "z y x"]:
    per_suv = counts_per_suv_ml * truth.grid.voxel_ml
    counts = np.zeros(truth.suv.shape, dtype=np.float32)
    body = truth.regions > 0
    counts[body] = rng.poisson(truth.suv[body] * per_suv)
    stray = rng.poisson(_STRAY_COUNTS_PER_ML * truth.grid.voxel_ml * counts.size)
    places = rng.integers(0, counts.size, size=stray)
    counts += np.bincount(places, minlength=counts.size).reshape(counts.shape)
    return counts / np.float32(per_suv)
