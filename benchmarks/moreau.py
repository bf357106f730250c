"""What a batch is worth to MoreauGrad: sixteen pictures at once against one at a time.

Run as ``python benchmarks/moreau.py`` from the root of the repository; ``--device cuda`` where
there is one. The defaults of the method are used unless ``--most-steps`` or ``--draws`` say less.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.explainers import EXPLAINERS, MoreauGrad
from models.networks import build


def main() -> None:
    """Print seconds per picture, their ratio and the greatest difference of the maps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="resnet10-narrow")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--draws", type=int, default=MoreauGrad().draws)
    parser.add_argument("--most-steps", type=int, default=MoreauGrad().most_steps)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = build(
        options.network, variant="exact", in_channels=4, classes=2, image_size=options.side
    )
    model = model.eval().to(options.device)
    shape = (options.count, 4, options.side, options.side)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(options.device)
    target = torch.arange(options.count, device=options.device) % 2
    for name in ("moreaugrad", "moreaugrad-sparse", "moreaugrad-group"):
        explainer = EXPLAINERS[name]
        if isinstance(explainer, MoreauGrad):
            explainer = replace(explainer, draws=options.draws, most_steps=options.most_steps)
        _compare(name, explainer, model, images, target)


def _compare(name, explainer, model, images, target) -> None:  # noqa: ANN001
    explainer(model, images[:1], target[:1])  # warm up
    start = _now(images)
    (together,) = explainer(model, images, target)
    middle = _now(images)
    alone = torch.cat(
        [
            explainer(model, images[i : i + 1], target[i : i + 1])[0].values
            for i in range(len(images))
        ]
    )
    batch, single = middle - start, _now(images) - middle
    size = alone.abs().max().clamp_min(1e-30)
    words = [verdict.word for verdict in together.verdicts]
    print(
        f"{name:18} batch {batch / len(images):7.3f} s, one by one {single / len(images):7.3f} s "
        f"per picture, ratio {single / batch:5.2f}; greatest difference "
        f"{float((together.values - alone).abs().max() / size):.1e} of the greatest value; "
        f"{words.count('sound')} of {len(words)} sound"
    )


def _now(images: torch.Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
