"""What passes between the parts of an evaluation: its entries, their scores, what they amount to.

An entry is one row of the tables: the maps of one method, on one level, of one model, which is a
group of runs that differ in nothing but the seed. A control is an entry whose model is ``CONTROL``.

Axes: r resample, f removed fraction, c channel, h row, w column.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

from pipelines.comparison_scores import Difference, MeanScore

CONTROL = "control"
"""Model of a map that no network made."""
Kind = Literal["attention", "post-hoc", "control"]
"""A model's own map, a map computed of a finished model, a map that knows nothing, or the truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Whose maps are measured.

    Attributes
    ----------
    model
        Name of the group of runs: the variant, with what else tells groups apart; ``CONTROL``.
    method
        Name of the explainer, or of the control.
    level
        ``fine``, ``coarse`` or the stage of the network; "" where a method gives one map.
    seeds
        Of the runs that were measured; empty for a control that needs none.
    """

    model: str
    method: str
    level: str = ""
    kind: Kind
    seeds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name it in a table and in the files."""
        parts = (self.method,) if self.kind == "control" else (self.model, self.method)
        return " ".join(part for part in (*parts, self.level) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A group of runs that differ in the seed only.

    Attributes
    ----------
    name
        As in its entries.
    variant, network
        Names in the registries.
    frozen
        Whether its trunk was held as another run had left it.
    parameters
        How many the network holds.
    scores
        Accuracy, balanced accuracy, area under ROC, calibration error: measure -> score.
    objective
        What it was trained on: a name in ``models.adversarial.OBJECTIVES``.
    """

    name: str
    variant: str
    network: str
    frozen: bool
    seeds: tuple[int, ...]
    parameters: int
    scores: Mapping[str, MeanScore] = field(repr=False)
    objective: str = "standard"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskingCheck:
    """Whether weaker attacks on a model do better than a stronger one, seeds taken together.

    Attributes
    ----------
    attack
        ``linf`` or ``l2``.
    iterative, one_step, noise
        Accuracy under many steps, under one, and under as many random points.
    suspected
        Of how many seeds a weaker attack does better: their gradients mislead the stronger one, and
        accuracies under attack flatter them.
    """

    model: str
    attack: str
    radius: float
    iterative: float
    one_step: float
    noise: float
    suspected: int
    seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """What attacks on predictions and on explanations found.

    A measure is ``<metric>@<attack>:<radius>``. Attacks on predictions are ``linf`` and ``l2``,
    and their radius ``mean`` is the mean over the radii above 0. Attacks on explanations are
    ``worst`` (of each picture the one that left the least of the map's greatest cells) and
    ``noise``. ``clean`` stands for no attack. What is not defined is absent.

    Attributes
    ----------
    radii
        Of attacks on explanations, in standard deviations.
    linf_radii, l2_radii
        Of attacks on predictions, in shares of the range.
    samples, explained, patients
        Pictures whose predictions were attacked, how many of them whose explanations were, and the
        patients of the former.
    predictions
        Model -> measure -> score.
    entries
        Maps that were attacked, by name.
    scores
        Entry -> measure -> score: under attack; ``gini`` and ``group_gini`` as they are; and
        ``stability_<metric>`` between seeds.
    differences
        Paired: of models less the first, and of entries less the same method's of the first model.
    """

    radii: tuple[float, ...]
    linf_radii: tuple[float, ...]
    l2_radii: tuple[float, ...]
    samples: int
    explained: int
    patients: int
    predictions: Mapping[str, Mapping[str, MeanScore]] = field(repr=False)
    entries: Mapping[str, Entry] = field(repr=False)
    scores: Mapping[str, Mapping[str, MeanScore]] = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)
    masking: tuple[MaskingCheck, ...] = field(repr=False)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveBand:
    """Balanced accuracy (or, of label sets, mean probability) against the removed fraction.

    Attributes
    ----------
    entry
        Name of the entry whose maps order the pixels.
    fill
        What stands for a removed pixel.
    order
        ``ascending``: the least important go first.
    mean
        Over the seeds.
    low, high
        95 % interval over patients.
    sd
        Over the seeds; NaN with one.
    """

    entry: str
    fill: str
    order: Literal["ascending", "descending"]
    fractions: Float[np.ndarray, " f"] = field(repr=False)
    mean: Float[np.ndarray, " f"] = field(repr=False)
    low: Float[np.ndarray, " f"] = field(repr=False)
    high: Float[np.ndarray, " f"] = field(repr=False)
    sd: Float[np.ndarray, " f"] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePicture:
    """One test picture with the maps of several entries, for the eye.

    Attributes
    ----------
    image
        As the data set holds it, resampled to the size at which it was measured.
    mask
        True region; None where there is none.
    label, prediction
        Index of the true class and of the class that the model of the headline predicts.
    scores
        Entry -> measure -> score of this picture; a measure that is not defined is absent.
    maps
        Entry -> its map on its own grid.
    signed
        Entry -> whether values below zero speak against the class.
    """

    image: Float32[np.ndarray, "c h w"] = field(repr=False)
    mask: Bool[np.ndarray, "h w"] | None = field(repr=False)
    label: int
    prediction: int
    scores: Mapping[str, Mapping[str, float]] = field(repr=False)
    maps: Mapping[str, Float32[np.ndarray, "_row _column"]] = field(repr=False)
    signed: Mapping[str, bool] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What an evaluation found.

    A measure of an entry is the name of a metric, or ``<metric>@<fill>`` where the answer depends
    on what stands for a removed pixel; ``randomised_similarity`` is that of the maps before and
    after the network's weights were drawn anew. What is not defined for an entry is absent.

    Attributes
    ----------
    recipe
        How the data set was made: ``fdg-pet``, ``brats18``, ``chestxray14``, or another.
    synthetic
        Whether the scans are phantoms.
    chance
        Balanced accuracy of guessing.
    models
        Name -> model.
    entries
        Name -> entry, controls last.
    scores
        Entry -> measure -> score over seeds and patients.
    differences
        Paired, every entry less ``against``, by measure; ``variant`` holds the entry's name.
    against
        Name of the entry that all others are compared with.
    curves
        Entries' perturbation curves.
    samples, patients, scored
        Test pictures, their patients, and how many pictures the perturbation curves were made of.
    verdicts
        Entry -> what its method's own law says of its maps (``sound``, ``doubtful``, ``refused``)
        -> how many maps; absent without a law.
    notes
        Sentences that a reader of the tables needs, plain text.
    failures
        What could not be measured, and why: name of a run and method -> reason.
    robustness
        None where attacks were not asked for, or no run could be attacked.
    """

    title: str
    recipe: str
    synthetic: bool
    classes: tuple[str, ...]
    chance: float
    models: Mapping[str, Model] = field(repr=False)
    entries: Mapping[str, Entry] = field(repr=False)
    scores: Mapping[str, Mapping[str, MeanScore]] = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)
    against: str
    curves: tuple[CurveBand, ...] = field(repr=False)
    samples: int
    patients: int
    scored: int
    resamples: int
    picture_size: tuple[int, int]
    verdicts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failures: Mapping[str, str] = field(default_factory=dict)
    robustness: Robustness | None = None
