"""Small valid PET series as files, made with pydicom, for tests to break in one place.

``write_series`` writes one whole-body-like F-18 FDG scan (GE-like header, another slope in every
slice, SUV known in closed form); ``change`` edits the data set of a slice before it is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

PET_CLASS = "1.2.840.10008.5.1.4.1.1.128"
WEIGHT_KG = 70.0
DOSE_BQ = 370e6
HALF_LIFE_S = 6586.2
UPTAKE_S = 3600.0
FACTOR = WEIGHT_KG * 1000 / (DOSE_BQ * 2 ** (-UPTAKE_S / HALF_LIFE_S))
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
ROOT_UID = "1.2.826.0.1.3680043.8.498"

Change = Callable[[Dataset, int], None]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was written: files by slice, stored values and SUV (slice, row, column)."""

    paths: list[Path]
    stored: np.ndarray
    suv: np.ndarray


def header(*, slices: int, shape: tuple[int, int], spacing: tuple[float, float, float]) -> Dataset:
    """Everything that all slices of a series share."""
    ds = Dataset()
    ds.SOPClassUID = PET_CLASS
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200304"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "110000"
    ds.Modality = "PT"
    ds.Manufacturer = "GE MEDICAL SYSTEMS"
    ds.SeriesDescription = "WB AC"
    ds.PatientName = "CANARY^NAME"
    ds.PatientID = "CANARY-ID"
    ds.PatientBirthDate = "19500607"
    ds.PatientSex = "F"
    ds.PatientSize = "1.7"
    ds.PatientWeight = f"{WEIGHT_KG}"
    ds.SliceThickness = f"{spacing[0]}"
    ds.ActualFrameDuration = 180000
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID = f"{ROOT_UID}.1"
    ds.SeriesInstanceUID = f"{ROOT_UID}.1.1"
    ds.FrameOfReferenceUID = f"{ROOT_UID}.2"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = shape
    ds.PixelSpacing = [f"{spacing[1]}", f"{spacing[2]}"]
    ds.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "DCAL", "NORM"]
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit = 15
    ds.PixelRepresentation = 1
    ds.RescaleIntercept = "0"
    ds.NumberOfSlices = slices
    ds.SeriesType = ["STATIC", "IMAGE"]
    ds.Units = "BQML"
    ds.DecayCorrection = "START"
    ds.FrameReferenceTime = "90000"
    ds.RadiopharmaceuticalInformationSequence = [_fdg()]
    return ds


def _fdg() -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    item = Dataset()
    item.Radiopharmaceutical = "FDG"
    item.RadiopharmaceuticalStartTime = "100000"
    item.RadionuclideTotalDose = f"{DOSE_BQ}"
    item.RadionuclideHalfLife = f"{HALF_LIFE_S}"
    item.RadionuclideCodeSequence = [code]
    return item


def write_series(
    folder: Path,
    *,
    slices: int = 8,
    shape: tuple[int, int] = (6, 5),
    spacing: tuple[float, float, float] = (4.0, 3.0, 2.0),
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, -20.0, -30.0),
    change: Change | None = None,
    stored: np.ndarray | None = None,
    seed: int = 0,
    prefix: str = "slice",
    syntax: str = ExplicitVRLittleEndian,
) -> Scan:
    """Write one file per slice; slices follow the normal of the plane."""
    if stored is None:
        stored = np.random.default_rng(seed).integers(1, 32767, (slices, *shape), dtype=np.int16)
    slices, shape = stored.shape[0], stored.shape[1:]
    slopes = np.array([float(f"{0.5 + 0.01 * k:.4f}") for k in range(slices)])
    normal = np.cross(orientation[:3], orientation[3:])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(slices):
        ds = header(slices=slices, shape=shape, spacing=spacing)
        place = np.asarray(origin) + k * spacing[0] * normal
        ds.SOPInstanceUID = f"{ROOT_UID}.3.{seed}.{k + 1}"
        ds.InstanceNumber = slices - k
        ds.ImagePositionPatient = [f"{value:.9g}" for value in place]
        ds.ImageOrientationPatient = [f"{value:.12g}" for value in orientation]
        ds.RescaleSlope = f"{slopes[k]}"
        ds.PixelData = stored[k].tobytes()
        ds["PixelData"].VR = "OW"
        if change is not None:
            change(ds, k)
        path = folder / f"{prefix}{k:03}.dcm"
        save(ds, path, syntax=syntax)
        paths.append(path)
    return Scan(paths=paths, stored=stored, suv=stored * slopes[:, None, None] * FACTOR)


def save(ds: Dataset, path: Path, *, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a data set with file meta information."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)
