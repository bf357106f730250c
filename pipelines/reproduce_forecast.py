"""What a reproduction will ask of the machine: disk, and about how long it takes.

Weights are counted on networks that take no memory. Time is that of a few steps of one network of
each group, times all the pictures, and times what a robust objective takes; what is said is good to
a factor of two.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from models.networks import Classifier
from pipelines.assemble import Forward, network_for, pick_device
from pipelines.config import DataSummary, RobustnessConfig, TrainConfig
from pipelines.evaluation_robust_choice import radii_of
from pipelines.forecast import OPTIMIZER_COPIES
from pipelines.label_sets import task_of
from pipelines.machine import threads_for
from pipelines.recipes import RECIPES
from pipelines.reproduce_groups import Group, Plan
from pipelines.robust import robust_of

RUN_FILES = 1_000_000  # plots, tables and events of a finished run
EVALUATION_PASSES = 200
"""Forward passes for one scored picture of one run: curves of two maps, and their explanations."""
SCORED = 200
MAPS_OF_AN_ATTACK = 200
"""Passes for an attack on one map: some 25 maps, of up to ten passes each."""
BACKWARD = 2  # a backward pass costs about two forward passes
BEYOND_STEPS = 1.3  # augmentation, validation and statistics beside the steps
TRIED_PIXELS = 1 << 17
REPEATS, PATIENCE_SECONDS = 3, 2.0
TRAIN_SHARE, TEST_SHARE = 0.68, 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanForecast:
    """What a plan will ask for.

    Attributes
    ----------
    groups
        Group -> its kinds of runs.
    runs
        In all.
    pictures
        In the data set, about: of real scans, as many as the paper's data hold.
    scan_seconds, training_seconds, evaluation_seconds
        About, with all jobs.
    """

    scans: str
    groups: dict[str, tuple[str, ...]]
    seeds: int
    runs: int
    jobs: int
    device: str
    pictures: int
    disk_bytes: int
    scan_seconds: float
    training_seconds: float
    evaluation_seconds: float
    left_out: tuple[str, ...]

    def lines(self) -> list[str]:
        """Say it to people."""
        lines = [f"scans: {self.scans}, about {_minutes(self.scan_seconds)} with the data set"]
        lines += [
            f"{name}: {len(kinds)} x {self.seeds} runs ({', '.join(kinds)})"
            for name, kinds in self.groups.items()
        ]
        lines += [
            f"{self.runs} trainings on about {self.pictures:,} pictures ({self.device}), "
            f"{self.jobs} at a time: about {_minutes(self.training_seconds)}",
            f"evaluation: about {_minutes(self.evaluation_seconds)}",
            f"disk: about {self.disk_bytes / 1e9:.1f} GB",
        ]
        return lines + [f"left out: {sentence}" for sentence in self.left_out]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def _minutes(seconds: float) -> str:
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def summary_of(plan: Plan, *, real: bool) -> DataSummary:
    """Return what the data set of a plan will be, before it is built."""
    recipe = RECIPES[plan.dataset]
    config = plan.real_build if real else plan.phantom_build
    layout = recipe.layout(config, plan.chain.sources(Path()))
    channels, rows, columns = layout["image"].shape
    return DataSummary(
        name=plan.dataset,
        classes=recipe.classes,
        in_channels=channels,
        picture_size=(rows, columns),
        task=task_of(layout),
        recipe=plan.dataset,
    )


def refuse_unbuildable(plan: Plan, summary: DataSummary) -> None:
    """Refuse what cannot be built before the first of many runs is begun.

    Raises
    ------
    UsageError
        As ``network_for``.
    """
    for group in plan.groups:
        for variant in group.variants:
            _unmade(group.training(variant, 0), summary)


def plan_bytes(runs: Sequence[TrainConfig], summary: DataSummary, jobs: int) -> int:
    """Disk that runs will take: each its weights, and as many checkpoints as are trained at once.

    Each is written beside the one that it replaces.
    """
    kinds = {(run.network, run.variant): run for run in runs}
    weights, working = {}, 0
    for kind, settings in kinds.items():
        network = _unmade(settings, summary)
        weights[kind] = sum(_bytes(value) for value in network.state_dict().values())
        learning = sum(_bytes(value) for value in network.parameters())
        copies = OPTIMIZER_COPIES[settings.optimizer]
        working = max(working, 2 * (2 * weights[kind] + copies * learning))
    return jobs * working + sum(weights[run.network, run.variant] + RUN_FILES for run in runs)


def _bytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def _unmade(settings: TrainConfig, summary: DataSummary) -> Classifier:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return network_for(settings, summary)


def forecast_plan(plan: Plan, *, seeds: int, jobs: int, real: bool) -> PlanForecast:
    """Say what a plan will ask for; nothing is written.

    Raises
    ------
    UsageError
        A network of the plan cannot be built.
    """
    summary, device = summary_of(plan, real=real), pick_device("auto")
    refuse_unbuildable(plan, summary)
    settings = [
        group.training(variant, seed)
        for group in plan.groups
        for variant in group.variants
        for seed in range(seeds)
    ]
    pictures = plan.real_pictures if real else round(plan.subjects * plan.pictures)
    scored = min(SCORED, round(pictures * TEST_SHARE))
    training = judging = 0.0
    for group in plan.groups:
        with threads_for(max(1, torch.get_num_threads() // jobs)):  # as its runs will have
            seconds = picture_seconds(group, summary, device)
        count = seeds * len(group.variants)
        trained = group.training(group.variants[0], 0)
        steps = trained.epochs * passes_of(trained)
        training += count * steps * pictures * TRAIN_SHARE * seconds * BEYOND_STEPS
        judging += count * scored * EVALUATION_PASSES * seconds / (1 + BACKWARD)
        judging += count * attack_passes(plan.evaluate.robustness) * seconds
    scans = 0 if real else plan.subjects
    return PlanForecast(
        scans="those given" if real else f"{plan.subjects} synthetic patients",
        groups={
            group.name: tuple(group.called(name) for name in group.variants)
            for group in plan.groups
        },
        seeds=seeds,
        runs=len(settings),
        jobs=jobs,
        device=device.type,
        pictures=pictures,
        disk_bytes=plan_bytes(settings, summary, jobs) + round(scans * plan.megabytes * 1e6),
        scan_seconds=scans * plan.seconds / jobs,
        training_seconds=training / jobs,
        evaluation_seconds=judging / jobs,
        left_out=plan.left_out,
    )


def passes_of(settings: TrainConfig) -> int:
    """Count passes forward and backward for one picture, those of its attack included."""
    objective = robust_of(settings, (1, 1))  # a patch's size changes no count
    if not objective.active:
        return 1
    if not objective.perturbs:
        return 1 + BACKWARD  # the gradient is differentiated again
    return objective.attack.steps + (1 if objective.weight == 1 else 2)


def attack_passes(settings: RobustnessConfig) -> int:
    """Estimate the passes forward and backward of the attacks on one run."""
    if not settings.enabled:
        return 0
    radii = sum(map(len, radii_of(settings, scored=False).values()))
    predictions = settings.samples * radii * (settings.steps + 1) * (settings.restarts + 1)
    maps = settings.explained * len(settings.radii) * len(settings.methods) * MAPS_OF_AN_ATTACK
    return predictions + maps


def picture_seconds(group: Group, summary: DataSummary, device: torch.device) -> float:
    """Seconds of training for one picture, measured on a group's first variant."""
    settings = group.training(group.variants[0], 0)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        network = network_for(settings, summary).to(device).train()
    if settings.freeze_trunk:
        network.trunk.freeze()
    rows, columns = network.image_size
    count = min(settings.batch_size, max(2, TRIED_PIXELS // (rows * columns)))
    images = torch.zeros((count, network.in_channels, rows, columns), device=device)
    forward, found = Forward(device, settings.precision), list[float]()
    while len(found) < 2 or (len(found) <= REPEATS and sum(found) < PATIENCE_SECONDS):
        begin = time.perf_counter()
        predicted = forward(images, network)
        (predicted.logits.sum() + predicted.penalty.sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begin)
    return median(found[1:]) / count
