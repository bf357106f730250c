"""Write ``tests/models/golden/quantus.npz``: pixel flipping and ROAD's imputation by quantus 0.6.0.

Run from the root of the repository where quantus can be imported, which the suite does not need:
``python tests/reference/make_quantus_golden.py``. Quantus flips pixels in descending order only;
the ascending curve is its answer to the negated map.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import quantus
from quantus.functions.perturb_func import noisy_linear_imputation

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.reference import pixel_flipping_net as toy  # noqa: E402 - found through the line above


def flipped(maps: np.ndarray) -> np.ndarray:
    """Probability of the class after each pixel "n p", most important first."""
    metric = quantus.PixelFlipping(
        features_in_step=1,
        perturb_baseline=0.0,
        normalise=False,
        abs=False,
        return_auc_per_sample=False,
        disable_warnings=True,
    )
    curves = metric(
        model=toy.toy_network(),
        x_batch=toy.toy_pictures(),
        y_batch=toy.toy_classes(),
        a_batch=maps[:, None],
        channel_first=True,
        softmax=True,
        device="cpu",
    )
    return np.asarray(curves, dtype=np.float64)


def imputed() -> np.ndarray:
    """First picture with the pixels of its least important half filled in, without noise."""
    half = np.argsort(toy.toy_maps()[0].ravel())[: toy.SIDE**2 // 2]
    return noisy_linear_imputation(toy.toy_pictures()[0], half, noise=0.0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    np.savez(
        ROOT / "tests" / "models" / "golden" / "quantus.npz",
        descending=flipped(toy.toy_maps()),
        ascending=flipped(-toy.toy_maps()),
        imputed=imputed(),
    )
