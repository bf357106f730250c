"""Likeness of explanations against the radius of the attack: three panels, all methods.

References
----------
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023 (the layout of its robustness curves).
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.comparison_figure import in_both_formats
from pipelines.explanation_robustness import CONTROL, RobustnessRow, worst_attacks
from pipelines.pictures import printable
from pipelines.plots import COLOURS, DASHES, figure_of

PANELS: Mapping[str, str] = MappingProxyType(
    {
        "normalised_distance": "Normalised distance (0: same)",
        "top_k_intersection": "Top-k intersection (1: same)",
        "structural_similarity": "SSIM (1: same)",
    }
)
"""Field of a row -> title of its panel."""
LEGEND_INCHES, LEGEND_COLUMNS = 0.25, 3
LINES = tuple(dash for dash in DASHES if dash != ":")
"""Dashes of methods; dots are the noise's."""


def robustness_figure(rows: Sequence[RobustnessRow]) -> dict[str, bytes]:
    """Return the figure by the ending of its file: ``png`` and ``svg``.

    A marked line is the mean over pictures of what the strongest attack on each of them left; the
    thin dotted line of the same colour is noise of the same size. A radius of zero is not drawn,
    as the axis is logarithmic.

    Raises
    ------
    ValueError
        Without a row at a positive radius.
    """
    drawn = [row for row in rows if row.radius > 0]
    if not drawn:
        raise ValueError("no attack at a positive radius to draw")
    return in_both_formats(lambda: _figure(drawn))


def mean_curve(
    rows: Sequence[RobustnessRow], measure: str
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Radii, and the mean of a measure over the pictures at each; NaN where none has a value."""
    radii = sorted({row.radius for row in rows})
    means = []
    for radius in radii:
        values = np.array([getattr(row, measure) for row in rows if row.radius == radius])
        defined = values[np.isfinite(values)]
        means.append(defined.mean() if len(defined) else np.nan)
    return np.array(radii, dtype=float), np.array(means, dtype=float)


def _figure(rows: Sequence[RobustnessRow]) -> Figure:
    methods = list(dict.fromkeys(row.method for row in rows))
    lines = -(-(len(methods) + 1) // LEGEND_COLUMNS)
    figure, axes = figure_of(len(PANELS), height=3.8 + LEGEND_INCHES * lines)
    attacked = worst_attacks(rows)
    control = [row for row in rows if row.attack == CONTROL]
    radii = sorted({row.radius for row in rows})
    for axis, (measure, title) in zip(axes, PANELS.items(), strict=True):
        for index, method in enumerate(methods):
            _line(axis, attacked, method, measure, index=index)
            _line(axis, control, method, measure, index=index, control=True)
        axis.set(title=title, xlabel="radius (RMS change, SD)", xscale="log")
        axis.set_xticks(radii, [f"{radius:g}" for radius in radii])
        axis.set_xticks([], minor=True)
        axis.set_ylim(bottom=0)
        if measure != "normalised_distance":
            axis.set_ylim(top=1.02)
    if control:
        axes[0].plot([], [], color="#5c6573", linewidth=1, linestyle=":", label="noise")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS
    )
    return figure


def _line(
    axis: Axes,
    rows: Sequence[RobustnessRow],
    method: str,
    measure: str,
    *,
    index: int,
    control: bool = False,
) -> None:
    chosen = [row for row in rows if row.method == method]
    if not chosen:
        return
    colour = COLOURS[index % len(COLOURS)]
    dash = LINES[index % len(LINES)]
    look: dict[str, Any] = {"linestyle": dash, "linewidth": 1.8, "marker": "."}
    if control:
        look = {"linestyle": ":", "linewidth": 1, "alpha": 0.7}
    label = None if control else printable(method)
    axis.plot(*mean_curve(chosen, measure), color=colour, label=label, **look)
