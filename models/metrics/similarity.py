"""How alike two maps of one picture are: before and after a change that should not matter.

Nothing is known here of the change: an attack, noise, other weights, another seed. One number per
pair; NaN where one of the maps is zero everywhere and the number needs a direction.

Axes: b sample, h row, w column, n cell.

References
----------
Ghorbani, Abid, Zou, "Interpretation of neural networks is fragile", AAAI 2019 (top-k intersection).
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023 (normalised distance, top-k at 40 % of the cells that are not zero).
Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE Trans.
Image Process. 13(4), 2004 (SSIM).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

from models.errors import MetricError, ShapeError

WINDOW, SPREAD = 11, 1.5  # side and standard deviation of the Gaussian window, in cells
LUMINANCE, CONTRAST = 0.01**2, 0.03**2  # constants of Wang et al. for a range of 1


def top_k_intersection(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "_b _h _w"], *, share: float = 0.4
) -> Float[Tensor, " b"]:
    """Share of the first map's k greatest magnitudes that are among the other's k greatest.

    k is ``share`` of the first map's cells that are not zero. Where cells tie at the k-th place,
    each belongs with the same fraction; a map and itself score 1.

    Raises
    ------
    ShapeError
        If the maps have different grids.
    MetricError
        If ``share`` lies outside (0, 1], or a map holds a value that is not finite.
    """
    _check_share(share)
    first, second = (level.abs() for level in _flat(one, other))
    k = share * (first > 0).sum(1).double()
    common = torch.minimum(_membership(first, k), _membership(second, k)).sum(1)
    return common / k


def top_cells(values: Float[Tensor, "b h w"], *, share: float = 0.4) -> Float[Tensor, "b h w"]:
    """Fraction with which each cell is among the greatest magnitudes, as ``top_k_intersection``.

    1 in them and 0 elsewhere, but where cells tie at the last place; it sums to k.

    Raises
    ------
    MetricError
        If ``share`` lies outside (0, 1], or the map holds a value that is not finite.
    """
    _check_share(share)
    sizes = _flat(values, values)[0].abs()
    return _membership(sizes, share * (sizes > 0).sum(1).double()).view_as(values)


def normalised_distance(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "_b _h _w"]
) -> Float[Tensor, " b"]:
    """Euclidean distance of the two maps after each is divided by its norm: 0 alike, 2 opposite.

    Raises
    ------
    ShapeError
        If the maps have different grids.
    MetricError
        If a map holds a value that is not finite.
    """
    first, second = _flat(one, other)
    return (_unit(first) - _unit(second)).norm(dim=1)


def cosine(one: Float[Tensor, "b h w"], other: Float[Tensor, "_b _h _w"]) -> Float[Tensor, " b"]:
    """Cosine of the angle between the two maps: 1 alike, -1 opposite.

    Raises
    ------
    ShapeError, MetricError
        As ``normalised_distance``.
    """
    first, second = _flat(one, other)
    return (_unit(first) * _unit(second)).sum(1)


def structural_similarity(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "_b _h _w"]
) -> Float[Tensor, " b"]:
    """Mean structural similarity (SSIM) of the maps as they are shown, each scaled to [0, 1].

    Over the cells whose Gaussian window of 11 x 11 lies in the map. A constant map is shown as 0.

    Raises
    ------
    ShapeError
        If the maps have different grids.
    MetricError
        If a map is smaller than the window, or holds a value that is not finite.
    """
    first, second = (_shown(level).view_as(one)[:, None] for level in _flat(one, other))
    if min(one.shape[1:]) < WINDOW:
        raise MetricError(
            "MAP_TOO_SMALL",
            f"the maps have {one.shape[1]} x {one.shape[2]} cells and the window {WINDOW} x "
            f"{WINDOW}; upsample them first",
        )
    mean, other_mean = _windowed(first), _windowed(second)
    variance = _windowed(first * first) - mean**2
    other_variance = _windowed(second * second) - other_mean**2
    covariance = _windowed(first * second) - mean * other_mean
    luminance = (2 * mean * other_mean + LUMINANCE) / (mean**2 + other_mean**2 + LUMINANCE)
    structure = (2 * covariance + CONTRAST) / (variance + other_variance + CONTRAST)
    return (luminance * structure).flatten(1).mean(1)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise MetricError("BAD_SHARE", f"share is {share}; it is a share of cells, in (0, 1]")


def _flat(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    if one.shape != other.shape:
        raise ShapeError(
            "GRIDS_DIFFER",
            f"maps of {tuple(one.shape)} and {tuple(other.shape)} cannot be compared cell by cell; "
            "give maps of the same pictures on one grid",
        )
    if not bool(one.isfinite().all() and other.isfinite().all()):
        raise MetricError(
            "MAP_NOT_FINITE", "a map holds NaN or an infinite value; it is like no other"
        )
    return one.double().flatten(1), other.double().flatten(1)


def _membership(sizes: Tensor, k: Tensor) -> Tensor:
    """Fraction with which each cell belongs to the ``k`` greatest."""
    ordered = sizes.sort(dim=1, descending=True).values
    place = (k.ceil().long() - 1).clamp_min(0)[:, None]
    least = ordered.gather(1, place)
    above, tied = sizes > least, sizes == least
    room = k[:, None] - above.sum(1, keepdim=True)
    return above.double() + tied * (room / tied.sum(1, keepdim=True)).clamp(0, 1)


def _unit(flat: Tensor) -> Tensor:
    """Divide by the greatest magnitude first: squares of tiny values are no zeros."""
    greatest = flat.abs().amax(1, keepdim=True)
    scaled = flat / greatest
    return scaled / scaled.norm(dim=1, keepdim=True)


def _shown(flat: Tensor) -> Tensor:
    least, greatest = (found[:, None] for found in flat.aminmax(dim=1))
    return (flat - least) / (greatest - least).where(greatest > least, 1.0)


def _windowed(pictures: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 _h _w"]:
    offset = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    bell = torch.exp(-(offset**2) / (2 * SPREAD**2))
    bell = bell / bell.sum()
    rows = conv2d(pictures, bell.view(1, 1, -1, 1))
    return conv2d(rows, bell.view(1, 1, 1, -1))
