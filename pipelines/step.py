"""One step of the optimiser: a batch, whole or in parts one after the other.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.robust import Extras, Pass, RobustTraining

FIRST_LOSS_SCALE = 2.0**12  # small enough that the first step of a float16 run seldom overflows
COST = "penalty"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Some of a batch, its share in it, and whether no other follows."""

    pictures: Tensor
    truth: Tensor
    extras: Extras
    share: float
    last: bool


class Step:
    """What MONAI's trainer does with a batch; the gradient is that of the whole batch.

    Parameters
    ----------
    pictures
        Behind one step: of several processes, the mean of what each has.
    robust
        What each part is trained on, where that is not the part itself.

    Attributes
    ----------
    scaler
        Keeps gradients within the range of float16; does nothing in other precisions.
    """

    def __init__(
        self,
        *,
        parts: int,
        pictures: float,
        device: torch.device,
        precision: str,
        robust: RobustTraining | None = None,
    ) -> None:
        # as many in each process, for batch normalisation waits for the others
        self._parts, self._pictures = min(parts, int(pictures)), pictures
        self._robust = robust
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=FIRST_LOSS_SCALE, enabled=precision == "float16"
        )

    def __call__(self, engine: Any, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Step once; the loss in the output is the whole batch's."""
        images, labels = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        output: dict[str, Any] = {CommonKeys.IMAGE: images, CommonKeys.LABEL: labels}
        engine.state.output = output
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in self._split(images, labels, self._extras(engine, images, batch)):
            for turn in self._turns(part):
                with _apart(engine.network, synchronised=part.last and turn.last):
                    losses.append(self._backward(engine, output, part, turn))
        output[CommonKeys.LOSS] = torch.stack(losses).sum()
        self._update(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _extras(self, engine: Any, images: Tensor, batch: Mapping[str, Tensor]) -> Extras:
        if self._robust is None:
            return Extras()
        return self._robust.extras(images, batch, iteration=engine.state.iteration)

    def _turns(self, part: _Part) -> Iterator[Pass]:
        if self._robust is None:
            return iter((Pass(images=part.pictures),))
        return self._robust.passes(part.pictures, part.truth, part.extras)

    def _backward(
        self, engine: Any, output: dict[str, Any], part: _Part, turn: Pass
    ) -> Float[Tensor, ""]:
        """Add to the gradient; the loss, as much of it as counts in that of the batch."""
        loss, share = self._loss(engine, output, part, turn), part.share * turn.weight
        output[CommonKeys.LOSS] = loss.detach() * share
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self.scaler.scale(loss if share == 1 else loss * share).backward()
        return output[CommonKeys.LOSS]

    def _loss(
        self, engine: Any, output: dict[str, Any], part: _Part, turn: Pass
    ) -> Float[Tensor, ""]:
        if turn.images is None and self._robust is not None:
            costs = self._robust.penalty(part.pictures, part.truth)
            return engine.loss_function.charge(costs, weight=turn.weight, name=turn.prefix + COST)
        output[CommonKeys.PRED] = engine.inferer(turn.images, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        if self._robust is None:
            return engine.loss_function(output[CommonKeys.PRED], part.truth)
        return engine.loss_function(
            output[CommonKeys.PRED],
            part.truth,
            weight=turn.weight,
            prefix=turn.prefix,
            counted=turn.counted,
        )

    def _split(
        self, images: Float[Tensor, "b c h w"], labels: Shaped[Tensor, "b ..."], extras: Extras
    ) -> Iterator[_Part]:
        """Parts as equal as can be."""
        parts = self._parts
        pieces = zip(
            images.tensor_split(parts),
            labels.tensor_split(parts),
            extras.parts(parts),
            strict=True,
        )
        for place, (pictures, truth, more) in enumerate(pieces, start=1):
            yield _Part(
                pictures=pictures,
                truth=truth,
                extras=more,
                share=len(pictures) / self._pictures,
                last=place == parts,
            )

    def _update(self, engine: Any) -> None:
        if self.scaler.is_enabled():
            self.scaler.unscale_(engine.optimizer)  # gradients are clipped at their own size
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.scaler.step(engine.optimizer)
        self.scaler.update()


def _apart(network: nn.Module, *, synchronised: bool) -> AbstractContextManager[object]:
    """Between processes, gradients are exchanged once for the whole batch."""
    if isinstance(network, DistributedDataParallel) and not synchronised:
        return network.no_sync()
    return nullcontext()
