"""Processes that do one case each, and survive the case that kills them.

A codec written in C can end its process, a damaged file can keep a parser busy for ever. Either one
takes its own task and nothing else: the pool is started anew, the tasks that were under way are
tried again one at a time, and the one that ends its process again comes back as ``Died``.

Processes are forked where nothing speaks against it: they are up at once. Where other threads run
or torch is loaded, they come from a fork server instead, which takes a second to import what a case
needs. Until they are up the calling process works itself, and with one worker it does so to the
end; only tasks that run foreign C code on the file's bytes (``guarded``) always go to a process of
their own. A worker ends with the process that started it, however that one ended.
"""

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any

from threadpoolctl import threadpool_limits

from preprocessing.records import Died

MEMORY_LIMIT_BYTES = 24 * 1024**3
"""Address space of a worker: far above the largest scan, far below what a forged header can ask."""
SECONDS_PER_TASK = 600.0
"""A task that takes longer is taken for a hanging parser; a whole-body case takes about one."""
TASKS_AHEAD = 2
"""Tasks handed out beyond one for each worker, so that no worker waits and memory stays flat."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def _prepare_worker(method: str) -> None:
    # Interrupts are the parent's business: it stops handing out tasks and lets these finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    ceiling = (
        MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    )
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, hard))
    # As many processes as processors: threads beside them would only wait for one another. A fork
    # has the limit of its parent; setting it again would start the threads that it forbids.
    if method != "fork":
        threadpool_limits(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def keep_freed_memory() -> None:
    """Let the next case have the memory of the last, where the C library can be told so.

    A fresh volume of 80 MB is handed out page by page, each cleared by the kernel: half the time of
    reading a scan, and what several processes wait for together.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _timed(function: Callable[[Any], Any], item: Any, seconds: float) -> Any:
    # SIGALRM keeps its default action, which ends the process even inside a C library.
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return function(item)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _nothing(_: int) -> None:
    """Show that a process is up."""


def _never(_: Any) -> bool:
    return False


def _may_fork() -> bool:
    """Tell whether a copy of this process works: locks that a thread holds would stay locked in it.

    Numpy's threads are restarted by its own handlers; those of torch's OpenMP are not.
    """
    only_thread = threading.active_count() == 1
    return sys.platform == "linux" and only_thread and "torch" not in sys.modules


class Workers:
    """A pool of processes used as a context manager.

    Attributes
    ----------
    count
        How many processes work at a time.
    """

    def __init__(self, count: int, *, seconds_per_task: float = SECONDS_PER_TASK) -> None:
        if count < 1:
            raise ValueError(f"--workers must be at least 1, got {count}")
        self.count = count
        self._seconds = seconds_per_task
        self._pool: ProcessPoolExecutor | None = None
        self._starting: threading.Thread | None = None
        self._limits: threadpool_limits | None = None

    def __enter__(self) -> "Workers":
        # Matrices here are small: the threads of a linear algebra library would mostly wait.
        self._limits = threadpool_limits(1)
        if self.count == 1:
            keep_freed_memory()
        elif _may_fork():
            self._pool = self._forked()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop(wait_for_tasks=kind is None)
        if self._limits is not None:
            self._limits.restore_original_limits()

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        guarded: Callable[[Any], bool] = _never,
    ) -> Iterator[Any]:
        """Yield ``function(item)``, or ``Died``, in the order of ``items``.

        An exception raised by the function is raised here. Only a few items are drawn ahead.

        Parameters
        ----------
        guarded
            Whether a task may end its process, and therefore never runs in this one.
        """
        if self.count == 1:
            for item in items:
                yield self._alone(function, item) if guarded(item) else function(item)
        else:
            yield from self._mapped(function, items, guarded)

    def _mapped(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        guarded: Callable[[Any], bool],
    ) -> Iterator[Any]:
        source = iter(enumerate(items))
        pending: dict[Future[Any], tuple[int, Any]] = {}
        done: dict[int, Any] = {}
        following = 0
        exhausted = False
        while pending or not exhausted:
            while not exhausted and len(pending) < self.count + TASKS_AHEAD:
                index, item = next(source, (-1, None))
                exhausted = index < 0
                if exhausted:
                    break
                if not self._up() and not guarded(item):
                    done[index] = function(item)
                    break
                self._submit(function, index, item, pending, done)
            if pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                self._collect(function, finished, pending, done)
            while following in done:
                yield done.pop(following)
                following += 1

    def _submit(
        self,
        function: Callable[[Any], Any],
        index: int,
        item: Any,
        pending: dict[Future[Any], tuple[int, Any]],
        done: dict[int, Any],
    ) -> None:
        try:
            future = self._running().submit(_timed, function, item, self._seconds)
        except BrokenProcessPool:
            self._stop(wait_for_tasks=False)
            done[index] = self._alone(function, item)
            return
        pending[future] = (index, item)

    def _collect(
        self,
        function: Callable[[Any], Any],
        finished: Iterable[Future[Any]],
        pending: dict[Future[Any], tuple[int, Any]],
        done: dict[int, Any],
    ) -> None:
        broken = False
        for future in list(finished):
            index, _ = pending[future]
            try:
                done[index] = future.result()
            except BrokenProcessPool:
                broken = True
                continue
            del pending[future]
        if broken:
            self._stop(wait_for_tasks=False)
            unfinished = list(pending.values())
            pending.clear()
            for index, item in unfinished:
                done[index] = self._alone(function, item)

    def _alone(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Run a task with no other beside it, so that a dead process tells which task it was."""
        try:
            return self._running().submit(_timed, function, item, self._seconds).result()
        except BrokenProcessPool:
            self._stop(wait_for_tasks=False)
            return Died()

    def _up(self) -> bool:
        """Tell whether the pool is ready; the first question starts it, beside this process."""
        if self._pool is not None:
            return True
        if self._starting is None:
            self._starting = threading.Thread(target=self._start, daemon=True)
            self._starting.start()
        return not self._starting.is_alive()

    def _forked(self) -> ProcessPoolExecutor:
        pool = self._made("fork")
        with warnings.catch_warnings():
            # Newer Pythons warn of numpy's threads, which survive this.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool.submit(_nothing, 0).result()
        return pool

    def _start(self) -> None:
        # A fork server forks from a process that holds no locks, threads or open HDF5 files.
        pool = self._made("forkserver")
        for up in [pool.submit(_nothing, number) for number in range(self.count)]:
            up.result()
        self._pool = pool

    def _made(self, method: str) -> ProcessPoolExecutor:
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["pipelines.recipes"])
        return ProcessPoolExecutor(
            self.count, mp_context=context, initializer=_prepare_worker, initargs=(method,)
        )

    def _running(self) -> ProcessPoolExecutor:
        if not self._up() and self._starting is not None:
            self._starting.join()
        if self._pool is None:
            raise RuntimeError("no worker process could be started")
        return self._pool

    def _stop(self, *, wait_for_tasks: bool) -> None:
        if self._starting is not None:
            self._starting.join()
        if self._pool is not None:
            self._pool.shutdown(wait=wait_for_tasks, cancel_futures=True)
        self._pool = self._starting = None
