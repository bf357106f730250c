"""Maps against boxes as tables: findings in the order of the published ones, controls below.

A finding without a box has empty cells, never zeros. Published values stand in rows of their own,
marked as theirs and on other data.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from models.metrics.boxes import HIT_LEVELS
from pipelines.box_measures import (
    CRITERIA,
    THRESHOLDS,
    WITHOUT_THRESHOLD,
    Criterion,
    Form,
    at,
)
from pipelines.box_records import (
    CLEAN,
    MEAN,
    MEAN_BOX,
    TRUE_BOX,
    BoxEntry,
    BoxScores,
    TrainingEffect,
)
from pipelines.box_training import AREA
from pipelines.comparison_scores import Difference, MeanScore
from pipelines.evaluation_tables import EvaluationTable
from pipelines.published_chest import AREAS, THEIRS, WANG, WANG_IOBB
from pipelines.tabular import EMPTY, Block, Cell, Sheet, spread

Row = dict[str, str | int | float]
PARTS = ("mean", "sd", "low", "high")
CRITERION_WORDS: Mapping[Criterion, str] = {
    "iobb": "IoBB (share of a box that lies in a true one)",
    "iou": "IoU (intersection over union)",
}
FORM_WORDS: Mapping[Form, str] = {
    "best": "Accuracy of the best single box",
    "union": "Accuracy of the union of all boxes",
    "false": "Average false boxes (AFP)",
}
MEASURE_WORDS: Mapping[str, str] = {
    "iou_equal_area": "IoU of as many of the most important pixels as the true boxes have",
    "ior_equal_area": "share of those pixels inside the true boxes (IoR at equal area)",
    "pointing_game": "pointing game: the most important pixel lies in a true box",
    "ior_60": "IoR: share of what reaches 60 inside the true boxes",
    "ior_180": "IoR: share of what reaches 180 inside the true boxes",
}
TITLES: Mapping[str, str] = {
    "iou_equal_area": "IoU, equal area",
    "ior_equal_area": "IoR, equal area",
    "pointing_game": "pointing game",
    AREA: "mean area under the ROC curves",
}
SHORT: Mapping[str, str] = {
    "best": "single box",
    "union": "union of boxes",
    "false": "false boxes",
    "iobb": "IoBB",
    "iou": "IoU",
}
FORMS: tuple[Form, ...] = ("best", "union", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A block of a table: one measure of all entries."""

    label: str
    measure: str
    lower_is_better: bool = False
    published: Mapping[str, float] | None = None


def tables(found: BoxScores) -> dict[str, EvaluationTable]:
    """Return every table by the name of its files."""
    made = {"boxes-without-threshold": _table(found, "Maps without a threshold", _plain_lines())}
    for form, criterion in product(FORMS, CRITERIA):
        title = f"{FORM_WORDS[form]} by {CRITERION_WORDS[criterion]}"
        lines = list(_level_lines(form, criterion))
        made[f"boxes-{form}-{criterion}"] = _table(found, title, lines)
    compared = {"boxes-training": training(found)} if found.training else {}
    return (
        compared | {"boxes-differences": differences(found)} | made | {"boxes-areas": areas(found)}
    )


def _plain_lines() -> list[_Line]:
    names = (*WITHOUT_THRESHOLD, *(f"ior_{threshold}" for threshold in THRESHOLDS))
    return [_Line(label=MEASURE_WORDS[name], measure=name) for name in names]


def _level_lines(form: Form, criterion: Criterion) -> Iterator[_Line]:
    for threshold, level in product(THRESHOLDS, HIT_LEVELS):
        theirs = WANG_IOBB[level] if criterion == "iobb" and form != "union" else None
        published = None
        if theirs is not None:
            published = theirs.accuracy if form == "best" else theirs.false_boxes
        yield _Line(
            label=f"map cut at {threshold}, T = {level:g}",
            measure=at(form, criterion, threshold, level),
            lower_is_better=form == "false",
            published=published,
        )


def _table(found: BoxScores, title: str, lines: Sequence[_Line]) -> EvaluationTable:
    """Make a block for each measure; the best of every column on clean pictures is bold."""
    return EvaluationTable(
        title=title,
        note=" ".join(found.notes),
        sheet=Sheet(heading=_heading(found), blocks=[_block(found, line) for line in lines]),
        rows=[row for line in lines for row in _rows(found, line)],
    )


def _heading(found: BoxScores) -> list[str]:
    counts = [f"{name} ({found.boxes_of(name)})" for name in found.findings]
    return ["maps (number of boxes)", *counts, MEAN]


def _block(found: BoxScores, line: _Line) -> Block:
    columns = (*found.findings, MEAN)
    best = [_best(found, finding, line) for finding in columns]
    rows = []
    for entry in found.entries.values():
        scores = [_score(found, entry, finding, line.measure) for finding in columns]
        real = entry.kind != "control" and entry.condition == CLEAN
        cells = [
            Cell(spread(score), best=real and score is not None and score.mean == top)
            for score, top in zip(scores, best, strict=True)
        ]
        rows.append([Cell(label_of(entry)), *cells])
    if line.published is not None:
        theirs = [line.published.get(name) for name in found.findings]
        rows.append(_published_row(WANG, theirs, mean=_mean(theirs)))
    return Block(label=line.label, rows=rows)


def label_of(entry: BoxEntry) -> str:
    """Name an entry in a table."""
    return f"{entry.name} (upper bound)" if entry.method == TRUE_BOX else entry.name


def _score(found: BoxScores, entry: BoxEntry, finding: str, measure: str) -> MeanScore | None:
    return found.scores[entry.name].get(finding, {}).get(measure)


def _best(found: BoxScores, finding: str, line: _Line) -> float:
    clean = [entry for entry in found.models() if entry.condition == CLEAN]
    scores = [_score(found, entry, finding, line.measure) for entry in clean]
    means = [score.mean for score in scores if score is not None]
    if len(means) < 2:
        return math.nan
    return min(means) if line.lower_is_better else max(means)


def _published_row(
    source: str, values: Sequence[float | None], *, mean: float | None
) -> list[Cell]:
    texts = [EMPTY if value is None else f"{value:.3f}" for value in (*values, mean)]
    return [Cell(f"{source} ({THEIRS})"), *(Cell(text) for text in texts)]


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of published values; none unless all are there, for it would be of other findings."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _rows(found: BoxScores, line: _Line) -> Iterator[Row]:
    for entry in found.entries.values():
        for finding in (*found.findings, MEAN):
            score = _score(found, entry, finding, line.measure)
            yield {
                "maps": entry.name,
                "model": entry.model,
                "method": entry.method,
                "condition": entry.condition,
                "kind": entry.kind,
                "seeds": " ".join(map(str, entry.seeds)),
                "measure": line.measure,
                "finding": finding,
                **_counts(found, finding),
                **_values(score),
            }
    for finding, value in (line.published or {}).items():
        if finding in found.findings:
            yield {
                "maps": f"{WANG} ({THEIRS})",
                "kind": "published",
                "measure": line.measure.replace("_60@", "@").replace("_180@", "@"),
                "finding": finding,
                "mean": value,
            }


def _counts(found: BoxScores, finding: str) -> Row:
    if finding == MEAN:
        return {"boxes": len(found.cases), "patients": len({c.subject_id for c in found.cases})}
    return {"boxes": found.boxes_of(finding), "patients": found.patients_of(finding)}


def _values(score: MeanScore | None) -> Row:
    return {part: EMPTY if score is None else _finite(getattr(score, part)) for part in PARTS}


def differences(found: BoxScores) -> EvaluationTable:
    """Return what maps add to knowing the place: their scores less the mean box's, paired."""
    shown = list(dict.fromkeys(item.measure for item in found.differences))
    names = list(dict.fromkeys(item.variant for item in found.differences))
    held = {(item.variant, item.measure): item for item in found.differences}
    rows = [
        [Cell(name), *(Cell(_difference(held.get((name, measure)))) for measure in shown)]
        for name in names
    ]
    return EvaluationTable(
        title=f"Difference from the {MEAN_BOX} of each finding, mean over findings",
        note="Paired within each draw of the patients, with a 95 % interval that is not corrected; "
        "p is corrected for all maps within a measure (Holm). The mean box knows nothing of the "
        f"picture: {found.prior}.",
        sheet=Sheet(
            heading=["maps", *map(title_of, shown)],
            blocks=[Block(label=EMPTY, rows=rows)] if rows else [],
        ),
        rows=[
            {
                "maps": item.variant,
                "against": item.against,
                "measure": item.measure,
                "difference": item.value,
                **{name: _finite(getattr(item, name)) for name in ("low", "high", "p", "p_holm")},
            }
            for item in found.differences
        ],
    )


def title_of(measure: str) -> str:
    """Name a measure in the heading of a column."""
    if measure in TITLES:
        return TITLES[measure]
    form, criterion, rest = measure.split("_")
    threshold, level = rest.split("@")
    return f"{SHORT[form]}, {SHORT[criterion]} at {threshold} from {level} on"


def _difference(item: Difference | None) -> str:
    if item is None:
        return EMPTY
    interval = f" ({item.low:+.3f} to {item.high:+.3f})" if math.isfinite(item.low) else EMPTY
    p = f", p {item.p_holm:.3f}" if math.isfinite(item.p_holm) else EMPTY
    return f"{item.value:+.3f}{interval}{p}"


def _finite(value: float) -> str | float:
    return value if math.isfinite(value) else EMPTY


def areas(found: BoxScores) -> EvaluationTable:
    """Return the area under each finding's ROC curve, clean and attacked, beside published ones."""
    columns = (*found.classes, MEAN)
    best = {
        name: max(scores[name].mean for scores in found.areas.values() if name in scores)
        for name in columns
        if sum(name in scores for scores in found.areas.values()) > 1
    }
    rows = [
        [Cell(model), *(_area_cell(scores.get(name), best.get(name)) for name in columns)]
        for model, scores in found.areas.items()
    ]
    for source, theirs in AREAS.items():
        values = [theirs.get(name) for name in found.classes]
        if any(value is not None for value in values):
            rows.append(_published_row(source, values, mean=_mean(values)))
    return EvaluationTable(
        title="Area under the ROC curve of each finding, on the whole test split",
        note="In brackets: 95 % interval over patients. Guessing gives 0.5.",
        sheet=Sheet(heading=["model", *columns], blocks=[Block(label=EMPTY, rows=rows)]),
        rows=[
            {"model": model, "finding": name, **_values(score)}
            for model, scores in found.areas.items()
            for name, score in scores.items()
        ],
    )


def training(found: BoxScores) -> EvaluationTable:
    """Return what robust objectives change, pair by pair, clean and under attack."""
    blocks = []
    for model in dict.fromkeys(effect.model for effect in found.training):
        own = [effect for effect in found.training if effect.model == model]
        rows = [_effect_cells(effect) for effect in own]
        blocks.append(Block(label=f"{model} less {own[0].standard}", rows=rows))
    return EvaluationTable(
        title="Robust training less standard training, mean over findings",
        note="Paired within each draw of the patients and within each seed. Patients: 95 % "
        "interval over resampled patients; trainings: 95 % t-interval over paired seeds. Neither "
        "is corrected for the number of comparisons.",
        sheet=Sheet(
            heading=["maps or findings", "measure", "pictures", "patients", "trainings", "higher?"],
            blocks=blocks,
        ),
        rows=[_effect_row(effect) for effect in found.training],
    )


def _effect_cells(effect: TrainingEffect) -> list[Cell]:
    found = effect.advantage
    return [
        Cell(effect.method or "findings"),
        Cell(title_of(effect.measure)),
        Cell(effect.condition or "clean"),
        Cell(_signed(found.value, found.low, found.high)),
        Cell(_signed(found.seeds_mean, found.seeds_low, found.seeds_high)),
        Cell(found.verdict),
    ]


def _signed(value: float, low: float, high: float) -> str:
    if not math.isfinite(value):
        return EMPTY
    interval = f" [{low:+.3f}, {high:+.3f}]" if math.isfinite(low + high) else EMPTY
    return f"{value:+.3f}{interval}"


def _effect_row(effect: TrainingEffect) -> Row:
    found = effect.advantage
    parts = ("value", "low", "high", "p", "seeds_mean", "seeds_low", "seeds_high")
    return {
        "model": effect.model,
        "against": effect.standard,
        "method": effect.method,
        "condition": effect.condition,
        "measure": effect.measure,
        "seeds": found.seeds,
        **{name: _finite(getattr(found, name)) for name in parts},
        "verdict": found.verdict,
    }


def _area_cell(score: MeanScore | None, best: float | None) -> Cell:
    return Cell(spread(score), best=score is not None and score.mean == best)


def case_rows(found: BoxScores, measures: Sequence[str]) -> list[Row]:
    """Return one line for each case, entry and seed, with measures that read back to the bit."""
    rows = []
    for name, tables_of in found.per_case.items():
        for seed, table in tables_of.items():
            for case, values in zip(found.cases, table.tolist(), strict=True):
                row: Row = {
                    "sample_id": case.sample_id,
                    "subject_id": case.subject_id,
                    "finding": found.classes[case.finding],
                    "boxes": len(case.boxes),
                    "maps": name,
                    "seed": seed if found.entries[name].seeds else EMPTY,
                }
                named = zip(measures, values, strict=True)
                rows.append(row | {k: v if math.isfinite(v) else EMPTY for k, v in named})
    return rows
