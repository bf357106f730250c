"""Average precision and IoU over many maps at full size, against scikit-learn and NumPy per map.

Run as ``python benchmarks/localisation.py`` from the root of the repository. The maps have a value
of their own at every one of 256 x 256 pixels: the slowest case, since a map on a coarser grid is
measured there. To hold: 1,000 maps in under 10 seconds on two cores.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.metrics import scores

NAMES = ("average_precision", "iou_975", "iou_950", "iou_900", "iou_equal_area", "pointing_game")
QUANTILES = (0.975, 0.95, 0.90)
AT_ONCE = 20
COMPARED = 20  # maps that the plain way measures


def main() -> None:
    """Print seconds, the ratio and the greatest difference of average precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--grid", type=int, default=0, help="cells on a side of the map")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    grid = options.grid or options.side
    generator = torch.Generator().manual_seed(0)
    spent = used = plain = apart = 0.0
    for start in range(0, options.count, AT_ONCE):
        values = torch.randn(AT_ONCE, grid, grid, generator=generator)
        mask = torch.randn(AT_ONCE, options.side, options.side, generator=generator) > 1.3
        clock, processor = time.perf_counter(), time.process_time()
        found = scores(NAMES, values, mask)[0].per_sample
        spent, used = spent + time.perf_counter() - clock, used + time.process_time() - processor
        if start < COMPARED:
            clock = time.perf_counter()
            precision = [_plainly(*pair) for pair in zip(values, mask, strict=True)]
            plain += time.perf_counter() - clock
            apart = float((found - torch.tensor(precision, dtype=found.dtype)).abs().max())
    ratio = plain / COMPARED * options.count / spent
    print(
        f"{options.count} maps of {grid} x {grid} on {options.side} x {options.side} pixels, "
        f"{options.threads} threads, {len(NAMES)} metrics: {spent:.2f} s ({used:.2f} s of "
        f"processor time), {ratio:.1f} times as fast as scikit-learn and quantiles, "
        f"average precision differs by {apart:.1e}"
    )


def _plainly(values: Tensor, mask: Tensor) -> float:
    rows = torch.arange(mask.shape[0]) * values.shape[0] // mask.shape[0]
    columns = torch.arange(mask.shape[1]) * values.shape[1] // mask.shape[1]
    pixels, true = values[rows][:, columns].flatten().numpy(), mask.flatten().numpy()
    for quantile in QUANTILES:
        chosen = pixels > np.quantile(pixels, quantile)
        _ = (chosen & true).sum() / (chosen | true).sum()
    return float(average_precision_score(true, pixels))


if __name__ == "__main__":
    main()
