"""Where the pictures of a split wait for the training: in memory, or in the shards.

Axes: b batch, c channel, p stored row, q stored column, h row, w column. A picture is decoded by
the calling thread or by a few others beside it, into a batch that is already allocated: unlike
processes, threads need no copy of it, and nothing of theirs is left when the training has ended.
Whatever holds the pictures, however many threads read, the batches are the same to the bit.

What travels to an accelerator is whichever is less: pictures as stored, scored over the brain and
resampled on the accelerator, or finished ones. On a CPU pictures are finished as they are read.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor

from pipelines.feed import Pictures, Store, finished, in_order
from pipelines.progress import Progress, silent

RESIDENT_SHARE = 0.4  # of the memory that is free: the model and its gradients need the rest
AHEAD = 2  # batches that are being read while one is trained on
READ_BATCH = 64

Orders = Iterable[Int64[np.ndarray, " b"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Pictures on their way, and what they are scored by where that is still to be done."""

    pixels: Shaped[Tensor, "b c p q"]
    statistics: Float32[Tensor, "b 2 k"]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Held":
        """Change both tensors alike."""
        return Held(pixels=change(self.pixels), statistics=change(self.statistics))


class Carrier:
    """How the pictures of a split are held and carried to a device.

    Attributes
    ----------
    late
        Whether they are finished on the device.
    bytes_each
        What one picture takes.
    """

    def __init__(self, images: Pictures, device: torch.device) -> None:
        self._images, self._size = images, images.size
        ready = images[0] if len(images) else torch.empty((0, *images.size))
        stored = np.array(images.stored(0)[0]) if len(images) else np.empty(0)
        self.late = device.type == "cuda" and stored.nbytes < ready.nbytes
        self._like = torch.from_numpy(stored) if self.late else ready
        self.bytes_each: int = self._like.nbytes

    def __len__(self) -> int:
        return len(self._images)

    def empty(self, count: int, *, device: torch.device, pinned: bool = False) -> Held:
        """Memory for so many pictures."""
        channels = self._like.shape[0]
        shapes = (count, *self._like.shape), (count, 2, channels if self.late else 0)
        kinds = self._like.dtype, torch.float32
        return Held(
            pixels=torch.empty(shapes[0], dtype=kinds[0], device=device, pin_memory=pinned),
            statistics=torch.empty(shapes[1], dtype=kinds[1], device=device, pin_memory=pinned),
        )

    def read(self, batch: Held, place: int, index: int) -> None:
        """Read one picture into a place of a batch on the host."""
        if not self.late:
            batch.pixels[place] = self._images[index]
            return
        stored, statistics = self._images.stored(index)
        batch.pixels.numpy()[place] = stored
        if statistics is not None:
            batch.statistics.numpy()[place] = statistics

    def finish(self, batch: Held) -> Shaped[Tensor, "b c h w"]:
        """Score and resample, on the device, what was not when it was read."""
        if not self.late:
            return batch.pixels
        scored = self._images.scored
        return finished(batch.pixels, batch.statistics if scored else None, size=self._size)


class StreamStore:
    """Every batch read from the shards, by ``workers`` threads ahead of the training.

    Without workers a batch is read when it is asked for.
    """

    def __init__(self, images: Pictures, *, device: torch.device, workers: int = 0) -> None:
        self._carrier = Carrier(images, device)
        self._device, self._workers = device, workers

    def batches(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> Iterator[Tensor]:
        """Yield "b c h w" for each order."""
        pinned = self._device.type == "cuda"
        read = _read(self._carrier, orders, workers=self._workers, pinned=pinned)
        for batch in _uploaded(read, self._device):
            yield self._carrier.finish(batch)


class ResidentStore:
    """A whole split decoded once into one tensor.

    Parameters
    ----------
    device
        Where batches are wanted.
    home
        Where the split is held: the device unless told otherwise. Batches of a split in the host's
        memory are copied to an accelerator while the one before is trained on.
    workers
        Threads that decode.
    """

    def __init__(
        self,
        images: Pictures,
        *,
        device: torch.device,
        home: torch.device | None = None,
        workers: int = 0,
        progress: Progress = silent,
    ) -> None:
        self._carrier, self._device = Carrier(images, device), device
        self._home = home or device
        self._held = self._carrier.empty(len(images), device=self._home)
        start = 0
        parts = in_order(len(images), READ_BATCH)
        for batch in _read(self._carrier, parts, workers=workers, pinned=False):
            count = len(batch.pixels)
            self._held.pixels[start : start + count] = batch.pixels
            self._held.statistics[start : start + count] = batch.statistics
            start += count
            progress("reading", start, len(images))

    def batches(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> Iterator[Tensor]:
        """Yield "b c h w" for each order."""
        for batch in _uploaded(map(self._picked, orders), self._device):
            yield self._carrier.finish(batch)

    def _picked(self, order: Int64[np.ndarray, " b"]) -> Held:
        index = torch.from_numpy(order).to(self._home)
        batch = self._held.mapped(lambda values: values[index])
        on_the_way = self._home.type == "cpu" and self._device.type == "cuda"
        return batch.mapped(Tensor.pin_memory) if on_the_way else batch


def store(
    images: Pictures,
    *,
    feed: str,
    device: torch.device,
    workers: int = 0,
    sharing: int = 1,
    progress: Progress = silent,
) -> Store:
    """Hold the pictures in memory where asked, or where ``auto`` finds that they fit.

    The memory of the device is tried first, then that of the host, which ``sharing`` processes
    fill alike.
    """
    if feed == "stream":
        return StreamStore(images, device=device, workers=workers)
    needed = resident_bytes(images, device)
    for home in (device, torch.device("cpu")):
        filled = needed * sharing if home.type == "cpu" else needed
        if filled <= RESIDENT_SHARE * free_memory(home):
            break
    else:
        if feed == "auto":
            return StreamStore(images, device=device, workers=workers)
        home = device
    return ResidentStore(images, device=device, home=home, workers=workers, progress=progress)


def resident_bytes(images: Pictures, device: torch.device) -> int:
    """Bytes that holding a split for a device takes, in whichever form it is held."""
    return len(images) * Carrier(images, device).bytes_each


def free_memory(device: torch.device) -> int:
    """Bytes that may be allocated on the device now; on a CPU, what the system calls available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        table = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 2**31  # no such table on this system: a cautious two gigabytes
    kilobytes = next(line.split()[1] for line in table.splitlines() if "MemAvailable" in line)
    return 1024 * int(kilobytes)


def _read(carrier: Carrier, orders: Orders, *, workers: int, pinned: bool) -> Iterator[Held]:
    """Read batches on the host, in order; what goes wrong is raised at the batch it spoils."""
    host = torch.device("cpu")
    if not workers:
        for order in orders:
            batch = carrier.empty(len(order), device=host, pinned=pinned)
            for place, index in enumerate(order.tolist()):
                carrier.read(batch, place, index)
            yield batch
        return
    with _threads(workers) as threads:
        under_way: deque[tuple[Held, list[Future[None]]]] = deque()
        for order in orders:
            batch = carrier.empty(len(order), device=host, pinned=pinned)
            readings = [
                threads.submit(carrier.read, batch, place, index)
                for place, index in enumerate(order.tolist())
            ]
            under_way.append((batch, readings))
            if len(under_way) > AHEAD:
                yield _complete(*under_way.popleft())
        while under_way:
            yield _complete(*under_way.popleft())


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what they have not begun once nobody asks any more."""
    # each decodes a picture of its own: threads of torch's beside it would only wait
    threads = ThreadPoolExecutor(
        count, thread_name_prefix="reading", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield threads
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _complete(batch: Held, readings: Iterable[Future[None]]) -> Held:
    for reading in readings:
        reading.result()
    return batch


def _uploaded(batches: Iterable[Held], device: torch.device) -> Iterator[Held]:
    """Bring batches to the device; an accelerator copies one while it computes on the one before.

    The copies run on a stream of their own. Each is begun before the batch ahead of it is handed
    out, and waited for by the computing stream only.
    """
    if device.type != "cuda":
        yield from batches
        return
    copying = torch.cuda.Stream(device)
    begun: deque[tuple[Held, torch.cuda.Event]] = deque()
    for batch in batches:
        if batch.pixels.device.type == "cuda":
            yield batch
            continue
        with torch.cuda.stream(copying):
            moved = batch.mapped(lambda values: values.to(device, non_blocking=True))
            copied = torch.cuda.Event()
            copied.record(copying)
            begun.append((moved, copied))
        if len(begun) > 1:
            yield _arrived(*begun.popleft(), device)
    while begun:
        yield _arrived(*begun.popleft(), device)


def _arrived(batch: Held, copied: torch.cuda.Event, device: torch.device) -> Held:
    computing = torch.cuda.current_stream(device)
    computing.wait_event(copied)
    for values in (batch.pixels, batch.statistics):
        values.record_stream(computing)  # or its memory would be taken for free too early
    return batch
