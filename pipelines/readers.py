"""Processes that read pictures into memory that they share with the process that trains.

Decoding is many short steps; threads of one process would wait for its lock at each of them. Each
process reads its share of every batch straight into the batch's place, so that no picture is sent.
The memory is anonymous and belongs to these processes alone: whichever of them dies, nothing is
left. They come from a fork server and end when the caller stops reading or is gone.
"""

import mmap
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from pipelines.carrier import Carrier, Held
from pipelines.errors import DataError
from pipelines.workers import keep_freed_memory

PRELOADED = "pipelines.readers"
"""Imported once by the fork server, and not again for every process."""
SECONDS_TO_END = 5.0
ALIGNMENT = 64
HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slots:
    """Places for a few batches of so many pictures in one piece of memory."""

    carrier: Carrier
    count: int
    width: int

    @property
    def bytes_each(self) -> int:
        like = self.carrier.empty(self.width, device=HOST)
        return -(-(like.pixels.nbytes + like.statistics.nbytes) // ALIGNMENT) * ALIGNMENT

    def opened(self, file: int) -> list[Held]:
        """Look at the memory as batches; the file may be closed afterwards."""
        memory = mmap.mmap(file, max(1, self.count * self.bytes_each))
        return [self._slot(memory, number * self.bytes_each) for number in range(self.count)]

    def _slot(self, memory: mmap.mmap, start: int) -> Held:
        like = self.carrier.empty(self.width, device=HOST)
        views = []
        for part in (like.statistics.numpy(), like.pixels.numpy()):
            flat = np.frombuffer(memory, dtype=part.dtype, count=part.size, offset=start)
            views.append(torch.from_numpy(flat.reshape(part.shape)))
            start += part.nbytes
        return Held(pixels=views[1], statistics=views[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    process: BaseProcess
    link: Connection

    def ask(self, place: int, share: Sequence[tuple[int, int]]) -> None:
        """Ask for pictures by their places in the batch; a process that is gone does not answer."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.link.send((place, share))

    def answer(self) -> Exception | None:
        """Wait for the oldest share that was asked for; return what went wrong with it.

        Raises
        ------
        DataError
            ``READER_LOST``.
        """
        try:
            return self.link.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(SECONDS_TO_END)
            raise DataError(
                "READER_LOST",
                f"a process that reads pictures ended by itself (exit code "
                f"{self.process.exitcode}), mostly for want of memory: lower workers, or set "
                "workers=0 to read without such processes",
            ) from None


def read_beside(
    carrier: Carrier,
    orders: Iterable[Int64[np.ndarray, " b"]],
    *,
    workers: int,
    ahead: int,
    pinned: bool,
) -> Iterator[Held]:
    """Yield batches in order, each read by all processes together, ``ahead`` of who asks for them.

    What goes wrong with a picture is raised at the batch it spoils. The first order is the largest,
    or a larger one begins with new processes.

    Raises
    ------
    DataError
        ``READER_LOST`` where a process dies.
    """
    waiting = iter(orders)
    order = next(waiting, None)
    while order is not None:
        slots = _Slots(carrier=carrier, count=ahead + 1, width=len(order))
        with _readers(slots, workers) as (readers, places):
            order = yield from _fitting(slots, readers, places, order, waiting, pinned=pinned)


def _fitting(
    slots: _Slots,
    readers: Sequence[_Reader],
    places: Sequence[Held],
    order: Int64[np.ndarray, " b"] | None,
    waiting: Iterator[Int64[np.ndarray, " b"]],
    *,
    pinned: bool,
) -> Iterator[Any]:
    """Read while orders fit into the slots; return the one that does not."""
    under_way: deque[tuple[Held, int]] = deque()
    number = 0
    while order is not None and len(order) <= slots.width:
        place = number % slots.count
        for share, reader in enumerate(readers):
            reader.ask(place, list(enumerate(order.tolist()))[share :: len(readers)])
        under_way.append((places[place], len(order)))
        number += 1
        if len(under_way) == slots.count:
            yield _complete(*under_way.popleft(), slots, readers, pinned=pinned)
        order = next(waiting, None)
    while under_way:
        yield _complete(*under_way.popleft(), slots, readers, pinned=pinned)
    return order


def _complete(
    slot: Held, count: int, slots: _Slots, readers: Sequence[_Reader], *, pinned: bool
) -> Held:
    """Copy a batch out of its slot, which is filled anew at once."""
    problems = [reader.answer() for reader in readers]
    for problem in problems:
        if problem is not None:
            raise problem
    batch = slots.carrier.empty(count, device=HOST, pinned=pinned)
    batch.pixels.copy_(slot.pixels[:count])
    batch.statistics.copy_(slot.statistics[:count])
    return batch


@contextmanager
def _readers(slots: _Slots, workers: int) -> Iterator[tuple[list[_Reader], list[Held]]]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    file = os.memfd_create("pictures")
    readers: list[_Reader] = []
    try:
        os.ftruncate(file, max(1, slots.count * slots.bytes_each))
        places = slots.opened(file)
        for _ in range(workers):
            here, there = context.Pipe()
            target, given = _work, (there, slots.carrier.recipe, slots.count, slots.width)
            process = context.Process(target=target, args=(*given, _Memory(file)), daemon=True)
            process.start()
            there.close()
            readers.append(_Reader(process=process, link=here))
        yield readers, places
    finally:
        os.close(file)
        for reader in readers:
            reader.link.close()  # which its process takes for the end
        for reader in readers:
            reader.process.join(SECONDS_TO_END)
            if reader.process.is_alive():
                reader.process.kill()
                reader.process.join()


class _Memory:
    """A file of memory that goes with a process when it is started."""

    def __init__(self, file: int) -> None:
        self._file: Any = file

    def __getstate__(self) -> Any:
        return DupFd(self._file)

    def __setstate__(self, state: Any) -> None:
        self._file = state

    def detach(self) -> int:
        """Return the descriptor, which the process that was started owns from now on."""
        return self._file.detach()


def _work(link: Connection, recipe: Any, count: int, width: int, memory: _Memory) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ending the training is its own business
    torch.set_num_threads(1)
    keep_freed_memory()
    carrier = Carrier(*recipe)
    file = memory.detach()
    places = _Slots(carrier=carrier, count=count, width=width).opened(file)
    os.close(file)
    with suppress(EOFError, ConnectionResetError, BrokenPipeError):  # the other end is closed
        while True:
            place, share = link.recv()
            link.send(_read_share(carrier, places[place], share))


def _read_share(
    carrier: Carrier, batch: Held, share: Sequence[tuple[int, int]]
) -> Exception | None:
    try:
        for place, index in share:
            carrier.read(batch, place, index)
    except Exception as error:  # noqa: BLE001 - raised again by who asked for the batch
        return error
    return None
