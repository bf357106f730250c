"""BraTS18 as it is downloaded, with synthetic heads whose symmetry plane is known.

::

    OUT/{HGG,LGG}/<case>/<case>_{t1,t1ce,t2,flair,seg}.nii.gz   240 x 240 x 155 of 1 mm, L,P,S
    OUT/truth.json                                              plane, side and size of each tumour

Sides are balanced. The plane in ``truth.json`` is ``x = offset + per_row * y + per_slice * z`` in
voxel indices, z to the head, y to posterior, x to the patient's left.
"""

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float64, Int16, Shaped

from preprocessing.atomic_files import disk_errors
from preprocessing.errors import OutputError
from preprocessing.nifti import LPS_TO_RAS, SCANNER_FRAME
from preprocessing.phantoms.brains import (
    CONTRASTS,
    ENHANCING,
    NECROSIS,
    OEDEMA,
    WHITE,
    Head,
    HeadMap,
    draw_head,
    rasterise,
)

HIGH_GRADE_SHARE = 210 / 285
"""BraTS18: 210 HGG, 75 LGG."""
CROSSING_SHARE = 0.15
NOISE = 0.035
"""Standard deviation of the noise relative to white matter."""
BIAS = 0.15
"""Largest relative brightening by the coil's field, left over after correction."""
GZIP_LEVEL = 1
_COHORT_STREAM, _SUBJECT_STREAM = 0, 1

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brats18Options:
    """How heads are put on a grid.

    Attributes
    ----------
    spacing_mm
        Edge of a cubic voxel.
    matrix, slices
        Rows and columns, and number of axial slices.
    mimics
        Mean number of patches of gliosis and of bright vessels per head: what a classifier may not
        take for a tumour. It varies between heads.
    faintest
        Contrast of the faintest tumours to white matter, relative to that of the plainest; each
        patient's lies between it and 1.
    """

    spacing_mm: float = 1.0
    matrix: int = 240
    slices: int = 155
    mimics: float = 60.0
    faintest: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PhantomHead:
    """One head on the scanner's grid.

    Attributes
    ----------
    pictures
        One volume for each of ``CONTRASTS``.
    affine
        (x, y, z, 1) voxel index to LPS millimetres.
    plane
        ``offset, per_row, per_slice`` of the true symmetry plane in voxel indices.
    """

    head: Head
    truth: HeadMap
    pictures: dict[str, Int16[np.ndarray, "z y x"]]
    affine: Float64[np.ndarray, "4 4"]
    plane: tuple[float, float, float]


def write_brats18(
    out: Path,
    *,
    subjects: int = 40,
    seed: int = 0,
    options: Brats18Options | None = None,
    mapper: Mapper = map,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write synthetic heads under BraTS18's names; the same arguments give the same bytes.

    Parameters
    ----------
    mapper
        Spreads patients over processes (``Executor.map``); the order of results is kept.
    progress
        Called with the number of patients written and the number wanted.

    Raises
    ------
    OutputError
        ``EXISTS`` where the folder holds anything already; ``DISK_FULL`` and the like.
    ValueError
        If there are no subjects.
    """
    cohort = draw_cohort(subjects, seed=seed)
    with disk_errors():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError("EXISTS", "the output folder is not empty: name a new folder")
        out.mkdir(parents=True, exist_ok=True)
    write = partial(_write_subject, out=out, seed=seed, options=options or Brats18Options())
    facts = []
    for done, fact in enumerate(mapper(write, cohort), start=1):
        facts.append(fact)
        if progress is not None:
            progress(done, subjects)
    with disk_errors():
        (out / "truth.json").write_text(json.dumps(facts, indent=1) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What the cohort decides about a patient."""

    index: int
    side: int
    crosses: bool
    high_grade: bool


def draw_cohort(subjects: int, *, seed: int) -> tuple[Drawn, ...]:
    """Draw sides, grades and which tumours cross; sides are as equal as can be, in each group.

    Raises
    ------
    ValueError
        If there are no subjects.
    """
    if subjects < 1:
        raise ValueError(f"subjects is {subjects}: at least 1 is needed")
    rng = np.random.default_rng([seed, _COHORT_STREAM])
    crosses = np.arange(subjects) < round(CROSSING_SHARE * subjects)
    sides = np.where(np.arange(subjects) % 2 == 0, 1, -1) * rng.choice([-1, 1])
    high = rng.permutation(np.arange(subjects) < round(HIGH_GRADE_SHARE * subjects))
    order = rng.permutation(subjects)
    return tuple(
        Drawn(
            index=index,
            side=int(sides[place]),
            crosses=bool(crosses[place]),
            high_grade=bool(high[place]),
        )
        for index, place in enumerate(order.tolist())
    )


def scan_head(drawn: Drawn, *, seed: int, options: Brats18Options | None = None) -> PhantomHead:
    """Draw one patient and scan them; depends on the arguments only."""
    options = options or Brats18Options()
    rng = np.random.default_rng([seed, _SUBJECT_STREAM, drawn.index])
    head = draw_head(
        side=drawn.side,
        crosses=drawn.crosses,
        high_grade=drawn.high_grade,
        mimics=options.mimics,
        rng=rng,
    )
    step = options.spacing_mm
    z, y, x = (
        (np.arange(count) - (count - 1) / 2) * step
        for count in (options.slices, options.matrix, options.matrix)
    )
    truth = rasterise(head, (z, y, x))
    # As in the challenge's files: LPS with the origin at the right anterior corner.
    affine = np.diag([step, step, step, 1.0])
    affine[1, 3] = -(options.matrix - 1) * step
    return PhantomHead(
        head=head,
        truth=truth,
        pictures=_pictures(truth, rng, contrast=_contrast(options, rng)),
        affine=affine,
        plane=_plane_in_voxels(head, (z, y, x), step),
    )


def _plane_in_voxels(
    head: Head, axes: tuple[np.ndarray, np.ndarray, np.ndarray], step: float
) -> tuple[float, float, float]:
    """Solve u(x, y, z) = 0 for the column."""
    a, b, c = head.rotation[0] / head.rotation[0, 0]
    z, y, x = (float(axis[0]) for axis in axes)
    first = np.array([x, y, z]) - head.centre_mm
    return (-float(first @ [a, b, c]) / step / a, -float(b / a), -float(c / a))


def _contrast(options: Brats18Options, rng: np.random.Generator) -> float:
    """Of a patient's tumour to white matter, relative to the plainest."""
    return float(rng.uniform(options.faintest, 1)) if options.faintest < 1 else 1.0


def _pictures(
    truth: HeadMap, rng: np.random.Generator, *, contrast: float
) -> dict[str, Int16[np.ndarray, "z y x"]]:
    """Give every tissue its contrast, bias field and noise; outside there is nothing."""
    place = np.flatnonzero(truth.brain)
    tissue = truth.tissue.reshape(-1)[place].astype(np.int64)
    lesion = truth.labels.reshape(-1)[place]
    for label, code in ((OEDEMA, 5), (NECROSIS, 6), (ENHANCING, 7)):
        tissue[lesion == label] = code
    bias = _bias(truth.brain.shape, rng).reshape(-1)[place]
    pictures = {}
    for name, values in CONTRASTS.items():
        table = np.asarray(values, dtype=np.float32) * np.float32(rng.uniform(0.85, 1.2))
        table[5:] = table[WHITE] + np.float32(contrast) * (table[5:] - table[WHITE])
        noise = rng.standard_normal(len(place), dtype=np.float32) * (NOISE * table[2])
        flat = np.zeros(truth.brain.size, dtype=np.int16)
        flat[place] = np.rint(table[tissue] * bias + noise)
        pictures[name] = flat.reshape(truth.brain.shape)
    return pictures


def _bias(shape: tuple[int, ...], rng: np.random.Generator) -> Shaped[np.ndarray, "z y x"]:
    z, y, x = (np.linspace(-1, 1, count, dtype=np.float32) for count in shape)
    a, b, c = rng.uniform(-BIAS, BIAS, 3).astype(np.float32) / 2
    return 1 + a * z[:, None, None] + (b * y[None, :, None] + c * x[None, None, :])


def _write_subject(
    drawn: Drawn, *, out: Path, seed: int, options: Brats18Options
) -> dict[str, Any]:
    scan = scan_head(drawn, seed=seed, options=options)
    name = f"Brats18_PHANTOM_{drawn.index:04d}_1"
    folder = out / ("HGG" if drawn.high_grade else "LGG") / name
    with disk_errors():
        folder.mkdir(parents=True)
        for kind, voxels in (*scan.pictures.items(), ("seg", scan.truth.labels)):
            path = folder / f"{name}_{kind.lower()}.nii.gz"
            path.write_bytes(encoded(voxels, scan.affine))
    return {"case": name, **_facts(scan)}


def encoded(voxels: Shaped[np.ndarray, "z y x"], affine: Float64[np.ndarray, "4 4"]) -> bytes:
    """Return a compressed NIfTI file of voxels with their LPS affine."""
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0), LPS_TO_RAS @ affine)
    image.set_sform(image.affine, code=SCANNER_FRAME)
    image.set_qform(image.affine, code=SCANNER_FRAME)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=GZIP_LEVEL, mtime=0)


def _facts(scan: PhantomHead) -> dict[str, Any]:
    """Return the truth about one head as plain values."""
    lateral, whole = scan.truth.lateral_mm, scan.truth.labels > 0
    hemisphere = max(int(scan.truth.brain.sum()) // 2, 1)
    left = int((whole & (lateral > 0)).sum())
    return {
        "plane": [round(value, 6) for value in scan.plane],
        "side": "left" if scan.head.side > 0 else "right",
        "crosses": scan.head.crosses,
        "tumour_left": left,
        "tumour_right": int(whole.sum()) - left,
        "tumour_share_of_hemisphere": round(int(whole.sum()) / hemisphere, 4),
    }
