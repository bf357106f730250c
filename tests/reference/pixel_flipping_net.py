"""A network small enough that its weights are written down by a formula, and what it is asked."""

import numpy as np
import torch
from torch import nn

SIDE, CLASSES, PICTURES = 6, 3, 4


def toy_network() -> nn.Module:
    """Two layers with weights from sines: the same on every machine."""
    pixels, hidden = SIDE * SIDE, 8
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)
    )
    with torch.no_grad():
        for number, weight in enumerate(network.parameters()):
            values = 0.4 * np.sin(np.arange(weight.numel()) * 1.7 + number)
            weight.copy_(torch.from_numpy(values).view(weight.shape))
    return network.eval()


def toy_pictures() -> np.ndarray:
    """Pictures "n c h w" without a zero."""
    grid = np.arange(PICTURES * SIDE * SIDE, dtype=np.float64)
    return (1.5 + np.cos(grid * 0.37)).reshape(PICTURES, 1, SIDE, SIDE)


def toy_maps() -> np.ndarray:
    """Maps "n h w" without ties."""
    order = (np.arange(PICTURES * SIDE * SIDE) * 0.6180339887) % 1
    return (order - 0.5).reshape(PICTURES, SIDE, SIDE)


def toy_classes() -> np.ndarray:
    """The class of each picture."""
    return np.arange(PICTURES) % CLASSES
