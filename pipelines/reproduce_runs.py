"""The runs of a reproduction: which they are, and how those that are left are trained.

Runs that others begin with are trained first, then all others seed by seed. On a processor the
number of threads decides the last bits of a sum: it is fixed for the whole reproduction, so that
runs trained beside each other, alone, or after an interruption are the same to the bit.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.errors import ModelError
from pipelines import run as run_files
from pipelines.comparison_grid import PROCESS_DIED, Member
from pipelines.errors import PipelineError
from pipelines.machine import threads_for
from pipelines.member_processes import run_all
from pipelines.progress import Progress
from pipelines.reproduce_groups import BASELINE, Plan
from pipelines.run_scores import is_sealed
from pipelines.start import Start
from pipelines.train import AT_RANDOM, train
from preprocessing.atomic_files import disk_errors
from preprocessing.errors import OutputError, PreprocessingError
from preprocessing.records import Died

DISK = frozenset({"DISK_FULL", "READ_ONLY", "DISK_ERROR"})
"""Codes of refusals that every further run would meet as well."""
Ended = Callable[["PlannedRun", "Outcome"], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run.

    Attributes
    ----------
    group
        Name of its group.
    """

    group: str
    member: Member

    @property
    def name(self) -> str:
        """Say which one, in words."""
        return f"{self.group}: {self.member.name}"

    @property
    def place(self) -> str:
        """Folder below that of all runs."""
        settings = self.member.settings
        return f"{self.group}/{settings.variant}/seed-{settings.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run: seconds, or the code and message of what stopped it."""

    seconds: float = 0.0
    code: str = ""
    message: str = ""


def runs_of(plan: Plan, *, seeds: int, data: Path, out: Path) -> tuple[list[PlannedRun], ...]:
    """Return all runs in waves: every run of a wave can begin when the waves before it ended.

    Parameters
    ----------
    out
        Folder of all runs.
    """
    first = {group.start for group in plan.groups} - {""}
    found: tuple[list[PlannedRun], list[PlannedRun]] = ([], [])
    for seed in range(seeds):
        for group in plan.groups:
            source = out / group.start / BASELINE / f"seed-{seed}" if group.start else None
            for variant in group.variants:
                member = Member(
                    settings=group.training(variant, seed),
                    data=data,
                    run=out / group.name / variant / f"seed-{seed}",
                    start=AT_RANDOM if source is None else Start(source=source),
                )
                run = PlannedRun(group=group.name, member=member)
                found[0 if group.name in first else 1].append(run)
    return found


def hash_of(run: PlannedRun) -> str:
    """SHA-256 of the weights of a run that is done; "" where something is left to do."""
    member = run.member
    try:
        if not is_sealed(member.run) or (member.run / run_files.CHECKPOINT).exists():
            return ""
        refusal = _without_start(member) or _with_other_start(member)
    except (PipelineError, PreprocessingError):  # told when it is its turn
        return ""
    return "" if refusal else run_files.sha256(member.run / run_files.WEIGHTS)


def train_all(
    runs: Sequence[PlannedRun],
    *,
    threads: int,
    jobs: int,
    stage: str,
    ended: Ended,
    progress: Progress,
) -> None:
    """Train what is left of a wave; a run that fails does not take the others with it.

    Parameters
    ----------
    threads
        Of each run, however many are trained beside each other.
    ended
        Called with each run as it ends.

    Raises
    ------
    OutputError
        The disk refuses a write.
    """
    function = partial(_train, threads=threads)
    items = [run.member for run in runs]
    results = run_all(function, items, jobs=jobs, stage=stage, progress=progress)
    with closing(results):
        for place, result in results:
            outcome = _died() if isinstance(result, Died) else result
            if outcome.code in DISK:
                raise OutputError(outcome.code, outcome.message)
            ended(runs[place], outcome)


def _died() -> Outcome:
    return Outcome(code=PROCESS_DIED[0], message=PROCESS_DIED[1])


def _train(member: Member, progress: Progress, *, threads: int) -> Outcome:
    start = time.perf_counter()
    try:
        sealed = is_sealed(member.run)
        refusal = _without_start(member) or (_with_other_start(member) if sealed else None)
        if refusal is not None:
            return refusal
        if not sealed:
            with threads_for(threads):
                train(
                    member.settings,
                    data=member.data,
                    run=member.run,
                    start=member.start,
                    resume=True,
                    progress=progress,
                )
        with disk_errors():  # a finished run is not gone on with, and its checkpoint is the largest
            (member.run / run_files.CHECKPOINT).unlink(missing_ok=True)
    except (PipelineError, PreprocessingError, ModelError) as error:
        return Outcome(code=error.code, message=str(error))
    return Outcome(seconds=time.perf_counter() - start)


def _without_start(member: Member) -> Outcome | None:
    source = member.start.source
    if source is None or is_sealed(source):
        return None
    return Outcome(
        code="NO_BASELINE",
        message="the baseline of the same seed, whose trunk it keeps, did not end: see why that "
        "one failed",
    )


def _with_other_start(member: Member) -> Outcome | None:
    source = member.start.source
    if source is None:
        return None
    taken = run_files.read_config(member.run).origin.sha256
    if taken == run_files.sha256(source / run_files.WEIGHTS):
        return None
    return Outcome(
        code="OTHER_BASELINE",
        message="it keeps the trunk of another baseline than the one that is there now: put that "
        "one back, or delete this run's folder to train it again",
    )
