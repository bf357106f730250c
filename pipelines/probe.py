"""The leak probe: whether anything that must not matter tells the label of an unseen patient.

A classifier is given what a network could read off a picture without looking at the disease: where
the picture is not zero, how the scan was made, where in the scan the picture lies. If it predicts
labels of held-out patients better than chance, so can a network, and its test score is no proof of
what it has learnt.

How many bytes a picture takes when compressed is reported beside it, and decides nothing. It is no
free hint: a network does not see it, and a finding itself changes how well a picture compresses.
In one draw of 80 synthetic heads cut at the midline (31 patients tested), size alone told the half
with tumour with an area under the curve of 0.55 (95 % interval 0.52 to 0.58); with the same cuts
and labels, but tumours that leave no trace in the grey values, with 0.48 (0.46 to 0.49). There,
what size told was the tumour; whether it is so with real scans has not been measured.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from pipelines.near_duplicates import NearDuplicates, near_duplicates
from pipelines.probe_features import (
    ACQUISITION_PART,
    OUTLINE_PART,
    PLACE_PART,
    SIZE_PART,
    ProbeRows,
    read_rows,
)
from pipelines.probe_scores import (
    CROSSED_WIDENING,
    PATIENTS_EACH_CROSSED,
    Plan,
    area_with_interval,
    headline,
    make_plan,
    predict,
)
from pipelines.scores import Interval
from preprocessing.manifest import SAMPLES, read_manifest
from preprocessing.records import Mapper

HEADLINE = (OUTLINE_PART, ACQUISITION_PART, PLACE_PART)
"""What the verdict rests on."""
CHANCE = 0.5
ANY = "any of the classes"
"""Judged beside the classes where a picture may show several or none."""
MOST_OF_A_PATIENT = 16
"""Pictures of one patient that are looked at: further slices of a head tell little more of it."""
PLACES = 4
"""Decimals of an area in the manifest."""
MOST_ROWS = 20_000
"""Rows that the classifier sees at most; more do not narrow the interval to any purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakProbe:
    """What the probe found.

    Attributes
    ----------
    auc, low, high
        Area under the ROC curve of the whole probe, mean over the judged classes, each against the
        rest, and its 95 % interval over resampled patients; None where there are too few patients.
    above_chance
        The interval lies above 0.5.
    features
        What the verdict rests on, leaving out parts that the data set does not have.
    parts
        Each part alone, and ``stored size``, on which the verdict does not rest.
    classes
        Those that were judged.
    held_out_patients
        How many patients were tested.
    cross_validated
        Patients took turns in being tested, because the test split is too small.
    near_duplicates
        Nearly equal pictures in different splits.
    sentence
        The verdict for people.
    """

    auc: float | None
    low: float | None
    high: float | None
    above_chance: bool
    features: tuple[str, ...]
    parts: Mapping[str, Interval]
    classes: tuple[str, ...]
    held_out_patients: int
    cross_validated: bool
    near_duplicates: NearDuplicates
    sentence: str

    def summary(self) -> dict[str, Any]:
        """Return the numbers as the manifest holds them."""
        area = (
            None
            if self.auc is None or self.low is None or self.high is None
            else {
                "value": round(self.auc, PLACES),
                "low": round(self.low, PLACES),
                "high": round(self.high, PLACES),
            }
        )
        return {
            "above_chance": self.above_chance,
            "area_under_curve": area,
            "features": list(self.features),
            "held_out_patients": self.held_out_patients,
            "cross_validated": self.cross_validated,
            "near_duplicates": dict(self.near_duplicates.pairs),
        }


def probe(
    out: Path,
    manifest: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    mapper: Mapper = map,
) -> LeakProbe:
    """Probe a data set whose shards stand in ``out``, complete or about to be.

    Parameters
    ----------
    manifest
        Content of ``manifest.json``, whether or not it is written yet.
    samples
        Rows of ``samples.csv``.
    mapper
        Spreads the reading over processes.

    Raises
    ------
    ShardError
        A shard cannot be read.
    """
    rows = read_rows(out, manifest, _some_of_each(samples, seed=seed), mapper=mapper)
    # One thread: sums in another order would be other sums in their last digits.
    with threadpool_limits(1):
        return _judged(rows, [*map(str, manifest["classes"]), ANY], seed=seed)


def _some_of_each(samples: Sequence[Mapping[str, Any]], *, seed: int) -> list[Mapping[str, Any]]:
    """Draw some pictures of each patient; places in a patient's order alone decide which.

    One head under two names gives the same slices twice, so that it is still found.
    """
    of_patient: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: str(sample["sample_id"])):
        of_patient[str(sample["subject_id"])].append(sample)
    chosen: list[Mapping[str, Any]] = []
    for rows in of_patient.values():
        order = np.random.default_rng([seed, len(rows)]).permutation(len(rows))
        chosen += [rows[place] for place in order[:MOST_OF_A_PATIENT]]
    return chosen


def _judged(rows: ProbeRows, names: Sequence[str], *, seed: int) -> LeakProbe:
    twins = near_duplicates(rows.hashes, rows.thumbnails, rows.splits)
    rows = _fewer(rows, seed=seed)
    plan = make_plan(rows.truth, rows.subjects, rows.splits, seed=seed)
    features = tuple(name for name in HEADLINE if rows.parts[name].shape[1])
    if plan is None:
        return _undecided(rows, features, twins)
    found = {name: _measure(rows, (name,), plan, seed=seed) for name in (*features, SIZE_PART)}
    whole = _measure(rows, features, plan, seed=seed)
    tested = len({rows.subjects[row] for row in plan.tested})
    is_above = whole.low > CHANCE
    return LeakProbe(
        auc=whole.value,
        low=whole.low,
        high=whole.high,
        above_chance=is_above,
        features=features,
        parts=found,
        classes=tuple(names[kind] for kind in plan.judged),
        held_out_patients=tested,
        cross_validated=plan.is_crossed,
        near_duplicates=twins,
        sentence=_sentence(whole, features, tested, plan, is_above),
    )


def probe_folder(path: Path, *, seed: int = 0) -> LeakProbe:
    """Probe a complete data set that has a ``samples.csv``.

    Raises
    ------
    ShardError
        The folder is no complete data set, or a shard cannot be read.
    """
    manifest = read_manifest(path)
    with (path / SAMPLES).open(newline="", encoding="utf-8") as stream:
        return probe(path, manifest, list(csv.DictReader(stream)), seed=seed)


def card_section(found: LeakProbe) -> str:
    """Write the probe's result as Markdown: a warning where it is above chance, else a paragraph.

    Whoever makes the card puts the warning first, and anything else among what to be careful about.
    """
    lines = [f"> **Leak probe: warning.** {found.sentence}" if found.above_chance else ""]
    if not found.above_chance:
        lines = [f"Leak probe: {found.sentence}"]
    if found.parts:
        lines += ["", "| what the probe sees | area under the curve | 95 % interval |"]
        lines += ["|---|---:|---:|"]
        lines += [_table_row(name, item) for name, item in found.parts.items()]
        lines += [_note_on_size()] if _is_above(found.parts.get(SIZE_PART)) else []
    return "\n".join([*lines, "", _twins_sentence(found.near_duplicates)])


def _measure(rows: ProbeRows, names: Sequence[str], plan: Plan, *, seed: int) -> Interval:
    features = headline({name: rows.parts[name] for name in names})
    outline = rows.outline if OUTLINE_PART in names else None
    scores = predict(features, outline, rows.truth, plan)
    patients = np.asarray(rows.subjects, dtype=str)[plan.tested]
    truth = rows.truth[plan.tested][:, list(plan.judged)]
    widening = CROSSED_WIDENING if plan.is_crossed else 1.0
    return area_with_interval(truth, scores, patients, seed=seed, widening=widening)


def _fewer(rows: ProbeRows, *, seed: int) -> ProbeRows:
    """Keep whole patients, drawn at random, until there are enough rows."""
    if len(rows.subjects) <= MOST_ROWS:
        return rows
    names, patient, counts = np.unique(
        np.asarray(rows.subjects), return_inverse=True, return_counts=True
    )
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = order[np.cumsum(counts[order]) <= MOST_ROWS]
    kept = np.flatnonzero(np.isin(patient, chosen))
    return ProbeRows(
        parts={name: values[kept] for name, values in rows.parts.items()},
        outline=rows.outline[kept],
        truth=rows.truth[kept],
        subjects=tuple(rows.subjects[row] for row in kept),
        splits=tuple(rows.splits[row] for row in kept),
        hashes=rows.hashes[kept],
        thumbnails=rows.thumbnails[kept],
    )


def _undecided(rows: ProbeRows, features: tuple[str, ...], twins: NearDuplicates) -> LeakProbe:
    patients = len(set(rows.subjects))
    return LeakProbe(
        auc=None,
        low=None,
        high=None,
        above_chance=False,
        features=features,
        parts={},
        classes=(),
        held_out_patients=0,
        cross_validated=False,
        near_duplicates=twins,
        sentence=(
            f"too few patients to know ({patients} in all): at least {PATIENTS_EACH_CROSSED} with "
            f"a class and {PATIENTS_EACH_CROSSED} without it are needed before anything can be "
            "said."
        ),
    )


def _sentence(
    whole: Interval, features: Sequence[str], tested: int, plan: Plan, is_above: bool
) -> str:
    who = "patients, each tested by a classifier trained on others," if plan.is_crossed else ""
    who = who or "held-out patients"
    measured = (
        f"a classifier that sees only {', '.join(features)} of a picture, never its grey values, "
        f"predicts the label of {tested} {who} with an area under the ROC curve of "
        f"{whole.value:.2f} (95 % interval {whole.low:.2f} to {whole.high:.2f}; chance is 0.50)."
    )
    if is_above:
        return (
            f"{measured} That is above chance: a network can score on this data set without "
            "looking at the disease. Compare every score with this one."
        )
    return f"{measured} It is not shown to be better than chance."


def _is_above(item: Interval | None) -> bool:
    return item is not None and item.low > CHANCE


def _table_row(name: str, item: Interval) -> str:
    return f"| {name} | {item.value:.2f} | {item.low:.2f} to {item.high:.2f} |"


def _note_on_size() -> str:
    return (
        "\nThe compressed size of a picture tells something about its label. The verdict does not "
        "rest on it: no network sees it, and a finding itself changes how well a picture "
        "compresses; so does the noise of another scanner."
    )


def _twins_sentence(twins: NearDuplicates) -> str:
    if not twins.pairs:
        return "No nearly equal pictures were found in different splits."
    pairs = ", ".join(f"{splits} {count}" for splits, count in twins.pairs.items())
    return (
        f"**{twins.pictures} pictures have a near-duplicate in another split** (pairs: {pairs}): "
        "look at them before a test score is believed."
    )
