"""What passes between the parts of explaining: the task, its scans, their maps.

Axes: h row, w column, k class; z y x voxels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64

from models.networks import Classifier
from pipelines import label_sets
from pipelines.config import ExplainConfig, RunConfig
from pipelines.explain_sources import Scans
from preprocessing.intake_records import SeriesIntake

PATIENT_SPACE = ("depth", "volume_affine", "volume_shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What stays the same from the first to the last scan."""

    config: RunConfig
    settings: ExplainConfig
    scans: Scans = field(repr=False)
    network: Classifier = field(repr=False)
    device: torch.device
    out: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.config.data.classes

    @property
    def count(self) -> int:
        """How many scans are explained."""
        rows = len(self.scans.labels)
        return min(rows, self.settings.limit) if self.settings.limit else rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One scan with the fields that its explanation is drawn with.

    Attributes
    ----------
    label
        Its class, -1 where it has none; not used where it has a label set.
    """

    name: str
    index: int
    label: int
    probabilities: Float64[np.ndarray, " k"]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def prediction(self) -> int:
        """Return the most probable class."""
        return int(self.probabilities.argmax())

    def truth(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Name the true classes; none where they are not known, or it shows none."""
        if label_sets.FIELD in self.arrays:
            return label_sets.names_of(self.arrays[label_sets.FIELD], classes)
        return (classes[self.label],) if self.label >= 0 else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """One map of one scan.

    Attributes
    ----------
    method
        Name of the map: the explainer's and, where it gives several, the level's.
    explainer, level
        Both parts of it.
    target
        Number of the class that it explains; -1 where it is tied to none.
    law, residual
        What the method promises, and by how much this map misses it; "" and None without a law.
    word
        ``sound``, ``doubtful`` or ``refused``; "" where the method cannot check its maps.
    reason
        Why, in one line.
    """

    method: str
    explainer: str
    target: int
    signed: bool
    values: Float32[np.ndarray, "h w"]
    scores: Mapping[str, float]
    law: str = ""
    residual: float | None = None
    word: str = ""
    reason: str = "not checked: the method has no law"

    @property
    def level(self) -> str:
        """Name of the level; "" where the method gives one map."""
        return self.method.removeprefix(self.explainer).removeprefix("-")


@runtime_checkable
class VolumeExport(Protocol):
    """Writes maps in the voxels of a source series, with that series' identifiers."""

    @property
    def folder(self) -> Path:
        """Where the files are written."""
        ...

    def write(
        self,
        series: SeriesIntake,
        voxels: Float32[np.ndarray, "z y x"],
        *,
        signed: bool,
        name: str,
        about: str,
        remark: str,
    ) -> None:
        """Write one map; ``name`` is the method's, ``about`` fits a line, ``remark`` a comment."""
        ...


def truth_fields(task: Task) -> tuple[str, ...]:
    """Name the fields that hold the truth, beside the one class of every row."""
    return (label_sets.FIELD,) if task.config.data.task == "multi-label" else ()
