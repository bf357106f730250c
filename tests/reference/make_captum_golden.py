"""Write ``tests/models/golden/captum.npz``: what captum 0.9.0 says of the networks of the tests.

Run from the root of the repository where captum can be imported, which the suite does not need:
``python tests/reference/make_captum_golden.py``. Where captum raises, its message is kept.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from captum import attr
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.models import captum_nets as nets  # noqa: E402 - found through the line above


def lrp(model):
    """Epsilon rule on all layers, as captum's default is; its activations pass relevance on."""
    return attr.LRP(model)


CASES = {
    "gradient": (nets.Plain(), lambda m, x, t: attr.Saliency(m).attribute(x, t, abs=False)),
    "gradient-x-input": (nets.Plain(), lambda m, x, t: attr.InputXGradient(m).attribute(x, t)),
    "integrated-gradients": (
        nets.Plain(nn.Softplus),
        lambda m, x, t: attr.IntegratedGradients(m).attribute(x, target=t, n_steps=200),
    ),
    "deeplift": (nets.Plain(), lambda m, x, t: attr.DeepLift(m).attribute(x, target=t)),
    "deeplift-residual": (nets.Residual(), lambda m, x, t: attr.DeepLift(m).attribute(x, target=t)),
    "lrp-epsilon": (nets.Plain(bias=False), lambda m, x, t: lrp(m).attribute(x, t)),
    "lrp-epsilon-bias": (nets.Plain(), lambda m, x, t: lrp(m).attribute(x, t)),
    "gradcam": (
        nets.Plain(),
        lambda m, x, t: attr.LayerGradCam(m, m.second).attribute(x, t, relu_attributions=True),
    ),
    "occlusion": (
        nets.Plain(),
        lambda m, x, t: attr.Occlusion(m).attribute(
            x, sliding_window_shapes=(2, 2, 2), strides=(2, 2, 2), target=t
        ),
    ),
    "deeplift-functional": (
        nets.Dense(functional=True),
        lambda m, x, t: attr.DeepLift(m).attribute(x, target=t),
    ),
    "deeplift-shared": (
        nets.Dense(functional=False),
        lambda m, x, t: attr.DeepLift(m).attribute(x, target=t),
    ),
    "lrp-flatten": (nets.flattening(), lambda m, x, t: lrp(m).attribute(x, t)),
    "lrp-residual": (nets.Residual(), lambda m, x, t: lrp(m).attribute(x, t)),
}


def main() -> None:
    found = {}
    for name, (model, explain) in CASES.items():
        try:
            values = explain(nets.settled(model), nets.pictures().requires_grad_(), nets.TARGET)
            found[name] = values.detach().numpy()
        except (RuntimeError, TypeError, AssertionError) as error:
            found[name] = np.asarray(f"{type(error).__name__}: {error}"[:200])
    path = ROOT / "tests" / "models" / "golden"
    path.mkdir(exist_ok=True)
    np.savez_compressed(path / "captum.npz", **found)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
