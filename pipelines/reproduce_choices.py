"""What a reproduction is given beside its plan, who watches it, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.progress import Progress, silent

Tell = Callable[[str], None]


def _unheard(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealScans:
    """Scans of patients, in place of synthetic ones.

    Attributes
    ----------
    sources
        As the recipe of the data set takes them.
    key
        Of the pseudonyms.
    """

    sources: Any
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How the work is spread; nothing here changes a result.

    Attributes
    ----------
    jobs
        Trainings beside each other.
    workers
        Processes that synthesise scans and derive pictures.
    """

    jobs: int = 1
    workers: int = 1


ONE_AT_A_TIME = Effort()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Who is told: bars, and a line for each step that is done."""

    progress: Progress = silent
    tell: Tell = _unheard


UNWATCHED = Watch()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceReport:
    """What a reproduction found, and what became of its runs.

    Attributes
    ----------
    found
        What the evaluation said, the verdict first.
    failures
        Run, code and message of each run that did not end.
    already_complete
        It stood there already; nothing was written.
    """

    page: Path
    runs: int
    found: tuple[str, ...]
    failures: tuple[tuple[str, str, str], ...]
    already_complete: bool = False

    def lines(self) -> list[str]:
        """Say what was found, then what failed, then where the report is."""
        lines = list(self.found)
        lines += [f"{name} failed: {code}: {message}" for name, code, message in self.failures]
        if self.failures:
            lines.append(
                f"{len(self.failures)} of {self.runs} runs did not end; the same command with "
                "--resume tries them again"
            )
        if self.already_complete:
            lines.append("complete already; nothing was written")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "runs": self.runs,
            "found": list(self.found),
            "failures": [
                {"run": name, "code": code, "message": message}
                for name, code, message in self.failures
            ],
            "already_complete": self.already_complete,
        }
