"""What a robust objective changes of maps and of findings, against the same network without it.

References
----------
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust optimization",
MICCAI 2019, whose claim is that robust training makes maps localise better.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from pipelines.box_measures import at
from pipelines.box_records import (
    CLEAN,
    CONTROL,
    MEAN,
    BoxEntry,
    BoxScores,
    TrainingEffect,
    with_condition,
)
from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_runs import SAME_MODEL, EvaluatedRun
from pipelines.evaluation_verdicts import WORST_FIRST, Measured, Word, advantage

STANDARD = "standard"
AREA = "area"
"""In the place of a measure: the mean area under the ROC curves of the findings."""
HEADLINE = "iou_equal_area"
COMPARED = (HEADLINE, "pointing_game", at("best", "iobb", 180, 0.1))


def pairs_of(runs: Sequence[EvaluatedRun]) -> dict[str, str]:
    """Return each model with a robust objective -> the model that differs in nothing else."""
    plain = {_without_objective(run): run.model for run in runs if _objective(run) == STANDARD}
    robust = {run.model: run for run in runs if _objective(run) != STANDARD}
    found = {name: plain.get(_without_objective(run)) for name, run in robust.items()}
    return {name: standard for name, standard in found.items() if standard is not None}


def _objective(run: EvaluatedRun) -> str:
    return run.config.train.objective


def _without_objective(run: EvaluatedRun) -> str:
    told = run.config.train.model_dump(
        mode="json", exclude=set(SAME_MODEL | {"objective", "robust"})
    )
    origin = run.config.origin
    return json.dumps([told, origin.kind], sort_keys=True)


def effects_of(found: BoxScores, runs: Sequence[EvaluatedRun]) -> Iterator[TrainingEffect]:
    """Compare every robust model with its standard one: maps by method, then areas.

    Paired within resamples of the patients and within seeds, clean and under each attack.
    """
    for model, standard in pairs_of(runs).items():
        for entry in found.entries.values():
            if entry.model == model and entry.model != CONTROL:
                yield from _of_maps(found, entry, standard)
        yield from _of_areas(found, model, standard)


def _of_maps(found: BoxScores, entry: BoxEntry, standard: str) -> Iterator[TrainingEffect]:
    words = with_condition(f"{standard} {entry.method}", entry.condition)
    other = found.entries.get(words)
    if other is None or set(found.scores[entry.name]) != set(found.scores[other.name]):
        return
    for measure in COMPARED:
        both = [found.scores[x.name].get(MEAN, {}).get(measure) for x in (entry, other)]
        ours, theirs = both
        if ours is not None and theirs is not None:
            yield TrainingEffect(
                model=entry.model,
                standard=standard,
                method=entry.method,
                condition=entry.condition,
                measure=measure,
                advantage=advantage(
                    _paired(entry.name, ours, entry.seeds),
                    _paired(other.name, theirs, other.seeds),
                    higher_is_better=True,
                ),
            )


def _of_areas(found: BoxScores, model: str, standard: str) -> Iterator[TrainingEffect]:
    for condition in dict.fromkeys(entry.condition for entry in found.models()):
        names = with_condition(model, condition), with_condition(standard, condition)
        both = [found.areas.get(name, {}).get(MEAN) for name in names]
        ours, theirs = both
        if ours is not None and theirs is not None:
            yield TrainingEffect(
                model=model,
                standard=standard,
                method="",
                condition=condition,
                measure=AREA,
                advantage=advantage(
                    _paired(names[0], ours, found.seeds.get(names[0], ())),
                    _paired(names[1], theirs, found.seeds.get(names[1], ())),
                    higher_is_better=True,
                ),
            )


def _paired(name: str, score: MeanScore, seeds: Sequence[int]) -> Measured:
    return Measured(name=name, score=score, seeds=tuple(seeds))


def training_sentences(found: BoxScores) -> list[str]:
    """Say of every robust objective whether maps localise better with it, and what it costs."""
    models: Mapping[str, list[TrainingEffect]] = {
        name: [x for x in found.training if x.model == name]
        for name in dict.fromkeys(effect.model for effect in found.training)
    }
    return [sentence for own in models.values() for sentence in _sentences(own)]


def _sentences(own: Sequence[TrainingEffect]) -> Iterator[str]:
    clean = [x for x in own if (x.condition, x.measure) == (CLEAN, HEADLINE)]
    names = f"'{own[0].model}' against '{own[0].standard}'"
    if clean:
        told = "; ".join(f"{x.method} {_difference(x)}" for x in clean)
        yield (
            f"Robust training makes maps localise better, as Khakzar et al. (MICCAI 2019) claim: "
            f"{worst([x.advantage.verdict for x in clean])} for {names}. Difference in IoU at "
            f"equal area, mean over findings: {told}."
        )
    areas = {x.condition: x for x in own if x.measure == AREA}
    if CLEAN in areas:
        attacked = [
            f"under {condition} {_difference(x)}" for condition, x in areas.items() if condition
        ]
        after = f"; {'; '.join(attacked)}" if attacked else ""
        yield (
            f"What it costs {names}: the mean area under the ROC curve changes by "
            f"{_difference(areas[CLEAN])} on clean pictures{after}."
        )


def worst(words: Sequence[Word]) -> Word:
    """Return the word that a claim has where it is to hold for each of several comparisons."""
    return min(words, key=WORST_FIRST.index)


def _difference(effect: TrainingEffect) -> str:
    found = effect.advantage
    interval = f" ({found.low:+.3f} to {found.high:+.3f})" if math.isfinite(found.low) else ""
    return f"{found.value:+.3f}{interval}"
