"""Reference scans of three vendors for faults to be put into, and the tools to put them in.

Each is a coarse whole body of 8 slices that holds a plausible share of its dose, so that intake has
nothing to note and checks of the dose have something to check. The SUV is known in closed form.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from tests.preprocessing import dicom_factory as factory

SLICES, SHAPE, SPACING = 8, (16, 16), (80.0, 40.0, 40.0)
ORIGIN = (-300.0, -280.0, -320.0)
SLOPES = np.round(0.2 + 0.01 * np.arange(SLICES), 4)
BED_S = 180
SCAN = datetime(2020, 3, 4, 11)
VENDORS = ("GE", "SIEMENS", "PHILIPS")
DRUG = "RadiopharmaceuticalInformationSequence"
COUNT_BQML = 1.25
"""Philips activity factor: Bq/mL of one count."""


@dataclass(kw_only=True)
class Slice:
    """One file to be written."""

    ds: Dataset
    name: str
    syntax: str = ExplicitVRLittleEndian


@dataclass(kw_only=True)
class Scan:
    """A series before it is written.

    Attributes
    ----------
    suv
        What the slices hold, z y x in patient axes; a fault that takes slices away changes it.
    afterwards
        Called with the folder once the files are there.
    """

    vendor: str
    slices: list[Slice]
    suv: np.ndarray
    stored: np.ndarray
    afterwards: list[Callable[[Path], None]] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        for one in self.slices:
            path = folder / one.name
            path.parent.mkdir(parents=True, exist_ok=True)
            save(one.ds, path, one.syntax)
        for act in self.afterwards:
            act(folder)


def save(ds: Dataset, path: Path | BytesIO, syntax: str) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID") or factory.PET_CLASS
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID") or "1.2.3"
    if syntax == RLELossless and not ds["PixelData"].is_undefined_length:
        ds.compress(RLELossless, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        ds = _big_endian(ds)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(path, enforce_file_format=True)


def _big_endian(ds: Dataset) -> Dataset:
    for _ in ds.iterall():
        pass  # converts every element
    other = Dataset({tag: ds[tag] for tag in ds.keys()})  # noqa: SIM118 - items would convert
    other.file_meta = ds.file_meta
    other.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
    return other


Fault = Callable[[Scan], None]


def reference(vendor: str) -> Scan:
    """Return a scan to break, as a reader of files finds it: its elements are not converted."""
    stored = _picture()
    slices = [
        Slice(ds=pydicom.dcmread(BytesIO(content)), name=f"{k:03}.dcm")
        for k, content in enumerate(_contents(vendor))
    ]
    suv = stored * SLOPES[:, None, None] * factory.FACTOR
    if vendor == "PHILIPS":
        suv *= COUNT_BQML
    return Scan(vendor=vendor, slices=slices, suv=suv, stored=stored)


@cache
def _contents(vendor: str) -> list[bytes]:
    contents = []
    for k, stored in enumerate(_picture()):
        content = BytesIO()
        save(_slice(vendor, stored, k), content, ExplicitVRLittleEndian)
        contents.append(content.getvalue())
    return contents


def _picture() -> np.ndarray:
    """Return a body of uneven uptake, different in all directions."""
    row, column = np.mgrid[: SHAPE[0], : SHAPE[1]]
    body = ((row - 7.0) / 3.8) ** 2 + ((column - 7.5) / 5.6) ** 2 <= 1
    values = np.random.default_rng(7).integers(4000, 19000, (SLICES, *SHAPE))
    return np.where(body, values, 3).astype(np.int16)


def _slice(vendor: str, stored: np.ndarray, k: int) -> Dataset:
    ds = factory.header(slices=SLICES, shape=SHAPE, spacing=SPACING)
    ds.SOPInstanceUID = f"{factory.ROOT_UID}.3.{k + 1}"
    ds.InstanceNumber = ds.ImageIndex = SLICES - k
    ds.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + k * SPACING[0]]
    ds.ImageOrientationPatient = list(factory.AXIAL)
    ds.RescaleSlope = f"{SLOPES[k]}"
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    MAKERS[vendor](ds)
    timed(ds, vendor, k, SCAN, SCAN - timedelta(seconds=factory.UPTAKE_S))
    return ds


def _ge(ds: Dataset) -> None:
    ds.Manufacturer = "GE MEDICAL SYSTEMS"
    ds.private_block(0x0009, "GEMS_PETD_01", create=True)


def _siemens(ds: Dataset) -> None:
    ds.Manufacturer = "SIEMENS"
    ds.private_block(0x0071, "SIEMENS MED PT", create=True)


def _philips(ds: Dataset) -> None:
    ds.Manufacturer, ds.Units = "Philips Medical Systems", "CNTS"
    block = ds.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", f"{COUNT_BQML * factory.FACTOR:.10g}")
    block.add_new(0x09, "DS", f"{COUNT_BQML}")


MAKERS = {"GE": _ge, "SIEMENS": _siemens, "PHILIPS": _philips}


def stamp(moment: datetime) -> str:
    return f"{moment:%Y%m%d%H%M%S}.00"


def average_s() -> float:
    """When, after a bed's start, the activity equals its average over the bed."""
    x = math.log(2) / factory.HALF_LIFE_S * BED_S
    return math.log(x / -math.expm1(-x)) * factory.HALF_LIFE_S / math.log(2)


def timed(ds: Dataset, vendor: str, k: int, scan: datetime, injection: datetime) -> None:
    """Write all times as the vendor does; slices 4 to 7 are the second bed."""
    bed = BED_S * (k // 4)
    acquired = scan + timedelta(seconds=bed)
    ds.StudyDate = ds.SeriesDate = f"{scan:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = f"{scan:%H%M%S}"
    ds.AcquisitionDate, ds.AcquisitionTime = f"{acquired:%Y%m%d}", f"{acquired:%H%M%S}"
    ds.ContentDate, ds.ContentTime = ds.AcquisitionDate, ds.AcquisitionTime
    ds.ActualFrameDuration = 1000 * BED_S
    after = bed if vendor == "GE" else bed + average_s()
    ds.FrameReferenceTime = f"{1000 * after:.3f}"
    item = ds[DRUG].value[0]
    item.RadiopharmaceuticalStartTime = f"{injection:%H%M%S}.00"
    if vendor == "GE":
        block = ds.private_block(0x0009, "GEMS_PETD_01")
        block.add_new(0x0D, "DT", stamp(scan))
        block.add_new(0x3B, "DT", stamp(injection))
        return
    item.RadiopharmaceuticalStartDateTime = stamp(injection)
    if vendor == "SIEMENS":
        ds.private_block(0x0071, "SIEMENS MED PT").add_new(0x22, "DT", stamp(scan))


def element(keyword: str, value: bytes | str) -> RawDataElement:
    """Return an element with bytes that pydicom itself might refuse to write."""
    tag, content = Tag(tag_for_keyword(keyword)), value
    if isinstance(content, str):
        content = content.encode("latin-1")
    content += b" " * (len(content) % 2)
    return RawDataElement(tag, dictionary_VR(tag), len(content), content, 0, False, True)


def put(ds: Dataset, **values: str | bytes | int | None) -> None:
    """Set texts and bytes as they are, numbers through pydicom; None takes away."""
    for keyword, value in values.items():
        if value is None:
            ds.pop(keyword, None)
        elif isinstance(value, str | bytes):
            ds[keyword] = element(keyword, value)
        else:
            setattr(ds, keyword, value)


def each(change: Callable[[Dataset, int], None]) -> Fault:
    """Change every slice."""

    def fault(scan: Scan) -> None:
        for k, one in enumerate(scan.slices):
            change(one.ds, k)

    return fault


def every(**values: str | bytes | int | None) -> Fault:
    return each(lambda ds, _: put(ds, **values))


def in_slice(which: int, **values: str | bytes | int | None) -> Fault:
    return each(lambda ds, k: put(ds, **values) if k == which else None)


def drug(**values: str | bytes | int | None) -> Fault:
    """Change the radiopharmaceutical of every slice."""
    return each(lambda ds, _: put(ds[DRUG].value[0], **values))


def drug_in_slice(which: int, **values: str | bytes | int | None) -> Fault:
    return each(lambda ds, k: put(ds[DRUG].value[0], **values) if k == which else None)


def private(group: int, byte: int, value: str | None, *, creator: bool = True) -> Fault:
    """Set or take away a private element of every slice; ``creator`` False takes the creator."""

    def change(ds: Dataset, _: int) -> None:
        tag = Tag(group, 0x1000 | byte)
        ds.pop(tag, None)
        if value is not None:
            content = value.encode() + b" " * (len(value) % 2)
            ds[tag] = RawDataElement(tag, "LO", len(content), content, 0, False, True)
        if not creator:
            ds.pop(Tag(group, 0x10), None)

    return each(change)


def no_creator(group: int) -> Fault:
    return each(lambda ds, _: ds.pop(Tag(group, 0x10), None))


def both(*faults: Fault) -> Fault:
    def fault(scan: Scan) -> None:
        for one in faults:
            one(scan)

    return fault


def times(scan_at: datetime, uptake: timedelta = timedelta(seconds=factory.UPTAKE_S)) -> Fault:
    """Move scan and injection."""

    def fault(scan: Scan) -> None:
        for k, one in enumerate(scan.slices):
            timed(one.ds, scan.vendor, k, scan_at, scan_at - uptake)

    return fault


def without(*missing: int) -> Fault:
    """Take slices away."""

    def fault(scan: Scan) -> None:
        kept = [k for k in range(len(scan.slices)) if k not in missing]
        scan.slices = [scan.slices[k] for k in kept]
        scan.suv = scan.suv[kept]

    return fault


def scaled(factor: float) -> Fault:
    """Multiply all slopes: the same picture in other units."""

    def change(ds: Dataset, _: int) -> None:
        ds.RescaleSlope = f"{float(ds.RescaleSlope) * factor:.10g}"

    return each(change)


def file_of(which: int, edit: Callable[[bytes], bytes]) -> Fault:
    """Edit the bytes of a written file."""

    def act(folder: Path) -> None:
        path = folder / f"{which:03}.dcm"
        path.write_bytes(edit(path.read_bytes()))

    return lambda scan: scan.afterwards.append(act)


def files(edit: Callable[[bytes], bytes]) -> Fault:
    """Edit the bytes of all files."""

    def act(folder: Path) -> None:
        for path in sorted(folder.rglob("*.dcm")):
            path.write_bytes(edit(path.read_bytes()))

    return lambda scan: scan.afterwards.append(act)


def in_folder(act: Callable[[Path], object]) -> Fault:
    """Do something to the folder after writing."""
    return lambda scan: scan.afterwards.append(lambda folder: void(act(folder)))


def void(_: object) -> None:
    """Drop a result."""


def beside(vendor: str, *changes: Fault, prefix: str = "beside/") -> Fault:
    """Write a second series, a copy of the reference with changes, beside the first."""

    def fault(scan: Scan) -> None:
        other = reference(vendor)
        for change in changes:
            change(other)
        for one in other.slices:
            one.name = prefix + one.name
        scan.slices.extend(other.slices)
        scan.afterwards.extend(other.afterwards)

    return fault


def written(syntax: str, which: Iterable[int] = range(SLICES)) -> Fault:
    """Write slices in another transfer syntax."""

    def fault(scan: Scan) -> None:
        for k, one in enumerate(scan.slices):
            if k in which:
                one.syntax = syntax

    return fault


def turned(rows: int, columns: int, slices: int) -> Fault:
    """Store the same patient with rows, columns or slices in the other direction (-1)."""

    def fault(scan: Scan) -> None:
        for one, pixels in zip(scan.slices, scan.stored, strict=True):
            ds, place = one.ds, [float(value) for value in one.ds.ImagePositionPatient]
            ds.ImageOrientationPatient = [columns, 0, 0, 0, rows, 0]
            place[0] += SPACING[2] * (SHAPE[1] - 1) if columns < 0 else 0
            place[1] += SPACING[1] * (SHAPE[0] - 1) if rows < 0 else 0
            ds.ImagePositionPatient = place
            ds.PixelData = np.ascontiguousarray(pixels[::rows, ::columns]).tobytes()
        if slices < 0:
            for k, one in enumerate(scan.slices):
                one.ds.InstanceNumber = k + 1

    return fault


def placed(move: Callable[[int, np.ndarray], np.ndarray]) -> Fault:
    """Move slices: ``move(k, position)``."""

    def change(ds: Dataset, k: int) -> None:
        place = move(k, np.array(ds.ImagePositionPatient, dtype=float))
        ds.ImagePositionPatient = [f"{value:.8g}" for value in place]

    return each(change)
