"""Shards to a trained classifier in a run folder.

The best model is chosen on the validation split; the test split is looked at once, at the end. On a
CPU a run that is killed at any moment and resumed ends with the same files of weights, byte for
byte, as one that is not: a checkpoint also says how many threads summed its gradients, and resuming
takes as many. Another kind of processor, or another version of torch, rounds otherwise.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.adversarial import Robust
from models.domain import Domain
from models.networks import Classifier
from pipelines import machine, outcome
from pipelines import run as run_files
from pipelines.assemble import TrainingData, network_for, open_for_training, pick_device
from pipelines.config import Normalisation, Origin, RunConfig, TrainConfig
from pipelines.distributed import ALONE, Processes
from pipelines.errors import DataError, UsageError
from pipelines.feed import Pictures, Store, measure
from pipelines.forecast import Forecast, forecast, refuse_full_disk, within_memory
from pipelines.label_permutation import with_chosen_labels
from pipelines.machine import threads_for
from pipelines.mask_feed import masks_of
from pipelines.outcome import Predicted, TestScores
from pipelines.presets import differences
from pipelines.progress import Progress, silent
from pipelines.robust import domain_of, remarks_on, robust_of, valid_range
from pipelines.start import Beginning, Start, begin, begin_again, described
from pipelines.stores import store
from pipelines.trainable import refuse_balance
from pipelines.training_loop import History, Loop, Task, predict
from preprocessing.journal import OutputLock

WITHOUT_EFFECT_ON_WEIGHTS = {"preset", "workers", "feed", "checkpoint_iterations", "bootstrap"}
AT_RANDOM = Start()


def unheard(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What training did.

    Attributes
    ----------
    best
        ``epoch``, ``loss`` and ``balanced_accuracy`` (of label sets: ``auc``) on the validation
        split.
    epochs
        Epochs trained, those before a resume included.
    test
        Scores on the test split; None where it is empty.
    remarks
        What is unusual about the data set.
    """

    best: Mapping[str, float]
    epochs: int
    test: TestScores | None
    parameters: int
    remarks: tuple[str, ...]

    def summary(self) -> str:
        """Say in one line how good the model is."""
        best = (
            f"{outcome.validated(self.best)} on validation at epoch "
            f"{self.best['epoch']:.0f} of {self.epochs}"
        )
        if self.test is None:
            return f"{best}; no test split"
        return "; ".join([best, self.test.headline(), *self.remarks])

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
    start: Start = AT_RANDOM,
    resume: bool = False,
    tell: Callable[[str], None] = unheard,
    progress: Progress = silent,
    processes: Processes = ALONE,
) -> TrainReport:
    """Train a classifier, choose its best epoch on validation, and score it once on test.

    Parameters
    ----------
    data
        A data set folder.
    run
        A new or empty folder; with ``resume``, one that training was interrupted in.
    start
        Where the first weights come from; a resumed run needs it no more.
    tell
        Called with what the run will ask of the machine, before anything is written.
    processes
        Those that train together (``pipelines.distributed.joined``). The data set must be there for
        all of them; run and start are read and written by the first alone, which alone tells.

    Raises
    ------
    UsageError
        Unknown names or sizes that cannot be gated; ``RESUME_DIFFERS`` from the run's settings;
        ``NO_COMPILER``, ``CUBLAS_WORKSPACE``; and as ``pipelines.start``.
    DataError
        The data set cannot be trained on, its labels cannot be permuted as asked, or it is not the
        one that the run was begun with.
    RunExists
        The folder holds something already.
    DivergedError
        The loss is no longer a number.
    MemoryShortError
        A batch does not fit into memory.
    ShardError, OutputError
        The data set is broken; the disk is full, or another process trains into the folder.
    """
    with _prepared(
        config, data=data, run=run, start=start, resume=resume, processes=processes
    ) as ready:
        for line in ready.forecast.lines() if processes.leads else ():
            tell(line)
        with ExitStack() as held, within_memory(config, ready.forecast):
            processes.first(lambda: _claim(run, held, resume=resume, wanted=ready.forecast))
            return _train(_begin(config, ready, run=run, progress=progress))


def _claim(run: Path, held: ExitStack, *, resume: bool, wanted: Forecast) -> None:
    """Take the run folder, and keep others out of it until training ends."""
    refuse_full_disk(wanted, run)
    run_files.claim(run, resume=resume)
    held.enter_context(OutputLock(run))
    run_files.clear_parts(run)


def rehearse(
    config: TrainConfig,
    *,
    data: Path,
    run: Path,
    start: Start = AT_RANDOM,
    resume: bool = False,
    processes: Processes = ALONE,
) -> Forecast:
    """Do all that ``train`` does before it writes, with its refusals, and write nothing."""
    with _prepared(
        config, data=data, run=run, start=start, resume=resume, processes=processes
    ) as ready:
        processes.first(lambda: refuse_full_disk(ready.forecast, run))
        return ready.forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """All that a run begins with; ``kept`` is None for a new one.

    Its normalisation is None where it is still to be measured.
    """

    processes: Processes
    data: TrainingData
    network: Classifier
    device: torch.device
    kept: RunConfig | None
    origin: Origin
    normalisation: Normalisation | None
    forecast: Forecast
    objective: Robust
    masks: Pictures | None


@contextmanager
def _prepared(
    config: TrainConfig,
    *,
    data: Path,
    run: Path,
    start: Start,
    resume: bool,
    processes: Processes,
) -> Iterator[_Ready]:
    device = processes.device(pick_device(config.device))
    if config.compile:
        machine.refuse_no_compiler(device)
    found = with_chosen_labels(open_for_training(data, image_size=config.image_size), config)
    refuse_balance(config.balance, found.summary.task)
    processes.refuse_small_batch(min(config.batch_size, len(found.splits["train"])))
    processes.refuse_other_data(found.summary)
    with machine.reproducible(config.seed, device, deterministic=config.deterministic):
        network = network_for(config, found.summary)
        objective = robust_of(config, network.image_size)
        masks = _masks(objective, found)
        kept, beginning = processes.first(
            lambda: _opened(config, network, found, run=run, start=start, resume=resume)
        )
        processes.same_weights(network)
        if config.freeze_trunk:
            network.trunk.freeze()
        with within_memory(config):
            network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - not in its stubs
            share = {"batch_size": -(-config.batch_size // processes.world)}
            wanted = forecast(
                network, settings=config.model_copy(update=share), data=found, device=device
            )
        processes.synchronised(network, device)
        yield _Ready(
            processes=processes,
            data=found,
            network=network,
            device=device,
            kept=kept,
            origin=beginning.origin,
            normalisation=beginning.normalisation,
            forecast=wanted,
            objective=objective,
            masks=masks,
        )


def _masks(objective: Robust, found: TrainingData) -> Pictures | None:
    if not objective.needs_masks:
        return None
    return masks_of(found.splits["train"], objective=objective.name)


def _opened(
    config: TrainConfig,
    network: Classifier,
    found: TrainingData,
    *,
    run: Path,
    start: Start,
    resume: bool,
) -> tuple[RunConfig | None, Beginning]:
    """Read what the run folder holds already, and put the first weights into the network."""
    run_files.refuse_taken(run, resume=resume)
    if not (run / run_files.CONFIG).exists():
        return None, begin(network, start, settings=config, data=found)
    kept = run_files.read_config(run)
    _refuse_other(kept, config, found)
    return kept, begin_again(network, start, kept=kept, run=run, data=found)


def _begin(config: TrainConfig, ready: _Ready, *, run: Path, progress: Progress) -> Task:
    progress = progress if ready.processes.leads else silent
    stores = _stores(config, ready, progress)
    resolved = ready.processes.first(lambda: _resolved(config, ready, stores["train"], run=run))
    return Task(
        config=resolved.model_copy(update={"train": config}),
        run=run,
        data=ready.data,
        stores=stores,
        device=ready.device,
        network=ready.network,
        progress=progress,
        processes=ready.processes,
        masks=None if ready.masks is None else _store(config, ready, ready.masks, progress),
        domain=_domain(ready, stores["train"], resolved.normalisation),
    )


def _domain(ready: _Ready, pictures: Store, measured: Normalisation) -> Domain | None:
    """Measure where a robust objective may move pictures to; standard training moves none."""
    if not ready.objective.active:
        return None
    count = len(ready.data.splits["train"])
    valid = ready.processes.first(lambda: valid_range(pictures, count))
    return domain_of(measured, valid, device=ready.device)


def _resolved(config: TrainConfig, ready: _Ready, pictures: Store, *, run: Path) -> RunConfig:
    """Write what is known before the first step; a run to be resumed keeps what it began with."""
    resolved, found = ready.kept, ready.data
    if resolved is None:
        split = found.splits["train"]
        measured = ready.normalisation or measure(pictures, len(split), scored=split.scored)
        resolved = RunConfig(
            data=found.summary, normalisation=measured, train=config, origin=ready.origin
        )
        run_files.write_text(run / run_files.CONFIG, resolved.to_yaml())
    if not (run / run_files.CHECKPOINT).exists():  # then all of the training happens here
        run_files.write_text(run / run_files.ENVIRONMENT, run_files.environment(ready.device))
    return resolved


def _stores(config: TrainConfig, ready: _Ready, progress: Progress) -> dict[str, Store]:
    """Training and validation pictures are met every epoch, test pictures once."""
    return {
        split: _store(config, ready, pictures, progress, unseen=split == "test")
        for split, pictures in ready.data.splits.items()
    }


def _store(
    config: TrainConfig,
    ready: _Ready,
    pictures: Pictures,
    progress: Progress,
    *,
    unseen: bool = False,
) -> Store:
    return store(
        pictures,
        feed="stream" if unseen else config.feed,
        device=ready.device,
        workers=config.workers,
        sharing=ready.processes.launch.local_world,
        progress=progress,
    )


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
    state = task.processes.first(lambda: _state(task.run))
    with threads_for(torch.get_num_threads() if state is None else state["threads"]):
        history = Loop(task, state).run()
        return _conclude(task, history)


def _state(run: Path) -> dict[str, Any] | None:
    state = run_files.load_checkpoint(run)
    if state is None:
        run_files.unseal(run)
    return state


def _conclude(task: Task, history: History) -> TrainReport:
    """Let all processes predict with the best model, and the first write what a run leaves."""
    task.processes.first(lambda: run_files.load_weights(task.run, task.network))
    task.processes.same_weights(task.network)
    splits = [split for split in ("validation", "test") if len(task.data.splits[split])]
    predicted = {split: predict(task, split) for split in splits}
    return task.processes.first(lambda: _reported(task, history, predicted))


def _reported(task: Task, history: History, predicted: Mapping[str, Predicted]) -> TrainReport:
    """Score the best model and write what a run leaves for people."""
    remarks = (
        *task.data.remarks,
        *task.processes.remarks(variant=task.settings.variant),
        *remarks_on(task.settings, task.config.normalisation),
    )
    classes = task.config.data.classes
    outcome.write_predictions(task.run, list(predicted.values()), classes)
    epoch = int(history.best["epoch"])
    outcome.draw_curves(task.run, history.rows, best_epoch=epoch, data=task.config.data)
    test = predicted.get("test")
    scores = None if test is None else outcome.score_test(task.run, test, task.config)
    parameters = sum(value.numel() for value in task.network.parameters())
    card = outcome.model_card(
        task.config,
        parameters=parameters,
        best=history.best,
        test=scores,
        remarks=remarks,
    )
    run_files.write_text(task.run / run_files.CARD, card + _beginning_of(task.config))
    run_files.seal(task.run)
    return TrainReport(
        best=history.best,
        epochs=len(history.rows),
        test=scores,
        parameters=parameters,
        remarks=(*remarks, *_start_remarks(task.config)),
    )


def _start_remarks(config: RunConfig) -> tuple[str, ...]:
    return () if config.origin.kind == "random" else described(config.origin)


def _beginning_of(config: RunConfig) -> str:
    """Tell, for the model card, what training started from and what it owes to a preset."""
    lines = ["", "## Start", "", *(f"- {line}" for line in described(config.origin))]
    if config.train.freeze_trunk:
        lines.append("- the trunk is frozen: its weights and statistics are those of the start")
    preset = config.train.preset
    if preset:
        lines += ["", "## Recipe", "", f"Preset {preset}; settings given beside it win."]
    if differences(preset):
        lines += ["What differs from the paper on purpose:", ""]
        lines += [f"- {line}" for line in differences(preset)]
    return "\n".join(lines) + "\n"
