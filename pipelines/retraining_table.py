"""A retraining as tables: CSV for programs, Markdown and LaTeX for people.

What did not end is an empty cell, never a number.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from pipelines.comparison_measures import RunScores
from pipelines.comparison_scores import Difference, MeanScore
from pipelines.comparison_table import title_of
from pipelines.retraining_pictures import PARTS, Removal
from pipelines.retraining_scores import MEAN, Key, Retraining
from pipelines.tabular import EMPTY, Block, Cell, Sheet, latex_lines, markdown_lines, spread

Row = dict[str, str | int | float]
READING: Mapping[str, str] = {
    "roar": (
        "Remove and retrain: each cell is the accuracy of networks that were trained and tested "
        "without the most important pixels of each picture. The lower, the more of what tells the "
        "classes apart the map had found; a map at the level of the random one found nothing more."
    ),
    "diffroar": (
        "DiffROAR: each cell is the accuracy of networks that were trained and tested on the most "
        "important pixels alone, less that on as many of the least important ones. 0 is what a "
        "random map gives; below 0 the map is the wrong way round."
    ),
}
CAVEATS = (
    "±: standard deviation over the networks (for a difference: over all pairs of them). In "
    "brackets: 95 % interval over patients, who are resampled whole, the same draws for every map, "
    "networks averaged inside each draw; it does not hold the spread of training.",
    "p: two-sided, against the random map at the same fraction, from the paired draws; Holm's "
    "correction counts the maps at one fraction. The intervals of the differences are not "
    "corrected.",
    "Maps are of the true class, in training, validation and test pictures alike. The shape of "
    "what is removed may tell the class by itself, which keeps an accuracy high although what told "
    "the class is gone.",
    "Every model was chosen on validation; the test split took no part in any choice.",
)


def curve_rows(found: Retraining) -> list[Row]:
    """Return one row per map and fraction, and one where nothing is removed."""
    rows: list[Row] = []
    if found.untouched is not None:
        rows.append(_curve_row(found, "", 0.0, found.untouched, pixels=0))
    for ranking in found.rankings:
        for key in found.keys:
            score = found.points[ranking].get(key)
            what = PARTS[found.config.protocol][0]
            pixels: str | int = EMPTY
            if not isinstance(key, str):
                removal = Removal(ranking=ranking, what=what, fraction=key)
                pixels = removal.pixels(found.size)
            rows.append(_curve_row(found, ranking, key, score, pixels=pixels))
    return rows


def _curve_row(
    found: Retraining, ranking: str, key: Key, score: MeanScore | None, *, pixels: str | int
) -> Row:
    contrast = found.contrast(ranking, key)
    row: Row = {
        "map": ranking,
        "protocol": found.config.protocol,
        "fraction": key,
        "pixels_removed": pixels,
        "measure": found.measure,
        "value": _number(score, "mean"),
        "sd": _number(score, "sd"),
        "low": _number(score, "low"),
        "high": _number(score, "high"),
    }
    names = ("value", "low", "high", "p", "p_holm")
    return row | {
        f"against_random_{name}": EMPTY if contrast is None else _cell(getattr(contrast, name))
        for name in names
    }


def _number(score: MeanScore | None, name: str) -> str | float:
    return EMPTY if score is None else _cell(getattr(score, name))


def _cell(value: float) -> str | float:
    return value if math.isfinite(value) else EMPTY


def network_rows(
    found: Retraining, runs: Sequence[RunScores], removals: Sequence[Removal]
) -> list[Row]:
    """Return one row per network, those that failed with the code of their error."""
    rows: list[Row] = []
    for removal in removals:
        score = found.accuracies.get(removal.name)
        mine = [run for run in runs if run.variant == removal.name]
        values = () if score is None else score.values
        ended = [(run.seed, value, EMPTY) for run, value in zip(mine, values, strict=True)]
        failed = [(x.seed, EMPTY, x.code) for x in found.failures if x.variant == removal.name]
        rows += [
            {
                "map": removal.ranking,
                "pictures": removal.what,
                "fraction": removal.fraction,
                "seed": seed,
                found.measure: value,
                "error": error,
            }
            for seed, value, error in (*ended, *failed)
        ]
    return rows


def markdown(found: Retraining) -> str:
    """Return ``retraining.md``: scores, differences from the random map, how to read them."""
    lines = [f"# {found.title}", "", READING[found.config.protocol], ""]
    lines += ["## Scores", "", *markdown_lines(_scores(found)), "", *_context(found)]
    lines += ["", "## Differences from the random map", "", *markdown_lines(_differences(found))]
    if found.failures:
        lines += ["", "## Networks that did not end", ""]
        named = [f"{x.variant}, seed {x.seed}: {x.code}: {x.message}" for x in found.failures]
        lines += [f"- {text}" for text in named]
    lines += ["", "## How to read this", "", *(f"- {text}" for text in _notes(found))]
    return "\n".join(lines) + "\n"


def latex(found: Retraining) -> str:
    """Return ``retraining.tex``: a ``tabular`` each; needs the package ``booktabs``."""
    said = [found.title, READING[found.config.protocol], *_context(found), *_notes(found)]
    lines = [f"% {text}" for text in said]
    for title, sheet in (("Scores", _scores(found)), ("Differences", _differences(found))):
        lines += [f"% {title}", *latex_lines(sheet)]
    return "\n".join(lines) + "\n"


def _context(found: Retraining) -> list[str]:
    name = title_of(found.measure)
    untouched = spread(found.untouched) or "not known: no network ended"
    return [f"With nothing removed, the {name} is {untouched}; guessing gives {found.chance:.3f}."]


def _notes(found: Retraining) -> list[str]:
    test = (
        f"{found.samples} test samples of {found.patients} patients; {found.resamples} resamples "
        "of the patients."
    )
    return [test, *CAVEATS, *found.notes]


def _heading(found: Retraining) -> list[str]:
    word = "removed" if found.config.protocol == "roar" else "kept"
    shown = [f"{100 * key:g} % {word}" for key in found.keys if not isinstance(key, str)]
    return ["map", *shown, *([MEAN] if MEAN in found.keys else [])]


def _scores(found: Retraining) -> Sheet:
    return _sheet(found, lambda ranking, key: spread(found.points[ranking].get(key)))


def _differences(found: Retraining) -> Sheet:
    return _sheet(found, lambda ranking, key: _difference(found.contrast(ranking, key)))


def _sheet(found: Retraining, text: Callable[[str, Key], str]) -> Sheet:
    blocks = [
        Block(
            label=label,
            rows=[
                [Cell(ranking), *(Cell(text(ranking, key)) for key in found.keys)]
                for ranking in rankings
            ],
        )
        for label, rankings in found.blocks.items()
        if rankings
    ]
    return Sheet(heading=_heading(found), blocks=blocks)


def _difference(item: Difference | None) -> str:
    if item is None:
        return EMPTY
    defined = math.isfinite(item.low)
    interval = f" ({item.low:+.3f} to {item.high:+.3f})" if defined else ""
    p = f", p {item.p_holm:.4f}" if math.isfinite(item.p_holm) else ""
    return f"{item.value:+.3f}{interval}{p}"
