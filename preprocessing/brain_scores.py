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
    brain = np.any(image != 0, axis=0)
    scores = (image - brain_mean[:, None, None]) / brain_sd[:, None, None]
    return np.where(brain, scores, 0).astype(np.float32)
