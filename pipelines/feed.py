"""Shards to batches.

Axes: b batch, n sample, c channel, h row, w column. Which pictures form batch ``i`` and how each is
changed depends on the seed and on ``i`` alone: training resumes at any iteration, and all stores
of ``pipelines.stores`` (resident in memory, or streamed from the shards) give the same batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from pipelines.augment import augment
from pipelines.brain_boxes import brain_box
from pipelines.config import AugmentConfig, Normalisation
from pipelines.errors import DataError
from pipelines.label_sets import Labels, read_label_sets, task_of
from pipelines.launch import Launch
from preprocessing import brain_scores

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
    labels
        Class of each picture, -1 where it has none; or its label set, where the rows have one.
    positions
        Which rows take part, in the data set's order.
    size
        Rows and columns that every picture is resampled to.
    """

    rows: Rows = field(repr=False)
    labels: Labels = field(repr=False)
    positions: Int64[np.ndarray, " n"]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def subject_ids(self) -> tuple[str, ...]:
        """Pseudonym of each picture's patient."""
        return tuple(self.rows.subject_ids[int(i)] for i in self.positions)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Pseudonym of each picture."""
        return tuple(self.rows.sample_ids[int(i)] for i in self.positions)

    @property
    def scored(self) -> bool:
        """Whether pictures are read as z-scores over the brain."""
        return set(brain_scores.FIELDS) <= set(self.rows.fields)

    def __getitem__(self, index: int) -> Shaped[Tensor, "c h w"]:
        """Read one picture, resampled: in its stored type, or as z-scores over the brain.

        Raises
        ------
        DataError
            ``NOT_FINITE`` where it holds NaN or infinity.
        """
        image, statistics = self.stored(index)
        if statistics is None:
            return resample(torch.from_numpy(np.require(image, requirements="W")), self.size)
        ready = torch.zeros((len(image), *self.size))
        box = brain_box(image, self.size)
        if box is not None:
            mean, sd = statistics
            rows, columns = box.source
            brain = brain_scores.normalised(image[:, rows, columns], brain_mean=mean, brain_sd=sd)
            rows, columns = box.target
            ready[:, rows, columns] = resample(torch.from_numpy(brain), box.size)
        return ready

    def stored(
        self, index: int
    ) -> tuple[Shaped[np.ndarray, "c p q"], Float32[np.ndarray, "2 c"] | None]:
        """Read one picture as it is stored, and the brain's means and standard deviations.

        Raises
        ------
        DataError
            As above.
        """
        place = int(self.positions[index])
        names = ("image", *brain_scores.FIELDS) if self.scored else ("image",)
        row = self.rows.read(place, names)
        image = row["image"]
        _refuse_nonfinite(image)
        if not self.scored:
            return image, None
        statistics = np.stack([row[name] for name in brain_scores.FIELDS])
        if not (np.isfinite(statistics).all() and (statistics[1] > 0).all()):
            raise DataError(
                "BRAIN_SCORES",
                f"the brain of a picture has the mean {statistics[0].tolist()} and the standard "
                f"deviation {statistics[1].tolist()}, by which nothing can be scored: rebuild the "
                "data set",
            )
        return image, statistics


def _refuse_nonfinite(image: Shaped[np.ndarray, "c p q"]) -> None:
    if image.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(image.sum())  # one pass, without memory for a mask
    if suspect and not np.isfinite(image).all():
        raise not_finite()


def not_finite() -> DataError:
    """Return the refusal of a picture."""
    return DataError("NOT_FINITE", "image holds NaN or infinity; rebuild the data set")


def finished(
    stored: Shaped[Tensor, "b c p q"],
    statistics: Float32[Tensor, "b 2 c"] | None,
    *,
    size: tuple[int, int],
) -> Shaped[Tensor, "b c h w"]:
    """Score and resample whole batches as ``Pictures`` does one picture, on an accelerator."""
    if statistics is None:
        return resample(stored, size)
    mean, sd = statistics[..., None, None].unbind(1)
    inside = (stored != 0).any(dim=1, keepdim=True)
    return resample(torch.where(inside, (stored - mean) / sd, 0.0).to(torch.float32), size)


def pictures(rows: Rows, size: tuple[int, int], *, labelled: bool) -> Pictures:
    """Select the rows that have a label (or all) and the size they are resampled to.

    Every row with a label set is labelled: none of the classes is an answer too.

    Raises
    ------
    DataError
        ``BAD_LABELS``, as ``read_label_sets``.
    """
    labels = np.asarray(rows.labels)
    if task_of(rows.fields) == "multi-label":
        positions = np.arange(len(labels), dtype=np.int64)
        return Pictures(
            rows=rows, labels=read_label_sets(rows, positions), positions=positions, size=size
        )
    chosen = np.flatnonzero(labels >= 0) if labelled else np.arange(len(labels))
    positions = chosen.astype(np.int64)
    return Pictures(rows=rows, labels=labels[positions], positions=positions, size=size)


def resample(
    image: Shaped[Tensor, "*b c h w"], size: tuple[int, int]
) -> Shaped[Tensor, "*b c p q"]:
    """Area average to a smaller picture, bilinear to a larger one; the stored type is kept.

    Training and evaluation both pass here: a model never meets a resampling it was not trained on.
    """
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    values = image.to(torch.float32).reshape(-1, *image.shape[-3:])
    if size[0] <= height and size[1] <= width:
        values = functional.interpolate(values, size, mode="area")
    else:
        values = functional.interpolate(values, size, mode="bilinear", align_corners=False)
    values = values.reshape(*image.shape[:-2], *size)
    return values.to(image.dtype) if image.is_floating_point() else values.round().to(image.dtype)


@runtime_checkable
class Store(Protocol):
    """Pictures by index, as one tensor in the stored type."""

    def batches(self, orders: Iterator[Int64[np.ndarray, " b"]]) -> Iterator[Tensor]:
        """Yield "b c h w" for each order."""
        ...


def measure(pixels: Store, count: int, *, scored: bool = False) -> Normalisation:
    """Mean and standard deviation of each channel over the ``count`` pictures of a store.

    Pictures that are scored over the brain already are normalised: theirs are looked at all the
    same, and the mean is 0 and the standard deviation 1, so that nothing is normalised twice.

    Raises
    ------
    DataError
        ``CONSTANT_IMAGES`` where a channel has one value only, ``NOT_FINITE`` for NaN or infinity.
    """
    cells, total, square = 0, 0.0, 0.0
    for batch in pixels.batches(in_order(count, NORMALISATION_BATCH)):
        values = batch.to(torch.float64)
        cells += values.numel() // values.shape[1]
        total = total + values.sum(dim=(0, 2, 3))
        square = square + values.square().sum(dim=(0, 2, 3))
    mean = torch.as_tensor(total) / cells
    sd = (torch.as_tensor(square) / cells - mean.square()).clamp(min=0).sqrt()
    found = _checked(Normalisation(mean=tuple(mean.tolist()), sd=tuple(sd.tolist())))
    if not scored:
        return found
    channels = len(found.mean)
    return Normalisation(mean=(0.0,) * channels, sd=(1.0,) * channels)


def _checked(measured: Normalisation) -> Normalisation:
    if not np.isfinite([*measured.mean, *measured.sd]).all():
        raise not_finite()
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
    values = images.to(torch.float32)
    if not any(measured.mean) and set(measured.sd) == {1.0}:
        return values
    mean = torch.tensor(measured.mean, dtype=torch.float32, device=images.device)
    sd = torch.tensor(measured.sd, dtype=torch.float32, device=images.device)
    # a batch is large: memory for another is only taken where the given one would be written to
    values = values - mean[:, None, None] if values is images else values.sub_(mean[:, None, None])
    return values.div_(sd[:, None, None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which pictures form each training batch, as a function of the iteration.

    Every batch is full: what a whole number of batches leaves over waits for the next epoch's
    order, and a split smaller than a batch is one batch. Where several processes train together,
    ``launch`` says which share of every batch this one takes.

    Raises
    ------
    ValueError
        If draws are to be balanced and ``labels`` are label sets.
    """

    labels: Labels
    batch_size: int
    seed: int
    balanced: bool
    launch: Launch = field(default_factory=Launch)

    def __post_init__(self) -> None:
        if self.balanced and self.labels.ndim > 1:
            raise ValueError(
                "pictures of several classes cannot be drawn balanced by class: give each one "
                "class, or draw them as they come"
            )

    @property
    def width(self) -> int:
        """Pictures per batch, those of all processes together."""
        return min(self.batch_size, len(self.labels))

    @property
    def epoch_length(self) -> int:
        """Batches per epoch."""
        return len(self.labels) // self.width

    @property
    def rows(self) -> slice:
        """Which pictures of a batch are this process's share."""
        return slice(self.launch.rank, None, self.launch.world)

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
        """Yield this process's share of batch after batch without end, from iteration ``start``."""
        iteration = start
        while True:
            epoch, offset = divmod(iteration, self.epoch_length)
            order = self.epoch(epoch)
            for batch in range(offset, self.epoch_length):
                yield order[batch * self.width : (batch + 1) * self.width][self.rows]
            iteration = (epoch + 1) * self.epoch_length


def _repeated(
    rng: np.random.Generator, members: Int64[np.ndarray, " m"], wanted: int
) -> Int64[np.ndarray, " k"]:
    """Draw so many members that none is drawn twice more often than another."""
    rounds = -(-wanted // len(members))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)])[:wanted]


def in_order(count: int, batch_size: int) -> Iterator[Int64[np.ndarray, " b"]]:
    """Every picture once, in batches; the last may be smaller."""
    for start in range(0, count, batch_size):
        yield np.arange(start, min(start + batch_size, count), dtype=np.int64)


class TrainingFeed:
    """Endless augmented batches (of several processes: a share) from a given iteration.

    Iterate it once per run.
    """

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
            generator = augmenting(self._order.seed, iteration)
            ready = augment(
                normalise(images, self._measured),
                self._settings,
                generator=generator,
                among=self._order.width,
                rows=self._order.rows,
            )
            index = torch.from_numpy(order)
            yield {"image": ready, "label": labels[index].to(images.device), "index": index}


def augmenting(seed: int, iteration: int) -> torch.Generator:
    """Return what draws the changes of one batch."""
    words = np.random.SeedSequence([seed, AUGMENT_STREAM, iteration]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))


class EvaluationFeed:
    """Every picture once, in order, unchanged but for normalisation.

    Of several processes each takes ``Launch.positions``, in smaller batches.
    """

    def __init__(
        self,
        pixels: Store,
        labels: Labels,
        *,
        measured: Normalisation,
        batch_size: int,
        launch: Launch | None = None,
    ) -> None:
        self._pixels, self._measured, self._labels = pixels, measured, np.asarray(labels)
        launch = launch or Launch()
        self._positions = launch.positions(len(self._labels))
        self._batch_size = -(-batch_size // launch.world)

    def __len__(self) -> int:
        return -(-len(self._positions) // self._batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        labels = torch.from_numpy(self._labels)
        places = in_order(len(self._positions), self._batch_size)
        start = 0
        for images in self._pixels.batches(self._positions[part] for part in places):
            index = torch.from_numpy(self._positions[start : start + len(images)])
            start += len(images)
            label = labels[index].to(images.device)
            yield {"image": normalise(images, self._measured), "label": label, "index": index}


class StatisticsFeed:
    """Some training pictures, unchanged but for normalisation; the same ones in every epoch.

    Batches are as equal in size as they can be, and none is of one picture unless there is no
    other. Of several processes each takes its share of every batch.
    """

    def __init__(
        self, pixels: Store, order: Order, *, measured: Normalisation, pictures: int
    ) -> None:
        self._pixels, self._order, self._measured = pixels, order, measured
        wanted = max(pictures, order.launch.world) if pictures else 0  # each process needs one
        self._pictures = min(wanted, len(order.labels))

    def __iter__(self) -> Iterator[Float[Tensor, "b c h w"]]:
        rng = np.random.default_rng([self._order.seed, STATISTICS_STREAM])
        chosen = rng.permutation(len(self._order.labels))[: self._pictures]
        batches = -(-len(chosen) // (STATISTICS_BATCHES * self._order.width))
        parts = np.array_split(chosen, batches) if batches else []
        for images in self._pixels.batches(part[self._order.rows] for part in parts):
            yield normalise(images, self._measured)
