"""Measure any models and any maps, side by side, with error bars.

Every run is a unit of work, and so are the controls before each judge, and the attacks on each run
where they are asked for. A unit that is measured is
sealed and not measured again: what is interrupted goes on, and what is changed is measured anew.
Tables, figures and the page are made from the record, ``evaluation.json``.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import evaluation_files as files
from pipelines.assemble import TrainingData, open_for_training, pick_device
from pipelines.config import EvaluateConfig
from pipelines.errors import DataError, RunError, UsageError
from pipelines.evaluation_appendix import NO_APPENDIX, Appendix
from pipelines.evaluation_cases import Cases
from pipelines.evaluation_collect import Measured, collected, failures_of
from pipelines.evaluation_json import RECORD, as_plain, write_evaluation
from pipelines.evaluation_maps import ALL, fits, refuse_unknown
from pipelines.evaluation_records import Evaluation
from pipelines.evaluation_report import write_report
from pipelines.evaluation_robust_choice import refuse_unknown_methods
from pipelines.evaluation_robust_scores import robustness_of
from pipelines.evaluation_runs import EvaluatedRun, judge_of, judges, runs_of
from pipelines.evaluation_samples import Samples, batch_at, samples_of
from pipelines.evaluation_unit import measure_unit
from pipelines.evaluation_work import Unit, loaded
from pipelines.feed import normalise
from pipelines.member_processes import run_all
from pipelines.progress import Progress, silent
from preprocessing.journal import OutputLock
from preprocessing.records import Died

SHOWN = 3
"""Measures that are told of each entry on the console."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What an evaluation found.

    Attributes
    ----------
    page
        Name of the page in the folder.
    """

    found: Evaluation
    page: str

    @property
    def failed(self) -> int:
        """Runs, methods and levels that could not be measured."""
        return len(self.found.failures)

    def lines(self) -> list[str]:
        """Say for each entry how good it is, then what failed."""
        width = max((len(name) for name in self.found.entries), default=0)
        lines = [f"{name:<{width}}  {self._told(name)}" for name in self.found.entries]
        return lines + [f"{name} was left out: {why}" for name, why in self.found.failures.items()]

    def _told(self, entry: str) -> str:
        scores = self.found.scores[entry]
        names = [name for name in scores if name.startswith(("average_precision", "input_pert"))]
        return "; ".join(
            f"{name} {scores[name].mean:.3f} [{scores[name].low:.3f}, {scores[name].high:.3f}]"
            for name in names[:SHOWN]
        )

    def as_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        return as_plain(self.found)


def evaluate(
    config: EvaluateConfig,
    *,
    runs: Sequence[Path],
    data: Path,
    out: Path,
    resume: bool = False,
    jobs: int = 1,
    progress: Progress = silent,
    appendix: Appendix = NO_APPENDIX,
) -> EvaluationReport:
    """Measure the maps of runs on the test patients, and write tables, figures and a page.

    Parameters
    ----------
    runs
        Runs, comparisons, or folders that hold runs at any depth.
    data
        The data set that they were trained on.
    out
        A new or empty folder; with ``resume``, one that an evaluation was begun in. Then runs and
        settings may differ: only what they change is measured again.
    jobs
        Units measured at a time, each in a process with its share of the processors.
    appendix
        Shown on the page, too.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``, ``METHOD_FITS_NONE``, ``RUN_TWICE``, ``AGAINST_MISSING``, ``NO_CUDA``.
    DataError
        ``EMPTY_SPLIT``, ``RUN_DATA_MISMATCH``, ``DATA_CHANGED``.
    RunError
        ``NO_RUN``, ``RUN_UNFINISHED``, ``RUN_ALTERED``, ``NOTHING_MEASURED``.
    RunExists
        The folder holds something already.
    OutputError
        The disk is full, or another process evaluates into the folder.
    """
    refuse_unknown(config.methods)
    refuse_unknown_methods(config.robustness.methods)
    pick_device(config.device)
    found = open_for_training(data, image_size=None)
    if not len(found.splits["test"]):
        raise DataError(
            "EMPTY_SPLIT",
            "the test split has no labelled sample, and maps are measured on test patients: build "
            "the data set with a larger test_fraction",
        )
    chosen = runs_of(runs, found.summary)
    samples = samples_of(
        found.splits["test"],
        found.summary.classes,
        perturbed=config.perturbation_samples,
        seed=config.seed,
    ).resized(_common_size(chosen))
    _refuse_fitting_none(config, chosen, samples)
    units = _units(config, chosen, found, data=data, out=out, size=samples.pictures.size)
    files.claim(out, resume=resume)
    with OutputLock(out):
        files.prepare(out, config)
        failures = _work(units, found, jobs=jobs, progress=progress)
        measured, attacked = _measured(units)
        _refuse_nothing(measured, failures)
        evaluation = collected(
            measured, config=config, data=found, samples=samples, failures=failures
        )
        if attacked:
            evaluation = replace(
                evaluation,
                robustness=robustness_of(attacked, evaluation.models, config, samples),
                failures={**evaluation.failures, **failures_of(attacked)},
            )
        write_evaluation(out / RECORD, evaluation)
        cases = Cases(units=tuple(measured), data=found, found=evaluation)
        page = write_report(
            evaluation, out, cases=cases.case_maps, progress=progress, appendix=appendix
        )
    return EvaluationReport(found=evaluation, page=page.name)


def _measured(units: Sequence[Unit]) -> tuple[list[Measured], list[Measured]]:
    """Return the units that are measured: those of maps as they are, and those under attack."""
    found = [Measured(unit=x, facts=facts) for x in units if (facts := x.facts) is not None]
    attacked = [x for x in found if x.unit.kind == "robustness"]
    return [x for x in found if x.unit.kind != "robustness"], attacked


def _common_size(runs: Sequence[EvaluatedRun]) -> tuple[int, int]:
    """Return the size that most runs see pictures at, the first of equals."""
    return Counter(run.size for run in runs).most_common(1)[0][0]


def _refuse_fitting_none(
    config: EvaluateConfig, runs: Sequence[EvaluatedRun], samples: Samples
) -> None:
    """Refuse a named method that explains none of the models before hours of work are begun.

    Raises
    ------
    UsageError
        ``METHOD_FITS_NONE``.
    """
    left = [name for name in config.methods if name != ALL]
    for run in {run.model: run for run in runs}.values():
        if not left:
            return
        device = pick_device(config.device)
        network = loaded(run, device)
        raw = batch_at(samples.resized(run.size), [0]).raw.to(device)
        image = normalise(raw, run.config.normalisation)
        left = [name for name in left if not fits(name, network, image)]
    if left:
        raise UsageError(
            "METHOD_FITS_NONE",
            f"the method '{left[0]}' can explain none of the {len(runs)} runs: leave it out, or "
            "name runs that it is made for",
        )


def _units(
    config: EvaluateConfig,
    runs: Sequence[EvaluatedRun],
    found: TrainingData,
    *,
    data: Path,
    out: Path,
    size: tuple[int, int],
) -> list[Unit]:
    """Return the runs, the controls before each judge, then the attacks on each run."""
    make = partial(
        Unit,
        settings=config,
        data=data,
        manifest_sha256=found.summary.manifest_sha256,
        out=out,
    )
    units = [make(kind="run", run=run, judge=judge_of(run, runs)) for run in runs]
    before = judges(runs, size=size) or _of_first_model(runs, size)
    controls = [make(kind="controls", run=judge, judge=judge) for judge in before]
    attacks = [make(kind="robustness", run=run, judge=run) for run in runs]
    return [
        *units,
        *(controls if config.controls else ()),
        *(attacks if config.robustness.enabled else ()),
    ]


def _of_first_model(runs: Sequence[EvaluatedRun], size: tuple[int, int]) -> list[EvaluatedRun]:
    same = [run for run in runs if run.size == size]
    return [run for run in same if run.model == same[0].model]


def _work(
    units: Sequence[Unit], found: TrainingData, *, jobs: int, progress: Progress
) -> dict[str, str]:
    """Measure what is left, and say what could not be measured."""
    left = [unit for unit in units if unit.facts is None]
    function = partial(measure_unit, found=found if jobs == 1 else None)
    failures: dict[int, str] = {}
    ended = run_all(function, left, jobs=jobs, stage=f"{len(left)} units", progress=progress)
    with closing(ended):
        for place, result in ended:
            if isinstance(result, Died):
                failures[place] = (
                    "its process ended without an answer, most often for want of memory: go on "
                    "with --resume and a smaller --jobs or batch_size"
                )
            elif result is not None:
                failures[place] = f"{result[0]}: {result[1]}"
    return {left[place].name: failures[place] for place in sorted(failures)}


def _refuse_nothing(measured: Sequence[Measured], failures: dict[str, str]) -> None:
    if not any(x.unit.kind == "run" for x in measured):
        name, why = next(iter(failures.items()))
        raise RunError(
            "NOTHING_MEASURED", f"none of the runs could be measured; the first, {name}: {why}"
        )
