"""What a run will ask of the machine: measured, told, and refused before anything is written."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.networks import build
from pipelines import forecast as forecast_module
from pipelines import train as train_module
from pipelines.assemble import Forward, TrainingData, network_for, open_for_training
from pipelines.config import TrainConfig
from pipelines.errors import MemoryShortError
from pipelines.forecast import Forecast, forecast, within_memory
from pipelines.train import rehearse, train
from preprocessing import atomic_files
from preprocessing.errors import OutputError

pytestmark = pytest.mark.usefixtures("sketched")

CPU = torch.device("cpu")
SMALL = TrainConfig(
    network="resnet10-narrow",
    variant="exact",
    image_size=32,
    epochs=1,
    batch_size=6,
    bootstrap=0,
    workers=0,
)


@pytest.fixture(scope="module")
def opened(blobs: Path) -> TrainingData:
    return open_for_training(blobs, image_size=32)


def predicted(opened: TrainingData, **changes: Any) -> Forecast:
    settings = SMALL.model_copy(update=changes)
    network = network_for(settings, opened.summary)
    if settings.freeze_trunk:
        network.trunk.freeze()
    return forecast(network, settings=settings, data=opened, device=CPU)


class TestActivations:
    @pytest.mark.parametrize("name", ["resnet10-narrow", "unet-encoder-narrow", "vit-narrow"])
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_they_are_those_of_the_whole_batch(self, name: str, precision: str) -> None:
        variant = "baseline" if name == "vit-narrow" else "exact"
        model = build(name, variant=variant, in_channels=1, classes=3, image_size=32)
        forward = Forward(CPU, precision)
        true, _ = forecast_module._dry_pass(model, torch.zeros(16, 1, 32, 32), forward)
        assert forecast_module._reckoned(model, 16, forward)[0] == pytest.approx(true, rel=0.02)

    def test_of_a_known_network_they_are_what_it_must_keep(self) -> None:
        """A linear map keeps its input, a rectifier its output; weights are there anyway."""

        class Known(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.map = nn.Linear(64, 100)

            def forward(self, images: torch.Tensor) -> SimpleNamespace:
                logits = torch.relu(self.map(images.flatten(1)))
                return SimpleNamespace(logits=logits, penalty=logits.new_zeros(()))

        class Plain(Forward):
            def __call__(self, inputs: Any, network: Any) -> Any:
                return network(inputs)

        forward = Plain(CPU, "float32")
        measure = inspect.unwrap(forecast_module._dry_pass)  # of a network that is no classifier
        kept, largest = measure(Known(), torch.ones(2, 1, 8, 8), forward)
        assert (kept, largest) == (4 * 2 * (64 + 100), 4 * 2 * 100)

    def test_a_frozen_trunk_keeps_less(self, opened: TrainingData) -> None:
        free, frozen = predicted(opened), predicted(opened, freeze_trunk=True)
        assert frozen.learning < 0.5 * free.learning
        assert frozen.parameters == free.parameters
        assert frozen.kept_bytes < 0.7 * free.kept_bytes
        assert frozen.disk_bytes < free.disk_bytes

    def test_parts_share_them(self, opened: TrainingData) -> None:
        whole, parts = predicted(opened), predicted(opened, accumulate=3)
        assert parts.kept_bytes == pytest.approx(whole.kept_bytes / 3, rel=0.05)
        assert parts.step_bytes < whole.step_bytes
        assert (whole.batch_size, whole.parts) == (6, 1)
        assert (parts.batch_size, parts.parts) == (6, 3)

    def test_nothing_is_changed(self, opened: TrainingData) -> None:
        model = network_for(SMALL, opened.summary).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = torch.get_rng_state()
        forecast(model, settings=SMALL, data=opened, device=CPU)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not model.training
        assert all(value.grad is None for value in model.parameters())


class TestWhatIsTold:
    def test_numbers_are_those_of_the_network(self, opened: TrainingData) -> None:
        found = predicted(opened)
        model = network_for(SMALL, opened.summary)
        assert found.parameters == found.learning == sum(v.numel() for v in model.parameters())
        assert found.pictures_bytes == (18 + 6) * 32 * 32
        assert predicted(opened, feed="stream").pictures_bytes == 0
        lines = found.lines()
        assert f"{found.parameters:,} parameters" in lines[0]
        assert "for a step of 6 pictures (" in lines[1]
        assert lines[1].endswith("free (cpu)")

    def test_the_batch_is_no_larger_than_the_split(self, opened: TrainingData) -> None:
        assert predicted(opened, batch_size=100).batch_size == 18

    def test_the_disk_is_what_a_run_takes_while_files_are_replaced(
        self, opened: TrainingData, blobs: Path, tmp_path: Path
    ) -> None:
        train(SMALL, data=blobs, run=tmp_path / "run")
        found = predicted(opened)
        large = [(tmp_path / "run" / name) for name in ("best.safetensors", "last.ckpt")]
        taken = 2 * sum(path.stat().st_size for path in large)
        promised = found.disk_bytes - forecast_module.SMALL_FILES
        assert promised == pytest.approx(taken, rel=0.1)
        everything = sum(p.stat().st_size for p in (tmp_path / "run").rglob("*") if p.is_file())
        assert everything < found.disk_bytes

    def test_little_memory_is_warned_of(
        self, opened: TrainingData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(forecast_module, "free_memory", lambda _: 1000)
        found = predicted(opened, accumulate=2)
        assert found.short
        assert found.as_json()["memory_looks_short"]
        assert found.lines()[-1].startswith("memory looks short: lower batch_size")
        assert "pictures in 2 parts (" in found.lines()[1]
        assert found.pictures_bytes == 0  # they are read from the shards, then
        assert predicted(opened, feed="resident").pictures_bytes > 0


class TestDisk:
    @pytest.fixture
    def full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        state = SimpleNamespace(f_bavail=1000, f_frsize=1000, f_files=0, f_favail=0)
        monkeypatch.setattr(atomic_files.os, "statvfs", lambda _: state)

    @pytest.mark.usefixtures("full")
    @pytest.mark.parametrize("begin", [train, rehearse])
    def test_what_does_not_fit_is_refused_before_a_file_is_made(
        self, blobs: Path, tmp_path: Path, begin: Callable[..., Any]
    ) -> None:
        with pytest.raises(OutputError, match=r"about \d+ MB and 1 MB are free") as refusal:
            begin(SMALL, data=blobs, run=tmp_path / "run")
        assert refusal.value.code == "DISK_FULL"
        assert not (tmp_path / "run").exists()

    @pytest.mark.usefixtures("full")
    def test_what_is_there_already_counts(self, opened: TrainingData, tmp_path: Path) -> None:
        found = predicted(opened)
        with pytest.raises(OutputError, match="free some space"):
            forecast_module.refuse_full_disk(found, tmp_path)
        with (tmp_path / "last.ckpt").open("wb") as stream:
            os.truncate(stream.fileno(), found.disk_bytes)
        forecast_module.refuse_full_disk(found, tmp_path)

    def test_a_rehearsal_writes_nothing(self, blobs: Path, tmp_path: Path) -> None:
        assert rehearse(SMALL, data=blobs, run=tmp_path / "run").parts == 1
        assert list(tmp_path.iterdir()) == []


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 5 bytes"),
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes"),
            MemoryError(),
            np.exceptions.__dict__.get("_ArrayMemoryError", MemoryError)(),
        ],
    )
    def test_running_out_names_what_to_lower(self, opened: TrainingData, error: Exception) -> None:
        found = predicted(opened)
        message = (
            r"memory ran out \(memory: about .* for a step of 6 pictures .*\): raise accumulate "
            r"\(now 1\).* batch_size \(now 6\) or image_size \(now 32\), set precision=bfloat16 "
            r"\(now auto\), or feed=stream \(now auto\)"
        )
        with pytest.raises(MemoryShortError, match=message) as refusal, within_memory(SMALL, found):
            raise error
        assert (refusal.value.code, refusal.value.exit_code) == ("OUT_OF_MEMORY", 2)

    @pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x")])
    def test_other_errors_stay(self, error: Exception) -> None:
        with pytest.raises(type(error), match=str(error.args[0])), within_memory(SMALL):
            raise error

    @pytest.mark.parametrize("when", ["forecast", "training"])
    def test_it_is_caught_wherever_a_network_runs(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
    ) -> None:
        original = Forward.__call__

        def hungry(self: Forward, inputs: torch.Tensor, network: nn.Module) -> Any:
            if when == "forecast" or len(inputs) == 6:
                torch.empty(2**60)
            return original(self, inputs, network)

        monkeypatch.setattr(Forward, "__call__", hungry)
        with pytest.raises(MemoryShortError, match="memory ran out") as refusal:
            train(SMALL, data=blobs, run=tmp_path / "run")
        assert ("for a step of 6" in str(refusal.value)) == (when == "training")
        assert (tmp_path / "run").exists() == (when == "training")

    def test_the_run_tells_before_it_begins(self, blobs: Path, tmp_path: Path) -> None:
        told: list[str] = []

        def tell(line: str) -> None:
            assert not (tmp_path / "run").exists()
            told.append(line)

        class Enough(Exception):
            pass

        def stop(*_: Any, **__: Any) -> None:
            raise Enough

        with pytest.MonkeyPatch.context() as during:
            during.setattr(train_module, "_begin", stop)
            with pytest.raises(Enough):
                train(SMALL, data=blobs, run=tmp_path / "run", tell=tell)
        assert [line.split(":")[0] for line in told[1:]] == ["memory", "disk"]
