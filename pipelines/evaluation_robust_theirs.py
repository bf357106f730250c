"""The table of what others report of explanations under attack, marked as theirs."""

from pipelines.evaluation_cells import number
from pipelines.evaluation_measures import title_of
from pipelines.evaluation_records import Evaluation, Robustness
from pipelines.evaluation_tables import THEIRS, EvaluationTable
from pipelines.published_robustness import METHODS, PAPER, RADII, VALUES
from pipelines.tabular import Block, Cell, Sheet


def theirs(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """Show what the paper of MoreauGrad charts: theirs, and on other data."""
    heading = [
        "maps",
        *(f"{data}, {radius:g}: {THEIRS}" for data, own in RADII.items() for radius in own),
    ]
    blocks = [
        Block(
            label=title_of(metric),
            rows=[
                [
                    Cell(method),
                    *(Cell(number(x, metric)) for data in RADII for x in charts[data][place]),
                ]
                for place, method in enumerate(METHODS)
            ],
        )
        for metric, charts in VALUES.items()
    ]
    return EvaluationTable(
        title=f"Explanations under attack, {PAPER}",
        note=f"Read off the chart of {PAPER}, to about 0.02, on photographs, with radii that are "
        "Euclidean lengths in units of their own: compare the order of the methods, not the "
        "numbers. Their attack followed another map than the one measured, which may flatter "
        "MoreauGrad.",
        sheet=Sheet(heading=heading, blocks=blocks),
        rows=[
            {"data": data, "method": method, "measure": metric, "radius": radius, "value": value}
            for metric, charts in VALUES.items()
            for data, lines in charts.items()
            for method, line in zip(METHODS, lines, strict=True)
            for radius, value in zip(RADII[data], line, strict=True)
        ],
    )
