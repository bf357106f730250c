"""What a run answers under attack, and whether the attack can be believed.

Axes: b batch, k class.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.metrics.robust_accuracy import Bounded, logits_at_radii, masking, strong
from pipelines.evaluation_robust_choice import CLEAN, NORMS, radii_of
from pipelines.evaluation_robust_work import (
    BATCH,
    Work,
    generator_of,
    heading,
    images_of,
    labels_of,
)
from pipelines.label_sets import probabilities


def _radii(work: Work) -> Mapping[str, Sequence[float]]:
    return radii_of(work.unit.settings.robustness, scored=work.samples.pictures.scored)


def predicted(work: Work, indices: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the probabilities of a batch as it is, and at the worst point within each radius."""
    settings = work.unit.settings.robustness
    images, labels = images_of(work, indices), labels_of(work, indices)
    with torch.no_grad():
        clean = work.network(images).logits
    yield from _answers(work, indices, clean, (CLEAN, 0.0))
    for number, (attack, pair) in enumerate(NORMS.items()):
        radii = _radii(work)[attack]
        if not radii:
            continue
        found = logits_at_radii(
            work.network,
            images,
            labels,
            radii=[0.0, *radii],
            domain=work.domain,
            attack=partial(strong, pair=pair, steps=settings.steps, restarts=settings.restarts),
            generator=generator_of(work, int(indices[0]), number),
        )
        for radius, logits in zip(radii, found[1:], strict=True):
            yield from _answers(work, indices, logits, (attack, radius))


def _answers(
    work: Work,
    indices: np.ndarray,
    logits: Float[Tensor, "b k"],
    under: tuple[str, float],
) -> Iterator[dict[str, Any]]:
    names = [f"probability_{name}" for name in work.samples.classes]
    shares = probabilities(logits, work.unit.run.config.data.task).tolist()
    for index, row in zip(indices, shares, strict=True):
        condition = {"method": "", "level": "", "attack": under[0], "radius": under[1]}
        yield heading(work, int(index)) | condition | dict(zip(names, row, strict=True))


def masked(work: Work) -> list[dict[str, Any]]:
    """Hold one step and noise against many steps, at the middle radius of each attack.

    A picture of several findings is not right or wrong as a whole: nothing is said of those.
    """
    if not work.samples.exclusive:
        return []
    middles = {name: radii[len(radii) // 2] for name, radii in _radii(work).items() if radii}
    return [_masked_at(work, name, NORMS[name], radius) for name, radius in middles.items()]


def _masked_at(work: Work, attack: str, pair: Bounded, radius: float) -> dict[str, Any]:
    chosen = work.chosen.predicted
    names = ("iterative", "one_step", "noise")
    total = dict.fromkeys(names, 0.0)
    for start in range(0, len(chosen), BATCH):
        indices = chosen[start : start + BATCH]
        found = masking(
            work.network,
            images_of(work, indices),
            labels_of(work, indices),
            radius=radius,
            domain=work.domain,
            generator=generator_of(work, start, len(NORMS)),
            pair=pair,
        )
        for name in names:
            total[name] += getattr(found, name) * len(indices) / len(chosen)
    return {"attack": attack, "radius": radius, **total}
