"""The table of faults: what may be wrong with a series, and what must come of it.

Every variant puts one fault into a reference scan. It ends in the right SUV, in the
right SUV with a note, in doubt that is noted, or in a refusal with its code; nothing else will do.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import gdcm
import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from preprocessing.dicom_file import ENHANCED_PET
from tests.preprocessing import dicom_factory as factory
from tests.preprocessing.fault_scans import (
    DRUG,
    SCAN,
    SLICES,
    SPACING,
    VENDORS,
    Fault,
    Scan,
    beside,
    both,
    drug,
    drug_in_slice,
    each,
    every,
    file_of,
    files,
    in_folder,
    in_slice,
    no_creator,
    placed,
    private,
    put,
    reference,
    save,
    scaled,
    times,
    turned,
    without,
    written,
)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What must come of a fault.

    Attributes
    ----------
    suv
        ``right``: one series is accepted and holds the SUV that the scan holds. ``doubted``: one is
        accepted, and notes say what is wrong. ``none``: nothing is accepted.
    notes
        Codes of the notes: all of them where the SUV is right, some of them where it is doubted.
    codes
        Codes of all exclusions.
    skipped
        Files that are no images, by reason.
    """

    suv: Literal["right", "doubted", "none"]
    notes: frozenset[str] = frozenset()
    codes: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


def right(*notes: str, codes: tuple[str, ...] = (), **skipped: int) -> Expected:
    return Expected(suv="right", notes=frozenset(notes), codes=codes, skipped=skipped)


def doubted(*notes: str, codes: tuple[str, ...] = ()) -> Expected:
    return Expected(suv="doubted", notes=frozenset(notes), codes=codes)


def refused(*codes: str, **skipped: int) -> Expected:
    return Expected(suv="none", codes=codes, skipped=skipped)


def by_vendor(bqml: Expected, counts: Expected) -> dict[str, Expected]:
    """Counts of Philips come with a factor of the scanner's own beside dose, weight and times."""
    return {"GE": bqml, "SIEMENS": bqml, "PHILIPS": counts}


def unless_counts(code: str) -> dict[str, Expected]:
    """Refused, but where the scanner's own factor gives the SUV all the same."""
    return by_vendor(refused(code), right(code))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One fault in one vendor's scan."""

    row: int
    name: str
    vendor: str
    fault: Fault
    expected: Expected
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"row {self.row}, {self.vendor}: {self.name}"


TABLE: list[Variant] = []


def row(
    number: int,
    name: str,
    fault: Fault,
    expected: Expected | Mapping[str, Expected],
    *,
    vendors: tuple[str, ...] = ("GE",),
    **options: Any,
) -> None:
    """Add a line to the table: one variant, or one for each vendor."""
    outcomes = expected if isinstance(expected, Mapping) else dict.fromkeys(vendors, expected)
    TABLE.extend(
        Variant(
            row=number, name=name, vendor=vendor, fault=fault, expected=outcome, options=options
        )
        for vendor, outcome in outcomes.items()
    )


OTHER = f"{factory.ROOT_UID}.9"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
KEPT_BACK = "SERIES_NOT_SELECTED"

# --- 1, 31: several series, patients and studies in one folder ---
other_series = every(SeriesInstanceUID=OTHER)
ct = every(SeriesInstanceUID=OTHER, Modality="CT", SOPClassUID=CT_CLASS)
row(1, "a CT beside", beside("GE", ct), right(codes=(KEPT_BACK,)))
row(1, "a CT in the same folder", beside("GE", ct, prefix="ct"), right(codes=(KEPT_BACK,)))
row(
    1,
    "the same study without attenuation correction beside",
    beside("GE", other_series, every(CorrectedImage="DECY\\SCAT")),
    right(codes=("NAC",)),
)
row(
    1,
    "a second reconstruction",
    beside("GE", other_series, every(ImageType="DERIVED\\SECONDARY")),
    right("SELECTED", codes=(KEPT_BACK,)),
)
row(
    1,
    "structures beside",
    beside("GE", every(SOPClassUID=STRUCTURES, SeriesInstanceUID=OTHER, Modality="RTSTRUCT")),
    right(NOT_AN_IMAGE=8),
)
row(
    1,
    "another patient with the same series",
    beside("GE", every(PatientID="B", SOPInstanceUID=None)),
    refused("INCONSISTENT_PATIENTID", "INCONSISTENT_PATIENTID"),
)
row(
    1,
    "a slice of another patient",
    in_slice(3, PatientID="B"),
    refused("INCONSISTENT_PATIENTID", "INCONSISTENT_PATIENTID"),
    vendors=VENDORS,
)
row(
    1,
    "a slice of another study",
    in_slice(3, StudyInstanceUID=OTHER),
    refused("INCONSISTENT_STUDYINSTANCEUID", "INCONSISTENT_STUDYINSTANCEUID"),
)
row(
    1,
    "a slice of another series",
    in_slice(3, SeriesInstanceUID=OTHER),
    refused("GAP", "TOO_FEW_SLICES"),
)
row(31, "no patient identifier", every(PatientID=""), right("PATIENT_UNKNOWN"), vendors=VENDORS)
row(31, "no study", every(StudyInstanceUID=None), right())
row(1, "no series", every(SeriesInstanceUID=None), refused(*["UID_MISSING"] * 8))
row(
    1,
    "one file without a series",
    in_slice(3, SeriesInstanceUID=None),
    refused("GAP", "UID_MISSING"),
)


# --- 2: duplicates ---
def copied(edit: Fault, which: int = 3) -> Fault:
    """Add a copy of one slice, with changes, in another folder."""

    def fault(scan: Scan) -> None:
        beside(scan.vendor, edit, prefix="copies/")(scan)
        scan.slices[:] = [
            each
            for each in scan.slices
            if "/" not in each.name or each.name.endswith(f"{which:03}.dcm")
        ]

    return fault


def pixels(value: int) -> Fault:
    return each(lambda ds, _: put(ds, PixelData=bytes([value]) * len(ds.PixelData)))


row(2, "a file twice", copied(both()), right("DUP_INSTANCE", DUP_INSTANCE=1), vendors=VENDORS)
row(
    2,
    "the folder twice",
    in_folder(lambda folder: shutil.copytree(folder, folder / "again")),
    right("DUP_INSTANCE", DUP_INSTANCE=8),
)
row(
    2,
    "a copy under another UID",
    copied(every(SOPInstanceUID="1.2.9")),
    right("DUP_INSTANCE", DUP_INSTANCE=1),
)
row(2, "a copy with other pixels", copied(pixels(1)), refused("DUP_CONFLICT"))
row(
    2,
    "a copy with other pixels and UID",
    copied(both(pixels(1), every(SOPInstanceUID="1.2.9"))),
    refused("DUP_CONFLICT"),
)
row(2, "a copy with another slope", copied(every(RescaleSlope="0.7")), refused("DUP_CONFLICT"))
row(2, "a copy with another weight", copied(every(PatientWeight="80")), refused("DUP_CONFLICT"))
row(2, "one UID in all slices", every(SOPInstanceUID="1.2.9"), refused("DUP_CONFLICT"))
row(2, "no UID in any slice", every(SOPInstanceUID=None), right())
row(
    2,
    "a run-length coded copy",
    copied(written(RLELossless)),
    right("DUP_INSTANCE", DUP_INSTANCE=1),
)
row(
    2,
    "the series twice, under another UID",
    beside("GE", other_series),
    right("SELECTED", codes=(KEPT_BACK,)),
)


# --- 3, 4: missing slices and spacing ---
def filled(missing: int) -> Fault:
    """Take a slice away that is to be interpolated."""

    def fault(scan: Scan) -> None:
        del scan.slices[missing]
        scan.suv[missing] = (scan.suv[missing - 1] + scan.suv[missing + 1]) / 2

    return fault


row(3, "one missing", without(3), refused("GAP"), vendors=VENDORS)
row(3, "two missing, apart", without(2, 5), refused("GAP"))
row(3, "two missing, together", without(3, 4), refused("GAP"))
row(3, "three missing at one end and one inside", without(0, 1, 2, 5), refused("GAP"))
row(3, "the first missing", without(0), right("SLICE_COUNT", "SHORT_FOV"))
row(3, "the last missing", without(7), right("SLICE_COUNT", "SHORT_FOV"))
row(3, "all but two missing", without(0, 1, 2, 3, 4, 5), refused("TOO_FEW_SLICES"))
row(3, "one missing and filled", filled(3), right("GAP_FILLED", "SLICE_COUNT"), fill_gaps=1)
row(3, "two missing, one may be filled", without(3, 4), refused("GAP"), fill_gaps=1)


def up(mm: float, which: int | None = None) -> Fault:
    return placed(
        lambda k, place: place + np.array([0, 0, mm * (k if which is None else k == which)])
    )


row(4, "one slice 5 % off", up(4, 3), refused("SPACING"), vendors=VENDORS)
row(4, "one slice 0.5 % off", up(0.4, 3), right("SPACING_REGULARISED"))
row(4, "rounding", placed(lambda k, place: place + np.array([0, 0, 0.004 * (-1) ** k])), right())
row(
    4,
    "growing spacing",
    placed(lambda k, place: place + np.array([0, 0, k * k])),
    refused("SPACING"),
)
row(4, "one slice at another's place", up(80, 3), refused("DYNAMIC"))
row(
    4,
    "one slice of other pixels",
    in_slice(3, PixelSpacing="40\\41"),
    refused("INCONSISTENT_PIXELSPACING"),
)
row(4, "pixel spacing written otherwise", in_slice(3, PixelSpacing="40.00\\4e1"), right())
row(
    4,
    "rows and columns exchanged in one",
    in_slice(3, Rows=8, Columns=32),
    refused("INCONSISTENT_ROWS"),
)
for name, text in {
    "absent": None,
    "empty": "",
    "zero": "0\\0",
    "negative": "-40\\40",
    "single": "40",
    "triple": "40\\40\\40",
    "with commas": "40,0\\40,0",
    "no number": "nan\\nan",
    "of light years": "1e30\\1e30",
}.items():
    row(4, f"pixel spacing {name}", every(PixelSpacing=text), refused("PIXEL_SPACING"))
row(4, "another thickness", every(SliceThickness="3", SpacingBetweenSlices="-3"), right())
row(4, "thickness absent", every(SliceThickness=None), right())

# --- 5: orientation ---
row(5, "feet first, prone: rows and columns turned", turned(-1, -1, 1), right())
row(5, "head first, prone: rows turned, normal turned", turned(-1, 1, 1), right())
row(5, "columns turned, normal turned", turned(1, -1, -1), right(), vendors=VENDORS)
row(5, "instances numbered the other way", turned(1, 1, -1), right())
row(5, "instances not numbered", every(InstanceNumber=None, ImageIndex=None), right())
row(5, "another patient position", every(PatientPosition="FFP"), right())
row(5, "no patient position", every(PatientPosition=None), right())
row(5, "orientation absent", every(ImageOrientationPatient=None), refused("ORIENTATION_MISSING"))
row(
    5,
    "five cosines",
    every(ImageOrientationPatient="1\\0\\0\\0\\1"),
    refused("ORIENTATION_MISSING"),
)
row(
    5,
    "no unit vectors",
    every(ImageOrientationPatient="2\\0\\0\\0\\1\\0"),
    refused("ORIENTATION_INVALID"),
)
row(
    5,
    "zero vectors",
    every(ImageOrientationPatient="0\\0\\0\\0\\0\\0"),
    refused("ORIENTATION_INVALID"),
)
row(
    5,
    "parallel vectors",
    every(ImageOrientationPatient="1\\0\\0\\1\\0\\0"),
    refused("ORIENTATION_INVALID"),
)
row(
    5,
    "one slice turned",
    in_slice(3, ImageOrientationPatient="-1\\0\\0\\0\\1\\0"),
    refused("MIXED_ORIENTATION"),
)
row(5, "position absent", every(ImagePositionPatient=None), refused("POSITION_MISSING"))
row(
    5, "position absent in one", in_slice(3, ImagePositionPatient=None), refused("POSITION_MISSING")
)
row(5, "two coordinates", in_slice(3, ImagePositionPatient="0\\0"), refused("POSITION_MISSING"))
row(
    5,
    "position no number",
    in_slice(3, ImagePositionPatient="0\\nan\\0"),
    refused("POSITION_MISSING"),
)
row(5, "one position", every(ImagePositionPatient="0\\0\\0"), refused("DUP_CONFLICT"))
for text, code in (("0\\0\\1e4", "GAP"), ("0\\0\\1e30", "POSITION_MISSING")):
    row(5, f"one slice far away: {text}", in_slice(3, ImagePositionPatient=text), refused(code))
row(
    5,
    "one slice aside",
    placed(lambda k, place: place + np.array([5 * (k == 3), 0, 0])),
    refused("SHEAR"),
)
row(
    5,
    "tilted gantry",
    placed(lambda k, place: place + np.array([0, 7 * k, 0])),
    refused("SHEAR"),
    vendors=VENDORS,
)
row(
    5,
    "tilt below half a degree",
    placed(lambda k, place: place + np.array([0, 0.3 * k, 0])),
    right("SHEAR_IGNORED"),
)


def leaning(degrees: float) -> Fault:
    """Turn the stack about the patient's left-right axis."""
    angle = np.radians(degrees)
    column = np.array([0, np.cos(angle), np.sin(angle)])
    normal = np.array([0, -np.sin(angle), np.cos(angle)])

    def change(ds: Dataset, k: int) -> None:
        place = np.array([-300, -280, -320]) + k * SPACING[0] * normal
        ds.ImagePositionPatient = [f"{value:.8g}" for value in place]
        ds.ImageOrientationPatient = [1, 0, 0, *[f"{value:.10g}" for value in column]]

    return each(change)


row(5, "oblique by 5 degrees", leaning(5), doubted("OBLIQUE_RESAMPLED"))
row(5, "oblique by 0.05 degrees", leaning(0.05), right())

# --- 6: enhanced objects ---
SHARED_GROUPS = {
    "PixelMeasuresSequence": {"PixelSpacing": [40, 40], "SliceThickness": 80},
    "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
}
FRAME_GROUPS = ("PlanePositionSequence", "FrameContentSequence", "PixelValueTransformationSequence")


def enhanced(change: Fault | None = None, *, leave_out: str = "", order: int = 1) -> Fault:
    """Make one enhanced object of all slices; ``change`` sees it as the only slice."""

    def fault(scan: Scan) -> None:
        one, sources = scan.slices[0], [each.ds for each in scan.slices][::order]
        frames = [_groups(ds) for ds in sources]
        shared = Dataset()
        for name, values in SHARED_GROUPS.items():
            setattr(shared, name, [_item(values)])
        for place in (shared, *frames):
            put(place, **{leave_out: None} if leave_out else {})
        picture = b"".join(ds.PixelData for ds in sources)
        ds = one.ds
        for keyword in ("PixelSpacing", "RescaleSlope", "RescaleIntercept", "ImagePositionPatient"):
            del ds[keyword]
        del ds.ImageOrientationPatient, ds.CorrectedImage, ds.Units, ds.DecayCorrection
        ds.SOPClassUID, ds.NumberOfFrames, ds.PixelData = ENHANCED_PET, len(sources), picture
        ds.AttenuationCorrected = ds.DecayCorrected = "YES"
        ds.DecayCorrectionDateTime = ds.AcquisitionDateTime = f"{SCAN:%Y%m%d%H%M%S}"
        ds[DRUG].value[0].RadionuclideTotalDose = f"{factory.DOSE_BQ / 1e6}"
        injected = SCAN - timedelta(seconds=factory.UPTAKE_S)
        ds[DRUG].value[0].RadiopharmaceuticalStartDateTime = f"{injected:%Y%m%d%H%M%S}"
        ds.SharedFunctionalGroupsSequence = [shared]
        ds.PerFrameFunctionalGroupsSequence = frames
        put(ds, NumberOfSlices=None)
        scan.slices = [one]
        if change is not None:
            change(scan)

    return fault


def _groups(ds: Dataset) -> Dataset:
    frame = Dataset()
    frame.PlanePositionSequence = [_item({"ImagePositionPatient": ds.ImagePositionPatient})]
    stamp = f"{SCAN:%Y%m%d%H%M%S}"
    frame.FrameContentSequence = [_item({"FrameAcquisitionDateTime": stamp})]
    values = {"RescaleSlope": ds.RescaleSlope, "RescaleIntercept": 0, "RescaleType": "BQML"}
    frame.PixelValueTransformationSequence = [_item(values)]
    return frame


def _item(values: Mapping[str, Any]) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def in_frame(which: int, group: str, **values: str | None) -> Fault:
    def change(ds: Dataset, _: int) -> None:
        put(ds.PerFrameFunctionalGroupsSequence[which][group].value[0], **values)

    return each(change)


row(6, "enhanced", enhanced(), right())
row(6, "enhanced, frames from head to feet", enhanced(order=-1), right())
row(6, "enhanced, compressed", enhanced(written(RLELossless)), right())
for name in (*SHARED_GROUPS, *FRAME_GROUPS):
    row(6, f"enhanced without {name}", enhanced(leave_out=name), refused("ENHANCED_INCOMPLETE"))
for name in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
    row(
        6,
        f"enhanced without {name}",
        enhanced(every(**{name: None})),
        refused("ENHANCED_INCOMPLETE"),
    )
row(
    6,
    "enhanced, more frames than groups",
    enhanced(every(NumberOfFrames=9)),
    refused("PIXEL_TRUNCATED"),
)
row(
    6,
    "enhanced, fewer frames than groups",
    enhanced(every(NumberOfFrames=7)),
    refused("PARSE_ERROR"),
)
row(6, "enhanced, frames not counted", enhanced(every(NumberOfFrames=None)), refused("PARSE_ERROR"))
row(
    6,
    "enhanced, a slope of 0",
    enhanced(in_frame(3, "PixelValueTransformationSequence", RescaleSlope="0")),
    refused("SLOPE"),
)
row(
    6,
    "enhanced, an intercept",
    enhanced(in_frame(3, "PixelValueTransformationSequence", RescaleIntercept="7")),
    refused("INTERCEPT"),
)
row(
    6,
    "enhanced, a frame without place",
    enhanced(in_frame(3, "PlanePositionSequence", ImagePositionPatient=None)),
    refused("POSITION_MISSING"),
)
row(6, "enhanced, not corrected", enhanced(every(AttenuationCorrected="NO")), refused("NAC"))
row(
    6,
    "enhanced, no reference time",
    enhanced(every(DecayCorrectionDateTime=None)),
    refused("DECAY_UNKNOWN"),
)
row(6, "enhanced, dose in Bq", enhanced(drug(RadionuclideTotalDose="370000000")), right("DOSE_BQ"))
row(6, "frames in a class without", every(NumberOfFrames="2"), refused("PIXEL_TRUNCATED"))


# --- 7: compression ---
def recoded(kind: int, syntax: str) -> Fault:
    """Compress the pixels of all slices with an encoder of its own."""

    def fault(scan: Scan) -> None:
        for k, one in enumerate(scan.slices):
            one.ds["PixelData"] = _encoded(kind, syntax, k)
            one.syntax = syntax

    return fault


@cache
def _encoded(kind: int, syntax: str, k: int) -> DataElement:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "slice.dcm"
        save(reference("GE").slices[k].ds, path, ExplicitVRLittleEndian)
        reader, change, writer = (
            gdcm.ImageReader(),
            gdcm.ImageChangeTransferSyntax(),
            gdcm.ImageWriter(),
        )
        reader.SetFileName(str(path))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(kind))
        change.SetInput(reader.GetImage())
        change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()
        ds = dcmread(path)
        assert ds.file_meta.TransferSyntaxUID == syntax
        return ds["PixelData"]


def relabelled(uid: str, was: bytes = b"1.2.840.10008.1.2.1\0") -> Fault:
    """Name another transfer syntax than the one that the files are written in."""

    def edit(content: bytes) -> bytes:
        named = uid.encode() + b"\0" * (len(uid) % 2)
        head, tail = content[:132], content[132:]
        start = tail.index(b"\x02\x00\x10\x00UI")
        length = int.from_bytes(tail[start + 6 : start + 8], "little")
        element = tail[start : start + 6] + len(named).to_bytes(2, "little") + named
        return head + tail[:start] + element + tail[start + 8 + length :]

    return files(edit)


def damaged_from_the_end(content: bytes) -> bytes:
    return content[:-60] + bytes(60)


PIXELS = b"\xe0\x7f\x10\x00OW\0\0"


def wrapped(content: bytes) -> bytes:
    """Put native pixels into fragments, as if they were compressed."""
    at = content.index(PIXELS)
    fragment = content[at + 12 :]
    items = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + len(fragment).to_bytes(4, "little")
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    return content[: at + 4] + b"OB\0\0\xff\xff\xff\xff" + items + fragment + end


for name, syntax in {
    "run lengths": RLELossless,
    "deflated": DeflatedExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "implicit": ImplicitVRLittleEndian,
}.items():
    row(7, name, written(syntax), right(), vendors=VENDORS)
row(
    7,
    "deflated, cut",
    both(written(DeflatedExplicitVRLittleEndian), file_of(3, lambda content: content[:-40])),
    refused("PIXEL_TRUNCATED"),
)
row(7, "two syntaxes in one series", written(RLELossless, (0, 3)), right())
row(7, "implicit and explicit in one series", written(ImplicitVRLittleEndian, (0, 3)), right())
LOSSLESS_JPEG = gdcm.TransferSyntax.JPEGLosslessProcess14_1
jpeg_ls = recoded(gdcm.TransferSyntax.JPEGLSLossless, JPEGLSLossless)
row(7, "JPEG-LS", jpeg_ls, right())
row(7, "JPEG 2000", recoded(gdcm.TransferSyntax.JPEG2000Lossless, JPEG2000Lossless), right())
row(
    7,
    "JPEG lossless",
    recoded(LOSSLESS_JPEG, JPEGLosslessSV1),
    right(),
)
row(7, "flagged as lossy", every(LossyImageCompression="01"), refused("LOSSY"), vendors=VENDORS)
row(7, "flagged in one slice", in_slice(3, LossyImageCompression="01"), refused("LOSSY"))
row(7, "flagged as not lossy", every(LossyImageCompression="00"), right())
row(7, "lossy syntax", both(written(RLELossless), relabelled(JPEGBaseline8Bit)), refused("LOSSY"))
row(
    7, "near lossless", both(written(RLELossless), relabelled(JPEGLSNearLossless)), refused("LOSSY")
)
row(
    7, "no decoder", both(written(RLELossless), relabelled(HTJ2KLossless)), refused("CODEC_MISSING")
)
row(
    7, "unknown syntax", both(written(RLELossless), relabelled("1.2.3.4")), refused("CODEC_MISSING")
)
row(
    7,
    "other codec",
    both(written(RLELossless), relabelled(JPEG2000Lossless)),
    refused("PIXEL_DECODE"),
)
row(
    7,
    "damaged codes",
    both(written(RLELossless), file_of(3, damaged_from_the_end)),
    refused("PIXEL_DECODE"),
)
row(
    7,
    "damaged JPEG-LS",
    both(
        recoded(gdcm.TransferSyntax.JPEGLSLossless, JPEGLSLossless),
        file_of(3, damaged_from_the_end),
    ),
    refused("PIXEL_DECODE"),
)
row(7, "native pixels in fragments", files(wrapped), refused("PARSE_ERROR"))
row(7, "native pixels named compressed", relabelled(JPEGLSLossless), right())
row(7, "explicit named implicit", relabelled(ImplicitVRLittleEndian), refused(*["PARSE_ERROR"] * 8))
row(
    7,
    "little endian named big endian",
    relabelled(ExplicitVRBigEndian),
    refused(*["PARSE_ERROR"] * 8),
)
row(7, "no syntax named", relabelled(""), refused(*["PARSE_ERROR"] * 8))

# --- 8: weight ---
for name, text in {
    "absent": None,
    "empty": "",
    "zero": "0",
    "negative": "-70",
    "nan": "NaN",
}.items():
    row(8, f"weight {name}", every(PatientWeight=text), unless_counts("WEIGHT_MISSING"))
for name, text in {
    "with a comma": "70,5",
    "with its unit": "70 kg",
    "twice": "70\\70",
    "of two values": "70\\75",
    "in a sentence": "about 70",
    "with an open exponent": "7e",
}.items():
    row(8, f"weight {name}", every(PatientWeight=text), unless_counts("WEIGHT_INVALID"))
for name, text in {
    "padded": "70   ",
    "with NUL": b"70\0\0",
    "with an exponent": "7.0E+1",
    "with a sign": "+70",
    "of many digits": "70.0000000000000",
}.items():
    row(8, f"weight {name}", every(PatientWeight=text), right(), vendors=VENDORS)
row(8, "weight in g", every(PatientWeight="70000"), right("WEIGHT_G"), vendors=VENDORS)
for text in ("350.1", "999", "inf"):
    row(8, f"weight {text}", every(PatientWeight=text), unless_counts("WEIGHT_RANGE"))
for text in ("1e9", "400000"):
    outcome = by_vendor(refused("WEIGHT_RANGE"), right("WEIGHT_G", "WEIGHT_RANGE"))
    row(8, f"weight {text}", every(PatientWeight=text), outcome)
row(
    8,
    "weight in one slice differs",
    in_slice(3, PatientWeight="71"),
    refused("INCONSISTENT_PATIENTWEIGHT"),
    vendors=VENDORS,
)
row(
    8,
    "weight in one slice absent",
    in_slice(3, PatientWeight=None),
    refused("INCONSISTENT_PATIENTWEIGHT"),
    vendors=VENDORS,
)
row(8, "weight written in two ways", in_slice(3, PatientWeight="70.00"), right())

# --- 9: weight and height that are others ---
row(
    9,
    "pounds",
    every(PatientWeight="154.3"),
    doubted("BMI_RANGE", "BODY_MEAN_SUV"),
    vendors=("GE", "SIEMENS"),
)
row(
    9, "pounds, no height", every(PatientWeight="154.3", PatientSize=None), doubted("BODY_MEAN_SUV")
)
row(
    9,
    "pounds, counts",
    every(PatientWeight="154.3"),
    refused("ROUTE_CONFLICT"),
    vendors=("PHILIPS",),
)
row(
    9,
    "weight and height exchanged",
    every(PatientWeight="1.7", PatientSize="70"),
    doubted("WEIGHT_RANGE", "BMI_RANGE"),
)
row(9, "height in cm", every(PatientSize="170"), right())
row(9, "no height", every(PatientSize=None), right(), vendors=VENDORS)
row(9, "height no number", every(PatientSize="1,70"), right(), vendors=VENDORS)

# --- 10: dose ---
for name, text in {
    "absent": None,
    "empty": "",
    "zero": "0",
    "negative": "-370000000",
    "nan": "nan",
}.items():
    row(10, f"dose {name}", drug(RadionuclideTotalDose=text), unless_counts("DOSE_MISSING"))
for name, text in {
    "with a comma": "370,5",
    "with its unit": "370 MBq",
    "twice": "370000000\\370000000",
}.items():
    row(10, f"dose {name}", drug(RadionuclideTotalDose=text), unless_counts("DOSE_INVALID"))
row(10, "dose in MBq", drug(RadionuclideTotalDose="370"), right("DOSE_MBQ"), vendors=VENDORS)
row(10, "dose with NUL", drug(RadionuclideTotalDose=b"370000000\0"), right(), vendors=VENDORS)
row(10, "dose with an exponent", drug(RadionuclideTotalDose="3.70E+8"), right())
implausible = by_vendor(refused("SUV_IMPLAUSIBLE"), refused("ROUTE_CONFLICT"))
row(10, "dose in mCi", drug(RadionuclideTotalDose="10"), implausible)
row(10, "dose in kBq", drug(RadionuclideTotalDose="370000"), implausible)
row(10, "dose in GBq", drug(RadionuclideTotalDose="0.37"), implausible)
row(10, "dose a third", drug(RadionuclideTotalDose="123000000"), implausible)
row(
    10,
    "dose tenfold",
    drug(RadionuclideTotalDose="3700000000"),
    by_vendor(doubted("DOSE_RANGE", "DOSE_BALANCE"), refused("ROUTE_CONFLICT")),
)
row(10, "no radiopharmaceutical", every(**{DRUG: None}), unless_counts("DOSE_MISSING"))
row(
    10,
    "one slice without",
    in_slice(3, **{DRUG: None}),
    refused(f"INCONSISTENT_{DRUG.upper()}"),
    vendors=VENDORS,
)
row(
    10,
    "dose in one slice differs",
    drug_in_slice(3, RadionuclideTotalDose="371000000"),
    refused("INCONSISTENT_RADIONUCLIDETOTALDOSE"),
    vendors=VENDORS,
)
row(10, "dose written in two ways", drug_in_slice(3, RadionuclideTotalDose="370000000.00"), right())


def second_item(**values: str | None) -> Fault:
    def change(ds: Dataset, _: int) -> None:
        first = ds[DRUG].value[0]
        other = Dataset()
        other.update(first)
        put(other, **values)
        setattr(ds, DRUG, Sequence([first, other]))

    return each(change)


row(10, "two items alike", second_item(), right())
row(
    10, "two doses", second_item(RadionuclideTotalDose="1e8"), unless_counts("RADIOPHARM_AMBIGUOUS")
)


def outside(ds: Dataset, _: int) -> None:
    for found in list(ds[DRUG].value[0]):
        ds[found.tag] = found
    del ds[DRUG]


row(10, "dose outside its sequence", each(outside), right("RADIOPHARM_TOP_LEVEL"))

# --- 11: half-life ---
row(
    11,
    "half-life absent",
    drug(RadionuclideHalfLife=None),
    right("HALFLIFE_FROM_CODE"),
    vendors=VENDORS,
)
row(11, "half-life zero", drug(RadionuclideHalfLife="0"), right("HALFLIFE_FROM_CODE"))
row(
    11,
    "half-life absent, nuclide by name",
    drug(RadionuclideHalfLife=None, RadionuclideCodeSequence=None),
    right("HALFLIFE_FROM_CODE"),
)
row(
    11,
    "half-life absent, nuclide too",
    drug(RadionuclideHalfLife=None, RadionuclideCodeSequence=None, Radiopharmaceutical=None),
    unless_counts("HALFLIFE_MISSING"),
)
row(11, "half-life 6588", drug(RadionuclideHalfLife="6588"), right(), vendors=VENDORS)
for name, text in {
    "in minutes": "109.77",
    "in hours": "1.8295",
    "of carbon": "1221.8",
    "of gallium": "4069.8",
    "2 % off": "6718",
}.items():
    row(
        11, f"half-life {name}", drug(RadionuclideHalfLife=text), unless_counts("HALFLIFE_MISMATCH")
    )
row(
    11,
    "half-life in minutes, nuclide absent",
    drug(RadionuclideHalfLife="109.77", RadionuclideCodeSequence=None, Radiopharmaceutical=None),
    unless_counts("HALFLIFE_MISMATCH"),
)
row(
    11,
    "half-life with a comma",
    drug(RadionuclideHalfLife="6586,2"),
    unless_counts("HALFLIFE_INVALID"),
)
row(11, "half-life 0.1", drug(RadionuclideHalfLife="0.1"), unless_counts("HALFLIFE_RANGE"))
row(
    11,
    "half-life in one slice differs",
    drug_in_slice(3, RadionuclideHalfLife="6588"),
    refused("INCONSISTENT_RADIONUCLIDEHALFLIFE"),
    vendors=VENDORS,
)

# --- 12: injection time ---
START, START_BOTH = "RadiopharmaceuticalStartTime", "RadiopharmaceuticalStartDateTime"
never = drug(**{START: None, START_BOTH: None})
no_private_injection = private(0x0009, 0x3B, None)
row(12, "no injection time, but a private one", never, right("INJ_TIME_PRIVATE"))
row(
    12,
    "no injection time",
    both(never, no_private_injection),
    unless_counts("INJ_TIME_MISSING"),
)
row(
    12,
    "injection time empty",
    both(drug(**{START: "", START_BOTH: ""}), no_private_injection),
    unless_counts("INJ_TIME_MISSING"),
)
row(
    12,
    "only the date and time",
    drug(**{START: None, START_BOTH: "20200304100000"}),
    right(),
    vendors=VENDORS,
)
row(12, "only the time", drug(**{START_BOTH: None}), right(), vendors=VENDORS)
for text in ("10:00:00", "1000", "10", "100000.0", "100000.000000"):
    row(
        12,
        f"injection time {text}",
        drug(**{START: text, START_BOTH: None}),
        right(),
        vendors=VENDORS,
    )
for text in ("250000", "1:00", "morning", "100099", "1e5"):
    row(
        12,
        f"injection time {text}",
        drug(**{START: text, START_BOTH: None}),
        unless_counts("INJ_TIME_INVALID"),
    )
row(
    12,
    "injection time in one slice differs",
    drug_in_slice(3, **{START: "100001.00"}),
    refused(f"INCONSISTENT_{START.upper()}"),
    vendors=VENDORS,
)
row(
    12,
    "two injection times",
    drug(**{START: "093000", START_BOTH: "20200304100000"}),
    right("INJ_TIME_CONFLICT"),
    vendors=VENDORS,
)

# --- 13: midnight ---
midnight = datetime(2020, 3, 5, 0, 20)
row(13, "injection before midnight", times(midnight), right(), vendors=VENDORS)
row(
    13,
    "midnight between injection and scan, only times",
    both(times(midnight), drug(**{START_BOTH: None})),
    right(),
    vendors=VENDORS,
)
wrong_day = drug(**{START: None, START_BOTH: "20200305232000"})
row(
    13,
    "injection dated a day late",
    both(times(midnight), wrong_day),
    right("DATE_REBUILT"),
    vendors=VENDORS,
)
between_beds = datetime(2020, 3, 4, 23, 58)
row(13, "midnight between the beds", times(between_beds), right(), vendors=VENDORS)


def dates(**values: str | None) -> Fault:
    return every(**values)


NO_DATES = dict.fromkeys(
    ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AcquisitionDateTime")
)
row(
    13,
    "midnight between the beds, no dates",
    both(times(between_beds), dates(**NO_DATES)),
    {
        "GE": right("PRIVATE_TIME_IGNORED"),
        "SIEMENS": right("PRIVATE_TIME_IGNORED", "DATE_REBUILT"),
        "PHILIPS": right("DATE_REBUILT"),
    },
)
row(
    13,
    "midnight between the beds, one date",
    both(times(between_beds), dates(AcquisitionDate="20200304", ContentDate="20200304")),
    refused("SUV_TREF_INCONSISTENT"),
    vendors=VENDORS,
)

# --- 14: dates moved ---
for day in ("19600101", "18850101", "20200301", "21000101", "00010101"):
    row(
        14,
        f"injection dated {day}",
        drug(**{START_BOTH: f"{day}100000"}),
        right("DATE_REBUILT"),
        vendors=VENDORS,
    )
MOVED = dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), "19000704")
row(
    14,
    "public dates moved",
    both(dates(**MOVED), drug(**{START_BOTH: None})),
    {
        "GE": right("PRIVATE_TIME_IGNORED", "PRIVATE_DATE_LEAK"),
        "SIEMENS": right("PRIVATE_TIME_IGNORED", "PRIVATE_DATE_LEAK"),
        "PHILIPS": right(),
    },
)
row(14, "series date moved", dates(SeriesDate="19600101"), right("DATE_MISMATCH"), vendors=VENDORS)
row(14, "study date moved", dates(StudyDate="19600101"), right(), vendors=VENDORS)
row(
    14,
    "acquisition date moved",
    dates(AcquisitionDate="19600101"),
    {
        "GE": right("DATE_MISMATCH", "PRIVATE_TIME_IGNORED"),
        "SIEMENS": right("DATE_MISMATCH", "PRIVATE_TIME_IGNORED", "DATE_REBUILT"),
        "PHILIPS": right("DATE_MISMATCH", "DATE_REBUILT"),
    },
)
row(
    14,
    "no dates",
    dates(**NO_DATES),
    {
        "GE": right("PRIVATE_TIME_IGNORED"),
        "SIEMENS": right("PRIVATE_TIME_IGNORED", "DATE_REBUILT"),
        "PHILIPS": right("DATE_REBUILT"),
    },
)
row(14, "no acquisition date", dates(AcquisitionDate=None), right(), vendors=VENDORS)
row(14, "dates with points", dates(**dict.fromkeys(MOVED, "2020.03.04")), right(), vendors=VENDORS)
row(14, "a date of no calendar", dates(AcquisitionDate="20201345"), unless_counts("TIME_INVALID"))
row(
    14,
    "only date and time of acquisition",
    every(AcquisitionDate=None, AcquisitionTime=None, AcquisitionDateTime="20200304110000"),
    {
        "GE": right(),
        "SIEMENS": right(),
        "PHILIPS": right(),
    },
)

# --- 15: uptake ---
row(
    15,
    "injection 2 h after the scan",
    drug(**{START: "130000", START_BOTH: None}),
    unless_counts("UPTAKE_RANGE"),
)
row(
    15,
    "injection 2 h after the scan, dated",
    drug(**{START: None, START_BOTH: "20200304130000"}),
    unless_counts("UPTAKE_RANGE"),
)
row(
    15,
    "injection 30 min after the scan",
    drug(**{START: "113000", START_BOTH: None}),
    by_vendor(doubted("UPTAKE_RANGE"), refused("ROUTE_CONFLICT")),
)
row(
    15,
    "injection 5 min before the scan",
    times(SCAN, timedelta(minutes=5)),
    by_vendor(doubted("UPTAKE_RANGE"), refused("ROUTE_CONFLICT")),
)
row(
    15,
    "injection 9 h before the scan",
    times(SCAN, timedelta(hours=9)),
    unless_counts("UPTAKE_RANGE"),
)
row(
    15,
    "injection 4 h before the scan",
    times(SCAN, timedelta(hours=4)),
    by_vendor(refused("SUV_IMPLAUSIBLE"), refused("ROUTE_CONFLICT")),
)

# --- 16: decay correction ---
for name, text in {"absent": None, "empty": "", "unknown": "MAYBE"}.items():
    row(16, f"decay correction {name}", every(DecayCorrection=text), unless_counts("DECAY_UNKNOWN"))
row(16, "in small letters", every(DecayCorrection="start "), right(), vendors=VENDORS)
to_injection = 2 ** (factory.UPTAKE_S / factory.HALF_LIFE_S)
row(
    16,
    "to the injection",
    both(every(DecayCorrection="ADMIN"), scaled(to_injection)),
    right(),
    vendors=("GE", "SIEMENS"),
)


def undecayed(scan: Scan) -> None:
    """Take the decay correction of each bed back."""
    for k, one in enumerate(scan.slices):
        seconds = 180 * (k // 4) + _average_s()
        put(one.ds, DecayCorrection="NONE", CorrectedImage="ATTN\\SCAT")
        slope = float(one.ds.RescaleSlope) * 2 ** (-seconds / factory.HALF_LIFE_S)
        one.ds.RescaleSlope = f"{slope:.10g}"


def _average_s() -> float:
    """When the activity of a bed equals its average, by bisection of the decay curve."""
    grid = np.linspace(0, 180, 200_001)
    curve = 2 ** (-grid / factory.HALF_LIFE_S)
    return float(grid[np.abs(curve - np.trapezoid(curve, grid) / 180).argmin()])


row(16, "not corrected", undecayed, right(), vendors=("GE", "SIEMENS"))
row(
    16,
    "not corrected, no duration",
    both(undecayed, every(ActualFrameDuration=None)),
    refused("FRAME_DURATION_MISSING"),
)
row(
    16,
    "says corrected, lacks the flag",
    every(CorrectedImage="ATTN\\SCAT"),
    unless_counts("DECAY_UNKNOWN"),
)
row(
    16,
    "one slice otherwise",
    in_slice(3, DecayCorrection="NONE"),
    refused("INCONSISTENT_DECAYCORRECTION"),
    vendors=VENDORS,
)

# --- 17: units ---
for text in ("PROPCNTS", "PROPCPS", "CPS", "1CM", "NONE", "CM2", "PCNT", "STDDEV"):
    row(17, f"units {text}", every(Units=text), refused(f"UNITS_{text}"))
row(17, "units absent", every(Units=None), refused("UNITS_MISSING"), vendors=VENDORS)
row(17, "units empty", every(Units=""), refused("UNITS_MISSING"), vendors=VENDORS)
row(17, "units unknown", every(Units="BQCC"), refused("UNITS_UNKNOWN"), vendors=VENDORS)
row(17, "units in small letters", every(Units="bqml "), right())
row(
    17,
    "counts of another vendor",
    every(Units="CNTS"),
    refused("UNITS_CNTS"),
    vendors=("GE", "SIEMENS"),
)
row(
    17,
    "units of one slice differ",
    in_slice(3, Units="GML"),
    refused("INCONSISTENT_UNITS"),
    vendors=VENDORS,
)
row(17, "stored SUV", both(every(Units="GML"), scaled(factory.FACTOR)), right())
row(
    17,
    "stored SUV, said so",
    both(every(Units="GML", SUVType="BW"), scaled(factory.FACTOR)),
    right(),
)
LEAN = 1.07 * 70 - 148 * (70 / 170) ** 2
row(
    17,
    "stored SUV by lean mass",
    both(every(Units="GML", SUVType="LBMJAMES128"), scaled(factory.FACTOR * LEAN / 70)),
    right(),
)
row(17, "stored SUV of unknown type", every(Units="GML", SUVType="BSA"), refused("SUVTYPE_UNKNOWN"))
row(
    17,
    "stored SUV by lean mass, no height",
    every(Units="GML", SUVType="LBM", PatientSize=None),
    refused("HEIGHT_MISSING"),
)
row(
    17,
    "stored SUV by lean mass, no sex",
    every(Units="GML", SUVType="LBM", PatientSex=None),
    refused("SEX_MISSING"),
)
surface_cm2 = 0.007184 * 170**0.725 * 70**0.425 * 1e4
row(
    17,
    "stored SUV by surface",
    both(every(Units="CM2ML"), scaled(factory.FACTOR * surface_cm2 / 70000)),
    right(),
)
for name, fault, outcome in (
    ("no factor", both(private(0x7053, 0, None), private(0x7053, 9, None)), refused("UNITS_CNTS")),
    ("factors of 0", both(private(0x7053, 0, "0"), private(0x7053, 9, "0")), refused("UNITS_CNTS")),
    ("only the SUV factor", private(0x7053, 9, None), right()),
    ("only the activity factor", private(0x7053, 0, None), right()),
    ("the creator lost", no_creator(0x7053), right("PRIVATE_BARE")),
    ("a negative factor", private(0x7053, 9, "-1.25"), refused("PHILIPS_FACTOR")),
    ("a factor with a comma", private(0x7053, 9, "1,25"), refused("PHILIPS_FACTOR")),
    ("factors 10 % apart", private(0x7053, 9, "1.375"), refused("ROUTE_CONFLICT")),
    (
        "factors 2 % apart",
        private(0x7053, 0, f"{1.02 * 1.25 * factory.FACTOR:.8g}"),
        right("ROUTE_DIFFERENCE"),
    ),
):
    row(17, f"counts, {name}", fault, outcome, vendors=("PHILIPS",))


def factor_of_one_slice(scan: Scan) -> None:
    ds = scan.slices[3].ds
    ds[0x70531000].value = f"{1.02 * float(ds[0x70531000].value):.8g}"


row(
    17,
    "counts, one SUV factor differs",
    factor_of_one_slice,
    right("ROUTE_DIFFERENCE"),
    vendors=("PHILIPS",),
)

# --- 18: the scan's own time ---
no_private_scan = both(private(0x0009, 0x0D, None), private(0x0071, 0x22, None))
row(
    18,
    "series time rewritten later",
    every(SeriesTime="153000"),
    right("SERIES_TIME_LATER"),
    vendors=VENDORS,
)
row(18, "series time absent", every(SeriesTime=None, SeriesDate=None), right(), vendors=VENDORS)
row(
    18,
    "series time half an hour earlier",
    every(SeriesTime="103000"),
    {
        "GE": right("ROUTE_DIFFERENCE"),
        "SIEMENS": right("ROUTE_DIFFERENCE"),
        "PHILIPS": right("ROUTE_CONFLICT"),
    },
)
row(18, "series time of no clock", every(SeriesTime="256000"), unless_counts("TIME_INVALID"))
row(18, "no private scan time", no_private_scan, right(), vendors=VENDORS)
row(
    18,
    "the private creator lost",
    both(no_creator(0x0009), no_creator(0x0071)),
    right("PRIVATE_BARE"),
    vendors=("GE", "SIEMENS"),
)
row(
    18,
    "private scan time 30 min early",
    both(private(0x0009, 0x0D, "20200304103000.00"), private(0x0071, 0x22, "20200304103000.00")),
    refused("ROUTE_CONFLICT"),
    vendors=("GE", "SIEMENS"),
)
row(
    18,
    "private scan time unreadable",
    both(private(0x0009, 0x0D, "junk"), private(0x0071, 0x22, "junk")),
    right("PRIVATE_TIME_IGNORED"),
    vendors=("GE", "SIEMENS"),
)
row(
    18,
    "no frame reference time",
    every(FrameReferenceTime=None),
    {
        "GE": right(),
        "SIEMENS": right(),
        "PHILIPS": right("SCAN_TIME_MISSING"),
    },
)
row(
    18,
    "no acquisition time",
    every(AcquisitionTime=None),
    {"GE": right(), "SIEMENS": right(), "PHILIPS": right("SCAN_TIME_MISSING")},
)
row(
    18,
    "acquisition time of one slice 10 min late",
    in_slice(3, AcquisitionTime="111000"),
    {
        "GE": right("ROUTE_UNUSABLE"),
        "SIEMENS": right("ROUTE_UNUSABLE"),
        "PHILIPS": refused("SUV_TREF_INCONSISTENT"),
    },
)
row(18, "no manufacturer", every(Manufacturer=None), right(), vendors=VENDORS)
row(
    18,
    "another manufacturer",
    every(Manufacturer="IMAGE Inc."),
    {"GE": right("ROUTE_UNUSABLE"), "SIEMENS": right(), "PHILIPS": refused("UNITS_CNTS")},
)

# --- 19: intercept ---
row(19, "intercept -5", every(RescaleIntercept="-5"), refused("INTERCEPT"), vendors=VENDORS)
row(
    19,
    "intercept of one slice",
    in_slice(3, RescaleIntercept="0.001"),
    refused("INTERCEPT"),
    vendors=VENDORS,
)
for text in ("nan", "0,0", "0\\0", "none"):
    row(19, f"intercept {text}", every(RescaleIntercept=text), refused("INTERCEPT"))
for name, text in {
    "absent": None,
    "empty": "",
    "0.000": "0.000",
    "-0": "-0",
    "0 with NUL": b"0\0",
}.items():
    row(19, f"intercept {name}", every(RescaleIntercept=text), right(), vendors=VENDORS)


def shifted(scan: Scan) -> None:
    for one, stored in zip(scan.slices, scan.stored, strict=True):
        one.ds.RescaleIntercept = f"{-100 * float(one.ds.RescaleSlope):.10g}"
        one.ds.PixelData = (stored + 100).astype(np.int16).tobytes()


row(
    19, "intercept allowed", shifted, right("INTERCEPT_USED"), vendors=VENDORS, allow_intercept=True
)

# --- 20: slope ---
for name, text in {
    "zero": "0",
    "negative": "-0.2",
    "absent": None,
    "empty": "",
    "nan": "nan",
    "inf": "inf",
    "too large": "1e999",
    "with a comma": "0,2",
    "twice": "0.2\\0.2",
    "no number": "slope",
}.items():
    row(20, f"one slope {name}", in_slice(3, RescaleSlope=text), refused("SLOPE"), vendors=VENDORS)
    row(20, f"all slopes {name}", every(RescaleSlope=text), refused("SLOPE"))


def one_slope(scan: Scan) -> None:
    for k in range(SLICES):
        scan.slices[k].ds.RescaleSlope = "0.2"
        scan.suv[k] *= 0.2 / round(0.2 + 0.01 * k, 4)


row(20, "one slope for all", one_slope, right(), vendors=VENDORS)


def another_slope(scan: Scan) -> None:
    scan.slices[3].ds.RescaleSlope = "0.115"
    scan.suv[3] *= 0.5


row(20, "one slice of half the slope", another_slope, right(), vendors=VENDORS)
row(20, "one slope 1e300", in_slice(3, RescaleSlope="1e300"), refused("SUV_IMPLAUSIBLE"))
row(20, "all slopes 1e-300", every(RescaleSlope="1e-300"), refused("EMPTY_IMAGE"))
row(20, "slopes a thousandfold", scaled(1000), refused("SUV_IMPLAUSIBLE"), vendors=VENDORS)


# --- 21: several frames ---
def frames(**per_frame: tuple[str | int, str | int]) -> Fault:
    """Put two frames at each of four places."""

    def change(ds: Dataset, k: int) -> None:
        ds.ImagePositionPatient = [-300, -280, 80 * (k // 2)]
        put(ds, **{keyword: values[k % 2] for keyword, values in per_frame.items()})

    return each(change)


for name, values in {
    "frame reference times": {"FrameReferenceTime": ("1000", "61000")},
    "acquisition times": {"AcquisitionTime": ("110000", "111000")},
    "temporal positions": {"TemporalPositionIdentifier": ("1", "2")},
    "durations": {"ActualFrameDuration": ("10000", "30000")},
}.items():
    row(21, f"two {name}", frames(**values), refused("DYNAMIC"))
row(21, "two gates", frames(TriggerTime=("0", "400")), refused("GATED"))
row(21, "two frames without a time", frames(), refused("DUP_CONFLICT"))
for kind in ("DYNAMIC", "GATED"):
    row(21, f"says {kind}", every(SeriesType=f"{kind}\\IMAGE"), refused(kind), vendors=VENDORS)
row(21, "whole body", every(SeriesType="WHOLE BODY\\IMAGE"), right(), vendors=VENDORS)
row(21, "no series type", every(SeriesType=None), right())

# --- 22: attenuation correction ---
row(22, "no ATTN", every(CorrectedImage="DECY\\SCAT"), refused("NAC"), vendors=VENDORS)
row(
    22,
    "no ATTN in one",
    in_slice(3, CorrectedImage="DECY\\SCAT"),
    refused("INCONSISTENT_CORRECTEDIMAGE"),
    vendors=VENDORS,
)
row(22, "attenuation corrected: NO", every(AttenuationCorrected="NO"), refused("NAC"))
row(22, "flags in small letters", every(CorrectedImage="decy\\attn "), right())
row(
    22,
    "no flags",
    every(CorrectedImage=None),
    right("CORRECTION_UNKNOWN"),
    vendors=VENDORS,
)
row(22, "DECAY in place of DECY", every(CorrectedImage="DECAY\\ATTN"), right())
for text in (
    "NAC",
    "WB_NAC",
    "PET nac 3D",
    "[WB_NOAC]",
    "PET WB Uncorrected",
    "WB no-AC",
    "non-attenuation corrected",
    "PET WB (NO ATTN)",
    "without attenuation correction",
    "Non AC",
    "UNCORR",
):
    row(22, f"described as {text}", every(SeriesDescription=text), refused("NAC"))
for text in ("WB 3D AC", "CTAC", "Nacken AC", "Snack", "Pharmacology trial", "Iterative"):
    row(22, f"described as {text}", every(SeriesDescription=text), right())
row(22, "described as MAC", every(SeriesDescription="WB MAC"), right("MAC"))

# --- 23: pictures that no scanner measured ---
for kind in ("MIP", "REFORMATTED", "MPR", "PROJECTION IMAGE", "SCREEN SAVE"):
    row(23, f"a {kind}", every(ImageType=f"DERIVED\\SECONDARY\\{kind}"), refused("DERIVED"))
row(
    23,
    "a MIP among slices",
    in_slice(3, ImageType="DERIVED\\SECONDARY\\MIP"),
    refused("DERIVED"),
    vendors=VENDORS,
)
row(23, "a reprojection", every(SeriesType="WHOLE BODY\\REPROJECTION"), refused("DERIVED"))
row(23, "a secondary capture", every(SOPClassUID=CAPTURE), refused("DERIVED"), vendors=VENDORS)
row(23, "one secondary capture", in_slice(3, SOPClassUID=CAPTURE), refused("DERIVED"))
row(23, "no class in the data set", every(SOPClassUID=None), refused("DERIVED"))
row(23, "no image type", every(ImageType=None), right())

# --- 24: slices that disagree ---
for keyword, text in {
    "PatientBirthDate": "19500608",
    "PatientSex": "M",
    "PatientSize": "1.8",
    "PatientName": "OTHER^NAME",
    "FrameOfReferenceUID": "1.2.3",
    "PixelRepresentation": 0,
    "SeriesType": "GATED\\IMAGE",
    "Manufacturer": "OTHER",
    "StudyDate": "20200305",
    "SeriesDate": "20200305",
    "SeriesTime": "110001",
    "Modality": "CT",
}.items():
    row(
        24,
        f"{keyword} of one slice",
        in_slice(3, **{keyword: text}),
        refused(f"INCONSISTENT_{keyword.upper()}"),
        vendors=VENDORS,
    )
row(24, "modality of the first slice", in_slice(0, Modality="CT"), refused("INCONSISTENT_MODALITY"))
row(
    24,
    "nuclide of one slice",
    drug_in_slice(3, RadionuclideCodeSequence=None, Radiopharmaceutical="Ga-68"),
    refused("INCONSISTENT_RADIONUCLIDECODESEQUENCE"),
)
row(
    24,
    "duration of one slice",
    in_slice(3, ActualFrameDuration="170000"),
    right(),
    vendors=VENDORS,
)
row(24, "description of one slice", in_slice(3, SeriesDescription="other"), right())
row(
    24,
    "one slice of another patient's name and identifier",
    in_slice(3, PatientID="B", PatientName="B"),
    refused("INCONSISTENT_PATIENTID", "INCONSISTENT_PATIENTID"),
)


# --- 25: damaged files ---
def floating(ds: Dataset, _: int) -> None:
    ds.add_new(0x7FE00008, "OF", bytes(512))
    del ds.PixelData


def nested(depth: int) -> Fault:
    def change(ds: Dataset, _: int) -> None:
        for _ in range(depth):
            item = Dataset()
            item.add_new(0x00540016, "SQ", Sequence(ds[DRUG].value))
            setattr(ds, DRUG, Sequence([item]))

    return each(change)


def after_text(text: bytes, new: bytes) -> Fault:
    return file_of(3, lambda content: content.replace(text, new, 1))


def length_of_pixels(length: int) -> Fault:
    def edit(content: bytes) -> bytes:
        at = content.index(PIXELS) + 8
        return content[:at] + length.to_bytes(4, "little") + content[at + 4 :]

    return file_of(3, edit)


def cut(before: bytes) -> Fault:
    """End a file two bytes into a text."""
    return file_of(3, lambda content: content[: content.index(before) + 2])


row(
    25,
    "half the pixels",
    in_slice(3, PixelData=bytes(256)),
    refused("PIXEL_TRUNCATED"),
    vendors=VENDORS,
)
row(25, "no pixels", in_slice(3, PixelData=None), refused("PIXEL_TRUNCATED"), vendors=VENDORS)
row(25, "pixels empty", in_slice(3, PixelData=b""), refused("PIXEL_TRUNCATED"))
row(25, "twice the pixels", in_slice(3, PixelData=bytes(1024)), refused("PARSE_ERROR"))
row(25, "a last byte lost", file_of(3, lambda content: content[:-1]), refused("PIXEL_TRUNCATED"))
row(
    25,
    "bytes after the pixels",
    file_of(3, lambda content: content + bytes(1000)),
    right(),
    vendors=VENDORS,
)
row(
    25,
    "an element after the pixels",
    each(lambda ds, _: ds.add_new(0xFFFCFFFC, "OB", bytes(126))),
    right(),
)
row(25, "pixels said to be 4 GB", length_of_pixels(0xFFFFFFFE), refused("PIXEL_TRUNCATED"))
row(25, "pixels said to be none", length_of_pixels(0), refused("PIXEL_TRUNCATED"))
row(25, "pixels said to be encapsulated", length_of_pixels(0xFFFFFFFF), refused("PARSE_ERROR"))
row(
    25,
    "cut in the pixels",
    file_of(3, lambda content: content[:-100]),
    refused("PIXEL_TRUNCATED"),
    vendors=VENDORS,
)
row(25, "cut in the header", cut(b"CANARY-ID"), refused("GAP", "PARSE_ERROR"), vendors=VENDORS)
row(25, "cut behind the identity", cut(b"MONOCHROME2"), refused("PARSE_ERROR"), vendors=VENDORS)
row(
    25,
    "cut to its preamble",
    file_of(3, lambda content: content[:132]),
    refused("GAP", "PARSE_ERROR"),
)
row(
    25,
    "an undefined representation",
    after_text(b"\x10\x00\x30\x10DS", b"\x10\x00\x30\x10Q?"),
    refused("GAP", "PARSE_ERROR"),
)
row(
    25,
    "a representation of long length",
    after_text(b"\x10\x00\x30\x10DS", b"\x10\x00\x30\x10UN"),
    refused("GAP", "PARSE_ERROR"),
)
row(
    25,
    "a length beyond the end",
    after_text(b"\x54\x00\x01\x10CS\x04\0", b"\x54\x00\x01\x10CS\xff\xff"),
    refused("PARSE_ERROR"),
)
row(25, "sequences 80 deep", nested(80), refused("PARSE_ERROR"))
row(25, "sequences 5 deep", nested(5), refused("DOSE_MISSING"))
row(25, "pixels as bytes", each(lambda ds, _: setattr(ds["PixelData"], "VR", "OB")), right())
row(25, "floating-point pixels", each(floating), refused("PIXEL_FORMAT"))
row(25, "an overlay", each(lambda ds, _: ds.add_new(0x60003000, "OW", bytes(32))), right())
row(
    25,
    "a large private element",
    each(lambda ds, _: ds.add_new(0x00111001, "OB", bytes(100_000))),
    right(),
    vendors=VENDORS,
)
row(
    25,
    "sequence of undefined length",
    each(lambda ds, _: setattr(ds[DRUG], "is_undefined_length", True)),
    right(),
    vendors=VENDORS,
)

# --- 26, 27, 28: other files, links and names ---
STRAY: dict[str, bytes] = {"empty.dcm": b"", "notes.txt": b"hello", "a.zip": b"PK\3\4" + bytes(99)}
STRAY |= {"Thumbs.db": b"\xd0\xcf\x11\xe0" + bytes(600), "report.pdf": b"%PDF-1.4", "short": b"x"}


def stray(folder: Path) -> None:
    for name, content in STRAY.items():
        (folder / name).write_bytes(content)


row(26, "other files beside", in_folder(stray), right(EMPTY_FILE=1, NOT_DICOM=5), vendors=VENDORS)
row(26, "one file empty", file_of(3, lambda _: b""), refused("GAP", EMPTY_FILE=1))
row(
    26,
    "one file without preamble",
    file_of(3, lambda content: content[132:]),
    refused("GAP", NO_DICOM_PREAMBLE=1),
)
row(
    26,
    "all files without preamble",
    files(lambda content: content[132:]),
    refused(NO_DICOM_PREAMBLE=8),
)
row(26, "other preambles", files(lambda content: b"II*\0" + b"\x7f" * 124 + content[128:]), right())
row(
    26,
    "a directory file",
    beside("GE", every(SOPClassUID="1.2.840.10008.1.3.10")),
    right(DICOMDIR=8),
)
row(
    27,
    "a link to a slice",
    in_folder(lambda folder: (folder / "x").symlink_to("000.dcm")),
    right(LINK=1),
)
row(27, "a loop", in_folder(lambda folder: (folder / "x").symlink_to(folder)), right(LINK=1))
row(
    27,
    "a link to nothing",
    in_folder(lambda folder: (folder / "x").symlink_to("gone")),
    right(LINK=1),
)
row(
    27, "a pipe", in_folder(lambda folder: os.mkfifo(folder / "x.dcm")), right(NOT_A_REGULAR_FILE=1)
)
row(
    27,
    "a hard link",
    in_folder(lambda folder: (folder / "x").hardlink_to(folder / "000.dcm")),
    right("DUP_INSTANCE", DUP_INSTANCE=1),
)


def renamed(*names: str) -> Fault:
    def fault(scan: Scan) -> None:
        for one, name in zip(scan.slices, names, strict=False):
            one.name = name

    return fault


row(
    28,
    "odd names",
    renamed("ü ñ 漢字.dcm", "CON", "a\nb", "-rf", "x" * 255, "%s{}", ".hidden"),
    right(),
    vendors=VENDORS,
)
row(28, "a folder for each slice", renamed(*[f"{k}/{k}/a.dcm" for k in range(8)]), right())
for name, charset, written_name in (
    ("Latin", "ISO_IR 100", "Müller^Jürgen".encode("latin-1")),
    ("Chinese", "GB18030", "王^小东".encode("gb18030")),
    ("an unknown set", "KLINGON", b"\xff\xfe^\x80"),
    ("undeclared", None, b"\xff\xfe^\x80"),
):
    row(
        28,
        f"a name in {name}",
        every(SpecificCharacterSet=charset, PatientName=written_name, PatientID=written_name),
        right(),
        vendors=VENDORS,
    )

# --- 29, 30: pixels of other kinds, and sizes ---
row(29, "burned-in text", every(BurnedInAnnotation="YES"), refused("BURNED_IN"), vendors=VENDORS)
row(29, "burned-in text in one", in_slice(3, BurnedInAnnotation="YES"), refused("BURNED_IN"))
row(29, "no burned-in text", every(BurnedInAnnotation="NO"), right())
row(29, "screen save by description", every(SeriesDescription="Screen Save"), refused("BURNED_IN"))
row(29, "saved picture", every(ImageType="DERIVED\\SECONDARY\\SAVE"), refused("BURNED_IN"))


def colour(ds: Dataset, _: int) -> None:
    put(ds, SamplesPerPixel=3, PhotometricInterpretation="RGB", BitsAllocated=8, BitsStored=8)
    put(ds, HighBit=7, PixelRepresentation=0, PixelData=bytes(3 * 256))


def eight_bits(ds: Dataset, _: int) -> None:
    put(ds, BitsAllocated=8, BitsStored=8, HighBit=7, PixelRepresentation=0, PixelData=bytes(256))


def unsigned(scan: Scan) -> None:
    for one in scan.slices:
        put(one.ds, PixelRepresentation=0, BitsStored=15, HighBit=14)


row(29, "colour", each(colour), refused("PIXEL_FORMAT"), vendors=VENDORS)
row(29, "8 bits", each(eight_bits), refused("PIXEL_FORMAT"), vendors=VENDORS)
row(29, "32 bits", every(BitsAllocated=32), refused("PIXEL_TRUNCATED"))
row(29, "15 of 16 bits", unsigned, right())
row(29, "inverted", every(PhotometricInterpretation="MONOCHROME1"), refused("PIXEL_FORMAT"))
row(29, "palette", every(PhotometricInterpretation="PALETTE COLOR"), refused("PIXEL_FORMAT"))
row(29, "no interpretation", every(PhotometricInterpretation=None), refused("PIXEL_FORMAT"))
row(29, "another high bit", every(HighBit=7), refused("PIXEL_FORMAT"))
row(29, "no sign", every(PixelRepresentation=None), refused("PIXEL_FORMAT"))


def huge(scan: Scan) -> None:
    """Compress the pixels, and then say that they are more."""
    for one in scan.slices:
        one.ds.compress(RLELossless, generate_instance_uid=False)
        one.ds.Rows = one.ds.Columns = 65535
        one.syntax = RLELossless


row(30, "a billion frames", every(NumberOfFrames="1000000000"), refused("PIXEL_TRUNCATED"))
row(30, "a huge picture", every(Rows=65535, Columns=65535), refused("PIXEL_TRUNCATED"))
row(
    30,
    "a huge compressed picture",
    huge,
    refused("FILE_LIMIT"),
)
row(30, "no rows", every(Rows=0), refused("PARSE_ERROR"))
row(30, "rows absent", every(Rows=None), refused("PARSE_ERROR"))
row(30, "negative frames", every(NumberOfFrames="-1"), refused("PARSE_ERROR"))

# --- 33: what is in view ---
row(33, "a part of the body", without(6, 7), right("SHORT_FOV", "SLICE_COUNT"), vendors=VENDORS)
row(
    33,
    "nothing in view",
    each(lambda ds, _: put(ds, PixelData=bytes(512))),
    refused("EMPTY_IMAGE"),
    vendors=VENDORS,
)
row(
    33,
    "one slice without counts",
    both(in_slice(3, PixelData=bytes(512)), lambda scan: scan.suv[3].fill(0)),
    right(),
)
for text in ("NEMA IEC Phantom", "Daily Quality Control", "Jaszczak", "Uniformity"):
    row(33, f"described as {text}", every(SeriesDescription=text), refused("PHANTOM"))
row(33, "studied as a phantom", every(StudyDescription="PHANTOM^QC"), refused("PHANTOM"))
row(33, "a germanium cylinder", drug(Radiopharmaceutical="Ge-68"), refused("PHANTOM"))
row(
    33,
    "an animal",
    every(PatientSpeciesDescription="Mus musculus"),
    refused("ANIMAL"),
    vendors=VENDORS,
)
row(33, "a human being", every(PatientSpeciesDescription="Homo sapiens"), right())
