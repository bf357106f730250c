"""Magnetic resonance has no unit: values mean something beside those of the same brain."""

import numpy as np
from jaxtyping import Float32, Shaped

FIELDS = ("brain_mean", "brain_sd")
"""Datasets of a row whose picture is to be read as z-scores."""


def normalised(
    image: Shaped[np.ndarray, "channel row column"],
    *,
    brain_mean: Float32[np.ndarray, " channel"],
    brain_sd: Float32[np.ndarray, " channel"],
) -> Float32[np.ndarray, "channel row column"]:
    """Return z-scores over the brain of the whole volume; the background stays 0.

    This is the normalisation that ``brain_mean`` and ``brain_sd`` of a row are recorded for.
    """
    brain = image[0] != 0
    for channel in image[1:]:
        brain |= channel != 0
    # What is taken off is 0 outside, where nothing then is left to clear.
    scores = image - brain_mean[:, None, None] * brain.astype(np.float32)
    scores /= brain_sd[:, None, None]
    return scores.astype(np.float32, copy=False)
