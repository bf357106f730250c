"""What a reproduction keeps about itself in ``reproduce.json``: its plan, and what is done of it.

Everything that is done is also known from its own files; the record says what was planned, what
each step took, and what was found, so that nothing has to be done again to tell it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines import run as run_files
from pipelines.errors import RunError
from pipelines.reproduce_groups import Plan

MARK = "reproduce.json"
ENCODING = {"encoding-type": "dualwitness-reproduction", "encoding-version": "1.1"}


@dataclass(slots=True, kw_only=True)
class Record:
    """What is done.

    Attributes
    ----------
    plan
        As ``identity``.
    threads
        Of each training on a processor.
    environment
        Versions with which it was begun.
    seconds
        Step -> seconds.
    runs
        Folder of a run below that of all runs -> SHA-256 of its weights.
    failures
        The same for runs that did not end -> code and message.
    report_sha256, lines
        Of the page, and what it says first; "" and none where it was not written.
    """

    plan: Mapping[str, Any]
    threads: int
    environment: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    report_sha256: str = ""
    lines: tuple[str, ...] = ()

    def write(self, out: Path) -> None:
        """Write it in one visible step."""
        run_files.write_json(out / MARK, {**ENCODING, **asdict(self)})


def identity(plan: Plan, *, seeds: int, real: bool) -> dict[str, Any]:
    """Return everything that decides what comes out, beside the scans, as JSON reads it back."""
    build = plan.real_build if real else plan.phantom_build
    told = {
        "dataset": plan.dataset,
        "size": plan.size,
        "scans": "real" if real else f"{plan.subjects} synthetic patients",
        "phantoms": {} if real else {name: repr(plan.phantoms[name]) for name in plan.phantoms},
        "seeds": seeds,
        "build": build.model_dump(mode="json"),
        "groups": {
            group.name: {
                "variants": group.variants,
                "start": group.start,
                "settings": group.training(group.variants[0], 0).model_dump(
                    mode="json", exclude={"variant", "seed"}
                ),
            }
            for group in plan.groups
        },
        "evaluate": plan.evaluate.model_dump(mode="json"),
        "boxes": None if plan.boxes is None else asdict(plan.boxes),
        "code_version": version("dualwitness"),
    }
    return json.loads(json.dumps(told))


GROWING = frozenset({"seeds", "groups"})


def differing(begun: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name what differs between two identities, but for seeds, groups and variants that are new."""
    names = [name for name in now if name not in GROWING and begun.get(name) != now[name]]
    if now["seeds"] < begun["seeds"]:
        names.append("seeds")
    if not all(_grown(own, now["groups"].get(name)) for name, own in begun["groups"].items()):
        names.append("groups")
    return names


def _grown(begun: Mapping[str, Any], now: Mapping[str, Any] | None) -> bool:
    if now is None or not set(begun["variants"]) <= set(now["variants"]):
        return False
    return all(now[name] == value for name, value in begun.items() if name != "variants")


def read_record(out: Path) -> Record:
    """Read ``reproduce.json``.

    Raises
    ------
    RunError
        ``RECORD_ALTERED`` where it cannot be read.
    """
    try:
        values = json.loads((out / MARK).read_text(encoding="utf-8"))
        if {name: values.pop(name) for name in ENCODING} != ENCODING:
            raise KeyError
        failures = {name: (code, text) for name, (code, text) in values.pop("failures").items()}
        lines, environment = tuple(values.pop("lines")), tuple(values.pop("environment"))
        return Record(**values, failures=failures, lines=lines, environment=environment)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(
            "RECORD_ALTERED",
            f"{MARK} cannot be read or was written by another version: put it back as it was, or "
            "name another --out",
        ) from None
