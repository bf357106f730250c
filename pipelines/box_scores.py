"""What was measured of maps against boxes, put together: scores, differences, areas, sentences.

Axes: k class.
"""

import numpy as np

from pipelines.assemble import TrainingData
from pipelines.box_records import (
    CONTROL,
    TRUE_BOX,
    BoxEntry,
    BoxScores,
    FindingScores,
    with_condition,
)
from pipelines.box_statistics import against_mean_box, case_draws, score_areas, score_cases
from pipelines.box_truth import columns_of, findings_of
from pipelines.box_units import Measured, Split
from pipelines.comparison_scores import MeanScore

HOW = (
    "Each map explains the finding that is boxed, not the prediction. It is scaled to [0, 255] by "
    "its own least and greatest value and cut at 60 and at 180, each by itself; a constant map "
    "reaches both everywhere. Of maps with signs the positive part is measured.",
    "single box: share of the true boxes that the best of all boxes around regions of the map "
    "finds at T; false boxes are counted beside it (AFP). union: whether the union of all boxes "
    "does; it is the stricter form. Without threshold: as many of the most important pixels as the "
    "true boxes have, and the chance that the most important pixel lies in one.",
    "Every finding of a picture counts once. ±: standard deviation over seeds. In brackets: 95 % "
    "interval over patients, who are resampled whole, the same draws for all rows; none where one "
    "patient has all boxes of a finding. No value: the finding has no box.",
)


def scored(found: TrainingData, measured: Measured, *, resamples: int) -> BoxScores:
    """Score everything that was measured on the test split of a data set."""
    split = measured.split
    numbers = findings_of(split.cases, split.classes)
    findings = tuple(split.classes[k] for k in numbers)
    columns = columns_of(split.cases, numbers)
    subjects = [case.subject_id for case in split.cases]
    draws = case_draws(columns, subjects, resamples=resamples, seed=split.seed)
    entries = _entries(measured)
    per_case = {
        name: measured.tables[entry.model, entry.method, entry.condition]
        for name, entry in entries.items()
    }
    scores: dict[str, FindingScores] = {
        name: score_cases(
            list(tables.values()), columns, findings=findings, subject_ids=subjects, draws=draws
        )
        for name, tables in per_case.items()
    }
    prior = (
        "boxes of other test patients" if split.means.leave_out else "boxes of training patients"
    )
    return BoxScores(
        title=f"Maps against boxes: {found.summary.name}",
        recipe=found.summary.recipe,
        classes=split.classes,
        findings=findings,
        cases=split.cases,
        entries=entries,
        scores=scores,
        per_case=per_case,
        differences=against_mean_box(scores),
        areas=_areas(measured, resamples=resamples),
        prior=prior,
        samples=len(split.test),
        patients=len(set(split.test.subject_ids)),
        resamples=resamples,
        notes=(*HOW, _about_prior(split)),
        seeds={
            with_condition(model, condition): tuple(shares)
            for (model, condition), shares in measured.shares.items()
        },
        failures=measured.failures,
    )


def _areas(measured: Measured, *, resamples: int) -> dict[str, dict[str, MeanScore]]:
    """Areas under the curves of every model's answers, as they are and attacked."""
    split = measured.split
    return {
        with_condition(model, condition): score_areas(
            np.asarray(split.test.labels),
            shares,
            split.test.subject_ids,
            classes=split.classes,
            resamples=resamples,
            seed=split.seed,
        )
        for (model, condition), shares in measured.shares.items()
    }


def _about_prior(split: Split) -> str:
    if split.means.leave_out:
        return (
            "The training split has no box, as in the official lists: the mean box of a case is "
            "that of the other test patients' boxes of its finding. No method but this control "
            "has seen a box of the test split."
        )
    return "The mean box of a finding is that of the training split."


def _entries(measured: Measured) -> dict[str, BoxEntry]:
    """List what was measured: models as they came, then controls, the truth last."""
    entries = [
        BoxEntry(
            model=model,
            method=method,
            explainer=measured.explainer(model, method),
            condition=condition,
            kind=measured.kind(model, method),
            signed=(model, method) in measured.signed,
            seeds=() if model == CONTROL else tuple(tables),
        )
        for (model, method, condition), tables in measured.tables.items()
    ]
    ordered = sorted(entries, key=lambda entry: (entry.kind == "control", entry.method == TRUE_BOX))
    return {entry.name: entry for entry in ordered}
