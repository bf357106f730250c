"""The outcome of a comparison as tables: CSV for programs, Markdown and LaTeX for people.

A measure that is not defined for a variant is an empty cell, never a number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.comparison_measures import (
    AVERAGE_PRECISION,
    DISTANCE,
    LOWER_IS_BETTER,
    PREDICTION_MEASURES,
    UNIFORM,
    RunScores,
)
from pipelines.comparison_scores import Difference, MeanScore, Scores
from pipelines.tabular import EMPTY, latex_lines, markdown_lines, plain_sheet, spread

NAMES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "area under ROC",
    "calibration_error": "calibration error",
    UNIFORM: "average precision, uniform map",
    DISTANCE: "distance between levels",
}
Table = tuple[list[str], list[list[str]]]
"""Heading and rows."""
CAVEATS = (
    "±: standard deviation over seeds, that is, over trainings. In brackets: 95 % interval over "
    "patients, who are resampled whole, the same draws for every variant, seeds averaged inside "
    "each draw; it does not hold the spread of training.",
    "p: two-sided, from the paired draws; Holm's correction counts the variants compared in one "
    "measure. The intervals of the differences are not corrected.",
    "Every model was chosen on validation; the test split took no part in any choice.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A run that did not end.

    Attributes
    ----------
    code
        Of the error.
    """

    variant: str
    seed: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a grid of runs found.

    Attributes
    ----------
    variants
        Those of the grid, also where every run failed.
    notes
        Sentences that a reader of the tables needs: data, sizes, what is unusual.
    """

    title: str
    variants: tuple[str, ...]
    runs: tuple[RunScores, ...] = field(repr=False)
    failures: tuple[Failure, ...]
    scores: Scores = field(repr=False)
    differences: tuple[Difference, ...] = field(repr=False)
    samples: int
    patients: int
    resamples: int
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of all that was measured: predictions, then maps, finest level first."""
        found = dict.fromkeys(name for scores in self.scores.values() for name in scores)
        order = (*PREDICTION_MEASURES, *_levels(self.scores), UNIFORM, DISTANCE)
        return tuple(name for name in order if name in found)

    def runs_of(self, variant: str) -> list[RunScores]:
        """Return the runs of a variant that ended."""
        return [run for run in self.runs if run.variant == variant]

    def failures_of(self, variant: str) -> list[Failure]:
        """Return the runs of a variant that did not end."""
        return [item for item in self.failures if item.variant == variant]


def _levels(scores: Scores) -> list[str]:
    """Return all levels in the order of the variant with the most of them: finest first."""
    of_variant = [
        [name for name in found if name.startswith(AVERAGE_PRECISION) and name != UNIFORM]
        for found in scores.values()
    ]
    pair = [f"{AVERAGE_PRECISION}{name}" for name in ("fine", "coarse")]
    by_length = sorted(of_variant, key=len, reverse=True)
    longest = next((names for names in by_length if len(names) > 1), pair)
    return list(dict.fromkeys([*longest, *(name for names in by_length for name in names)]))


def title_of(measure: str) -> str:
    """Name a measure in words."""
    if measure in NAMES:
        return NAMES[measure]
    return f"average precision, {measure.removeprefix(AVERAGE_PRECISION)} map"


def variant_rows(found: Comparison) -> list[dict[str, str | int | float]]:
    """Return one row per variant: mean, spread and interval of each measure."""
    rows = []
    for variant in found.variants:
        runs, failures = found.runs_of(variant), found.failures_of(variant)
        seconds = [run.seconds_per_epoch for run in runs]
        row: dict[str, str | int | float] = {
            "variant": variant,
            "runs": len(runs),
            "failed": len(failures),
            "errors": " ".join(dict.fromkeys(item.code for item in failures)),
            "parameters": runs[0].parameters if runs else EMPTY,
            "seconds_per_epoch": _cell(float(np.mean(seconds)) if seconds else math.nan),
            "seconds_per_epoch_sd": _cell(_sd(seconds)),
        }
        for name in found.measures:
            score = found.scores.get(variant, {}).get(name)
            parts = ("mean", "sd", "low", "high")
            values = [math.nan if score is None else getattr(score, part) for part in parts]
            columns = (name, f"{name}_sd", f"{name}_low", f"{name}_high")
            row |= {key: _cell(value) for key, value in zip(columns, values, strict=True)}
        rows.append(row)
    return rows


def run_rows(found: Comparison) -> list[dict[str, str | int | float]]:
    """Return one row per run, those that failed with the code of their error."""
    rows = []
    for variant in found.variants:
        for place, run in enumerate(found.runs_of(variant)):
            scores = found.scores[variant]
            row: dict[str, str | int | float] = {
                "variant": variant,
                "seed": run.seed,
                "error": EMPTY,
                "epochs": run.epochs,
                "best_epoch": run.best_epoch,
                "parameters": run.parameters,
                "seconds_per_epoch": run.seconds_per_epoch,
            }
            rows.append(row | {name: _value(scores.get(name), place) for name in found.measures})
        failed = found.failures_of(variant)
        rows += [{"variant": variant, "seed": x.seed, "error": x.code} for x in failed]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, EMPTY) for name in names} for row in rows]


def difference_rows(found: Comparison) -> list[dict[str, str | int | float]]:
    """Return one row per variant and measure that was compared with the reference."""
    return [
        {
            "variant": item.variant,
            "against": item.against,
            "measure": item.measure,
            "difference": item.value,
            "low": _cell(item.low),
            "high": _cell(item.high),
            "p": _cell(item.p),
            "p_holm": _cell(item.p_holm),
        }
        for item in found.differences
    ]


def _value(score: MeanScore | None, place: int) -> str | float:
    return EMPTY if score is None else _cell(score.values[place])


def _sd(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _cell(value: float) -> str | float:
    return value if math.isfinite(value) else EMPTY


def tables(found: Comparison) -> dict[str, Table]:
    """Return the tables for people by their titles: predictions, and maps where there are any."""
    maps = [name for name in found.measures if name not in (*PREDICTION_MEASURES, UNIFORM)]
    scores = found.scores
    rows = [[name, *(spread(scores.get(name, {}).get(x)) for x in maps)] for name in found.variants]
    shown = {"Predictions": _predictions(found)}
    return shown | ({"Maps": (["variant", *map(title_of, maps)], rows)} if maps else {})


def _predictions(found: Comparison) -> Table:
    shown = [name for name in found.measures if name in PREDICTION_MEASURES]
    heading = ["variant", "runs", "parameters", "seconds per epoch", *map(title_of, shown)]
    rows = []
    for row in variant_rows(found):
        variant = str(row["variant"])
        errors = f" ({row['failed']} failed: {row['errors']})" if row["failed"] else ""
        parameters, seconds = row["parameters"], row["seconds_per_epoch"]
        scores = found.scores.get(variant, {})
        rows.append(
            [
                variant,
                f"{row['runs']}{errors}",
                f"{parameters:,}" if isinstance(parameters, int) else EMPTY,
                f"{seconds:.2f}" if isinstance(seconds, float) else EMPTY,
                *(spread(scores.get(name)) for name in shown),
            ]
        )
    return heading, rows


def markdown(found: Comparison) -> str:
    """Return ``comparison.md``: the table, differences from the reference, how to read them."""
    lines = [f"# {found.title}"]
    for title, shown in tables(found).items():
        lines += ["", f"## {title}", "", *markdown_lines(plain_sheet(*shown))]
    uniform = next((scores[UNIFORM] for scores in found.scores.values() if UNIFORM in scores), None)
    if uniform is not None:
        lines += ["", f"A uniform map has an average precision of {spread(uniform)}."]
    if found.differences:
        lines += ["", f"## Differences from {found.differences[0].against}", ""]
        lines += markdown_lines(plain_sheet(*_difference_cells(found.differences)))
    if found.failures:
        lines += ["", "## Runs that did not end", ""]
        named = [f"{x.variant}, seed {x.seed}: {x.code}: {x.message}" for x in found.failures]
        lines += [f"- {text}" for text in named]
    lines += ["", "## How to read this", "", *(f"- {text}" for text in _notes(found))]
    return "\n".join(lines) + "\n"


def _notes(found: Comparison) -> list[str]:
    test = (
        f"{found.samples} test samples of {found.patients} patients; {found.resamples} resamples "
        "of the patients."
    )
    lower = ", ".join(title_of(name) for name in found.measures if name in LOWER_IS_BETTER)
    return [test, *CAVEATS, f"Higher is better, but for: {lower}.", *found.notes]


def _difference_cells(differences: Sequence[Difference]) -> Table:
    heading = ["measure", "variant", "difference (95 % interval)", "p", "p (Holm)"]
    rows = []
    for item in differences:
        defined = math.isfinite(item.low)
        interval = f" ({item.low:+.3f} to {item.high:+.3f})" if defined else ""
        p = [f"{p:.4f}" if math.isfinite(p) else EMPTY for p in (item.p, item.p_holm)]
        rows.append([title_of(item.measure), item.variant, f"{item.value:+.3f}{interval}", *p])
    return heading, rows


def latex(found: Comparison) -> str:
    """Return ``comparison.tex``: a ``tabular`` each for a paper; needs the package ``booktabs``."""
    lines = [f"% {found.title}", *(f"% {text}" for text in _notes(found))]
    for title, shown in tables(found).items():
        lines += [f"% {title}", *latex_lines(plain_sheet(*shown))]
    return "\n".join(lines) + "\n"
