"""The figures of an evaluation as PNG and SVG.

A reader must tell the lines apart in grey and with any colour vision: few are highlighted, and
those differ in dashes and marks besides the colours of Okabe and Ito; all others are pale grey.
What a figure needs and the evaluation has not makes that figure absent.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipelines.comparison_figure import in_both_formats
from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_blocks import by_level, controls, real
from pipelines.evaluation_cells import PAIR, is_upper_bound, label_of
from pipelines.evaluation_choice import highlighted
from pipelines.evaluation_measures import split_measure
from pipelines.evaluation_records import CurveBand, Entry, Evaluation, Model
from pipelines.pictures import printable
from pipelines.plots import COLOURS, DASHES

QUIET, PALE = "#5c6573", "#c3c9d1"
MARKS = ("o", "s", "^", "D", "v", "P")
ROW_INCHES, LABEL_INCHES = 0.26, 0.2
PRECISION, APART = "average_precision", "total_variation"
LEAST_APART = 1e-9
"""Distances below it are rounding and drawn there."""
LOGARITHMIC_BELOW = 1e-3
MOST_ACCURATE = 100.5
"""End of the axis of accuracies in per cent: a dot at 100 is to be seen whole."""


def draw(found: Evaluation) -> dict[str, dict[str, bytes]]:
    """Return every figure that can be drawn: name -> ending of the file -> content."""
    drawn = {
        f"perturbation-{fill or 'curves'}": in_both_formats(lambda fill=fill: _curves(found, fill))
        for fill in dict.fromkeys(band.fill for band in _ascending(found))
    }
    if _rows_by_level(found):
        drawn["localisation"] = in_both_formats(lambda: _localisation(found))
    if _points(found):
        drawn["accuracy-localisation"] = in_both_formats(lambda: _trade(found))
    if _apart(found):
        drawn["agreement"] = in_both_formats(lambda: _agreement(found))
    return drawn


def _ascending(found: Evaluation) -> list[CurveBand]:
    return [band for band in found.curves if band.order == "ascending"]


def _curves(found: Evaluation, fill: str) -> Figure:
    bands = {band.entry: band for band in _ascending(found) if band.fill == fill}
    chosen = [entry for entry in highlighted(found) if entry.name in bands]
    figure = Figure(figsize=(9.6, 5.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    others = [band for name, band in bands.items() if name not in {x.name for x in chosen}]
    for band in others:
        axis.plot(100 * band.fractions, 100 * band.mean, color=PALE, linewidth=1)
    coloured = 0
    for entry in chosen:
        _line(axis, bands[entry.name], entry, coloured)
        coloured += entry.kind != "control"
    if others:
        axis.plot([], [], color=PALE, linewidth=1, label=f"{len(others)} others")
    balanced = any(
        split_measure(name)[0] == "input_perturbation" for x in found.scores.values() for name in x
    )
    if balanced:
        axis.axhline(100 * found.chance, color=QUIET, linewidth=1, linestyle=":", label="guessing")
    axis.set(
        xlabel="pixels removed, the least important first (%)",
        ylabel="balanced accuracy of the judge (%)" if balanced else "mean probability (%)",
        title=f"Input perturbation, removed pixels become: {printable(fill) or 'other values'}",
        xlim=(0, 100),
    )
    figure.legend(loc="outside right center", fontsize=9, title="band: 95 % over patients")
    return figure


def _line(axis: Axes, band: CurveBand, entry: Entry, place: int) -> None:
    shares = 100 * band.fractions
    if entry.kind == "control":
        dash = "--" if is_upper_bound(entry) else ":"
        label = printable(label_of(entry))
        axis.plot(
            shares, 100 * band.mean, color="black", linestyle=dash, linewidth=1.3, label=label
        )
        return
    colour = COLOURS[place % len(COLOURS)]
    axis.fill_between(
        shares, 100 * band.low, 100 * band.high, color=colour, alpha=0.13, linewidth=0
    )
    axis.plot(
        shares,
        100 * band.mean,
        color=colour,
        linestyle=DASHES[place % len(DASHES)],
        marker=MARKS[place % len(MARKS)],
        markevery=(place, 6),
        markersize=5,
        linewidth=1.8,
        label=printable(entry.name),
    )


def _rows_by_level(found: Evaluation) -> dict[str, list[tuple[str, MeanScore]]]:
    """Scored entries of each level, the best first."""
    rows = {
        level: sorted(_scored(found, entries, PRECISION), key=lambda row: row[1].mean, reverse=True)
        for level, entries in by_level(found).items()
    }
    return {level: found for level, found in rows.items() if found}


def _scored(
    found: Evaluation, entries: Sequence[Entry], measure: str
) -> list[tuple[str, MeanScore]]:
    named = [(label_of(entry), found.scores.get(entry.name, {}).get(measure)) for entry in entries]
    return [(n, score) for n, score in named if score is not None and math.isfinite(score.mean)]


def _localisation(found: Evaluation) -> Figure:
    rows = _rows_by_level(found)
    counts = [len(lines) + 1.5 for lines in rows.values()]
    figure = Figure(figsize=(9.6, 2.0 + ROW_INCHES * sum(counts)), dpi=110, layout="constrained")
    axes = figure.subplots(
        len(rows), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts}
    )[:, 0]
    for axis, (level, lines) in zip(axes, rows.items(), strict=True):
        _dots(axis, lines, scale=100.0)
        _control_lines(axis, found)
        axis.set_title(f"{level} level" if level else "one map for all levels", fontsize=10)
    axes[-1].set_xlabel("average precision against the true region (%)")
    axes[-1].set_xlim(left=0)
    _dot_legend(axes[0], figure)
    return figure


def _control_lines(axis: Axes, found: Evaluation) -> None:
    """Draw a line for each control, with its name the first time that the figure needs it."""
    styles = iter((":", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), "-.", (0, (3, 3)), (0, (8, 3))))
    for entry in controls(found):
        score = found.scores.get(entry.name, {}).get(PRECISION)
        if score is None or not math.isfinite(score.mean):
            continue
        dash = "-" if is_upper_bound(entry) else next(styles, ":")
        label = f"{printable(label_of(entry))} ({100 * score.mean:.0f} %)"
        axis.axvline(100 * score.mean, color=QUIET, linewidth=1.1, linestyle=dash, label=label)


def _dots(axis: Axes, rows: Sequence[tuple[str, MeanScore]], *, scale: float) -> None:
    """Draw a row for each score: small dots for seeds, a large one for the mean, its interval."""
    for place, (_, score) in enumerate(rows):
        ends = [scale * score.low, scale * score.high]
        axis.plot(ends, [place, place], color=COLOURS[0], linewidth=3, alpha=0.45)
        seeds = scale * np.array(score.values)
        axis.plot(seeds, [place] * len(seeds), ".", color=COLOURS[1], markersize=5, alpha=0.9)
        axis.plot(scale * score.mean, place, "o", color=COLOURS[0], markersize=6)
    axis.set_yticks(range(len(rows)), [printable(name) for name, _ in rows], fontsize=9)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=8))


def _dot_legend(axis: Axes, figure: Figure) -> None:
    axis.plot([], [], "o-", color=COLOURS[0], label="mean, 95 % interval over patients")
    axis.plot([], [], ".", color=COLOURS[1], label="one seed")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)


Point = tuple[str, MeanScore, MeanScore]
"""Model, balanced accuracy, and what is drawn against it."""


def _points(found: Evaluation) -> list[Point]:
    points = []
    for model in found.models.values():
        balanced, precision = model.scores.get("balanced_accuracy"), _finest(found, model)
        if balanced is not None and precision is not None and math.isfinite(balanced.mean):
            points.append((model.name, balanced, precision))
    return points


def _finest(found: Evaluation, model: Model) -> MeanScore | None:
    """Score of a model's own finest maps; without any, of its best method's."""
    mine = [entry for entry in real(found) if entry.model == model.name]
    own = [entry for entry in mine if entry.kind == "attention"]
    scored = _scored(found, own, PRECISION)
    by_level = {entry.level: entry for entry in own}
    for level in PAIR:
        if level in by_level and _scored(found, [by_level[level]], PRECISION):
            return _scored(found, [by_level[level]], PRECISION)[0][1]
    scores = [score for _, score in scored or _scored(found, mine, PRECISION)]
    return max(scores, key=lambda score: score.mean, default=None)


def _trade(found: Evaluation) -> Figure:
    return against_accuracy(
        _points(found),
        ylabel="average precision of the finest maps (%)",
        title="Does finding the region cost accuracy?",
    )


def against_accuracy(given: Sequence[Point], *, ylabel: str, title: str) -> Figure:
    """Draw a share, in per cent, of every model against its balanced accuracy, with intervals."""
    points = sorted(given, key=lambda point: point[2].mean)
    height = max(4.2, 1.4 + LABEL_INCHES * len(points))
    figure = Figure(figsize=(8.6, height), dpi=110, layout="constrained")
    axis = figure.subplots()
    for _, accuracy, share in points:
        x, y = 100 * accuracy.mean, 100 * share.mean
        axis.plot([100 * accuracy.low, 100 * accuracy.high], [y, y], color=PALE, linewidth=1.5)
        axis.plot([x, x], [100 * share.low, 100 * share.high], color=PALE, linewidth=1.5)
    for _, accuracy, share in points:
        axis.plot(100 * accuracy.mean, 100 * share.mean, "o", color=COLOURS[0], markersize=6)
    axis.set_xlim(right=min(axis.get_xlim()[1], MOST_ACCURATE))
    _names_beside(axis, points)
    axis.set(xlabel="balanced accuracy (%)", ylabel=ylabel, title=title)
    return figure


def _names_beside(axis: Axes, points: Sequence[Point]) -> None:
    """Write the names in a column on the right, each tied to its point by a thin line."""
    for place, (name, accuracy, share) in enumerate(points):
        axis.annotate(
            printable(name),
            (100 * accuracy.mean, 100 * share.mean),
            (1.06, (place + 0.5) / len(points)),
            textcoords="axes fraction",
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.6},
        )


def _apart(found: Evaluation) -> list[tuple[str, MeanScore]]:
    """Distance between the levels of each model's own maps, the closest first."""
    rows: dict[str, MeanScore] = {}
    for entry in real(found):
        score = found.scores.get(entry.name, {}).get(APART)
        if score is not None and math.isfinite(score.mean):
            rows.setdefault(f"{entry.model} {entry.method}", score)
    return sorted(rows.items(), key=lambda row: row[1].mean)


def _agreement(found: Evaluation) -> Figure:
    rows = _apart(found)
    figure = Figure(figsize=(9.6, 1.8 + ROW_INCHES * len(rows)), dpi=110, layout="constrained")
    axis = figure.subplots()
    if rows[0][1].mean < LOGARITHMIC_BELOW:
        rows = [(name, _floored(score)) for name, score in rows]
        _dots(axis, rows, scale=1.0)
        axis.set_xscale("log")
        # Our texts are plain: the default would write powers of ten as formulas.
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        _dots(axis, rows, scale=1.0)
        axis.set_xlim(left=0)
    axis.set(
        xlabel="total variation between coarse and summed fine map (0: they agree, 1: disjoint)",
        title="Do the two levels tell the same?",
    )
    _dot_legend(axis, figure)
    return figure


def _floored(score: MeanScore) -> MeanScore:
    """Lift what a logarithmic axis cannot show."""
    return MeanScore(
        values=tuple(max(value, LEAST_APART) for value in score.values),
        mean=max(score.mean, LEAST_APART),
        sd=score.sd,
        low=max(score.low, LEAST_APART),
        high=max(score.high, LEAST_APART),
        drawn=score.drawn,
    )
