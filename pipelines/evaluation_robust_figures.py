"""The figures of what attacks found, as PNG and SVG.

Likeness of explanations against the radius of the attack, accuracy against radius, and sparsity of
gradient maps against accuracy.

References
----------
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023 (the layout of its robustness curves).
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.comparison_figure import in_both_formats
from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_blocks import PAIR
from pipelines.evaluation_figures import MARKS, QUIET, Point, against_accuracy
from pipelines.evaluation_records import Entry, Evaluation, Robustness
from pipelines.evaluation_robust_choice import CLEAN, NOISE, WORST
from pipelines.evaluation_robust_files import condition
from pipelines.evaluation_robust_scores import ATTACKED, reference
from pipelines.evaluation_robust_tables import BALANCED, gradients_of
from pipelines.pictures import printable
from pipelines.plots import COLOURS, figure_of
from pipelines.robustness_figure import LEGEND_COLUMNS, LEGEND_INCHES, LINES, PANELS

MOST = 9
"""Lines of a figure: more are not told apart."""
METHODS, GRADIENTS = "attack-methods", "attack-gradients"
ACCURACY, SPARSITY = "attack-accuracy", "attack-sparsity"


def draw_attacks(found: Evaluation) -> dict[str, dict[str, bytes]]:
    """Return every figure that can be drawn: name -> ending of the file -> content."""
    attacked = found.robustness
    if attacked is None:
        return {}
    drawn = {}
    for name, entries in ((METHODS, methods(found, attacked)), (GRADIENTS, gradients(attacked))):
        if entries and attacked.radii:
            drawn[name] = in_both_formats(lambda shown=entries: _similarities(attacked, shown))
    if attacked.linf_radii or attacked.l2_radii:
        drawn[ACCURACY] = in_both_formats(lambda: _accuracies(found, attacked))
    points = sparsity_points(found, attacked)
    if points:
        drawn[SPARSITY] = in_both_formats(
            lambda: against_accuracy(
                points,
                ylabel="Gini index of gradient maps (%)",
                title="Do sparse gradients cost accuracy?",
            )
        )
    return drawn


def methods(found: Evaluation, attacked: Robustness) -> list[Entry]:
    """Return all maps of the first model, and the finest attention of others trained as usual."""
    first = reference(found.models)
    entries = list(attacked.entries.values())
    usual = {name for name, model in found.models.items() if model.objective == "standard"}
    own = [x for x in entries if x.model == first]
    others = [
        x
        for x in entries
        if x.kind == "attention" and x.model in usual - {first} and x.level in ("", PAIR[0])
    ]
    return [*own, *others][:MOST]


def gradients(attacked: Robustness) -> list[Entry]:
    """Return the gradient maps of every model."""
    return list(gradients_of(attacked).values())[:MOST]


def _similarities(attacked: Robustness, entries: Sequence[Entry]) -> Figure:
    """Draw three panels: a marked line is the worst attack, a thin dotted one noise of its size."""
    lines = -(-(len(entries) + 1) // LEGEND_COLUMNS)
    figure, axes = figure_of(len(PANELS), height=3.8 + LEGEND_INCHES * lines)
    for axis, (measure, title) in zip(axes, PANELS.items(), strict=True):
        for index, entry in enumerate(entries):
            _similarity(axis, attacked, entry, measure, index=index)
        axis.set(title=title, xlabel="radius (RMS change, SD)", xscale="log")
        axis.set_xticks(attacked.radii, [f"{radius:g}" for radius in attacked.radii])
        axis.set_xticks([], minor=True)
        axis.set_ylim(bottom=0)
        if measure != "normalised_distance":
            axis.set_ylim(top=1.02)
    axes[0].plot([], [], color=QUIET, linewidth=1, linestyle=":", label="noise of the same size")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure


def _similarity(
    axis: Axes, attacked: Robustness, entry: Entry, measure: str, *, index: int
) -> None:
    colour, dash = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
    scores = attacked.scores[entry.name]
    for attack in (WORST, NOISE):
        own = [scores.get(f"{measure}@{condition(attack, radius)}") for radius in attacked.radii]
        means = [math.nan if score is None else score.mean for score in own]
        if attack == NOISE:
            axis.plot(attacked.radii, means, color=colour, linestyle=":", linewidth=1, alpha=0.7)
            continue
        ends = [(math.nan, math.nan) if score is None else (score.low, score.high) for score in own]
        low, high = zip(*ends, strict=True)
        axis.fill_between(attacked.radii, low, high, color=colour, alpha=0.1, linewidth=0)
        axis.plot(
            attacked.radii,
            means,
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            marker=MARKS[index % len(MARKS)],
            markersize=5,
            label=printable(entry.name),
        )


def _accuracies(found: Evaluation, attacked: Robustness) -> Figure:
    """Draw a panel for each attack on predictions, a line for each model, from no attack on."""
    panels = {
        "linf": (attacked.linf_radii, "largest change of a value"),
        "l2": (attacked.l2_radii, "Euclidean length of the change"),
    }
    panels = {name: panel for name, panel in panels.items() if panel[0]}
    lines = -(-(len(attacked.predictions) + 1) // LEGEND_COLUMNS)
    figure, axes = figure_of(len(panels), height=3.8 + LEGEND_INCHES * lines)
    for axis, (attack, (radii, title)) in zip(axes, panels.items(), strict=True):
        names = [CLEAN, *(condition(attack, radius) for radius in radii)]
        for index, (model, scores) in enumerate(attacked.predictions.items()):
            own = [scores.get(f"{ATTACKED}{BALANCED}@{name}") for name in names]
            _accuracy(axis, (0.0, *radii), own, label=model, index=index)
        axis.axhline(100 * found.chance, color=QUIET, linewidth=1, linestyle=":", label="guessing")
        axis.set(title=title, xlabel="radius", ylabel="balanced accuracy (%)", ylim=(-2, 102))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure


def _accuracy(
    axis: Axes,
    radii: Sequence[float],
    scores: Sequence[MeanScore | None],
    *,
    label: str,
    index: int,
) -> None:
    rows = [(math.nan,) * 3 if x is None else (x.mean, x.low, x.high) for x in scores]
    means, low, high = 100 * np.array(rows).T
    colour = COLOURS[index % len(COLOURS)]
    axis.fill_between(radii, low, high, color=colour, alpha=0.08, linewidth=0)
    axis.plot(
        radii,
        means,
        color=colour,
        linestyle=LINES[index % len(LINES)],
        linewidth=1.8,
        marker=MARKS[index % len(MARKS)],
        markersize=5,
        label=printable(label),
    )


def sparsity_points(found: Evaluation, attacked: Robustness) -> list[Point]:
    """Return balanced accuracy and Gini index of the gradient maps of every model that has both."""
    points = []
    for model, entry in gradients_of(attacked).items():
        accuracy = found.models[model].scores.get(BALANCED)
        sparse = attacked.scores[entry.name].get("gini")
        if accuracy is not None and sparse is not None and math.isfinite(accuracy.mean):
            points.append((model, accuracy, sparse))
    return points
