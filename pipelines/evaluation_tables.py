"""The tables of an evaluation in the papers' layout: CSV for programs, Markdown and LaTeX.

Every cell is the mean over seeds, ± their standard deviation, and the 95 % interval over patients
in brackets; what is not defined is empty. The best of a column is bold, chosen among real methods
only; controls stand in a block of their own at the bottom. CSV files hold every entry and the
numbers as they are in the record, so that they read back to the bit.
"""

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipelines.evaluation_blocks import (
    CONTROLS,
    controls,
    entry_blocks,
    level_blocks,
    levels_beside,
    method_blocks,
    real,
)
from pipelines.evaluation_cells import (
    PAIR,
    STANDARD,
    Row,
    bare,
    columns,
    difference_text,
    entry_row,
    fills_of,
    measures_of,
    number,
    published_measures,
    published_text,
    rows_of_cells,
    seeds_text,
)
from pipelines.evaluation_measures import MARK, split_measure, title_of, words_of
from pipelines.evaluation_records import Evaluation, Model
from pipelines.published import LOCALISATION, published
from pipelines.tabular import (
    EMPTY,
    Block,
    Cell,
    Sheet,
    latex_escaped,
    latex_lines,
    markdown_escaped,
    markdown_lines,
)

THEIRS = "published, other data"
LOCATED = (*LOCALISATION, "iou_equal_area", "pointing_game")
PREDICTED = ("accuracy", "balanced_accuracy", "auc", "calibration_error")
APART = ("total_variation", "kl_from_coarse", "kl_from_fine", "program_value")
COMPLEX = ("gini", "group_gini", "sparsity", "entropy")
REMOVED = ("input_perturbation", "input_perturbation_above_chance")
OTHERWISE = (
    "insertion",
    "deletion",
    "comprehensiveness",
    "sufficiency",
    "input_perturbation_opposite",
)
RANDOMISED = ("randomised_similarity",)
COMPARED = (
    "average_precision",
    "iou_equal_area",
    "pointing_game",
    "input_perturbation",
    "total_variation",
)
"""Measures whose differences are shown to people; the CSV file holds them all."""
NOTHING = "Nothing of this was measured."


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationTable:
    """One table.

    Attributes
    ----------
    note
        What a reader must know, plain text.
    sheet
        For people; without blocks where nothing was measured.
    rows
        For programs.
    """

    title: str
    note: str
    sheet: Sheet
    rows: Sequence[Row] = field(repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was measured."""
        return not self.sheet.blocks


def tables(found: Evaluation) -> dict[str, EvaluationTable]:
    """Return every table by the name of its files."""
    return {name: make(found) for name, make in TABLES.items()}


def perturbation(found: Evaluation) -> EvaluationTable:
    """Table 1 of the paper: a row for each method, levels beside each other, a block per fill."""
    levels, theirs = levels_beside(found), published_measures(found, "table-1")
    heading = [
        "maps",
        *(f"{level or 'map'}: {title_of(metric)}" for level in levels for metric in REMOVED),
        *(f"{level}: {THEIRS}, %" for level in PAIR if theirs),
    ]
    blocks = []
    for fill in fills_of(found, REMOVED):
        keys = [(level, _with(metric, fill)) for level in levels for metric in REMOVED]
        blocks += method_blocks(found, keys, label=_fill_label(fill), table="table-1")
    note = (
        "Pixels are removed in rising order of importance and the judging network classifies what "
        "is left: area under its balanced accuracy. A method with one map for all levels stands in "
        "both columns, as in the paper."
    )
    return _table(found, "Input perturbation", note, (heading, blocks), REMOVED, "table-1")


def localisation(found: Evaluation) -> EvaluationTable:
    """Table 2 of the paper: how well maps find the true region, a block for each level."""
    shown, theirs = measures_of(found, LOCATED), published_measures(found, "table-2")
    heading = ["maps", *map(title_of, shown), *map(_published_title, theirs)]
    blocks = level_blocks(found, shown, table="table-2") if shown else []
    note = "Maps against the true regions of the test pictures that have one."
    return _table(found, "Localisation", note, (heading, blocks), LOCATED, "table-2")


def accuracy(found: Evaluation) -> EvaluationTable:
    """Table 3 of the paper: what the networks classify, and how large they are."""
    models, theirs = list(found.models.values()), published_measures(found, "table-3")
    shown = [name for name in PREDICTED if any(name in model.scores for model in models)]
    heading = ["model", *map(title_of, shown), "parameters", *map(_published_title, theirs)]
    scores = [[model.scores.get(name) for name in shown] for model in models]
    rows = rows_of_cells([model.name for model in models], scores, shown, choose=True)
    for model, row in zip(models, rows, strict=True):
        row.append(Cell(f"{model.parameters:,}"))
        row += [Cell(published_text(_published(found, model), name)) for name in theirs]
    blocks = [Block(label=EMPTY, rows=rows), _guessing(found, shown, len(heading))]
    return EvaluationTable(
        title="Accuracy",
        note="All test pictures, nothing removed.",
        sheet=Sheet(heading=heading, blocks=blocks if shown else ()),
        rows=[_model_row(found, model, shown) for model in models],
    )


def _published(found: Evaluation, model: Model) -> list:
    if model.objective != STANDARD:
        return []
    return published(
        found.recipe, "table-3", variant=model.variant, network=model.network, explainer=EMPTY
    )


def _guessing(found: Evaluation, shown: Sequence[str], width: int) -> Block:
    guess = {"balanced_accuracy": found.chance, "auc": 0.5}
    cells = [Cell("guessing"), *(Cell(number(guess.get(n, math.nan), n)) for n in shown)]
    return Block(label=CONTROLS, rows=[[*cells, *[Cell(EMPTY)] * (width - len(cells))]])


def _model_row(found: Evaluation, model: Model, shown: Sequence[str]) -> Row:
    row: Row = {
        "model": model.name,
        "variant": model.variant,
        "network": model.network,
        "frozen": int(model.frozen),
        "objective": model.objective,
        "seeds": seeds_text(model.seeds),
        "parameters": model.parameters,
        **columns(model.scores, shown),
    }
    for theirs in _published(found, model):
        for name, value in theirs.values.items():
            unit = "millions" if name == "parameters" else "percent"
            row[f"{name}_published_{unit}"] = value.mean
            row[f"{name}_published_{unit}_sd"] = bare(value.sd)
    return row


def consistency(found: Evaluation) -> EvaluationTable:
    """How far a model's levels are apart, and how simple its maps are."""
    note = (
        "Distances are between the two levels of one model's maps; a method with one map has none. "
        "Complexity is no merit of its own: a single bright pixel is the simplest map."
    )
    return _flat(found, "Agreement of the levels, complexity", note, (*APART, *COMPLEX))


def otherwise(found: Evaluation) -> EvaluationTable:
    """Other measures of faithfulness, a block for each fill."""
    blocks = []
    for fill in fills_of(found, OTHERWISE):
        keys = [_with(metric, fill) for metric in OTHERWISE]
        blocks += entry_blocks(found, keys, label=_fill_label(fill))
    heading = ["maps", *map(title_of, OTHERWISE)]
    note = "The same removals, read otherwise; by probability, but for the opposite order."
    return _table(found, "Faithfulness, otherwise", note, (heading, blocks), OTHERWISE)


def randomisation(found: Evaluation) -> EvaluationTable:
    """How much of a map stays when the network's weights are drawn anew."""
    note = "Controls have no network whose weights could be drawn anew: their cells are empty."
    return _flat(found, "Randomisation of the network", note, RANDOMISED)


def differences(found: Evaluation) -> EvaluationTable:
    """Every entry less the one that all are compared with."""
    present = dict.fromkeys(item.measure for item in found.differences)
    shown = [name for metric in COMPARED for name in present if split_measure(name)[0] == metric]
    by_key = {(item.variant, item.measure): item for item in found.differences}
    blocks = []
    for label, entries in ((EMPTY, real(found)), (CONTROLS, controls(found))):
        texts = {x.name: [difference_text(by_key.get((x.name, m))) for m in shown] for x in entries}
        kept = {name: line for name, line in texts.items() if any(line) or label == CONTROLS}
        rows = [[Cell(name), *map(Cell, line)] for name, line in kept.items()]
        blocks.append(Block(label=label, rows=rows))
    note = (
        f"Each row less {found.against}, paired within patients, with the 95 % interval over "
        "patients, the two-sided p value, and in round brackets p after Holm's correction for all "
        f"rows of a column; with {found.resamples} resamples no p is below "
        f"{2 / (found.resamples + 1):.1g}, and none corrected for 50 rows below "
        f"{min(1.0, 100 / (found.resamples + 1)):.1g}. The CSV file holds every measure."
    )
    heading = ["maps", *(_title_and_fill(name) for name in shown)]
    return EvaluationTable(
        title="Paired differences",
        note=note,
        sheet=Sheet(heading=heading, blocks=_kept(blocks) if shown else ()),
        rows=[
            {
                "entry": item.variant,
                "against": item.against,
                "measure": item.measure,
                "difference": bare(item.value),
                "low": bare(item.low),
                "high": bare(item.high),
                "p": bare(item.p),
                "p_holm": bare(item.p_holm),
            }
            for item in found.differences
        ],
    )


TABLES: Mapping[str, Callable[[Evaluation], EvaluationTable]] = {
    "table-1": perturbation,
    "table-2": localisation,
    "table-3": accuracy,
    "table-4": consistency,
    "table-5": otherwise,
    "table-6": randomisation,
    "table-7": differences,
}
"""Name of the files -> table."""


def _flat(found: Evaluation, title: str, note: str, metrics: Sequence[str]) -> EvaluationTable:
    shown = measures_of(found, metrics)
    blocks = entry_blocks(found, shown) if shown else []
    return _table(found, title, note, (["maps", *map(title_of, shown)], blocks), metrics)


def _table(
    found: Evaluation,
    title: str,
    note: str,
    sheet: tuple[list[str], list[Block]],
    metrics: Sequence[str],
    name: str = EMPTY,
) -> EvaluationTable:
    shown = measures_of(found, metrics)
    heading, blocks = sheet
    return EvaluationTable(
        title=title,
        note=note,
        sheet=Sheet(heading=heading, blocks=_kept(blocks)),
        rows=[entry_row(found, entry, shown, name) for entry in found.entries.values()],
    )


def _kept(blocks: Sequence[Block]) -> list[Block]:
    return [block for block in blocks if block.rows]


def _with(metric: str, fill: str) -> str:
    return f"{metric}{MARK}{fill}" if fill else metric


def _fill_label(fill: str) -> str:
    return f"removed pixels become: {fill}" if fill else EMPTY


def _title_and_fill(measure: str) -> str:
    fill = split_measure(measure)[1]
    return f"{title_of(measure)} ({fill})" if fill else title_of(measure)


def _published_title(measure: str) -> str:
    unit = "millions" if measure == "parameters" else "%"
    return f"{words_of(measure).title}: {THEIRS}, {unit}"


def as_csv(rows: Sequence[Row]) -> str:
    """Write rows for programs: all columns, floats that read back to the bit."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, restval=EMPTY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(table: EvaluationTable) -> str:
    """Write a table for people."""
    body = [NOTHING] if table.is_empty else markdown_lines(table.sheet)
    lines = [f"# {table.title}", EMPTY, *body, EMPTY, markdown_escaped(table.note)]
    return "\n".join(lines) + "\n"


def as_latex(table: EvaluationTable) -> str:
    """Write a table for a paper; needs the package ``booktabs``."""
    body = [NOTHING] if table.is_empty else latex_lines(table.sheet)
    comments = [f"% {latex_escaped(text)}" for text in (table.title, table.note)]
    return "\n".join([*comments, *body]) + "\n"
