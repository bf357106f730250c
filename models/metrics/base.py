"""What a metric is: a pure function with what it takes, its direction and its source.

Axes: b sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Category = Literal["localisation", "consistency", "complexity", "robustness", "faithfulness"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number per sample and what it means.

    Attributes
    ----------
    measure
        ``localisation``: (map, true mask); ``consistency``: (fine map, coarse map);
        ``complexity``: (map); ``robustness``: (map, map after the change); ``faithfulness``:
        (perturbation curve, class of each sample).
    undefined
        When a sample scores NaN; empty where it never does.
    source
        The paper that the number is from.
    ranks
        Whether ``measure`` takes a shared ``ranking`` of the maps.
    """

    measure: Callable[..., Float[Tensor, " b"]]
    higher_is_better: bool
    category: Category
    source: str
    undefined: str = ""
    ranks: bool = False
