"""Patients into train, validation and test: by patient, stratified, stable, proven disjoint.

The draw depends on the set of patients, their labels and the seed, not on the order in which they
come: each patient's place in the draw is a hash of seed and pseudonym. Stratifying helpers such as
scikit-learn's need two members in each class and at least as many seats as classes, and may leave a
rare class out of a part; here a class with enough patients is in every part.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from preprocessing.errors import SplitError

SPLITS = ("train", "validation", "test")


def split_patients(
    subject_ids: Sequence[str],
    labels: Sequence[int],
    *,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> Mapping[str, str]:
    """Assign each patient to one of ``SPLITS``.

    Patients are stratified by their highest label over all scans (classes are listed from mild to
    severe; patients without any label, -1, are a stratum of their own). Training keeps at least one
    patient of every class, then the test part gets one, then the validation part.

    Parameters
    ----------
    subject_ids, labels
        One entry per scan; a patient may have several.
    test_fraction
        Share of all patients that is kept for testing; 0 for no test part.
    validation_fraction
        Share of the remaining patients on which a model is chosen; 0 for no validation part.

    Returns
    -------
    Mapping
        Patient to split, sorted by patient.

    Raises
    ------
    SplitError
        ``FRACTION`` outside [0, 1); ``LENGTH_MISMATCH``; ``NO_PATIENTS``; ``TOO_FEW_PATIENTS``
        where a part that was asked for would be empty.
    """
    _check_fraction("test", test_fraction)
    _check_fraction("validation", validation_fraction)
    strata = _strata(subject_ids, labels, seed=seed)
    tests = _seats(
        {label: len(patients) for label, patients in strata.items()},
        share=test_fraction,
        leave=2 if validation_fraction else 1,
    )
    rest = {label: len(patients) - tests[label] for label, patients in strata.items()}
    validations = _seats(rest, share=validation_fraction, leave=1)
    assigned: dict[str, str] = {}
    for label, patients in strata.items():
        first, second = tests[label], tests[label] + validations[label]
        parts = {"test": patients[:first], "validation": patients[first:second]}
        parts["train"] = patients[second:]
        assigned |= {patient: name for name, members in parts.items() for patient in members}
    _refuse_empty(assigned, test=test_fraction > 0, validation=validation_fraction > 0)
    return dict(sorted(assigned.items()))


def check_disjoint(rows: Iterable[tuple[str, str]]) -> None:
    """Prove that no patient is in two splits.

    Parameters
    ----------
    rows
        (subject_id, split) of every sample.

    Raises
    ------
    SplitError
        ``PATIENT_IN_TWO_SPLITS``: test figures of such a data set are too good to be true.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for subject_id, split in rows:
        seen[subject_id].add(split)
    shared = sum(len(splits) > 1 for splits in seen.values())
    if shared:
        raise SplitError(
            "PATIENT_IN_TWO_SPLITS",
            f"{shared} of {len(seen)} patients have samples in more than one split, so test "
            "figures would be flattered: build the data set again",
        )


def _check_fraction(name: str, fraction: float) -> None:
    if not 0 <= fraction < 1:
        raise SplitError(
            "FRACTION",
            f"the {name} fraction is {fraction}, which is no share of the patients that leaves any "
            "for training: give a number from 0 up to, not including, 1",
        )


def _strata(
    subject_ids: Sequence[str], labels: Sequence[int], *, seed: int
) -> Mapping[int, list[str]]:
    """Return the patients of each label, in the order of the draw."""
    if len(subject_ids) != len(labels):
        raise SplitError(
            "LENGTH_MISMATCH",
            f"{len(subject_ids)} scans have {len(labels)} labels: give one label per scan, -1 "
            "where there is none",
        )
    highest: dict[str, int] = {}
    for subject_id, label in zip(subject_ids, labels, strict=True):
        highest[subject_id] = max(int(label), highest.get(subject_id, -1))
    if not highest:
        raise SplitError("NO_PATIENTS", "there is no patient to split: no scan was accepted")
    strata: dict[int, list[str]] = defaultdict(list)
    for subject_id in sorted(highest, key=lambda patient: _draw(patient, seed=seed)):
        strata[highest[subject_id]].append(subject_id)
    return dict(sorted(strata.items()))


def _draw(patient: str, *, seed: int) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}|{patient}".encode()).digest(), patient


def _seats(sizes: Mapping[int, int], *, share: float, leave: int) -> Mapping[int, int]:
    """Share out seats over the strata by largest remainder, at least one each where possible.

    A stratum keeps ``leave`` patients for the parts that follow, but gives up its second one where
    it has just two.
    """
    if share == 0:
        return dict.fromkeys(sizes, 0)
    most = {label: max(size - leave, min(size - 1, 1)) for label, size in sizes.items()}
    seats = {label: min(max(int(share * size), 1), most[label]) for label, size in sizes.items()}
    wanted = max(round(share * sum(sizes.values())), 1)
    by_remainder = sorted(sizes, key=lambda label: (seats[label] - share * sizes[label], label))
    while sum(seats.values()) < wanted:
        open_strata = [label for label in by_remainder if seats[label] < most[label]]
        if not open_strata:
            break
        for label in open_strata[: wanted - sum(seats.values())]:
            seats[label] += 1
    return seats


def _refuse_empty(assigned: Mapping[str, str], **asked: bool) -> None:
    empty = [name for name, is_asked in asked.items() if is_asked]
    empty = [name for name in empty if name not in assigned.values()]
    if empty:
        names = " and the ".join(empty)
        raise SplitError(
            "TOO_FEW_PATIENTS",
            f"{len(assigned)} patients leave the {names} part empty, because training keeps one of "
            f"each class: add patients, or set the {names} fraction to 0",
        )
