"""Maps that no network made: what knows nothing, what knows the data set, and the truth itself.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.errors import MetricError
from models.metrics import (
    centred_gaussian_map,
    edge_map,
    random_map,
    true_map,
    uniform_map,
)
from pipelines.evaluation_maps import LevelMaps
from pipelines.evaluation_samples import Samples, regions_of, samples_of
from pipelines.feed import Pictures

RANDOM, TRUE_MASK, MEAN_MASK = "random", "true-mask", "mean-mask"
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What controls are made of, of one batch.

    Attributes
    ----------
    indices
        Of the pictures in the test split.
    """

    indices: tuple[int, ...]
    images: Float[Tensor, "b c h w"] = field(repr=False)
    regions: Bool[Tensor, "b h w"] | None = field(repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Pictures, rows, columns."""
        return len(self.images), self.images.shape[2], self.images.shape[3]


Control = Callable[[Known], Float[Tensor, "b _h _w"]]


def controls_of(samples: Samples, train: Pictures, *, seed: int) -> Mapping[str, Control]:
    """Return the controls that the data set allows.

    Parameters
    ----------
    train
        Training pictures, whose true regions the mean place is taken of.
    seed
        Of the random maps.
    """
    found: dict[str, Control] = {
        RANDOM: lambda known: _random(known, seed),
        "uniform": lambda known: uniform_map(known.shape),
        "gaussian": lambda known: centred_gaussian_map(known.shape),
        "edges": lambda known: edge_map(known.images).cpu(),
    }
    if samples.has_regions:
        place = cache(lambda: _mean_region(samples, train))
        found[MEAN_MASK] = lambda known: place().expand(known.shape)
        found[TRUE_MASK] = _true
    return found


def _random(known: Known, seed: int) -> Float[Tensor, "b h w"]:
    """Draw each picture's map by its own seed, so that batches may be of any size."""
    states = [np.random.SeedSequence([seed, i]).generate_state(1)[0] for i in known.indices]
    generators = [torch.Generator().manual_seed(int(state)) for state in states]
    shape = (1, *known.shape[1:])
    return torch.cat([random_map(shape, generator=generator) for generator in generators])


def _true(known: Known) -> Float[Tensor, "b h w"]:
    regions = torch.zeros(known.shape, dtype=torch.bool) if known.regions is None else known.regions
    return true_map(regions)


def _mean_region(samples: Samples, train: Pictures) -> Float[Tensor, "h w"]:
    """Share of the training regions that hold each pixel, counted batch by batch; sums to 1."""
    size = samples.pictures.size
    same = replace(train, size=size)
    all_of = samples_of(same, samples.classes, perturbed=1)
    count = torch.zeros(size)
    for start in range(0, len(train), BATCH):
        count += regions_of(all_of, range(start, min(start + BATCH, len(train)))).sum(0)
    if not bool(count.any()):
        raise MetricError(
            "NO_TRUE_PIXEL",
            "none of the training pictures has a true region at this size: there is no mean place",
        )
    return count / count.sum()


def control_maps(method: str, control: Control, known: Known) -> list[LevelMaps]:
    """Make a control's maps of a batch.

    Raises
    ------
    MetricError
        ``NO_TRUE_PIXEL`` where the training pictures have no region to take the mean place of.
    """
    return [LevelMaps(method=method, level="", values=control(known))]
