"""What all units measured, put together: models, entries, their scores and what sets them apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.errors import unknown
from models.metrics import chance
from pipelines import evaluation_files as files
from pipelines.assemble import TrainingData
from pipelines.comparison_measures import RunScores, Truth
from pipelines.comparison_scores import MeanScore, differences, score_variants
from pipelines.config import EvaluateConfig
from pipelines.errors import UsageError
from pipelines.evaluation_controls import RANDOM
from pipelines.evaluation_files import Key
from pipelines.evaluation_maps import OWN
from pipelines.evaluation_notes import notes_of
from pipelines.evaluation_records import CONTROL, CurveBand, Entry, Evaluation, Kind, Model
from pipelines.evaluation_samples import Samples
from pipelines.evaluation_scores import (
    Resampling,
    above_chance,
    bands,
    mean_scores,
)
from pipelines.evaluation_work import EVERY_LEVEL, Unit

HEADLINE = "exact attention fine"
GUESS_OF_SETS = 0.5
"""Balanced accuracy of guessing whether a finding is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A unit that is measured, with what its seal says."""

    unit: Unit
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def failed(self) -> frozenset[Key]:
        """Methods and levels that are left out."""
        return frozenset((item["method"], item["level"]) for item in self.facts["failed"])

    @property
    def verdicts(self) -> Mapping[Key, Mapping[str, int]]:
        """Method and level -> verdict of the method's own law -> pictures."""
        return {(x["method"], x["level"]): x["verdicts"] for x in self.facts["maps"]}


def collected(
    units: Sequence[Measured],
    *,
    config: EvaluateConfig,
    data: TrainingData,
    samples: Samples,
    failures: Mapping[str, str],
) -> Evaluation:
    """Put together what was measured.

    Parameters
    ----------
    units
        Model by model and seed by seed, controls last.
    failures
        Units that were not measured, and why.

    Raises
    ------
    UsageError
        ``AGAINST_MISSING``.
    """
    resampling = _resampling(config, samples)
    groups: dict[str, list[Measured]] = {}
    for measured in units:
        groups.setdefault(measured.unit.model, []).append(measured)
    entries: dict[str, Entry] = {}
    scores: dict[str, dict[str, MeanScore]] = {}
    curves: list[CurveBand] = []
    guess = _chance(samples, samples.removed)
    for name, group in groups.items():
        own, mine = _entries(name, group, resampling)
        entries |= {entry.name: entry for entry in own}
        for entry, found in zip(own, mine, strict=True):
            scores[entry.name] = found | (above_chance(found, guess) if samples.exclusive else {})
        curves += _curves(own, group, samples, resampling)
    against = _reference(config.against, entries)
    with np.errstate(invalid="ignore"):  # two infinite scores have no difference
        apart = tuple(differences(scores, against=against)) if against else ()
    return Evaluation(
        title=f"maps of {_networks(units)} on {data.summary.name}",
        recipe=data.summary.recipe,
        synthetic=config.synthetic,
        classes=samples.classes,
        chance=_chance(samples, np.ones(len(samples.truths), dtype=bool)),
        models=_models(groups, resampling.truth, config),
        entries=entries,
        scores=scores,
        differences=apart,
        against=against,
        curves=tuple(curves),
        samples=len(samples.truths),
        patients=len(set(resampling.truth.subject_ids)),
        scored=int(samples.removed.sum()) if config.fills else 0,
        resamples=config.resamples,
        picture_size=samples.pictures.size,
        verdicts=_verdicts(groups),
        notes=notes_of([x.unit for x in units], scores, config=config, data=data, samples=samples),
        failures={**failures, **failures_of(units)},
    )


def _resampling(config: EvaluateConfig, samples: Samples) -> Resampling:
    test = samples.pictures
    labels = np.asarray(test.labels).astype(np.int64)
    return Resampling(
        truth=Truth(labels=labels, subject_ids=test.subject_ids),
        classes=labels if samples.exclusive else None,
        resamples=config.resamples,
        seed=config.seed,
    )


def _chance(samples: Samples, chosen: np.ndarray) -> float:
    if not samples.exclusive or not chosen.any():
        return GUESS_OF_SETS
    return chance(torch.from_numpy(samples.truths[chosen]))


def _networks(units: Sequence[Measured]) -> str:
    return ", ".join(dict.fromkeys(x.unit.run.config.train.network for x in units))


def _entries(
    model: str, group: Sequence[Measured], resampling: Resampling
) -> tuple[list[Entry], list[dict[str, MeanScore]]]:
    """Return the entries of a model, and their scores."""
    seeds: dict[Key, list[int]] = {}
    values: dict[Key, list[dict[str, np.ndarray]]] = {}
    for measured in group:
        path = measured.unit.files.tables[files.SCORES]
        found = files.read_scores(path, measured.facts["measures"], left_out=measured.failed)
        for key, columns in found.items():
            seeds.setdefault(key, []).append(measured.unit.run.seed)
            again = model == CONTROL and key[0] != RANDOM and len(seeds[key]) > 1
            kept = {name: column for name, column in columns.items() if not again or "@" in name}
            values.setdefault(key, []).append(kept)
    entries = [
        Entry(
            model=model,
            method=method,
            level=level,
            kind=_kind(model, method),
            seeds=() if model == CONTROL and method != RANDOM else tuple(own),
        )
        for (method, level), own in seeds.items()
    ]
    return entries, mean_scores(list(values.values()), resampling)


def _kind(model: str, method: str) -> Kind:
    if model == CONTROL:
        return "control"
    return "attention" if method in OWN else "post-hoc"


def _curves(
    entries: Sequence[Entry],
    group: Sequence[Measured],
    samples: Samples,
    resampling: Resampling,
) -> list[CurveBand]:
    names = {(entry.method, entry.level): entry.name for entry in entries}
    fractions: tuple[float, ...] = ()
    found: dict[tuple[str, str, str, str], list[np.ndarray]] = {}
    for measured in group:
        fractions, curves = files.read_curves(measured.unit.files.tables[files.CURVES])
        for key, heights in curves.items():
            left_out = {key[:2], (key[0], EVERY_LEVEL)} & measured.failed
            if not left_out:
                found.setdefault(key, []).append(heights)
    averaged = bands(list(found.values()), samples.removed, resampling)
    return [
        CurveBand(
            entry=names[key[:2]],
            fill=key[2],
            order="ascending" if key[3] == "ascending" else "descending",
            fractions=np.array(fractions),
            mean=band.mean,
            low=band.low,
            high=band.high,
            sd=band.sd,
        )
        for key, band in zip(found, averaged, strict=True)
    ]


def _reference(against: str, entries: Mapping[str, Entry]) -> str:
    """Return the entry that the others are compared with; "" without entries.

    Raises
    ------
    UsageError
        ``AGAINST_MISSING``.
    """
    if against and against not in entries:
        raise UsageError(
            "AGAINST_MISSING",
            f"nothing can be compared with '{against}', which was not measured: "
            f"{unknown('entry', against, entries)}; name another with --resume, nothing is "
            "measured again",
        )
    own = [name for name, entry in entries.items() if entry.kind == "attention"]
    headline = [HEADLINE] if HEADLINE in entries else []
    return next(iter([*([against] if against else []), *headline, *own, *entries]), "")


def _models(
    groups: Mapping[str, Sequence[Measured]], truth: Truth, config: EvaluateConfig
) -> dict[str, Model]:
    runs = [
        _answers(measured)
        for name, group in groups.items()
        if name != CONTROL
        for measured in group
    ]
    scores = score_variants(truth, runs, resamples=config.resamples, seed=config.seed)
    return {name: _model(name, groups[name], mine) for name, mine in scores.items()}


def _answers(measured: Measured) -> RunScores:
    rows = files.rows_of(measured.unit.files.tables[files.PREDICTIONS])
    shares = [
        [float(value) for name, value in row.items() if name.startswith("probability_")]
        for row in rows
    ]
    return RunScores(
        variant=measured.unit.model,
        seed=measured.unit.run.seed,
        probabilities=np.array(shares),
        maps={},
        parameters=measured.facts["parameters"],
        seconds_per_epoch=0.0,  # an evaluation does not look at the training
        epochs=0,
        best_epoch=0,
    )


def _model(name: str, group: Sequence[Measured], scores: Mapping[str, MeanScore]) -> Model:
    settings = group[0].unit.run.config.train
    return Model(
        name=name,
        variant=settings.variant,
        network=settings.network,
        frozen=settings.freeze_trunk,
        seeds=tuple(measured.unit.run.seed for measured in group),
        parameters=group[0].facts["parameters"],
        scores=scores,
        objective=settings.objective,
    )


def _verdicts(groups: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, int]]:
    """Count, over seeds and pictures, what the methods' own laws say of the maps."""
    counts: dict[str, dict[str, int]] = {}
    for model, group in groups.items():
        for measured in group:
            for (method, level), own in measured.verdicts.items():
                entry = Entry(model=model, method=method, level=level, kind=_kind(model, method))
                for word, count in own.items():
                    mine = counts.setdefault(entry.name, {})
                    mine[word] = mine.get(word, 0) + count
    return counts


def failures_of(units: Sequence[Measured]) -> dict[str, str]:
    """Return what of some units is left out, and why."""
    found = {}
    for measured in units:
        for item in measured.facts["failed"]:
            level = "" if item["level"] == EVERY_LEVEL else item["level"]
            name = " ".join(filter(None, [measured.unit.name + ":", item["method"], level]))
            found[name] = item["reason"]
    return found
