"""The papers' experiments by one command: scans, data set, all variants with all seeds, the report.

Every step is the one that the command line offers by itself, in a folder of its own::

    OUT/phantoms                                   synthetic scans, where no real ones are given
    OUT/data                                       the data set
    OUT/runs/<group>/<variant>/seed-<seed>         ordinary runs, without their checkpoints
    OUT/boxes                                      where findings have boxes: numbers of each run
    OUT/evaluation/report.html                     maps explained, measured and compared
    OUT/reproduce.json                             the plan, and what is done of it

What is done is known by its own manifest, seal or hash and not done again, whatever moment the work
was killed at; more seeds and variants may be added to it. A run that fails does not take the others
with it: the rest is evaluated.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines import run as run_files
from pipelines.assemble import open_for_training, pick_device
from pipelines.build import build
from pipelines.demo import DEMO_KEY
from pipelines.errors import DataError, RunError, RunExists
from pipelines.evaluation_report import PAGE
from pipelines.reproduce_choices import (
    ONE_AT_A_TIME,
    UNWATCHED,
    Effort,
    RealScans,
    ReproduceReport,
    Watch,
)
from pipelines.reproduce_forecast import plan_bytes, refuse_unbuildable
from pipelines.reproduce_groups import Plan
from pipelines.reproduce_judges import Judge, judge_of
from pipelines.reproduce_records import MARK, Record, differing, identity, read_record
from pipelines.reproduce_runs import Outcome, PlannedRun, hash_of, runs_of, train_all
from pipelines.workers import Workers
from preprocessing.atomic_files import require_space
from preprocessing.journal import OutputLock
from preprocessing.phantoms import PHANTOMS
from preprocessing.shards import MANIFEST

PHANTOM_FOLDER, DATA, RUNS, EVALUATION = "phantoms", "data", "runs", "evaluation"
SCANS_STEP, DATA_STEP, EVALUATION_STEP = "synthetic scans", "data set", "evaluation"


def reproduce(
    plan: Plan,
    *,
    out: Path,
    seeds: int = 5,
    real: RealScans | None = None,
    effort: Effort = ONE_AT_A_TIME,
    resume: bool = False,
    watch: Watch = UNWATCHED,
    judge: Judge | None = None,
) -> ReproduceReport:
    """Carry a plan out, or what is left of it.

    Parameters
    ----------
    out
        A new or empty folder; with ``resume``, one that the same plan was begun in, or one of fewer
        seeds, groups or variants. Where it is complete nothing is done, with or without ``resume``.
    real
        None takes synthetic scans.
    judge
        What measures the runs; None takes what suits the plan.

    Raises
    ------
    RunExists
        ``OUTPUT_EXISTS`` where the folder holds something else, ``PLAN_DIFFERS`` where another plan
        was begun in it, ``RUN_EXISTS`` where it is unfinished and ``resume`` is false.
    RunError
        ``ALL_RUNS_FAILED``, ``RECORD_ALTERED``.
    DataError
        The scans cannot be used, or leave no patient to test on.
    UsageError
        A network of the plan cannot be built for these pictures.
    OutputError
        The disk is full, or another process works in the folder.
    """
    task = _Task(
        plan=plan,
        out=out,
        seeds=seeds,
        real=real,
        effort=effort,
        watch=watch,
        judge=judge or judge_of(plan),
    )
    fresh = not (out / MARK).is_file()
    record = _new_record(task) if fresh else _recognised(task)
    if _complete(task, record):
        return _report(task, record, already_complete=True)
    if not (fresh or resume):
        raise RunExists(
            "RUN_EXISTS",
            "the output folder holds this reproduction, unfinished: go on with --resume, or name "
            "another --out",
        )
    with OutputLock(out):
        run_files.clear_parts(out)
        record.write(out)
        _data(task, record)
        _runs(task, record)
        _evaluation(task, record)
    return _report(task, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    plan: Plan
    out: Path
    seeds: int
    real: RealScans | None
    effort: Effort
    watch: Watch
    judge: Judge

    @property
    def identity(self) -> dict[str, Any]:
        return identity(self.plan, seeds=self.seeds, real=self.real is not None)

    @property
    def waves(self) -> tuple[list[PlannedRun], ...]:
        data, runs = self.out / DATA, self.out / RUNS
        return runs_of(self.plan, seeds=self.seeds, data=data, out=runs)

    @property
    def runs(self) -> list[PlannedRun]:
        return [run for wave in self.waves for run in wave]

    @property
    def page(self) -> Path:
        return self.out / EVALUATION / PAGE

    @contextmanager
    def step(self, name: str, record: Record) -> Iterator[None]:
        """Note and tell how long a step took."""
        begin = time.perf_counter()
        yield
        record.seconds[name] = round(time.perf_counter() - begin, 1)
        record.write(self.out)
        self.watch.tell(f"{name}: {record.seconds[name]:.0f} s")


def _recognised(task: _Task) -> Record:
    """Return the record of the folder, which must be of the same plan or of a part of it."""
    record, now = read_record(task.out), task.identity
    names = differing(record.plan, now)
    if names:
        raise RunExists(
            "PLAN_DIFFERS",
            "the output folder holds a reproduction with another plan (it differs in "
            f"{', '.join(names)}): repeat the command that it was begun with, to which seeds and "
            "variants may be added and none left out, or name another --out",
        )
    record.plan = now
    return record


def _new_record(task: _Task) -> Record:
    out = task.out
    if out.exists() and not out.is_dir():
        raise RunExists("OUTPUT_EXISTS", "--out names a file: name a new folder")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    if any(not run_files.LEFT_BY_A_KILL.fullmatch(name) for name in held):
        raise RunExists(
            "OUTPUT_EXISTS",
            f"the output folder is not empty and holds no {MARK}, so it is no reproduction: name a "
            "new folder with --out",
        )
    environment = run_files.environment(pick_device("auto")).splitlines()
    threads = max(1, torch.get_num_threads() // task.effort.jobs)
    return Record(plan=task.identity, threads=threads, environment=tuple(environment))


def _complete(task: _Task, record: Record) -> bool:
    """Say whether all is done, and still as it was left; real scans are looked through again."""
    page = task.page
    if record.failures or not page.is_file() or run_files.sha256(page) != record.report_sha256:
        return False
    if not (task.out / DATA / MANIFEST).is_file():
        return False
    if {run.place: hash_of(run) for run in task.runs} != record.runs:
        return False
    if task.real is not None:
        _build(task, task.real)  # refuses other scans than those that were read
    return True


def _data(task: _Task, record: Record) -> None:
    """Make the scans, where none are given, and the data set; refuse what cannot be trained on."""
    data = task.out / DATA
    if task.real is None and not (data / MANIFEST).is_file():
        require_space(task.out, round(task.plan.subjects * task.plan.megabytes * 1e6))
        with task.step(SCANS_STEP, record):
            _scans(task)
    if task.real is not None or not (data / MANIFEST).is_file():
        scans = RealScans(sources=task.plan.chain.sources(task.out / PHANTOM_FOLDER), key=DEMO_KEY)
        with task.step(DATA_STEP, record):
            _build(task, task.real or scans)
    found = open_for_training(data, image_size=None)
    if not len(found.splits["test"]):
        raise DataError(
            "EMPTY_SPLIT",
            "the test split has no labelled sample, and maps are measured on test patients: give "
            "more patients",
        )
    refuse_unbuildable(task.plan, found.summary)
    left = [run for run in task.runs if not hash_of(run)]
    require_space(
        task.out, plan_bytes([run.member.settings for run in left], found.summary, task.effort.jobs)
    )


def _scans(task: _Task) -> None:
    plan, folder = task.plan, task.out / PHANTOM_FOLDER
    if (folder / plan.chain.written_last).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    with Workers(task.effort.workers) as pool:
        PHANTOMS[plan.dataset](
            folder,
            subjects=plan.subjects,
            seed=0,
            mapper=pool.map,
            progress=lambda done, total: task.watch.progress(SCANS_STEP, done, total),
            **plan.phantoms,
        )


def _build(task: _Task, scans: RealScans) -> None:
    build(
        task.plan.dataset,
        task.plan.phantom_build if task.real is None else task.plan.real_build,
        scans.sources,
        out=task.out / DATA,
        key=scans.key,
        workers=task.effort.workers,
        progress=task.watch.progress,
    )


def _runs(task: _Task, record: Record) -> None:
    record.failures = {}
    begin, trained = time.perf_counter(), False
    for wave in task.waves:
        left = [run for run in wave if not hash_of(run)]
        trained = trained or bool(left)
        _train(task, record, left)
    record.runs = {run.place: digest for run in task.runs if (digest := hash_of(run))}
    if trained:
        record.seconds["training"] = round(time.perf_counter() - begin, 1)
    record.write(task.out)
    if not record.runs:
        place, (code, message) = next(iter(record.failures.items()))
        raise RunError(
            "ALL_RUNS_FAILED",
            f"none of the {len(task.runs)} runs ended; {place} with {code}: {message}",
        )


def _train(task: _Task, record: Record, left: Sequence[PlannedRun]) -> None:
    total, done = len(task.runs), [0]

    def ended(run: PlannedRun, outcome: Outcome) -> None:
        done[0] += 1
        became = f"{outcome.seconds:.0f} s"
        if outcome.code:
            record.failures[run.place] = (outcome.code, outcome.message)
            became = f"failed: {outcome.code}"
        task.watch.tell(f"{run.name} ({done[0]} of {len(left)}, {total} in all): {became}")

    if left:
        train_all(
            left,
            threads=record.threads,
            jobs=task.effort.jobs,
            stage=f"{len(left)} run{'s' if len(left) > 1 else ''}",
            ended=ended,
            progress=task.watch.progress,
        )


def _evaluation(task: _Task, record: Record) -> None:
    """Measure what ended; what was measured already is not measured again."""
    folder = task.out / EVALUATION
    with task.step(EVALUATION_STEP, record):
        lines = task.judge(
            task.plan.judged(real=task.real is not None),
            runs=[task.out / RUNS / place for place in record.runs],
            data=task.out / DATA,
            out=folder,
            resume=folder.exists(),
            jobs=task.effort.jobs,
            progress=task.watch.progress,
        )
        record.report_sha256 = run_files.sha256(task.page)
        record.lines = tuple(lines)


def _report(task: _Task, record: Record, *, already_complete: bool = False) -> ReproduceReport:
    return ReproduceReport(
        page=task.page,
        runs=len(task.runs),
        found=record.lines,
        failures=tuple((place, *why) for place, why in record.failures.items()),
        already_complete=already_complete,
    )
