"""NIfTI files of unknown making: read whole, checked, and turned to the toolkit's patient axes.

Which side is left is told by the affine alone, never by the order of the voxels: an R,A,S file and
an L,P,S file of one head give the same array. Axes are permuted and reversed, never resampled.
"""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from jaxtyping import Float64, Shaped
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from preprocessing.errors import FileError, GeometryError
from preprocessing.nifti import LPS_TO_RAS

HEAD_BYTES = 4096
"""Enough for either version's header; extensions are not read."""
TAIL_BYTES = 64
"""Of a compressed file these hold the checksum and the length of its content."""
MAX_VOXELS = 2**27
"""Four times the largest head scan of routine make (512 x 512 x 512 is 2^27)."""
MAX_BYTES = 8 * MAX_VOXELS + 2**20
LARGEST_TILT_DEG = 25.0
"""Beyond this the slices along the third axis are no axial slices."""
LARGEST_OFFSET = 2**40
"""Bytes; no file of a scan has so many, and a float32 that is no number lies outside."""
LARGEST_MM = 1e5
"""No scanner places or sizes anything beyond a hundred metres."""
GZIP_MAGIC, GZIP_WINDOW = b"\x1f\x8b", 31
NIFTI2_HEADER_BYTES = 540
PATIENT_AXES = ("L", "P", "S")


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiGrid:
    """Where the voxels of a file lie, after turning to patient axes.

    Attributes
    ----------
    shape
        Voxels along z, y, x.
    affine
        Maps the index vector (x, y, z, 1) to LPS millimetres.
    fingerprint
        Hash over the file's size, time, header and trailing bytes.
    """

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    fingerprint: str


def read_grid(path: Path) -> NiftiGrid:
    """Read a file's header only.

    Raises
    ------
    FileError
        ``NII_UNREADABLE``, ``NII_SHAPE``, ``NII_DATATYPE``, ``NII_TOO_LARGE``.
    GeometryError
        ``NII_NO_AFFINE``, ``NII_AFFINE`` or ``NII_OBLIQUE``.
    """
    try:
        status = path.stat()
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            stream.seek(max(status.st_size - TAIL_BYTES, 0))
            tail = stream.read()
    except OSError as error:
        raise _unreadable(error.strerror or "input/output error") from None
    header = _header(_inflated_start(head))
    shape, affine = _grid(header)
    digest = hashlib.sha256(f"{status.st_size}|{status.st_mtime_ns}|".encode() + head + tail)
    return NiftiGrid(shape=shape, affine=affine, fingerprint=digest.hexdigest())


def read_voxels(path: Path) -> Shaped[np.ndarray, "z y x"]:
    """Read a file's values, its own scaling applied, on the axes of ``read_grid``.

    Values of an unscaled file keep their type. The array may be read-only.

    Raises
    ------
    FileError
        As ``read_grid``; ``NII_TRUNCATED`` where the file ends early or its checksum is wrong.
    GeometryError
        As ``read_grid``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(error.strerror or "input/output error") from None
    if content[:2] == GZIP_MAGIC:
        content = _inflated(content)
    header = _header(content)
    _grid(header)
    kind, count = header.get_data_dtype(), int(np.prod(header.get_data_shape(), dtype=np.int64))
    offset = int(header["vox_offset"])
    if len(content) < offset + count * kind.itemsize:
        raise _truncated()
    stored = np.frombuffer(content, dtype=kind, count=count, offset=offset)
    values = stored.reshape(_spatial_shape(header), order="F")
    slope, intercept = _scaling(header)
    if (slope, intercept) != (1.0, 0.0):
        values = apply_read_scaling(values, slope, intercept)
    turned = apply_orientation(values, _to_patient_axes(_best_affine(header)))
    return turned.transpose(2, 1, 0)


def _inflated(content: bytes) -> bytes:
    """Undo gzip, every member of it, checksums included, never beyond what a scan can need."""
    parts: list[bytes] = []
    total = 0
    while content[:2] == GZIP_MAGIC:
        member = isal_zlib.decompressobj(GZIP_WINDOW)
        try:
            parts.append(member.decompress(content, MAX_BYTES - total + 1))
        except IsalError:  # pyright: ignore[reportGeneralTypeIssues] - its stub is wrong
            raise _truncated() from None
        total += len(parts[-1])
        if total > MAX_BYTES:
            raise _too_large()
        if not member.eof:
            raise _truncated()
        content = member.unused_data
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflated_start(head: bytes) -> bytes:
    if head[:2] != GZIP_MAGIC:
        return head
    try:
        return zlib.decompressobj(GZIP_WINDOW).decompress(head, HEAD_BYTES)
    except zlib.error:
        raise _unreadable("its compressed form is damaged at the start") from None


def _header(content: bytes) -> Nifti1Header:
    """Parse a header of either version and byte order, and check what is relied on."""
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    kind = Nifti2Header if NIFTI2_HEADER_BYTES in sizes else Nifti1Header
    try:
        header = kind(content[: kind.sizeof_hdr], check=False)
        shape, data_type = header.get_data_shape(), header.get_data_dtype()
    except (HeaderDataError, WrapStructError, ValueError, KeyError):
        raise _unreadable("its header is no NIfTI header") from None
    if int(header["sizeof_hdr"]) != kind.sizeof_hdr or bytes(header["magic"])[:2] != b"n+":
        raise _unreadable("its header is no single-file NIfTI header")
    if not header.single_vox_offset <= float(header["vox_offset"]) <= LARGEST_OFFSET:
        raise _unreadable("vox_offset is no place behind the header, where the values begin")
    if len(shape) < 3 or any(extent != 1 for extent in shape[3:]) or min(shape) < 1:
        raise FileError(
            "NII_SHAPE",
            f"dim is {tuple(int(extent) for extent in shape)}: one volume of three axes is needed; "
            "split a series of volumes into files",
        )
    if data_type.kind not in "iuf":
        raise FileError(
            "NII_DATATYPE",
            f"datatype is {int(header['datatype'])}, which is no plain number: convert the file",
        )
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS or data_type.itemsize > 8:
        raise _too_large()
    return header


def _spatial_shape(header: Nifti1Header) -> tuple[int, int, int]:
    x, y, z = (int(extent) for extent in header.get_data_shape()[:3])
    return x, y, z


def _scaling(header: Nifti1Header) -> tuple[float, float]:
    # NIfTI-1: slope 0 means no scaling, and writers leave NaN where they mean none.
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or not np.isfinite(intercept):
        return 1.0, 0.0
    return slope, intercept


def _best_affine(header: Nifti1Header) -> Float64[np.ndarray, "4 4"]:
    """Return voxel index to RAS millimetres: the sform, or else the qform."""
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise GeometryError(
            "NII_NO_AFFINE",
            "sform_code and qform_code are 0: nothing tells which side is left; set the sform",
        )
    if header["pixdim"][0] == 0:
        header["pixdim"][0] = 1  # NIfTI-1: an unset qfac counts as 1
    with np.errstate(all="ignore"):  # what overflows or divides by zero is refused below
        try:
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
        except (HeaderDataError, ValueError):
            raise _bad_affine() from None
        if not np.isfinite(affine).all() or np.abs(affine).max() > LARGEST_MM:
            raise _bad_affine()
        # A direction that another nearly repeats counts as dropped.
        if np.isnan(io_orientation(affine)).any() or np.linalg.det(affine[:3, :3]) == 0:
            raise _bad_affine()
    return affine


def _to_patient_axes(affine: Float64[np.ndarray, "4 4"]) -> Shaped[np.ndarray, "3 2"]:
    return ornt_transform(io_orientation(affine), axcodes2ornt(PATIENT_AXES))


def _grid(header: Nifti1Header) -> tuple[tuple[int, int, int], Float64[np.ndarray, "4 4"]]:
    """Return shape (z, y, x) and LPS affine after turning to patient axes."""
    affine, shape = _best_affine(header), _spatial_shape(header)
    turn = _to_patient_axes(affine)
    lps = LPS_TO_RAS @ affine @ inv_ornt_aff(turn, shape)
    cosines = np.diag(lps)[:3] / np.linalg.norm(lps[:3, :3], axis=0)
    tilt = float(np.degrees(np.arccos(np.clip(cosines.min(), -1.0, 1.0))))
    if tilt > LARGEST_TILT_DEG:
        raise GeometryError(
            "NII_OBLIQUE",
            f"the voxel axes lie {tilt:.0f} degrees off the patient's: slices are no axial slices; "
            "resample to patient axes",
        )
    x, y, z = (shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    return (z, y, x), lps


def _unreadable(reason: str) -> FileError:
    return FileError("NII_UNREADABLE", f"a NIfTI file cannot be read: {reason}; copy it again")


def _truncated() -> FileError:
    return FileError(
        "NII_TRUNCATED",
        "a NIfTI file ends early, or its checksum is wrong: values are missing; copy it again",
    )


def _too_large() -> FileError:
    return FileError(
        "NII_TOO_LARGE",
        f"a NIfTI file declares more than {MAX_VOXELS} voxels: no head scan has so many",
    )


def _bad_affine() -> GeometryError:
    return GeometryError(
        "NII_AFFINE", "the affine is not finite or flattens space: voxels have no place"
    )
