"""The ``retrain`` command's work: settings checked, bars drawn, the answer told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from pipelines import console, retraining
from pipelines.config import RetrainConfig
from pipelines.workers import keep_freed_memory

SOME_FAILED = 1
ONWARDS = "the same command with --resume goes on from here"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainChoices:
    """Whose maps remove pixels from what, and where networks are retrained."""

    run: Path
    data: Path
    out: Path
    methods: tuple[str, ...]
    resume: bool
    as_json: bool


def settings_of(
    options: Mapping[str, Any], config: Path | None, pairs: list[str] | None
) -> RetrainConfig:
    """Return the settings: the file's, then the options that are given, then the pairs.

    Raises
    ------
    ConfigError
        A setting is unknown or out of range, or the file cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    return RetrainConfig.of(
        console.settings(config, console.merged(given, console.overrides(pairs)))
    )


def retrain_and_tell(settings: RetrainConfig, choices: RetrainChoices) -> None:
    """Retrain, and tell what was found; ends with exit code 1 where a network failed.

    Raises
    ------
    ConfigError
        A folder does not exist.
    UsageError, DataError, RunError, RunExists
        As ``retraining.retrain``.
    """
    console.existing(choices.run, "--run")
    console.existing(choices.data, "--data")
    keep_freed_memory()
    with console.bars() as progress:
        report = retraining.retrain(
            settings,
            run=choices.run,
            data=choices.data,
            out=choices.out,
            methods=choices.methods,
            resume=choices.resume,
            progress=progress,
        )
    for line in report.lines():
        console.say(line)
    console.say(f"tables: {choices.out / retraining.PAGE}")
    if choices.as_json:
        console.result(report.as_json())
    if report.failed:
        raise typer.Exit(SOME_FAILED)
