"""What a training run will ask of the machine: memory for a step, and disk.

Axes: b batch, c channel, h row, w column.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from models.networks import Classifier
from pipelines import run as run_files
from pipelines.assemble import Forward, TrainingData
from pipelines.config import TrainConfig
from pipelines.errors import MemoryShortError
from pipelines.stores import RESIDENT_SHARE, free_memory, resident_bytes
from preprocessing.atomic_files import require_space

DRY_BATCHES = (2, 4)  # batch normalisation needs more than one picture
PICTURE_COPIES = 3  # a batch as stored, normalised and augmented
SMALL_FILES = 8 << 20  # plots, tables, events, predictions
OPTIMIZER_COPIES: Mapping[str, int] = MappingProxyType({"adamw": 2, "adam": 2, "sgd": 1})
"""Optimiser -> numbers that it keeps for each weight that learns."""
SHORT = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will ask of the machine, in bytes.

    Attributes
    ----------
    parameters, learning
        Weights of the network, and how many of them learn.
    batch_size, parts
        Pictures behind one step, and in how many parts they are computed.
    kept_bytes
        Activations that the forward pass of one part keeps for the backward pass.
    step_bytes
        Highest demand of a step: weights, gradients, optimiser, activations, pictures of the batch.
    pictures_bytes
        Training and validation pictures, where they are to be held in memory.
    free_bytes
        Memory of the device that can be had now.
    disk_bytes
        Weights and checkpoint, each beside the one that it replaces.
    """

    device: str
    parameters: int
    learning: int
    batch_size: int
    parts: int
    kept_bytes: int
    step_bytes: int
    pictures_bytes: int
    free_bytes: int
    disk_bytes: int

    @property
    def short(self) -> bool:
        """Whether memory looks too small."""
        return self.step_bytes + self.pictures_bytes > self.free_bytes

    def lines(self) -> tuple[str, ...]:
        """Say it to people."""
        parts = f" in {self.parts} parts" if self.parts > 1 else ""
        found = [
            f"{self.parameters:,} parameters, {self.learning:,} of them learn",
            f"memory: about {_size(self.step_bytes)} for a step of {self.batch_size} pictures"
            f"{parts} ({_size(self.kept_bytes)} of it activations), {_size(self.pictures_bytes)} "
            f"for pictures; {_size(self.free_bytes)} free ({self.device})",
            f"disk: about {_size(self.disk_bytes)}",
        ]
        if self.short:
            found.append("memory looks short: lower batch_size or image_size, raise accumulate")
        return tuple(found)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "memory_looks_short": self.short}


def forecast(
    network: Classifier, *, settings: TrainConfig, data: TrainingData, device: torch.device
) -> Forecast:
    """Measure what forward passes of a few pictures keep, and reckon from it.

    That grows with the number of pictures, beside a constant part: under autocast, copies of the
    weights. The network is given back as it was, and so is the state of random generators.
    """
    pictures = min(settings.batch_size, len(data.splits["train"]))
    part = -(-pictures // settings.accumulate)
    kept, largest = _reckoned(network, part, Forward(device, settings.precision))
    image = 4 * pictures * network.in_channels * network.image_size[0] * network.image_size[1]
    state = _bytes(network.state_dict().values())
    learning = [value for value in network.parameters() if value.requires_grad]
    optimizer = OPTIMIZER_COPIES[settings.optimizer] * _bytes(learning)
    free = free_memory(device)
    # the backward pass holds two gradients of activations at a time
    step = state + _bytes(learning) + optimizer + kept + 2 * largest
    return Forecast(
        device=device.type,
        parameters=sum(value.numel() for value in network.parameters()),
        learning=sum(value.numel() for value in learning),
        batch_size=pictures,
        parts=min(settings.accumulate, pictures),
        kept_bytes=kept,
        step_bytes=step + PICTURE_COPIES * image,
        pictures_bytes=_held(data, settings.feed, device, free=free),
        free_bytes=free,
        disk_bytes=2 * (2 * state + optimizer) + SMALL_FILES,
    )


def refuse_full_disk(found: Forecast, run: Path) -> None:
    """Refuse to begin what the disk cannot hold; nothing is made.

    Raises
    ------
    OutputError
        ``DISK_FULL``.
    """
    there = sum(
        path.stat().st_size
        for name in (run_files.WEIGHTS, run_files.CHECKPOINT)
        if (path := run / name).is_file()
    )
    require_space(run, max(0, found.disk_bytes - there))


@contextmanager
def within_memory(settings: TrainConfig, found: Forecast | None = None) -> Iterator[None]:
    """Name what to lower where memory runs out.

    Raises
    ------
    MemoryShortError
        ``OUT_OF_MEMORY``, in place of whatever torch or Python raised.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_short(error):
            raise
        raise MemoryShortError("OUT_OF_MEMORY", _advice(settings, found)) from None


def _is_short(error: MemoryError | RuntimeError) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return type(error) is RuntimeError and any(words in str(error) for words in SHORT)


def _advice(settings: TrainConfig, found: Forecast | None) -> str:
    size = settings.image_size or "that of the data set"
    told = "" if found is None else f" ({'; '.join(found.lines()[1:2])})"
    return (
        f"memory ran out{told}: raise accumulate (now {settings.accumulate}), which changes the "
        f"least; or lower batch_size (now {settings.batch_size}) or image_size (now {size}), set "
        f"precision=bfloat16 (now {settings.precision}), or feed=stream (now {settings.feed}) "
        "where the pictures themselves do not fit"
    )


class _Kept:
    """Counts the memory of all tensors that a forward pass keeps; shared memory counts once."""

    def __init__(self, known: set[int]) -> None:
        self._known, self.sizes = known, dict[int, int]()

    def pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._known:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return value

    def unpack(self, value: Tensor) -> Tensor:
        return value


def _reckoned(network: Classifier, pictures: int, forward: Forward) -> tuple[int, int]:
    """Bytes that so many pictures keep, and of the largest tensor, on a line through two passes."""
    few, more = DRY_BATCHES
    shape = (network.in_channels, *network.image_size)
    passes = [_dry_pass(network, torch.zeros((b, *shape)), forward) for b in DRY_BATCHES]
    kept, largest = (
        low + round((pictures - few) * (high - low) / (more - few))
        for low, high in zip(*passes, strict=True)
    )
    return kept, largest


def _dry_pass(
    network: Classifier, images: Float[Tensor, "b c h w"], forward: Forward
) -> tuple[int, int]:
    """Bytes kept for a backward pass, and bytes of the largest of them; weights do not count."""
    device = next(network.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        trial = copy.deepcopy(network).train()
        held = [*trial.parameters(), *trial.buffers()]
        kept = _Kept({value.untyped_storage().data_ptr() for value in held})
        ready = images.to(device, memory_format=torch.channels_last)
        with saved_tensors_hooks(kept.pack, kept.unpack):
            found = forward(ready, trial)
            (found.logits.sum() + found.penalty.sum()).backward()
    return sum(kept.sizes.values()), max(kept.sizes.values(), default=0)


def _held(data: TrainingData, feed: str, device: torch.device, *, free: int) -> int:
    """Bytes of the splits that the device's memory is to hold, by the rule of ``stores.store``."""
    if feed == "stream":
        return 0
    sizes = [resident_bytes(data.splits[name], device) for name in ("train", "validation")]
    forced = feed == "resident" and device.type == "cpu"
    return sum(size for size in sizes if forced or size <= RESIDENT_SHARE * free)


def _bytes(values: Any) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 10**9 else f"{count / 1e6:.0f} MB"
