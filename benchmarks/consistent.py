"""What agreement costs: ``consistent`` against two plain softmaxes, forward and backward.

Run as ``python benchmarks/consistent.py`` from the root of the repository; ``--device cuda`` where
there is one. The general solver is the dual Newton method of the tests, for one sample.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.convex import consistent
from tests.reference import convex_oracle

BATCH, FINE, COARSE = 64, 64, 32
REPEATS = 50


def main() -> None:
    """Print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    fine = torch.randn(BATCH, FINE, FINE, generator=generator).to(options.device)
    coarse = torch.randn(BATCH, COARSE, COARSE, generator=generator).to(options.device)
    plain, closed = _interleaved(
        [_step(_two_softmaxes, fine, coarse), _step(consistent, fine, coarse)], options.device
    )
    convolution = _time_convolution(options.device)
    solver = _time_solver(fine[0, :32, :32].cpu(), coarse[0, :16, :16].cpu())
    small = _time_small(fine[:, :32, :32], coarse[:, :16, :16], options.device)
    print(f"batch {BATCH}, {FINE} x {FINE} and {COARSE} x {COARSE}, forward and backward, float32")
    print(f"two softmaxes                        {plain * 1e3:8.2f} ms")
    print(f"consistent                           {closed * 1e3:8.2f} ms  {closed / plain:.1f} x")
    print(f"one 128 to 256 3x3 convolution       {convolution * 1e3:8.2f} ms")
    print(f"consistent / convolution             {closed / convolution:8.4f}")
    print("one sample, 32 x 32 over 16 x 16")
    print(f"consistent (of a batch, with backward) {small * 1e3:6.3f} ms")
    print(f"general convex solver (forward only)   {solver * 1e3:6.0f} ms  {solver / small:.0f} x")


def _two_softmaxes(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    return (
        fine.flatten(1).softmax(1).view_as(fine),
        coarse.flatten(1).softmax(1).view_as(coarse),
    )


def _step(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], fine: Tensor, coarse: Tensor
) -> Callable[[], None]:
    leaves = [fine.clone().requires_grad_(), coarse.clone().requires_grad_()]
    incoming = [torch.randn_like(fine), torch.randn_like(coarse)]

    def step() -> None:
        torch.autograd.grad(function(*leaves), leaves, incoming)

    return step


def _interleaved(
    steps: list[Callable[[], None]], device: str, *, repeats: int = REPEATS
) -> list[float]:
    """Best time of each step, taken in turns so that all see the same machine."""
    best = [float("inf")] * len(steps)
    for _ in range(repeats):
        for index, step in enumerate(steps):
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def _time_convolution(device: str) -> float:
    layer = torch.nn.Conv2d(128, 256, 3, padding=1).to(device)
    features = torch.randn(BATCH, 128, 32, 32, device=device, requires_grad=True)

    def step() -> None:
        layer(features).sum().backward()

    return _interleaved([step], device, repeats=4)[0]


def _time_small(fine: Tensor, coarse: Tensor, device: str) -> float:
    return _interleaved([_step(consistent, fine, coarse)], device)[0] / BATCH


def _time_solver(fine: Tensor, coarse: Tensor) -> float:
    taus = [level.double().flatten().softmax(0).numpy() for level in (fine, coarse)]
    parents = [convex_oracle.block_parents((32, 32), (16, 16))]
    start = time.perf_counter()
    maps = convex_oracle.solve(taus, parents, [1.0, 1.0])
    elapsed = time.perf_counter() - start
    closed = consistent(fine[None].double(), coarse[None].double())
    for ours, theirs in zip(closed, maps, strict=True):
        np.testing.assert_allclose(ours.flatten().numpy(), theirs, rtol=0, atol=1e-9)
    return elapsed


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
