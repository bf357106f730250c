"""Which entries are shown where not all can be: lines in colour, maps in a gallery."""

import math

from pipelines.evaluation_blocks import controls, real
from pipelines.evaluation_cells import PAIR, is_upper_bound
from pipelines.evaluation_claims import HEADLINES
from pipelines.evaluation_measures import split_measure
from pipelines.evaluation_records import Entry, Evaluation

MOST_REAL = 6
FREE = "unconstrained"
BEST_BY = ("average_precision", "input_perturbation", "insertion")


def headline(found: Evaluation) -> Entry | None:
    """Return the entry that the report is about: maps that agree, the finer level first."""
    entries = real(found)
    own = [entry for entry in entries if entry.kind == "attention"]
    return next(iter([*_of_headlines(found), *own, *entries]), None)


def _of_headlines(found: Evaluation) -> list[Entry]:
    """Return the maps that agree: one level after the other, the best variant first."""
    return [entry for level in PAIR for name in HEADLINES for entry in _own(found, name, level)]


def _own(found: Evaluation, variant: str, level: str) -> list[Entry]:
    return [
        entry
        for entry in real(found)
        if entry.kind == "attention"
        and entry.level == level
        and found.models[entry.model].variant == variant
    ]


def highlighted(found: Evaluation) -> list[Entry]:
    """Return at most eight entries to tell apart: maps that agree, their rivals, two controls.

    Rivals are free gates and the best post-hoc methods; what is left goes to the best of the
    others. The controls are the best that knows nothing, and the truth.
    """
    agreeing = [entry for name in HEADLINES for entry in _own(found, name, PAIR[0])[:1]]
    free = _own(found, FREE, PAIR[0])[:1]
    post_hoc = _best(found, [entry for entry in real(found) if entry.kind == "post-hoc"])
    others = _best(found, real(found))
    chosen = {
        entry.name: entry for entry in (*agreeing, *free, *_one_of_each(post_hoc)[:2], *others)
    }
    blind = _best(found, [entry for entry in controls(found) if not is_upper_bound(entry)])
    truth = [entry for entry in controls(found) if is_upper_bound(entry)]
    return [*list(chosen.values())[:MOST_REAL], *blind[:1], *truth[:1]]


def _one_of_each(entries: list[Entry]) -> list[Entry]:
    """Return the first entry of each method, in their order."""
    first: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        first.setdefault((entry.model, entry.method), entry)
    return list(first.values())


def _best(found: Evaluation, entries: list[Entry]) -> list[Entry]:
    """Sort entries by the first of a few measures that any of them has, the best first."""
    scores = {entry.name: found.scores.get(entry.name, {}) for entry in entries}
    names = dict.fromkeys(name for mine in scores.values() for name in mine)
    by = [name for metric in BEST_BY for name in names if split_measure(name)[0] == metric]
    if not by:
        return entries
    means = {name: mine[by[0]].mean if by[0] in mine else math.nan for name, mine in scores.items()}
    worst = -math.inf
    return sorted(
        entries,
        key=lambda x: means[x.name] if math.isfinite(means[x.name]) else worst,
        reverse=True,
    )
