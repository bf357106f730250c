"""A retraining as curves: score against fraction, a line for each map, guessing as a dotted one."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.comparison_figure import in_both_formats
from pipelines.comparison_table import title_of
from pipelines.pictures import printable
from pipelines.plots import COLOURS, DASHES
from pipelines.retraining_maps import RANDOM
from pipelines.retraining_scores import Retraining

GREY = "#5c6573"
INCHES = (7.2, 4.6)
MARKERS = "osD^vP"


def draw(found: Retraining) -> dict[str, bytes]:
    """Return the figure by the ending of its file: ``png`` and ``svg``.

    A line for each map with its 95 % interval over patients as a band; the random map is grey.
    """
    return in_both_formats(lambda: _figure(found))


def _figure(found: Retraining) -> Figure:
    figure = Figure(figsize=INCHES, dpi=110, layout="constrained")
    axis = figure.subplots()
    is_roar = found.config.protocol == "roar"
    others = [name for name in found.rankings if name != RANDOM]
    for place, name in enumerate(others):
        _line(axis, found, name, COLOURS[place % len(COLOURS)], place)
    _line(axis, found, RANDOM, GREY, len(others))
    level = found.chance if is_roar else 0.0
    axis.axhline(level, color=GREY, linewidth=1, linestyle=":", label=_level(found))
    axis.set_xlabel(f"share of the pixels that are {'removed' if is_roar else 'kept'}")
    axis.set_ylabel(_words(found))
    axis.set_title(printable(found.title))
    axis.set_xlim(0, 1)
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def _level(found: Retraining) -> str:
    return "guessing" if found.config.protocol == "roar" else "no difference"


def _words(found: Retraining) -> str:
    name = printable(title_of(found.measure))
    return name if found.config.protocol == "roar" else f"{name}: top kept less bottom kept"


def _line(axis: Axes, found: Retraining, ranking: str, colour: str, place: int) -> None:
    points = found.points[ranking]
    scores = {key: points[key] for key in found.config.fractions if key in points}
    if found.config.protocol == "roar" and found.untouched is not None:
        scores = {0.0: found.untouched, **scores}
    if not scores:
        return
    fractions = list(scores)
    axis.plot(
        fractions,
        [score.mean for score in scores.values()],
        color=colour,
        linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        label=printable(ranking),
    )
    low, high = ([getattr(score, end) for score in scores.values()] for end in ("low", "high"))
    axis.fill_between(fractions, low, high, color=colour, alpha=0.15, linewidth=0)
