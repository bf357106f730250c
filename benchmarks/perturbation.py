"""What batches are worth to a perturbation curve: all steps at once against one pass per step.

Run as ``python benchmarks/perturbation.py`` from the root of the repository; ``--device cuda``
where there is one. The pictures are half heads on black, as those of BraTS18 are, unless ``--full``
is given: to remove black from black changes nothing, which is seen and not evaluated. The plain way
ranks each picture once too, then makes and evaluates one perturbed picture after the other. Both
ways take turns in the same process, and their probabilities are compared. To hold: 1.5 times as
fast per picture on a CPU, 10 times on a GPU.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.metrics import FRACTIONS, NoisyLinearImputation, blur_fill, perturbation_curve
from models.metrics.imputation import zero_fill
from models.metrics.perturbation import Forward, removal_ranks
from models.networks import build


def main() -> None:
    """Print milliseconds per picture, their ratio and the greatest difference."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build(
        options.network, variant="baseline", in_channels=4, classes=2, image_size=options.side
    )
    model = model.eval().to(options.device)
    generator = torch.Generator().manual_seed(1)
    shape = (options.count, 4, options.side, options.side)
    images = torch.randn(shape, generator=generator).to(options.device)
    values = _maps(options.count, generator).to(options.device)
    if not options.full:
        images = images * _hemisphere(options.side).to(options.device)
    size = options.batch_size or None
    shown = "full pictures" if options.full else "half heads on black"
    print(
        f"{options.network}, {shown}, {list(shape)}, {len(FRACTIONS)} fractions, {options.device}"
    )
    for name, fill in (
        ("zero", zero_fill(images)),
        ("blur", blur_fill(images)),
        ("noisy linear", NoisyLinearImputation()),
    ):
        _compare(name, fill, model, images, values, options.repeats, size)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="resnet18-narrow")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="pictures without a background")
    return parser.parse_args()


def _maps(count: int, generator: torch.Generator) -> Tensor:
    """Bells of 32 x 32 cells about random places: what an attention map looks like."""
    place = (torch.arange(32) + 0.5) / 32
    centre = 0.3 + 0.4 * torch.rand(2, count, 1, generator=generator)
    down, across = torch.exp(-((place - centre) ** 2) / 0.02)
    return down[:, :, None] * across[:, None, :]


def _hemisphere(side: int) -> Tensor:
    """Mark one half of an ellipse, as a picture of one hemisphere shows it."""
    place = (torch.arange(side) + 0.5) / side - 0.5
    inside = (place[:, None] / 0.45) ** 2 + (place[None] / 0.36) ** 2 < 1
    return inside & (place[None] < 0)


def _compare(
    name: str,
    fill: Tensor | NoisyLinearImputation,
    model: nn.Module,
    images: Tensor,
    values: Tensor,
    repeats: int,
    size: int | None,
) -> None:
    def forward(pictures: Tensor) -> Tensor:
        return model(pictures).logits

    def batched() -> Tensor:
        curve = perturbation_curve(values, images, forward, fill=fill, batch_size=size)
        return curve.probabilities

    def plain() -> Tensor:
        return _plain(values, images, forward, fill)

    apart = (batched() - plain()).abs().max()
    times = [(_seconds(plain), _seconds(batched)) for _ in range(repeats)]
    per_picture = [1e3 * median(ways) / len(images) for ways in zip(*times, strict=True)]
    ratio = median(one / other for one, other in times)
    print(
        f"{name:14s} one pass per step {per_picture[0]:8.1f} ms, batched {per_picture[1]:8.1f} ms "
        f"a picture, {ratio:.2f} times as fast, probabilities differ by {float(apart):.1e}"
    )


def _plain(
    values: Tensor, images: Tensor, forward: Forward, fill: Tensor | NoisyLinearImputation
) -> Tensor:
    found, size = [], (images.shape[2], images.shape[3])
    with torch.no_grad():
        for place, picture in enumerate(images):
            ranks = removal_ranks(values[place][None], size, order="ascending")
            for fraction in FRACTIONS:
                removed = ranks < round(fraction * ranks.numel())
                found.append(forward(_filled(picture[None], removed, fill, place)))
    logits = torch.cat(found).view(len(images), len(FRACTIONS), -1)
    return logits.double().softmax(2)


def _filled(
    picture: Tensor, removed: Tensor, fill: Tensor | NoisyLinearImputation, place: int
) -> Tensor:
    if not isinstance(fill, Tensor):
        return fill(picture, removed)
    own = fill[place][None] if len(fill) > 1 else fill
    return torch.where(removed[:, None], own, picture)


def _seconds(way: Callable[[], Tensor]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
