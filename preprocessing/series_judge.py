"""One PET series, from the headers of its files to the record that ``load_volume`` works from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import chain
from typing import Literal

from preprocessing import series_checks, series_frames
from preprocessing.dicom_file import FileRead, Instance
from preprocessing.dicom_geometry import check_geometry
from preprocessing.dicom_pixels import PIXEL_TAGS, check_format
from preprocessing.dicom_series import lps_grid
from preprocessing.dicom_values import attribute_name, parse_decimal, tag_of, vendor
from preprocessing.enhanced_pet import split_frames
from preprocessing.errors import FileError, HeaderError, PreprocessingError
from preprocessing.intake_records import SeriesIntake
from preprocessing.ranking import WHOLE_BODY_MM, axial_extent_mm
from preprocessing.raw_elements import Header, raw, text
from preprocessing.records import Unit
from preprocessing.suv import suvbw

FORMAT_TAGS = tuple(
    tag_of(keyword)
    for keyword in (
        *("BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation"),
        *("PhotometricInterpretation", "LossyImageCompression"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesOptions:
    """How series are judged; the meanings are those of ``intake.scan``."""

    suv_formula: Literal["suvbw", "paper"] = "suvbw"
    prefer_route: str = ""
    fill_gaps: int = 0
    allow_intercept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesJob:
    """A series to judge.

    Attributes
    ----------
    record
        The series as excluded, with all that grouping knows; judging replaces the rest.
    reads
        Its files, in a stable order.
    weight
        Weight in kg from a table that overrides the header, as written there; None without one.
    """

    record: SeriesIntake
    reads: tuple[FileRead, ...] = field(repr=False)
    weight: str | None = None


def judge(job: SeriesJob, options: SeriesOptions) -> SeriesIntake:
    """Check one PET series; accept it, or exclude it with the first fault found."""
    record = job.record
    try:
        instances, duplicates, notes = _one_image_per_place(job)
        paths = len({instance.path for instance in instances})
        first = instances[0]
        record = replace(
            record,
            files=paths,
            duplicates=duplicates,
            vendor=vendor(text(first.elements, tag_of("Manufacturer"))),
        )
        geometry = check_geometry(instances, fill_gaps=options.fill_gaps)
        ordered = tuple(instances[i] for i in geometry.order)
        shape, spacing, _ = lps_grid(geometry)
        record = replace(record, shape=shape, spacing_mm=spacing, geometry=geometry)
        rescale, rescale_notes = series_checks.read_rescale(
            ordered, allow_intercept=options.allow_intercept
        )
        conversion = suvbw(
            [instance.header for instance in ordered],
            formula=options.suv_formula,
            prefer=options.prefer_route,
            weight_kg=_weight_kg(job.weight),
        )
    except PreprocessingError as error:
        return replace(record, code=error.code, detail=str(error), geometry=None)
    noted = chain(
        (*record.warnings, *notes, *geometry.notes),
        () if geometry.is_aligned else (_OBLIQUE,),
        (*rescale_notes, *_extent_note(record)),
        (*series_checks.count_note(ordered), *series_checks.private_date_leak(first)),
    )
    return replace(
        record,
        status="accepted",
        code="",
        detail="",
        warnings=tuple(noted),
        instances=_slim(ordered),
        fingerprint=_fingerprint(ordered),
        rescale=rescale,
        suv=conversion,
        unit=Unit.PAPER if options.suv_formula == "paper" else Unit.SUVBW,
    )


_OBLIQUE = "OBLIQUE_RESAMPLED: the slices are oblique and were resampled to the patient's axes"


def _one_image_per_place(job: SeriesJob) -> tuple[list[Instance], int, tuple[str, ...]]:
    """Return the images of a static, corrected series, how many copies were dropped, and notes."""
    seen = [read.instance for read in job.reads if read.instance is not None]
    if seen:
        series_checks.check_kind(seen)
    faults = [read for read in job.reads if read.code]
    if faults:
        message = f"in {len(faults)} of {len(job.reads)} files: {faults[0].detail}"
        raise FileError(faults[0].code, message)
    for instance in _formats(seen):
        check_format(instance)
    frames = list(chain.from_iterable(map(split_frames, seen)))
    series_checks.check_kind(frames)
    kept, notes = series_frames.drop_duplicates(frames)
    series_checks.check_consistent(kept)
    series_frames.check_static(kept)
    corrected = series_checks.check_corrected(kept)
    lost = {instance.path for instance in seen} - {instance.path for instance in kept}
    return kept, len(lost), (*notes, *corrected)


def _slim(instances: Sequence[Instance]) -> tuple[Instance, ...]:
    """Keep the whole header of the first image, and of the others what decoding asks for.

    A whole-body series has hundreds of headers that nothing reads again, and they travel between
    processes.
    """
    known: dict[tuple[int, ...], Header] = {}
    slim = [instances[0]]
    for instance in instances[1:]:
        kept = {tag: instance.elements[tag] for tag in PIXEL_TAGS if tag in instance.elements}
        elements = known.setdefault(tuple(map(id, kept.values())), kept)
        slim.append(replace(instance, elements=elements))
    return tuple(slim)


def _fingerprint(instances: Sequence[Instance]) -> str:
    digest = blake2b(digest_size=16)
    for instance in instances:
        digest.update(repr(instance.fingerprint).encode())
    return digest.hexdigest()


def _formats(instances: list[Instance]) -> Iterator[Instance]:
    """Yield one instance of every pixel format."""
    known: set[tuple[bytes | str | int, ...]] = set()
    for instance in instances:
        kind = (
            *(raw(instance.elements, tag) for tag in FORMAT_TAGS),
            instance.transfer_syntax,
            int(instance.pixel_length == 0xFFFFFFFF),
        )
        if kind not in known:
            known.add(kind)
            yield instance


def _weight_kg(given: str | None) -> float | None:
    if given is None:
        return None
    return parse_decimal(given, name="weight_kg of the weights table", code="WEIGHT_INVALID")


def _extent_note(record: SeriesIntake) -> tuple[str, ...]:
    extent = axial_extent_mm(record)
    if extent >= WHOLE_BODY_MM:
        return ()
    return (
        f"SHORT_FOV: {extent:.0f} mm along the patient, less than the {WHOLE_BODY_MM:.0f} mm of a "
        "whole-body scan",
    )


def identity_fault(shared_uid: str) -> HeaderError:
    """Return the refusal of a series whose UID occurs with several patients or studies."""
    return HeaderError(
        f"INCONSISTENT_{shared_uid.upper()}",
        f"files with one SeriesInstanceUID (0020,000E) differ in {attribute_name(shared_uid)}: "
        "scans of different patients or studies are mixed; separate them",
    )
