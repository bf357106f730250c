"""The header of a GE-like whole-body FDG-PET series: what is shared, and what varies by slice."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import numpy as np
from jaxtyping import Float64
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, PositronEmissionTomographyImageStorage

from preprocessing.phantoms.dicom_writer import StoredSlices
from preprocessing.phantoms.shapes import Grid
from preprocessing.phantoms.subject import PhantomSubject
from preprocessing.phantoms.visit import BED_CHANGE_S, F18_HALF_LIFE_S, Visit

VARYING = (
    "SOPInstanceUID",
    "AcquisitionDate",
    "AcquisitionTime",
    "InstanceNumber",
    "ImagePositionPatient",
    "SliceLocation",
    "LargestImagePixelValue",
    "RescaleSlope",
    "FrameReferenceTime",
    "DecayFactor",
    "ImageIndex",
    "PixelData",
)
"""What ``slice_values`` gives for every slice."""
_GE_CREATOR = "GEMS_PETD_01"


def shared_header(subject: PhantomSubject, visit: Visit, grid: Grid) -> Dataset:
    """Return every element that all slices of the series have in common."""
    header = _patient_and_study(subject, visit)
    _put_series(header, subject, visit)
    _put_image(header, visit, grid)
    _put_pet(header, visit, grid)
    header.RadiopharmaceuticalInformationSequence = Sequence([_injection(subject, visit)])
    _put_private_block(header, subject, visit)
    return header


def slice_values(
    stored: StoredSlices,
    visit: Visit,
    grid: Grid,
    *,
    heights_mm: Float64[np.ndarray, " z"],
) -> Iterator[dict[str, str | int | bytes]]:
    """Return each slice's own elements, foot to head."""
    count = grid.shape[0]
    decay = np.log(2.0) / F18_HALF_LIFE_S
    average = decay * visit.bed_s / -np.expm1(-decay * visit.bed_s)
    x, y = (f"{grid.origin_mm[axis]:.6f}" for axis in (0, 1))
    for index in range(count):
        number = count - index if visit.head_first_numbers else index + 1
        # The scanner begins at the head: bed 0 holds the last slices.
        bed = (count - 1 - index) // visit.bed_slices
        reference_s = bed * (visit.bed_s + BED_CHANGE_S)
        acquired = visit.scan_start + timedelta(seconds=reference_s)
        height = f"{heights_mm[index]:.6f}"
        yield {
            "SOPInstanceUID": f"{visit.series_uid}.{number}",
            "AcquisitionDate": _date(acquired),
            "AcquisitionTime": _time(acquired),
            "InstanceNumber": str(number),
            "ImagePositionPatient": f"{x}\\{y}\\{height}",
            "SliceLocation": height,
            "LargestImagePixelValue": int(stored.stored[index].max()),
            "RescaleSlope": stored.slope_texts[index],
            "FrameReferenceTime": f"{reference_s * 1000}.0",
            "DecayFactor": f"{np.exp(decay * reference_s) * average:.6g}",
            "ImageIndex": number,
            "PixelData": stored.stored[index].astype("<i2", copy=False).tobytes(),
        }


def scout_header(subject: PhantomSubject, visit: Visit, *, matrix: int) -> Dataset:
    """Return a CT localiser's header: an image that lies beside the scan and is no part of it."""
    header = _patient_and_study(subject, visit)
    header.SOPClassUID = CTImageStorage
    header.Modality, header.SeriesDescription = "CT", "Scout"
    header.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    header.SeriesInstanceUID, header.SeriesNumber = f"{visit.series_uid}.9000", "900"
    header.FrameOfReferenceUID, header.PositionReferenceIndicator = visit.frame_uid, ""
    header.SeriesDate = header.AcquisitionDate = _date(visit.scan_start)
    header.SeriesTime = header.AcquisitionTime = _time(visit.scan_start - timedelta(minutes=4))
    header.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    header.ImagePositionPatient = [-256, 0, 0]
    header.PixelSpacing, header.SliceThickness = [512 / matrix] * 2, "1"
    header.RescaleSlope, header.RescaleIntercept = "1", "-1024"
    header.KVP = "120"
    _put_pixel_format(header, rows=matrix)
    return header


def _patient_and_study(subject: PhantomSubject, visit: Visit) -> Dataset:
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.PatientName, header.PatientID = visit.patient_name, subject.patient_id
    header.PatientBirthDate, header.PatientSex = f"{visit.birth_date:%Y%m%d}", subject.sex
    header.PatientAge = f"{subject.age_years:03d}Y"
    header.PatientSize = f"{subject.plan.height_mm / 1000:.2f}"
    header.PatientWeight = f"{subject.weight_kg:.1f}"
    header.StudyDate, header.StudyTime = _date(visit.injection), _time(visit.injection)
    header.StudyInstanceUID, header.StudyID = visit.study_uid, subject.patient_id[-4:]
    header.AccessionNumber = f"ACC{subject.patient_id[-4:]}"
    header.ReferringPhysicianName = "Referrer^Invented"
    header.StudyDescription = "PET CT WHOLE BODY"
    header.Manufacturer = "GE MEDICAL SYSTEMS"
    header.InstitutionName = "Phantom General Hospital"
    header.StationName = "PETSTATION1"
    header.ManufacturerModelName = "Discovery ST"
    return header


def _put_series(header: Dataset, subject: PhantomSubject, visit: Visit) -> None:
    header.SOPClassUID = PositronEmissionTomographyImageStorage
    header.Modality, header.SeriesDescription = "PT", "PET WB AC"
    header.ImageType = ["ORIGINAL", "PRIMARY"]
    header.SeriesInstanceUID, header.SeriesNumber = visit.series_uid, "401"
    header.SeriesDate, header.SeriesTime = _date(visit.series_time), _time(visit.series_time)
    header.ContentDate = _date(visit.series_time)
    header.ContentTime = _time(visit.series_time + timedelta(minutes=2))
    header.ProtocolName = "WB FDG VERTEX TO FEET"
    header.OperatorsName = "Operator^Invented"
    header.PatientPosition = "HFS"
    header.FrameOfReferenceUID = visit.frame_uid
    header.PositionReferenceIndicator = "OM"
    header.AdditionalPatientHistory = f"history of {subject.patient_id}, invented"


def _put_image(header: Dataset, visit: Visit, grid: Grid) -> None:
    z, y, x = grid.spacing_mm
    header.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    header.PixelSpacing = [f"{y:.6g}", f"{x:.6g}"]
    header.SliceThickness = f"{z:.6g}"
    header.ActualFrameDuration = str(visit.bed_s * 1000)
    header.RescaleIntercept = "0.0"
    header.LossyImageCompression = "00"
    header.SmallestImagePixelValue = 0
    header["SmallestImagePixelValue"].VR = "SS"
    _put_pixel_format(header, rows=grid.shape[1])


def _put_pixel_format(header: Dataset, *, rows: int) -> None:
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows = header.Columns = rows
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = 1


def _put_pet(header: Dataset, visit: Visit, grid: Grid) -> None:
    header.NumberOfSlices = grid.shape[0]
    header.NumberOfTimeSlices = 1
    header.SeriesType = ["WHOLE BODY", "IMAGE"]
    header.Units, header.CountsSource = "BQML", "EMISSION"
    header.CorrectedImage = ["DECY", "ATTN", "SCAT", "DTIM", "RAN", "RADL", "DCAL", "NORM"]
    header.RandomsCorrectionMethod = "SING"
    header.AttenuationCorrectionMethod = "measured,, 0.096000 cm-1,"
    header.ScatterCorrectionMethod = "Convolution subtraction"
    header.DecayCorrection = "START"
    header.ReconstructionMethod = "OSEM"
    header.CollimatorType = "RING"
    header.AcquisitionTerminationCondition = "TIME"
    header.AcquisitionStartCondition = "MANU"
    header.DoseCalibrationFactor = "164.0"
    header.EnergyWindowRangeSequence = Sequence([_energy_window()])
    header.PatientOrientationCodeSequence = Sequence([_code("F-10450", "99SDM", "recumbent")])
    header.PatientGantryRelationshipCodeSequence = Sequence(
        [_code("F-10470", "99SDM", "headfirst")]
    )


def _injection(subject: PhantomSubject, visit: Visit) -> Dataset:
    item = Dataset()
    item.Radiopharmaceutical = "FDG -- fluorodeoxyglucose"
    item.RadiopharmaceuticalVolume = "0.0"
    item.RadiopharmaceuticalStartTime = _time(visit.injection)
    if visit.datetime_given:
        item.RadiopharmaceuticalStartDateTime = _datetime(visit.injection)
    item.RadionuclideTotalDose = f"{subject.dose_bq:.1f}"
    item.RadionuclideHalfLife = f"{F18_HALF_LIFE_S}"
    item.RadionuclidePositronFraction = "0.97"
    item.RadionuclideCodeSequence = Sequence([_code("C-111A1", "SRT", "^18^Fluorine")])
    item.RadiopharmaceuticalCodeSequence = Sequence(
        [_code("C-B1031", "SRT", "Fluorodeoxyglucose F^18^")]
    )
    return item


def _put_private_block(header: Dataset, subject: PhantomSubject, visit: Visit) -> None:
    block = header.private_block(0x0009, _GE_CREATOR, create=True)
    block.add_new(0x02, "LO", subject.patient_id)
    block.add_new(0x05, "DT", _datetime(visit.injection - timedelta(minutes=15)))
    block.add_new(0x0A, "UI", f"{visit.series_uid}.7")
    block.add_new(0x0D, "DT", _datetime(visit.scan_start))
    block.add_new(0x10, "LO", "Phantom General Hospital")
    block.add_new(0x36, "LO", "FDG -- fluorodeoxyglucose")
    block.add_new(0x38, "FL", subject.dose_bq / 1e6)
    block.add_new(0x39, "DT", _datetime(visit.injection))
    block.add_new(0x3B, "DT", _datetime(visit.injection))
    block.add_new(0x3F, "FL", F18_HALF_LIFE_S)


def _energy_window() -> Dataset:
    item = Dataset()
    item.EnergyWindowLowerLimit, item.EnergyWindowUpperLimit = "375.0", "650.0"
    return item


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _date(moment: datetime) -> str:
    return f"{moment:%Y%m%d}"


def _time(moment: datetime) -> str:
    return f"{moment:%H%M%S}.00"


def _datetime(moment: datetime) -> str:
    return f"{moment:%Y%m%d%H%M%S}.00"
