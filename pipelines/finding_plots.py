"""Plots of a model that answers one question for each finding: a small panel for each, in order.

Fourteen curves in one plot hide each other; here each has a panel in which the others are grey. A
finding that the samples show always or never has no curve: it is named below the panels.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.axes import Axes
from sklearn.metrics import roc_auc_score, roc_curve

from pipelines.pictures import encode, printable, wrap
from pipelines.plots import COLOURS, check_predictions, figure_of, reliability, styled

SIDE_INCHES = 2.5
TITLE_INCHES = 0.45
PIXELS_PER_INCH = 110
BINS = 5
GREY = "#5c6573"
FAINT = "#d3d7dc"
Panel = Callable[[Axes, int], None]


def roc_of_each(
    label_sets: UInt8[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "m k"],
    classes: Sequence[str],
) -> bytes:
    """Draw the receiver operating characteristic of each finding, the others behind it in grey.

    The title of a panel gives the area under its curve and how many samples show the finding.

    Raises
    ------
    ValueError
        If labels, probabilities and classes do not fit each other.
    """
    _check(label_sets, probabilities, classes)
    truth, defined = label_sets == 1, _defined(label_sets)
    points = {k: roc_curve(truth[:, k], probabilities[:, k])[:2] for k in defined}

    def draw(axis: Axes, k: int) -> None:
        for other in defined:
            axis.plot(*points[other], color=FAINT, linewidth=0.8)
        axis.plot(*points[k], color=COLOURS[0], linewidth=1.8)
        area = roc_auc_score(truth[:, k], probabilities[:, k])
        _finish(axis, classes[k], f"AUC {area:.2f} (n = {int(truth[:, k].sum())})")

    return _panels(draw, classes, defined, x="1 - specificity", y="sensitivity")


def calibration_of_each(
    label_sets: UInt8[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "m k"],
    classes: Sequence[str],
) -> bytes:
    """Draw how often each finding was there against the probability that it was given.

    Bins hold equal counts; bars are 95 % Wilson intervals. The title of a panel gives how often the
    finding is there and how often it was expected.

    Raises
    ------
    ValueError
        If labels, probabilities and classes do not fit each other.
    """
    _check(label_sets, probabilities, classes)

    def draw(axis: Axes, k: int) -> None:
        truth: Bool[np.ndarray, " n"] = label_sets[:, k] == 1
        found = reliability(probabilities[:, k], truth, BINS)
        axis.errorbar(
            found.means, found.shares, yerr=found.arms, fmt="o", markersize=4, color=COLOURS[0]
        )
        note = f"{truth.mean():.1%} seen, {probabilities[:, k].mean():.1%} expected"
        _finish(axis, classes[k], note)

    x, y = "probability", "share that shows it"
    return _panels(draw, classes, _defined(label_sets), x=x, y=y)


def _defined(label_sets: UInt8[np.ndarray, "n k"]) -> list[int]:
    """Return the findings that some samples show and some do not."""
    share = label_sets.mean(axis=0)
    return np.flatnonzero((share > 0) & (share < 1)).tolist()


def _check(
    label_sets: UInt8[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "m k"],
    classes: Sequence[str],
) -> None:
    check_predictions(label_sets, probabilities)
    if probabilities.shape[1] != len(classes):
        raise ValueError(f"{probabilities.shape[1]} probabilities for {len(classes)} findings")


def _finish(axis: Axes, name: str, note: str) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_title(printable(name), fontsize=10, pad=17)
    axis.text(0.5, 1.03, note, transform=axis.transAxes, ha="center", fontsize=8, color=GREY)


def _panels(
    draw: Panel, classes: Sequence[str], defined: Sequence[int], *, x: str, y: str
) -> bytes:
    """Draw a panel for each defined finding; name the axes, and the others, at the edge."""
    others = ", ".join(printable(name) for k, name in enumerate(classes) if k not in defined)
    beside = max(1, math.ceil(math.sqrt(len(defined))))
    width = round(PIXELS_PER_INCH * SIDE_INCHES * beside)
    below = wrap(f"shown always or never: {others}", width, size=14, lines=8) if others else []
    with styled():
        figure, axes = figure_of(
            max(len(defined), 1),
            height=SIDE_INCHES + TITLE_INCHES,
            width=SIDE_INCHES,
            most_beside=beside,
        )
        for axis, k in zip(axes, defined, strict=False):
            draw(axis, k)
        figure.supxlabel("\n".join([x, *below]), fontsize=10)
        figure.supylabel(y, fontsize=10)
        return encode(figure)
