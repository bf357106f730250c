"""What is made ahead is the same, comes in the same order, and leaves nothing behind."""

import threading
from collections.abc import Iterator
from itertools import islice

import pytest

from pipelines.ahead import Ahead


def test_items_are_those_of_the_iterable() -> None:
    assert list(Ahead(range(50))) == list(range(50))
    assert list(Ahead([])) == []


def test_one_is_made_while_the_last_is_worked_on_and_no_more() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for i in range(9):
            made.append(i)
            if i == 1:
                second.set()
            yield i

    batches = iter(Ahead(items()))
    assert next(batches) == 0
    assert second.wait(10)
    assert made == [0, 1]


def test_what_goes_wrong_is_raised_at_the_item_it_spoils() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise ValueError("the third is spoilt")

    seen = []
    with pytest.raises(ValueError, match="the third is spoilt"):
        seen.extend(Ahead(items()))
    assert seen == [0, 1]


def test_who_stops_early_leaves_no_thread_and_nothing_open() -> None:
    closed = []

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(threading.current_thread().name)

    batches = iter(Ahead(items()))
    assert list(islice(batches, 3)) == [1, 1, 1]
    batches.close()
    assert len(closed) == 1
    assert closed[0].startswith("ahead")
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]
