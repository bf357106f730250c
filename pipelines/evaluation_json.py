"""The record of an evaluation as JSON: tables and figures can be made from it again."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import run as run_files
from pipelines.comparison_scores import Difference, MeanScore
from pipelines.errors import RunError
from pipelines.evaluation_records import (
    CurveBand,
    Entry,
    Evaluation,
    MaskingCheck,
    Model,
    Robustness,
)

RECORD = "evaluation.json"
ENCODING = {"encoding-type": "dualwitness-evaluation", "encoding-version": "1.1"}
RECORDS = (MeanScore, Difference, Model, Entry, CurveBand, Evaluation, Robustness, MaskingCheck)


def write_evaluation(path: Path, found: Evaluation) -> None:
    """Write the record without its resamples: tables and figures can be made from it again."""
    run_files.write_json(path, {**ENCODING, "evaluation": as_plain(found)})


def as_plain(found: Evaluation) -> dict[str, Any]:
    """Return the record as what JSON holds; a number that is not finite is a text."""
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, RECORDS):
        names = [item.name for item in fields(value) if item.name != "drawn"]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (tuple, list, np.ndarray)):
        return [_plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else str(float(value))
    return value


def read_evaluation(path: Path) -> Evaluation:
    """Read a record; its resamples are empty.

    Raises
    ------
    RunError
        ``NOT_AN_EVALUATION``.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if {name: held.get(name) for name in ENCODING} != ENCODING:
            raise ValueError
        return _evaluation(held["evaluation"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise RunError(
            "NOT_AN_EVALUATION",
            f"the record of the evaluation is not there, is damaged, or was not written by this "
            f"version: evaluate again with --resume, which writes {RECORD} from what was measured",
        ) from None


def _evaluation(held: Mapping[str, Any]) -> Evaluation:
    values = dict(held)
    values["models"] = {name: _model(each) for name, each in held["models"].items()}
    values |= _compared(held)
    values["curves"] = tuple(_band(each) for each in held["curves"])
    for name in ("classes", "picture_size", "notes"):
        values[name] = tuple(held[name])
    values["chance"] = float(held["chance"])
    attacked = held["robustness"]
    values["robustness"] = None if attacked is None else _robustness(attacked)
    return Evaluation(**values)


def _compared(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return entries, their scores and what sets them apart."""
    return {
        "entries": {
            name: Entry(**{**each, "seeds": tuple(each["seeds"])})
            for name, each in held["entries"].items()
        },
        "scores": {name: _scores(each) for name, each in held["scores"].items()},
        "differences": tuple(Difference(**_numbers(each)) for each in held["differences"]),
    }


def _robustness(held: Mapping[str, Any]) -> Robustness:
    values = {**held, **_compared(held)}
    for name in ("radii", "linf_radii", "l2_radii", "notes"):
        values[name] = tuple(held[name])
    values["predictions"] = {name: _scores(each) for name, each in held["predictions"].items()}
    values["masking"] = tuple(MaskingCheck(**each) for each in held["masking"])
    return Robustness(**values)


def _model(held: Mapping[str, Any]) -> Model:
    return Model(**{**held, "seeds": tuple(held["seeds"]), "scores": _scores(held["scores"])})


def _scores(held: Mapping[str, Any]) -> dict[str, MeanScore]:
    return {
        name: MeanScore(
            **_numbers({key: value for key, value in each.items() if key != "values"}),
            values=tuple(float(value) for value in each["values"]),
            drawn=np.empty(0),
        )
        for name, each in held.items()
    }


def _numbers(held: Mapping[str, Any]) -> dict[str, Any]:
    texts = ("variant", "against", "measure")
    return {name: value if name in texts else float(value) for name, value in held.items()}


def _band(held: Mapping[str, Any]) -> CurveBand:
    texts = ("entry", "fill", "order")
    values: dict[str, Any] = {
        name: value if name in texts else np.array([float(each) for each in value])
        for name, value in held.items()
    }
    return CurveBand(**values)
