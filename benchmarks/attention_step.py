"""What exact agreement costs a training step, against levels that may disagree.

Run as ``python benchmarks/attention_step.py`` from the root of the repository; ``--device cuda``
where there is one. All variants take turns in one run, in another order each time, so that they see
the same machine; the ratio of each turn to ``unconstrained`` in the same turn is what counts, and
its median is printed with its quartiles. On a processor the process's own time is measured, which
others on the machine disturb less. Arithmetic is counted by torch, forward and backward.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.losses import objective
from models.networks import build

REFERENCE = "unconstrained"
CANDIDATES = {
    "baseline": {},
    REFERENCE: {},
    "value": {},
    "exact-one-pass": {},
    "exact-one-sided": {},
    "exact": {},
    "exact-factored": {},
    "exact-two-pass, detached": {"detached": True},
    "exact-two-pass": {},
    "chain-one-pass": {},
    "chain-factored": {},
    "chain": {},
    "chain-two-pass": {},
}


def main() -> None:
    """Print milliseconds per step and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="resnet18-narrow")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    steps = {name: _step(name, settings, options) for name, settings in CANDIDATES.items()}
    work = {name: _arithmetic(step) for name, step in steps.items()}
    times = _in_turns(list(steps.values()), options.turns, options.device)
    reference = times[list(steps).index(REFERENCE)]
    print(f"{options.network}, batch {options.batch}, {options.size} x {options.size} pixels, ")
    print(f"{options.turns} turns, {options.threads} thread(s), {options.device}")
    print(f"{'variant':18s} {'ms per step':>11s}  {'ratio':>6s} {'quartiles':>15s}  arithmetic")
    for (name, count), seconds in zip(work.items(), times, strict=True):
        ratios = [ours / theirs for ours, theirs in zip(seconds, reference, strict=True)]
        low, _, high = quantiles(ratios, n=4)
        print(
            f"{name:18s} {median(seconds) * 1e3:11.1f}  {median(ratios):6.3f} "
            f"({low:.3f} - {high:.3f})  {count / work[REFERENCE]:10.3f}"
        )


def _step(name: str, settings: dict[str, bool], options: argparse.Namespace) -> Callable[[], None]:
    """One step of training on a batch that is already there."""
    model = build(
        options.network,
        variant=name.split(",")[0],
        in_channels=1,
        classes=2,
        image_size=options.size,
        **settings,
    )
    model = model.to(options.device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), foreach=True)
    images = torch.randn(options.batch, 1, options.size, options.size, device=options.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(options.batch, device=options.device) % 2

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        objective(model(images), labels, alpha=model.default_alpha).loss.backward()
        optimiser.step()

    return step


def _arithmetic(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _in_turns(steps: list[Callable[[], None]], turns: int, device: str) -> list[list[float]]:
    clock = time.process_time if device == "cpu" else time.perf_counter
    for step in steps:
        step()
    order, shuffle = list(range(len(steps))), random.Random(0).shuffle
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(turns):
        shuffle(order)
        for place in order:
            _wait(device)
            start = clock()
            steps[place]()
            _wait(device)
            times[place].append(clock() - start)
    return times


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
