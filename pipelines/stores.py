"""Where the pictures of a split wait for the training: in memory, or in the shards.

Axes: b batch, c channel, h row, w column. Whatever holds the pictures, however many processes read
them, the batches are the same to the bit.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from pipelines.carrier import Carrier, Held
from pipelines.feed import Pictures, Store, in_order
from pipelines.progress import Progress, silent
from pipelines.readers import read_beside

RESIDENT_SHARE = 0.4  # of the memory that is free: the model and its gradients need the rest
AHEAD = 2  # batches that are being read while one is trained on
READ_BATCH = 64
WORTH_PROCESSES = 4000
"""Pictures from which reading them once is quicker in processes, which take seconds to come up."""

Orders = Iterable[Int64[np.ndarray, " b"]]


class StreamStore:
    """Every batch read from the shards, by ``workers`` processes ahead of the training.

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
        Processes that decode, where there are many pictures.
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
        processes = workers if len(images) >= WORTH_PROCESSES else 0
        for batch in _read(self._carrier, parts, workers=processes, pinned=False):
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
    if workers:
        yield from read_beside(carrier, orders, workers=workers, ahead=AHEAD, pinned=pinned)
        return
    for order in orders:
        batch = carrier.empty(len(order), device=torch.device("cpu"), pinned=pinned)
        for place, index in enumerate(order.tolist()):
            carrier.read(batch, place, index)
        yield batch


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
