"""A split that others have drawn: their test patients stay theirs, the rest is split as usual."""

from collections.abc import Mapping, Sequence

from preprocessing.errors import SplitError
from preprocessing.splits import split_patients

OFFICIAL = "official_split"
"""Column of ``samples.csv``: the part that a data set's own lists name, or nothing."""
HELD_OUT = "test"


def split_officially(
    subject_ids: Sequence[str],
    labels: Sequence[int],
    official: Sequence[str],
    *,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> Mapping[str, str]:
    """Assign each patient to a split, keeping the test patients of a published split.

    Where no row names an official part, this is ``splits.split_patients``. Otherwise the patients
    of the official test part are the test split, whatever ``test_fraction`` says, and validation
    patients are drawn from the others.

    Parameters
    ----------
    subject_ids, labels
        One entry per scan; a patient may have several.
    official
        ``test``, another official part, or "", one entry per scan.

    Raises
    ------
    SplitError
        ``OFFICIAL_SPLIT_OVERLAP``: a patient's scans are in several official parts, or only some
        are in one; otherwise as ``splits.split_patients``.
    """
    if not any(official):
        return split_patients(
            subject_ids,
            labels,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            seed=seed,
        )
    part_of: dict[str, str] = {}
    for subject, part in zip(subject_ids, official, strict=True):
        if part_of.setdefault(subject, part) != part:
            raise SplitError(
                "OFFICIAL_SPLIT_OVERLAP",
                "a patient has scans in several parts of the published split, so test figures "
                "would be flattered: mend its lists, or remove them for a split of our own",
            )
    rest = [(s, n) for s, n in zip(subject_ids, labels, strict=True) if part_of[s] != HELD_OUT]
    drawn: Mapping[str, str] = {}
    if rest:
        drawn = split_patients(
            [subject for subject, _ in rest],
            [label for _, label in rest],
            test_fraction=0.0,
            validation_fraction=validation_fraction,
            seed=seed,
        )
    held_out = {subject: "test" for subject, part in part_of.items() if part == HELD_OUT}
    return dict(sorted({**drawn, **held_out}.items()))
