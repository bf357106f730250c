"""A batch in parts: the gradient of the whole, its own size when clipped, and float16's range."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines import machine, step, training_loop
from pipelines import train as train_module
from pipelines.config import TrainConfig
from pipelines.errors import UsageError
from pipelines.train import train

pytestmark = pytest.mark.usefixtures("sketched")

# a transformer has no batch normalisation; plain descent does not magnify a gradient's last digit
PLAIN = TrainConfig(
    network="vit-narrow", variant="baseline", image_size=32, epochs=1, batch_size=6, bootstrap=0,
    optimizer="sgd", warmup_epochs=0, learning_rate=0.02, gradient_clip=0.5, workers=0,
)  # fmt: skip


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.ckpt", weights_only=True)


class Trained(Exception):
    """Raised where scores and plots would follow, which take longer than the training."""


def weights_after(data: Path, run: Path, **changes: Any) -> dict[str, torch.Tensor]:
    def stop(*_: Any) -> None:
        raise Trained

    with pytest.MonkeyPatch.context() as during:
        during.setattr(train_module, "_conclude", stop)
        with pytest.raises(Trained):
            train(PLAIN.model_copy(update=changes), data=data, run=run)
    return last(run)["network"]


@pytest.fixture(scope="module")
def whole(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return weights_after(blobs, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize("parts", [2, 4, 9])
def test_parts_give_the_weights_of_the_whole(
    blobs: Path, tmp_path: Path, whole: dict[str, torch.Tensor], parts: int
) -> None:
    """Two halves; two of two and two of one; and one picture each."""
    found = weights_after(blobs, tmp_path / "run", accumulate=parts)
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_clipping_acts_on_the_whole(
    blobs: Path, tmp_path: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    original = nn.utils.clip_grad_norm_

    def spy(*given: Any, **named: Any) -> torch.Tensor:
        norms.append(float(original(*given, **named)))
        return torch.tensor(norms[-1])

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", spy)
    weights_after(blobs, tmp_path / "run", accumulate=3)
    assert len(norms) == 3
    assert max(norms) > 0.5  # or nothing was clipped, and the comparison above shows less


def test_resumed_between_steps_it_ends_with_the_same_bytes(blobs: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 2:
            raise Stop

    config = PLAIN.model_copy(update={"accumulate": 4, "checkpoint_iterations": 1})
    train(config, data=blobs, run=tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, data=blobs, run=tmp_path / "cut", progress=stop)
    train(config, data=blobs, run=tmp_path / "cut", resume=True)
    one, other = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_every_optimiser_trains_and_differs(
    blobs: Path, tmp_path: Path, whole: dict[str, torch.Tensor], optimizer: str
) -> None:
    found = weights_after(blobs, tmp_path / "run", optimizer=optimizer, learning_rate=1e-3)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert not torch.equal(found["head.weight"], whole["head.weight"])


class TestFloat16:
    def test_it_trains_with_a_scaled_loss_and_keeps_the_scale(
        self, blobs: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
    ) -> None:
        found = weights_after(blobs, tmp_path / "run", precision="float16")
        assert last(tmp_path / "run")["scaler"]["scale"] == step.FIRST_LOSS_SCALE
        for name, value in whole.items():
            assert (found[name] - value).abs().max() < 0.02, name

    def test_a_step_whose_gradient_overflows_is_left_out(
        self, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original, calls = torch.amp.GradScaler.scale, []

        def overflow(self: Any, loss: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return original(self, loss) * (float("inf") if len(calls) == 2 else 1)

        monkeypatch.setattr(torch.amp.GradScaler, "scale", overflow)
        found = weights_after(blobs, tmp_path / "run", precision="float16")
        assert all(torch.isfinite(value).all() for value in found.values())
        assert last(tmp_path / "run")["scaler"]["scale"] == step.FIRST_LOSS_SCALE / 2


def test_processes_exchange_gradients_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    network = object.__new__(DistributedDataParallel)
    monkeypatch.setattr(DistributedDataParallel, "no_sync", lambda _: nullcontext("apart"))
    for held, last, expected in (
        (network, False, "apart"),
        (network, True, None),
        (nn.Linear(1, 1), False, None),
    ):
        with step._apart(held, synchronised=last) as found:
            assert found == expected


class TestMachine:
    def test_kernels_and_random_state_are_given_back(self) -> None:
        cudnn, before = torch.backends.cudnn, torch.get_rng_state()
        was = (cudnn.deterministic, cudnn.benchmark)
        with machine.reproducible(3, torch.device("cpu"), deterministic=True):
            assert torch.are_deterministic_algorithms_enabled()
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
            torch.rand(3)
        assert not torch.are_deterministic_algorithms_enabled()
        assert (cudnn.deterministic, cudnn.benchmark) == was
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_deterministic_run_trains(
        self, blobs: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
    ) -> None:
        found = weights_after(blobs, tmp_path / "run", deterministic=True)
        assert all(torch.equal(found[name], value) for name, value in whole.items())

    @pytest.mark.parametrize("value", [None, ":0:0"])
    def test_cublas_has_to_be_told_in_time(
        self, value: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(machine.WORKSPACE, raising=False)
        if value:
            monkeypatch.setenv(machine.WORKSPACE, value)
        message = (
            f"which is {value or 'not set'}: start the command with CUBLAS_WORKSPACE_CONFIG=:4096:8"
        )
        strict = machine.reproducible(0, torch.device("cuda"), deterministic=True)
        with pytest.raises(UsageError, match=message) as refusal, strict:
            pass
        assert refusal.value.code == "CUBLAS_WORKSPACE"

    @pytest.mark.parametrize(
        ("device", "triton", "missing"),
        [
            ("cpu", True, r"a C\+\+ compiler \(g\+\+, or the one that CXX names\)"),
            ("cuda", True, "a C compiler"),
            ("cuda", False, "the Python package triton"),
        ],
    )
    def test_no_compiler(
        self, device: str, triton: bool, missing: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine.shutil, "which", lambda _: None)
        monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _: triton or None)
        with pytest.raises(UsageError, match=f"compile=true needs {missing}") as refusal:
            machine.refuse_no_compiler(torch.device(device))
        assert refusal.value.code == "NO_COMPILER"

    def test_a_compiler_that_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []
        monkeypatch.setattr(
            machine.shutil, "which", lambda name: asked.append(name) or f"/bin/{name}"
        )
        machine.refuse_no_compiler(torch.device("cpu"))
        assert asked

    def test_what_is_compiled_trains_the_network_itself(
        self, blobs: Path, tmp_path: Path, whole: dict[str, torch.Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        class Compiled(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self._orig_mod = network

            def forward(self, images: torch.Tensor) -> Any:
                asked.append(self.training)
                return self._orig_mod(images)

        asked: list[bool] = []
        monkeypatch.setattr(training_loop.torch, "compile", Compiled)
        monkeypatch.setattr(machine.shutil, "which", lambda name: f"/bin/{name}")
        found = weights_after(blobs, tmp_path / "run", compile=True)
        assert asked == [True] * 3
        assert all(torch.equal(found[name], value) for name, value in whole.items())
