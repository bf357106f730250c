"""The training loop: MONAI's engines, what is attached to them, and the checkpoint."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from jaxtyping import Float
from monai.engines.evaluator import SupervisedEvaluator
from monai.engines.trainer import SupervisedTrainer
from monai.handlers.lr_schedule_handler import LrScheduleHandler
from monai.handlers.tensorboard_handlers import TensorBoardStatsHandler
from monai.handlers.validation_handler import ValidationHandler
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from models.domain import Domain
from models.losses import WEIGHTINGS
from models.networks import Classifier
from pipelines import handlers, outcome
from pipelines import run as run_files
from pipelines.ahead import Ahead
from pipelines.assemble import Forward, TrainingData, to_device
from pipelines.config import RunConfig, TrainConfig
from pipelines.distributed import ALONE, Processes
from pipelines.feed import EvaluationFeed, Order, StatisticsFeed, Store, TrainingFeed
from pipelines.label_sets import Labels
from pipelines.mask_feed import MaskedFeed
from pipelines.outcome import Predicted
from pipelines.progress import Progress
from pipelines.robust import RobustTraining, robust_of
from pipelines.step import Step

LARGEST_WEIGHT = 50.0
"""Of a rare finding: labels mined from reports are wrong in up to a tenth of the pictures (Wang et
al., CVPR 2017), and one wrong label should not outweigh the batches around it."""


@dataclass(slots=True, kw_only=True)
class History:
    """What is remembered from epoch to epoch."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    finished: bool = False

    def improves(self, row: Mapping[str, float]) -> bool:
        """Say whether its loss is lower: a score over few patients takes few values, by chance."""
        return not self.best or row["validation_loss"] < self.best["loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What stays the same from the first to the last step of one run.

    Attributes
    ----------
    masks
        Of the training pictures, where the objective asks for them.
    domain
        Where the objective may move pictures to; None for standard training.
    """

    config: RunConfig
    run: Path
    data: TrainingData
    stores: Mapping[str, Store]
    device: torch.device
    network: Classifier
    progress: Progress
    processes: Processes = ALONE
    masks: Store | None = None
    domain: Domain | None = None

    @property
    def settings(self) -> TrainConfig:
        """How to train."""
        return self.config.train

    def evaluation(self, split: str) -> EvaluationFeed:
        """Every labelled picture of a split, once and in order."""
        return EvaluationFeed(
            self.stores[split],
            self.data.splits[split].labels,
            measured=self.config.normalisation,
            batch_size=self.settings.batch_size,
            launch=self.processes.launch,
        )


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = MappingProxyType(
    {"adamw": AdamW, "adam": Adam, "sgd": partial(SGD, momentum=0.9, nesterov=True)}
)
"""Name of an optimiser -> how it is made."""


class Loop:
    """The trainer with everything around it, and its checkpoint."""

    def __init__(self, task: Task, state: Mapping[str, Any] | None) -> None:
        self.task, self.history = task, History()
        self.losses = _losses(task)
        settings = task.settings
        self.optimizer = OPTIMIZERS[settings.optimizer](
            _parameter_groups(task.network, settings.weight_decay), lr=settings.learning_rate
        )
        self.order = Order(
            labels=task.data.splits["train"].labels,
            batch_size=settings.batch_size,
            seed=settings.seed,
            balanced=settings.balance == "sampler" and task.config.data.task == "multi-class",
            launch=task.processes.launch,
        )
        self.step = Step(
            parts=settings.accumulate,
            pictures=self.order.width / task.processes.world,
            device=task.device,
            precision=settings.precision,
            robust=self._robust(),
        )
        self.length = self.order.epoch_length
        self.total = self.length * settings.epochs
        self.schedule = _schedule(self.optimizer, settings, self.length)
        self.iteration = 0 if state is None else self._restore(state)
        self.events = handlers.events(
            task.run / run_files.EVENTS, step=self.iteration + 1, written=task.processes.leads
        )
        self.started = time.monotonic()
        self.trainer = self._trainer()

    def run(self) -> History:
        """Train what is left to train."""
        try:
            if self.task.processes.first(self._needs_first_checkpoint):
                self._save(self.trainer)
            if not self.history.finished and self.iteration < self.total:
                self.trainer.run()
            self.history.finished = True
            self._save(self.trainer)
        finally:
            self.events.close()
        return self.history

    def _needs_first_checkpoint(self) -> bool:
        """Say whether a resume could not draw the first weights again."""
        started = (self.task.run / run_files.CHECKPOINT).exists()
        return not started and self.task.config.origin.kind != "random"

    def _robust(self) -> RobustTraining | None:
        """Return what robust objectives are trained by; standard training has no part in it."""
        task = self.task
        if task.domain is None:
            return None
        return RobustTraining(
            robust_of(task.settings, task.network.image_size),
            network=task.network,
            domain=task.domain,
            forward=Forward(task.device, task.settings.precision),
            losses=self.losses,
            order=self.order,
        )

    def _feed(self) -> TrainingFeed | MaskedFeed:
        task, augment = self.task, self.task.settings.augment
        feed = TrainingFeed(
            task.stores["train"],
            self.order,
            measured=task.config.normalisation,
            settings=augment,
            start=self.iteration,
        )
        if task.masks is None:
            return feed
        return MaskedFeed(
            feed, task.masks, order=self.order, settings=augment, start=self.iteration
        )

    def _trainer(self) -> SupervisedTrainer:
        task, feed = self.task, self._feed()
        trainer = SupervisedTrainer(
            device=task.device,
            max_epochs=task.settings.epochs,
            # an accelerator computes by itself while the next batch is asked for
            train_data_loader=Ahead(feed) if task.device.type == "cpu" else feed,
            network=self._network(),
            optimizer=self.optimizer,
            loss_function=self.losses,
            epoch_length=self.length,
            prepare_batch=to_device,
            iteration_update=self.step,
            inferer=Forward(task.device, task.settings.precision),
            train_handlers=self._handlers(),
            decollate=False,
            optim_set_to_none=True,
        )
        trainer.state.iteration = self.iteration
        trainer.state.epoch = self.iteration // self.length
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._close_epoch)
        _quiet(trainer)
        return trainer

    def _network(self) -> nn.Module:
        network = self.task.network
        return self.task.processes.joint(
            network,
            called=_compiled(network) if self.task.settings.compile else network,
            device=self.task.device,
            penalised=self.losses.alpha > 0,
        )

    def _handlers(self) -> list[Any]:
        """In the order they run: schedule, log, checkpoint; then statistics, validation."""
        settings = self.task.settings
        attached: list[Any] = [self.losses]
        if settings.gradient_clip:
            attached.append(handlers.Clip(self.task.network, settings.gradient_clip))
        if isinstance(self.schedule, LambdaLR):
            attached.append(_stepping(self.schedule))
        attached += [
            handlers.Reporter(self.task.progress, self.total),
            TensorBoardStatsHandler(
                summary_writer=self.events,  # pyright: ignore[reportArgumentType] - has what is used
                iteration_log=max(1, self.length // 10),
                epoch_log=False,
                output_transform=lambda output: {"training_loss": output["loss"].detach()},
            ),
        ]
        if settings.checkpoint_iterations:
            attached.append(handlers.Every(settings.checkpoint_iterations, self._save))
        if settings.statistics_pictures:
            attached.append(self._statistics())
        self.validator = self._validator()
        attached.append(ValidationHandler(interval=1, validator=self.validator))
        if isinstance(self.schedule, ReduceLROnPlateau):
            loss = "validation_loss"
            attached.append(
                LrScheduleHandler(
                    self.schedule,
                    print_lr=False,
                    step_transform=lambda _: self.validator.state.metrics[loss],
                )
            )
        return attached

    def _statistics(self) -> handlers.Statistics:
        task = self.task
        feed = StatisticsFeed(
            task.stores["train"],
            self.order,
            measured=task.config.normalisation,
            pictures=task.settings.statistics_pictures,
        )
        forward = Forward(task.device, task.settings.precision)
        return handlers.Statistics(feed, forward, network=task.network, device=task.device)

    def _validator(self) -> SupervisedEvaluator:
        collector = handlers.Collector(
            self.losses, prefix="validation_", processes=self.task.processes
        )
        log = TensorBoardStatsHandler(
            summary_writer=self.events,  # pyright: ignore[reportArgumentType] - has what is used
            iteration_log=False,
            global_epoch_transform=lambda _: self.trainer.state.iteration,
        )
        return _evaluator(self.task, "validation", [collector, log])

    def _close_epoch(self, engine: Engine) -> None:
        """Record the epoch, keep the model if it is the best so far, write the checkpoint."""
        self.losses.refuse_nonfinite(engine.state.iteration)
        row = self._row(engine)
        self.history.rows.append(row)
        if self.history.improves(row):
            self.history.best = _best(row)
            if self.task.processes.leads:
                run_files.save_weights(self.task.run, self.task.network)
        self.losses.clear()
        if self.task.processes.leads:
            table = outcome.tabulate(self.history.rows)
            run_files.write_table(self.task.run / run_files.METRICS, table)
        patience = self.task.settings.patience
        if patience and row["epoch"] - self.history.best["epoch"] >= patience:
            self.history.finished = True
            engine.terminate()
        self._save(engine)

    def _row(self, engine: Engine) -> dict[str, float]:
        seconds, self.started = time.monotonic() - self.started, time.monotonic()
        rate = float(self.optimizer.param_groups[0]["lr"])
        trained = {f"train_{name}": value for name, value in self.losses.means().items()}
        validated = {name: float(value) for name, value in self.validator.state.metrics.items()}
        epoch = float(engine.state.epoch)
        return {"epoch": epoch, "learning_rate": rate, **trained, **validated, "seconds": seconds}

    def _save(self, engine: Engine) -> None:
        self.losses.refuse_nonfinite(engine.state.iteration)
        cuda = self.task.device.type == "cuda"
        state = {
            "network": self.task.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "losses": self.losses.state_dict(),
            "history": asdict(self.history),
            "iteration": engine.state.iteration,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.task.device) if cuda else None,
            "threads": torch.get_num_threads(),
        }
        if self.task.processes.leads:
            run_files.save_checkpoint(self.task.run, state)

    def _restore(self, state: Mapping[str, Any]) -> int:
        self.task.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:
            self.step.scaler.load_state_dict(state["scaler"])
        self.losses.load_state_dict(state["losses"], self.task.device)
        self.history = History(**state["history"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.task.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.task.device)
        return int(state["iteration"])


def predict(task: Task, split: str) -> Predicted:
    """Let the network in the task, as it is, classify a split."""
    collector = handlers.Collector(processes=task.processes)
    _evaluator(task, split, [collector]).run()
    return Predicted(
        split=split,
        pictures=task.data.splits[split],
        probabilities=collector.probabilities,
    )


def _evaluator(task: Task, split: str, attached: list[Any]) -> SupervisedEvaluator:
    feed = task.evaluation(split)
    evaluator = SupervisedEvaluator(
        device=task.device,
        val_data_loader=feed,
        network=task.network,
        epoch_length=len(feed),
        prepare_batch=to_device,
        inferer=Forward(task.device, task.settings.precision),
        val_handlers=attached,
        decollate=False,
    )
    _quiet(evaluator)
    return evaluator


def _best(row: Mapping[str, float]) -> dict[str, float]:
    """Keep of an epoch its loss, and the first score that its validation split defines."""
    best = {"epoch": row["epoch"], "loss": row["validation_loss"]}
    for name in ("balanced_accuracy", "auc"):
        if f"validation_{name}" in row:
            return best | {name: row[f"validation_{name}"]}
    return best


def _compiled(network: nn.Module) -> nn.Module:
    """Compile for training; weights and buffers are shared, and evaluation uses the network."""
    return torch.compile(network)  # pyright: ignore[reportReturnType] - a module for a module


def _quiet(engine: Engine) -> None:
    """Errors reach the caller as exceptions; the engine need not print them as well."""
    engine.logger.setLevel(logging.CRITICAL)


def _losses(task: Task) -> handlers.Losses:
    settings = task.settings
    labels = task.data.splits["train"].labels
    weights = None
    if settings.balance == "loss":
        weights = torch.from_numpy(rarity(labels, classes=len(task.config.data.classes)))
        weights = weights.to(task.device)
    counted = settings.balance in WEIGHTINGS
    default = task.network.default_alpha
    return handlers.Losses(
        alpha=default if settings.alpha is None else settings.alpha,
        class_weights=weights,
        label_smoothing=settings.label_smoothing,
        weighting=settings.balance if counted else "",
        label_weights=WEIGHTINGS[settings.balance](torch.from_numpy(labels)) if counted else None,
        processes=task.processes,
    )


def rarity(labels: Labels, *, classes: int) -> Float[np.ndarray, " k"]:
    """Weight of each class: the mean over samples is 1, and classes weigh the same in total.

    Of label sets, the weight of a picture that shows a finding, where one that does not weighs 1:
    absent over present, at most ``LARGEST_WEIGHT``; 1 where there is one kind only.
    """
    if labels.ndim > 1:
        present = labels.sum(axis=0, dtype=np.int64)
        absent = len(labels) - present
        ratio = np.minimum(absent / np.maximum(present, 1), LARGEST_WEIGHT)
        return np.where((present > 0) & (absent > 0), ratio, 1).astype(np.float32)
    counts = np.bincount(labels, minlength=classes).astype(np.float32)
    present = np.count_nonzero(counts)
    return np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0).astype(
        np.float32
    )


def _stepping(schedule: LambdaLR) -> LrScheduleHandler:
    return LrScheduleHandler(
        schedule,  # pyright: ignore[reportArgumentType] - MONAI names torch's older base class
        print_lr=False,
        epoch_level=False,
    )


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay weights of convolutions and linear maps; not biases, scales of norms or witnesses."""
    trained = [value for value in network.parameters() if value.requires_grad]
    # a witness has one number per cell of a map, and is no map of features
    plain = {id(value) for name, value in network.named_parameters() if name.endswith("witness")}
    matrices = [value for value in trained if value.ndim >= 2 and id(value) not in plain]
    others = [value for value in trained if value.ndim < 2 or id(value) in plain]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _schedule(
    optimizer: Optimizer, settings: TrainConfig, length: int
) -> LRScheduler | ReduceLROnPlateau | None:
    if settings.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=settings.plateau_patience)
    warm = round(settings.warmup_epochs * length)
    total = settings.epochs * length
    cosine = settings.schedule == "cosine"

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if not cosine:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    return LambdaLR(optimizer, factor)
