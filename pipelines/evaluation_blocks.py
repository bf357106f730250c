"""The rows of an evaluation's tables in their blocks: real methods first, controls at the bottom.

A real method that has no score in a table is left out of it; a control stands in every table.
"""

from collections.abc import Mapping, Sequence

from pipelines.comparison_scores import MeanScore
from pipelines.evaluation_cells import (
    PAIR,
    label_of,
    published_measures,
    published_rows,
    published_text,
    rows_of_cells,
)
from pipelines.evaluation_records import Entry, Evaluation
from pipelines.tabular import EMPTY, Block, Cell

CONTROLS = "controls"


def real(found: Evaluation) -> list[Entry]:
    """Return the entries that a method made."""
    return [entry for entry in found.entries.values() if entry.kind != "control"]


def controls(found: Evaluation) -> list[Entry]:
    """Return the maps that no network made."""
    return [entry for entry in found.entries.values() if entry.kind == "control"]


def by_level(found: Evaluation) -> dict[str, list[Entry]]:
    """Return real entries by level: the paper's pair first, one map for all levels last."""
    present = dict.fromkeys(entry.level for entry in real(found))
    others = [level for level in present if level not in (*PAIR, EMPTY)]
    return {
        level: [entry for entry in real(found) if entry.level == level]
        for level in (*PAIR, *others, EMPTY)
        if level in present
    }


def levels_beside(found: Evaluation) -> list[str]:
    """Return the levels that become columns; "" alone where no method knows levels."""
    return [level for level in by_level(found) if level] or [EMPTY]


def entry_blocks(
    found: Evaluation, measures: Sequence[str], *, label: str = EMPTY, table: str = EMPTY
) -> list[Block]:
    """Return all real entries as one block, and the controls as another."""
    return [
        _entries(found, real(found), measures, label=label, table=table),
        control_block(found, measures, label=label, table=table),
    ]


def level_blocks(found: Evaluation, measures: Sequence[str], *, table: str) -> list[Block]:
    """Return a block for each level, and the controls."""
    blocks = [
        _entries(found, entries, measures, label=_level_label(level), table=table)
        for level, entries in by_level(found).items()
    ]
    return [*blocks, control_block(found, measures, label=EMPTY, table=table)]


def _level_label(level: str) -> str:
    words = {
        "fine": "fine level (block 3 of the paper)",
        "coarse": "coarse level (block 4 of the paper)",
        EMPTY: "one map for all levels",
    }
    return words.get(level, f"level {level}")


def control_block(
    found: Evaluation, measures: Sequence[str], *, label: str, table: str = EMPTY
) -> Block:
    """Return the controls, also those without a score; none of them is the best."""
    title = f"{CONTROLS}, {label}" if label else CONTROLS
    return _entries(found, controls(found), measures, label=title, table=table, choose=False)


def _entries(
    found: Evaluation,
    entries: Sequence[Entry],
    measures: Sequence[str],
    *,
    label: str,
    table: str,
    choose: bool = True,
) -> Block:
    scores = [[found.scores.get(e.name, {}).get(name) for name in measures] for e in entries]
    kept = [i for i, line in enumerate(scores) if not choose or any(line)]
    names = [_name(entries[i], table) for i in kept]
    rows = rows_of_cells(names, [scores[i] for i in kept], measures, choose=choose)
    theirs = published_measures(found, table)
    for place, i in enumerate(kept):
        printed = published_rows(found, entries[i], table)
        rows[place] += [Cell(published_text(printed, name)) for name in theirs]
    return Block(label=label, rows=rows)


def _name(entry: Entry, table: str) -> str:
    return label_of(entry) if table or entry.kind == "control" else entry.name


def method_blocks(
    found: Evaluation, keys: Sequence[tuple[str, str]], *, label: str, table: str
) -> list[Block]:
    """Return methods as rows, their levels beside each other, and the controls.

    Parameters
    ----------
    keys
        (level, measure) of each column. One map for all levels stands in both of the paper's pair.
    """
    title = f"{CONTROLS}, {label}" if label else CONTROLS
    return [
        _methods(found, real(found), keys, label=label, table=table, choose=True),
        _methods(found, controls(found), keys, label=title, table=table, choose=False),
    ]


def _methods(
    found: Evaluation,
    entries: Sequence[Entry],
    keys: Sequence[tuple[str, str]],
    *,
    label: str,
    table: str,
    choose: bool,
) -> Block:
    methods: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        methods.setdefault(label_of(entry), {})[entry.level] = entry
    lines = {
        name: [_beside(found, levels, level, measure) for level, measure in keys]
        for name, levels in methods.items()
    }
    kept = [name for name, line in lines.items() if not choose or any(line)]
    measures = [measure for _, measure in keys]
    rows = rows_of_cells(kept, [lines[name] for name in kept], measures, choose=choose)
    for row, name in zip(rows, kept, strict=True):
        row += _published_beside(found, methods[name], table)
    return Block(label=label, rows=rows)


def _beside(
    found: Evaluation, levels: Mapping[str, Entry], level: str, measure: str
) -> MeanScore | None:
    entry = levels.get(level) or (levels.get(EMPTY) if level in PAIR else None)
    return None if entry is None else found.scores.get(entry.name, {}).get(measure)


def _published_beside(found: Evaluation, levels: Mapping[str, Entry], table: str) -> list[Cell]:
    """Return the paper's value for each level of its pair; nothing where it has no such table."""
    theirs = published_measures(found, table)
    printed = [row for entry in levels.values() for row in published_rows(found, entry, table)]
    return [
        Cell(published_text([row for row in printed if row.level == level], name))
        for level in PAIR
        for name in theirs
    ]
