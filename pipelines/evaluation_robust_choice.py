"""What is attacked in an evaluation: which test pictures, by which methods, how far.

Axes: n sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from models.domain import Domain
from models.errors import ModelError, unknown
from models.explainers import EXPLAINERS, Explainer, MoreauGrad, SmoothGrad
from models.metrics.robust_accuracy import Bounded
from models.networks import Classifier
from pipelines.assemble import TrainingData
from pipelines.config import RobustnessConfig
from pipelines.errors import UsageError
from pipelines.evaluation_maps import explainers_of, level_maps
from pipelines.evaluation_runs import EvaluatedRun
from pipelines.evaluation_samples import NONE, Samples, spread_over
from pipelines.robust import domain_of, valid_range
from pipelines.stores import StreamStore

CLEAN, WORST, NOISE, MEAN = "clean", "worst", "noise", "mean"
GRADIENT = "gradient"
NORMS: Mapping[str, Bounded] = MappingProxyType({"linf": "l1", "l2": "l2"})
"""Attack on predictions -> the Fenchel pair whose set it stays in."""
OF_RANGE: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"linf": (0.01, 0.02, 0.05), "l2": (0.5, 1.0)}
)
"""Radii where none are given, in shares of the valid range."""
OF_SCORES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"linf": (0.1, 0.2, 0.5), "l2": (5.0, 10.0)}
)
"""The same in standard deviations of the brain, of which a range has some ten."""
SHORT: Mapping[str, Explainer] = MappingProxyType(
    {
        "smoothgrad": SmoothGrad(draws=8),
        "moreaugrad": MoreauGrad(draws=4, most_steps=10, tolerance=0.05),
        "moreaugrad-sparse": MoreauGrad(eta=5e-3, draws=4, most_steps=10, tolerance=0.05),
        "moreaugrad-group": MoreauGrad(eta=5e-2, patch=14, draws=4, most_steps=10, tolerance=0.05),
    }
)
"""Settings of methods that would take minutes for one attacked picture; others keep theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """Which test pictures are attacked, by their index.

    Attributes
    ----------
    predicted
        Those whose predictions are, and whose maps are described as they are.
    explained
        Those of them whose explanations are.
    """

    predicted: Int64[np.ndarray, " n"]
    explained: Int64[np.ndarray, " m"]


def attacked_samples(samples: Samples, settings: RobustnessConfig, *, seed: int) -> Attacked:
    """Choose pictures of all classes and patients in turn, the same for every run.

    Pictures that show no finding count as a class of their own.
    """
    kinds = np.where(samples.truths == NONE, len(samples.classes), samples.truths)

    def chosen(wanted: int) -> Int64[np.ndarray, " n"]:
        picked = spread_over(kinds, samples.pictures.subject_ids, wanted=wanted, seed=seed)
        return np.flatnonzero(picked).astype(np.int64)

    explained = min(settings.explained, settings.samples)
    return Attacked(predicted=chosen(settings.samples), explained=chosen(explained))


def radii_of(settings: RobustnessConfig, *, scored: bool) -> Mapping[str, tuple[float, ...]]:
    """Return the radii of every attack on predictions.

    Parameters
    ----------
    scored
        Whether pictures are scores over the brain.
    """
    usual = OF_SCORES if scored else OF_RANGE
    given = {"linf": settings.linf_radii, "l2": settings.l2_radii}
    return {name: usual[name] if radii is None else radii for name, radii in given.items()}


def refuse_unknown_methods(methods: Sequence[str]) -> None:
    """Refuse names that are no explainer's.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``.
    """
    for name in methods:
        if name not in EXPLAINERS:
            raise UsageError("UNKNOWN_METHOD", unknown("method under attack", name, EXPLAINERS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What makes maps of one network.

    Attributes
    ----------
    parts
        Explainers with the level of their maps; None where they name levels themselves.
    """

    name: str
    parts: Sequence[tuple[str | None, Explainer]] = field(repr=False)


def methods_on(
    names: Sequence[str],
    network: Classifier,
    image: Float[Tensor, "1 c h w"],
    *,
    batch_size: int,
) -> list[Method]:
    """Return the methods that fit a network, found by trying each on one picture."""
    target = torch.zeros(1, dtype=torch.int64, device=image.device)
    found = []
    for name in names:
        explainer = replace(SHORT.get(name, EXPLAINERS[name]), batch_size=batch_size)
        parts = explainers_of(name, explainer, network)
        try:
            for level, each in parts:
                level_maps(name, level, each, network, (image, target))
        except ModelError:
            continue
        found.append(Method(name=name, parts=parts))
    return found


def domain_for(run: EvaluatedRun, data: TrainingData, *, device: torch.device) -> Domain:
    """Return where pictures can be moved to: the same as in training on a robust objective."""
    train = replace(data.splits["train"], size=run.size)
    valid = valid_range(StreamStore(train, device=torch.device("cpu")), len(train))
    return domain_of(run.config.normalisation, valid, device=device)
