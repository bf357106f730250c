"""Integrated gradients, with steps where completeness asks for them.

Axes: b batch, c channel, h row, w column.

References
----------
Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", ICML 2017, eq. (1), (3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.explainers.base import Explainer
from models.explainers.laws import Law, judged, relative
from models.explainers.scoring import batches, gradient_of, scores_of
from models.records import Attribution

COMPLETENESS = Law(
    name="completeness",
    sound=1e-3,
    refused=5e-2,
    says="of the score's change from the baseline is not in the map",
    way_out="raise most_steps, or choose a baseline whose score differs more",
)
FEWEST_STEPS = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedGradients(Explainer):
    """Gradients averaged on the straight way from a baseline, times the way.

    The midpoint rule on pieces of the way. What a piece misses is known, for the score at both of
    its ends is; pieces that miss too much are halved until the whole is complete. The residual is
    the completeness error.

    Attributes
    ----------
    baseline
        Value of the baseline picture everywhere, in the units of the images.
    tolerance
        Completeness error, relative, at which a sample is left.
    most_steps
        Gradients taken of a sample at most.
    """

    least: ClassVar[Mapping[str, int | float]] = MappingProxyType({"most_steps": 1})
    baseline: float = 0.0
    tolerance: float = 1e-3
    most_steps: int = 6561
    batch_size: int = 32

    @property
    def name(self) -> str:
        """``integrated-gradients``."""
        return "integrated-gradients"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One signed map at the picture's own size."""
        way = _Way(
            model=model,
            target=target,
            start=torch.full_like(images, self.baseline),
            whole=images - self.baseline,
            batch_size=self.batch_size,
        )
        values, residual = self._integrate(way)
        summed = values.sum(1)
        return (judged(summed, target, method=self.name, law=COMPLETENESS, residual=residual),)

    def _integrate(self, way: "_Way") -> tuple[Float[Tensor, "b c h w"], Float[Tensor, " b"]]:
        pieces = way.pieces(min(FEWEST_STEPS, self.most_steps))
        change = torch.zeros_like(way.whole[:, 0, 0, 0]).index_add_(0, pieces.sample, pieces.rise)
        taken = pieces.sample.new_zeros(len(change))
        done, residual = torch.zeros_like(way.whole), change
        while len(pieces.sample):
            waiting = torch.zeros_like(done)
            allowed = self.tolerance * change.abs()[pieces.sample] * pieces.width
            middle, misses = way.integrate(pieces, allowed, done, waiting)
            taken += pieces.count(len(change))
            residual = relative((done + waiting).sum((1, 2, 3)) - change, change)
            more = taken + 2 * pieces.chosen(misses).count(len(change)) <= self.most_steps
            open_ = (residual > self.tolerance) & more
            done += torch.where(open_[:, None, None, None], 0, waiting)
            pieces = pieces.chosen(misses & open_[pieces.sample], middle).halved()
        return done, residual


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """Pieces of the ways of some samples, and the scores at their ends and in their middles.

    Places on the way are 0 at the baseline and 1 at the picture.
    """

    sample: Int[Tensor, " m"]
    left: Float[Tensor, " m"]
    width: Float[Tensor, " m"]
    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]
    middle: Float[Tensor, " m"]

    @property
    def rise(self) -> Float[Tensor, " m"]:
        """Score at the end less that at the start."""
        return self.high - self.low

    def count(self, samples: int) -> Int[Tensor, " b"]:
        """Pieces of each sample."""
        return torch.bincount(self.sample, minlength=samples)

    def chosen(
        self, which: Bool[Tensor, " m"], middle: Float[Tensor, " m"] | None = None
    ) -> "_Pieces":
        """Choose some of the pieces, with the scores that were found in the middles."""
        return _Pieces(
            sample=self.sample[which],
            left=self.left[which],
            width=self.width[which],
            low=self.low[which],
            high=self.high[which],
            middle=(self.middle if middle is None else middle)[which],
        )

    def halved(self) -> "_Pieces":
        """Both halves of each piece."""
        half = self.width / 2
        return _Pieces(
            sample=self.sample.repeat(2),
            left=torch.cat([self.left, self.left + half]),
            width=half.repeat(2),
            low=torch.cat([self.low, self.middle]),
            high=torch.cat([self.middle, self.high]),
            middle=self.middle.repeat(2),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """The straight ways from the baseline, at 0, to each picture, at 1."""

    model: nn.Module
    target: Int[Tensor, " b"]
    start: Float[Tensor, "b c h w"]
    whole: Float[Tensor, "b c h w"]
    batch_size: int

    def pieces(self, count: int) -> _Pieces:
        """As many pieces of the same width of each way."""
        samples = torch.arange(len(self.whole), device=self.whole.device)
        places = torch.arange(count + 1, dtype=torch.float64, device=samples.device) / count
        at, place = samples.repeat_interleave(count + 1), places.repeat(len(samples))
        scores = self.whole.new_empty(len(at))
        with torch.no_grad():
            for part in batches(len(at), self.batch_size):
                points = self._points(at[part], place[part])
                scores[part] = scores_of(self.model, points, self.target[at[part]])
        scores = scores.view(-1, count + 1)
        return _Pieces(
            sample=samples.repeat_interleave(count),
            left=places[:-1].repeat(len(samples)),
            width=torch.full_like(place[: count * len(samples)], 1 / count),
            low=scores[:, :-1].flatten(),
            high=scores[:, 1:].flatten(),
            middle=torch.zeros_like(scores[:, 1:]).flatten(),
        )

    def integrate(
        self, pieces: _Pieces, allowed: Float[Tensor, " m"], done: Tensor, waiting: Tensor
    ) -> tuple[Float[Tensor, " m"], Bool[Tensor, " m"]]:
        """Add each piece's share to ``done``, or to ``waiting`` if it misses more than allowed.

        Returns the scores in the middles, and which pieces miss too much of their rise.
        """
        middle = torch.empty_like(pieces.low)
        misses = torch.ones_like(middle, dtype=torch.bool)
        for part in batches(len(middle), self.batch_size):
            at, width = pieces.sample[part], pieces.width[part]
            points = self._points(at, pieces.left[part] + width / 2)
            middle[part], gradient = gradient_of(self.model, points, self.target[at])
            share = width.to(gradient)[:, None, None, None] * gradient * self.whole[at]
            missed = (pieces.rise[part] - share.sum((1, 2, 3))).abs()
            misses[part] = missed > allowed[part]
            for sums, which in ((done, ~misses[part]), (waiting, misses[part])):
                sums.index_add_(0, at[which], share[which])
        return middle, misses

    def _points(
        self, sample: Int[Tensor, " n"], place: Float[Tensor, " n"]
    ) -> Float[Tensor, "n c h w"]:
        """Pictures at places of the ways."""
        return self.start[sample] + place.to(self.whole)[:, None, None, None] * self.whole[sample]
