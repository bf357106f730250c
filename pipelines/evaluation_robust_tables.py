"""The tables of what attacks found: predictions, explanations, sparsity, stability, differences."""

from collections.abc import Callable, Mapping, Sequence

from pipelines.comparison_scores import Difference, MeanScore
from pipelines.evaluation_cells import (
    Row,
    bare,
    columns,
    difference_text,
    rows_of_cells,
    seeds_text,
)
from pipelines.evaluation_measures import title_of
from pipelines.evaluation_records import Entry, Evaluation, Robustness
from pipelines.evaluation_robust_choice import CLEAN, GRADIENT, MEAN, NOISE, WORST
from pipelines.evaluation_robust_files import condition
from pipelines.evaluation_robust_scores import ATTACKED, PREDICTED, STABLE
from pipelines.evaluation_robust_theirs import theirs
from pipelines.evaluation_tables import EvaluationTable
from pipelines.tabular import EMPTY, Block, Cell, Sheet

ALIKE = ("top_k_intersection", "structural_similarity", "normalised_distance", "cosine")
SPARSE = ("gini", "group_gini")
STABILITY = tuple(
    f"{STABLE}{name}" for name in ("top_k_intersection", "structural_similarity", "cosine")
)
BALANCED = "balanced_accuracy"
NORM_TITLES: Mapping[str, str] = {"linf": "each value", "l2": "whole picture"}
Titled = tuple[str, str]
"""A measure, and the head of its column."""


def robust_tables(found: Evaluation) -> dict[str, EvaluationTable]:
    """Return every table of attacks by the name of its files; none where nothing was attacked."""
    attacked = found.robustness
    if attacked is None:
        return {}
    return {name: make(found, attacked) for name, make in ROBUST_TABLES.items()}


def conditions(attacked: Robustness) -> list[Titled]:
    """Return every attack on predictions with the head of its column, no attack first."""
    radii = {"linf": attacked.linf_radii, "l2": attacked.l2_radii}
    return [
        (CLEAN, "no attack"),
        *(
            (condition(attack, radius), f"{NORM_TITLES[attack]}, {radius:g}")
            for attack, own in radii.items()
            for radius in own
        ),
        *((f"{a}:{MEAN}", f"{NORM_TITLES[a]}, mean") for a, own in radii.items() if own),
    ]


def predictions(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """Show what the models classify under attack, a block for each measure."""
    shown = conditions(attacked)
    names = list(attacked.predictions)
    blocks = []
    for metric in PREDICTED:
        measures = [f"{ATTACKED}{metric}@{name}" for name, _ in shown]
        scores = [[attacked.predictions[name].get(x) for x in measures] for name in names]
        if any(any(line) for line in scores):
            rows = rows_of_cells(names, scores, measures, choose=True)
            blocks.append(Block(label=title_of(measures[0]), rows=rows))
    measures = [f"{ATTACKED}{metric}@{name}" for metric in PREDICTED for name, _ in shown]
    return EvaluationTable(
        title="Predictions under attack",
        note=f"{attacked.samples} test pictures of {attacked.patients} patients. The attack knows "
        "the network and keeps, of each picture, the worst of all it tried. Radii: largest change "
        "of each value, or Euclidean length of the change of the whole picture, in shares of the "
        "valid range (of scores over the brain, in standard deviations). Mean: over the radii of "
        "an attack.",
        sheet=Sheet(heading=["model", *(title for _, title in shown)], blocks=blocks),
        rows=[
            {
                "model": name,
                "objective": found.models[name].objective,
                **columns(scores, measures),
            }
            for name, scores in attacked.predictions.items()
        ],
    )


def explanations(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """How alike maps stay under attack, a block for each measure, and beside noise."""
    shown = [(condition(a, r), f"{t} {r:g}") for a, t in ATTACKS for r in attacked.radii]
    blocks = _entry_blocks(attacked, ALIKE, [name for name, _ in shown])
    measures = [f"{metric}@{name}" for metric in (*ALIKE, "preserved") for name in _every(attacked)]
    return EvaluationTable(
        title="Explanations under attack",
        note=f"{attacked.explained} test pictures; the decision is kept. Attack: of each picture "
        "the one that moved most of the map's greatest cells. Noise of the same size is the "
        "control; maps that have nothing to do with each other share about 0.4 of those cells. "
        "Radii: root mean square of the change, in standard deviations of the training split.",
        sheet=Sheet(heading=["maps", *(title for _, title in shown)], blocks=blocks),
        rows=_entry_rows(attacked, measures),
    )


ATTACKS = ((WORST, "attack"), (NOISE, NOISE))
"""Attack on explanations -> what people call it."""


def _every(attacked: Robustness) -> list[str]:
    names = (WORST, "top-k", "search", "transfer", NOISE)
    return [condition(name, radius) for name in names for radius in attacked.radii]


def _entry_blocks(
    attacked: Robustness, metrics: Sequence[str], conditions: Sequence[str]
) -> list[Block]:
    blocks = []
    for metric in metrics:
        measures = [f"{metric}@{name}" for name in conditions]
        rows = _rows(attacked, list(attacked.entries.values()), measures)
        if rows:
            blocks.append(Block(label=title_of(metric), rows=rows))
    return blocks


def _rows(
    attacked: Robustness, entries: Sequence[Entry], measures: Sequence[str]
) -> list[list[Cell]]:
    """Return a row for each entry that has any of the scores."""
    lines = {x.name: [attacked.scores[x.name].get(m) for m in measures] for x in entries}
    kept = {name: line for name, line in lines.items() if any(line)}
    return rows_of_cells(list(kept), list(kept.values()), measures, choose=True)


def _entry_rows(attacked: Robustness, measures: Sequence[str]) -> list[Row]:
    present = {name for scores in attacked.scores.values() for name in scores}
    shown = [name for name in measures if name in present]
    return [
        {
            "entry": entry.name,
            "model": entry.model,
            "method": entry.method,
            "level": entry.level,
            "seeds": seeds_text(entry.seeds),
            **columns(attacked.scores[entry.name], shown),
        }
        for entry in attacked.entries.values()
    ]


def gradients_of(attacked: Robustness) -> dict[str, Entry]:
    """Return the gradient maps of every model that has them."""
    entries = attacked.entries.values()
    return {entry.model: entry for entry in entries if entry.method == GRADIENT}


def sparsity(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """How sparse the gradient maps are, beside what the models classify."""
    entries = gradients_of(attacked)
    measures = (BALANCED, *SPARSE)
    scores: list[list[MeanScore | None]] = [
        [
            found.models[model].scores.get(BALANCED),
            *(attacked.scores[entry.name].get(name) for name in SPARSE),
        ]
        for model, entry in entries.items()
    ]
    rows = rows_of_cells(list(entries), scores, measures, choose=True)
    return EvaluationTable(
        title="Sparsity of gradient maps",
        note="Gradient of the true class's logit, as it is. Groups are squares of a sixteenth of "
        "the picture's shorter side. Balanced accuracy is that of all test pictures. A sparse map "
        "is easier to read; it need not be right.",
        sheet=Sheet(
            heading=["model", *map(title_of, measures)],
            blocks=[Block(label=EMPTY, rows=rows)] if rows else [],
        ),
        rows=[
            {"model": model, "objective": found.models[model].objective}
            | columns(found.models[model].scores, (BALANCED,))
            | columns(attacked.scores[entry.name], SPARSE)
            for model, entry in entries.items()
        ],
    )


def stabilities(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """How alike the maps of networks of different seeds are."""
    rows = _rows(attacked, list(attacked.entries.values()), STABILITY)
    return EvaluationTable(
        title="Stability between seeds",
        note=f"The same {attacked.explained} pictures and their true classes, explained by "
        "networks that differ in the seed only; mean over the pairs of seeds.",
        sheet=Sheet(
            heading=["maps", *map(title_of, STABILITY)],
            blocks=[Block(label=EMPTY, rows=rows)] if rows else [],
        ),
        rows=_entry_rows(attacked, STABILITY),
    )


def predicted_differences(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """Compare what models classify under attack, paired."""
    measures = [f"{ATTACKED}{BALANCED}@{name}" for name, _ in conditions(attacked)]
    titles = [title for _, title in conditions(attacked)]
    items = [x for x in attacked.differences if x.variant in attacked.predictions]
    return _differences("Paired differences of predictions under attack", items, measures, titles)


def explained_differences(found: Evaluation, attacked: Robustness) -> EvaluationTable:
    """Compare the maps of one method between models, paired."""
    own = [
        (f"{ALIKE[0]}@{condition(WORST, r)}", f"{title_of(ALIKE[0])}, {r:g}")
        for r in attacked.radii
    ]
    shown = [*((name, title_of(name)) for name in SPARSE), *own]
    items = [x for x in attacked.differences if x.variant in attacked.entries]
    measures, titles = [name for name, _ in shown], [title for _, title in shown]
    return _differences("Paired differences of maps under attack", items, measures, titles)


def _differences(
    title: str, items: Sequence[Difference], measures: Sequence[str], titles: Sequence[str]
) -> EvaluationTable:
    by_key = {(item.variant, item.against, item.measure): item for item in items}
    pairs = dict.fromkeys((item.variant, item.against) for item in items)
    texts = {
        f"{variant} less {against}": [
            difference_text(by_key.get((variant, against, name))) for name in measures
        ]
        for variant, against in pairs
    }
    rows = [[Cell(name), *map(Cell, line)] for name, line in texts.items() if any(line)]
    return EvaluationTable(
        title=title,
        note="Paired within patients: difference, 95 % interval over patients, p, and in round "
        "brackets p after Holm's correction for all rows of a column and method. The CSV file "
        "holds every measure.",
        sheet=Sheet(
            heading=["difference", *titles], blocks=[Block(label=EMPTY, rows=rows)] if rows else []
        ),
        rows=[
            {
                "what": item.variant,
                "against": item.against,
                "measure": item.measure,
                "difference": bare(item.value),
                "low": bare(item.low),
                "high": bare(item.high),
                "p": bare(item.p),
                "p_holm": bare(item.p_holm),
            }
            for item in items
        ],
    )


ROBUST_TABLES: Mapping[str, Callable[[Evaluation, Robustness], EvaluationTable]] = {
    "table-8": predictions,
    "table-9": explanations,
    "table-10": sparsity,
    "table-11": stabilities,
    "table-12": predicted_differences,
    "table-13": explained_differences,
    "table-14": theirs,
}
"""Name of the files -> table."""
