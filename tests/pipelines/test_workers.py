import os
import time

import pytest

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


def test_this_process_works_until_the_others_are_up_and_then_stops() -> None:
    with Workers(2) as pool:
        found = list(pool.map(identity_slowly, range(80)))
    assert found[0] == os.getpid()
    assert found[-1] != os.getpid()


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
