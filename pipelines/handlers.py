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

from models.losses import WEIGHTINGS, LabelWeights, Objective, objective, sample_losses
from models.records import Prediction
from models.statistics import remeasure
from pipelines import label_sets, scores
from pipelines.assemble import Forward
from pipelines.distributed import ALONE, Processes
from pipelines.errors import DivergedError
from pipelines.feed import StatisticsFeed
from pipelines.label_set_scores import mean_area
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


class NoEvents:
    """Takes what ``EventFile`` takes, and keeps nothing: of several processes one writes."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Log nothing."""

    def flush(self) -> None:
        """Nothing was kept back."""

    def close(self) -> None:
        """Nothing is open."""


def events(folder: Path, *, step: int, written: bool) -> EventFile | NoEvents:
    """Begin a file of events where they are to be written."""
    return EventFile(folder, step=step) if written else NoEvents()


class Losses:
    """The loss function of the trainer, which keeps the sums of its terms over an epoch.

    Parameters
    ----------
    alpha, class_weights, label_smoothing
        As ``models.losses.objective``.
    weighting
        Name in ``models.losses.WEIGHTINGS``, counted in each training batch; "" for none.
    label_weights
        The same of the whole training split: those of a picture that is judged outside training,
        whose loss must not depend on its neighbours.
    processes
        Those that train together; each keeps the sums of its own pictures.
    """

    def __init__(
        self,
        *,
        alpha: float,
        class_weights: Tensor | None,
        label_smoothing: float,
        weighting: str = "",
        label_weights: LabelWeights | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.alpha, self._class_weights = alpha, class_weights
        self._weighting, self._label_weights = weighting, label_weights
        self._label_smoothing, self._processes = label_smoothing, processes
        self._sums: dict[str, Tensor] = {}
        self._pictures = 0

    def __call__(
        self,
        prediction: Prediction,
        labels: Tensor,
        *,
        weight: float = 1.0,
        prefix: str = "",
        counted: bool = True,
    ) -> Tensor:
        """Loss of a training batch, its terms added to the epoch's sums.

        Parameters
        ----------
        weight
            Share in the sum of losses; the loss returned is not multiplied by it.
        prefix
            Before the names of the terms.
        counted
            Whether the pictures count as met.
        """
        found = self._objective(prediction, labels, self._batch_weights(labels))
        terms = {prefix + name: values.sum() for name, values in found.terms.items()}
        self._add({"loss": found.loss.detach() * (len(labels) * weight), **terms})
        self._pictures += len(labels) if counted else 0
        return found.loss

    def charge(self, costs: Tensor, *, weight: float, name: str) -> Tensor:
        """Mean of what each picture costs beside its loss, added to the epoch's sums."""
        total = costs.detach().sum()
        self._add({"loss": total * weight, name: total})
        return costs.mean()

    def note(self, values: Tensor, *, name: str) -> None:
        """Remember what is no part of the loss: the mean over the epoch goes to the record."""
        self._add({name: values.detach().sum()})

    def classification(self, prediction: Prediction, labels: Tensor) -> Tensor:
        """Classification loss of each picture of a training batch; nothing is remembered."""
        return sample_losses(
            prediction,
            labels,
            class_weights=self._class_weights,
            label_weights=self._batch_weights(labels),
            label_smoothing=self._label_smoothing,
        )

    def _batch_weights(self, labels: Tensor) -> LabelWeights | None:
        return WEIGHTINGS[self._weighting](labels) if self._weighting else None

    def _add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def evaluate(self, prediction: Prediction, labels: Tensor) -> Objective:
        """Loss and terms of a batch; nothing is remembered."""
        return self._objective(prediction, labels, self._label_weights)

    def _objective(
        self, prediction: Prediction, labels: Tensor, label_weights: LabelWeights | None
    ) -> Objective:
        return objective(
            prediction,
            labels,
            alpha=self.alpha,
            class_weights=self._class_weights,
            label_weights=label_weights,
            label_smoothing=self._label_smoothing,
        )

    def each(self, prediction: Prediction, labels: Tensor) -> Tensor:
        """Loss of each picture; nothing is remembered."""
        terms = self.evaluate(prediction, labels).terms
        return terms["classification"] + self.alpha * terms["consistency"]

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
        """Mean of each term over the pictures that all processes met in the epoch so far."""
        state = self.state_dict()
        return {name: value / state["pictures"] for name, value in state["sums"].items()}

    def clear(self) -> None:
        """Begin a new epoch."""
        self._sums, self._pictures = {}, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over all processes as plain numbers; float64 holds float32 exactly."""
        sums = {
            name: float(self._processes.summed(value.double()))
            for name, value in self._sums.items()
        }
        pictures = self._processes.summed(torch.tensor(self._pictures))
        return {"sums": sums, "pictures": int(pictures)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on within an epoch; the first process takes over what all of them had summed."""
        if not self._processes.leads:
            sums = dict.fromkeys(state["sums"], 0.0)
            state = {"sums": sums, "pictures": 0}
        self._sums = {
            name: torch.tensor(value, dtype=torch.float32, device=device)
            for name, value in state["sums"].items()
        }
        self._pictures = int(state["pictures"])


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
    """Gather an evaluator's predictions, and score them when the split is through.

    Parameters
    ----------
    losses
        What a picture costs; without it nothing is scored.
    processes
        Those that share the split; each ends with all of its predictions.
    """

    def __init__(
        self, losses: Losses | None = None, *, prefix: str = "", processes: Processes = ALONE
    ) -> None:
        self._losses, self._prefix, self._processes = losses, prefix, processes
        self._index: list[Tensor] = []
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._values: list[Tensor] = []

    def attach(self, engine: Engine) -> None:
        """Follow the evaluator from batch to batch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._clear)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._score)

    def _clear(self, engine: Engine) -> None:
        self._index, self._logits, self._labels, self._values = [], [], [], []

    def _gather(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        prediction, labels = output["pred"], output["label"]
        self._index.append(batch["index"])
        self._logits.append(prediction.logits)
        self._labels.append(labels)
        if self._losses is not None:
            self._values.append(self._losses.each(prediction, labels))

    def _score(self, engine: Engine) -> None:
        index = torch.cat(self._index)
        for parts in (self._logits, self._labels, self._values):
            if parts:
                parts[:] = [self._processes.rejoined(torch.cat(parts), index)]
        if self._losses is not None:
            # one process scores: the others must never take another epoch for the best
            engine.state.metrics = self._processes.first(self._scores)

    def _scores(self) -> dict[str, float]:
        labels, probabilities = self.labels, self.probabilities
        found = {
            "loss": float(torch.cat(self._values).mean()),
            **_quick_scores(labels, probabilities),
        }
        return {self._prefix + name: value for name, value in found.items() if value is not None}

    @property
    def labels(self) -> np.ndarray:
        """Labels in the order of the split."""
        return torch.cat(self._labels).cpu().numpy()

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, or sigmoids for label sets, in the order of the split."""
        several = self._labels[0].ndim > 1
        task = "multi-label" if several else "multi-class"
        return label_sets.probabilities(torch.cat(self._logits), task)


def _quick_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Score a split after an epoch; None where a score is not defined."""
    if labels.ndim > 1:
        return {"auc": mean_area(labels, probabilities)}
    predictions = probabilities.argmax(axis=1)
    return {
        "balanced_accuracy": scores.balanced_accuracy(labels, predictions),
        "accuracy": float(np.mean(labels == predictions)),
        "auc": scores.area_under_curve(labels, probabilities),
    }


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
