import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from pipelines import workers
from pipelines.workers import Workers
from preprocessing.records import Died


def doubled(value: int) -> int:
    return 2 * value


def doubled_backwards(value: int) -> int:
    time.sleep(0.02 * (5 - value))
    return 2 * value


def fatal_at_three(value: int) -> int:
    if value == 3:
        os._exit(11)
    return 2 * value


def hanging_at_one(value: int) -> int:
    if value == 1:
        time.sleep(60)
    return 2 * value


def refusing(value: int) -> int:
    raise KeyError(f"no {value}")


def identity_slowly(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def identity(_: int) -> int:
    return os.getpid()


def threads(_: int) -> int:
    return max((pool["num_threads"] for pool in threadpool_info()), default=1)


def handling(_: int) -> tuple[object, object]:
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.fixture(params=["fork", "forkserver"], autouse=True)
def method(request, monkeypatch):
    """Every law holds for both ways to start."""
    if request.param == "fork" and sys.platform != "linux":
        pytest.skip("processes are forked on Linux only")
    monkeypatch.setattr(workers, "_may_fork", lambda: request.param == "fork")
    return request.param


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    with Workers(count) as pool:
        assert list(pool.map(doubled_backwards, range(6))) == [0, 2, 4, 6, 8, 10]
        assert list(pool.map(doubled, iter([]))) == []


def always(_: int) -> bool:
    return True


def test_one_worker_is_this_process() -> None:
    with Workers(1) as pool:
        assert set(pool.map(identity, range(4))) == {os.getpid()}


@pytest.mark.parametrize("count", [1, 2])
def test_guarded_work_is_done_in_other_processes(count: int) -> None:
    with Workers(count) as pool:
        assert os.getpid() not in set(pool.map(identity, range(4), guarded=always))


def test_this_process_works_until_the_others_are_up_and_then_stops(method) -> None:
    with Workers(2) as pool:
        found = list(pool.map(identity_slowly, range(80 if method == "forkserver" else 4)))
    assert (found[0] == os.getpid()) == (method == "forkserver")
    assert found[-1] != os.getpid()


def test_a_worker_uses_one_thread_and_leaves_interrupts_to_its_parent() -> None:
    with Workers(2) as pool:
        assert set(pool.map(threads, range(4), guarded=always)) == {1}
        expected = {(signal.SIG_IGN, signal.SIG_DFL)}
        assert set(pool.map(handling, range(4), guarded=always)) == expected


_ORPHANS = """
import sys, time
sys.path.append("tests/pipelines")
import test_workers
from pipelines import workers
workers._may_fork = lambda: sys.argv[1] == "fork"
with workers.Workers(3) as pool:
    print(*{*pool.map(test_workers.identity_slowly, range(9), guarded=lambda _: True)}, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("count", [1, 2])
def test_this_process_uses_one_thread_as_well_and_gets_its_threads_back(count: int) -> None:
    with threadpool_limits(2):
        before = threads(0)
        with Workers(count):
            assert threads(0) == 1
        assert threads(0) == before


def test_workers_end_with_a_builder_that_is_killed(method) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _ORPHANS, method], stdout=subprocess.PIPE, text=True, cwd=root
    ) as builder:
        assert builder.stdout is not None
        pids = [int(word) for word in builder.stdout.readline().split()]
        assert len(pids) > 1
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
        builder.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(_runs(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_process_with_other_threads_or_torch_is_not_copied(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(workers.threading, "active_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", sys)
    assert not workers._may_fork()
    monkeypatch.delitem(sys.modules, "torch")
    assert workers._may_fork() == (sys.platform == "linux")
    monkeypatch.setattr(workers.threading, "active_count", lambda: 2)
    assert not workers._may_fork()


@pytest.mark.parametrize("count", [1, 2])
def test_a_task_that_ends_its_process_takes_only_itself(count: int) -> None:
    with Workers(count) as pool:
        results = list(pool.map(fatal_at_three, range(8), guarded=always))
    assert results == [0, 2, 4, Died(), 8, 10, 12, 14]


def test_a_task_that_hangs_in_sleep_is_ended() -> None:
    with Workers(2, seconds_per_task=0.5) as pool:
        assert list(pool.map(hanging_at_one, range(3), guarded=always)) == [0, Died(), 4]


def test_an_exception_of_the_function_is_raised() -> None:
    with Workers(1) as pool, pytest.raises(KeyError, match="no 7"):
        list(pool.map(refusing, [7]))


def test_no_worker_is_no_pool() -> None:
    with pytest.raises(ValueError, match="--workers must be at least 1, got 0"):
        Workers(0)


_FAULTS = """
import resource
import numpy as np
from pipelines.workers import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**24, dtype=np.float32).fill(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="an option of glibc")
def test_a_worker_gives_the_memory_of_one_case_to_the_next() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _FAULTS], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 16, "64 MiB are 16,384 pages, or 32 large ones"
