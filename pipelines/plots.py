"""Plots for reviewers as PNG bytes: curves, confusion, ROC, calibration, estimates with intervals.

Statistics arrive computed; only what defines a plot (the points of an ROC curve, the bins of a
reliability diagram) is computed here. The same input gives the same bytes, whatever the user's
matplotlib settings are. Colours are those of Okabe and Ito, told apart by colour-blind readers, and
lines differ in their dashes too, so that a grey print can be read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_auc_score, roc_curve

from pipelines.pictures import encode, printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
SHARES = ("accuracy", "auc", "f1", "sensitivity", "specificity", "precision", "recall")
"""Words that mark a metric whose natural range is 0 to 1."""
RATES = ("lr", "learning_rate")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.edgecolor": "#5c6573",
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its interval.

    Attributes
    ----------
    name
        What was estimated.
    value
        The estimate.
    low, high
        Ends of its 95 % interval; NaN where there is none.
    chance
        What guessing would give; None where that means nothing.
    """

    name: str
    value: float
    low: float
    high: float
    chance: float | None = None


def curves(
    rows: Sequence[Mapping[str, int | float]],
    *,
    best_epoch: int | float | None = None,
    chance: float | None = None,
) -> bytes:
    """Plot training curves.

    Parameters
    ----------
    rows
        One mapping per epoch with the key ``epoch`` and any metrics; NaN means not measured.
        Losses share a plot, and so do accuracies and areas (0 to 1), learning rates, and the rest.
    best_epoch
        The epoch whose weights were kept, drawn as a vertical line.
    chance
        What guessing would give, drawn in the plot of the accuracies.

    Raises
    ------
    ValueError
        Without epochs, without the key ``epoch``, or with nothing measured.
    """
    epochs, groups = _grouped(rows)
    with styled():
        figure, axes = figure_of(len(groups))
        for axis, (title, series) in zip(axes, groups.items(), strict=True):
            for index, (name, values) in enumerate(series.items()):
                axis.plot(epochs, values, marker=".", label=printable(name), **_line(index))
            if best_epoch is not None:
                axis.axvline(best_epoch, color="#5c6573", linewidth=1, linestyle=":")
            _finish_curves(axis, title, chance=chance)
        return encode(figure)


def _grouped(
    rows: Sequence[Mapping[str, int | float]],
) -> tuple[Float[np.ndarray, " epoch"], dict[str, dict[str, Float[np.ndarray, " epoch"]]]]:
    if not rows:
        raise ValueError("no epochs to plot")
    if any("epoch" not in row for row in rows):
        raise ValueError("every row of the training curves needs the key 'epoch'")
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name in dict.fromkeys(key for row in rows for key in row if key != "epoch"):
        values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
        if np.isfinite(values).any():
            groups.setdefault(_kind(name), {})[name] = values
    if not groups:
        raise ValueError("the training curves hold no measured value")
    return np.array([row["epoch"] for row in rows], dtype=float), groups


def _kind(name: str) -> str:
    lower = name.lower()
    if "loss" in lower:
        return "loss"
    if any(word in lower for word in SHARES):
        return "score"
    return "learning rate" if lower in RATES else "other"


def _finish_curves(axis: Axes, title: str, *, chance: float | None) -> None:
    axis.set(title=title, xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title == "score":
        axis.set_ylim(0, 1.02)
        if chance is not None:
            axis.axhline(chance, color="#5c6573", linewidth=1, label="chance")
    # Scores rise and losses fall; searching for the best place takes long.
    axis.legend(loc="lower right" if title == "score" else "upper right")


def confusion(matrix: Int[np.ndarray, "true predicted"], classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix: counts, and colour for the share of each true class.

    Raises
    ------
    ValueError
        If the matrix is not square with one row and one column per class.
    """
    if matrix.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion matrix {matrix.shape} does not fit {len(classes)} classes")
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [printable(name) for name in classes]
    with styled():
        figure, (axis,) = figure_of(1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1.25)
        for (true, predicted), count in np.ndenumerate(matrix):
            ink = "white" if share[true, predicted] > 0.6 else "black"
            text = f"{count}\n{share[true, predicted]:.0%}"
            axis.text(predicted, true, text, ha="center", va="center", color=ink)
        axis.set_xticks(range(len(classes)), names)
        axis.set_yticks(range(len(classes)), names)
        axis.set(xlabel="predicted", ylabel="true", title="Confusion (count, share of true class)")
        axis.grid(visible=False)
        return encode(figure)


def roc(
    labels: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "m k"],
    classes: Sequence[str],
) -> bytes:
    """Draw one receiver operating characteristic per class against the rest.

    The legend gives the area under each curve; a class of which the labels hold none, or nothing
    else, has no curve and the legend says so.

    Raises
    ------
    ValueError
        If labels, probabilities and classes do not fit each other.
    """
    check_predictions(labels, probabilities)
    if probabilities.shape[1] != len(classes):
        raise ValueError(f"{probabilities.shape[1]} probabilities for {len(classes)} classes")
    with styled():
        figure, (axis,) = figure_of(1)
        axis.plot([0, 1], [0, 1], color="#5c6573", linewidth=1, label="chance")
        for index, name in enumerate(classes):
            truth = labels == index
            _plot_roc(axis, truth, probabilities[:, index], name=printable(name), index=index)
        axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, one against the rest")
        axis.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.legend(loc="lower right")
        return encode(figure)


def _plot_roc(
    axis: Axes,
    truth: Bool[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    name: str,
    index: int,
) -> None:
    if truth.all() or not truth.any():
        axis.plot([], [], label=f"{name}: not defined here", **_line(index))
        return
    false_positives, true_positives, _ = roc_curve(truth, scores)
    label = f"{name}: AUC {roc_auc_score(truth, scores):.2f} (n = {int(truth.sum())})"
    axis.plot(false_positives, true_positives, label=label, **_line(index))


def calibration(
    labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "m k"], *, bins: int = 10
) -> bytes:
    """Draw how often the predicted class was right against the probability it was given.

    Bins hold equal counts, at least five samples each where there are as many; the number in a bin
    stands below its bar. Bars are 95 % Wilson intervals: with few patients they are wide, and that
    is the message.

    Raises
    ------
    ValueError
        If labels and probabilities do not fit each other.

    References
    ----------
    Guo et al., On calibration of modern neural networks, ICML 2017 (reliability diagram).
    Wilson, Probable inference, J Am Stat Assoc 22 (1927).
    """
    check_predictions(labels, probabilities)
    found = reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)
    with styled():
        figure, (axis,) = figure_of(1)
        axis.plot([0, 1], [0, 1], color="#5c6573", linewidth=1, label="perfect")
        axis.errorbar(
            found.means,
            found.shares,
            yerr=found.arms,
            fmt="o",
            color=COLOURS[0],
            label="95 % interval",
        )
        ends = found.shares - found.arms[0]
        for mean, end, count in zip(found.means, ends, found.counts, strict=True):
            axis.annotate(
                f"{count}",
                (mean, end),
                (0, -11),
                ha="center",
                fontsize=9,
                textcoords="offset points",
            )
        axis.set(xlabel="probability of the predicted class", ylabel="share that was right")
        axis.set(xlim=(0, 1.02), ylim=(-0.06, 1.02), title="Calibration", aspect="equal")
        figure.legend(loc="outside lower center", ncols=2)
        return encode(figure)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Bins of a reliability diagram, by rising probability.

    Attributes
    ----------
    means
        Mean probability of each bin.
    shares
        How often the event occurred.
    arms
        Length of the 95 % Wilson interval below and above the share.
    counts
        Samples in each bin.
    """

    means: Float[np.ndarray, " bin"]
    shares: Float[np.ndarray, " bin"]
    arms: Float[np.ndarray, "2 bin"]
    counts: tuple[int, ...]


def reliability(
    probabilities: Float[np.ndarray, " n"], outcomes: Bool[np.ndarray, " n"], bins: int
) -> Reliability:
    """Gather samples in bins of equal counts, at least five each where there are as many."""
    count = max(1, min(bins, len(outcomes) // 5))
    parts = np.array_split(np.argsort(probabilities, kind="stable"), count)
    shares = np.array([outcomes[part].mean() for part in parts])
    low, high = np.array([_wilson(outcomes[part]) for part in parts]).T
    return Reliability(
        means=np.array([probabilities[part].mean() for part in parts]),
        shares=shares,
        arms=np.clip([shares - low, high - shares], 0, None),
        counts=tuple(len(part) for part in parts),
    )


def _wilson(right: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    n, share, z = len(right), float(right.mean()), 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return centre - half, centre + half


def check_predictions(
    labels: Int[np.ndarray, " n"] | UInt8[np.ndarray, "n k"],
    probabilities: Float[np.ndarray, "m k"],
) -> None:
    """Refuse labels and probabilities of different counts, or of none."""
    if len(labels) != len(probabilities):
        raise ValueError(f"{len(labels)} labels for {len(probabilities)} rows of probabilities")
    if not len(labels):
        raise ValueError("no predictions to plot")


def bars(estimates: Sequence[Estimate], *, label: str = "", title: str = "") -> bytes:
    """Draw estimates with their intervals, one row each; a cross marks what guessing would give.

    Raises
    ------
    ValueError
        Without estimates.
    """
    if not estimates:
        raise ValueError("no estimates to draw")
    with styled():
        figure, (axis,) = figure_of(1, height=1.5 + 0.5 * len(estimates), width=8.0)
        for row, item in enumerate(estimates):
            axis.plot([item.low, item.high], [row, row], color=COLOURS[0], linewidth=3, alpha=0.45)
            axis.plot(item.value, row, "o", color=COLOURS[0])
            axis.annotate(
                f"{item.value:.3f}",
                (item.value, row),
                (0, 7),
                ha="center",
                fontsize=9,
                textcoords="offset points",
            )
            if item.chance is not None:
                axis.plot(item.chance, row, "x", color=COLOURS[1], markersize=9)
        axis.set_yticks(range(len(estimates)), [printable(item.name) for item in estimates])
        axis.set(ylim=(len(estimates) - 0.4, -0.7), xlabel=printable(label), title=printable(title))
        axis.plot([], [], "o-", color=COLOURS[0], label="estimate, 95 % interval")
        axis.plot([], [], "x", color=COLOURS[1], label="chance or control")
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return encode(figure)


def _line(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[index % len(DASHES)],
        "linewidth": 1.8,
    }


def figure_of(
    panels: int, *, height: float = 4.2, width: float = 5.0, most_beside: int = 3
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many axes, at most ``most_beside`` beside each other."""
    lines = -(-panels // most_beside)
    beside = -(-panels // lines)
    size = (width * beside, height * lines)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axes = list(figure.subplots(lines, beside, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


@contextmanager
def styled() -> Iterator[None]:
    """Draw with our settings only: a user's matplotlibrc must not change a report."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield
