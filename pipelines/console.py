"""What the commands share: one line for a refusal, bars, settings, keys, the intake table.

Human text and progress go to stderr, results asked for with ``--json`` to stdout.
"""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
import yaml
from rich import progress as bar
from rich.console import Console
from rich.table import Table

from pipelines.build import BuildReport, build, rehearse
from pipelines.config import BuildConfig, ConfigError, read_yaml
from pipelines.doctor import Check
from pipelines.errors import PeerFailed, PipelineError
from pipelines.progress import Progress
from preprocessing import pseudonyms
from preprocessing.errors import OutputError, PreprocessingError
from preprocessing.phantoms import PHANTOMS

USAGE, NOTHING_USABLE, EXISTS, DISK, INTERRUPTED = 2, 3, 4, 5, 130
OUTPUT_EXIT_CODES = {"LOCKED": EXISTS, "EXISTS": EXISTS, "KEY_INSIDE_OUTPUT": USAGE}


def say(text: str = "") -> None:
    """Tell people, on stderr."""
    typer.echo(text, err=True)


def result(value: Any) -> None:
    """Give programs their result, as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str))


def fail(text: str, code: int) -> NoReturn:
    """End the command with one line and an exit code."""
    say(f"dualwitness: {text}")
    raise typer.Exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def refusals(*, onwards: str = "the same command goes on from here") -> Iterator[None]:
    """Turn every refusal into one line and its exit code; SIGTERM interrupts as Ctrl-C does.

    Parameters
    ----------
    onwards
        How work goes on that was interrupted.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except PeerFailed as error:
        raise typer.Exit(error.exit_code) from None
    except PipelineError as error:
        fail(f"{error.code}: {error}", error.exit_code)
    except OutputError as error:
        fail(f"{error.code}: {error}", OUTPUT_EXIT_CODES.get(error.code, DISK))
    except PreprocessingError as error:
        fail(f"{error.code}: {error}", NOTHING_USABLE)
    except ConfigError as error:
        fail(str(error), USAGE)
    except OSError as error:
        fail(f"input or output failed: {error.strerror or error}", DISK)
    except KeyboardInterrupt:
        fail(f"interrupted; {onwards}", INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def bars() -> Iterator[Progress]:
    """Draw one bar for each stage on stderr; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    progress = bar.Progress(
        bar.TextColumn("{task.description:<24}"),
        bar.BarColumn(),
        bar.MofNCompleteColumn(),
        bar.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        # Not before there is something to tell: the thread that draws would hinder a fork.
        if not tasks:
            progress.start()
        if stage not in tasks:
            tasks[stage] = progress.add_task(stage, total=total or None)
        progress.update(tasks[stage], completed=done, total=total or None)

    try:
        yield report
    finally:
        progress.stop()


def existing(path: Path, what: str) -> Path:
    """Return a folder that is there.

    Raises
    ------
    ConfigError
        There is none.
    """
    if not path.is_dir():
        kind = "is a file, not a folder" if path.exists() else "does not exist"
        raise ConfigError(f"{what} {path} {kind}")
    return path


def worker_count(workers: int) -> int:
    """Return a number of processes; 0 asks for one on each core."""
    if workers < 0:
        fail(f"--workers must be 0 or more, got {workers}", USAGE)
    return workers or len(os.sched_getaffinity(0))


def overrides(pairs: list[str] | None) -> dict[str, Any]:
    """Read ``key=value`` pairs; a dot reaches into a group, the value is read as YAML.

    Raises
    ------
    ConfigError
        A pair is none.
    """
    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r} is not of the form key=value")
        group = values
        *path, last = key.split(".")
        for part in path:
            group = group.setdefault(part, {})
        group[last] = yaml.safe_load(text)
    return values


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings with changes laid over them, group by group."""
    result = dict(base)
    for key, value in changes.items():
        inner: Any = result.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[key] = merged(inner, value) if both else value
    return result


def settings(file: Path | None, changes: dict[str, Any]) -> dict[str, Any]:
    """Defaults, then the settings file, then the options: later ones win."""
    if file is None:
        return changes
    return merged(read_yaml(file), changes)


def chosen(
    kind: type[BuildConfig], options: dict[str, Any], file: Path | None, pairs: list[str] | None
) -> BuildConfig:
    """Return a build's settings: the file's, then options that are no default, then pairs.

    Raises
    ------
    ConfigError
        A setting is unknown or out of range, or the file cannot be read.
    """
    defaults = kind.model_fields
    given = {name: value for name, value in options.items() if value != defaults[name].default}
    return kind.of(settings(file, merged(given, overrides(pairs))))


def pseudonym_key(path: Path | None, out: Path | None) -> bytes:
    """Read the pseudonym key, or make the user's own on first use."""
    place = path or pseudonyms.default_key_path()
    if out is not None:
        pseudonyms.refuse_inside(place, out)
    if path is not None:
        return pseudonyms.load_key(path) if path.exists() else pseudonyms.create_key(path)
    if not place.exists():
        say(f"a new pseudonym key was made: {place} (keep it; without it nothing can be traced)")
    return pseudonyms.load_or_create_key(place)


def intake_table(report: BuildReport) -> None:
    """Say what became of every file; never a silent "0 of 0"."""
    files = report.files
    say(
        f"{files['seen']} files seen = {files['used']} used + {files['excluded']} excluded "
        f"+ {files['skipped']} skipped"
    )
    if report.exclusions or report.skipped:
        table = Table("code", "times", "files", "example", title="not used")
        cases = Counter(item.code for item in report.exclusions)
        for code, count in cases.most_common():
            items = [item for item in report.exclusions if item.code == code]
            table.add_row(code, str(count), str(sum(i.files for i in items)), items[0].detail)
        for reason, count in sorted(report.skipped.items()):
            table.add_row(reason, "", str(count), "skipped: no candidate")
        Console(stderr=True).print(table)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildChoices:
    """How a build runs and what it tells; nothing here changes the data set."""

    out: Path
    key: Path | None
    workers: int
    dry_run: bool
    strict: bool
    as_json: bool


def build_data_set(name: str, config: BuildConfig, sources: Any, choices: BuildChoices) -> None:
    """Build, or rehearse, and tell what became of every file."""
    with bars() as progress:
        if choices.dry_run:
            report = rehearse(
                name,
                config,
                sources,
                key=pseudonym_key(choices.key, None),
                workers=choices.workers,
                progress=progress,
            )
        else:
            report = build(
                name,
                config,
                sources,
                out=choices.out,
                key=pseudonym_key(choices.key, choices.out),
                workers=choices.workers,
                progress=progress,
            )
    intake_table(report)
    for remark in report.remarks:
        say(remark)
    say(_outcome(report, choices))
    if choices.as_json:
        result(
            {
                "samples": dict(report.samples),
                "files": dict(report.files),
                "exclusions": [asdict(item) for item in report.exclusions],
                "skipped": dict(report.skipped),
                "already_complete": report.already_complete,
            }
        )
    if choices.strict and report.exclusions:
        raise typer.Exit(1)


def tell(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Give programs the value, or people the lines."""
    if as_json:
        result(value)
        return
    for line in lines:
        say(line)


def tell_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """Tell what this machine has and lacks."""
    names = ("name", "status", "value", "advice")
    lines = []
    for check in checks:
        lines.append(f"{check.status:<8} {check.name:<24} {check.value}")
        if check.advice:
            lines.append(f"{'':<8} {'':<24} {check.advice}")
    plain = [{name: getattr(check, name) for name in names} for check in checks]
    tell(plain, lines, as_json=as_json)


def tell_promises(
    problems: Sequence[str], counts: Mapping[str, int], *, data: Path, as_json: bool
) -> None:
    """Tell which promises of a data set are broken; where any is, end the command."""
    for problem in problems:
        say(f"BROKEN {problem}")
    if as_json:
        result({"problems": list(problems), "counts": dict(counts)})
    if problems:
        fail(f"promises broken: {len(problems)}", NOTHING_USABLE)
    say(f"{data}: every promise holds ({dict(counts)})")


def write_phantoms(name: str, out: Path, *, subjects: int, seed: int, sources: str) -> None:
    """Write synthetic patients, and say how to build a data set of them."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"{out} exists and is not empty: name a new folder", EXISTS)
    with bars() as progress:
        PHANTOMS[name](
            out,
            subjects=subjects,
            seed=seed,
            progress=lambda done, total: progress("patients", done, total),
        )
    say(f"{out}: {subjects} patients; build with")
    say(f"  dualwitness build-dataset {name} {sources} --out DATA")


def _outcome(report: BuildReport, choices: BuildChoices) -> str:
    if choices.dry_run:
        return "dry run: nothing was written"
    if report.already_complete:
        return f"{choices.out} is complete already; nothing was written"
    rows = ", ".join(f"{split} {rows}" for split, rows in report.samples.items())
    return f"{choices.out}: {rows}"
