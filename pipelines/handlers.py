"""What happens around MONAI's engines while they train: one small class per duty.

Each has ``attach(engine)`` as MONAI's own handlers have. State that a resumed run needs is plain
numbers in ``state_dict``.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn

from models.losses import Objective, objective
from models.records import Prediction
from models.statistics import remeasure
from pipelines import scores
from pipelines.assemble import Forward
from pipelines.errors import DivergedError
from pipelines.feed import StatisticsFeed
from pipelines.progress import Progress

CHECK_EVERY_ON_CUDA = 25  # looking at a loss on an accelerator waits for it


# protobuf makes its classes while it is imported, where no type checker sees them
Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


class EventFile:
    """TensorBoard events in one file, without the host's name in its own name.

    Has ``add_scalar`` and ``flush`` as ``SummaryWriter`` has, which is all that MONAI's handler
    asks for. What an interrupted run logged at ``step`` and later is purged by readers.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"events.out.tfevents.{time.time_ns() // 1000:016d}.dualwitness"
        self._writer = RecordWriter(file.open("wb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=step, session_log=start))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log one number."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand everything to the system."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class Losses:
    """The loss function of the trainer, which keeps the sums of its terms over an epoch.

    Parameters
    ----------
    alpha, class_weights, label_smoothing
        As ``models.losses.objective``.
    """

    def __init__(
        self, *, alpha: float, class_weights: Tensor | None, label_smoothing: float
    ) -> None:
        self._alpha, self._class_weights = alpha, class_weights
        self._label_smoothing = label_smoothing
        self._sums: dict[str, Tensor] = {}
        self._batches = 0

    def __call__(self, prediction: Prediction, labels: Tensor) -> Tensor:
        """Loss of a training batch, its terms added to the epoch's sums."""
        found = self.evaluate(prediction, labels)
        terms = {name: values.mean() for name, values in found.terms.items()}
        for name, value in {"loss": found.loss.detach(), **terms}.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._batches += 1
        return found.loss

    def evaluate(self, prediction: Prediction, labels: Tensor) -> Objective:
        """Loss and terms of a batch; nothing is remembered."""
        return objective(
            prediction,
            labels,
            alpha=self._alpha,
            class_weights=self._class_weights,
            label_smoothing=self._label_smoothing,
        )

    def attach(self, engine: Engine) -> None:
        """Refuse to go on once a loss is no number."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._check)

    def _check(self, engine: Engine) -> None:
        on_cpu = self._sums["loss"].device.type == "cpu"
        if on_cpu or engine.state.iteration % CHECK_EVERY_ON_CUDA == 0:
            self.refuse_nonfinite(engine.state.iteration)

    def refuse_nonfinite(self, iteration: int) -> None:
        """Raise ``DivergedError`` if a loss of this epoch was NaN or infinite."""
        if not self._sums or bool(torch.isfinite(self._sums["loss"])):
            return
        raise DivergedError(
            "LOSS_NOT_FINITE",
            f"the training loss is no longer a number at iteration {iteration}: lower "
            "learning_rate, or set gradient_clip=1 and precision=float32; last.ckpt holds the "
            "state before",
        )

    def means(self) -> dict[str, float]:
        """Mean of each term over the batches of the epoch so far."""
        return {name: float(value) / self._batches for name, value in self._sums.items()}

    def clear(self) -> None:
        """Begin a new epoch."""
        self._sums, self._batches = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; float64 holds a float32 sum exactly."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"sums": sums, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on within an epoch."""
        sums = state["sums"].items()
        self._sums = {
            name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in sums
        }
        self._batches = int(state["batches"])


class Clip:
    """Shorten the gradient to a largest norm before the optimiser steps."""

    def __init__(self, network: nn.Module, largest: float) -> None:
        self._network, self._largest = network, largest

    def attach(self, engine: Engine) -> None:
        """Run between backward pass and step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip in place."""
        nn.utils.clip_grad_norm_(self._network.parameters(), self._largest)


class Statistics:
    """Measure batch-normalisation statistics with the weights that are about to be validated."""

    def __init__(
        self, feed: StatisticsFeed, forward: Forward, *, network: nn.Module, device: torch.device
    ) -> None:
        self._feed, self._forward = feed, forward
        self._network, self._device = network, device

    def attach(self, engine: Engine) -> None:
        """Run when an epoch ends; attach it before the validation."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Measure in place."""
        remeasure(self._network, map(self._prepared, self._feed), forward=self._forward)

    def _prepared(self, images: Tensor) -> Tensor:
        return images.to(self._device, memory_format=torch.channels_last)


class Collector:
    """Gather an evaluator's predictions, and score them when the split is through."""

    def __init__(self, losses: Losses | None = None, *, prefix: str = "") -> None:
        self._losses, self._prefix = losses, prefix
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._values: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Follow the evaluator from batch to batch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._score)

    def _clear(self, engine: Engine) -> None:
        self._logits, self._labels, self._values = [], [], []

    def _gather(self, engine: Engine) -> None:
        output: Any = engine.state.output
        prediction, labels = output["pred"], output["label"]
        self._logits.append(prediction.logits)
        self._labels.append(labels)
        if self._losses is not None:
            found = self._losses.evaluate(prediction, labels)
            self._values.append(found.loss * len(labels))

    def _score(self, engine: Engine) -> None:
        if self._losses is None:
            return
        labels, probabilities = self.labels, self.probabilities
        found = {
            "loss": float(torch.stack(self._values).sum()) / len(labels),
            "balanced_accuracy": scores.balanced_accuracy(labels, probabilities.argmax(axis=1)),
            "accuracy": float(np.mean(labels == probabilities.argmax(axis=1))),
            "auc": scores.area_under_curve(labels, probabilities),
        }
        named = {name: value for name, value in found.items() if value is not None}
        engine.state.metrics = {self._prefix + name: value for name, value in named.items()}

    @property
    def labels(self) -> np.ndarray:
        """Labels in the order of the split."""
        return torch.cat(self._labels).cpu().numpy()

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits in float64, in the order of the split."""
        return torch.cat(self._logits).double().softmax(dim=1).cpu().numpy()


class Reporter:
    """Tell whoever watches how far training is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total = progress, total

    def attach(self, engine: Engine) -> None:
        """Report every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Report one iteration."""
        self._progress("training", engine.state.iteration, self._total)


class Every:
    """Call something after every ``iterations`` iterations, but not where an epoch ends.

    There the epoch's own checkpoint follows, after validation: one written before it would make a
    resumed run skip the validation.
    """

    def __init__(self, iterations: int, action: Callable[[Engine], None]) -> None:
        self._iterations, self._action = iterations, action

    def attach(self, engine: Engine) -> None:
        """Run after the schedule has stepped; attach it last."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=self._iterations), self)

    def __call__(self, engine: Engine) -> None:
        """Act unless the epoch ends here."""
        length = engine.state.epoch_length
        if length is not None and engine.state.iteration % length:
            self._action(engine)
