"""Sentences that a reader of an evaluation's tables needs, told by what was measured."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from models.metrics import FRACTIONS
from pipelines.assemble import TrainingData
from pipelines.compare import FEW_PATIENTS
from pipelines.comparison_scores import MeanScore
from pipelines.config import EvaluateConfig
from pipelines.evaluation_runs import BASELINE
from pipelines.evaluation_samples import MASK, NONE, Samples
from pipelines.evaluation_unit import VERIFIED
from pipelines.evaluation_work import Unit

Scores = Mapping[str, Mapping[str, MeanScore]]


def notes_of(
    units: Sequence[Unit],
    scores: Scores,
    *,
    config: EvaluateConfig,
    data: TrainingData,
    samples: Samples,
) -> tuple[str, ...]:
    """Say how maps were made, judged and measured, and what is unusual about it."""
    return (
        *_about_maps(config, samples),
        *_about_regions(samples),
        *(_about_removal(units, config, samples) if config.fills else ()),
        *_about_sizes(units),
        *_about_patients(samples),
        *_about_infinity(scores),
        *data.remarks,
    )


def _about_maps(config: EvaluateConfig, samples: Samples) -> list[str]:
    kind = "predicted"
    if config.target == "truth":
        kind = "true"
    notes = [f"Maps that are tied to a class explain the {kind} class."]
    if not samples.exclusive and config.target == "truth":
        notes.append(
            "A picture may show several findings: the first true one that has a box is explained, "
            "or else the first true one, so that every model explains the same; of pictures that "
            "show none nothing is removed."
        )
    notes.append(
        "Signed maps are ranked by their positive part, which speaks for the class; how simple "
        "they are is told by the magnitudes of all of it."
    )
    if config.verify:
        notes.append(
            f"Similarity after randomisation is measured on {VERIFIED} pictures at most, which "
            "are the same for all."
        )
    return notes


def _about_regions(samples: Samples) -> list[str]:
    if not samples.has_regions:
        return ["The data set holds no true regions: where maps lie is not measured."]
    notes = [
        "Maps are scored against true regions at the size of the pictures, each cell repeated over "
        "its pixels."
    ]
    if samples.exclusive and MASK in samples.pictures.rows.fields:
        notes.append(
            f"Pictures of the first class, '{samples.classes[0]}', count as having no true region."
        )
    return notes


def _about_removal(units: Sequence[Unit], config: EvaluateConfig, samples: Samples) -> list[str]:
    scored, alike = int(samples.removed.sum()), samples.exclusive
    patients = {x for x, y in zip(samples.pictures.subject_ids, samples.removed, strict=True) if y}
    counted = "counted class by class" if alike else "by the probability of the explained finding"
    notes = [
        f"Pixels are removed from {scored} of {len(samples.truths)} pictures, of "
        f"{len(patients)} patients, the same for all, in {len(FRACTIONS) - 1} steps; answers are "
        f"{counted}."
    ]
    judges = {unit.judge.model for unit in units}
    if all(unit.judge.variant == BASELINE for unit in units):
        notes.append(
            f"Pictures with removed pixels are judged by {_listed(judges)}, the run of the same "
            "seed where there is one; controls by each of its runs."
        )
    else:
        notes.append(
            "No baseline was evaluated at the pictures' size: where that is so, every network "
            f"judges its own maps, and {_listed({u.judge.model for u in units[-1:]})} the "
            "controls; areas of different models are then not comparable."
        )
    if alike and "true-mask" in _controls(units, config):
        notes.append("The control true-mask removes at random from pictures without a true region.")
    return notes


def _controls(units: Sequence[Unit], config: EvaluateConfig) -> tuple[str, ...]:
    return ("true-mask",) if config.controls and any(u.kind == "controls" for u in units) else ()


def _listed(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _about_sizes(units: Sequence[Unit]) -> list[str]:
    sizes = {unit.run.size for unit in units}
    if len(sizes) < 2:
        return []
    listed = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(sizes))
    return [f"Models see pictures of different sizes ({listed}), and are measured at their own."]


def _about_patients(samples: Samples) -> list[str]:
    patients = len(set(samples.pictures.subject_ids))
    notes = []
    if patients < FEW_PATIENTS:
        notes.append(
            f"Only {patients} test patients: intervals are too narrow rather than too wide."
        )
    if samples.exclusive:
        seen = set(np.unique(samples.truths[samples.truths > NONE]).tolist())
        missing = [name for i, name in enumerate(samples.classes) if i not in seen]
        if missing:
            notes.append(
                f"No test picture is of the class {_listed(set(missing))}: it takes no part in any "
                "mean over classes."
            )
    return notes


def _about_infinity(scores: Scores) -> list[str]:
    infinite = [
        f"{entry} {name}"
        for entry, mine in scores.items()
        for name, score in mine.items()
        if math.isinf(score.mean)
    ]
    if not infinite:
        return []
    more = f" and {len(infinite) - 3} more" if len(infinite) > 3 else ""
    return [
        f"Infinite, because a level is empty where the other is not: {', '.join(infinite[:3])}"
        f"{more}."
    ]
