"""Shards to a trained classifier in a run folder.

The best model is chosen on the validation split; the test split is looked at once, at the end. On a
CPU a run that is killed at any moment and resumed ends with the same files of weights, byte for
byte, as one that is not: a checkpoint also says how many threads summed its gradients, and resuming
takes as many. Another kind of processor, or another version of torch, rounds otherwise.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.networks import Classifier
from pipelines import outcome
from pipelines import run as run_files
from pipelines.assemble import TrainingData, network_for, open_for_training, pick_device
from pipelines.config import RunConfig, TrainConfig
from pipelines.errors import DataError, UsageError
from pipelines.feed import Store, measure, store
from pipelines.progress import Progress, silent
from pipelines.scores import SplitScores
from pipelines.training_loop import History, Loop, Task, predict
from preprocessing.journal import OutputLock

WITHOUT_EFFECT_ON_WEIGHTS = {"workers", "feed", "checkpoint_iterations", "bootstrap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What training did.

    Attributes
    ----------
    best
        ``epoch``, ``balanced_accuracy`` and ``loss`` on the validation split.
    epochs
        Epochs trained, those before a resume included.
    test
        Scores on the test split; None where it is empty.
    remarks
        What is unusual about the data set.
    """

    best: Mapping[str, float]
    epochs: int
    test: SplitScores | None
    parameters: int
    remarks: tuple[str, ...]

    def summary(self) -> str:
        """Say in one line how good the model is."""
        best = (
            f"balanced accuracy {self.best['balanced_accuracy']:.3f} on validation at epoch "
            f"{self.best['epoch']:.0f} of {self.epochs}"
        )
        if self.test is None:
            return f"{best}; no test split"
        found = self.test.balanced_accuracy
        test = (
            f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f}) on the test split of "
            f"{self.test.patients} patients, guessing gives {self.test.chance:.3f}"
        )
        return "; ".join([best, test, *self.remarks])

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "best": dict(self.best),
            "epochs": self.epochs,
            "parameters": self.parameters,
            "remarks": list(self.remarks),
            "test": None if self.test is None else self.test.as_json(),
        }


def train(
    config: TrainConfig,
    *,
    data: Path,
    run: Path,
    resume: bool = False,
    progress: Progress = silent,
) -> TrainReport:
    """Train a classifier, choose its best epoch on validation, and score it once on test.

    Parameters
    ----------
    data
        A data set folder.
    run
        A new or empty folder; with ``resume``, one that training was interrupted in.

    Raises
    ------
    UsageError
        Unknown names or sizes that cannot be gated; ``RESUME_DIFFERS`` from the run's settings.
    DataError
        The data set cannot be trained on, or is not the one that the run was begun with.
    RunExists
        The folder holds something already.
    DivergedError
        The loss is no longer a number.
    ShardError, OutputError
        The data set is broken; the disk is full, or another process trains into the folder.
    """
    device = pick_device(config.device)
    found = open_for_training(data, image_size=config.image_size)
    with _seeded(config.seed, device):
        network = network_for(config, found.summary).to(device)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stubs
        run_files.claim(run, resume=resume)
        with OutputLock(run):
            run_files.clear_parts(run)
            task = _begin(config, found, network, run=run, device=device, progress=progress)
            return _train(task)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and ask for reproducible kernels; give both back as they were."""
    devices = [device] if device.type == "cuda" else []
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads; give back as many as there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _begin(
    config: TrainConfig,
    found: TrainingData,
    network: Classifier,
    *,
    run: Path,
    device: torch.device,
    progress: Progress,
) -> Task:
    stores = _stores(config, found, device, progress)
    if (run / run_files.CONFIG).exists():
        resolved = run_files.read_config(run)
        _refuse_other(resolved, config, found)
    else:
        measured = measure(stores["train"], len(found.splits["train"]))
        resolved = RunConfig(data=found.summary, normalisation=measured, train=config)
        run_files.write_text(run / run_files.CONFIG, resolved.to_yaml())
    if not (run / run_files.CHECKPOINT).exists():  # then all of the training happens here
        run_files.write_text(run / run_files.ENVIRONMENT, run_files.environment(device))
    resolved = resolved.model_copy(update={"train": config})
    return Task(
        config=resolved,
        run=run,
        data=found,
        stores=stores,
        device=device,
        network=network,
        progress=progress,
    )


def _stores(
    config: TrainConfig, found: TrainingData, device: torch.device, progress: Progress
) -> dict[str, Store]:
    """Training and validation pictures are met every epoch, test pictures once."""
    stores: dict[str, Store] = {}
    for split, pictures in found.splits.items():
        feed = "stream" if split == "test" else config.feed
        stores[split] = store(
            pictures, feed=feed, device=device, workers=config.workers, progress=progress
        )
    return stores


def _refuse_other(resolved: RunConfig, config: TrainConfig, found: TrainingData) -> None:
    if resolved.data != found.summary:
        raise DataError(
            "DATA_CHANGED",
            "the run to resume was begun with another data set, or this one was rebuilt since: "
            "name the same --data, or begin a new run",
        )
    before, now = resolved.train.model_dump(), config.model_dump()
    differing = [
        name
        for name in before
        if before[name] != now[name] and name not in WITHOUT_EFFECT_ON_WEIGHTS
    ]
    if differing:
        changes = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in differing)
        raise UsageError(
            "RESUME_DIFFERS",
            f"the run to resume was begun with other settings ({changes}): resume with its own "
            "settings, or begin a new run",
        )


def _train(task: Task) -> TrainReport:
    state = run_files.load_checkpoint(task.run)
    if state is None:
        run_files.unseal(task.run)
    with _threads(torch.get_num_threads() if state is None else state["threads"]):
        history = Loop(task, state).run()
        return _conclude(task, history)


def _conclude(task: Task, history: History) -> TrainReport:
    """Score the best model and write what a run leaves for people."""
    run_files.load_weights(task.run, task.network)
    splits = [split for split in ("validation", "test") if len(task.data.splits[split])]
    predicted = {split: predict(task, split) for split in splits}
    classes = task.config.data.classes
    outcome.write_predictions(task.run, list(predicted.values()), classes)
    epoch = int(history.best["epoch"])
    outcome.draw_curves(task.run, history.rows, best_epoch=epoch, classes=len(classes))
    test = outcome.score_test(task.run, predicted["test"], task.config) if len(splits) > 1 else None
    parameters = sum(value.numel() for value in task.network.parameters())
    card = outcome.model_card(
        task.config,
        parameters=parameters,
        best=history.best,
        test=test,
        remarks=task.data.remarks,
    )
    run_files.write_text(task.run / run_files.CARD, card)
    run_files.seal(task.run)
    return TrainReport(
        best=history.best,
        epochs=len(history.rows),
        test=test,
        parameters=parameters,
        remarks=task.data.remarks,
    )
