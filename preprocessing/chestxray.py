"""NIH ChestX-ray14: frontal chest radiographs with 14 findings and, for some, boxes.

The release's images are 1024 x 1024, resized by the NIH without regard to proportions; here they
are resized again to ``image_size`` squared, and the boxes with them. A radiograph may show several
findings: ``labels`` has one entry for each. ``label``, the one class that rows of every data set
have, is the finding where there is exactly one, and -1 where there is none or more than one:
whoever reads ``label`` alone never takes one of several findings for the only one.

References
----------
Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks, CVPR 2017.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from preprocessing.chestxray_cases import ChestCase, find_cases
from preprocessing.chestxray_tables import BOX_FRAME, CLASSES, NO_FINDING, Box, Entry
from preprocessing.errors import FileError, LabelError
from preprocessing.official_split import OFFICIAL
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.radiographs import read_grey, resized
from preprocessing.records import Derivation, Discovery, Example
from preprocessing.shards import FieldSpec

__all__ = ["CLASSES", "ChestCase", "Options", "Sources", "derive", "discover", "layout"]

MOST_BOXES = 8
"""Boxes a row has room for; the release has at most four on one image."""
OLDEST_TOLD_YEARS = 90
"""Older patients are told as 90: few people are."""
UNUSED = -1.0
"""Class of a row of ``boxes`` that holds none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the release lies.

    Attributes
    ----------
    root
        Searched to any depth for PNGs, ``Data_Entry_2017*.csv``, ``BBox_List_2017.csv``,
        ``train_val_list.txt`` and ``test_list.txt``.
    """

    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a radiograph becomes a picture.

    Attributes
    ----------
    image_size
        Side of the stored square.
    """

    image_size: int = 512


def layout(*, image_size: int) -> dict[str, FieldSpec]:
    """Datasets of a shard row, beside ``label``."""
    return {
        "image": FieldSpec(
            shape=(1, image_size, image_size),
            dtype="uint8",
            description="frontal radiograph as released, head up, resized",
        ),
        "labels": FieldSpec(
            shape=(len(CLASSES),),
            dtype="uint8",
            description="1 for each class that the image is labelled with; all 0: no finding",
        ),
        "boxes": FieldSpec(
            shape=(MOST_BOXES, 5),
            dtype="float32",
            description="class, left, top, width, height of a finding; class -1 and NaN: unused",
            unit="pixels of image; pixel i covers i to i + 1",
        ),
    }


def discover(
    sources: Sources,
    options: Options,
    *,
    pseudonyms: Pseudonyms,
    mapper: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
    progress: Callable[[str, int, int], None] | None = None,
) -> Discovery:
    """Match images, rows, boxes and lists by file name; no image is opened yet.

    ``options`` and ``mapper`` are not needed for that.

    Raises
    ------
    FileError
        ``INPUT_MISSING`` or ``INPUT_NOT_A_FOLDER``.
    LabelError
        ``CXR_NO_TABLE``, ``CXR_TABLES_DIFFER``, or a table that cannot be read.
    SplitError
        ``CXR_LISTS_OVERLAP``: the official lists share patients.
    """
    return find_cases(sources.root, pseudonyms=pseudonyms, progress=progress)


def derive(case: ChestCase, options: Options) -> Derivation:
    """Read one image and resize it with its boxes.

    Raises
    ------
    FileError
        ``CXR_UNREADABLE``, ``CXR_SIZE``, ``CXR_DEPTH``, ``CXR_COLOUR``; ``CXR_NOT_SQUARE``: the
        release's images are square, so this one was cropped and its boxes do not fit;
        ``CXR_BLANK``: one grey value everywhere.
    LabelError
        ``CXR_BOXES``: more boxes than a row holds.
    """
    pixels, mode = read_grey(case.path)
    _refuse_foreign(pixels)
    arrays = {
        "image": resized(pixels, options.image_size)[None],
        "labels": _labels(case.entry),
        "boxes": scaled_boxes(case.boxes, options.image_size),
    }
    findings = case.entry.findings
    example = Example(
        sample_id=case.case_id,
        subject_id=case.subject_id,
        arrays=arrays,
        label=findings[0] if len(findings) == 1 else -1,
        provenance=_provenance(case, mode, pixels.shape[0], options),
    )
    return Derivation(examples=(example,))


def _refuse_foreign(pixels: UInt8[np.ndarray, "row column"]) -> None:
    rows, columns = pixels.shape
    if rows != columns:
        raise FileError(
            "CXR_NOT_SQUARE",
            f"the image has {rows} x {columns} pixels, the release's are square: it was cropped, "
            "and boxes do not fit it; fetch the original",
        )
    if pixels.min() == pixels.max():
        raise FileError("CXR_BLANK", f"every pixel of the image is {pixels.min()}: fetch it again")


def _labels(entry: Entry) -> UInt8[np.ndarray, " finding"]:
    labels = np.zeros(len(CLASSES), dtype=np.uint8)
    labels[list(entry.findings)] = 1
    return labels


def scaled_boxes(boxes: Sequence[Box], size: int) -> Float32[np.ndarray, "box 5"]:
    """Boxes in pixels of the stored square, as class, left, top, width, height.

    Boxes are given in pixels of the release's 1024 x 1024 images. Copies of the release at other
    sizes come with the same list, so the frame, and not the copy's own size, decides the scale.

    Raises
    ------
    LabelError
        ``CXR_BOXES``.
    """
    if len(boxes) > MOST_BOXES:
        raise LabelError(
            "CXR_BOXES", f"the image has {len(boxes)} boxes, a row holds {MOST_BOXES}: drop some"
        )
    stored = np.full((MOST_BOXES, 5), np.nan, dtype=np.float32)
    stored[:, 0] = UNUSED
    scale = size / BOX_FRAME
    for row, box in enumerate(boxes):
        place = np.array([box.x, box.y, box.width, box.height]) * scale
        stored[row] = (box.finding, *place)
    return stored


def _provenance(
    case: ChestCase, mode: str, side: int, options: Options
) -> Mapping[str, str | int | float]:
    entry = case.entry
    age = entry.age_years
    return {
        "findings": "|".join(CLASSES[index] for index in entry.findings) or NO_FINDING,
        "boxes": len(case.boxes),
        OFFICIAL: case.part,
        "view": entry.view,
        "sex": entry.sex,
        "age_years": "" if age is None else min(age, OLDEST_TOLD_YEARS),
        "follow_up": "" if entry.follow_up is None else entry.follow_up,
        "pixel_mode": mode,
        "scale": options.image_size / side,
        "original_rows": entry.rows or "",
        "original_columns": entry.columns or "",
        "spacing_y_mm": _spacing(entry.spacing_y_mm, entry.rows, options.image_size),
        "spacing_x_mm": _spacing(entry.spacing_x_mm, entry.columns, options.image_size),
        "warnings": " | ".join(_warnings(case)),
    }


def _spacing(original_mm: float | None, count: int | None, size: int) -> float | str:
    """Spacing of the stored pixels, if the release shows the detector's whole image."""
    return "" if original_mm is None or count is None else round(original_mm * count / size, 4)


def _warnings(case: ChestCase) -> Iterable[str]:
    unnamed = sorted({box.finding for box in case.boxes} - set(case.entry.findings))
    if unnamed:
        names = ", ".join(CLASSES[index] for index in unnamed)
        yield f"BOX_WITHOUT_LABEL: a box shows {names}, which the labels of the image lack"
    if case.entry.age_years is None:
        yield "AGE: the table has no age for this image, or an impossible one"
