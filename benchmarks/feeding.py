"""Pictures per second from shards to float batches, against float64 ``.npy`` files.

    python benchmarks/feeding.py [--workers 1 4] [--batches 40] [--turns 5]

Both ways have the same number of workers and take turns in one process; the median ratio is printed
with its quartiles. The plain ways are a ``DataLoader`` over one float64 file for each picture, as
the published code keeps them: once only loaded and turned to float32, and once with what ours does
as well, scores over the brain and resampling. Files are warm: they were just written. From a disk,
ours reads a fortieth of the bytes. Where there is an NVIDIA GPU, batches end there.
"""

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from pipelines.build import build
from pipelines.config import Brats18Config, FdgPetConfig, Normalisation
from pipelines.feed import Pictures, normalise, pictures
from pipelines.stores import ResidentStore, StreamStore
from preprocessing.brats import Sources
from preprocessing.fdg_pet import Sources as PetSources
from preprocessing.phantoms.brats18 import write_brats18
from preprocessing.phantoms.fdg_pet import write_fdg_pet
from preprocessing.shards import open_dataset

BATCH = 16
Batches = Callable[[], Iterator[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Files:
    """One float64 file for each picture, as stored."""

    folder: Path
    count: int
    size: tuple[int, int]
    brain: bool
    whole: bool

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = np.load(self.folder / f"{index}.npy")
        if not self.whole:
            return torch.from_numpy(picture)
        if self.brain:
            picture = _scored(picture)
        values = torch.from_numpy(picture).float()[None]
        return values[0] if values.shape[-2:] == self.size else _resized(values, self.size)


def _scored(picture: np.ndarray) -> np.ndarray:
    brain = (picture != 0).any(axis=0)
    inside = picture[:, brain]
    mean, sd = inside.mean(axis=1), inside.std(axis=1)
    return np.where(brain, (picture - mean[:, None, None]) / sd[:, None, None], 0)


def _resized(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return interpolate(values, size, mode="bilinear", align_corners=False)[0]


class Orders:
    """Endless batches of random pictures."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        while True:
            yield rng.integers(self._count, size=BATCH).tolist()

    def arrays(self) -> Iterator[np.ndarray]:
        """As the stores take them."""
        return (np.array(order, dtype=np.int64) for order in self)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        for title, data, size in _data_sets(Path(name)):
            found = pictures(open_dataset(data), size, labelled=False)
            _write_files(found, data / "files")
            for workers in options.workers:
                ways = _ways(found, data / "files", workers=workers, device=device)
                rates = _in_turns(ways, workers=workers, options=options, device=device)
                _report(f"{title} to {size[0]} pixels, {workers} worker(s), {device.type}", rates)


def _data_sets(folder: Path) -> Iterator[tuple[str, Path, tuple[int, int]]]:
    key = secrets.token_bytes(32)
    write_brats18(folder / "heads", subjects=6, seed=1, mapper=map)
    config = Brats18Config(crossing="label-both", min_half_area=1)
    build("brats18", config, Sources(root=folder / "heads"), out=folder / "brats", key=key)
    for side in (240, 256):
        yield "BraTS, 4 x 240 x 240 int16", folder / "brats", (side, side)
    write_fdg_pet(folder / "bodies", subjects=8, seed=1)
    sources = PetSources(dicom_dir=folder / "bodies", labels=None)
    build("fdg-pet", FdgPetConfig(), sources, out=folder / "pet", key=key)
    yield "PET, 512 x 512 uint8", folder / "pet", (512, 512)


def _write_files(found: Pictures, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for index in range(len(found)):
        np.save(folder / f"{index}.npy", found.stored(index)[0].astype(np.float64))


def _ways(
    found: Pictures, folder: Path, *, workers: int, device: torch.device
) -> dict[str, Batches]:
    channels = found[0].shape[0]
    measured = Normalisation(mean=(0.0,) * channels, sd=(1.0,) * channels)
    count, orders = len(found), Orders(len(found))
    resident = ResidentStore(found, device=device)

    def plain(*, whole: bool) -> Iterator[torch.Tensor]:
        files = Files(folder=folder, count=count, size=found.size, brain=found.scored, whole=whole)
        loader: Any = DataLoader(
            files,  # pyright: ignore[reportArgumentType] - sized and indexable is enough
            batch_sampler=orders,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        return (batch.to(device, non_blocking=True).float() for batch in loader)

    def ours(store: Any) -> Iterator[torch.Tensor]:
        return (normalise(batch, measured) for batch in store.batches(orders.arrays()))

    streamed = StreamStore(found, device=device, workers=workers)
    return {
        ".npy, only loaded": lambda: plain(whole=False),
        ".npy, scored and resampled": lambda: plain(whole=True),
        "shards, streamed": lambda: ours(streamed),
        "shards, resident": lambda: ours(resident),
    }


def _in_turns(
    ways: dict[str, Batches], *, workers: int, options: argparse.Namespace, device: torch.device
) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in ways}
    names, shuffle = list(ways), random.Random(0).shuffle
    for _ in range(options.turns):
        shuffle(names)
        for name in names:
            batches = ways[name]()
            _drawn(batches, 2 * workers + 4, device)  # as many as may be read ahead
            start = time.perf_counter()
            _drawn(batches, options.batches, device)
            rates[name].append(BATCH * options.batches / (time.perf_counter() - start))
            del batches
    return rates


def _drawn(batches: Iterator[torch.Tensor], count: int, device: torch.device) -> None:
    for _ in islice(batches, count):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()


def _report(title: str, rates: dict[str, list[float]]) -> None:
    names = list(rates)
    print(f"\n{title}\n{'':28}{'pictures/s':>10}   of {names[0]:<22} of {names[1]}")
    for name, values in rates.items():
        columns = [f"{median(values):10.0f}"]
        for plain in names[:2]:
            ratios = [ours / theirs for ours, theirs in zip(values, rates[plain], strict=True)]
            low, _, high = quantiles(ratios, n=4)
            columns.append(f"{median(ratios):8.2f} ({low:.2f} to {high:.2f})    ")
        print(f"{name:28}" + "   ".join(columns))


if __name__ == "__main__":
    main()
