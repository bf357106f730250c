"""Training on a robust objective: what the settings ask for, and what each batch is trained on.

Attacks are made with the network itself, neither compiled nor joined to other processes: they need
no gradient of a weight, so nothing is exchanged. Which random numbers an attack begins with depends
on the seed and the iteration alone, as the batch does.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models.adversarial import Robust, RobustSettings, robust
from models.attacks import Seen, Victim, look, starts
from models.conjugates import ridge_share
from models.domain import Domain
from models.errors import AttackError
from models.networks import Classifier
from pipelines.assemble import Forward
from pipelines.config import Normalisation, TrainConfig, ValidRange
from pipelines.errors import UsageError
from pipelines.feed import NORMALISATION_BATCH, Order, Store, in_order
from pipelines.handlers import Losses

CPU = torch.device("cpu")
ATTACK_STREAM = 11  # beside those of pipelines.feed, which draw from the same seed
BYTE_RANGE = 0.0, 255.0
ROBUST = "robust_"
"""What terms of the loss on perturbed pictures are called by, before their own names."""
RIDGE = ROBUST + "ridge_share"
"""Of the elastic net, in the record; far below 1 the ridge is idle."""


def robust_of(settings: TrainConfig, image_size: tuple[int, int]) -> Robust:
    """Return the objective that a run is trained on, all of its settings known.

    Raises
    ------
    UsageError
        ``UNKNOWN_OBJECTIVE``, ``BAD_SETTING``, ``BAD_STRENGTH``, ``BAD_ATTACK``: a setting is
        unknown, out of range, or of no use to the objective.
    """
    given = RobustSettings(**settings.robust.model_dump())
    try:
        return robust(settings.objective, given, image_size=image_size)
    except AttackError as error:
        raise UsageError(error.code, f"objective and robust settings: {error}") from None


def valid_range(pixels: Store, count: int) -> ValidRange:
    """Least and largest value that a picture of each channel can have, in stored units.

    Of bytes, all that a byte can be: the pictures were made to fill it. Else what the ``count``
    pictures of the store hold, which is the training split.
    """
    low, high = [], []
    for batch in pixels.batches(in_order(count, NORMALISATION_BATCH)):
        if batch.dtype == torch.uint8:
            least, largest = ((value,) * batch.shape[1] for value in BYTE_RANGE)
            return ValidRange(low=least, high=largest)
        low.append(batch.to(torch.float64).amin((0, 2, 3)))
        high.append(batch.to(torch.float64).amax((0, 2, 3)))
    least, largest = torch.stack(low).amin(0), torch.stack(high).amax(0)
    return ValidRange(low=tuple(least.tolist()), high=tuple(largest.tolist()))


def domain_of(measured: Normalisation, valid: ValidRange, *, device: torch.device = CPU) -> Domain:
    """Return where pictures can be moved to; a radius of 1 is the whole range.

    Pictures that are scores over the brain have a normalisation of their own, and a radius of 1 is
    one standard deviation of the brain.
    """
    values = partial(torch.tensor, dtype=torch.float32, device=device)
    return Domain(
        scale=values(measured.sd),
        shift=values(measured.mean),
        low=values(valid.low),
        high=values(valid.high),
        unit=values((1.0,) * len(measured.sd)) if measured.scored else None,
    )


def remarks_on(settings: TrainConfig, measured: Normalisation) -> tuple[str, ...]:
    """Say, for the model card, what a robust objective means; nothing of standard training."""
    found = robust_of(settings, (1, 1))  # a patch's size is among the settings
    if found.kind == "standard":
        return ()
    if not found.active:
        return (f"objective '{found.name}' with no weight or no radius is standard training",)
    unit = "standard deviations of the brain" if measured.scored else "shares of the valid range"
    share = f"factor {found.weight:g}" if found.kind == "penalty" else f"weight {found.weight:g}"
    ridge = f", ridge {found.strength.ridge:g}" if found.strength.ridge else ""
    return (
        f"trained on the objective '{found.name}', {share}: radius {found.strength.radius:g} in "
        f"{unit} before normalisation{ridge}; batch normalisation rests while pictures are "
        "attacked, and the epoch is chosen on pictures as they are",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a batch's pictures come with for the objective; None where it needs none."""

    start: Float[Tensor, "b c h w"] | None = None
    masks: Float[Tensor, "b h w"] | None = None

    def parts(self, count: int) -> Iterator["Extras"]:
        """Split as the pictures are split."""
        pairs = zip(_split(self.start, count), _split(self.masks, count), strict=True)
        return (Extras(start=start, masks=masks) for start, masks in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One way of a part of a batch through the network.

    Attributes
    ----------
    images
        What goes in; None for a penalty, which ``RobustTraining.penalty`` computes.
    weight
        Share in the loss.
    prefix
        Before the names of its terms in the record.
    counted
        Whether its pictures count as pictures met: those of one pass of each part do.
    last
        Whether it is the last of its part.
    """

    images: Float[Tensor, "b c h w"] | None
    weight: float = 1.0
    prefix: str = ""
    counted: bool = True
    last: bool = True


@final
class RobustTraining:
    """Makes of each part of a batch what the network is trained on.

    Parameters
    ----------
    network
        As it is: its weights are those that are trained.
    forward
        Calls it as training does.
    losses
        Whose classification loss is attacked.
    order
        Of the batches; its seed also draws random starts.
    """

    def __init__(
        self,
        chosen: Robust,
        *,
        network: Classifier,
        domain: Domain,
        forward: Forward,
        losses: Losses,
        order: Order,
    ) -> None:
        self._chosen, self._network, self._domain = chosen, network, domain
        self._forward, self._losses, self._order = forward, losses, order

    def extras(
        self, images: Float[Tensor, "b c h w"], batch: Mapping[str, Any], *, iteration: int
    ) -> Extras:
        """Find and draw what this process's share of a batch needs.

        Random starts are the same whichever process takes a picture.
        """
        masks, drawn = batch.get("mask"), None
        if self._chosen.needs_starts:
            words = np.random.SeedSequence([self._order.seed, ATTACK_STREAM, iteration])
            seed = int(words.generate_state(1, np.uint64)[0] >> np.uint64(1))
            shape = (self._order.width, *images.shape[1:])
            drawn = starts(shape, generator=torch.Generator().manual_seed(seed))
            drawn = drawn[self._order.rows].to(images.device)
        return Extras(start=drawn, masks=None if masks is None else masks.to(images.device))

    def passes(
        self, images: Float[Tensor, "b c h w"], labels: Tensor, extras: Extras
    ) -> Iterator[Pass]:
        """Yield what a part is trained on, one after the other; attack it when its turn has come.

        A penalty comes first: its gradients are added to before those of the pictures are
        exchanged between processes.
        """
        weight = self._chosen.weight
        if not self._chosen.perturbs:
            yield Pass(images=None, weight=weight, prefix=ROBUST, counted=False, last=False)
            yield Pass(images=images)
            return
        if weight < 1:
            yield Pass(images=images, weight=1 - weight, last=False)
        victim = self._victim(labels)
        moved = self._chosen.perturbed(
            images,
            victim,
            domain=self._domain,
            start=extras.start,
            masks=extras.masks,
            looking=self._watching(victim) if self._chosen.has_ridge else None,
        )
        yield Pass(images=moved, weight=weight, prefix=ROBUST, counted=weight == 1)

    def _watching(self, victim: Victim) -> Callable[[Tensor], Seen]:
        """Note for the record, at the first look, how much the ridge moves beside the radius."""
        noted: list[bool] = []

        def looking(images: Tensor) -> Seen:
            seen = look(victim, images)
            if not noted:
                noted.append(True)
                share = ridge_share(seen.gradient * self._domain.step, self._chosen.strength)
                self._losses.note(share, name=RIDGE)
            return seen

        return looking

    def penalty(self, images: Float[Tensor, "b c h w"], labels: Tensor) -> Float[Tensor, " b"]:
        """Penalty on each picture's gradient, unweighted; differentiable in the weights."""
        return self._chosen.penalty(images, self._victim(labels), domain=self._domain)

    def _victim(self, labels: Tensor) -> Victim:
        return Victim(
            model=self._network,
            labels=labels,
            loss=self._losses.classification,
            forward=self._forward,
        )


def _split(values: Tensor | None, count: int) -> list[Tensor | None]:
    return [None] * count if values is None else list(values.tensor_split(count))
