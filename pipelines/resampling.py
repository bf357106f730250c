"""Pictures of another size, and in grey, with numpy alone: worker processes make thumbnails."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, UInt8


def resample(
    image: Float[np.ndarray, "row column"], rows: int, columns: int
) -> Float32[np.ndarray, "{rows} {columns}"]:
    """Resample by linear interpolation, with a kernel as wide as the output pixel when shrinking.

    Pixels are areas: the outer edges of both grids coincide. Never leaves the input's range.
    """
    vertical = _triangle_weights(image.shape[0], rows)
    horizontal = _triangle_weights(image.shape[1], columns)
    return vertical @ image.astype(np.float32) @ horizontal.T


@lru_cache(maxsize=32)
def _triangle_weights(source: int, target: int) -> Float32[np.ndarray, "{target} {source}"]:
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(source))
    weights = np.clip(1 - distance / max(1.0, scale), 0, None)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    weights.flags.writeable = False
    return weights


def inverted_grey(
    suv: Float[np.ndarray, "row column"], suv_max: float
) -> UInt8[np.ndarray, "row column 3"]:
    """Return white at SUV 0 and below, black at ``suv_max`` and above."""
    grey = np.rint(255 * (1 - np.clip(suv / suv_max, 0, 1))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
