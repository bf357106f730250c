"""What a measurement of maps against boxes found.

Axes: n case, m measure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from pipelines.box_truth import BoxCase
from pipelines.comparison_scores import Difference, MeanScore
from pipelines.evaluation_records import CONTROL, Kind
from pipelines.evaluation_verdicts import Advantage

MEAN = "mean"
"""In the place of a finding: the mean over those that have a score."""
CLEAN = ""
"""Name of pictures that nobody attacked."""
TRUE_BOX = "true box"
MEAN_BOX = "mean box"

FindingScores = Mapping[str, Mapping[str, MeanScore]]
"""Finding, or ``MEAN`` -> measure -> score; what is not defined is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxEntry:
    """Whose maps are measured.

    Attributes
    ----------
    model
        Name of the group of runs; ``CONTROL`` for a map that no network made.
    method
        Explainer with its level, as ``attention-fine``; or the control.
    explainer
        Name in ``EXPLAINERS``; "" for a control.
    condition
        Name of the attack on the pictures; "" where there was none.
    signed
        Whether only the positive part of the maps was measured.
    """

    model: str
    method: str
    explainer: str = ""
    condition: str = CLEAN
    kind: Kind
    signed: bool = False
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name it in a table and in the files."""
        words = self.method if self.model == CONTROL else f"{self.model} {self.method}"
        return with_condition(words, self.condition)


def with_condition(name: str, condition: str) -> str:
    """Add the attack to a name."""
    return f"{name}, {condition}" if condition else name


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEffect:
    """A model with a robust objective against the same one without, in one measure.

    Attributes
    ----------
    method
        Explainer with its level; "" where findings are measured and not maps.
    advantage
        Positive where the robust one scores higher; mean over findings.
    """

    model: str
    standard: str
    method: str
    condition: str
    measure: str
    advantage: Advantage


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxScores:
    """Maps of several models and methods against the boxes of a test split.

    Attributes
    ----------
    classes
        All findings of the data set.
    findings
        Those that tables show, in the order of the published ones; some may have no box.
    cases
        Findings of pictures that have boxes.
    entries
        Name -> entry, controls last.
    scores
        Entry -> finding -> measure -> score.
    per_case
        Entry -> seed -> every case's measures; a control has the seed -1.
    differences
        Paired, every entry less the mean box, in the mean over findings, by measure; ``variant``
        holds the entry's name.
    areas
        Model with its condition -> class -> area under the ROC curve on the whole split.
    seeds
        Model with its condition -> seeds of its areas.
    prior
        What the mean box is made of.
    samples, patients
        Test pictures and their patients, with a box or without.
    notes
        Sentences that a reader of the tables needs, plain text.
    failures
        What could not be measured, and why.
    training
        Robust objectives against standard training.
    """

    title: str
    recipe: str
    classes: tuple[str, ...]
    findings: tuple[str, ...]
    cases: tuple[BoxCase, ...] = field(repr=False)
    entries: Mapping[str, BoxEntry] = field(repr=False)
    scores: Mapping[str, FindingScores] = field(repr=False)
    per_case: Mapping[str, Mapping[int, Float64[np.ndarray, "n m"]]] = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)
    areas: Mapping[str, Mapping[str, MeanScore]] = field(repr=False)
    prior: str
    samples: int
    patients: int
    resamples: int
    notes: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    training: tuple[TrainingEffect, ...] = ()

    def boxes_of(self, finding: str) -> int:
        """Count the true boxes of a finding."""
        return sum(len(c.boxes) for c in self.cases if self.classes[c.finding] == finding)

    def patients_of(self, finding: str) -> int:
        """Count the patients with a box of a finding."""
        return len({c.subject_id for c in self.cases if self.classes[c.finding] == finding})

    def models(self) -> list[BoxEntry]:
        """Return what is measured, without the controls."""
        return [entry for entry in self.entries.values() if entry.kind != "control"]

    def controls(self) -> list[BoxEntry]:
        """Return the controls."""
        return [entry for entry in self.entries.values() if entry.kind == "control"]
