"""The next item made ready while the one before is worked on."""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Ahead:
    """Items of an iterable, each made by a thread while the caller is busy with the last.

    Where the work releases the interpreter's lock, as torch's does, it costs the caller nothing but
    the lock. Items, their order and what is raised are the iterable's own; iterate it once.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def __iter__(self) -> Generator[Any, None, None]:
        items, end = iter(self._items), object()
        with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
            try:
                coming = thread.submit(next, items, end)
                while (item := coming.result()) is not end:
                    coming = thread.submit(next, items, end)
                    yield item
            finally:
                thread.submit(_close, items)


def _close(items: Iterator[Any]) -> None:
    """Let a generator give back what it holds, in the thread that it ran in."""
    if isinstance(items, Generator):
        items.close()
