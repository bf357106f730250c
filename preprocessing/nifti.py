"""Volumes as NIfTI, for viewers that show them in patient space.

The toolkit's frame is DICOM's LPS, NIfTI's is RAS: both patient axes x and y change sign in the
affine, and the voxels stay where they are. NIfTI stores x fastest, so axes are written x, y, z.
"""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float32, Float64

from preprocessing.atomic_files import atomic_write
from preprocessing.errors import GeometryError, OutputError
from preprocessing.records import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SCANNER_FRAME = 1
"""NIfTI's NIFTI_XFORM_SCANNER_ANAT: millimetres of the scanner's own patient space."""
SUFFIXES = (".nii.gz", ".nii")
GZIP_LEVEL = 6


def save(
    path: Path, volume: Volume | tuple[Float32[np.ndarray, "z y x"], Float64[np.ndarray, "4 4"]]
) -> None:
    """Write a volume, or voxels with their LPS affine, as float32 NIfTI-1.

    The file appears whole or not at all, the same voxels give the same bytes, and its header names
    nobody: free-text fields are empty and the compressed form holds no file name and no time.

    Parameters
    ----------
    path
        Ends in ``.nii`` or ``.nii.gz``. An existing file is replaced.
    volume
        In a pair, the affine maps the index vector (x, y, z, 1) to LPS millimetres.

    Raises
    ------
    GeometryError
        If the affine or a voxel is not finite, or the affine cannot be inverted.
    OutputError
        If the suffix is another, or the file cannot be written.

    References
    ----------
    NIfTI-1 Data Format, method 3 (sform), https://nifti.nimh.nih.gov/nifti-1.
    """
    if not path.name.endswith(SUFFIXES):
        raise OutputError(
            "NIFTI_SUFFIX", f"a NIfTI file ends in .nii or .nii.gz, not in '{path.suffix}'"
        )
    voxels, affine = (volume.voxels, volume.affine) if isinstance(volume, Volume) else volume
    content = _image(voxels, affine).to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=GZIP_LEVEL, mtime=0)
    atomic_write(path, content)


def _image(
    voxels: Float32[np.ndarray, "z y x"], affine: Float64[np.ndarray, "4 4"]
) -> nibabel.Nifti1Image:
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise GeometryError(
            "BAD_AFFINE", "the affine is not finite or flattens space: voxels have no place"
        )
    if not np.isfinite(voxels).all():
        raise GeometryError("NOT_FINITE", "the volume holds NaN or infinite values: mend it first")
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), LPS_TO_RAS @ affine)
    image.set_sform(image.affine, code=SCANNER_FRAME)
    image.set_qform(image.affine, code=SCANNER_FRAME)
    image.header.set_xyzt_units("mm")
    return image
