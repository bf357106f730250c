"""Long tasks beside each other, each in a process of its own that only its own task can end.

A training takes hours and holds an accelerator: it needs what a pool of short tasks forbids.
Processes come from a fork server, which holds no locks and no threads. A task that refuses returns;
one whose process dies comes back as ``Died``. When the caller is interrupted or ends, however that
happens, its processes end too.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from pipelines.progress import Progress
from pipelines.workers import keep_freed_memory
from preprocessing.records import Died

SECONDS_BETWEEN_REPORTS = 0.5
PRELOADED = "pipelines.train"
"""Imported once by the fork server, and not again for every task."""
Function = Callable[[Any, Progress], Any]


class Steps:
    """Steps of many tasks as one bar: done of all that there will be.

    Tasks are taken for equally long until they say how long they are, so the time left is right
    from the first steps on.
    """

    def __init__(self, progress: Progress, *, stage: str, tasks: int) -> None:
        self._progress, self._stage, self._tasks = progress, stage, tasks
        self._totals: dict[int, int] = {}
        self._done: dict[int, int] = {}

    def advance(self, task: int, done: int, total: int) -> None:
        """Note how far a task is."""
        self._totals[task], self._done[task] = total, done
        self._tell()

    def finish(self, task: int) -> None:
        """Note that a task is over, whatever was left of it."""
        self._done[task] = self._totals.setdefault(task, max(self._totals.values(), default=1))
        self._tell()

    def _tell(self) -> None:
        unknown = self._tasks - len(self._totals)
        total = sum(self._totals.values()) + unknown * max(self._totals.values())
        self._progress(self._stage, sum(self._done.values()), total)


def run_all(
    function: Function, items: Sequence[Any], *, jobs: int, stage: str, progress: Progress
) -> Generator[tuple[int, Any], None, None]:
    """Yield the place of each item and ``function(item, progress)``, or ``Died``, as they end.

    Parameters
    ----------
    function
        Of a module's top level; reports its stage ``training`` as it goes.
    jobs
        Tasks beside each other, each with its share of the processors; 1 runs all in this process.

    Raises
    ------
    ValueError
        If ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least one task runs at a time")
    steps = Steps(progress, stage=stage, tasks=len(items))
    if jobs == 1 or len(items) < 2:
        for place, item in enumerate(items):
            result = function(item, _Advance(steps, place))
            steps.finish(place)
            yield place, result
    else:
        yield from _beside(function, items, jobs=min(jobs, len(items)), steps=steps)


class _Advance:
    def __init__(self, steps: Steps, task: int) -> None:
        self._steps, self._task = steps, task

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "training":
            self._steps.advance(self._task, done, total)


@dataclass(slots=True, kw_only=True)
class _Running:
    task: int
    process: BaseProcess
    link: Connection
    result: list[Any] = field(default_factory=list)

    def stop(self) -> None:
        """End the process at once: a run that is killed can be resumed."""
        self.process.terminate()
        self.process.join()
        self.link.close()


def _beside(
    function: Function, items: Sequence[Any], *, jobs: int, steps: Steps
) -> Generator[tuple[int, Any], None, None]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    share = len(os.sched_getaffinity(0)) // jobs
    threads = max(1, min(share, torch.get_num_threads()))  # fewer where the user asked for fewer
    waiting = list(enumerate(items))
    running: list[_Running] = []
    with ExitStack() as stack:
        stack.callback(lambda: [one.stop() for one in running])
        while waiting or running:
            while waiting and len(running) < jobs:
                task, item = waiting.pop(0)
                here, there = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(there, function, item, threads))
                process.start()
                there.close()
                running.append(_Running(task=task, process=process, link=here))
            for one in _heard(running, steps):
                running.remove(one)
                one.stop()
                steps.finish(one.task)
                yield one.task, one.result[0] if one.result else Died()


def _heard(running: Sequence[_Running], steps: Steps) -> list[_Running]:
    """Wait for news; return the tasks that are over, because they said so or are gone."""
    ready = multiprocessing.connection.wait([one.link for one in running])
    over = []
    for one in running:
        if one.link not in ready:
            continue
        try:
            kind, value = one.link.recv()
        except (EOFError, ConnectionResetError):  # the other end closed: its process is gone
            over.append(one)
            continue
        if kind == "steps":
            steps.advance(one.task, *value)
        else:
            one.result.append(value)
            over.append(one)
    return over


def _work(link: Connection, function: Function, item: Any, threads: int) -> None:
    # Ctrl-C reaches every process of the terminal; ending these is the caller's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    with threadpool_limits(threads):
        link.send(("result", function(item, _Sender(link))))


def _end_with_caller() -> None:
    caller = multiprocessing.parent_process()
    if caller is not None:
        multiprocessing.connection.wait([caller.sentinel])
        os._exit(1)


class _Sender:
    """Reports to the process that started this one, not oftener than it can be drawn."""

    def __init__(self, link: Connection) -> None:
        self._link, self._next = link, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == "training" and now >= self._next:
            self._next = now + SECONDS_BETWEEN_REPORTS
            self._link.send(("steps", (done, total)))
