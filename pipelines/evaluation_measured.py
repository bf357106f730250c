"""What the maps of a batch of pictures score: one number per measure and picture.

Signed maps are ranked by their positive part, which is what speaks for the class; how simple a map
is, is told by the magnitudes of all of it.

Axes: b batch, m removed (pictures of a batch that pixels are removed from), f fraction, c channel,
h row, w column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from models.inference import InferenceCopy
from models.metrics import (
    FRACTIONS,
    NoisyLinearImputation,
    PerturbationCurve,
    blur_fill,
    perturbation_curve,
    probability,
    right,
    scores,
)
from models.metrics.perturbation import Imputer, Order
from pipelines.config import Fill, Normalisation
from pipelines.evaluation_maps import ATTENTION, CVX, LevelMaps
from pipelines.explain_methods import spread
from pipelines.feed import Pictures, measure, normalise
from pipelines.stores import StreamStore

LOCALISATION = (
    "average_precision",
    "iou_975",
    "iou_950",
    "iou_900",
    "iou_equal_area",
    "pointing_game",
    "mass_inside",
)
COMPLEXITY = ("gini", "group_gini", "sparsity", "entropy")
CONSISTENCY = ("total_variation", "kl_from_coarse", "kl_from_fine", "program_value")
DISTRIBUTIONS = frozenset({ATTENTION, CVX})
"""Methods whose levels are distributions over the same picture."""
PERTURBATION, OPPOSITE = "input_perturbation", "input_perturbation_opposite"
ABOVE_CHANCE = "input_perturbation_above_chance"
BY_PROBABILITY: Mapping[Order, tuple[str, str]] = {
    "ascending": ("insertion", "sufficiency"),
    "descending": ("deletion", "comprehensiveness"),
}
BY_ANSWER: Mapping[Order, str] = {"ascending": PERTURBATION, "descending": OPPOSITE}
RANDOMISED = "randomised_similarity"
ORDERS: tuple[Order, ...] = ("ascending", "descending")
MEAN_OF = 256  # training pictures, evenly spread, that the mean of scored pictures is taken of
Filling = Callable[[Float[Tensor, "m c h w"]], Tensor | Imputer]
Values = dict[str, np.ndarray]
"""Measure -> one number per picture of a batch, NaN where it is not defined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """The network that classifies pictures with removed pixels.

    Attributes
    ----------
    normalisation
        Its own, which may differ from that of the network whose maps are measured.
    fills
        Name -> what is shown in the place of removed pixels.
    exclusive
        Whether a picture is of one class only.
    seed
        Of the order among equal pixels.
    """

    network: InferenceCopy = field(repr=False)
    normalisation: Normalisation = field(repr=False)
    fills: Mapping[str, Filling] = field(repr=False)
    exclusive: bool
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Of some pictures of a batch: the answer at each removed fraction.

    Attributes
    ----------
    heights
        1 where the judge is right and 0 where it is wrong; of label sets the probability of the
        explained class.
    """

    fill: str
    order: Order
    heights: Float[Tensor, "m f"] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What maps of a batch are measured against.

    Attributes
    ----------
    regions
        True regions; None where the data set knows none.
    removed
        Places in the batch of the pictures that pixels are removed from.
    images
        These pictures, as the judge takes them.
    labels, targets
        Of these: the true class, and the one that is explained.
    """

    regions: Bool[Tensor, "b h w"] | None = field(repr=False)
    removed: Int[Tensor, " m"]
    images: Float[Tensor, "m c h w"] = field(repr=False)
    labels: Int[Tensor, " m"]
    targets: Int[Tensor, " m"]


def fillings(
    names: Sequence[Fill], train: Pictures, normalisation: Normalisation, *, device: torch.device
) -> Mapping[str, Filling]:
    """Return what stands for removed pixels, in the units that the judge takes pictures in."""
    known: Mapping[str, Callable[[], Filling]] = {
        "zero": lambda: _constant(_black(normalisation, device)),
        "mean": lambda: _constant(_mean(train, normalisation, device)),
        "blur": lambda: blur_fill,
        "noisy-linear": lambda: _constant(NoisyLinearImputation()),
    }
    return {name: known[name]() for name in names}


def _constant(fill: Tensor | Imputer) -> Filling:
    return lambda _: fill


def _black(normalisation: Normalisation, device: torch.device) -> Float[Tensor, "1 c 1 1"]:
    nothing = torch.zeros((1, len(normalisation.mean), 1, 1), device=device)
    return normalise(nothing, normalisation)


def _mean(
    train: Pictures, normalisation: Normalisation, device: torch.device
) -> Float[Tensor, "1 c 1 1"]:
    """Mean of every channel; 0 where pictures are normalised by it, else measured."""
    if not train.scored:
        return torch.zeros((1, len(normalisation.mean), 1, 1), device=device)
    chosen = [int(train.positions[i]) for i in spread(len(train), MEAN_OF)]
    some = Pictures(
        rows=train.rows,
        labels=train.labels[[*spread(len(train), MEAN_OF)]],
        positions=np.array(chosen, dtype=np.int64),
        size=train.size,
    )
    found = measure(StreamStore(some, device=torch.device("cpu")), len(some))
    return torch.tensor(found.mean, dtype=torch.float32, device=device)[None, :, None, None]


def columns(fills: Sequence[str], *, regions: bool, verify: bool) -> tuple[str, ...]:
    """Name everything that is measured of a map."""
    metrics = [name for order in ORDERS for name in (BY_ANSWER[order], *BY_PROBABILITY[order])]
    return (
        *(LOCALISATION if regions else ()),
        *COMPLEXITY,
        *CONSISTENCY,
        *(f"{name}@{fill}" for fill in fills for name in metrics),
        *((RANDOMISED,) if verify else ()),
    )


def measured_alone(maps: LevelMaps, truth: Truth) -> Values:
    """Measure maps without any network: where they are, and how simple."""
    found = list(scores(COMPLEXITY, maps.values))
    if truth.regions is not None:
        found += scores(LOCALISATION, maps.importance, truth.regions)
    return {score.name: score.per_sample.double().numpy() for score in found}


def measured_together(levels: Sequence[LevelMaps]) -> Values:
    """Measure how far the levels of one method are apart: the largest between neighbours."""
    if len(levels) < 2 or levels[0].method not in DISTRIBUTIONS:
        return {}
    pairs = [scores(CONSISTENCY, fine.values, coarse.values) for fine, coarse in pairwise(levels)]
    return {
        name: torch.stack([pair[i].per_sample for pair in pairs]).amax(0).double().numpy()
        for i, name in enumerate(CONSISTENCY)
    }


def measured_by_removal(maps: LevelMaps, truth: Truth, judge: Judge) -> tuple[Values, list[Curves]]:
    """Remove pixels in the order of the maps, with every filling and in both orders."""
    found: Values = {}
    drawn = []
    if not len(truth.removed):
        return found, drawn
    importance = maps.importance[truth.removed].to(truth.images)
    for fill, filling in judge.fills.items():
        for order in ORDERS:
            curve = perturbation_curve(
                importance,
                truth.images,
                lambda pictures: judge.network(pictures).logits,
                fill=filling(truth.images),
                fractions=FRACTIONS,
                order=order,
                exclusive=judge.exclusive,
                seed=judge.seed,
            )
            values, heights = _read_off(curve, truth, judge)
            found |= {f"{name}@{fill}": _placed(each, maps, truth) for name, each in values.items()}
            drawn.append(Curves(fill=fill, order=order, heights=heights))
    return found, drawn


def _read_off(
    curve: PerturbationCurve, truth: Truth, judge: Judge
) -> tuple[dict[str, Tensor], Float[Tensor, "m f"]]:
    targets, answer = truth.targets, BY_ANSWER[curve.order]
    names = BY_PROBABILITY[curve.order]
    found = {score.name: score.per_sample for score in scores(names, curve, targets)}
    if judge.exclusive:
        found[answer] = scores((answer,), curve, truth.labels)[0].per_sample
        return found, right(curve, truth.labels).double()
    found[answer] = found[names[0]]  # no single class is right: the area under the probability
    return found, probability(curve, targets)


def _placed(values: Float[Tensor, " m"], maps: LevelMaps, truth: Truth) -> np.ndarray:
    whole = torch.full((len(maps.values),), torch.nan, dtype=torch.float64)
    whole[truth.removed] = values.detach().double().cpu()
    return whole.numpy()
