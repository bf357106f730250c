"""Where pictures wait for the training: the same batches from anywhere, and typed errors only."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pipelines import stores
from pipelines.carrier import Carrier
from pipelines.errors import DataError
from pipelines.feed import Pictures, in_order, pictures
from pipelines.progress import silent
from pipelines.readers import read_beside
from pipelines.stores import ResidentStore, StreamStore, resident_bytes, store
from preprocessing.errors import ShardError
from preprocessing.shards import open_dataset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Brains:
    """Rows with the statistics of their brains."""

    fields = ("image", "brain_mean", "brain_sd")

    def __init__(self, count: int = 10, dtype: str = "int16") -> None:
        image = np.random.default_rng(0).integers(100, 900, (count, 4, 24, 24))
        image[:, :, :, 15:] = 0
        self.image = image.astype(dtype)
        self.mean = np.full((count, 4), 500, dtype=np.float32)
        self.sd = np.full((count, 4), 230, dtype=np.float32)
        self.labels = np.arange(count) % 2
        self.sample_ids = self.subject_ids = tuple(f"s{i}" for i in range(count))

    def read(self, i: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        row = {"image": self.image[i], "brain_mean": self.mean[i], "brain_sd": self.sd[i]}
        return {name: row[name] for name in names}


def brains(rows: Brains | None = None, side: int = 24) -> Pictures:
    return pictures(rows or Brains(), (side, side), labelled=True)


def orders(count: int, batches: int = 6) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    return iter([rng.integers(count, size=5) for _ in range(batches)])


MAKERS: dict[str, Callable[..., Any]] = {
    "resident": ResidentStore,
    "resident-2": lambda images, device: ResidentStore(images, device=device, workers=2),
    "stream": StreamStore,
    "stream-1": lambda images, device: StreamStore(images, device=device, workers=1),
    "stream-3": lambda images, device: StreamStore(images, device=device, workers=3),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
class TestBatches:
    @pytest.mark.parametrize("side", [24, 16, 32])
    def test_are_the_pictures_asked_for_to_the_bit(self, make: Callable, side: int) -> None:
        images = brains(side=side)
        expected = [torch.stack([images[int(i)] for i in order]) for order in orders(10)]
        found = list(make(images, device=CPU).batches(orders(10)))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

    def test_of_endless_orders_are_read_only_a_little_ahead(self, make: Callable) -> None:
        drawn = []

        def endless() -> Iterator[np.ndarray]:
            while True:
                drawn.append(1)
                yield np.array([0, 1, 2])

        found = list(islice(make(brains(), device=CPU).batches(endless()), 4))
        assert len(found) == 4
        assert len(drawn) <= 4 + stores.AHEAD

    def test_leave_no_thread_or_process_behind(self, make: Callable) -> None:
        batches = make(brains(), device=CPU).batches(orders(10))
        before = threading.active_count()
        next(batches)
        batches.close()
        assert not multiprocessing.active_children()
        assert threading.active_count() == before

    def test_do_not_change_how_many_threads_torch_computes_with(self, make: Callable) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            list(make(brains(side=32), device=CPU).batches(orders(10)))
            assert torch.get_num_threads() == 3
        finally:
            torch.set_num_threads(before)

    def test_of_a_damaged_shard_are_refused_and_the_others_are_not(
        self, make: Callable, make_blobs: Callable[..., Path]
    ) -> None:
        data = make_blobs(counts={"train": 8, "validation": 2, "test": 2}, size=80)
        place = data / "shards" / "train-00000-of-00001.h5"
        with h5py.File(place) as file:
            offset = file["image"].id.get_chunk_info(6).byte_offset
        content = bytearray(place.read_bytes())
        content[offset + 50] ^= 4
        place.write_bytes(content)
        images = pictures(open_dataset(data).split("train"), (80, 80), labelled=True)
        seen = []
        with pytest.raises(ShardError, match="a checksum in it does not match") as caught:
            seen.extend(make(images, device=CPU).batches(in_order(8, 2)))
        assert caught.value.code == "SHARD_CORRUPT"
        if isinstance(make(brains(), device=CPU), StreamStore):
            assert len(seen) == 3

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_never_hold_what_is_no_number(self, make: Callable, bad: float) -> None:
        rows = Brains(dtype="float32")
        rows.image[7, 2, 3, 3] = bad
        with pytest.raises(DataError, match="image holds NaN or infinity") as caught:
            list(make(brains(rows), device=CPU).batches(in_order(10, 4)))
        assert caught.value.code == "NOT_FINITE"


class Deadly(Brains):
    """A row whose reading ends the process, as for want of memory."""

    def read(self, i: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        if i == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i, names)


def test_a_process_that_dies_is_told_with_the_way_out() -> None:
    store = StreamStore(brains(Deadly()), device=CPU, workers=2)
    seen = []
    with pytest.raises(
        DataError, match=r"exit code -9\).*lower workers, or set workers=0"
    ) as caught:
        seen.extend(store.batches(in_order(10, 2)))
    assert caught.value.code == "READER_LOST"
    assert len(seen) <= 3
    assert not multiprocessing.active_children()


def test_orders_may_grow_and_shrink() -> None:
    """A larger one than the first begins with new processes; the batches are the same."""
    images = brains()
    asked = [np.arange(3), np.array([5]), np.arange(8), np.array([], dtype=np.int64), np.arange(2)]
    found = list(StreamStore(images, device=CPU, workers=2).batches(iter(asked)))
    for order, batch in zip(asked, found, strict=True):
        expected = [images[int(i)] for i in order]
        assert len(batch) == len(order)
        assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))


def test_a_split_worth_it_is_read_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """And holds the same."""
    images = brains()
    expected = next(ResidentStore(images, device=CPU).batches(in_order(10, 10)))
    asked = []

    def read(*arguments: Any, **named: Any) -> Iterator[Any]:
        asked.append(named["workers"])
        return read_beside(*arguments, **named)

    monkeypatch.setattr(stores, "WORTH_PROCESSES", 10)
    monkeypatch.setattr(stores, "read_beside", read)
    found = next(ResidentStore(images, device=CPU, workers=2).batches(in_order(10, 10)))
    assert asked == [2]
    assert torch.equal(found, expected)


def test_batches_are_the_callers_own() -> None:
    """Those that come later do not change one that is kept."""
    images = brains()
    found = list(StreamStore(images, device=CPU, workers=2).batches(in_order(10, 2)))
    for start, batch in enumerate(found):
        assert torch.equal(batch[0], images[2 * start])


def test_large_numbers_are_numbers() -> None:
    rows = Brains(dtype="float32")
    rows.image[...] = 3e38  # whose sum is infinite
    assert brains(rows).stored(0)[0].max() > 1e38


@pytest.mark.parametrize(("name", "value"), [("sd", 0), ("sd", np.nan), ("mean", np.inf)])
def test_brains_without_statistics_are_refused(name: str, value: float) -> None:
    rows = Brains()
    getattr(rows, name)[3, 1] = value
    with pytest.raises(DataError, match="by which nothing can be scored") as caught:
        brains(rows)[3]
    assert caught.value.code == "BRAIN_SCORES"


class TestCarrier:
    """What travels to an accelerator; its arithmetic is the same on a CPU."""

    @pytest.mark.parametrize("side", [24, 32, 20])
    def test_pictures_finished_late_are_those_finished_early(self, side: int) -> None:
        images = brains(side=side)
        carrier = Carrier(images, CUDA)
        assert carrier.late
        batch = carrier.empty(10, device=CPU)
        for i in range(10):
            carrier.read(batch, i, i)
        assert batch.pixels.dtype == torch.int16
        early = torch.stack([images[i] for i in range(10)])
        torch.testing.assert_close(carrier.finish(batch), early, rtol=1e-5, atol=1e-5)

    def test_pictures_without_statistics_are_resampled_late(self, blobs: Path) -> None:
        images = pictures(open_dataset(blobs).split("train"), (96, 96), labelled=True)
        carrier = Carrier(images, CUDA)
        batch = carrier.empty(4, device=CPU)
        for i in range(4):
            carrier.read(batch, i, i)
        assert carrier.late
        assert torch.equal(carrier.finish(batch), torch.stack([images[i] for i in range(4)]))

    @pytest.mark.parametrize(
        ("side", "device", "bytes_each"),
        [
            (24, CUDA, 4 * 24 * 24 * 2),
            (96, CUDA, 4 * 24 * 24 * 2),
            (8, CUDA, 4 * 8 * 8 * 4),
            (24, CPU, 4 * 24 * 24 * 4),
        ],
    )
    def test_whichever_is_less_is_held(
        self, side: int, device: torch.device, bytes_each: int
    ) -> None:
        assert resident_bytes(brains(side=side), device) == 10 * bytes_each

    def test_no_pictures_take_nothing(self) -> None:
        rows = Brains()
        rows.labels[:] = -1
        assert resident_bytes(brains(rows), CPU) == 0
        assert list(StreamStore(brains(rows), device=CPU).batches(in_order(0, 4))) == []


class TestAuto:
    @pytest.fixture
    def free(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        found: dict[str, int] = {}
        monkeypatch.setattr(stores, "free_memory", lambda device: found[device.type])
        return found

    def made(self, feed: str, device: torch.device) -> Any:
        return store(brains(), feed=feed, device=device, progress=silent)

    def test_what_fits_is_held(self, free: dict[str, int]) -> None:
        needed = resident_bytes(brains(), CPU)
        free["cpu"] = int(needed / stores.RESIDENT_SHARE) + 1
        assert isinstance(self.made("auto", CPU), ResidentStore)
        free["cpu"] = int(needed / stores.RESIDENT_SHARE) - 1
        assert isinstance(self.made("auto", CPU), StreamStore)

    def test_the_host_holds_what_the_accelerator_cannot(self, free: dict[str, int]) -> None:
        free.update(cuda=0, cpu=10**9)
        assert isinstance(self.made("auto", CUDA), ResidentStore)
        free.update(cuda=0, cpu=0)
        assert isinstance(self.made("auto", CUDA), StreamStore)

    def test_what_is_asked_for_is_done(self, free: dict[str, int]) -> None:
        free["cpu"] = 0
        assert isinstance(self.made("resident", CPU), ResidentStore)
        free["cpu"] = 10**12
        assert isinstance(self.made("stream", CPU), StreamStore)
