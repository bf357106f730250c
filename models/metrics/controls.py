"""Maps that know nothing of the model, and one that knows everything: what scores are held against.

Axes: b sample, c channel, h row, w column, n training mask.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018 (edges as a map).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from models.errors import MetricError


def uniform_map(shape: tuple[int, int, int]) -> Float[Tensor, "b h w"]:
    """Give every cell the same share; sums to 1 per sample."""
    return torch.full(shape, 1 / (shape[1] * shape[2]))


def random_map(
    shape: tuple[int, int, int], *, generator: torch.Generator
) -> Float[Tensor, "b h w"]:
    """Draw a distribution uniformly from the simplex (flat Dirichlet) for each sample."""
    draws = torch.empty(shape).exponential_(generator=generator)
    return draws / draws.sum((1, 2), keepdim=True)


def centred_gaussian_map(
    shape: tuple[int, int, int], *, spread: float = 0.25
) -> Float[Tensor, "b h w"]:
    """Put a bell over the middle of every picture; sums to 1 per sample.

    Parameters
    ----------
    spread
        Standard deviation as a share of each side.

    Raises
    ------
    MetricError
        If ``spread`` is not positive.
    """
    if not spread > 0:
        raise MetricError("BAD_SPREAD", f"spread is {spread}; a bell has a positive width")
    bells = [
        torch.exp(-(((torch.arange(side) + 0.5) / side - 0.5) ** 2) / (2 * spread**2))
        for side in shape[1:]
    ]
    bell = torch.outer(*bells)
    return (bell / bell.sum()).expand(shape)


def mean_mask_map(masks: Bool[Tensor, "n h w"], samples: int) -> Float[Tensor, "b h w"]:
    """Give every sample the share of the training masks that hold each pixel; sums to 1.

    What can be known of the place without the picture.

    Raises
    ------
    MetricError
        If no mask holds a pixel.
    """
    count = masks.sum(0)
    if not bool(count.any()):
        raise MetricError(
            "NO_TRUE_PIXEL",
            f"none of {len(masks)} training masks holds a pixel; there is no mean place: give the "
            "masks of positive samples",
        )
    return (count / count.sum()).expand(samples, -1, -1)


def edge_map(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Return the magnitude of the Sobel gradient over all channels; zero for a constant picture.

    Pixels beyond the border repeat those on it.
    """
    smooth, slope = (
        torch.tensor(taps, dtype=images.dtype, device=images.device)
        for taps in ((0.25, 0.5, 0.25), (-0.5, 0.0, 0.5))
    )
    kernels = torch.stack([torch.outer(slope, smooth), torch.outer(smooth, slope)])[:, None]
    single = pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    slopes = conv2d(single, kernels).unflatten(0, images.shape[:2])
    return slopes.square().sum((1, 2)).sqrt()


def true_map(mask: Bool[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Return the mask as a map: the upper bound that no map of the model can pass."""
    return mask.float()
