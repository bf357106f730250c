"""Chest radiographs in the files and folders of NIH ChestX-ray14, with every finding known.

::

    OUT/images/00000001_000.png ...      8-bit grey, some RGBA, 1024 x 1024
    OUT/Data_Entry_2017_v2020.csv        one row per image
    OUT/BBox_List_2017.csv               boxes of eight findings on test images, as in the release
    OUT/train_val_list.txt test_list.txt patient-disjoint

Anatomy, exposure, borders, view and pixel spacing are drawn without looking at the findings.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from preprocessing.atomic_files import disk_errors
from preprocessing.chestxray_tables import BOX_FRAME, CLASSES, NO_FINDING
from preprocessing.errors import OutputError
from preprocessing.phantoms.thorax import FINDINGS, Anatomy, canvas, chest, draw_anatomy

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

BOXED = CLASSES[:8]
"""Findings of which the release has boxes."""
CARDIOMEGALY = "Cardiomegaly"
HEART_GROWTH = (1.35, 1.55)
MOST_VISITS = 4
TEST_SHARE = 0.25
FINDINGS_PER_IMAGE = (0.40, 0.45, 0.11, 0.04)
"""Shares of images with none, one, two and three findings."""
RGBA_SHARE = 0.02
EXTENT_LEVEL = 0.3
"""A finding extends to where it has this share of its full strength."""
RENDER_SIDE = 512
_DETECTORS = ((2048, 2500, 0.168), (2500, 2048, 0.168), (2992, 2991, 0.143), (2048, 2500, 0.171))
_PATIENT_STREAM, _SPLIT_STREAM = 0, 1
_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"

BoxPlace = tuple[float, float, float, float]
"""Left, top, width, height in pixels of a 1024 x 1024 image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiograph:
    """One phantom image before noise.

    Attributes
    ----------
    attenuation
        Air is 0, the mediastinum about 1.
    boxes
        Finding to box, for every finding drawn.
    """

    attenuation: Float32[np.ndarray, "row column"] = field(repr=False)
    boxes: dict[str, BoxPlace]


def write_chestxray14(
    out: Path,
    *,
    subjects: int = 60,
    seed: int = 0,
    findings: Sequence[str] = CLASSES,
    image_size: int = BOX_FRAME,
    mapper: Mapper = map,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write chest radiographs of synthetic patients; the same arguments give the same bytes.

    Parameters
    ----------
    findings
        Which of the 14 are drawn.
    image_size
        Side of the images; boxes are in pixels of 1024 x 1024 in any case, as with copies of the
        release at other sizes.
    mapper
        Spreads patients over processes; the order of results is kept.
    progress
        Called with the number of patients written and the number wanted.

    Raises
    ------
    OutputError
        ``EXISTS`` where the folder holds anything already; ``DISK_FULL`` and the like.
    ValueError
        If there are no subjects, or a finding is none of the 14.
    """
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}: at least 1 is needed")
    if unknown := sorted(set(findings) - set(CLASSES)):
        raise ValueError(f"findings name {unknown}: the classes are {', '.join(CLASSES)}")
    with disk_errors():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError("EXISTS", "the output folder is not empty: name a new folder")
        (out / "images").mkdir(parents=True, exist_ok=True)
    tests = _test_patients(subjects, seed=seed)
    write = partial(
        _write_patient, out=out, seed=seed, findings=tuple(findings), image_size=image_size
    )
    rows: list[str] = []
    boxes: list[str] = []
    lists: dict[bool, list[str]] = {False: [], True: []}
    for done, patient in enumerate(mapper(write, range(1, subjects + 1)), start=1):
        for name, row, found in patient:
            rows.append(row)
            lists[done in tests].append(name)
            boxes += found if done in tests else []
        if progress is not None:
            progress(done, subjects)
    with disk_errors():
        _write_lines(out / "BBox_List_2017.csv", [_BOX_HEADER, *boxes])
        _write_lines(out / "train_val_list.txt", lists[False])
        _write_lines(out / "test_list.txt", lists[True])
        _write_lines(out / "Data_Entry_2017_v2020.csv", [_HEADER, *rows])


def render(
    anatomy: Anatomy, findings: Sequence[str], *, seed: Sequence[int], side: int = RENDER_SIDE
) -> Radiograph:
    """Draw a chest with findings; each finding depends on the seed and its own name only."""
    drawn = {name: np.random.default_rng([*seed, CLASSES.index(name)]) for name in findings}
    if CARDIOMEGALY in drawn:
        growth = float(drawn[CARDIOMEGALY].uniform(*HEART_GROWTH))
        anatomy = replace(anatomy, heart=(anatomy.heart[0] * growth, anatomy.heart[1] * growth))
    on = canvas(anatomy, side=side)
    picture = chest(anatomy, on)
    boxes: dict[str, BoxPlace] = {}
    for name, rng in drawn.items():
        if name == CARDIOMEGALY:
            boxes[name] = _extent(on.heart <= 1)
            continue
        added, extent = FINDINGS[name](on, int(rng.integers(2)), rng)
        picture = picture + added
        boxes[name] = _extent(extent >= EXTENT_LEVEL)
    return Radiograph(attenuation=np.maximum(picture, 0).astype(np.float32), boxes=boxes)


def expose(
    attenuation: Float32[np.ndarray, "row column"], *, size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{size} {size}"]:
    """Turn attenuation into grey values: window, noise, collimation, a lead marker."""
    picture = np.array(Image.fromarray(attenuation).resize((size, size), Image.Resampling.BICUBIC))
    low, high = rng.uniform(-0.02, 0.06), rng.uniform(1.15, 1.35)
    grey = np.clip((picture - low) / (high - low), 0, 1) ** rng.uniform(0.8, 1.1)
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    values = np.clip(255 * grey + rng.uniform(1.0, 2.5) * noise, 1, 255).astype(np.uint8)
    _mark(values, rng)
    for axis in (0, 1):  # beyond the collimator's blades nothing was exposed
        for end in (0, 1):
            blade = int(size * max(0.0, rng.normal(-0.01, 0.02)))
            strip = slice(0, blade) if end == 0 else slice(size - blade, size)
            values[(strip, slice(None)) if axis == 0 else (slice(None), strip)] = 0
    return values


def _mark(values: UInt8[np.ndarray, "row column"], rng: np.random.Generator) -> None:
    """Draw an L in the corner on the patient's left."""
    size = values.shape[0]
    height, thick = max(size // 24, 3), max(size // 160, 1)
    top, left = int(size * rng.uniform(0.05, 0.09)), int(size * rng.uniform(0.88, 0.92))
    values[top : top + height, left : left + thick] = 250
    values[top + height - thick : top + height, left : left + height * 2 // 3] = 250


def _write_patient(
    number: int, *, out: Path, seed: int, findings: tuple[str, ...], image_size: int
) -> list[tuple[str, str, list[str]]]:
    """Write a patient's images; return for each its name, its row, its boxes' rows."""
    rng = np.random.default_rng([seed, _PATIENT_STREAM, number])
    anatomy = draw_anatomy(rng)
    age, sex = int(rng.integers(20, 85)), "MF"[int(rng.integers(2))]
    written = []
    for visit in range(int(rng.integers(1, MOST_VISITS + 1))):
        name = f"{number:08d}_{visit:03d}.png"
        shown = _draw_findings(findings, rng)
        moved = replace(anatomy, shift=anatomy.shift + float(rng.normal(0, 0.015)))
        picture = render(moved, shown, seed=(seed, number, visit))
        pixels = expose(picture.attenuation, size=image_size, rng=rng)
        as_rgba = bool(rng.uniform() < RGBA_SHARE) or (number, visit) == (1, 0)
        with disk_errors():
            (out / "images" / name).write_bytes(_png(pixels, as_rgba=as_rgba))
        width, height, spacing = _DETECTORS[int(rng.integers(len(_DETECTORS)))]
        view = "PA" if rng.uniform() < 0.6 else "AP"
        row = (
            f"{name},{'|'.join(shown) or NO_FINDING},{visit},{number},{age + visit},{sex},{view},"
            f"{width},{height},{spacing},{spacing}"
        )
        places = [(key, place) for key, place in picture.boxes.items() if key in BOXED]
        written.append((name, row, [_box_row(name, key, place) for key, place in places]))
    return written


def _draw_findings(findings: tuple[str, ...], rng: np.random.Generator) -> tuple[str, ...]:
    count = min(int(rng.choice(len(FINDINGS_PER_IMAGE), p=FINDINGS_PER_IMAGE)), len(findings))
    chosen = rng.choice(len(findings), size=count, replace=False)
    return tuple(findings[index] for index in sorted(chosen.tolist()))


def _box_row(name: str, finding: str, place: BoxPlace) -> str:
    written = "Infiltrate" if finding == "Infiltration" else finding  # as in the release's list
    return ",".join([name, written, *(f"{value:.12g}" for value in place)])


def _extent(mask: Bool[np.ndarray, "row column"]) -> BoxPlace:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    scale = BOX_FRAME / mask.shape[0]
    top, left = rows[0] * scale, columns[0] * scale
    return (
        float(left),
        float(top),
        float((columns[-1] + 1) * scale - left),
        float((rows[-1] + 1) * scale - top),
    )


def _png(pixels: UInt8[np.ndarray, "row column"], *, as_rgba: bool) -> bytes:
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (image.convert("RGBA") if as_rgba else image).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _test_patients(subjects: int, *, seed: int) -> set[int]:
    """Draw the test patients: none of one, else at least one and never all."""
    count = 0 if subjects == 1 else max(1, round(TEST_SHARE * subjects))
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    return set((1 + rng.permutation(subjects)[:count]).tolist())


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
