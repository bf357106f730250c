"""Gradient maps of models side by side on the same cases, chosen by figures.

Best, median and worst by the probability that the first model gives to the true class, of pictures
that have something to find; at most one picture of a patient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from models.metrics.complexity import gini
from pipelines import evaluation_files as files
from pipelines.evaluation_gallery import EACH, NO_CLASS, Cases, Group, greys
from pipelines.evaluation_records import CasePicture, Entry, Evaluation, Robustness
from pipelines.evaluation_robust_scores import reference
from pipelines.evaluation_robust_tables import gradients_of
from pipelines.figures import ScanPicture
from pipelines.gallery import Cell, GalleryCase
from pipelines.label_sets import SEPARATOR

NAMES: Mapping[str, str] = {
    "gradients-best": "most probable",
    "gradients-median": "of median probability",
    "gradients-worst": "least probable",
}
"""Group -> how the true class of its cases is to the first model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Believed:
    """A test picture, and how probable its true class is to the first model's first seed."""

    sample_id: str
    subject_id: str
    probability: float


def gradient_groups(found: Evaluation, out: Path, cases: Cases) -> list[Group]:
    """Choose cases by the predictions under ``out``, and draw the gradient maps of every model.

    Parameters
    ----------
    cases
        Asked once, for every case that is shown.
    """
    attacked = found.robustness
    if attacked is None or not gradients_of(attacked):
        return []
    chosen = choose(believed(found, out))
    ids = list(dict.fromkeys(name for names in chosen.values() for name in names))
    if not ids:
        return []
    shown = columns(found, attacked)
    drawn = cases(ids, [entry.name for entry in shown])
    return [
        Group(name=group, cases=[_case(found, name, drawn[name], shown) for name in given])
        for group, names in chosen.items()
        if (given := [name for name in names if name in drawn])
    ]


def columns(found: Evaluation, attacked: Robustness) -> list[Entry]:
    """Return the gradient maps of every model, the first model's first."""
    entries = gradients_of(attacked)
    first = reference(found.models)
    return sorted(entries.values(), key=lambda entry: entry.model != first)


def believed(found: Evaluation, out: Path) -> list[Believed]:
    """Read how probable the true classes are; pictures with nothing to find are left out."""
    model = found.models[reference(found.models)]
    name = files.file_name(model.name, min(model.seeds))
    path = out / files.PREDICTIONS / f"{name}.csv"
    if not path.is_file():
        return []
    rows = list(files.rows_of(path))
    if all(row["label"] in found.classes for row in rows):  # the first class is nothing to find
        rows = [row for row in rows if row["label"] != found.classes[0]]
    return [_believed(row) for row in rows if row["label"]]


def _believed(row: Mapping[str, str]) -> Believed:
    names = [f"probability_{name}" for name in row["label"].split(SEPARATOR)]
    return Believed(
        sample_id=row["sample_id"],
        subject_id=row["subject_id"],
        probability=max(float(row[name]) for name in names),
    )


def choose(samples: list[Believed]) -> dict[str, list[str]]:
    """Choose samples by probability: group -> samples, one of a patient in each group."""
    ranked = sorted(samples, key=lambda item: -item.probability)
    middle = len(ranked) // 2
    near = sorted(range(len(ranked)), key=lambda i: abs(i - middle))
    orders = (ranked, [ranked[i] for i in near], ranked[::-1])
    return {name: _of_patients(order) for name, order in zip(NAMES, orders, strict=True)}


def _of_patients(samples: list[Believed]) -> list[str]:
    first: dict[str, str] = {}
    for sample in samples:
        first.setdefault(sample.subject_id, sample.sample_id)
    return list(first.values())[:EACH]


def _case(found: Evaluation, name: str, picture: CasePicture, shown: list[Entry]) -> GalleryCase:
    true = found.classes[picture.label] if picture.label >= 0 else NO_CLASS
    predicted = found.classes[picture.prediction]
    return GalleryCase(
        name=f"{name} · true: {true} · predicted: {predicted}",
        scan=ScanPicture(suv=greys(picture, found.recipe), mask=picture.mask),
        unit="",
        cells={
            entry.name: Cell(
                values=picture.maps[entry.name],
                signed=picture.signed[entry.name],
                note=_note(picture, entry),
            )
            for entry in shown
            if entry.name in picture.maps
        },
    )


def _note(picture: CasePicture, entry: Entry) -> str:
    found = float(gini(torch.from_numpy(picture.maps[entry.name])[None]))
    return f"Gini {found:.2f}"
