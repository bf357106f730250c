"""Accuracy against the level T, finding by finding, with controls and published values."""

from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.metrics.boxes import HIT_LEVELS
from pipelines.box_measures import Criterion, Form, at
from pipelines.box_records import MEAN, TRUE_BOX, BoxEntry, BoxScores
from pipelines.comparison_figure import in_both_formats
from pipelines.pictures import printable
from pipelines.plots import COLOURS, DASHES
from pipelines.published_chest import WANG, WANG_IOBB

PANELS_BESIDE = 3
MOST_LINES = len(COLOURS)
"""Models that are told apart in a figure; the first of them, as they were named."""
QUIET, QUIETER = "#5c6573", "#a7aeb8"
CONTROL_MARKS = ("o", "s", "^", "D")
CRITERION_NAMES = {"iobb": "IoBB", "iou": "IoU"}


def accuracy_figure(
    found: BoxScores, *, criterion: Criterion, threshold: int, form: Form = "best"
) -> dict[str, bytes]:
    """Draw accuracy against T as ``png`` and ``svg``: a panel for each finding with boxes.

    Models in colour with a band for the 95 % interval over patients, controls in grey with marks,
    published accuracies as crosses.
    """
    return in_both_formats(lambda: _figure(found, criterion, threshold, form))


def _figure(found: BoxScores, criterion: Criterion, threshold: int, form: Form) -> Figure:
    shown = [name for name in found.findings if found.boxes_of(name)] + [MEAN]
    beside = min(PANELS_BESIDE, len(shown))
    lines = -(-len(shown) // beside)
    figure = Figure(figsize=(3.6 * beside, 2.7 * lines + 1.4), dpi=110, layout="constrained")
    axes = list(figure.subplots(lines, beside, squeeze=False, sharey=True).flat)
    for spare in axes[len(shown) :]:
        spare.set_visible(False)
    for axis, finding in zip(axes, shown, strict=False):
        _panel(axis, found, finding, [at(form, criterion, threshold, t) for t in HIT_LEVELS])
        if criterion == "iobb" and form == "best":
            _published(axis, finding)
    words = f"T({CRITERION_NAMES[criterion]}), maps cut at {threshold} of 255"
    for axis in axes[len(shown) - beside : len(shown)]:
        axis.set_xlabel(words, fontsize=9)
    figure.supylabel("accuracy: share of the boxes that are found", fontsize=11)
    handles: dict[str, Artist] = {}
    for axis in axes:
        lines_of, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, lines_of, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=2, fontsize=9
    )
    return figure


def _panel(axis: Axes, found: BoxScores, finding: str, measures: Sequence[str]) -> None:
    for place, entry in enumerate(found.models()[:MOST_LINES]):
        _line(axis, found, entry, finding, measures, colour=COLOURS[place], dash=DASHES[place])
    controls = [entry for entry in found.controls() if entry.method != TRUE_BOX]
    for place, entry in enumerate(controls):
        mark = CONTROL_MARKS[place % len(CONTROL_MARKS)]
        _line(axis, found, entry, finding, measures, colour=QUIETER, mark=mark)
    boxes = len(found.cases) if finding == MEAN else found.boxes_of(finding)
    title = "mean over findings" if finding == MEAN else f"{finding} ({boxes})"
    axis.set_title(printable(title), fontsize=10)
    axis.set_ylim(-0.03, 1.03)
    axis.set_xticks(HIT_LEVELS, [f"{level:g}" for level in HIT_LEVELS])


def _line(
    axis: Axes,
    found: BoxScores,
    entry: BoxEntry,
    finding: str,
    measures: Sequence[str],
    *,
    colour: str,
    dash: object = "-",
    mark: str = "",
) -> None:
    scores = [found.scores[entry.name].get(finding, {}).get(name) for name in measures]
    if any(score is None for score in scores):
        return
    known = [score for score in scores if score is not None]
    style = {"color": colour, "linestyle": dash, "marker": mark or None, "markersize": 4}
    axis.plot(HIT_LEVELS, [s.mean for s in known], label=printable(entry.name), **style)
    low, high = [s.low for s in known], [s.high for s in known]
    if not mark and np.isfinite([*low, *high]).all():
        axis.fill_between(HIT_LEVELS, low, high, color=colour, alpha=0.15, linewidth=0)


def _published(axis: Axes, finding: str) -> None:
    rows = [WANG_IOBB[level].accuracy for level in HIT_LEVELS]
    theirs = [row[finding] for row in rows if finding in row]
    if theirs:
        label = f"{WANG} (published, other data)"
        axis.plot(HIT_LEVELS, theirs, "x", color=QUIET, markersize=6, label=label)
