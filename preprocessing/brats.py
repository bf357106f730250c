"""BraTS: four MR modalities and a segmentation to hemispheres with and without tumour.

Each axial slice with enough tumour is cut in two; one half is one picture, the rest of it is zero.
By default the cut is the brain's own symmetry plane, estimated once for the volume from its
pictures alone, so that nothing about the cut tells the label. The published cut beside the tumour's
edge remains for comparison.

Source: Ron, Weiler-Sagie and Hazan, ICML 2022, section 4.2 (four channels, whole tumour, slices of
more than 1000 tumour pixels, one cut for each slice).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped

from preprocessing import brats_files, hemispheres, midline
from preprocessing.brats_files import BratsCase
from preprocessing.brats_volumes import Scan, load_pictures, load_tumour
from preprocessing.errors import GeometryError, LabelError
from preprocessing.hemispheres import CROSSING_MIDLINE, HALF_EMPTY, HALF_UNCLEAR, Half
from preprocessing.midline import CutLine, Midplane
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Derivation, Discovery, Example, Exclusion
from preprocessing.shards import FieldSpec, Layout

CLASSES = ("no tumour", "tumour")
REASONS: Mapping[str, str] = {
    CROSSING_MIDLINE: (
        "tumour lies on both sides of the midline: neither half is without; the slice is left out "
        "(--crossing label-both labels each half by its own tumour)"
    ),
    HALF_UNCLEAR: "a half holds some tumour but less than --min-half-area: it is neither class",
    HALF_EMPTY: "the cut leaves no brain in a half",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the volumes lie.

    Attributes
    ----------
    root
        Folder of BraTS cases, searched to any depth.
    """

    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a volume becomes pictures; the meanings are those of the command line's options.

    Attributes
    ----------
    crop
        ``midline`` cuts at the brain's symmetry plane. ``tumour-edge`` is the published cut; its
        place tells the label.
    crossing
        What becomes of a slice with tumour on both sides of the plane.
    min_tumour_area
        Slices are used with more tumour pixels than this.
    min_half_area
        Tumour pixels from which a half counts as tumour; for ``label-both`` only.
    image_size
        Rows and columns that every volume must have; none is resampled.
    dtype
        ``int16`` refuses values that it cannot hold; ``float32`` takes twice the memory.
    """

    crop: Literal["midline", "tumour-edge"] = "midline"
    crossing: Literal["exclude", "label-both"] = "exclude"
    min_tumour_area: int = 1000
    min_half_area: int = 500
    image_size: int = 240
    dtype: Literal["int16", "float32"] = "int16"


def layout(*, image_size: int, dtype: str) -> dict[str, FieldSpec]:
    """Datasets of a shard row, beside ``label``."""
    square = (image_size, image_size)
    channels = ", ".join(brats_files.MODALITIES)
    return {
        "image": FieldSpec(
            shape=(4, *square),
            dtype=dtype,
            description=f"one half of an axial slice, {channels}; row 0 anterior, column 0 the "
            "patient's right; 0 outside",
        ),
        "mask": FieldSpec(
            shape=square, dtype="uint8", description="1 where the half holds tumour of any kind"
        ),
        "brain_mean": FieldSpec(
            shape=(4,), dtype="float32", description="mean of each channel over the brain's voxels"
        ),
        "brain_sd": FieldSpec(
            shape=(4,),
            dtype="float32",
            description="standard deviation of each channel over the brain's voxels",
        ),
        "cut": FieldSpec(
            shape=(2,),
            dtype="float32",
            description="offset and slope: column < offset + slope * row is the right half",
            unit="pixel",
        ),
        "slice_affine": FieldSpec(
            shape=(4, 4), dtype="float64", description="(column, row, 0, 1) to LPS", unit="mm"
        ),
    }


def space_bytes(case: BratsCase, layout: Layout) -> int:
    """Bound the bytes of a case's compressed rows by those of its files.

    Rows hold every voxel of the files once at most; where the files are compressed, they are so no
    better than rows are.
    """
    rows = 2 * case.shape[0]
    beside = sum(spec.row_bytes for name, spec in layout.items() if name not in ("image", "mask"))
    return sum(path.stat().st_size for path in case.paths.values()) + rows * beside


def known_leak(options: Options) -> str:
    """Say how the labels can be told without seeing a tumour, or nothing."""
    if options.crop == "midline":
        return ""
    return (
        "made with --crop tumour-edge: the cut follows the tumour, so the width of a picture's "
        "black part tells its label; for comparison with published numbers only"
    )


def discover(
    sources: Sources,
    options: Options,
    *,
    pseudonyms: Pseudonyms,
    mapper: Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]] = map,
    progress: Callable[[str, int, int], None] | None = None,
) -> Discovery:
    """Find the complete cases; every file below the root is accounted for.

    Raises
    ------
    FileError
        ``INPUT_MISSING`` or ``INPUT_NOT_A_FOLDER``.
    """
    return brats_files.find_cases(
        sources.root, pseudonyms=pseudonyms, mapper=mapper, progress=progress
    )


def derive(case: BratsCase, options: Options) -> Derivation:
    """Turn a case into rows, with a note for each slice or half that was left out.

    The columns ``slices_*`` of each row count every slice of the volume by what became of it:
    ``none`` and ``small`` hold no or too little tumour, ``crossing``, ``used`` (one half of it or
    both), ``unusable``.

    Raises
    ------
    FileError
        Values that cannot be read or stored: see ``brats_volumes``.
    LabelError
        ``NII_EMPTY_SEG``, ``NII_SEG_FLOAT``, ``NII_SEG_LABELS``, ``NO_LARGE_TUMOUR``, or the
        commonest code of its slices where none can be used.
    GeometryError
        ``NII_SIZE``; ``NO_MIDLINE``.
    """
    size = case.shape[1:]
    if size != (options.image_size, options.image_size):
        raise GeometryError(
            "NII_SIZE",
            f"slices have {size[0]} x {size[1]} pixels, the data set is of {options.image_size} x "
            f"{options.image_size}: build such cases apart with --image-size",
        )
    tumour = load_tumour(case)
    areas = np.count_nonzero(tumour, axis=(1, 2))
    large = np.flatnonzero(areas > options.min_tumour_area)
    if not len(large):
        raise LabelError(
            "NO_LARGE_TUMOUR",
            f"the largest slice of the tumour has {int(areas.max())} pixels, no more than "
            f"--min-tumour-area {options.min_tumour_area}: the case gives no pictures",
        )
    scan = load_pictures(case, dtype=options.dtype)
    plane = _plane(scan, case) if options.crop == "midline" else None
    cuts = [
        _Cut(z, *_cut(scan.brain[z], tumour[z], _line(plane, z, tumour[z]), options))
        for z in large.tolist()
    ]
    account = _account(areas, cuts, options)
    notes = tuple(_note(case, cut.z, half) for cut in cuts for half in cut.unusable)
    if not account["used"]:
        code = Counter(note.code for note in notes).most_common(1)[0][0]
        raise LabelError(code, f"none of {len(large)} slices can be used: {REASONS[code]}")
    about = _about(case, scan, plane, options, account)
    examples = tuple(row for cut in cuts for row in _rows(case, scan, tumour, cut, about))
    return Derivation(examples=examples, notes=notes)


@dataclass(frozen=True, slots=True)
class _Cut:
    """One slice and its two halves."""

    z: int
    line: CutLine
    halves: tuple[Half, Half]

    @property
    def unusable(self) -> tuple[Half, ...]:
        """Halves without a label; a slice that crosses counts once."""
        refused = tuple(half for half in self.halves if half.code)
        return refused[:1] if self.crosses else refused

    @property
    def crosses(self) -> bool:
        return any(half.code == CROSSING_MIDLINE for half in self.halves)


def _plane(scan: Scan, case: BratsCase) -> Midplane:
    x, y, z = (float(step) for step in np.linalg.norm(np.array(case.affine)[:3, :3], axis=0))
    return midline.estimate(scan.pictures, scan.brain, spacing_mm=(z, y, x))


def _line(plane: Midplane | None, z: int, tumour: Bool[np.ndarray, "row column"]) -> CutLine:
    return hemispheres.tumour_edge(tumour) if plane is None else plane.line(z)


def _cut(
    brain: Bool[np.ndarray, "row column"],
    tumour: Bool[np.ndarray, "row column"],
    line: CutLine,
    options: Options,
) -> tuple[CutLine, tuple[Half, Half]]:
    # Rounded as it is stored, so that the stored line cuts the same pixels.
    stored = CutLine(float(np.float32(line.offset)), float(np.float32(line.slope)))
    halves = hemispheres.halves(
        stored, tumour, brain, crossing=options.crossing, min_half_area=options.min_half_area
    )
    return stored, halves


def _account(
    areas: Shaped[np.ndarray, " z"], cuts: list[_Cut], options: Options
) -> Mapping[str, int]:
    used = sum(any(half.label is not None for half in cut.halves) for cut in cuts)
    crossing = sum(cut.crosses for cut in cuts)
    return {
        "none": int(np.count_nonzero(areas == 0)),
        "small": int(np.count_nonzero((areas > 0) & (areas <= options.min_tumour_area))),
        "crossing": crossing,
        "unusable": len(cuts) - used - crossing,
        "used": used,
    }


def _note(case: BratsCase, z: int, half: Half) -> Exclusion:
    whole = half.code == CROSSING_MIDLINE
    return Exclusion(
        code=half.code,
        subject_id=case.subject_id,
        where=f"case {case.case_id} slice {z}{'' if whole else ' ' + half.side}",
        detail=REASONS[half.code],
        files=0,
    )


def _about(
    case: BratsCase,
    scan: Scan,
    plane: Midplane | None,
    options: Options,
    account: Mapping[str, int],
) -> dict[str, str | int | float]:
    """Return what all rows of a case share in ``samples.csv``."""
    x, y, z = np.linalg.norm(np.array(case.affine)[:3, :3], axis=0)
    return {
        "grade": case.grade,
        "crop": options.crop,
        "symmetry": "" if plane is None else plane.symmetry,
        "spacing_z_mm": round(float(z), 4),
        "spacing_y_mm": round(float(y), 4),
        "spacing_x_mm": round(float(x), 4),
        **{f"slices_{name}": count for name, count in account.items()},
        "warnings": " | ".join(scan.warnings),
    }


def _rows(
    case: BratsCase,
    scan: Scan,
    tumour: Bool[np.ndarray, "z y x"],
    cut: _Cut,
    about: Mapping[str, str | int | float],
) -> Iterator[Example]:
    picture = np.stack([volume[cut.z] for volume in scan.pictures])
    affine = np.array(case.affine)
    affine[:, 3] = affine @ [0.0, 0.0, float(cut.z), 1.0]
    middle = cut.line.offset + cut.line.slope * (picture.shape[1] - 1) / 2
    for half in cut.halves:
        if half.label is None:
            continue
        yield Example(
            sample_id=f"{case.case_id}-z{cut.z:03d}-{half.side}",
            subject_id=case.subject_id,
            arrays={
                "image": np.where(half.pixels, picture, picture.dtype.type(0)),
                "mask": (tumour[cut.z] & half.pixels).astype(np.uint8),
                "brain_mean": scan.mean,
                "brain_sd": scan.sd,
                "cut": np.array(cut.line, dtype=np.float32),
                "slice_affine": affine,
            },
            label=half.label,
            provenance={
                "z": cut.z,
                "side": half.side,
                "tumour_pixels": half.tumour_pixels,
                "cut_column": round(float(middle), 2),
                **about,
            },
        )
