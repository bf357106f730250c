"""Masks read beside the pictures they belong to, resampled and augmented as these are.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from pipelines.augment import augment
from pipelines.config import AugmentConfig
from pipelines.errors import DataError
from pipelines.feed import Order, Pictures, Rows, Store, augmenting

MASK, IMAGE = "mask", "image"
FULL = 255  # what is inside, so that an area average keeps shares of a pixel in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRows:
    """Rows whose picture is their mask: 0 outside, 255 inside, one channel."""

    rows: Rows

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """As the rows'."""
        return self.rows.labels

    @property
    def subject_ids(self) -> Sequence[str]:
        """As the rows'."""
        return self.rows.subject_ids

    @property
    def sample_ids(self) -> Sequence[str]:
        """As the rows'."""
        return self.rows.sample_ids

    @property
    def fields(self) -> Sequence[str]:
        """The picture alone: a mask is no score."""
        return (IMAGE,)

    def read(self, i: int, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Read the mask of one row, whatever is asked for."""
        mask = self.rows.read(i, (MASK,))[MASK] > 0
        return {IMAGE: np.where(mask, FULL, 0).astype(np.uint8)[None]}


def masks_of(pictures: Pictures, *, objective: str) -> Pictures:
    """Return the masks of pictures, to be held and read as pictures are.

    Raises
    ------
    DataError
        ``NO_MASKS`` where the data set has none.
    """
    if MASK not in pictures.rows.fields:
        raise DataError(
            "NO_MASKS",
            f"objective '{objective}' is told by masks where gradients belong, and the data set "
            f"has no '{MASK}': build it with masks, or choose another objective",
        )
    return replace(pictures, rows=MaskRows(rows=pictures.rows))


class MaskedFeed:
    """A training feed whose batches also have each picture's ``mask``, "b h w" from 0 to 1.

    Masks move as their pictures do. Iterate it once per run.

    Parameters
    ----------
    masks
        Where those of the feed's pictures are held, in the same order.
    order, settings, start
        As the feed's.
    """

    def __init__(
        self,
        feed: Iterable[Mapping[str, Any]],
        masks: Store,
        *,
        order: Order,
        settings: AugmentConfig,
        start: int = 0,
    ) -> None:
        self._feed, self._masks, self._order, self._start = feed, masks, order, start
        self._still = settings.model_copy(update={"intensity": 0.0})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stored = self._masks.batches(self._order.batches(self._start))
        for iteration, (batch, masks) in enumerate(
            zip(self._feed, stored, strict=True), self._start
        ):
            moved = augment(
                masks.to(torch.float32) / FULL,
                self._still,
                generator=augmenting(self._order.seed, iteration),
                among=self._order.width,
                rows=self._order.rows,
            )
            yield {**batch, MASK: moved[:, 0].clamp(0, 1)}  # interpolation rounds
