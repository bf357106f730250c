"""The cells of an evaluation's tables: numbers in words, the best of a column, published values."""

import math
from collections.abc import Iterable, Mapping, Sequence

from pipelines.comparison_scores import Difference, MeanScore
from pipelines.evaluation_measures import higher_is_better, split_measure, words_of
from pipelines.evaluation_records import Entry, Evaluation
from pipelines.published import PUBLISHED, PublishedRow, published
from pipelines.tabular import EMPTY, LEAST_SHOWN, Cell

Row = dict[str, str | int | float]
"""One line of a CSV file."""
PARTS = ("mean", "sd", "low", "high")
PAIR = ("fine", "coarse")
ROUNDING = 1e-6
"""Means below it tie: maps that agree exactly differ by the rounding of single precision."""
STANDARD = "standard"
"""Training on pictures as they are: that of the published networks."""
UPPER_BOUND = "true"
"""How the name of the control begins that knows the truth."""


def is_upper_bound(entry: Entry) -> bool:
    """Tell whether an entry is the true mask itself."""
    return entry.kind == "control" and entry.method.startswith(UPPER_BOUND)


def label_of(entry: Entry) -> str:
    """Name an entry without its level."""
    if entry.kind != "control":
        return f"{entry.model} {entry.method}"
    return f"{entry.method} (upper bound)" if is_upper_bound(entry) else entry.method


def number(value: float, measure: str) -> str:
    """Write a value: shares in per cent with one decimal, others with three; never minus zero."""
    if math.isnan(value):
        return EMPTY
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if words_of(measure).percent:
        return f"{100 * value:z.1f}"
    return f"{value:.1e}" if 0 < abs(value) < LEAST_SHOWN else f"{value:z.3f}"


def score_text(score: MeanScore | None, measure: str) -> str:
    """Write mean, ± over seeds and [interval over patients]; nothing where there is no score."""
    if score is None or math.isnan(score.mean):
        return EMPTY
    sd = f" ± {number(score.sd, measure)}" if math.isfinite(score.sd) else EMPTY
    low, high = number(score.low, measure), number(score.high, measure)
    interval = f" [{low}, {high}]" if low and high else EMPTY
    return f"{number(score.mean, measure)}{sd}{interval}"


def best_mean(scores: Iterable[MeanScore | None], measure: str) -> float:
    """Return the best mean of a column; NaN where fewer than two are defined."""
    means = [x.mean for x in scores if x is not None and math.isfinite(x.mean)]
    if len(means) < 2:
        return math.nan
    return max(means) if higher_is_better(measure) else min(means)


def score_cell(score: MeanScore | None, measure: str, best: float = math.nan) -> Cell:
    """Write a score, bold where its mean is ``best`` as far as the decimals tell."""
    text = score_text(score, measure)
    if score is None or not text or not math.isfinite(best):
        return Cell(text)
    rounding = max(abs(score.mean), abs(best)) < ROUNDING
    return Cell(text, best=rounding or number(score.mean, measure) == number(best, measure))


def rows_of_cells(
    labels: Sequence[str],
    scores: Sequence[Sequence[MeanScore | None]],
    measures: Sequence[str],
    *,
    choose: bool,
) -> list[list[Cell]]:
    """Return one row for each label; ``choose`` marks the best of every column."""
    columns = list(zip(*scores, strict=True)) or [()] * len(measures)
    best = [
        best_mean(column, name) if choose else math.nan
        for column, name in zip(columns, measures, strict=True)
    ]
    return [
        [Cell(label), *(score_cell(*item) for item in zip(line, measures, best, strict=True))]
        for label, line in zip(labels, scores, strict=True)
    ]


def difference_text(item: Difference | None) -> str:
    """Write a difference, its interval and its p values; points where the measure is a share."""
    if item is None or not math.isfinite(item.value):
        return EMPTY
    value, low, high = (signed(x, item.measure) for x in (item.value, item.low, item.high))
    interval = f" [{low}, {high}]" if low and high else EMPTY
    return f"{value}{interval}{p_text(item.p, item.p_holm)}"


def signed(value: float, measure: str) -> str:
    """Write a difference with its sign."""
    if not math.isfinite(value):
        return EMPTY
    if words_of(measure).percent:
        return f"{100 * value:+z.1f}"
    return f"{value:+.1e}" if 0 < abs(value) < LEAST_SHOWN else f"{value:+z.3f}"


def p_text(p: float, corrected: float) -> str:
    """Write a p value, and in brackets the corrected one."""
    if not math.isfinite(p):
        return EMPTY
    return f", p {p:.3f} ({corrected:.3f})" if math.isfinite(corrected) else f", p {p:.3f}"


def bare(value: float) -> str | float:
    """Return a value for programs; what is not defined is empty."""
    return EMPTY if math.isnan(value) else value


def columns(scores: Mapping[str, MeanScore], measures: Iterable[str]) -> Row:
    """Return mean, sd and interval of each measure for programs, as they are in the record."""
    row: Row = {}
    for name in measures:
        score = scores.get(name)
        values = [math.nan if score is None else getattr(score, part) for part in PARTS]
        names = (name, *(f"{name}_{part}" for part in PARTS[1:]))
        row |= {key: bare(value) for key, value in zip(names, values, strict=True)}
    return row


def entry_row(found: Evaluation, entry: Entry, measures: Sequence[str], table: str) -> Row:
    """Return an entry for programs: what it is, its scores, and the paper's where it has any."""
    row: Row = {
        "entry": entry.name,
        "model": entry.model,
        "method": entry.method,
        "level": entry.level,
        "kind": entry.kind,
        "seeds": seeds_text(entry.seeds),
    }
    row |= columns(found.scores.get(entry.name, {}), measures)
    for theirs in published_rows(found, entry, table):
        for name, value in theirs.values.items():
            row[f"{name}_published_percent_{theirs.level}"] = value.mean
            row[f"{name}_published_percent_{theirs.level}_sd"] = bare(value.sd)
    return row


def seeds_text(seeds: Sequence[int]) -> str:
    """Write seeds apart by blanks."""
    return " ".join(map(str, seeds))


def published_rows(found: Evaluation, entry: Entry, table: str) -> list[PublishedRow]:
    """Return the paper's rows that an entry stands for: those of its level, all where it is one."""
    model = found.models.get(entry.model)
    if model is None or model.objective != STANDARD:
        return []
    rows = published(
        found.recipe,
        table,
        variant=model.variant,
        network=model.network,
        explainer=entry.method,
    )
    return [row for row in rows if entry.level in (row.level, EMPTY)]


def published_measures(found: Evaluation, table: str) -> list[str]:
    """Return what the paper reports in a table for this data set."""
    rows = PUBLISHED.get(found.recipe, {}).get(table, ())
    return list(dict.fromkeys(name for row in rows for name in row.values))


def published_text(rows: Sequence[PublishedRow], measure: str) -> str:
    """Write the paper's values of a measure, with their levels where there are several."""
    decimals = 1 if measure == "parameters" else 2
    printed = [row for row in rows if measure in row.values]
    named = [(row.level, row.values[measure].text(decimals)) for row in printed]
    if len(named) < 2:
        return named[0][1] if named else EMPTY
    return " / ".join(f"{text} ({level})" for level, text in named)


def fills_of(found: Evaluation, metrics: Sequence[str]) -> list[str]:
    """Return what stands for removed pixels in the scores of some metrics; "" where unnamed."""
    split = [split_measure(name) for scores in found.scores.values() for name in scores]
    return list(dict.fromkeys(fill for metric, fill in split if metric in metrics))


def measures_of(found: Evaluation, metrics: Sequence[str]) -> list[str]:
    """Return every measure, fills included, of some metrics that any entry was scored by."""
    present = dict.fromkeys(name for scores in found.scores.values() for name in scores)
    return [name for metric in metrics for name in present if split_measure(name)[0] == metric]
