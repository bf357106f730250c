"""An attack on explanations under way: what is attacked, how far it has come, what it reached.

Axes: b batch, c channel, h row, w column of a picture, p row, q column of a map, k class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.scoring import batches, logits_of
from models.explanation_limits import Limits
from models.metrics.similarity import top_cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Attacked:
    """Pictures that explain differently, and what the network and the explainer say of them.

    Attributes
    ----------
    images
        The attacked pictures; those of a sample without success are the given ones.
    before, after
        Maps of the given and of the attacked pictures.
    share
        Of the attacked map's magnitude, what lies in the cells where the first was greatest.
    possible
        Whether any changed picture that was tried keeps its decision.
    logits_before, logits_after
        Of the given and of the attacked pictures.
    """

    images: Float[Tensor, "b c h w"]
    before: Float[Tensor, "b p q"]
    after: Float[Tensor, "b p q"]
    share: Float[Tensor, " b"]
    possible: Bool[Tensor, " b"]
    logits_before: Float[Tensor, "b k"]
    logits_after: Float[Tensor, "b k"]


class Case:
    """What is attacked, with the maps and logits of the given pictures."""

    def __init__(
        self,
        explainer: Explainer,
        model: nn.Module,
        images: Float[Tensor, "b c h w"],
        target: Int[Tensor, " b"],
        limits: Limits,
        level: int,
    ) -> None:
        self.explainer, self.model, self.images = explainer, model, images
        self.target, self.limits, self.level = target, limits, level
        self.maps, self.logits = self.maps_of(images), self.logits_of(images)
        self.top = top_cells(self.maps)

    def maps_of(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p q"]:
        """Explain pictures as the user would.

        Raises
        ------
        ExplainerError
            If the explainer does not give so many levels.
        """
        found = self.explainer(self.model, images, self.target)
        if not 0 <= self.level < len(found):
            raise ExplainerError(
                "NO_LEVEL",
                f"'{self.explainer.name}' gives {len(found)} maps, and number {self.level} is to "
                "be attacked; they are numbered from 0, finest first",
            )
        return found[self.level].values

    def logits_of(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Classify pictures."""
        with torch.no_grad():
            parts = batches(len(images), self.explainer.batch_size)
            return torch.cat([logits_of(self.model, images[part]) for part in parts])


class Standing:
    """How far an attack has come with each sample.

    ``delta`` is where it stands, ``images`` and ``maps`` are the best so far, ``stride`` is the
    share of the radius that it goes next.
    """

    def __init__(self, case: Case, *, stride: float, seeds: Sequence[int]) -> None:
        self.delta = torch.zeros_like(case.images)
        self.images, self.maps, self.logits = case.images, case.maps, case.logits
        self.share = share_inside(case.maps, case.top)
        self.possible = torch.zeros_like(self.share, dtype=torch.bool)
        self.stride = torch.full_like(self.delta[:, :1, :1, :1], stride)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def drawn(self) -> Float[Tensor, "b c h w"]:
        """Draw standard normal pictures, each sample's from its own generator."""
        shape = self.delta.shape[1:]
        drawn = [torch.randn(shape, generator=generator) for generator in self._generators]
        return torch.stack(drawn).to(self.delta)

    def judge(self, case: Case, changed: Float[Tensor, "b c h w"], *, first: bool) -> None:
        """Keep what is better and the decision the same; go back where it changed."""
        logits, maps = case.logits_of(changed), case.maps_of(changed)
        kept = case.limits.kept(case.logits, logits)
        share = share_inside(maps, case.top)
        better = kept & (~self.possible if first else share < self.share)
        here = better[:, None, None]
        self.images = torch.where(here[..., None], changed, self.images)
        self.maps = torch.where(here, maps, self.maps)
        self.logits = torch.where(better[:, None], logits, self.logits)
        self.share = torch.where(better, share, self.share)
        self.possible = self.possible | kept
        there = kept[:, None, None, None]
        self.delta = torch.where(there, changed - case.images, self.delta)
        self.stride = torch.where(there, self.stride, self.stride / 2)

    def outcome(self, case: Case) -> Attacked:
        """Put together what was reached."""
        return Attacked(
            images=self.images,
            before=case.maps,
            after=self.maps,
            share=self.share,
            possible=self.possible,
            logits_before=case.logits,
            logits_after=self.logits,
        )


def share_inside(
    maps: Float[Tensor, "b p q"], cells: Float[Tensor, "b p q"]
) -> Float[Tensor, " b"]:
    """Share of each map's magnitude in the cells; NaN where the map is zero everywhere."""
    sizes = maps.double().abs().flatten(1)
    return (sizes * cells.flatten(1)).sum(1) / sizes.sum(1)
