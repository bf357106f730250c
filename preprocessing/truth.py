"""True masks beside phantoms, on the scan's own grid; for evaluation only, never for training."""

import zlib
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Bool
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from preprocessing.errors import LabelError
from preprocessing.nifti import LPS_TO_RAS
from preprocessing.records import Volume

UNREADABLE = (
    *(OSError, EOFError, ValueError, zlib.error),
    *(ImageFileError, HeaderDataError, WrapStructError),
)
"""What nibabel raises on files that are damaged or something else."""
SAME_PLACE_MM = 0.5
"""Scanners round positions to two decimals and jitter in the last; a voxel is some millimetres."""


def load_truth(path: Path, volume: Volume) -> Bool[np.ndarray, "z y x"]:
    """Read a NIfTI mask that lies on the voxels of a volume.

    Raises
    ------
    LabelError
        ``TRUTH_UNREADABLE``, or ``TRUTH_GRID`` where its voxels are not those of the volume.
    """
    try:
        image = nibabel.Nifti1Image.from_filename(path)
        values = np.asanyarray(image.dataobj)
    except UNREADABLE:
        raise LabelError("TRUTH_UNREADABLE", "the true mask is no readable NIfTI file") from None
    mask = values.transpose(2, 1, 0) > 0 if values.ndim == 3 else values > 0
    if mask.shape != volume.voxels.shape:
        raise LabelError(
            "TRUTH_GRID",
            f"the true mask has {mask.shape} voxels along z, y, x, the scan {volume.voxels.shape}: "
            "draw it on the scan's own grid",
        )
    _check_place(LPS_TO_RAS @ np.asarray(image.affine), volume)
    return mask


def _check_place(affine: np.ndarray, volume: Volume) -> None:
    z, y, x = (count - 1 for count in volume.voxels.shape)
    corners = np.array([(i, j, k, 1) for i in (0, x) for j in (0, y) for k in (0, z)], dtype=float)
    apart = np.abs((corners @ (affine - volume.affine).T)[:, :3]).max()
    if not apart <= SAME_PLACE_MM:
        raise LabelError(
            "TRUTH_GRID",
            f"the true mask lies up to {apart:.3g} mm off the scan's voxels: draw it on its grid",
        )
