"""What a batch is worth to MoreauGrad: sixteen pictures at once against one at a time.

Run as ``python benchmarks/moreau.py`` from the root of the repository; ``--device cuda`` where
there is one: what holds for a batch there is that it takes at most a fifth of the time per picture.
The defaults of the method are used unless ``--most-steps`` or ``--draws`` say less. Both ways see
as many noisy copies at once as ``--batch-size`` allows, and take turns in the same process.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.explainers import EXPLAINERS, MoreauGrad
from models.networks import build

CUDA_BATCH = 512  # all copies of sixteen pictures
WANTED = {"cpu": 1.0, "cuda": 5.0}  # times as fast per picture


def main() -> None:
    """Print seconds per picture, their ratio and the greatest difference of the maps."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.manual_seed(0)
    model = build(
        options.network, variant="exact", in_channels=4, classes=2, image_size=options.side
    )
    model = model.eval().to(options.device)
    shape = (options.count, 4, options.side, options.side)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(options.device)
    target = torch.arange(options.count, device=options.device) % 2
    size = options.batch_size or (CUDA_BATCH if images.is_cuda else MoreauGrad().batch_size)
    print(f"{options.network}, {list(shape)}, {images.device.type}, {size} copies at once")
    for name in options.methods:
        explainer = EXPLAINERS[name]
        if isinstance(explainer, MoreauGrad):
            explainer = replace(
                explainer, draws=options.draws, most_steps=options.most_steps, batch_size=size
            )
        _compare(name, explainer, model, images, target, repeats=options.repeats)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="resnet10-narrow")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--draws", type=int, default=MoreauGrad().draws)
    parser.add_argument("--most-steps", type=int, default=MoreauGrad().most_steps)
    parser.add_argument("--batch-size", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument(
        "--methods", nargs="+", default=["moreaugrad", "moreaugrad-sparse", "moreaugrad-group"]
    )
    return parser.parse_args()


def _compare(name, explainer, model, images, target, *, repeats) -> None:  # noqa: ANN001
    explainer(model, images[:1], target[:1])  # warm up
    explainer(model, images, target) if images.is_cuda else None
    together_s, alone_s = [], []
    for _ in range(repeats):
        start = _now(images)
        (together,) = explainer(model, images, target)
        middle = _now(images)
        alone = torch.cat(
            [
                explainer(model, images[i : i + 1], target[i : i + 1])[0].values
                for i in range(len(images))
            ]
        )
        together_s.append((middle - start) / len(images))
        alone_s.append((_now(images) - middle) / len(images))
    ratio = median(one / many for one, many in zip(alone_s, together_s, strict=True))
    size = alone.abs().max().clamp_min(1e-30)
    words = [verdict.word for verdict in together.verdicts]
    wanted = WANTED[images.device.type]
    print(
        f"{name:18} batch {median(together_s):7.3f} s, one by one {median(alone_s):7.3f} s "
        f"per picture, ratio {ratio:5.2f} (wanted: {wanted:g}); greatest difference "
        f"{float((together.values - alone).abs().max() / size):.1e} of the greatest value; "
        f"{words.count('sound')} of {len(words)} sound"
    )


def _now(images: torch.Tensor) -> float:
    """Processor time, which neighbours do not change; on a GPU the time that passes."""
    if images.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
