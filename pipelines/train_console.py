"""``dualwitness train``: one run or a comparison of several; choices in, lines and results out."""

from dataclasses import dataclass
from pathlib import Path

import typer

from pipelines import console
from pipelines.compare import compare
from pipelines.comparison_grid import PAGE
from pipelines.config import CompareConfig, TrainConfig
from pipelines.distributed import Processes
from pipelines.errors import UsageError
from pipelines.start import Start
from pipelines.train import rehearse, train
from pipelines.workers import keep_freed_memory

SOME_FAILED = 1
ONWARDS = "the same command with --resume goes on from here"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainChoices:
    """Where training reads and writes and what it tells; nothing here changes a setting."""

    data: Path
    out: Path
    start: Start
    resume: bool
    dry_run: bool
    as_json: bool


def grid_of(
    settings: TrainConfig,
    *,
    variant: str | None,
    variants: str | None,
    seeds: int | None,
    against: str | None,
    jobs: int | None,
) -> CompareConfig | None:
    """Turn the options of the command into settings of a grid; None where one run is asked for.

    Parameters
    ----------
    variant
        As it was named on the command line.
    variants
        Names with commas between them; the settings' own variant where not given.

    Raises
    ------
    UsageError
        ``TWO_VARIANTS``, ``NO_GRID`` where options of a grid are given and none is asked for.
    ConfigError
        A number is out of range, or no variant is named.
    """
    if variants is None and seeds is None:
        if against is not None or jobs is not None:
            raise UsageError(
                "NO_GRID",
                "--against and --jobs belong to several runs: name --variants, --seeds or both",
            )
        return None
    if variant is not None and variants is not None:
        raise UsageError("TWO_VARIANTS", "--variant and --variants exclude each other: name one")
    named = [settings.variant] if variants is None else variants.replace(" ", "").split(",")
    return CompareConfig.of(
        {
            "variants": [name for name in named if name],
            "seeds": 1 if seeds is None else seeds,
            "against": against or "",
            "jobs": 1 if jobs is None else jobs,
            "train": settings,
        }
    )


def train_one(settings: TrainConfig, choices: TrainChoices, *, processes: Processes) -> None:
    """Train one run, or tell what it would ask of the machine."""
    if choices.dry_run:
        _rehearse(settings, choices, processes)
        return
    keep_freed_memory()  # each step wants what the last one had: up to a sixth of its time on a CPU
    with console.bars() as progress:
        report = train(
            settings,
            data=choices.data,
            run=choices.out,
            start=choices.start,
            resume=choices.resume,
            tell=console.say,
            progress=progress,
            processes=processes,
        )
    if processes.leads:
        console.say(f"{choices.out}: {report.summary()}")
        if choices.as_json:
            console.result(report.as_json())


def _rehearse(settings: TrainConfig, choices: TrainChoices, processes: Processes) -> None:
    found = rehearse(
        settings,
        data=choices.data,
        run=choices.out,
        start=choices.start,
        resume=choices.resume,
        processes=processes,
    )
    if processes.leads:
        for line in (*found.lines(), "dry run: nothing was written"):
            console.say(line)
        if choices.as_json:
            console.result(found.as_json())


def train_several(grid: CompareConfig, choices: TrainChoices) -> None:
    """Train a grid and tell what was found; ends with exit code 1 where a run failed.

    Raises
    ------
    UsageError
        ``NO_DRY_RUN``, and as ``compare``.
    """
    if choices.dry_run:
        raise UsageError(
            "NO_DRY_RUN",
            "--dry-run forecasts one run: name one --variant and leave --variants and --seeds out",
        )
    with console.bars() as progress:
        report = compare(
            grid,
            data=choices.data,
            out=choices.out,
            start=choices.start,
            resume=choices.resume,
            progress=progress,
        )
    for line in report.lines():
        console.say(line)
    console.say(f"tables: {choices.out / PAGE}")
    if choices.as_json:
        console.result(report.as_json())
    if report.failed:
        raise typer.Exit(SOME_FAILED)
