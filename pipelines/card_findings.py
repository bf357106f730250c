"""Counts for the card of a data set whose pictures may show several findings at once."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from preprocessing.splits import SPLITS

FINDINGS = "findings"
"""Column of ``samples.csv``: names with ``|`` between them."""


def finding_rows(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count the pictures that show each finding, the most frequent first.

    Parameters
    ----------
    samples
        Rows of ``samples.csv``; none of them needs to have the column ``findings``.

    Returns
    -------
    list
        ``name``; ``counts``: pictures in train, validation, test and in all; ``subjects``.
    """
    pictures: dict[str, Counter[str]] = {}
    subjects: dict[str, set[str]] = {}
    for sample in samples:
        for name in filter(None, str(sample.get(FINDINGS, "")).split("|")):
            pictures.setdefault(name, Counter())[str(sample["split"])] += 1
            subjects.setdefault(name, set()).add(str(sample["subject_id"]))
    order = sorted(pictures, key=lambda name: (-pictures[name].total(), name))
    return [
        {
            "name": name,
            "counts": [*(pictures[name][split] for split in SPLITS), pictures[name].total()],
            "subjects": len(subjects[name]),
        }
        for name in order
    ]
