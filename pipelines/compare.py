"""A grid of trainings, variants x seeds, on one data set, and the tables that compare them.

Every run of the grid is an ordinary run, ``<variant>/seed-<seed>``. Finished ones are known by
their seal and not done again, interrupted ones go on, and one that fails does not take the others
with it: the tables mark it with the code of its error. The test split is looked at once per run,
after its training. ``config.yaml`` of the grid is written last: its presence means that the tables
are those of all the runs that it names.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ModelError
from pipelines import comparison_figure, comparison_table
from pipelines import run as run_files
from pipelines.assemble import TrainingData, open_for_training
from pipelines.comparison_grid import (
    DIFFERENCES,
    FIGURES,
    LATEX,
    PAGE,
    PER_RUN,
    TABLE,
    Member,
    chosen_variants,
    claim,
    failure_of,
    members_of,
    reference,
    refuse_other,
)
from pipelines.comparison_measures import UNIFORM, RunScores, Truth
from pipelines.comparison_scores import differences, score_variants
from pipelines.comparison_table import Comparison, Failure, spread, title_of
from pipelines.config import CompareConfig, GridConfig
from pipelines.errors import DataError, PipelineError, RunError, UsageError
from pipelines.launch import launched
from pipelines.member_processes import run_all
from pipelines.progress import Progress, silent
from pipelines.run_scores import is_measured, is_sealed, measure_run, read_scores
from pipelines.start import Start
from pipelines.train import AT_RANDOM, train
from preprocessing.atomic_files import atomic_write
from preprocessing.errors import PreprocessingError
from preprocessing.journal import OutputLock

FEW_PATIENTS = 20
"""Below which percentile intervals are known to be clearly too narrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareReport:
    """What a grid of runs found, and what became of its runs."""

    found: Comparison

    @property
    def failed(self) -> int:
        """Runs that did not end."""
        return len(self.found.failures)

    def lines(self) -> list[str]:
        """Say for each variant how good it is, then what failed."""
        width = max(len(name) for name in self.found.variants)
        lines = [f"{name:<{width}}  {self._scores(name)}" for name in self.found.variants]
        lines += [
            f"{x.variant}, seed {x.seed} failed: {x.code}: {x.message}" for x in self.found.failures
        ]
        if self.failed:
            lines.append(
                f"{self.failed} of {self.failed + len(self.found.runs)} runs did not end; the same "
                "command with --resume tries them again"
            )
        return lines

    def _scores(self, variant: str) -> str:
        scores = self.found.scores.get(variant, {})
        said = [
            f"{title_of(name)} {spread(scores[name])}"
            for name in self.found.measures[:3]
            if name in scores
        ]
        return "; ".join(said) or "no run ended"

    def as_json(self) -> dict[str, Any]:
        """Return the tables as plain values; what is not defined is an empty text."""
        return {
            "variants": comparison_table.variant_rows(self.found),
            "runs": comparison_table.run_rows(self.found),
            "differences": comparison_table.difference_rows(self.found),
            "failures": [
                {"variant": x.variant, "seed": x.seed, "code": x.code, "message": x.message}
                for x in self.found.failures
            ],
            "notes": list(self.found.notes),
        }


def compare(
    config: CompareConfig,
    *,
    data: Path,
    out: Path,
    start: Start = AT_RANDOM,
    resume: bool = False,
    progress: Progress = silent,
) -> CompareReport:
    """Train every variant with every seed, score all on the test patients, and compare them.

    Parameters
    ----------
    data
        A data set folder.
    start
        Where the first weights of every run come from; where its source is a folder of runs
        ``seed-<seed>``, from that of the same seed.
    out
        A new or empty folder; with ``resume``, one that a comparison was begun in. Then variants
        and seeds may be added, and runs that failed are tried again.

    Raises
    ------
    UsageError
        ``UNKNOWN_VARIANT``, ``AGAINST_MISSING``, ``RESUME_DIFFERS``, ``COMPARISON_LAUNCHED``, or
        what the network refuses.
    DataError
        The data set cannot be trained on, has no test split, or is not the one begun with.
    RunExists
        The folder holds something already.
    RunError
        ``ALL_RUNS_FAILED``; ``RUN_ALTERED`` where a finished run was changed; ``SEED_MISSING``
        where the source holds no run of a seed.
    OutputError
        The disk is full, or another process compares into the folder.
    """
    if not launched().alone:
        raise UsageError(
            "COMPARISON_LAUNCHED",
            "a comparison was started in several processes that train together: start it without "
            "torchrun and give it --jobs, or train its runs one by one",
        )
    found = open_for_training(data, image_size=config.train.image_size)
    if not len(found.splits["test"]):
        raise DataError(
            "EMPTY_SPLIT",
            "the test split has no labelled sample, and a comparison is made on test patients: "
            "build the data set with a larger test_fraction",
        )
    variants = chosen_variants(config, found)
    against = reference(config.against, variants)
    members = members_of(config, variants, data=data, out=out, start=start)
    claim(out, resume=resume)
    for member in members:
        refuse_other(member, found)
    with OutputLock(out):
        run_files.clear_parts(out)
        (out / run_files.CONFIG).unlink(missing_ok=True)
        failures = _work(members, found, jobs=config.jobs, progress=progress)
        compared = _compared(config, members, failures, found=found, against=against)
        _write(out, compared)
        resolved = config.model_copy(update={"variants": variants, "against": against})
        grid = GridConfig(data=found.summary, compare=resolved)
        run_files.write_text(out / run_files.CONFIG, grid.to_yaml())
    return CompareReport(found=compared)


def _work(
    members: Sequence[Member], found: TrainingData, *, jobs: int, progress: Progress
) -> list[Failure]:
    """Do what is left to do; finished runs of an earlier call are not loaded again."""
    left = [member for member in members if not is_measured(member.run)]
    failures = []
    stage = f"{len(left)} run{'s' if len(left) > 1 else ''}"
    function = partial(_train_and_measure, found=found if jobs == 1 else None)
    ended = run_all(function, left, jobs=jobs, stage=stage, progress=progress)
    with closing(ended):
        for place, result in ended:
            if result is not None:
                failures.append(failure_of(left[place], result))
    if failures and len(failures) == len(members):
        first = failures[0]
        raise RunError(
            "ALL_RUNS_FAILED",
            f"none of the {len(members)} runs ended; the first with {first.code}: {first.message}",
        )
    order = {(m.settings.variant, m.settings.seed): i for i, m in enumerate(members)}
    return sorted(failures, key=lambda item: order[item.variant, item.seed])


def _train_and_measure(
    member: Member, progress: Progress, *, found: TrainingData | None
) -> tuple[str, str] | None:
    """Return None, or the code and the message of a refusal."""
    try:
        if not is_sealed(member.run):
            train(
                member.settings,
                data=member.data,
                run=member.run,
                start=member.start,
                resume=True,
                progress=progress,
            )
        opened = found or open_for_training(member.data, image_size=member.settings.image_size)
        measure_run(member.run, opened)
    except (PipelineError, PreprocessingError, ModelError) as error:
        return error.code, str(error)
    return None


def _compared(
    config: CompareConfig,
    members: Sequence[Member],
    failures: Sequence[Failure],
    *,
    found: TrainingData,
    against: str,
) -> Comparison:
    test = found.splits["test"]
    truth = Truth(labels=np.asarray(test.labels).astype(np.int64), subject_ids=test.subject_ids)
    variants = tuple(dict.fromkeys(member.settings.variant for member in members))
    runs = _read(members, failures, truth)
    scores = score_variants(truth, runs, resamples=config.train.bootstrap, seed=config.train.seed)
    return Comparison(
        title=f"{config.train.network} on {found.summary.name}",
        variants=variants,
        runs=tuple(runs),
        failures=tuple(failures),
        scores=scores,
        differences=tuple(differences(scores, against=against)) if against in scores else (),
        samples=len(test),
        patients=len(set(test.subject_ids)),
        resamples=config.train.bootstrap,
        notes=(*_notes(config, found), *_unusual(runs, truth)),
    )


def _read(members: Sequence[Member], failures: Sequence[Failure], truth: Truth) -> list[RunScores]:
    failed = {(item.variant, item.seed) for item in failures}
    ended = [m for m in members if (m.settings.variant, m.settings.seed) not in failed]
    return [
        read_scores(m.run, variant=m.settings.variant, seed=m.settings.seed, truth=truth)
        for m in ended
    ]


def _notes(config: CompareConfig, found: TrainingData) -> tuple[str, ...]:
    rows, columns = found.splits["test"].size
    return (
        f"Pictures of {rows} x {columns} pixels, {found.summary.in_channels} channel(s); maps are "
        "scored against true regions at that size, each cell repeated over its pixels.",
        f"Seconds per epoch: median over epochs, {config.jobs} run(s) at a time.",
        *found.remarks,
    )


def _unusual(runs: Sequence[RunScores], truth: Truth) -> list[str]:
    remarks = []
    patients = len(set(truth.subject_ids))
    if patients < FEW_PATIENTS:
        remarks.append(
            f"only {patients} test patients: intervals are too narrow rather than too wide"
        )
    marked = max((run.true_regions for run in runs), default=0)
    scored = [int(np.isfinite(run.maps[UNIFORM]).sum()) for run in runs if UNIFORM in run.maps]
    if scored and scored[0] < marked:
        remarks.append(
            f"{marked - scored[0]} of {marked} true regions fill no pixel at this picture size and "
            "are not scored"
        )
    return remarks


def _write(out: Path, compared: Comparison) -> None:
    tables = {
        TABLE: comparison_table.variant_rows(compared),
        PER_RUN: comparison_table.run_rows(compared),
        DIFFERENCES: comparison_table.difference_rows(compared),
    }
    for name, rows in tables.items():
        run_files.write_table(out / name, rows)
    run_files.write_text(out / PAGE, comparison_table.markdown(compared))
    run_files.write_text(out / LATEX, comparison_table.latex(compared))
    drawn = comparison_figure.draw(compared)
    for name in FIGURES:
        atomic_write(out / name, drawn[name.rpartition(".")[2]])
