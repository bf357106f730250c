"""Test pictures batch by batch, with what their maps are measured against.

Axes: n sample, b batch, c channel, h row, w column, k class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped
from torch import Tensor

from pipelines import label_sets
from pipelines.explain_methods import spread
from pipelines.feed import Pictures, resample
from pipelines.run_scores import MASK_SHARE, masks_of

BOXES, MASK = "boxes", "mask"
NONE = -1
"""Target of a picture of which no class can be explained, and class of an unused box."""
Target = Literal["truth", "prediction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The test split at one size.

    Attributes
    ----------
    pictures
        Labelled test pictures.
    classes
        Names; the first is the absence of what the others are, unless a picture may show several.
    truths
        The class that is explained where the truth is: a picture's own, or of a label set the first
        true finding that has a box, or else the first; -1 where there is none.
    removed
        Whether perturbation curves are made of a picture.
    """

    pictures: Pictures = field(repr=False)
    classes: tuple[str, ...]
    truths: Int64[np.ndarray, " n"] = field(repr=False)
    removed: Bool[np.ndarray, " n"] = field(repr=False)

    @property
    def exclusive(self) -> bool:
        """Whether a picture is of one class only."""
        return self.pictures.labels.ndim == 1

    @property
    def has_regions(self) -> bool:
        """Whether the data set knows true regions."""
        return bool({BOXES, MASK} & set(self.pictures.rows.fields))

    def resized(self, size: tuple[int, int]) -> "Samples":
        """Return the same pictures at another size."""
        return replace(self, pictures=replace(self.pictures, size=size))

    def label_names(self, index: int) -> str:
        """Name the true class or classes of a picture."""
        label = self.pictures.labels[index]
        if np.ndim(label):
            return label_sets.SEPARATOR.join(label_sets.names_of(label, self.classes))
        return self.classes[int(label)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some test pictures.

    Attributes
    ----------
    raw
        As the data set holds them, resampled.
    """

    indices: Sequence[int]
    raw: Shaped[Tensor, "b c h w"] = field(repr=False)


def samples_of(
    test: Pictures, classes: tuple[str, ...], *, perturbed: int, seed: int = 0
) -> Samples:
    """Find out what is explained of every test picture, and choose those that are perturbed.

    Parameters
    ----------
    perturbed
        How many; 0 for all.
    """
    truths = _truths(test)
    removed = spread_over(truths, test.subject_ids, wanted=perturbed, seed=seed)
    return Samples(pictures=test, classes=classes, truths=truths, removed=removed)


def _truths(test: Pictures) -> Int64[np.ndarray, " n"]:
    if test.labels.ndim == 1:
        return test.labels.astype(np.int64)
    found = np.full(len(test), NONE, dtype=np.int64)
    for i, shown in enumerate(test.labels == 1):
        boxed = shown & np.isin(np.arange(len(shown)), _boxes(test, i)[:, 0])
        possible = np.flatnonzero(boxed if boxed.any() else shown)
        if len(possible):
            found[i] = possible[0]
    return found


def _boxes(test: Pictures, index: int) -> Float32[np.ndarray, "box 5"]:
    """Class, left, top, width, height of every box of a picture, in stored pixels."""
    if BOXES not in test.rows.fields:
        return np.zeros((0, 5), dtype=np.float32)
    found = test.rows.read(int(test.positions[index]), (BOXES,))[BOXES].astype(np.float32)
    return found[found[:, 0] > NONE]


def spread_over(
    classes: Int64[np.ndarray, " n"], subject_ids: Sequence[str], *, wanted: int, seed: int
) -> Bool[np.ndarray, " n"]:
    """Choose samples of all classes alike, and within a class of as many patients as there are.

    Parameters
    ----------
    classes
        Samples of class -1 are never chosen.
    wanted
        How many; 0, or more than there are, for all.
    """
    chosen = np.zeros(len(classes), dtype=bool)
    names = np.unique(classes[classes > NONE])
    left = int((classes > NONE).sum())
    left = min(wanted, left) if wanted else left
    turns = [_in_turn(np.flatnonzero(classes == name), subject_ids, seed=seed) for name in names]
    for rest, turn in zip(range(len(turns), 0, -1), sorted(turns, key=len), strict=True):
        share = min(len(turn), left // rest)  # what small classes leave goes to the larger
        chosen[turn[:share]] = True
        left -= share
    return chosen


def _in_turn(
    members: Int64[np.ndarray, " m"], subject_ids: Sequence[str], *, seed: int
) -> Int64[np.ndarray, " m"]:
    """Order samples so that any first part of them is of as many patients as it can be."""
    rng = np.random.default_rng([seed, len(members)])
    seen: dict[str, int] = {}
    keys = []
    for place in rng.permutation(len(members)):
        patient = subject_ids[int(members[place])]
        seen[patient] = seen.get(patient, -1) + 1
        keys.append((seen[patient], int(members[place])))
    return np.array([i for _, i in sorted(keys, key=itemgetter(0))], dtype=np.int64)


def batches_of(samples: Samples, size: int) -> Iterator[Batch]:
    """Read all pictures, so many at a time."""
    for start in range(0, len(samples.pictures), size):
        yield batch_at(samples, range(start, min(start + size, len(samples.pictures))))


def batch_at(samples: Samples, indices: Sequence[int]) -> Batch:
    """Read some pictures."""
    return Batch(indices=indices, raw=torch.stack([samples.pictures[i] for i in indices]))


def some_of(samples: Samples, wanted: int) -> list[int]:
    """Choose a few pictures that can be explained, from the first to the last."""
    explained = np.flatnonzero(samples.truths > NONE)
    return [int(explained[i]) for i in spread(len(explained), wanted)]


def regions_of(samples: Samples, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
    """Return the true region of every picture at the size it is measured at; empty without one.

    A mask, except of pictures of the first class, which has nothing to find; or the union of the
    boxes of the finding that is explained where the truth is.
    """
    test = samples.pictures
    if MASK in test.rows.fields:
        found, _ = masks_of(test, indices)
        first = 0 if samples.exclusive else NONE
        shown = torch.from_numpy(samples.truths[list(indices)] > first)
        return found & shown[:, None, None] if found is not None else _no_region(test, indices)
    if BOXES in test.rows.fields:
        return torch.stack([_boxed(samples, i) for i in indices])
    return _no_region(test, indices)


def _no_region(test: Pictures, indices: Sequence[int]) -> Bool[Tensor, "b h w"]:
    return torch.zeros((len(indices), *test.size), dtype=torch.bool)


def _boxed(samples: Samples, index: int) -> Bool[Tensor, "h w"]:
    test = samples.pictures
    boxes = _boxes(test, index)
    boxes = boxes[boxes[:, 0] == samples.truths[index]]
    if not len(boxes):
        return torch.zeros(test.size, dtype=torch.bool)
    stored = test.rows.read(int(test.positions[index]), ("image",))["image"].shape[1:]
    inside = np.zeros(stored, dtype=np.float32)
    rows, columns = (np.arange(side) + 0.5 for side in stored)
    for _, left, top, width, height in boxes:
        in_rows = (rows > top) & (rows < top + height)
        inside[np.ix_(in_rows, (columns > left) & (columns < left + width))] = 1
    return resample(torch.from_numpy(inside)[None], test.size)[0] >= MASK_SHARE
