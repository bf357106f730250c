"""Maps as DICOM Parametric Maps in the frame of reference of the series that they explain.

Every identifier of the patient and of the study comes from that series, and from nowhere else; a
pseudonym never enters. Importing this module needs the extra ``dicom``.

Axes: k r c slice, row and column as the source series stores them; z y x in patient axes (LPS).

References
----------
DICOM PS3.3 A.75 (Parametric Map), C.7.6.16.2 (functional groups), C.11.15 (content identification).
"""

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import highdicom
import numpy as np
import pydicom
from highdicom.content import (
    PixelMeasuresSequence,
    PlaneOrientationSequence,
    PlanePositionSequence,
    VOILUTTransformation,
)
from highdicom.pm import ParametricMap, RealWorldValueMapping
from jaxtyping import Float32, Float64
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

from pipelines.errors import DataError
from preprocessing.atomic_files import atomic_write
from preprocessing.dicom_series import lps_grid
from preprocessing.intake_records import SeriesIntake

MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""Attributes of type 2: they stand in every image, with or without a value."""
NEEDED = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID")
LONGEST_LINE = 64  # of a value of the representation LO
MANUFACTURER = "dualwitness"
SERIES_NUMBER = 9000
"""Explanations stand behind the series of the scanner."""
RESEARCH = "For research; not for diagnosis."


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """A map as the source series would store it.

    Attributes
    ----------
    positions_mm
        Centre of the first pixel of each frame.
    orientation
        Cosines of the row's and of the column's direction.
    pixel_spacing_mm
        Between rows and between columns.
    slice_spacing_mm
        Between frames.
    """

    pixels: Float32[np.ndarray, "k r c"] = field(repr=False)
    positions_mm: Float64[np.ndarray, "k 3"] = field(repr=False)
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, float]
    slice_spacing_mm: float


@final
@dataclass(slots=True, kw_only=True)
class ParametricMaps:
    """Writes maps into a folder, one series each, in the study that they explain.

    Attributes
    ----------
    folder
        Holds identifiers of patients: never one that is shared with pseudonyms.
    """

    folder: Path
    _written: int = field(init=False, default=0)

    def write(
        self,
        series: SeriesIntake,
        voxels: Float32[np.ndarray, "z y x"],
        *,
        signed: bool,
        name: str,
        about: str,
        remark: str,
    ) -> None:
        """Write one map.

        Parameters
        ----------
        series
            The source, as intake accepted it; its files are read again, without their pixels.
        voxels
            The map in patient axes, as ``dicom_series.load_volume`` lays the series out.
        signed
            Whether negative values speak against the class; for the window that viewers open with.
        name
            The method's, in the file's name.
        about
            Description of the series, cut to 64 characters.
        remark
            Comment on the image.

        Raises
        ------
        DataError
            ``SERIES_UNSUITED`` where the source cannot be read again, lacks a UID that places the
            map in its study and space, or holds values that highdicom refuses.
        """
        self._written += 1
        sources = source_images(series)
        found = parametric_map(
            sources,
            frames_of(series, voxels, sources=sources),
            signed=signed,
            about=about,
            remark=remark,
            number=SERIES_NUMBER + self._written,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, found, enforce_file_format=True)
        atomic_write(self.folder / f"{name}_{found.SOPInstanceUID}.dcm", buffer.getvalue())


def source_images(series: SeriesIntake) -> list[Dataset]:
    """Read the headers of a series' files in the order of its slices.

    Raises
    ------
    DataError
        ``SERIES_UNSUITED``.
    """
    paths = dict.fromkeys(instance.path for instance in series.instances)
    try:
        sources: list[Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    except (OSError, InvalidDicomError) as error:
        raise DataError(
            "SERIES_UNSUITED",
            f"a file of the source series cannot be read again ({type(error).__name__}): it was "
            "moved or changed since; start again",
        ) from None
    for source in sources:
        for keyword in NEEDED:
            if not source.get(keyword):
                raise DataError(
                    "SERIES_UNSUITED",
                    f"an image of the source series has no {keyword}, without which a map has no "
                    "place in its study and space: export the series again, or leave out "
                    "--dicom-out (the maps are in volumes as NIfTI)",
                )
        for keyword in MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, None)
    return sources


def frames_of(
    series: SeriesIntake, voxels: Float32[np.ndarray, "z y x"], *, sources: Sequence[Dataset]
) -> Frames:
    """Lay a map out in the planes of its source.

    Axial, coronal and sagittal stacks get the very planes of the source; slices that were missing
    there stand between them. The map of an oblique stack, which was resampled to patient axes, has
    axial planes in the same space.

    Raises
    ------
    DataError
        ``SERIES_UNSUITED`` where the map is not of this series.
    """
    geometry = series.geometry
    if geometry is None or lps_grid(geometry)[0] != voxels.shape:
        raise DataError(
            "SERIES_UNSUITED",
            f"the map has {voxels.shape} voxels (z, y, x), which is not the volume of the source "
            "series: start again from its own files",
        )
    if not geometry.is_aligned:
        return _axial(voxels, lps_grid(geometry)[2])
    view = voxels.transpose([2 - axis for axis in geometry.axes])
    k, r, c = (slice(None, None, sign) for sign in geometry.signs)
    slots = np.arange(geometry.shape[0])[:, None]
    positions = geometry.origin_mm + slots * geometry.spacing_mm[0] * geometry.directions[0]
    orientation = (*geometry.directions[2], *geometry.directions[1])
    rows_mm, columns_mm = geometry.spacing_mm[1:]
    if len(sources) == len(geometry.slots):  # one frame each: to the last decimal as they say
        positions[list(geometry.slots)] = [source.ImagePositionPatient for source in sources]
        orientation = sources[0].ImageOrientationPatient
        rows_mm, columns_mm = sources[0].PixelSpacing
    return Frames(
        pixels=np.ascontiguousarray(view[k, r, c]),
        positions_mm=positions,
        orientation=tuple(map(float, orientation)),
        pixel_spacing_mm=(float(rows_mm), float(columns_mm)),
        slice_spacing_mm=geometry.spacing_mm[0],
    )


def _axial(voxels: Float32[np.ndarray, "z y x"], affine: Float64[np.ndarray, "4 4"]) -> Frames:
    x, y, z = np.diag(affine)[:3].tolist()
    positions = np.tile(affine[:3, 3], (len(voxels), 1))
    positions[:, 2] += z * np.arange(len(voxels))
    return Frames(
        pixels=voxels,
        positions_mm=positions,
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing_mm=(y, x),
        slice_spacing_mm=z,
    )


def parametric_map(
    sources: Sequence[Dataset],
    frames: Frames,
    *,
    signed: bool,
    about: str,
    remark: str,
    number: int,
) -> ParametricMap:
    """Make the DICOM object; UIDs of the series and of the instance are new.

    Parameters
    ----------
    number
        Of the series.

    Raises
    ------
    DataError
        ``SERIES_UNSUITED`` where the source holds values that highdicom refuses.
    """
    try:
        found = ParametricMap(
            sources,
            pixel_array=frames.pixels,
            series_instance_uid=_new_uid(),
            series_number=number,
            sop_instance_uid=_new_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MANUFACTURER,
            software_versions=_own_version(),
            device_serial_number=_own_version(),
            contains_recognizable_visual_features=False,
            real_world_value_mappings=[_identity(frames.pixels)],
            voi_lut_transformations=[_window(frames.pixels, signed=signed)],
            content_label="EXPLANATION",
            content_description=_line(about),
            series_description=_line(f"Explanation: {about}"),
            **_planes(frames),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            "SERIES_UNSUITED",
            f"the source series' header cannot be carried over ({type(error).__name__}): a value "
            "in it breaks the standard; leave out --dicom-out (the maps are in volumes as NIfTI)",
        ) from None
    found.ImageComments = f"{_plain(remark)} {RESEARCH}"
    found.BurnedInAnnotation = "NO"
    return found


def _planes(frames: Frames) -> dict[str, Any]:
    patient = highdicom.CoordinateSystemNames.PATIENT
    return {
        "pixel_measures": PixelMeasuresSequence(
            pixel_spacing=frames.pixel_spacing_mm,
            slice_thickness=frames.slice_spacing_mm,
            spacing_between_slices=frames.slice_spacing_mm,
        ),
        "plane_orientation": PlaneOrientationSequence(patient, frames.orientation),
        "plane_positions": [
            PlanePositionSequence(patient, position.tolist()) for position in frames.positions_mm
        ],
    }


def _identity(pixels: Float32[np.ndarray, "k r c"]) -> RealWorldValueMapping:
    low, high = float(pixels.min()), float(pixels.max())
    return RealWorldValueMapping(
        lut_label="IMPORTANCE",
        lut_explanation="Importance for the model's answer",
        unit=codes.UCUM.NoUnits,
        value_range=(low, high if high > low else low + 1.0),
        slope=1.0,
        intercept=0.0,
    )


def _window(pixels: Float32[np.ndarray, "k r c"], *, signed: bool) -> VOILUTTransformation:
    peak = float(np.abs(pixels).max()) or 1.0
    centre, width = (0.0, 2 * peak) if signed else (peak / 2, peak)
    return VOILUTTransformation(window_center=centre, window_width=width)


def _plain(text: str) -> str:
    """Return what every character set of DICOM holds; a backslash would split a value."""
    return text.replace("\\", "/").encode("ascii", "replace").decode("ascii")


def _line(text: str) -> str:
    plain = _plain(text)
    return plain if len(plain) <= LONGEST_LINE else plain[: LONGEST_LINE - 3] + "..."


def _new_uid() -> str:
    """Return a UID of nothing but chance (DICOM PS3.5 B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def _own_version() -> str:
    try:
        return version(MANUFACTURER)
    except PackageNotFoundError:  # run from a folder that was never installed
        return "0"
