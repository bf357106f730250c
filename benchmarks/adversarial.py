"""What a robust objective costs a training step, against standard training.

Run as ``python benchmarks/adversarial.py`` from the root of the repository; ``--device cuda`` where
there is one. Steps are those of training itself: batch, attack, forward, backward, optimiser. All
objectives take turns in one run, in another order each time, so that they see the same machine; the
ratio of each turn to ``standard`` in the same turn is what counts, and its median is printed with
its quartiles. On a processor the process's own time is measured, which others on the machine
disturb less.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.networks import build
from pipelines.assemble import Forward, to_device
from pipelines.config import Normalisation, RobustConfig, TrainConfig, ValidRange
from pipelines.feed import Order
from pipelines.handlers import Losses
from pipelines.robust import RobustTraining, domain_of, robust_of
from pipelines.step import Step

REFERENCE = "standard"
HALF = {"weight": 0.5}
CANDIDATES = {
    REFERENCE: {},
    "fgsm": {},
    "elastic": {},
    "group": {},
    "l2": {},
    "fgsm, weight 0.5": HALF,
    "pgd": {},
    "pgd, weight 0.5": HALF,
    "group-iterative": {},
    "l1-penalty": {},
}
MOST = {"fgsm": 2.3, "elastic": 2.3, "group": 2.3, "l2": 2.3, "pgd": 9.0, "group-iterative": 9.0}
NETWORKS = {"unet-encoder-narrow": 64, "resnet18": 128}


def main() -> None:
    """Print milliseconds per step and ratios for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--variant", default="exact")
    parser.add_argument("--network", default="", help="One network in place of both.")
    parser.add_argument("--size", type=int, default=0, help="Side of its pictures.")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    given = {options.network: options.size or 128} if options.network else NETWORKS
    for network, size in given.items():
        _compare(network, size, options)


def _compare(network: str, size: int, options: argparse.Namespace) -> None:
    steps = {
        name: _step(name, settings, network=network, size=size, options=options)
        for name, settings in CANDIDATES.items()
    }
    times = dict(zip(steps, _in_turns(list(steps.values()), options), strict=True))
    print(f"{network}, {options.variant}, batch {options.batch}, {size} x {size} pixels,")
    print(f"{options.turns} turns, {options.threads} thread(s), {options.device}")
    print(f"{'objective':18s} {'ms per step':>11s}  {'ratio':>6s} {'quartiles':>15s}  at most")
    for name, seconds in times.items():
        ratios = [ours / theirs for ours, theirs in zip(seconds, times[REFERENCE], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        most = f"{MOST[name]:5.1f}" if name in MOST else ""
        print(
            f"{name:18s} {median(seconds) * 1e3:11.1f}  {median(ratios):6.3f} "
            f"({low:.3f} - {high:.3f})  {most}"
        )


def _step(
    name: str,
    settings: dict[str, float],
    *,
    network: str,
    size: int,
    options: argparse.Namespace,
) -> Callable[[], None]:
    """One step of training on a batch that is already there."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model = build(network, variant=options.variant, in_channels=1, classes=2, image_size=size)
    model = model.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stubs
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch, 1, size, size, generator=generator).to(device)
    labels = torch.arange(options.batch, device=device) % 2
    losses = Losses(alpha=model.default_alpha, class_weights=None, label_smoothing=0.0)
    forward = Forward(device, options.precision)
    config = TrainConfig(objective=name.split(",")[0], robust=RobustConfig.of(dict(settings)))
    chosen, training = robust_of(config, (size, size)), None
    if chosen.active:
        bytes_given = ValidRange(low=(0.0,), high=(255.0,))
        training = RobustTraining(
            chosen,
            network=model,
            domain=domain_of(Normalisation(mean=(128.0,), sd=(40.0,)), bytes_given, device=device),
            forward=forward,
            losses=losses,
            order=Order(
                labels=np.arange(options.batch) % 2,
                batch_size=options.batch,
                seed=0,
                balanced=False,
            ),
        )
    step = Step(
        parts=1,
        pictures=float(options.batch),
        device=device,
        precision=options.precision,
        robust=training,
    )
    engine = SimpleNamespace(
        prepare_batch=to_device,
        state=SimpleNamespace(device=device, iteration=1, output=None),
        non_blocking=False,
        network=model,
        optimizer=torch.optim.AdamW(model.parameters(), foreach=True),
        inferer=forward,
        loss_function=losses,
        fire_event=lambda _: None,
    )

    def turn() -> None:
        step(engine, {"image": images, "label": labels})

    return turn


def _in_turns(steps: list[Callable[[], None]], options: argparse.Namespace) -> list[list[float]]:
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    for step in steps:
        step()
    order, shuffle = list(range(len(steps))), random.Random(0).shuffle
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(options.turns):
        shuffle(order)
        for place in order:
            _wait(options.device)
            start = clock()
            steps[place]()
            _wait(options.device)
            times[place].append(clock() - start)
    return times


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
