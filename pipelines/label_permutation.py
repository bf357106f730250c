"""Labels that belong to other patients: a run that can only learn them by heart.

Maps of such a run show what a method draws where there is nothing to explain.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.2 (data randomisation).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from pipelines.assemble import TrainingData
from pipelines.config import TrainConfig
from pipelines.errors import DataError

PERMUTED = ("train", "validation")
STREAM = 3  # beside those of pipelines.feed, which draw from the same seed
REMARK = (
    "a control, not a classifier: the labels of its training and validation pictures were permuted "
    "among different patients, so it can only have learnt them by heart; test labels are true"
)


def with_chosen_labels(found: TrainingData, settings: TrainConfig) -> TrainingData:
    """Permute the labels of the training and the validation pictures where that is asked for.

    Every picture gets the label, or the label set, of a picture of another patient in its split.
    How often each label occurs stays. The order depends on the seed alone.

    Raises
    ------
    DataError
        ``LABELS_NOT_PERMUTABLE`` where one patient has more than half of a split's pictures.
    """
    if settings.labels == "true":
        return found
    splits = dict(found.splits)
    for number, name in enumerate(PERMUTED):
        rng = np.random.default_rng([settings.seed, STREAM, number])
        order = order_among_patients(splits[name].subject_ids, split=name, rng=rng)
        splits[name] = replace(splits[name], labels=splits[name].labels[order])
    return replace(found, splits=splits, remarks=(*found.remarks, REMARK))


def remarks_on_labels(settings: TrainConfig) -> tuple[str, ...]:
    """Say that a run's labels were permuted; nothing where they are true."""
    return (REMARK,) if settings.labels == "permuted" else ()


def order_among_patients(
    subject_ids: Sequence[str], *, split: str, rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
    """Draw an order in which no picture stands in the place of one of its own patient.

    A random order, in which every picture that is wrong is swapped with one that is drawn from
    those with which both become right; there is one while no patient has more than half of all.

    Parameters
    ----------
    split
        What the pictures are called in the error.

    Raises
    ------
    DataError
        ``LABELS_NOT_PERMUTABLE``.
    """
    _, patients = np.unique(np.asarray(subject_ids, dtype=str), return_inverse=True)
    largest = int(np.bincount(patients).max())
    if 2 * largest > len(patients):
        raise DataError(
            "LABELS_NOT_PERMUTABLE",
            f"one patient has {largest} of the {len(patients)} labelled pictures of the {split} "
            "split, so their labels cannot all go to other patients: build the data set from more "
            "patients, or train with labels=true",
        )
    order = rng.permutation(len(patients)).astype(np.int64)
    for place in np.flatnonzero(patients[order] == patients):
        own = patients[place]
        if patients[order[place]] != own:
            continue  # an earlier swap has mended it
        others = np.flatnonzero((patients[order] != own) & (patients != own))
        other = rng.choice(others)
        order[[place, other]] = order[[other, place]]
    return order
