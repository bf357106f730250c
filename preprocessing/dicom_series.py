"""One checked series of DICOM slices to a ``Volume`` in SUV, in patient axes.

Every slice is rescaled on its own (PET slopes differ from slice to slice) and converted with its
own SUV factor. Axial, coronal and sagittal stacks in any direction are index permutations, exact to
the bit; an oblique stack is resampled to patient axes.

References
----------
DICOM PS3.3 C.7.6.2.1.1 (image plane), C.11.1 (modality rescale), C.8.9.4 (PET image).
"""

from itertools import pairwise

import numpy as np
import SimpleITK
from jaxtyping import Float32, Float64

from preprocessing.dicom_geometry import SliceGeometry, check_geometry
from preprocessing.dicom_pixels import read_stored
from preprocessing.dicom_values import attribute_name
from preprocessing.errors import FileError, GeometryError, HeaderError
from preprocessing.intake_records import Rescale, SeriesIntake
from preprocessing.records import Volume

__all__ = ["check_geometry", "load_volume", "lps_grid"]

LARGEST_STORED = 2.0**16
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def load_volume(series: SeriesIntake) -> Volume:
    """Read a series' pixels and convert them; memory holds the volume and one slice.

    Raises
    ------
    FileError
        A file vanished, changed or cannot be decoded (see ``dicom_pixels.read_stored``);
        ``EMPTY_IMAGE`` where no voxel is above 0.
    HeaderError
        ``SUV_IMPLAUSIBLE`` where values could leave the range of numbers.
    GeometryError
        ``NOT_ACCEPTED`` for a series that intake excluded.
    """
    geometry, rescale, conversion = series.geometry, series.rescale, series.suv
    if geometry is None or rescale is None or conversion is None:
        raise GeometryError(
            "NOT_ACCEPTED", f"the series was excluded ({series.code}): it has no volume"
        )
    _check_range(rescale, conversion.factors)
    voxels = np.empty(geometry.lps_shape, dtype=np.float32)
    stored_order = _as_stored(voxels, geometry)
    largest = 0.0
    for i, instance in enumerate(series.instances):
        slope = rescale.slopes[i] * conversion.factors[i]
        target = stored_order[geometry.slots[i]]
        np.multiply(read_stored(instance), np.float32(slope), out=target, casting="unsafe")
        if rescale.intercepts[i]:
            target += np.float32(rescale.intercepts[i] * conversion.factors[i])
        largest = max(largest, float(target.max()))  # while the slice is still in the cache
    _fill_missing(stored_order, geometry.slots)
    if not largest > 0:
        raise FileError("EMPTY_IMAGE", "no voxel is above 0: the field of view is empty")
    if not geometry.is_aligned:
        voxels = _resampled(voxels, geometry)
    voxels.flags.writeable = False
    _, _, affine = lps_grid(geometry)
    return Volume(voxels=voxels, affine=affine, unit=series.unit, subject_id=series.subject_id)


def _check_range(rescale: Rescale, factors: Float64[np.ndarray, " slice"]) -> None:
    slopes, intercepts = np.array(rescale.slopes), np.array(rescale.intercepts)
    with np.errstate(over="ignore"):
        largest = float(((LARGEST_STORED * slopes + np.abs(intercepts)) * factors).max())
    if not largest <= LARGEST_FLOAT32:
        raise HeaderError(
            "SUV_IMPLAUSIBLE",
            f"{attribute_name('RescaleSlope')} or {attribute_name('RescaleIntercept')} gives SUVs "
            "of up to 1e38 and more; correct the header",
        )


def lps_grid(
    geometry: SliceGeometry,
) -> tuple[tuple[int, int, int], tuple[float, float, float], Float64[np.ndarray, "4 4"]]:
    """Return shape and spacing along z, y, x and the affine of the volume in patient axes.

    An oblique stack gets the axis-parallel box around it, with the spacing of its nearest axes.
    """
    spacing, shape = geometry.lps_spacing_mm, geometry.lps_shape
    origin = geometry.lps_origin_mm
    if not geometry.is_aligned:
        edges = geometry.lps_directions * (np.array(shape[::-1]) - 1) * np.array(spacing[::-1])
        origin = origin + np.minimum(edges, 0).sum(axis=1)
        extent = np.abs(edges).sum(axis=1)
        z, y, x = (np.ceil(extent[::-1] / spacing - 1e-6).astype(int) + 1).tolist()
        shape = z, y, x
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing[::-1])
    affine[:3, 3] = origin
    return shape, spacing, affine


def _as_stored(
    voxels: Float32[np.ndarray, "z y x"], geometry: SliceGeometry
) -> Float32[np.ndarray, "k r c"]:
    """View a volume in patient axes by slice, row and column as they are stored."""
    axis_of = {2: 0, 1: 1, 0: 2}
    view = voxels.transpose([axis_of[axis] for axis in geometry.axes])
    k, r, c = (slice(None, None, sign) for sign in geometry.signs)
    return view[k, r, c]


def _fill_missing(stacked: Float32[np.ndarray, "k r c"], slots: tuple[int, ...]) -> None:
    """Interpolate missing slices linearly between their neighbours, in place."""
    for before, after in pairwise(slots):
        for missing in range(before + 1, after):
            share = np.float32((missing - before) / (after - before))
            stacked[missing] = (1 - share) * stacked[before] + share * stacked[after]


def _resampled(
    voxels: Float32[np.ndarray, "k r c"], geometry: SliceGeometry
) -> Float32[np.ndarray, "z y x"]:
    """Resample an oblique stack to patient axes, linearly; 0 outside."""
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(geometry.lps_spacing_mm[::-1])
    image.SetOrigin(geometry.lps_origin_mm.tolist())
    image.SetDirection(geometry.lps_directions.ravel().tolist())
    shape, spacing, affine = lps_grid(geometry)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetSize(list(shape[::-1]))
    resampler.SetOutputSpacing(list(spacing[::-1]))
    resampler.SetOutputOrigin(affine[:3, 3].tolist())
    resampler.SetInterpolator(SimpleITK.sitkLinear)
    resampler.SetDefaultPixelValue(0.0)
    return SimpleITK.GetArrayFromImage(resampler.Execute(image))
