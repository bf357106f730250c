"""What passes between the modules of this room and out of it: frozen records, read-only arrays.

Frames and axes: patient coordinates are DICOM's LPS (+x to the patient's left, +y to posterior,
+z to the head), in millimetres. ``z y x`` are voxel axes that run along +z, +y and +x of the
patient. ``row column`` are picture axes: row 0 is the head, and at azimuth 0 column 0 is the
patient's right, so the patient's right is on the viewer's left.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Float64, Int32, Shaped, UInt8

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Like ``map``, or the ``map`` of a process pool: results in order, ``Died`` for a lost task."""
Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much is done, and how much there is."""


class Unit(Enum):
    """What a voxel value means."""

    SUVBW = "g/mL"
    """Standardised uptake value, body weight."""
    PAPER = "paper"
    """x * weight / dose without decay: the published formula, for comparison only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A regular volume in patient space.

    Attributes
    ----------
    voxels
        Values in ``unit``; the axes run to the head, to posterior, to the patient's left.
    affine
        Maps the index vector (x, y, z, 1), integers at voxel centres, to LPS millimetres.
    subject_id
        Pseudonym of the patient.
    """

    voxels: Float32[np.ndarray, "z y x"]
    affine: Float64[np.ndarray, "4 4"]
    unit: Unit
    subject_id: str

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along z, y, x in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """The maximum along parallel rays through a volume.

    Attributes
    ----------
    pixels
        Maximum along each ray, in the volume's unit. Row 0 is the head.
    depth
        Flat index (C order over ``z y x``) of the voxel the maximum came from, the brightest of
        those that it was interpolated from; -1 where a ray misses the volume. Undone by
        ``numpy.unravel_index(depth, volume.voxels.shape)``.
    spacing_mm
        Row and column spacing of the picture.
    azimuth_deg
        Rotation of the viewer about the patient's long axis: 0 looks at the patient from the front
        (coronal view), 90 from the patient's left.
    """

    pixels: Float32[np.ndarray, "row column"]
    depth: Int32[np.ndarray, "row column"]
    spacing_mm: tuple[float, float]
    azimuth_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Equalized:
    """A histogram-equalised picture and all that is needed to undo the equalisation.

    Attributes
    ----------
    image
        Equalised grey values.
    suv
        The projection in SUV, resampled to the same grid.
    depth
        ``Projection.depth`` resampled to the same grid by nearest neighbour; -1 in padding.
    cdf
        Cumulative share of the pixels at or below the upper edge of each of the 256 bins.
    value_range
        SUV at the lower edge of the first bin and the upper edge of the last.
    """

    image: UInt8[np.ndarray, "row column"]
    suv: Float32[np.ndarray, "row column"]
    depth: Int32[np.ndarray, "row column"]
    cdf: Float64[np.ndarray, "256"]
    value_range: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a shard, before it is written.

    Attributes
    ----------
    sample_id
        Pseudonymous, unique in the data set, stable from build to build with the same key.
    subject_id
        Pseudonym of the patient; all rows of a patient share a split.
    arrays
        One array per dataset of the shard (``image`` "channel row column", and where the recipe has
        them ``suv``, ``depth``, ``mask``, ...), without the leading row axis.
    label
        Index into the recipe's classes, or -1 where the scan has no label.
    provenance
        What the recipe adds to ``samples.csv``: allow-listed scalars and short strings only.
    """

    sample_id: str
    subject_id: str
    arrays: Mapping[str, Shaped[np.ndarray, "..."]]
    label: int
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """Something that was seen and not used, and why.

    Attributes
    ----------
    code
        Stable upper-case reason.
    subject_id
        Pseudonym, or "" where the file does not say whose it is.
    where
        Pseudonymous place: ``series <id>`` or ``file <id>``; ``dualwitness locate`` turns it into a
        path for whoever holds the key.
    detail
        What was seen and how to mend it.
    files
        How many files the exclusion accounts for.
    """

    code: str
    subject_id: str
    where: str
    detail: str
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """What one case gives.

    Attributes
    ----------
    examples
        Its rows, at least one.
    notes
        Parts of the case that are not among the rows (a slice, a half of one), each with its code;
        the case's files are accounted for by the case, so ``files`` is 0 in all of them.
    """

    examples: tuple[Example, ...]
    notes: tuple[Exclusion, ...] = ()


@runtime_checkable
class Case(Protocol):
    """One unit of work of a data set: picklable, independent of every other case."""

    @property
    def case_id(self) -> str:
        """Pseudonymous and unique in the data set."""
        ...

    @property
    def subject_id(self) -> str:
        """Pseudonym of the patient."""
        ...

    @property
    def files(self) -> int:
        """How many of the seen files the case is made of."""
        ...

    @property
    def guarded(self) -> bool:
        """Whether deriving runs foreign C code on the files' bytes, which may end the process."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the files, the label or the truth of the case change."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What a folder holds for one data set; every file seen is in exactly one place.

    Attributes
    ----------
    cases
        What can be derived, in ``case_id`` order.
    exclusions
        What was seen and cannot be used, with reasons.
    skipped
        Files that are no candidates at all: reason to count.
    seen
        All files: those of the cases, the excluded and the skipped.
    """

    cases: tuple[Case, ...]
    exclusions: tuple[Exclusion, ...]
    skipped: Mapping[str, int]
    seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """In place of a result: the task, run alone, ended its process or passed its time."""
