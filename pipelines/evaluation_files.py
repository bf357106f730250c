"""The files of an evaluation: its folder, and what each unit measured, with its seal.

A unit is sealed last. Its seal holds a fingerprint of everything that its numbers depend on, and
the hashes of its files: what is sealed under the same fingerprint is not measured again.
"""

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipelines import run as run_files
from pipelines.config import ConfigError, EvaluateConfig, read_yaml
from pipelines.errors import RunExists
from preprocessing.atomic_files import disk_errors, publish, writing

SCORES, CURVES, PREDICTIONS = "scores", "curves", "predictions"
CONFIG = run_files.CONFIG
ENCODING = "dualwitness-evaluation"
FOLDERS = (SCORES, CURVES, PREDICTIONS)
ATTACKS, MAPS = "robustness", "robustness-maps"
OF_ATTACKS = (ATTACKS, MAPS)
ENDINGS: Mapping[str, str] = {MAPS: "safetensors"}
"""Of what is no table."""
UNSAFE = re.compile(r"[^\w .=+,()-]")
HEAD = (
    "sample_id",
    "subject_id",
    "label",
    "prediction",
    "target",
    "model",
    "seed",
    "method",
    "level",
)
CURVE_HEAD = ("sample_id", "subject_id", "label", "model", "seed", "method", "level")
OF_CURVE = ("fill", "order")
Key = tuple[str, str]
"""Method and level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFiles:
    """Where a unit is written: a table of each kind, and its seal.

    Attributes
    ----------
    folders
        One for each kind; the seal lies in the first.
    """

    out: Path
    name: str
    folders: tuple[str, ...] = FOLDERS

    @property
    def tables(self) -> Mapping[str, Path]:
        """Kind of table -> file."""
        return {
            kind: self.out / kind / f"{self.name}.{ENDINGS.get(kind, 'csv')}"
            for kind in self.folders
        }

    @property
    def seal(self) -> Path:
        """Written last."""
        return self.out / self.folders[0] / f"{self.name}.json"

    def read_seal(self, fingerprint: str) -> dict[str, Any] | None:
        """Return what the seal says; None unless the files are there as they were sealed."""
        if not self.seal.is_file():
            return None
        try:
            sealed = json.loads(self.seal.read_text(encoding="utf-8"))
            if sealed["fingerprint"] != fingerprint:
                return None
            return sealed["facts"] if sealed["sha256"] == self._hashes() else None
        except (ValueError, KeyError, TypeError, FileNotFoundError):  # damaged: measured again
            return None

    def write_seal(self, fingerprint: str, facts: Mapping[str, Any]) -> None:
        """Say that the unit is complete."""
        sealed = {"fingerprint": fingerprint, "sha256": self._hashes(), "facts": facts}
        run_files.write_json(self.seal, sealed)

    def _hashes(self) -> dict[str, str]:
        return {kind: run_files.sha256(path) for kind, path in self.tables.items()}


def file_name(model: str, seed: int) -> str:
    """Name a unit's files; letters that a file system may refuse become ``_``."""
    return f"{UNSAFE.sub('_', model)}-seed-{seed}"


def fingerprint_of(values: Mapping[str, Any]) -> str:
    """Hash everything that a unit's numbers depend on."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def table(path: Path, columns: Sequence[str]) -> Iterator["csv.DictWriter[str]"]:
    """Write a table row by row; it is there whole, at the end, or not at all.

    Missing values are empty, and floats read back to the bit.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(part):
        with part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
            writer.writeheader()
            yield writer
        publish(part, path, replace=True)


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Read a table row by row."""
    with path.open(newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def cell(value: float) -> float | str:
    """Return a number as it is written: nothing where it is not defined."""
    return "" if math.isnan(value) else value


def read_scores(
    path: Path, measures: Sequence[str], *, left_out: frozenset[Key] = frozenset()
) -> dict[Key, dict[str, Float[np.ndarray, " n"]]]:
    """Read the scores of every map: method and level -> measure -> one number per sample.

    Measures that no sample defines are left out.

    Parameters
    ----------
    left_out
        Methods and levels that failed on the way; a level of "*" is all of them.
    """
    found: dict[Key, list[list[float]]] = {}
    for row in rows_of(path):
        key = (row["method"], row["level"])
        if key in left_out or (key[0], "*") in left_out:
            continue
        found.setdefault(key, []).append([float(row[name] or "nan") for name in measures])
    tables = {key: np.array(rows).T for key, rows in found.items()}
    return {
        key: {
            name: np.ascontiguousarray(column)
            for name, column in zip(measures, columns, strict=True)
            if not np.isnan(column).all()
        }
        for key, columns in tables.items()
    }


def read_curves(path: Path) -> tuple[tuple[float, ...], dict[tuple[str, str, str, str], Any]]:
    """Read the removed fractions, and method, level, fill, order -> one curve per sample.

    Samples are in the order of the test split.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        heading = next(reader)
        first = len(CURVE_HEAD) + len(OF_CURVE)
        begin = CURVE_HEAD.index("method")
        found: dict[Any, list[list[float]]] = {}
        for row in reader:
            found.setdefault(tuple(row[begin:first]), []).append([float(x) for x in row[first:]])
    fractions = tuple(float(name) for name in heading[first:])
    return fractions, {key: np.array(rows) for key, rows in found.items()}


def claim(out: Path, *, resume: bool) -> None:
    """Make the folder of an evaluation, or accept the one to be continued.

    Raises
    ------
    RunExists
        ``OUTPUT_EXISTS`` where it holds something and ``resume`` is false; ``NOT_AN_EVALUATION``
        where it holds what is none.
    """
    if out.exists() and not out.is_dir():
        raise RunExists("NOT_AN_EVALUATION", "--out names a file: name a new folder")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    held = {name for name in held if not run_files.LEFT_BY_A_KILL.fullmatch(name)}
    if held and not resume:
        raise RunExists(
            "OUTPUT_EXISTS",
            "the output folder exists and is not empty: name another --out, or go on in it with "
            "--resume, which measures only what is not there",
        )
    if held and not _is_evaluation(out):
        raise RunExists(
            "NOT_AN_EVALUATION",
            f"the folder to resume holds no {CONFIG} of an evaluation: name the evaluation's own "
            "folder",
        )
    out.mkdir(parents=True, exist_ok=True)


def _is_evaluation(out: Path) -> bool:
    try:
        return read_yaml(out / CONFIG).get("encoding_type") == ENCODING
    except ConfigError:
        return False


def prepare(out: Path, settings: EvaluateConfig) -> None:
    """Begin: write the settings, make the folders, and remove what a killed process was writing.

    Hold the lock.
    """
    run_files.clear_parts(out)
    text = f"encoding_type: {ENCODING}\n{settings.to_yaml()}"
    run_files.write_text(out / CONFIG, text)
    with disk_errors():
        for kind in (*FOLDERS, *(OF_ATTACKS if settings.robustness.enabled else ())):
            (out / kind).mkdir(exist_ok=True)
            for path in (out / kind).glob(f".*{run_files.PART}"):
                path.unlink(missing_ok=True)
