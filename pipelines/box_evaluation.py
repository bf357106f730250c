"""Maps of many runs against boxes, run by run: what is measured is sealed and not measured again.

A run's numbers stand in one file that is named after everything they depend on, and that holds the
hash of its own content. Which model a run belongs to depends on the runs beside it and is not kept.

Axes: n case or picture, m measure, k class.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from models.errors import ModelError
from pipelines.assemble import TrainingData, open_for_training
from pipelines.box_attacks import BoxAttack
from pipelines.box_localisation import (
    STANDARD,
    completed,
    explainers_of,
    split_of,
    trained_on,
)
from pipelines.box_measures import MEASURES
from pipelines.box_records import BoxScores
from pipelines.box_training import effects_of
from pipelines.box_units import Measured, Split
from pipelines.comparison_grid import PROCESS_DIED
from pipelines.errors import PipelineError
from pipelines.evaluation_files import fingerprint_of
from pipelines.evaluation_runs import BASELINE, EvaluatedRun
from pipelines.feed import pictures
from pipelines.member_processes import run_all
from pipelines.progress import Progress, silent
from preprocessing.atomic_files import atomic_write
from preprocessing.errors import PreprocessingError
from preprocessing.records import Died

VERSION = 1
"""Of the measures: another one measures everything anew."""
OF_GATES = "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSettings:
    """What is measured against boxes.

    Attributes
    ----------
    methods
        Names in ``EXPLAINERS``; a network without gates is not asked for its attention.
    attacks
        Each stands beside pictures as they are.
    batch_size
        It bounds the memory.
    resamples
        Of the patients.
    seed
        Of the resamples and of random maps.
    """

    methods: tuple[str, ...] = STANDARD
    attacks: tuple[BoxAttack, ...] = ()
    batch_size: int = 16
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxUnit:
    """One run to be measured, and where its numbers go.

    Attributes
    ----------
    manifest_sha256
        Of the data set.
    """

    run: EvaluatedRun
    settings: BoxSettings = field(repr=False)
    data: Path = field(repr=False)
    manifest_sha256: str = field(repr=False)
    out: Path = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the numbers depend on."""
        return fingerprint_of(
            {
                "version": VERSION,
                "measures": MEASURES,
                "run": self.run.sha256,
                "data": self.manifest_sha256,
                "methods": self.settings.methods,
                "attacks": [asdict(attack) for attack in self.settings.attacks],
            }
        )

    @property
    def path(self) -> Path:
        """Return the file of its numbers."""
        return self.out / f"{self.fingerprint[:32]}.safetensors"

    @property
    def methods(self) -> tuple[str, ...]:
        """Return what its network is asked for."""
        gated = self.run.variant != BASELINE
        return tuple(name for name in self.settings.methods if gated or name != OF_GATES)

    def read(self, split: Split) -> Measured | None:
        """Return what was measured; None where nothing was, or where the file is damaged."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts["sha256"] != _hash(arrays) or facts["fingerprint"] != self.fingerprint:
                return None
            return _restored(self.run, split, facts, arrays)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None

    def write(self, found: Measured) -> None:
        """Write what was measured in one visible step.

        Raises
        ------
        OutputError
            The disk is full.
        """
        arrays, facts = _kept(found)
        facts |= {"fingerprint": self.fingerprint, "sha256": _hash(arrays)}
        metadata = {"facts": json.dumps(facts, sort_keys=True)}
        atomic_write(self.path, save(arrays, metadata=metadata))


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].shape}".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _kept(found: Measured) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays, and what they are; of one run."""
    arrays: dict[str, np.ndarray] = {}
    tables, shares = [], []
    for (model, method, condition), own in found.tables.items():
        arrays[f"table-{len(tables)}"] = np.ascontiguousarray(next(iter(own.values())))
        signed = (model, method) in found.signed
        tables.append([method, found.explainer(model, method), signed, condition])
    for (_, condition), own in found.shares.items():
        arrays[f"shares-{len(shares)}"] = np.ascontiguousarray(next(iter(own.values())))
        shares.append(condition)
    facts = {
        "tables": tables,
        "shares": shares,
        "explained": sorted(found.explained),
        "failures": list(found.failures.values()),
        "failed": [name.rpartition(", seed ")[0].rpartition(" ")[2] for name in found.failures],
    }
    return arrays, facts


def _restored(
    run: EvaluatedRun, split: Split, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Measured:
    found = Measured(split=split, batch_size=1, attacks={})
    for i, (method, explainer, signed, condition) in enumerate(facts["tables"]):
        found.tables[run.model, method, condition] = {run.seed: arrays[f"table-{i}"]}
        found.explainers[run.model, method] = explainer
        if signed:
            found.signed.add((run.model, method))
    for i, condition in enumerate(facts["shares"]):
        found.shares[run.model, condition] = {run.seed: arrays[f"shares-{i}"]}
    found.explained |= set(facts["explained"])
    for name, why in zip(facts["failed"], facts["failures"], strict=True):
        found.failures[f"{run.model} {name}, seed {run.seed}"] = why
    return found


def evaluate_boxes(
    settings: BoxSettings,
    *,
    runs: Path | Sequence[Path],
    data: Path,
    out: Path,
    jobs: int = 1,
    progress: Progress = silent,
) -> BoxScores:
    """Measure maps of runs against the boxes of the test split, clean and under each attack.

    Parameters
    ----------
    out
        Folder of the numbers of each run; what stands there already is not measured again.
    jobs
        Runs at a time, each in a process with its share of the processors.

    Raises
    ------
    UsageError, DataError, RunError
        As ``box_localisation``; ``NO_METHOD_FITS`` where no run could be measured.
    OutputError
        The disk is full.
    """
    explainers_of(settings.methods, settings.batch_size)
    found = open_for_training(data, image_size=None)
    split = _split(found, settings)
    units = [
        BoxUnit(
            run=run,
            settings=settings,
            data=data,
            manifest_sha256=found.summary.manifest_sha256,
            out=out,
        )
        for run in trained_on(runs, found)
    ]
    out.mkdir(parents=True, exist_ok=True)
    failures = _work([u for u in units if u.read(split) is None], jobs=jobs, progress=progress)
    measured = Measured(split=split, batch_size=settings.batch_size, attacks={})
    for unit in units:
        own = unit.read(split)
        if own is not None:
            measured.take(own)
    measured.failures |= failures
    scores = completed(found, measured, (), resamples=settings.resamples)
    return replace(scores, training=tuple(effects_of(scores, [unit.run for unit in units])))


def _split(found: TrainingData, settings: BoxSettings) -> Split:
    return split_of(found, torch.Generator().manual_seed(settings.seed))


def _work(units: Sequence[BoxUnit], *, jobs: int, progress: Progress) -> dict[str, str]:
    """Measure what is left, and say what could not be measured."""
    failures: dict[str, str] = {}
    ended = run_all(measure, units, jobs=jobs, stage="maps against boxes", progress=progress)
    with closing(ended):
        for place, result in ended:
            failure = PROCESS_DIED if isinstance(result, Died) else result
            if failure is not None:
                failures[units[place].run.name] = f"{failure[0]}: {failure[1]}"
    return failures


def measure(unit: BoxUnit, progress: Progress) -> tuple[str, str] | None:
    """Measure one run; return the code and the message of what stopped it, or None."""
    try:
        found = open_for_training(unit.data, image_size=None)
        train, side = found.splits["train"], unit.run.config.train.image_size
        seen = pictures(train.rows, (side, side) if side else train.size, labelled=True)
        measured = Measured(
            split=_split(found, unit.settings),
            batch_size=unit.settings.batch_size,
            attacks={attack.name: attack.on(unit.run, seen) for attack in unit.settings.attacks},
        )
        measured.take_run(unit.run, explainers_of(unit.methods, unit.settings.batch_size))
        unit.write(measured)
    except (PipelineError, PreprocessingError, ModelError) as error:
        return error.code, str(error)
    return None
