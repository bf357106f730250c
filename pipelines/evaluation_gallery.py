"""Cases of an evaluation for the eye: the same pictures across methods, chosen by figures.

Best, median and worst by the average precision of the headline's maps; pictures that its model
takes for another class; pictures in which no method points into the true region. At most one
picture of a patient stands in each group.
"""

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipelines.evaluation_blocks import real
from pipelines.evaluation_choice import headline, highlighted
from pipelines.evaluation_records import CasePicture, Entry, Evaluation
from pipelines.figures import SUV_BLACK, ScanPicture, scale_lines
from pipelines.gallery import Cell, GalleryCase, cell_png
from pipelines.label_sets import SEPARATOR
from pipelines.pages import GalleryCell, GalleryRow

Cases = Callable[[Sequence[str], Sequence[str]], Mapping[str, CasePicture]]
"""(samples, names of entries) -> sample -> its picture and maps."""
SCORES = "scores"
PRECISION, POINTING = "average_precision", "pointing_game"
NO_CLASS = "no finding"
EACH = 2
"""Cases of a group."""
HEADINGS: Mapping[str, str] = {
    "best": "Best cases",
    "median": "Median cases",
    "worst": "Worst cases",
    "wrong": "Wrong predictions",
    "missed": "Missed by every method",
    "gradients-best": "Gradient maps where the true class is most probable",
    "gradients-median": "Gradient maps of median probability",
    "gradients-worst": "Gradient maps where the true class is least probable",
}
INVERTED = frozenset({"fdg-pet"})
"""Data sets whose pictures are bright where there is uptake, which is read as dark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the first seed of every model made of one test picture.

    Attributes
    ----------
    wrong
        Whether the headline's model takes it for another class.
    scores
        Entry -> measure -> score, of real entries only.
    """

    sample_id: str
    subject_id: str
    wrong: bool = False
    scores: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    def score(self, entry: str, measure: str) -> float:
        """Return a score; NaN where it is not defined."""
        return self.scores.get(entry, {}).get(measure, math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Cases that were chosen by the same rule."""

    name: str
    cases: Sequence[GalleryCase] = field(repr=False)

    @property
    def heading(self) -> str:
        """Name the group for people."""
        return HEADINGS[self.name]

    @property
    def names(self) -> list[str]:
        """Return the names of its maps in the order of their first appearance."""
        return list(names([self]))

    @property
    def rows(self) -> list[GalleryRow]:
        """Return the cases for a page."""
        return [
            GalleryRow(
                name=case.name,
                scan=cell_png(case),
                cells={
                    name: GalleryCell(
                        image=cell_png(case, name),
                        word="",
                        lines=(cell.note, *scale_lines(cell.values, signed=cell.signed)),
                    )
                    for name, cell in case.cells.items()
                },
            )
            for case in self.cases
        ]


def groups(found: Evaluation, out: Path, cases: Cases) -> list[Group]:
    """Choose cases by the scores under ``out``, and draw them; groups without a case are left out.

    Parameters
    ----------
    cases
        Asked once, for every case that is shown.
    """
    chosen = choose(found, read_samples(found, out))
    ids = list(dict.fromkeys(name for names in chosen.values() for name in names))
    if not ids:
        return []
    shown = [entry.name for entry in columns(found)]
    drawn = cases(ids, shown)
    return [
        Group(name=group, cases=[_case(found, name, drawn[name], shown) for name in given])
        for group, names in chosen.items()
        if (given := [name for name in names if name in drawn])
    ]


def columns(found: Evaluation) -> list[Entry]:
    """Return the entries whose maps stand beside each other: those highlighted, real ones only."""
    first = headline(found)
    shown = [entry for entry in highlighted(found) if entry.kind != "control"]
    other = [
        entry
        for entry in real(found)
        if first is not None
        and (entry.model, entry.method) == (first.model, first.method)
        and entry.level != first.level
    ]
    return list({x.name: x for x in (*shown[:1], *other[:1], *shown[1:])}.values())


def read_samples(found: Evaluation, out: Path) -> list[Sample]:
    """Read the scores per sample of the first seed of every model."""
    first = headline(found)
    samples: dict[str, Sample] = {}
    for path in _of_first_seeds(found, out / SCORES):
        for row in _rows(path):
            _add(samples, row, first=first)
    return [samples[name] for name in sorted(samples)]


def _of_first_seeds(found: Evaluation, folder: Path) -> list[Path]:
    """Return the file of the lowest seed of each model."""
    lowest: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.glob("*.csv")):
        row = next(_rows(path), None)
        if row is not None and row["model"] in found.models:
            known = lowest.get(row["model"])
            place = int(row["seed"]), path
            lowest[row["model"]] = place if known is None else min(known, place)
    return [path for _, path in lowest.values()]


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        yield from csv.DictReader(stream)


def _add(samples: dict[str, Sample], row: Mapping[str, str], *, first: Entry | None) -> None:
    name, model = row["sample_id"], row["model"]
    known = samples.get(name) or Sample(sample_id=name, subject_id=row["subject_id"])
    if first is not None and model == first.model:
        known = replace(known, wrong=_is_wrong(row))
    entry = " ".join(part for part in (model, row["method"], row["level"]) if part)
    values = {m: float(row[m]) for m in (PRECISION, POINTING) if row.get(m)}
    samples[name] = replace(known, scores=known.scores | {entry: values})


def _is_wrong(row: Mapping[str, str]) -> bool:
    """Tell whether the predicted class is none of the true ones; not where one is unknown."""
    labels = row["label"].split(SEPARATOR)
    return bool(row["label"] and row["prediction"]) and row["prediction"] not in labels


def choose(found: Evaluation, samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Choose samples by their scores: group -> samples, one of a patient in each group."""
    first = headline(found)
    name = "" if first is None else first.name
    scored = [x for x in samples if math.isfinite(x.score(name, PRECISION))]
    ranked = sorted(scored, key=lambda x: -x.score(name, PRECISION))
    middle = len(ranked) // 2
    near = sorted(range(len(ranked)), key=lambda i: abs(i - middle))
    chosen = {
        "best": _of_patients(ranked),
        "median": _of_patients([ranked[i] for i in near]),
        "worst": _of_patients(ranked[::-1]),
        "wrong": _of_patients([x for x in samples if x.wrong]),
        "missed": _of_patients([x for x in ranked[::-1] if _is_missed(x)]),
    }
    return {group: [x.sample_id for x in found] for group, found in chosen.items()}


def _of_patients(samples: Sequence[Sample]) -> list[Sample]:
    first: dict[str, Sample] = {}
    for sample in samples:
        first.setdefault(sample.subject_id, sample)
    return list(first.values())[:EACH]


def _is_missed(sample: Sample) -> bool:
    """Tell whether every map points outside the true region."""
    hits = [values[POINTING] for values in sample.scores.values() if POINTING in values]
    return bool(hits) and max(hits) == 0


def _case(found: Evaluation, name: str, picture: CasePicture, shown: Sequence[str]) -> GalleryCase:
    true = found.classes[picture.label] if picture.label >= 0 else NO_CLASS
    predicted = found.classes[picture.prediction]
    return GalleryCase(
        name=f"{name} · true: {true} · predicted: {predicted}",
        scan=ScanPicture(suv=greys(picture, found.recipe), mask=picture.mask),
        unit="",
        cells={
            entry: Cell(
                values=picture.maps[entry], signed=picture.signed[entry], note=note(picture, entry)
            )
            for entry in shown
            if entry in picture.maps
        },
    )


def greys(picture: CasePicture, recipe: str) -> Float[np.ndarray, "h w"]:
    """Return the last channel (FLAIR, of brains) as it is read: uptake dark, tissue bright."""
    channel = picture.image[-1]
    low, high = float(channel.min()), float(channel.max())
    share = (channel - low) / max(high - low, 1e-6)
    return SUV_BLACK * (share if recipe in INVERTED else 1 - share)


def note(picture: CasePicture, entry: str) -> str:
    """Write a map's score, and in a word whether it points into the true region."""
    scores = picture.scores.get(entry, {})
    precision, pointing = scores.get(PRECISION, math.nan), scores.get(POINTING, math.nan)
    if not math.isfinite(precision):
        return "no true region"
    word = _word(pointing)
    return f"{word}, AP {100 * precision:.0f} %" if word else f"AP {100 * precision:.0f} %"


def _word(pointing: float) -> str:
    if not math.isfinite(pointing):
        return ""
    if 0 < pointing < 1:
        return "partly hit"  # several places share the peak, some of them inside
    return "hit" if pointing else "miss"


def names(made: Sequence[Group]) -> Iterator[str]:
    """Yield the names of all maps shown, in the order of their first appearance."""
    yield from dict.fromkeys(name for group in made for case in group.cases for name in case.cells)
