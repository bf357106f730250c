"""Whole-body FDG-PET: a folder of DICOM to equalised coronal projections in SUVbw.

Source: Ron, Weiler-Sagie, Hazan, ICML 2022, section 4.1 (SUVbw, coronal maximum-intensity
projection by ray casting, 256-bin histogram equalisation, 512 x 512).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, UInt8

from preprocessing import equalize, intake, mip, suv
from preprocessing.dicom_file import NATIVE
from preprocessing.dicom_series import load_volume
from preprocessing.errors import GeometryError, HeaderError, LabelError
from preprocessing.intake import Intake, SeriesIntake
from preprocessing.labels import Table, class_index, read_table
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import (
    Derivation,
    Discovery,
    Equalized,
    Example,
    Exclusion,
    Volume,
)
from preprocessing.shards import FieldSpec
from preprocessing.truth import load_truth

CLASSES = ("normal", "mild", "severe")
"""Altered muscular uptake: none, mild, severe."""
MAXIMUM_STORED_SUV = 65504.0
"""The largest float16; a tumour reaches 50, a full bladder a few hundred."""
UPTAKE_ROUNDING_MIN = 5
"""Minutes: coarse enough not to tell one patient's schedule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the scans and the tables beside them lie.

    Attributes
    ----------
    dicom_dir
        Searched to any depth.
    labels
        CSV of ``PatientID`` or ``SeriesInstanceUID`` and ``label``.
    weights
        CSV of ``PatientID`` or ``SeriesInstanceUID`` and ``weight_kg``, which overrides headers.
    patient_map
        CSV of ``PatientID`` and ``same_as``: two identifiers of one person.
    truth
        Folder of masks named by ``SeriesInstanceUID`` (phantoms), for evaluation only.
    """

    dicom_dir: Path
    labels: Path | None = None
    weights: Path | None = None
    patient_map: Path | None = None
    truth: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a series becomes a picture; the meanings are those of the command line's options."""

    suv_formula: Literal["suvbw", "paper"] = "suvbw"
    projector: str = "vtk"
    keep_aspect: bool = False
    image_size: int = 512
    fill_gaps: int = 0
    allow_intercept: bool = False
    prefer_route: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PetCase:
    """One accepted series with its label and, for phantoms, its truth."""

    series: SeriesIntake = field(repr=False)
    label: int
    truth: Path | None = field(default=None, repr=False)

    @property
    def case_id(self) -> str:
        """Patient and series pseudonym, shortened."""
        return f"{self.series.subject_id[:8]}-{self.series.series_id[:8]}"

    @property
    def subject_id(self) -> str:
        """Pseudonym of the patient."""
        return self.series.subject_id

    @property
    def files(self) -> int:
        """Files of the series."""
        return self.series.files

    @property
    def guarded(self) -> bool:
        """Compressed pixels are decoded by codecs in C; plain ones by this toolkit."""
        return any(instance.transfer_syntax not in NATIVE for instance in self.series.instances)

    @property
    def fingerprint(self) -> str:
        """Hash over each file's size, time and header, the conversion, the label and the truth."""
        digest = hashlib.sha256(f"{self.series.fingerprint}|{self.label}".encode())
        conversion = self.series.suv
        if conversion is not None:
            digest.update(conversion.factors.tobytes())
        if self.truth is not None:
            status = self.truth.stat()
            digest.update(f"{status.st_size}|{status.st_mtime_ns}".encode())
        return digest.hexdigest()


def layout(*, image_size: int, with_truth: bool) -> dict[str, FieldSpec]:
    """Datasets of a shard row, beside ``label``."""
    square = (image_size, image_size)
    fields = {
        "image": FieldSpec(
            shape=(1, *square), dtype="uint8", description="equalised coronal projection, head up"
        ),
        "suv": FieldSpec(
            shape=square,
            dtype="float16",
            description="the projection before equalisation",
            unit="g/mL",
        ),
        "depth": FieldSpec(
            shape=square,
            dtype="int32",
            description="flat index (z, y, x in C order) of each maximum's voxel; -1: none",
        ),
        "cdf": FieldSpec(
            shape=(256,), dtype="float32", description="cumulative histogram of the equalisation"
        ),
        "cdf_range": FieldSpec(
            shape=(2,), dtype="float32", description="lower and upper end of the bins", unit="g/mL"
        ),
        "volume_affine": FieldSpec(
            shape=(4, 4), dtype="float64", description="(x, y, z, 1) voxel index to LPS", unit="mm"
        ),
        "volume_shape": FieldSpec(shape=(3,), dtype="int32", description="voxels along z, y, x"),
    }
    if with_truth:
        fields["mask"] = FieldSpec(
            shape=square,
            dtype="uint8",
            description="1 where a ray crosses truly altered tissue; for evaluation only",
        )
    return fields


def discover(
    sources: Sources,
    options: Options,
    *,
    pseudonyms: Pseudonyms,
    mapper: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
    progress: Callable[[str, int, int], None] | None = None,
) -> Discovery:
    """Find the series that can be converted, with their labels.

    Raises
    ------
    LabelError
        A table cannot be read or contradicts itself.
    """
    tables = {
        name: None if path is None else read_table(path, column)
        for name, path, column in (
            ("label", sources.labels, "label"),
            ("weight", sources.weights, "weight_kg"),
            ("same_as", sources.patient_map, "same_as"),
        )
    }
    found = intake.scan(
        sources.dicom_dir,
        pseudonyms=pseudonyms,
        weights=tables["weight"],
        suv_formula=options.suv_formula,
        prefer_route=options.prefer_route,
        fill_gaps=options.fill_gaps,
        allow_intercept=options.allow_intercept,
        mapper=mapper,
        progress=progress,
    )
    return _join(found, tables["label"], tables["same_as"], sources.truth, pseudonyms)


def _join(
    found: Intake,
    labels: Table | None,
    same_as: Table | None,
    truth: Path | None,
    pseudonyms: Pseudonyms,
) -> Discovery:
    cases: list[PetCase] = []
    exclusions = list(found.exclusions)
    for series in found.series:
        if series.status != "accepted":
            continue
        known = _renamed(series, same_as, pseudonyms)
        try:
            case = PetCase(
                series=known, label=_label(known, labels), truth=_truth_file(known, truth)
            )
        except LabelError as error:
            exclusions.append(excluded(known, error.code, str(error)))
            continue
        cases.append(case)
    cases.sort(key=lambda case: case.case_id)
    return Discovery(
        cases=tuple(cases),
        exclusions=tuple(exclusions),
        skipped=found.skipped,
        seen=found.seen,
    )


def _renamed(series: SeriesIntake, same_as: Table | None, pseudonyms: Pseudonyms) -> SeriesIntake:
    if same_as is None:
        return series
    other = same_as.find(patient_id=series.patient_id, series_uid=series.series_uid)
    return series if not other else replace(series, subject_id=pseudonyms.patient(other))


def _label(series: SeriesIntake, labels: Table | None) -> int:
    if labels is None:
        return -1
    value = labels.find(patient_id=series.patient_id, series_uid=series.series_uid)
    if value is None:
        raise LabelError(
            "LABEL_MISSING",
            f"the labels table has no row for this {labels.key}: add one or leave out --labels",
        )
    return class_index(value, CLASSES)


def _truth_file(series: SeriesIntake, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    path = folder / f"{series.series_uid}.nii.gz"
    if not path.is_file():
        raise LabelError(
            "TRUTH_MISSING",
            "the truth folder has no <SeriesInstanceUID>.nii.gz for this series: add an empty mask "
            "where nothing is altered, or build without --truth",
        )
    return path


def excluded(series: SeriesIntake, code: str, detail: str) -> Exclusion:
    """Exclude a whole series."""
    return Exclusion(
        code=code,
        subject_id=series.subject_id,
        where=f"series {series.series_id}",
        detail=detail,
        files=series.files,
    )


def derive(case: PetCase, options: Options) -> Derivation:
    """Turn a series into the row of a shard.

    Raises
    ------
    PreprocessingError
        Pixels that cannot be decoded, a volume that is not regular, or an impossible SUV.
    """
    volume = load_volume(case.series)
    warnings = (*case.series.warnings, *_checked(volume, case.series, options))
    projection = mip.project(volume, projector=options.projector)
    picture = equalize.equalize(
        projection, size=options.image_size, keep_aspect=options.keep_aspect
    )
    if float(picture.suv.max()) > MAXIMUM_STORED_SUV:
        raise HeaderError(
            "SUV_IMPLAUSIBLE",
            f"the largest SUV is {float(picture.suv.max()):.3g} g/mL; no tissue does: check "
            "Units (0054,1001), RadionuclideTotalDose (0018,1074) and RescaleSlope (0028,1053)",
        )
    arrays = _arrays(volume, picture)
    if case.truth is not None:
        arrays["mask"] = _projected_truth(load_truth(case.truth, volume), volume, picture)
    example = Example(
        sample_id=case.case_id,
        subject_id=case.subject_id,
        arrays=arrays,
        label=case.label,
        provenance=_provenance(case.series, volume, picture, warnings),
    )
    return Derivation(examples=(example,))


def _checked(volume: Volume, series: SeriesIntake, options: Options) -> tuple[str, ...]:
    conversion = series.suv
    if conversion is None:
        raise GeometryError("NO_CONVERSION", "the series has no SUV conversion")
    if options.suv_formula == "paper" or conversion.weight_kg is None:
        return conversion.warnings
    balance = suv.check_dose_balance(volume, weight_kg=conversion.weight_kg)
    return (*conversion.warnings, *balance)


def _arrays(volume: Volume, picture: Equalized) -> dict[str, np.ndarray]:
    return {
        "image": picture.image[None],
        "suv": picture.suv.astype(np.float16),
        "depth": picture.depth,
        "cdf": picture.cdf.astype(np.float32),
        "cdf_range": np.asarray(picture.value_range, dtype=np.float32),
        "volume_affine": volume.affine,
        "volume_shape": np.asarray(volume.voxels.shape, dtype=np.int32),
    }


def _projected_truth(
    mask: Bool[np.ndarray, "z y x"], volume: Volume, picture: Equalized
) -> UInt8[np.ndarray, "row column"]:
    """Mark the picture's pixels whose coronal ray crosses the mask.

    The coronal rays run along y, so a pixel's ray is known from the z and x of its depth.
    """
    crossed = np.any(mask, axis=1)
    z, _, x = np.unravel_index(np.maximum(picture.depth, 0), volume.voxels.shape)
    seen = picture.depth >= 0
    return np.asarray(crossed[z, x] & seen, dtype=np.uint8)


def _provenance(
    series: SeriesIntake, volume: Volume, picture: Equalized, warnings: tuple[str, ...]
) -> Mapping[str, str | int | float]:
    conversion = series.suv
    if conversion is None:
        raise GeometryError("NO_CONVERSION", "the series has no SUV conversion")
    uptake = conversion.uptake_s
    z, y, x = volume.spacing_mm
    return {
        "suv_factor": float(np.median(conversion.factors)),
        "suv_route": conversion.route,
        "suv_max": round(float(picture.suv.max()), 4),
        "uptake_min": "" if uptake is None else _rounded_minutes(uptake),
        "vendor": series.vendor,
        "slices": volume.voxels.shape[0],
        "spacing_z_mm": round(z, 4),
        "spacing_y_mm": round(y, 4),
        "spacing_x_mm": round(x, 4),
        "warnings": " | ".join(warnings),
    }


def _rounded_minutes(seconds: float) -> int:
    return UPTAKE_ROUNDING_MIN * round(seconds / 60 / UPTAKE_ROUNDING_MIN)
