"""Maps that know nothing of the model, and one that knows the boxes, for cases with boxes.

Axes: n case, h row, w column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.metrics import centred_gaussian_map, random_map, uniform_map
from pipelines.box_records import MEAN_BOX, TRUE_BOX
from pipelines.box_truth import BoxCase, MeanBoxes, Size, box_mask

GRID = (14, 14)
"""Of the random map: between DenseNet-121's own grid of 7 x 7 and its finest variants' 28 x 28. A
finer one has smaller specks, and more of them."""
SMOOTH_GRID = (64, 64)
"""Of the bell and of the mean box; each is no finer than the pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What controls are drawn from.

    Attributes
    ----------
    means
        Where boxes of each finding lie on the average.
    frame, grid
        Rows and columns of the stored picture, and of the masks that maps are held against.
    seeds
        For each case, of its random map: however cases are batched, it is the same.
    """

    means: MeanBoxes
    frame: Size
    grid: Size
    seeds: Sequence[int]


def no_finer(grid: Size, frame: Size) -> Size:
    """Return a grid that is no finer than the pictures on either side."""
    return min(grid[0], frame[0]), min(grid[1], frame[1])


def _random(cases: Sequence[int], _: Sequence[BoxCase], known: Knowledge) -> Tensor:
    drawn = [
        random_map(
            (1, *no_finer(GRID, known.frame)),
            generator=torch.Generator().manual_seed(known.seeds[i]),
        )
        for i in cases
    ]
    return torch.cat(drawn)


def _uniform(cases: Sequence[int], _: Sequence[BoxCase], known: Knowledge) -> Tensor:
    return uniform_map((len(cases), 1, 1))


def _gaussian(cases: Sequence[int], _: Sequence[BoxCase], known: Knowledge) -> Tensor:
    return centred_gaussian_map((len(cases), *no_finer(SMOOTH_GRID, known.frame)))


def _mean_box(cases: Sequence[int], held: Sequence[BoxCase], known: Knowledge) -> Tensor:
    means = [known.means.of(held[i]) for i in cases]
    blank = np.full(known.means.grid, np.nan)  # nobody else has such a box
    return torch.from_numpy(np.stack([blank if mean is None else mean for mean in means]))


def _true_box(cases: Sequence[int], held: Sequence[BoxCase], known: Knowledge) -> Tensor:
    masks = [box_mask(held[i].boxes, frame=known.frame, grid=known.grid) for i in cases]
    return torch.from_numpy(np.stack(masks)).float()


CONTROLS: Mapping[str, Callable[[Sequence[int], Sequence[BoxCase], Knowledge], Tensor]] = (
    MappingProxyType(
        {
            "random": _random,
            "uniform": _uniform,
            "centred Gaussian": _gaussian,
            MEAN_BOX: _mean_box,
            TRUE_BOX: _true_box,
        }
    )
)
"""Name of a control -> its maps of some cases; NaN everywhere where there is none."""


def control_maps(
    name: str, cases: Sequence[int], held: Sequence[BoxCase], known: Knowledge
) -> Float[Tensor, "n h w"]:
    """Draw a control for the numbered cases among all that are held."""
    return CONTROLS[name](cases, held, known)
