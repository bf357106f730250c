"""Whole-body FDG patients as a hospital would export them, with every true value known.

::

    OUT/dicom/...                        one folder per patient; layouts, names and orders differ
    OUT/labels.csv                       PatientID, label
    OUT/truth/<SeriesInstanceUID>.nii.gz altered muscle on the scan's own grid; for evaluation only
    OUT/truth/subjects.json              true SUV of every region, severity, altered muscles

Classes as in Ron, Weiler-Sagie and Hazan, ICML 2022; the share of each is adjustable.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Bool, Float32

from preprocessing.atomic_files import disk_errors
from preprocessing.errors import OutputError
from preprocessing.phantoms.dicom_writer import (
    SeriesEncoder,
    StoredSlices,
    store_slices,
    write_files,
)
from preprocessing.phantoms.header import VARYING, scout_header, shared_header, slice_values
from preprocessing.phantoms.scanner import PhantomMap, acquire, field_of_view, rasterise
from preprocessing.phantoms.shapes import Grid
from preprocessing.phantoms.subject import FDG_PET_CLASSES, PhantomSubject, draw_subject
from preprocessing.phantoms.visit import F18_HALF_LIFE_S, Visit, draw_visit

DEFAULT_SPACING_MM = (6.54, 5.46875, 5.46875)
"""z, y, x: 128 x 128 over the 700 mm field of a GE Discovery ST, every second of its slices."""
DEFAULT_MATRIX = 128
EQUAL_SHARES: Mapping[str, float] = {"normal": 1.0, "mild": 1.0, "severe": 1.0}
_LABEL_STREAM, _SUBJECT_STREAM = 0, 1
_TABLE_TOP_MM = 900.0
_SCOUT_MATRIX = 32
_NOTE = "exported by the archive; see the report in the patient's file\n"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FdgPetOptions:
    """How phantoms are scanned.

    Attributes
    ----------
    spacing_mm
        Voxel spacing along z, y, x.
    matrix
        Rows and columns.
    noise, blur
        Poisson counting noise; Gaussian point spread. Without both, the files hold the true SUV.
    """

    spacing_mm: tuple[float, float, float] = DEFAULT_SPACING_MM
    matrix: int = DEFAULT_MATRIX
    noise: bool = True
    blur: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomScan:
    """One patient on the scanner.

    Attributes
    ----------
    truth
        Noise-free SUV, regions and altered muscle, in patient coordinates.
    grid
        Where the scanner puts the same voxels: its own origin.
    suv
        What it measures.
    """

    subject: PhantomSubject
    visit: Visit
    truth: PhantomMap
    grid: Grid
    suv: Float32[np.ndarray, "z y x"]


def write_fdg_pet(
    out: Path,
    *,
    subjects: int = 60,
    seed: int = 0,
    shares: Mapping[str, float] = EQUAL_SHARES,
    options: FdgPetOptions | None = None,
    mapper: Mapper = map,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write whole-body FDG patients as DICOM PET series; the same arguments give the same bytes.

    Parameters
    ----------
    shares
        Relative frequency of each class; the counts are the nearest whole numbers.
    mapper
        Spreads patients over processes (``Executor.map``); the order of results is kept.
    progress
        Called with the number of patients written and the number wanted.

    Raises
    ------
    OutputError
        ``EXISTS`` where the folder holds anything already; ``DISK_FULL`` and the like.
    ValueError
        If there are no subjects, or the shares name no class or an unknown one.
    """
    labels = draw_labels(subjects, shares=shares, seed=seed)
    with disk_errors():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError("EXISTS", "the output folder is not empty: name a new folder")
        (out / "truth").mkdir(parents=True, exist_ok=True)
    write = partial(_write_subject, out=out, seed=seed, options=options or FdgPetOptions())
    facts = []
    for done, fact in enumerate(mapper(write, list(enumerate(labels))), start=1):
        facts.append(fact)
        if progress is not None:
            progress(done, subjects)
    with disk_errors():
        (out / "truth" / "subjects.json").write_text(json.dumps(facts, indent=1) + "\n")
        (out / "labels.csv").write_text(_labels_csv(facts))


def draw_labels(subjects: int, *, shares: Mapping[str, float], seed: int) -> tuple[str, ...]:
    """Return a class for each subject, in random order.

    Counts are rounded by largest remainder, so that they never differ from the shares by one.

    Raises
    ------
    ValueError
        If there are no subjects, or the shares name no class or an unknown one.
    """
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}: at least 1 is needed")
    unknown = sorted(set(shares) - set(FDG_PET_CLASSES))
    if unknown:
        raise ValueError(f"shares name {unknown}: the classes are {', '.join(FDG_PET_CLASSES)}")
    weights = np.array([shares.get(name, 0.0) for name in FDG_PET_CLASSES])
    if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
        raise ValueError("shares must be finite, not negative, and one must be above 0")
    wanted = subjects * weights / weights.sum()
    counts = np.floor(wanted).astype(int)
    largest = np.argsort(counts - wanted, kind="stable")[: subjects - counts.sum()]
    counts[largest] += 1
    labels = np.repeat(FDG_PET_CLASSES, counts)
    return tuple(np.random.default_rng([seed, _LABEL_STREAM]).permutation(labels).tolist())


def scan_subject(
    index: int, *, label: str, seed: int, options: FdgPetOptions | None = None
) -> PhantomScan:
    """Draw one patient and scan them; depends on the index, label and seed only."""
    options = options or FdgPetOptions()
    rng = np.random.default_rng([seed, _SUBJECT_STREAM, index])
    subject = draw_subject(f"PHANTOM-{index:04d}", label=label, rng=rng)
    place = field_of_view(subject, spacing_mm=options.spacing_mm, matrix=options.matrix)
    truth = rasterise(subject, place)
    visit = draw_visit(subject, slice_mm=options.spacing_mm[0], slices=place.shape[0], rng=rng)
    suv = acquire(
        truth,
        counts_per_suv_ml=subject.counts_per_suv_ml,
        rng=rng,
        noise=options.noise,
        blur=options.blur,
    )
    return PhantomScan(
        subject=subject, visit=visit, truth=truth, grid=_on_the_table(place, rng), suv=suv
    )


def becquerel_per_suv(subject: PhantomSubject) -> float:
    """Return Bq/mL at the start of the scan where SUV is 1 g/mL."""
    decayed = subject.dose_bq * 2.0 ** (-subject.uptake_s / F18_HALF_LIFE_S)
    return decayed / (subject.weight_kg * 1000.0)


def write_scan(scan: PhantomScan, folder: Path, *, rng: np.random.Generator) -> None:
    """Write one patient's PET series; the random numbers give position jitter and file order."""
    stored = store_slices(scan.suv * np.float32(becquerel_per_suv(scan.subject)))
    with disk_errors():
        write_files(_series_files(scan, stored, folder, rng))


def _write_subject(
    numbered: tuple[int, str], *, out: Path, seed: int, options: FdgPetOptions
) -> dict[str, Any]:
    index, label = numbered
    scan = scan_subject(index, label=label, seed=seed, options=options)
    folder = out / "dicom" / _folder_name(scan)
    write_scan(scan, folder, rng=np.random.default_rng([seed, _SUBJECT_STREAM, index, 1]))
    with disk_errors():
        write_files(_files_beside(scan, folder))
        truth = _nifti(scan.truth.altered, scan.grid)
        (out / "truth" / f"{scan.visit.series_uid}.nii.gz").write_bytes(truth)
    return _facts(scan)


def _series_files(
    scan: PhantomScan, stored: StoredSlices, folder: Path, rng: np.random.Generator
) -> Iterator[tuple[Path, bytes]]:
    heights = scan.grid.axis(0)
    heights = heights + rng.normal(0.0, scan.visit.jitter_mm, size=heights.shape)
    header = shared_header(scan.subject, scan.visit, scan.grid)
    encoder = SeriesEncoder(
        header, varying=VARYING, transfer_syntax_uid=scan.visit.transfer_syntax_uid
    )
    order = rng.permutation(len(heights)).tolist()
    values = slice_values(stored, scan.visit, scan.grid, heights_mm=heights)
    for number, slice_elements in zip(order, values, strict=True):
        yield folder / _file_name(scan.visit, number), encoder.encode(slice_elements)


def _files_beside(scan: PhantomScan, folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield what lies in real folders without being part of the scan."""
    if scan.visit.has_note:
        yield folder / "NOTE.TXT", _NOTE.encode()
    if scan.visit.has_scout:
        header = scout_header(scan.subject, scan.visit, matrix=_SCOUT_MATRIX)
        varying = ("SOPInstanceUID", "InstanceNumber", "PixelData")
        encoder = SeriesEncoder(
            header, varying=varying, transfer_syntax_uid=scan.visit.transfer_syntax_uid
        )
        content = encoder.encode(
            {
                "SOPInstanceUID": f"{scan.visit.series_uid}.9001",
                "InstanceNumber": "1",
                "PixelData": bytes(2 * _SCOUT_MATRIX**2),
            }
        )
        yield folder / "SCOUT" / "CT000001", content


def _folder_name(scan: PhantomScan) -> str:
    name = scan.visit.patient_name.replace("^", "_")
    return (scan.subject.patient_id, f"{scan.subject.patient_id}_{name}", name.upper())[
        scan.visit.layout
    ] + ("" if scan.visit.layout < 2 else f"_{scan.subject.patient_id[-4:]}")


def _file_name(visit: Visit, number: int) -> str:
    """Name a file; the number has nothing to do with the slice's place."""
    if visit.layout == 0:
        return f"PT{number:06d}.dcm"
    if visit.layout == 1:
        return f"{visit.scan_start:%Y%m%d}/PET_WB_AC/I{number}"
    return f"DICOM/S{number % 2 + 1}/{number * 2654435761 % 2**32:08X}"


def _on_the_table(place: Grid, rng: np.random.Generator) -> Grid:
    # The scanner's z zero is a landmark on the table; x and y are centred in the ring.
    _, y, x = place.spacing_mm
    half = (place.shape[1] - 1) / 2
    lowest = round(float(rng.uniform(-2.0, -1.0)) * _TABLE_TOP_MM, 2)
    return Grid(
        shape=place.shape,
        spacing_mm=place.spacing_mm,
        origin_mm=(-half * x, -half * y, lowest),
    )


def _nifti(mask: Bool[np.ndarray, "z y x"], grid: Grid) -> bytes:
    """Encode a mask; the array in the file runs x, y, z over the voxels of the scan's volume."""
    values = mask.transpose(2, 1, 0).astype(np.uint8)
    image = nibabel.Nifti1Image(values, _LPS_TO_RAS @ grid.affine)
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _facts(scan: PhantomScan) -> dict[str, Any]:
    """Return the truth about one subject as plain values."""
    subject = scan.subject
    return {
        "PatientID": subject.patient_id,
        "SeriesInstanceUID": scan.visit.series_uid,
        "label": subject.label,
        "severity": round(subject.severity, 4),
        "weight_kg": subject.weight_kg,
        "dose_bq": subject.dose_bq,
        "uptake_s": subject.uptake_s,
        "altered": {region: round(added, 4) for region, added in subject.altered.items()},
        "suv": {region: round(value, 4) for region, value in subject.suv.items()},
    }


def _labels_csv(facts: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("PatientID", "label"))
    writer.writerows((fact["PatientID"], fact["label"]) for fact in facts)
    return stream.getvalue()
