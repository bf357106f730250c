"""Shards to batches.

Axes: b batch, n sample, c channel, h row, w column. Which pictures form batch ``i`` and how each is
changed depends on the seed and on ``i`` alone: training resumes at any iteration, and the two feeds
(resident in memory, or streamed from the shards) give the same batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from pipelines.augment import augment
from pipelines.config import AugmentConfig, Normalisation
from pipelines.errors import DataError
from pipelines.progress import Progress, silent
from preprocessing import brain_scores

RESIDENT_SHARE = 0.4  # of the memory that is free: the model and its gradients need the rest
NORMALISATION_BATCH = 64
STATISTICS_BATCHES = 4  # as large as training batches: nothing is kept for a backward pass
ORDER_STREAM, AUGMENT_STREAM, STATISTICS_STREAM = 0, 1, 2


@runtime_checkable
class Rows(Protocol):
    """What this module asks of a data set view."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class of each row, -1 where it has none."""
        ...

    @property
    def subject_ids(self) -> Sequence[str]:
        """Pseudonym of each row's patient."""
        ...

    @property
    def sample_ids(self) -> Sequence[str]:
        """Pseudonym of each row."""
        ...

    @property
    def fields(self) -> Sequence[str]:
        """Names that ``read`` knows."""
        ...

    def read(self, i: int, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Read only the named fields of one row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The rows of one split that take part, resampled to one size.

    Attributes
    ----------
    rows
        The data set view they come from.
    positions
        Which rows take part, in the data set's order.
    size
        Rows and columns that every picture is resampled to.
    """

    rows: Rows = field(repr=False)
    positions: Int64[np.ndarray, " n"]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class of each picture, -1 where it has none."""
        return np.asarray(self.rows.labels)[self.positions]

    @property
    def subject_ids(self) -> tuple[str, ...]:
        """Pseudonym of each picture's patient."""
        return tuple(self.rows.subject_ids[int(i)] for i in self.positions)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Pseudonym of each picture."""
        return tuple(self.rows.sample_ids[int(i)] for i in self.positions)

    def __getitem__(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Read one picture, resampled: in its stored type, or as z-scores over the brain."""
        place = int(self.positions[index])
        if set(brain_scores.FIELDS) <= set(self.rows.fields):
            row = self.rows.read(place, ("image", *brain_scores.FIELDS))
            image = brain_scores.normalised(**row)
        else:
            image = np.array(self.rows.read(place, ("image",))["image"])
        return resample(torch.from_numpy(image), self.size)


def pictures(rows: Rows, size: tuple[int, int], *, labelled: bool) -> Pictures:
    """Select the rows that have a label (or all) and the size they are resampled to."""
    labels = np.asarray(rows.labels)
    positions = np.flatnonzero(labels >= 0) if labelled else np.arange(len(labels))
    return Pictures(rows=rows, positions=positions.astype(np.int64), size=size)


def resample(image: Shaped[Tensor, "c h w"], size: tuple[int, int]) -> Shaped[Tensor, "c p q"]:
    """Area average to a smaller picture, bilinear to a larger one; the stored type is kept.

    Training and evaluation both pass here: a model never meets a resampling it was not trained on.
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    values = image.to(torch.float32).unsqueeze(0)
    if size[0] <= height and size[1] <= width:
        values = functional.interpolate(values, size, mode="area")
    else:
        values = functional.interpolate(values, size, mode="bilinear", align_corners=False)
    values = values.squeeze(0)
    return values.to(image.dtype) if image.is_floating_point() else values.round().to(image.dtype)


@runtime_checkable
class Store(Protocol):
    """Pictures by index, as one tensor in the stored type."""

    def batches(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> Iterator[Tensor]:
        """Yield "b c h w" for each order."""
        ...


class ResidentStore:
    """A whole split decoded once into one tensor on the device."""

    def __init__(
        self, images: Pictures, *, device: torch.device, progress: Progress = silent
    ) -> None:
        first = images[0]
        self._pixels = torch.empty((len(images), *first.shape), dtype=first.dtype, device=device)
        for i in range(len(images)):
            self._pixels[i] = images[i]
            progress("reading", i + 1, len(images))

    def batches(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> Iterator[Tensor]:
        """Yield "b c h w" for each order."""
        for order in orders:
            yield self._pixels[torch.from_numpy(order).to(self._pixels.device)]


class StreamStore:
    """Every batch read from the shards, by ``workers`` processes ahead of the training."""

    def __init__(self, images: Pictures, *, device: torch.device, workers: int = 0) -> None:
        self._images = images
        self._device = device
        self._workers = workers

    def batches(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> Iterator[Tensor]:
        """Yield "b c h w" for each order."""
        on_cuda = self._device.type == "cuda"
        loader = DataLoader(
            self._images,  # pyright: ignore[reportArgumentType] - sized and indexable is enough
            batch_sampler=_Orders(orders),
            num_workers=self._workers,
            multiprocessing_context="forkserver" if self._workers else None,
            pin_memory=on_cuda,
            generator=torch.Generator(),  # or the loader would draw from the global one
        )
        for batch in loader:
            yield batch.to(self._device, non_blocking=on_cuda)


class _Orders:
    def __init__(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> None:
        self._orders = orders

    def __iter__(self) -> Iterator[list[int]]:
        for order in self._orders:
            yield order.tolist()


def store(
    images: Pictures, *, feed: str, device: torch.device, workers: int = 0, progress: Progress
) -> Store:
    """Hold the pictures in memory where asked, or where ``auto`` finds that they fit."""
    if feed == "resident" or (feed == "auto" and _fits(images, device)):
        return ResidentStore(images, device=device, progress=progress)
    return StreamStore(images, device=device, workers=workers)


def _fits(images: Pictures, device: torch.device) -> bool:
    first = images[0]
    needed = len(images) * first.numel() * first.element_size()
    return needed <= RESIDENT_SHARE * free_memory(device)


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


def measure(pixels: Store, count: int) -> Normalisation:
    """Mean and standard deviation of each channel over the ``count`` pictures of a store.

    Raises
    ------
    DataError
        ``CONSTANT_IMAGES`` where a channel has one value only, ``NOT_FINITE`` for NaN or infinity.
    """
    cells, total, square = 0, 0.0, 0.0
    for batch in pixels.batches(_in_order(count, NORMALISATION_BATCH)):
        values = batch.to(torch.float64)
        cells += values.numel() // values.shape[1]
        total = total + values.sum(dim=(0, 2, 3))
        square = square + values.square().sum(dim=(0, 2, 3))
    mean = torch.as_tensor(total) / cells
    sd = (torch.as_tensor(square) / cells - mean.square()).clamp(min=0).sqrt()
    return _checked(Normalisation(mean=tuple(mean.tolist()), sd=tuple(sd.tolist())))


def _checked(measured: Normalisation) -> Normalisation:
    if not np.isfinite([*measured.mean, *measured.sd]).all():
        raise DataError("NOT_FINITE", "image holds NaN or infinity; rebuild the data set")
    for channel, (mean, sd) in enumerate(zip(measured.mean, measured.sd, strict=True)):
        if sd <= 1e-6 * max(1.0, abs(mean)):
            message = (
                f"channel {channel} of the training images has the value {mean:.6g} everywhere; "
                "there is nothing to learn from: leave the channel out"
            )
            raise DataError("CONSTANT_IMAGES", message)
    return measured


def normalise(
    images: Shaped[Tensor, "b c h w"], measured: Normalisation
) -> Float[Tensor, "b c h w"]:
    """Return float32 pictures with mean 0 and standard deviation 1 over the training split."""
    mean = torch.tensor(measured.mean, dtype=torch.float32, device=images.device)
    sd = torch.tensor(measured.sd, dtype=torch.float32, device=images.device)
    return (images.to(torch.float32) - mean[:, None, None]) / sd[:, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which pictures form each training batch, as a function of the iteration.

    Every batch is full: what a whole number of batches leaves over waits for the next epoch's
    order, and a split smaller than a batch is one batch.
    """

    labels: Int64[np.ndarray, " n"]
    batch_size: int
    seed: int
    balanced: bool

    @property
    def width(self) -> int:
        """Pictures per batch."""
        return min(self.batch_size, len(self.labels))

    @property
    def epoch_length(self) -> int:
        """Batches per epoch."""
        return len(self.labels) // self.width

    def epoch(self, epoch: int) -> Int64[np.ndarray, " m"]:
        """All pictures of one epoch, in order; classes drawn equally often where balanced."""
        rng = np.random.default_rng([self.seed, ORDER_STREAM, epoch])
        wanted = self.epoch_length * self.width
        if not self.balanced:
            return rng.permutation(len(self.labels))[:wanted]
        present = np.unique(self.labels)
        shares = [wanted // len(present)] * len(present)
        for extra in rng.permutation(len(present))[: wanted % len(present)]:
            shares[extra] += 1
        drawn = [
            _repeated(rng, np.flatnonzero(self.labels == label), share)
            for label, share in zip(present, shares, strict=True)
        ]
        return rng.permutation(np.concatenate(drawn))

    def batches(self, start: int) -> Iterator[Int64[np.ndarray, " b"]]:
        """Yield batch after batch without end, from iteration ``start``."""
        iteration = start
        while True:
            epoch, offset = divmod(iteration, self.epoch_length)
            order = self.epoch(epoch)
            for batch in range(offset, self.epoch_length):
                yield order[batch * self.width : (batch + 1) * self.width]
            iteration = (epoch + 1) * self.epoch_length


def _repeated(
    rng: np.random.Generator, members: Int64[np.ndarray, " m"], wanted: int
) -> Int64[np.ndarray, " k"]:
    """Draw so many members that none is drawn twice more often than another."""
    rounds = -(-wanted // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:wanted]


def _in_order(count: int, batch_size: int) -> Iterator[Int64[np.ndarray, " b"]]:
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count), dtype=np.int64)


class TrainingFeed:
    """Endless augmented batches from a given iteration; iterate it once per run."""

    def __init__(
        self,
        pixels: Store,
        order: Order,
        *,
        measured: Normalisation,
        settings: AugmentConfig,
        start: int = 0,
    ) -> None:
        self._pixels, self._order, self._start = pixels, order, start
        self._measured, self._settings = measured, settings

    def __iter__(self) -> Iterator[dict[str, Any]]:
        labels = torch.from_numpy(self._order.labels)
        raw = self._pixels.batches(self._order.batches(self._start))
        orders = self._order.batches(self._start)
        for iteration, (images, order) in enumerate(zip(raw, orders, strict=True), self._start):
            generator = _generator(self._order.seed, iteration)
            ready = augment(normalise(images, self._measured), self._settings, generator=generator)
            index = torch.from_numpy(order)
            yield {"image": ready, "label": labels[index].to(images.device), "index": index}


def _generator(seed: int, iteration: int) -> torch.Generator:
    words = np.random.SeedSequence([seed, AUGMENT_STREAM, iteration]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


class EvaluationFeed:
    """Every picture once, in order, unchanged but for normalisation."""

    def __init__(
        self,
        pixels: Store,
        labels: Int[np.ndarray, " n"],
        *,
        measured: Normalisation,
        batch_size: int,
    ) -> None:
        self._pixels, self._measured, self._batch_size = pixels, measured, batch_size
        self._labels = np.asarray(labels)

    def __len__(self) -> int:
        return -(-len(self._labels) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        labels = torch.from_numpy(self._labels)
        orders = _in_order(len(self._labels), self._batch_size)
        start = 0
        for images in self._pixels.batches(orders):
            index = torch.arange(start, start + len(images))
            start += len(images)
            label = labels[index].to(images.device)
            yield {"image": normalise(images, self._measured), "label": label, "index": index}


class StatisticsFeed:
    """Some training pictures, unchanged but for normalisation; the same ones in every epoch.

    Batches are as equal in size as they can be, and none is of one picture unless there is no
    other.
    """

    def __init__(
        self, pixels: Store, order: Order, *, measured: Normalisation, pictures: int
    ) -> None:
        self._pixels, self._order, self._measured = pixels, order, measured
        self._pictures = min(pictures, len(order.labels))

    def __iter__(self) -> Iterator[Float[Tensor, "b c h w"]]:
        rng = np.random.default_rng([self._order.seed, STATISTICS_STREAM])
        chosen = rng.permutation(len(self._order.labels))[: self._pictures]
        batches = -(-len(chosen) // (STATISTICS_BATCHES * self._order.width))
        parts = np.array_split(chosen, batches) if batches else []
        for images in self._pixels.batches(iter(parts)):
            yield normalise(images, self._measured)
