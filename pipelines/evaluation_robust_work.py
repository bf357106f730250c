"""A run under attack: its network, which pictures are attacked, and where they can be moved to.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from models.domain import Domain
from models.networks import Classifier
from pipelines import evaluation_files as files
from pipelines.assemble import TrainingData, pick_device
from pipelines.evaluation_robust_choice import Attacked, Method, attacked_samples, domain_for
from pipelines.evaluation_samples import Samples, batch_at, samples_of
from pipelines.evaluation_work import Unit, loaded
from pipelines.feed import normalise

BATCH = 8
"""Pictures that are attacked at once: fixed, so that no number depends on a setting that only
bounds memory."""


@dataclass(slots=True, kw_only=True)
class Work:
    """A run that is being attacked.

    Attributes
    ----------
    maps
        Method and level -> maps as they are of the pictures whose explanations are attacked.
    failed
        Method -> why it is left out.
    """

    unit: Unit
    samples: Samples
    chosen: Attacked
    network: Classifier = field(repr=False)
    device: torch.device
    domain: Domain = field(repr=False)
    methods: Sequence[Method] = ()
    maps: dict[files.Key, list[np.ndarray]] = field(default_factory=dict, repr=False)
    failed: dict[str, str] = field(default_factory=dict)
    masking: list[dict[str, Any]] = field(default_factory=list, repr=False)


def work_of(unit: Unit, data: TrainingData) -> Work:
    """Load the network, and find out what is attacked."""
    device = pick_device(unit.settings.device)
    samples = samples_of(data.splits["test"], data.summary.classes, perturbed=1)
    samples = samples.resized(unit.run.size)
    return Work(
        unit=unit,
        samples=samples,
        chosen=attacked_samples(samples, unit.settings.robustness, seed=unit.settings.seed),
        network=loaded(unit.run, device),
        device=device,
        domain=domain_for(unit.run, data, device=device),
    )


def images_of(work: Work, indices: Sequence[int] | np.ndarray) -> Float[Tensor, "b c h w"]:
    """Read some pictures, as the network takes them."""
    raw = batch_at(work.samples, [int(i) for i in indices]).raw
    return normalise(raw.to(work.device), work.unit.run.config.normalisation)


def heading(work: Work, index: int) -> dict[str, Any]:
    """Return what every row about a picture begins with."""
    pictures = work.samples.pictures
    place = int(pictures.positions[index])
    return {
        "sample_id": pictures.rows.sample_ids[place],
        "subject_id": pictures.rows.subject_ids[place],
        "label": work.samples.label_names(index),
        "model": work.unit.model,
        "seed": work.unit.run.seed,
    }


def labels_of(work: Work, indices: Sequence[int] | np.ndarray) -> Num[Tensor, "b ..."]:
    """Return a class for each picture, or one 0 or 1 for each picture and finding."""
    labels = np.asarray(work.samples.pictures.labels)[np.asarray(indices)]
    return torch.from_numpy(labels.astype(np.int64)).to(work.device)


def generator_of(work: Work, *words: int) -> torch.Generator:
    """Draw anew for each batch and attack, from the seed."""
    state = np.random.SeedSequence([work.unit.settings.seed, *words]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
