from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import SplitError
from preprocessing.splits import SPLITS, check_disjoint, split_patients


def cohort(rng, *, patients, classes=3):
    """Return 1 to 5 scans per patient, in random order, with a label per scan."""
    scans = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    rng.shuffle(scans)
    return [f"p{scan:04d}" for scan in scans], [
        int(x) for x in rng.integers(-1, classes, len(scans))
    ]


def split(subjects, labels, *, test=0.2, validation=0.15, seed=0):
    return split_patients(
        subjects, labels, test_fraction=test, validation_fraction=validation, seed=seed
    )


def test_ten_thousand_cohorts_share_no_patient():
    rng = np.random.default_rng(7)
    for _ in range(10_000):
        subjects, labels = cohort(rng, patients=int(rng.integers(12, 30)))
        assigned = split(subjects, labels)
        members = defaultdict(set)
        for subject in subjects:
            members[assigned[subject]].add(subject)
        assert not members["train"] & members["validation"]
        assert not members["test"] & (members["train"] | members["validation"])
        assert set.union(*members.values()) == set(subjects)


@given(st.integers(0, 10**6), st.integers(12, 60), st.randoms(use_true_random=False))
def test_order_of_scans_does_not_matter(seed, patients, shuffler):
    subjects, labels = cohort(np.random.default_rng(seed), patients=patients)
    order = list(range(len(subjects)))
    shuffler.shuffle(order)
    again = split([subjects[i] for i in order], [labels[i] for i in order], seed=seed)
    assert split(subjects, labels, seed=seed) == again


@given(st.lists(st.integers(3, 40), min_size=1, max_size=5), st.integers(0, 1000))
def test_every_class_with_three_patients_is_in_every_part(sizes, seed):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    subjects = [f"p{i}" for i in range(len(labels))]
    assigned = split(subjects, labels, seed=seed)
    for name in SPLITS:
        present = {y for s, y in zip(subjects, labels, strict=True) if assigned[s] == name}
        assert present == set(range(len(sizes)))


def test_shares_are_those_asked_for():
    rng = np.random.default_rng(0)
    subjects = [f"p{i}" for i in range(1000)]
    labels = [int(x) for x in rng.choice(3, 1000, p=[0.6, 0.3, 0.1])]
    assigned = split(subjects, labels)
    parts = Counter(assigned.values())
    assert (parts["test"], parts["validation"]) == (200, 120)
    for label in range(3):
        members = [s for s, y in zip(subjects, labels, strict=True) if y == label]
        tested = sum(assigned[s] == "test" for s in members)
        assert abs(tested - 0.2 * len(members)) < 1


def test_the_most_severe_scan_decides_the_stratum():
    # Each patient has a normal and a severe scan: all are one stratum, whatever the scan order.
    subjects = [f"p{i}" for i in range(10)] * 2
    by_scan = split(subjects, [0] * 10 + [2] * 10)
    assert by_scan == split(subjects, [2] * 10 + [-1] * 10)
    assert by_scan == split(subjects[:10], [2] * 10)


def test_another_seed_draws_another_split():
    subjects = [f"p{i}" for i in range(40)]
    assert split(subjects, [0] * 40, seed=1) != split(subjects, [0] * 40, seed=2)


def test_fraction_zero_leaves_the_part_out():
    assigned = split(["a"], [0], test=0.0, validation=0.0)
    assert assigned == {"a": "train"}
    assert set(split(["a", "b"], [1, 1], validation=0.0).values()) == {"train", "test"}


@pytest.mark.parametrize(("sizes", "part"), [([1], "test and the validation"), ([2], "validation")])
def test_too_few_patients_say_what_to_do(sizes, part):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    with pytest.raises(SplitError, match=f"leave the {part} part empty") as caught:
        split([f"p{i}" for i in range(len(labels))], labels)
    assert caught.value.code == "TOO_FEW_PATIENTS"
    assert "set the" in str(caught.value)


def test_classes_of_one_patient_each_cannot_be_tested():
    with pytest.raises(SplitError, match="training keeps one of each class"):
        split(["a", "b", "c"], [0, 1, 2])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(SplitError, match="the test fraction is") as caught:
        split(["a", "b"], [0, 0], test=fraction)
    assert caught.value.code == "FRACTION"
    with pytest.raises(SplitError, match="the validation fraction is"):
        split(["a", "b"], [0, 0], validation=fraction)


def test_lengths_must_agree():
    with pytest.raises(SplitError, match="2 scans have 1 labels") as caught:
        split(["a", "b"], [0])
    assert caught.value.code == "LENGTH_MISMATCH"


def test_nobody_cannot_be_split():
    with pytest.raises(SplitError, match="no patient to split") as caught:
        split([], [])
    assert caught.value.code == "NO_PATIENTS"


def test_check_disjoint_counts_shared_patients():
    check_disjoint([("a", "train"), ("a", "train"), ("b", "test")])
    with pytest.raises(SplitError, match="1 of 2 patients have samples in more") as caught:
        check_disjoint([("a", "train"), ("b", "test"), ("a", "validation")])
    assert caught.value.code == "PATIENT_IN_TWO_SPLITS"
