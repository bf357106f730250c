"""What a network says of pictures as ever more of their pixels are removed in a map's order.

Every picture is ranked once. The pairs of a picture and a fraction are then evaluated in full
batches, whichever picture they belong to; nothing larger than a batch of pictures is ever made. On
a processor several batches are under way at once, each on one core: cores that share one picture
wait for each other after every layer.
Pictures that are equal are evaluated once: to remove pixels that show the filling already, as an
empty background does, changes nothing, and where everything is removed all pictures are the same.

A map on its own grid stands for the map upsampled by nearest neighbour. Pixels that tie are removed
in an order drawn once from the seed, the same for every picture: not row by row, which would remove
the top of a cell, or of a constant map, first.

Axes: b sample, c channel, (h, w) map, (H, W) picture, f fraction, k class, n pair of sample and
fraction, p pixel.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, section 4.1
(ascending order).
Samek et al., "Evaluating the visualization of what a deep neural network has learned", IEEE Trans.
Neural Netw. Learn. Syst. 28(11), 2017 (pixel flipping, descending order).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.errors import MetricError, ShapeError
from models.metrics.cells import owners
from models.metrics.imputation import NoisyLinearImputation

Order = Literal["ascending", "descending"]
Imputer = Callable[[Tensor, Tensor], Tensor]
"""(pictures, removed pixels) -> pictures with those pixels filled in."""
Forward = Callable[[Tensor], Tensor]
"""Pictures -> logits, in evaluation mode: a picture must not see its batch.

Several threads may call it at once: it changes nothing.
"""

FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

GPU_BATCH = 256
CPU_PIXELS = 2**17  # in one batch; more leave the caches between two layers


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationCurve:
    """Probabilities of all classes at each removed fraction.

    Attributes
    ----------
    fractions
        Of the pixels that are removed, ascending.
    probabilities
        Softmax or sigmoid of the network's logits.
    order
        ``ascending``: the least important pixels go first. ``descending``: the most important.
    exclusive
        Whether the classes exclude each other (softmax).
    """

    fractions: Float[Tensor, " f"]
    probabilities: Float[Tensor, "b f k"]
    order: Order
    exclusive: bool = True


def perturbation_curve(
    values: Float[Tensor, "b h w"],
    images: Float[Tensor, "_b c H W"],
    forward: Forward,
    *,
    fill: Float[Tensor, "#b #c #H #W"] | Imputer,
    fractions: Sequence[float] = FRACTIONS,
    order: Order = "ascending",
    exclusive: bool = True,
    batch_size: int | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> PerturbationCurve:
    """Remove growing fractions of each picture in the order of its map, and ask the network.

    Insertion is the same curve read backwards: with all but the most important tenth inserted is
    with the least important nine tenths removed.

    Parameters
    ----------
    values
        Importance: greater is more important, whatever the sign.
    images
        As the network takes them.
    forward
        The network that judges; a baseline that took no part in the maps, to judge maps of several.
    fill
        What shows where pixels are removed: one picture for all, one for each sample (a channel or
        side of 1 stands for all), or a function that fills holes in.
    exclusive
        Softmax over the classes; sigmoids otherwise.
    batch_size
        Pictures in one forward pass: bounds the memory. By default as many as a processor's caches
        serve well, and 256 on a GPU.
    threads
        Batches under way at once on a processor. By default as many as torch uses cores
        (``torch.get_num_threads``).
    seed
        Of the order among tied pixels.

    Raises
    ------
    MetricError
        If a map, a picture or an output of the network is not finite, a map is finer than its
        picture, the fractions do not ascend within [0, 1], or there is no batch size or thread.
    ShapeError
        If there is not one map for each picture, or not one row of logits for each picture.
    """
    cores = torch.get_num_threads() if threads is None else threads
    _check(values, images, fractions, 1 if batch_size is None else batch_size)
    if cores < 1:
        raise MetricError("BAD_THREADS", f"threads is {cores}; one at least does the work")
    ranks = removal_ranks(values, (images.shape[2], images.shape[3]), order=order, seed=seed)
    pixels = images.shape[2] * images.shape[3]
    counts = torch.tensor(
        [round(fraction * pixels) for fraction in fractions], device=images.device
    )
    logits = _Steps(
        images=images,
        ranks=ranks,
        counts=counts,
        fill=fill,
        forward=forward,
        size=batch_size,
        threads=1 if images.is_cuda else cores,
    ).logits()
    exact = logits.double()
    return PerturbationCurve(
        fractions=torch.tensor(fractions, dtype=torch.float64, device=images.device),
        probabilities=exact.softmax(2) if exclusive else exact.sigmoid(),
        order=order,
        exclusive=exclusive,
    )


def perturbed(
    values: Float[Tensor, "b h w"],
    images: Float[Tensor, "_b c H W"],
    *,
    fraction: float,
    fill: Float[Tensor, "#b #c #H #W"] | Imputer,
    order: Order = "ascending",
    seed: int = 0,
) -> Float[Tensor, "b c H W"]:
    """Pictures with one fraction removed, such as those that a network is retrained on.

    Raises
    ------
    MetricError, ShapeError
        As ``perturbation_curve``.

    References
    ----------
    Hooker, Erhan, Kindermans, Kim, "A benchmark for interpretability methods in deep neural
    networks", NeurIPS 2019 (remove and retrain, ROAR).
    """
    _check(values, images, (fraction,), 1)
    ranks = removal_ranks(values, (images.shape[2], images.shape[3]), order=order, seed=seed)
    count = round(fraction * images.shape[2] * images.shape[3])
    return _removed(images, ranks < count, fill)


def removal_ranks(
    values: Float[Tensor, "b h w"], size: tuple[int, int], *, order: Order, seed: int = 0
) -> Int[Tensor, "b H W"]:
    """Place of each pixel in the order of removal, from 0."""
    device = values.device
    rows = owners(values.shape[1], size[0], device=device)
    columns = owners(values.shape[2], size[1], device=device)
    flat = values[:, rows[:, None], columns].flatten(1)
    drawn = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(device)
    found = flat[:, drawn].sort(dim=1, stable=True, descending=order == "descending").indices
    places = torch.arange(flat.shape[1], dtype=torch.int32, device=device).expand_as(found)
    ranks = torch.empty_like(places.contiguous()).scatter_(1, drawn[found], places)
    return ranks.view(-1, *size)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """All pairs of a picture and a number of removed pixels, and how they are evaluated."""

    images: Tensor
    ranks: Tensor
    counts: Int[Tensor, " f"]
    fill: Tensor | Imputer
    forward: Forward
    size: int | None
    threads: int

    def logits(self) -> Float[Tensor, "b f k"]:
        """Evaluate each different picture once."""
        changed, total = self._changed()
        blank = (changed == total) & _fills_alike(self.fill)
        new = torch.ones_like(blank)
        new[:, 1:] = changed[:, 1:] != changed[:, :-1]
        new &= ~blank
        parts = self._all_evaluated(new.nonzero())
        place = new.flatten().cumsum(0).view_as(blank) - 1
        if bool(blank.any()):
            everything = torch.ones_like(self.ranks[:1], dtype=torch.bool)
            parts.append(self._asked(_removed(self.images[:1], everything, self.fill)))
            place = place.where(~blank, new.sum())
        return _finite(torch.cat(parts))[place]

    def _all_evaluated(self, pairs: Int[Tensor, "n 2"]) -> list[Tensor]:
        """Evaluate batches one after the other, or as many at once as there are cores."""
        size = _usual_batch_size(self.images, len(pairs), self.threads)
        batches = pairs.split(self.size or size) if len(pairs) else ()
        if self.threads == 1 or len(batches) < 2:
            return [self._evaluated(batch) for batch in batches]
        before = torch.get_num_threads()
        workers = min(self.threads, len(batches))
        try:
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                return list(pool.map(self._evaluated, batches))
        finally:
            torch.set_num_threads(before)

    def _changed(self) -> tuple[Int[Tensor, "b f"], Int[Tensor, "b 1"]]:
        """Count the removed pixels, and all pixels, that do not show the filling already."""
        if not isinstance(self.fill, Tensor):
            counts = self.counts.expand(len(self.images), -1)
            return counts, torch.full_like(counts[:, :1], self.ranks[0].numel())
        differs = (self.images != self.fill.to(self.images)).any(1).flatten(1).int()
        order = self.ranks.flatten(1).long()
        upto = torch.zeros_like(differs).scatter_(1, order, differs).cumsum(1)
        return torch.nn.functional.pad(upto, (1, 0))[:, self.counts], upto[:, -1:]

    def _evaluated(self, pairs: Int[Tensor, "n 2"]) -> Float[Tensor, "n k"]:
        sample, step = pairs.unbind(1)
        removed = self.ranks[sample] < self.counts[step][:, None, None]
        return self._asked(_removed(self.images[sample], removed, _of(self.fill, sample)))

    def _asked(self, pictures: Tensor) -> Float[Tensor, "n k"]:
        layout = torch.contiguous_format if pictures.is_cuda else torch.channels_last
        with torch.no_grad(), torch.autocast(pictures.device.type, enabled=False):
            logits = self.forward(pictures.contiguous(memory_format=layout))
        if logits.ndim != 2 or len(logits) != len(pictures):
            raise ShapeError(
                "NOT_LOGITS",
                f"the network gave {tuple(logits.shape)} for {len(pictures)} pictures; it must "
                "give one row of logits for each",
            )
        return logits


def _finite(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Refuse logits without a value: all at once, as a look at them stops a GPU."""
    if not bool(logits.isfinite().all()):
        raise MetricError(
            "LOGITS_NOT_FINITE",
            "the network gave NaN or an infinite logit for a perturbed picture; its curve has "
            "no area: try another filling",
        )
    return logits


def _alone() -> None:
    """Let a thread compute on one core."""
    torch.set_num_threads(1)


def _usual_batch_size(images: Tensor, pairs: int, threads: int) -> int:
    """As many as are fast, and no more than give every thread a batch."""
    if images.is_cuda:
        return GPU_BATCH
    fast = max(1, CPU_PIXELS // (images.shape[2] * images.shape[3]))
    return max(1, min(fast, -(-pairs // threads)))


def _removed(images: Tensor, removed: Tensor, fill: Tensor | Imputer) -> Tensor:
    if isinstance(fill, Tensor):
        return torch.where(removed[:, None], fill.to(images), images)
    return fill(images, removed)


def _fills_alike(fill: Tensor | Imputer) -> bool:
    """Tell whether all pictures look the same when everything is removed."""
    return len(fill) == 1 if isinstance(fill, Tensor) else isinstance(fill, NoisyLinearImputation)


def _of(fill: Tensor | Imputer, sample: Tensor) -> Tensor | Imputer:
    """Pick the filling of each pair where every sample has its own."""
    if isinstance(fill, Tensor) and len(fill) > 1:
        return fill[sample]
    return fill


def _check(values: Tensor, images: Tensor, fractions: Sequence[float], batch_size: int) -> None:
    if len(values) != len(images) or not len(images):
        raise ShapeError(
            "MAPS_DIFFER", f"{len(values)} maps for {len(images)} pictures; give one for each"
        )
    if not bool(values.isfinite().all() and images.isfinite().all()):
        raise MetricError(
            "MAP_NOT_FINITE", "a map or picture holds NaN or an infinite value; it has no order"
        )
    if values.shape[1] > images.shape[2] or values.shape[2] > images.shape[3]:
        raise MetricError(
            "MAP_FINER_THAN_PICTURE",
            f"the map has {values.shape[1]} x {values.shape[2]} cells and the picture only "
            f"{images.shape[2]} x {images.shape[3]} pixels; pixels have no order",
        )
    ascending = all(one < other for one, other in pairwise(fractions))
    if not fractions or not ascending or fractions[0] < 0 or fractions[-1] > 1:
        raise MetricError(
            "BAD_FRACTIONS", f"fractions are {list(fractions)}; they ascend from 0 to 1 at most"
        )
    if batch_size < 1:
        raise MetricError("BAD_BATCH_SIZE", f"batch size is {batch_size}; a batch has a picture")
