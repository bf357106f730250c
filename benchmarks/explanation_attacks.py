"""How far explanations give way to attacks, and what an attack costs beside an explanation.

Run as ``python benchmarks/explanation_attacks.py`` from the root of the repository. Small networks
learn to tell small bright discs from large ones, one for each seed. For every method the top-k
intersection is printed that each attack leaves (mean and standard deviation over the networks),
and for MoreauGrad how much more of it the masked surrogate of its derivative leaves. Processor time
of an attack is given in explanations: it looks once per step, and goes back through the map once.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.explainers import EXPLAINERS, MoreauGrad, SmoothGrad
from models.explanation_attacks import ATTACKS
from models.explanation_limits import Limits
from models.metrics.similarity import top_k_intersection
from models.networks import build

SIDE, LOW, HIGH = 32, -1.5, 3.5
SHORT = {"draws": 8, "most_steps": 20, "tolerance": 1e-2, "batch_size": 64, "rho": 0.3}
METHODS = {
    "gradient": EXPLAINERS["gradient"],
    "gradient-x-input": EXPLAINERS["gradient-x-input"],
    "smoothgrad": SmoothGrad(draws=8),
    "attention": EXPLAINERS["attention"],
    "moreaugrad": MoreauGrad(**SHORT),
    "moreaugrad-sparse": MoreauGrad(eta=5e-3, **SHORT),
    "moreaugrad-group": MoreauGrad(eta=2e-2, patch=4, **SHORT),
}


def main() -> None:
    """Print a table of what is left, and of what it cost."""
    options = _options()
    torch.set_num_threads(options.threads)
    print(f"{options.seeds} networks, {options.count} pictures of {SIDE} x {SIDE}")
    left: dict[tuple[str, str, float], list[float]] = {}
    cost: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        model = _trained(seed, options.steps)
        images, _ = _discs(options.count, torch.Generator().manual_seed(1000 + seed))
        with torch.no_grad():
            target = model(images).logits.argmax(1)
        for name in options.methods:
            _attack(name, model, images, target, options.radii, left, cost)
    _tell(left, cost, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.1])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    return parser.parse_args()


def _discs(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, a bright disc whose size is the class, and a dark one that means nothing."""
    images = torch.rand(count, 1, SIDE, SIDE, generator=generator)
    labels = torch.arange(count) % 2
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for image, label in zip(images, labels.tolist(), strict=True):
        places = torch.randint(5, SIDE - 5, (2, 2), generator=generator)
        bright, dark = ((rows - r) ** 2 + (columns - c) ** 2 for r, c in places.tolist())
        shine = 0.6 + 0.4 * float(torch.rand(1, generator=generator))
        image.mul_(0.5).add_(0.5 * shine * (bright < (3 + 2 * label) ** 2))
        image.mul_(1 - 0.7 * (dark < 16))
    return (images - 0.3) / 0.2, labels


def _trained(seed: int, steps: int) -> nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build("resnet10-narrow", variant="exact", in_channels=1, classes=2, image_size=SIDE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(steps):
        images, labels = _discs(32, generator)
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    images, labels = _discs(200, torch.Generator().manual_seed(99))
    with torch.no_grad():
        right = (model(images).logits.argmax(1) == labels).float().mean()
    print(f"seed {seed}: {float(right):.3f} of new pictures are right", flush=True)
    return model


def _attack(name, model, images, target, radii, left, cost) -> None:  # noqa: ANN001
    explainer = METHODS[name]
    start = time.process_time()
    explainer(model, images, target)
    once = time.process_time() - start
    for attack in ATTACKS:
        if attack == "top-k-masked" and not isinstance(explainer, MoreauGrad):
            continue
        for radius in radii:
            limits = Limits(
                radius=radius * images[0].numel() ** 0.5,
                low=torch.full((1, 1, 1, 1), LOW),
                high=torch.full((1, 1, 1, 1), HIGH),
            )
            start = time.process_time()
            found = ATTACKS[attack](
                explainer, model, images, target, limits=limits, seeds=torch.arange(len(images))
            )
            cost.setdefault((name, attack), []).append((time.process_time() - start) / once)
            alike = top_k_intersection(found.before, found.after).mean()
            left.setdefault((name, attack, radius), []).append(float(alike))


def _tell(left, cost, options) -> None:  # noqa: ANN001
    for radius in options.radii:
        print(f"top-k intersection at a root mean square change of {radius:g} SD")
        for name in options.methods:
            row = [
                f"{attack} {_spread(left[name, attack, radius])} ({mean(cost[name, attack]):.0f}x)"
                for attack in ATTACKS
                if (name, attack, radius) in left
            ]
            print(f"{name:18}", "; ".join(row))
        for name in options.methods:
            if (name, "top-k-masked", radius) in left:
                pairs = zip(
                    left[name, "top-k-masked", radius], left[name, "top-k", radius], strict=True
                )
                overstated = [masked - true for masked, true in pairs]
                print(f"{name:18} left more by the masked surrogate: {_spread(overstated)}")
            if name.startswith("moreaugrad") and "gradient" in options.methods:
                ahead = [
                    one - other
                    for one, other in zip(
                        left[name, "top-k", radius], left["gradient", "top-k", radius], strict=True
                    )
                ]
                print(f"{name:18} ahead of the simple gradient: {_spread(ahead)}")


def _spread(values: list[float]) -> str:
    return f"{mean(values):.3f} +- {stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
