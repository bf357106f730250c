"""Pictures of two splits that are nearly the same: one scan under two names flatters a test score.

Axes: n picture, m picture of another split.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from preprocessing.splits import SPLITS

HASH_BITS = 64
MOST_DIFFERENT_BITS = 6
"""Recompression, noise and a grey-value curve change few of the 64 bits."""
LEAST_CORRELATION = 0.93
"""Between coarse pictures from which the data set's mean picture is taken away: what anatomy has in
common must not count."""
NOISE_GREY = 3.0
"""Grey levels by which a coarse picture may differ and still be the same."""
BLOCK = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicates:
    """How many pairs of nearly equal pictures lie in two different splits.

    Attributes
    ----------
    pairs
        ``train/test`` and the like to the number of pairs; splits without any are left out.
    pictures
        How many pictures are in at least one such pair.
    """

    pairs: Mapping[str, int]
    pictures: int


def near_duplicates(
    hashes: UInt8[np.ndarray, "n 64"],
    thumbnails: UInt8[np.ndarray, "n thumbnail"],
    splits: Sequence[str],
) -> NearDuplicates:
    """Compare every picture with every picture of the other splits.

    Two pictures are near-duplicates where few bits of their hashes differ and their coarse pictures
    agree. Pictures with one grey value are not compared.

    Parameters
    ----------
    hashes
        One bit per entry, 0 or 1.
    """
    part = np.asarray(splits, dtype=str)
    coarse, shown = _coarse(thumbnails)
    signs = hashes.astype(np.float32) * 2 - 1
    pairs: Counter[str] = Counter()
    involved: Bool[np.ndarray, " n"] = np.zeros(len(part), dtype=bool)
    for first, second in combinations(_in_order(splits), 2):
        ours, theirs = (np.flatnonzero((part == name) & shown) for name in (first, second))
        for near in _blocks(ours):
            for other in _blocks(theirs):
                equal = _equal(signs, coarse, near, other)
                pairs[f"{first}/{second}"] += int(equal.sum())
                involved[near] |= equal.any(axis=1)
                involved[other] |= equal.any(axis=0)
    return NearDuplicates(pairs=dict(+pairs), pictures=int(involved.sum()))


def _in_order(splits: Sequence[str]) -> list[str]:
    return [name for name in SPLITS if name in splits] + sorted(set(splits) - set(SPLITS))


def _blocks(rows: Int64[np.ndarray, " n"]) -> Iterator[Int64[np.ndarray, " b"]]:
    for start in range(0, len(rows), BLOCK):
        yield rows[start : start + BLOCK]


def _coarse(
    thumbnails: UInt8[np.ndarray, "n thumbnail"],
) -> tuple[Float32[np.ndarray, "n t"], Bool[np.ndarray, " n"]]:
    """Return vectors of unit length whose product is a correlation, and which pictures show any.

    One more entry, the same for all, keeps pictures alike that differ from the mean by noise only.
    """
    values = thumbnails.astype(np.float32)
    shown = np.ptp(values, axis=1) > 0
    if shown.any():
        values -= values[shown].mean(axis=0)
    floor = np.full((len(values), 1), NOISE_GREY * values.shape[1] ** 0.5, dtype=np.float32)
    values = np.concatenate([values, floor], axis=1)
    return values / np.linalg.norm(values, axis=1, keepdims=True), shown


def _equal(
    signs: Float32[np.ndarray, "n 64"],
    coarse: Float32[np.ndarray, "n t"],
    near: Int64[np.ndarray, " b"],
    other: Int64[np.ndarray, " c"],
) -> Bool[np.ndarray, "b c"]:
    """Tell which pairs are near-duplicates; coarse pictures are compared only where hashes are."""
    # Bits that agree less bits that differ.
    alike = signs[near] @ signs[other].T >= HASH_BITS - 2 * MOST_DIFFERENT_BITS
    rows, columns = np.flatnonzero(alike.any(axis=1)), np.flatnonzero(alike.any(axis=0))
    if len(rows):
        correlation = coarse[near[rows]] @ coarse[other[columns]].T
        alike[np.ix_(rows, columns)] &= correlation >= LEAST_CORRELATION
    return alike
