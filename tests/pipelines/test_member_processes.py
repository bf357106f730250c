"""Long tasks in processes of their own: what comes back, what dies, and who ends with whom."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import member_processes
from pipelines.member_processes import Steps, run_all
from pipelines.progress import Progress, silent
from preprocessing.records import Died

ROOT = Path(__file__).parents[2]


def told(item: int, progress: Progress) -> tuple[int, int, int]:
    for step in range(1, 4):
        progress("reading", step, 99)
        progress("training", step, 3)
    return 10 * item, os.getpid(), torch.get_num_threads()


def fatal_at_one(item: int, progress: Progress) -> int:
    if item == 1:
        os._exit(9)
    return item


def endless(item: Path, progress: Progress) -> None:
    item.write_text(str(os.getpid()))
    time.sleep(60)


def waiting(item: Path, progress: Progress) -> None:
    item.write_text(str(os.getpid()))
    for step in range(60):
        time.sleep(1)
        progress("training", step, 60)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Any, *, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def light_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tasks need no training to be imported."""
    monkeypatch.setattr(member_processes, "PRELOADED", "pipelines.progress")


class Watcher:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.seen.append((stage, done, total))


class Interrupting:
    """Ctrl-C once every task is under way."""

    def __init__(self, items: list[Path]) -> None:
        self.items = items

    def __call__(self, stage: str, done: int, total: int) -> None:
        if all(item.exists() and item.read_text() for item in self.items):
            raise KeyboardInterrupt


class TestRunAll:
    def test_one_at_a_time_stays_in_this_process(self) -> None:
        watcher = Watcher()
        found = list(run_all(told, [1, 2], jobs=1, stage="2 runs", progress=watcher))
        assert [(place, result[0], result[1]) for place, result in found] == [
            (0, 10, os.getpid()),
            (1, 20, os.getpid()),
        ]
        assert {stage for stage, _, _ in watcher.seen} == {"2 runs"}
        assert [(done, total) for _, done, total in watcher.seen] == [
            (1, 6), (2, 6), (3, 6), (3, 6), (4, 6), (5, 6), (6, 6), (6, 6),
        ]  # fmt: skip

    def test_several_share_the_processors(self) -> None:
        watcher = Watcher()
        found = dict(run_all(told, [1, 2, 3], jobs=2, stage="3 runs", progress=watcher))
        assert {place: result[0] for place, result in found.items()} == {0: 10, 1: 20, 2: 30}
        processes = {result[1] for result in found.values()}
        assert len(processes) == 3
        assert os.getpid() not in processes
        share = len(os.sched_getaffinity(0)) // 2
        threads = max(1, min(share, torch.get_num_threads()))
        assert {result[2] for result in found.values()} == {threads}
        assert watcher.seen[-1] == ("3 runs", 9, 9)

    def test_a_process_that_dies_takes_only_its_own_task(self) -> None:
        found = dict(run_all(fatal_at_one, [0, 1, 2], jobs=2, stage="runs", progress=silent))
        assert found == {0: 0, 1: Died(), 2: 2}

    def test_a_caller_that_is_interrupted_ends_its_processes(self, tmp_path: Path) -> None:
        items: list[Any] = [tmp_path / "one", tmp_path / "two"]
        ended = run_all(waiting, items, jobs=2, stage="runs", progress=Interrupting(items))
        with pytest.raises(KeyboardInterrupt):
            list(ended)
        for item in items:
            assert wait_until(lambda item=item: not is_alive(int(item.read_text())))

    def test_processes_end_with_a_caller_that_is_killed(self, tmp_path: Path) -> None:
        code = (
            "from pathlib import Path\n"
            "from pipelines import member_processes as m\n"
            "from pipelines.progress import silent\n"
            "from tests.pipelines.test_member_processes import endless\n"
            "m.PRELOADED = 'pipelines.progress'\n"
            f"items = [Path({str(tmp_path)!r}) / name for name in ('one', 'two')]\n"
            "if __name__ == '__main__':\n"
            "    list(m.run_all(endless, items, jobs=2, stage='runs', progress=silent))\n"
        )
        script = tmp_path / "caller.py"
        script.write_text(code)
        caller = subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        started = [tmp_path / "one", tmp_path / "two"]
        assert wait_until(lambda: all(x.exists() and x.read_text() for x in started), seconds=60)
        caller.kill()
        caller.wait()
        for item in started:
            assert wait_until(lambda item=item: not is_alive(int(item.read_text())))

    def test_no_jobs_at_all(self) -> None:
        with pytest.raises(ValueError, match="jobs is 0; at least one"):
            list(run_all(told, [1], jobs=0, stage="runs", progress=silent))


class TestSteps:
    def test_tasks_that_said_nothing_count_as_long_as_the_longest(self) -> None:
        watcher = Watcher()
        steps = Steps(watcher, stage="runs", tasks=3)
        steps.advance(0, 2, 10)
        steps.advance(1, 1, 6)
        assert [(done, total) for _, done, total in watcher.seen] == [(2, 30), (3, 26)]

    def test_a_task_that_ends_early_is_done_whole(self) -> None:
        watcher = Watcher()
        steps = Steps(watcher, stage="runs", tasks=2)
        steps.advance(0, 2, 10)
        steps.finish(0)
        steps.finish(1)  # it refused before it said anything
        assert watcher.seen[1:] == [("runs", 10, 20), ("runs", 20, 20)]
