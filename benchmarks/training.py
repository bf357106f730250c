"""Steps per second of training from shards, against the same steps on batches already in memory.

    python benchmarks/training.py [--steps 12] [--turns 6] [--threads 1]

A run of ``pipelines.train`` reads shards, augments, and steps inside MONAI's engine with all its
handlers. After each few of its steps, the same number is taken by a twin of its network on one
synthetic batch in a bare loop: forward, loss, backward, clip, optimiser. Both therefore see the
same machine; the median ratio of their rates is printed with its quartiles (to hold: 0.90).
Where there is an NVIDIA GPU, sizes are those of the papers, with pictures per second and the share
of time that the GPU computes; and the step is also written the plain way: float32, no channels
last, ``.npy`` files through a ``DataLoader``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.losses import objective
from pipelines.assemble import Forward, network_for, open_for_training
from pipelines.config import TrainConfig
from pipelines.train import train
from pipelines.workers import keep_freed_memory
from preprocessing.records import Example
from preprocessing.shards import FieldSpec, open_dataset, write_case, write_manifest, write_shard

WARM_UP = 5  # first calls of kernels, and cuDNN's search for the fastest
PLAIN_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network at one size."""

    network: str
    channels: int
    side: int
    dtype: str
    batch: int
    variant: str = "exact"

    @property
    def title(self) -> str:
        """How it is printed."""
        shape = f"{self.channels} x {self.side} x {self.side}"
        return f"{self.network}, {self.variant}, {shape} {self.dtype}, batch {self.batch}"


CPU_CASES = (
    Case(network="resnet10-narrow", channels=4, side=64, dtype="int16", batch=16),
    Case(network="resnet18-narrow", channels=4, side=64, dtype="int16", batch=16),
    Case(network="unet-encoder-narrow", channels=4, side=96, dtype="int16", batch=16),
    Case(network="resnet18", channels=1, side=128, dtype="uint8", batch=16),
)
CUDA_CASES = (
    Case(network="resnet50", channels=1, side=512, dtype="uint8", batch=64),
    Case(network="unet-encoder", channels=4, side=256, dtype="int16", batch=64),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="networks whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{options.threads} threads"
    print(f"{device.type}, {where}, {options.turns} turns of {options.steps} steps")
    for case in CUDA_CASES if device.type == "cuda" else CPU_CASES:
        if options.only in case.network:
            with tempfile.TemporaryDirectory() as folder:
                _measure(case, Path(folder), options, device)
    if device.type == "cpu":
        print("skipped without an NVIDIA GPU: full sizes, the GPU's busy share, the plain step")


def _measure(case: Case, folder: Path, options: argparse.Namespace, device: torch.device) -> None:
    steps = WARM_UP + (options.turns + 1) * options.steps
    _write(case, folder / "data", pictures=steps * case.batch)
    for feed in ("resident", "stream"):
        config = _config(case, feed=feed)
        twin = Twin(config, folder / "data", device=device)
        turns = Turns(twin, steps=options.steps, device=device)
        train(config, data=folder / "data", run=folder / feed, progress=turns)
        rate = case.batch * options.steps / median(turns.inside)
        print(f"{case.title}, {feed}: {_ratio(turns.alone, turns.inside)}, {rate:.1f} pictures/s")
        if device.type == "cpu":
            of_processor = _ratio(turns.processor_alone, turns.processor_inside)
            print(f"    in time of the processor, which others disturb less: {of_processor}")
    if device.type == "cuda":
        print(f"    the GPU computes {turns.busy:.0%} of the time (streamed)")
        print(f"    the plain way: {_plain(case, folder, device):.1f} pictures/s")


def _ratio(alone: list[float], inside: list[float]) -> str:
    ratios = [one / other for one, other in zip(alone, inside, strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _config(case: Case, *, feed: str) -> TrainConfig:
    return TrainConfig(
        network=case.network,
        variant=case.variant,
        epochs=1,
        batch_size=case.batch,
        balance="none",
        feed=feed,
        workers=0 if feed == "resident" else 4,
        statistics_pictures=0,
        bootstrap=0,
    )


class Twin:
    """The same network, loss and optimiser in a bare loop, on one batch in memory."""

    def __init__(self, config: TrainConfig, data: Path, *, device: torch.device) -> None:
        summary = open_for_training(data, image_size=None).summary
        self._network = network_for(config, summary).to(device, memory_format=torch.channels_last)
        self._forward = Forward(device, config.precision)
        self._clip = config.gradient_clip
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=config.learning_rate)
        shape = (config.batch_size, summary.in_channels, *summary.picture_size)
        images = torch.randn(shape, device=device)
        self._images = images.to(memory_format=torch.channels_last)
        self._labels = torch.arange(config.batch_size, device=device) % 2

    def step(self) -> None:
        """Train once."""
        network = self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        prediction = self._forward(self._images, network)
        objective(prediction, self._labels, alpha=network.default_alpha).loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self._clip)
        self._optimizer.step()


@dataclass(kw_only=True)
class _Clock:
    begun: float = 0.0
    processor: float = 0.0
    count: int = -WARM_UP


@dataclass
class Turns:
    """Takes part in a run as its progress: after ``steps`` of its steps, as many of the twin's."""

    twin: Twin
    steps: int = field(kw_only=True)
    device: torch.device = field(kw_only=True)
    inside: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    processor_inside: list[float] = field(default_factory=list)
    processor_alone: list[float] = field(default_factory=list)
    busy: float = 0.0

    def __post_init__(self) -> None:
        self._clock = _Clock()
        self._profile: Any = None
        for _ in range(WARM_UP):
            self.twin.step()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Count a step of the run."""
        if stage != "training":
            return
        self._clock.count += 1
        if self._clock.count == self.steps:
            self.inside.append(self._now() - self._clock.begun)
            self.processor_inside.append(time.process_time() - self._clock.processor)
            start, processor = self._now(), time.process_time()
            for _ in range(self.steps):
                self.twin.step()
            self.alone.append(self._now() - start)
            self.processor_alone.append(time.process_time() - processor)
        if self._clock.count in (0, self.steps):
            self._profiled()
            self._clock = _Clock(begun=self._now(), processor=time.process_time(), count=0)

    def _profiled(self) -> None:
        """Let torch's profiler watch the second turn, and forget that turn's times."""
        if self.device.type != "cuda":
            return
        if self._profile is not None:
            self._profile.stop()
            self.busy, self._profile = _share(self._profile, self.inside.pop()), None
            self.alone.pop()
        elif len(self.inside) == 1 and not self.busy:
            kernels = torch.profiler.ProfilerActivity.CUDA
            self._profile = torch.profiler.profile(activities=[kernels])
            self._profile.start()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _share(profile: Any, seconds: float) -> float:
    """Time in which at least one kernel ran, of the turn's; the twin's steps come after it."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    if not spans:
        return 0.0
    limit, busy, reached = spans[0][0] + seconds * 1e6, 0.0, 0.0
    for start, end in spans:
        begin, end = max(start, reached), min(end, limit)
        busy += max(0.0, end - begin)
        reached = max(reached, end)
    return busy / (seconds * 1e6)


class _Files:
    """One float64 file for each picture."""

    def __init__(self, folder: Path, labels: np.ndarray) -> None:
        self._folder, self._labels = folder, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        values = torch.from_numpy(np.load(self._folder / f"{index % 64}.npy"))
        return (values - values.mean()) / values.std(), int(self._labels[index])


def _plain(case: Case, folder: Path, device: torch.device) -> float:
    """Pictures per second of the step as it is usually written first."""
    rows = open_dataset(folder / "data").split("train")
    files = folder / "files"
    files.mkdir()
    for index in range(64):
        np.save(files / f"{index}.npy", rows.read(index)["image"].astype(np.float64))
    loader: Any = DataLoader(
        _Files(files, rows.labels),  # pyright: ignore[reportArgumentType] - sized and indexable
        batch_size=case.batch,
        num_workers=4,
        drop_last=True,
    )
    config = _config(case, feed="stream")
    network = network_for(config, open_for_training(folder / "data", image_size=None).summary)
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters())
    step = _plain_step(network, optimizer, device)
    return _rate(step, iter(loader), case.batch)


def _plain_step(
    network: Any, optimizer: torch.optim.Optimizer, device: torch.device
) -> Callable[[Tensor, Tensor], None]:
    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        prediction = network(images.float().to(device))
        objective(prediction, labels.to(device), alpha=network.default_alpha).loss.backward()
        optimizer.step()

    return step


def _rate(
    step: Callable[[Tensor, Tensor], None], batches: Iterator[tuple[Tensor, Tensor]], batch: int
) -> float:
    for _ in range(WARM_UP):
        step(*next(batches))
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(PLAIN_STEPS):
        step(*next(batches))
    torch.cuda.synchronize()
    return batch * PLAIN_STEPS / (time.perf_counter() - start)


def _write(case: Case, out: Path, *, pictures: int) -> None:
    """Smooth noise with a label by chance: only the time that it takes is of interest."""
    layout = {"image": FieldSpec((case.channels, case.side, case.side), case.dtype, "noise")}
    rng = np.random.default_rng(0)
    distinct = [_picture(case, rng) for _ in range(16)]
    records = []
    for split, count in {"train": pictures, "validation": case.batch}.items():
        rows = [
            Example(
                sample_id=f"{split}{i:06d}",
                subject_id=f"{split}{i:06d}",
                arrays={"image": distinct[i % len(distinct)]},
                label=i % 2,
            )
            for i in range(count)
        ]
        write_case(out.parent / f"{split}.case", rows, layout=layout)
        cases = [(out.parent / f"{split}.case", i) for i in range(count)]
        records.append(_shard(out, cases, layout, split=split))
    shards: list[Mapping[str, Any]] = records
    write_manifest(out, {"name": "noise", "classes": ["a", "b"], "config": {}, "shards": shards})


def _picture(case: Case, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 200, (case.channels, case.side // 8, case.side // 8))
    fine = np.kron(coarse, np.ones((1, 8, 8), dtype=np.int64))
    return (fine + rng.integers(0, 8, fine.shape)).astype(case.dtype)


def _shard(
    out: Path, cases: list[tuple[Path, int]], layout: Mapping[str, FieldSpec], *, split: str
) -> Mapping[str, Any]:
    record = write_shard(
        out / "shards" / f"{split}-00000-of-00001.h5",
        cases,
        layout=layout,
        split=split,
        name="noise",
        classes=("a", "b"),
        workspace=out.parent,
    )
    return {"file": record.file, "sha256": record.sha256, "rows": record.rows, "split": split}


if __name__ == "__main__":
    main()
