"""The ``evaluate`` command's work: settings checked, bars drawn, the answer told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import console
from pipelines.config import EvaluateConfig
from pipelines.errors import UsageError
from pipelines.evaluate import evaluate

ONWARDS = "go on with the same command and --resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateChoices:
    """What is evaluated and where it goes; nothing here changes a number."""

    runs: Sequence[Path]
    data: Path
    out: Path
    jobs: int
    resume: bool
    as_json: bool


def settings_of(
    options: Mapping[str, Any], config: Path | None, pairs: list[str] | None
) -> EvaluateConfig:
    """Return the settings: the file's, then the options that are given, then the pairs.

    Raises
    ------
    ConfigError
        A setting is unknown or out of range, or the file cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None and value != []}
    return EvaluateConfig.of(
        console.settings(config, console.merged(given, console.overrides(pairs)))
    )


def evaluate_and_tell(settings: EvaluateConfig, choices: EvaluateChoices) -> None:
    """Evaluate, and tell people or programs what came of it.

    Raises
    ------
    UsageError
        ``NO_RUN_NAMED``, and as ``evaluate``.
    ConfigError
        A folder does not exist.
    """
    if not choices.runs:
        raise UsageError(
            "NO_RUN_NAMED", "nothing to evaluate: name a run, or a folder of runs, with --run"
        )
    console.existing(choices.data, "--data")
    for run in choices.runs:
        console.existing(run, "--run")
    with console.bars() as progress:
        report = evaluate(
            settings,
            runs=choices.runs,
            data=choices.data,
            out=choices.out,
            resume=choices.resume,
            jobs=choices.jobs,
            progress=progress,
        )
    for line in report.lines():
        console.say(line)
    console.say(f"{choices.out / report.page}")
    if choices.as_json:
        console.result(report.as_json())
