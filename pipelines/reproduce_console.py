"""The ``reproduce`` command's work: choices checked, steps told as they end, the verdict last."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer

from pipelines import console
from pipelines.errors import UsageError
from pipelines.recipes import RECIPES
from pipelines.reproduce import reproduce
from pipelines.reproduce_choices import Effort, RealScans, Watch
from pipelines.reproduce_forecast import forecast_plan
from pipelines.reproduce_groups import Plan
from pipelines.reproduce_plans import planned, restricted

SOME_FAILED = 1
ONWARDS = "the same command with --resume goes on from here"
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "fdg-pet": {"dicom_dir": "--dicom-dir", "labels": "--labels", "truth": "--truth"},
    "brats18": {"root": "--root"},
    "chestxray14": {"root": "--root"},
}
"""Data set -> field of its recipe's sources -> option that names it."""
FOLDERS = frozenset({"dicom_dir", "truth", "root"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceChoices:
    """What is reproduced, on which scans, and how; None takes what suits the machine or the plan.

    Attributes
    ----------
    variants
        Names with commas between them.
    jobs
        Trainings at a time; one for each core on a processor, one on an accelerator.
    workers
        Processes that read and derive scans; 0 takes one for each core.
    config, pairs
        How real scans are built into a data set: a file of settings, and ``name=value``.
    """

    dataset: str
    out: Path
    size: str | None = None
    seeds: int = 5
    jobs: int | None = None
    variants: str | None = None
    subjects: int | None = None
    dicom_dir: Path | None = None
    labels: Path | None = None
    truth: Path | None = None
    root: Path | None = None
    key: Path | None = None
    workers: int = 0
    config: Path | None = None
    pairs: tuple[str, ...] = ()
    resume: bool = False
    dry_run: bool = False
    as_json: bool = False


def plan_of(choices: ReproduceChoices) -> Plan:
    """Return the plan that is asked for.

    Raises
    ------
    UsageError
        ``SUBJECTS_GIVEN``, ``BUILD_SETTINGS_GIVEN``, and as ``planned`` and ``restricted``.
    ConfigError
        A setting of the data set is unknown or out of range.
    """
    size = choices.size or ("full" if torch.cuda.is_available() else "small")
    plan = planned(choices.dataset, size)
    if choices.subjects is not None and _given(choices):
        raise UsageError(
            "SUBJECTS_GIVEN",
            "--subjects is a number of synthetic patients, and real scans are given: leave one out",
        )
    names = [name for name in (choices.variants or "").replace(" ", "").split(",") if name]
    return restricted(_rebuilt(plan, choices), names=names, subjects=choices.subjects)


def _rebuilt(plan: Plan, choices: ReproduceChoices) -> Plan:
    """Lay settings of the data set that are given over those of the plan."""
    if choices.config is None and not choices.pairs:
        return plan
    if not _given(choices):
        raise UsageError(
            "BUILD_SETTINGS_GIVEN",
            "--config and --set say how real scans are built, and none are named: synthetic ones "
            "are built as the plan says; name real scans, or leave the settings out",
        )
    given = console.settings(choices.config, console.overrides(list(choices.pairs)))
    whole = console.merged(plan.real_build.model_dump(mode="json"), given)
    return replace(plan, real_build=type(plan.real_build).of(whole))


def _given(choices: ReproduceChoices) -> dict[str, Path]:
    """Return the real scans and tables that are named: field -> path."""
    fields = {name for names in OPTIONS.values() for name in names}
    return {name: path for name in sorted(fields) if (path := getattr(choices, name)) is not None}


def sources_of(choices: ReproduceChoices) -> Any:
    """Return real scans as the recipe takes them; None where none are named.

    Raises
    ------
    UsageError
        ``WRONG_SOURCE`` for an option of another data set, ``NO_SCANS`` where tables are named
        without scans, ``NO_LABELS`` where scans are named whose classes stand in a table.
    ConfigError
        A folder is not there.
    """
    given, recipe = _given(choices), RECIPES[choices.dataset]
    options = OPTIONS[choices.dataset]
    foreign = sorted(given.keys() - options.keys())
    if foreign:
        raise UsageError(
            "WRONG_SOURCE",
            f"{choices.dataset} takes real scans by {', '.join(options.values())} and not by "
            f"--{foreign[0].replace('_', '-')}",
        )
    if not given:
        return None
    if recipe.root not in given:
        raise UsageError(
            "NO_SCANS", f"tables and masks belong to real scans: name their {options[recipe.root]}"
        )
    if "labels" in options and "labels" not in given:
        raise UsageError(
            "NO_LABELS",
            "real scans cannot be trained on without their classes: name a table of PatientID and "
            "label with --labels",
        )
    for name in FOLDERS & given.keys():
        console.existing(given[name], options[name])
    return recipe.sources(**given)


def reproduce_and_tell(choices: ReproduceChoices) -> None:
    """Reproduce, or tell what it would ask for; ends with exit code 1 where a run failed.

    Raises
    ------
    UsageError
        As ``plan_of``, ``sources_of`` and ``reproduce``.
    """
    plan, sources = plan_of(choices), sources_of(choices)
    cores = len(os.sched_getaffinity(0))
    jobs = choices.jobs or (1 if torch.cuda.is_available() else cores)
    if choices.dry_run:
        found = forecast_plan(plan, seeds=choices.seeds, jobs=jobs, real=sources is not None)
        for line in (*found.lines(), "dry run: nothing was written"):
            console.say(line)
        if choices.as_json:
            console.result(found.as_json())
        return
    _reproduce(plan, sources, choices, jobs)


def _reproduce(plan: Plan, sources: Any, choices: ReproduceChoices, jobs: int) -> None:
    real = None
    if sources is not None:
        real = RealScans(sources=sources, key=console.pseudonym_key(choices.key, choices.out))
    with console.bars() as progress:
        report = reproduce(
            plan,
            out=choices.out,
            seeds=choices.seeds,
            real=real,
            effort=Effort(jobs=jobs, workers=console.worker_count(choices.workers)),
            resume=choices.resume,
            watch=Watch(progress=progress, tell=console.say),
        )
    for line in report.lines():
        console.say(line)
    console.say(f"report: {report.page}")
    if choices.as_json:
        console.result(report.as_json())
    if report.failures:
        raise typer.Exit(SOME_FAILED)
