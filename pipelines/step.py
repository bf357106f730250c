"""One step of the optimiser: a batch, whole or in parts one after the other.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, Shaped
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

FIRST_LOSS_SCALE = 2.0**12  # small enough that the first step of a float16 run seldom overflows


class Step:
    """What MONAI's trainer does with a batch; the gradient is that of the whole batch.

    Parameters
    ----------
    pictures
        Behind one step: of several processes, the mean of what each has.

    Attributes
    ----------
    scaler
        Keeps gradients within the range of float16; does nothing in other precisions.
    """

    def __init__(
        self, *, parts: int, pictures: float, device: torch.device, precision: str
    ) -> None:
        # as many in each process, for batch normalisation waits for the others
        self._parts, self._pictures = min(parts, int(pictures)), pictures
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
        for pictures, truth, share, last in self._split(images, labels):
            with _apart(engine.network, synchronised=last):
                output[CommonKeys.PRED] = engine.inferer(pictures, engine.network)
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                loss = engine.loss_function(output[CommonKeys.PRED], truth)
                losses.append(loss.detach() * share)
                output[CommonKeys.LOSS] = losses[-1]
                engine.fire_event(IterationEvents.LOSS_COMPLETED)
                self.scaler.scale(loss if share == 1 else loss * share).backward()
        output[CommonKeys.LOSS] = torch.stack(losses).sum()
        self._update(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _split(
        self, images: Float[Tensor, "b c h w"], labels: Shaped[Tensor, "b ..."]
    ) -> Iterator[tuple[Tensor, Tensor, float, bool]]:
        """Parts as equal as can be, the share of each in the batch, and whether it is the last."""
        parts = self._parts
        pairs = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
        for place, (pictures, truth) in enumerate(pairs, start=1):
            yield pictures, truth, len(pictures) / self._pictures, place == parts

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
