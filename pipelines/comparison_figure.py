"""The outcome of a comparison as a figure: a dot for each seed, an interval for each variant."""

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.comparison_measures import AVERAGE_PRECISION, LOWER_IS_BETTER, UNIFORM
from pipelines.comparison_table import Comparison, title_of
from pipelines.pictures import encode, printable
from pipelines.plots import COLOURS, STYLE

PANELS_BESIDE, TICKS = 3, 4
LEAST_WIDTH = 1e-3
"""Of a panel whose best is zero: rounding errors are not to fill it."""
ROW_INCHES, PANEL_INCHES = 0.34, 4.6
# The salt stands in for a random one in the names of clip paths: the same input, the same bytes.
SVG_STYLE: dict[Any, Any] = {"svg.hashsalt": "dualwitness", "svg.fonttype": "none"}
SVG_METADATA: dict[Any, Any] = {"Date": None, "Creator": None}


def draw(found: Comparison) -> dict[str, bytes]:
    """Return the figure by the ending of its file: ``png`` and ``svg``.

    One panel per measure, one row per variant: a pale dot for each seed, a large one for their
    mean, a bar for its 95 % interval over patients; a dotted line where a uniform map stands.
    """
    return in_both_formats(lambda: _figure(found))


def in_both_formats(make: Callable[[], Figure]) -> dict[str, bytes]:
    """Draw a figure with our settings only, as ``png`` and ``svg``; words stay words in the SVG."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | SVG_STYLE)
        figure = make()
        svg = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(svg, metadata=SVG_METADATA)
        return {"svg": svg.getvalue(), "png": encode(figure)}


def _figure(found: Comparison) -> Figure:
    shown = [name for name in found.measures if name != UNIFORM]
    beside = min(PANELS_BESIDE, len(shown))
    lines = -(-len(shown) // beside)
    height = 1.2 + ROW_INCHES * len(found.variants)
    size = (PANEL_INCHES * beside, height * lines + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = list(figure.subplots(lines, beside, squeeze=False, sharey=True).flat)
    for spare in axes[len(shown) :]:
        spare.set_visible(False)
    for axis, name in zip(axes, shown, strict=False):
        _panel(axis, found, name)
    rows = range(len(found.variants))
    axes[0].set_yticks(rows, [printable(name) for name in found.variants])
    axes[0].set_ylim(len(found.variants) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _panel(axis: Axes, found: Comparison, measure: str) -> None:
    for row, variant in enumerate(found.variants):
        score = found.scores.get(variant, {}).get(measure)
        if score is None:
            continue
        axis.plot([score.low, score.high], [row, row], color=COLOURS[0], linewidth=3, alpha=0.45)
        places = [row] * len(score.values)
        axis.plot(score.values, places, ".", color=COLOURS[1], markersize=6, alpha=0.8)
        axis.plot(score.mean, row, "o", color=COLOURS[0], markersize=6)
    uniform = [scores[UNIFORM].mean for scores in found.scores.values() if UNIFORM in scores]
    if measure.startswith(AVERAGE_PRECISION) and uniform:
        axis.axvline(uniform[0], color="#5c6573", linewidth=1, linestyle=":")
    if measure in LOWER_IS_BETTER:
        axis.set_xlim(left=0, right=max(axis.get_xlim()[1], LEAST_WIDTH))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=TICKS))
    axis.set_title(printable(title_of(measure)), fontsize=10)
    axis.plot([], [], "o-", color=COLOURS[0], label="mean, 95 % interval over patients")
    axis.plot([], [], ".", color=COLOURS[1], label="one seed")
