"""What a run leaves for people: predictions, scores, plots, the model card."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from pipelines import figures, label_sets
from pipelines import run as run_files
from pipelines.config import DataSummary, RunConfig
from pipelines.feed import Pictures
from pipelines.label_set_scores import LEAST_PATIENTS, LabelSetScores, score_label_sets
from pipelines.scores import Interval, SplitScores, score_split
from preprocessing.atomic_files import atomic_write

TestScores = SplitScores | LabelSetScores
ANSWERS = {
    "multi-class": "classes",
    "multi-label": "findings, each told by a sigmoid of its own",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One split and what the best model says about it."""

    split: str
    pictures: Pictures
    probabilities: Float[np.ndarray, "n k"]


def write_predictions(run: Path, predicted: Sequence[Predicted], classes: Sequence[str]) -> None:
    """Write ``predictions.csv``: one row per sample, its patient, and every class's probability.

    Beside it the class and the prediction; or, of label sets, the truth of every class.
    """
    rows = []
    for found in predicted:
        who = zip(
            found.pictures.sample_ids,
            found.pictures.subject_ids,
            found.pictures.labels,
            found.probabilities,
            strict=True,
        )
        for sample_id, subject_id, label, probabilities in who:
            row: dict[str, str] = {
                "sample_id": sample_id,
                "subject_id": subject_id,
                "split": found.split,
            }
            rows.append(row | _answers(label, probabilities, classes))
    run_files.write_table(run / run_files.PREDICTIONS, rows)


def _answers(
    label: np.integer | UInt8[np.ndarray, " k"],
    probabilities: Float[np.ndarray, " k"],
    classes: Sequence[str],
) -> dict[str, str]:
    if isinstance(label, np.ndarray):
        return label_sets.columns(label, probabilities, classes)
    named = zip(classes, probabilities, strict=True)
    return {
        "label": classes[int(label)],
        "prediction": classes[int(probabilities.argmax())],
        **{f"probability_{name}": f"{value:.6f}" for name, value in named},
    }


def score_test(run: Path, test: Predicted, config: RunConfig) -> TestScores:
    """Score the test split and write ``test_scores.json`` and its plots."""
    score = score_label_sets if config.data.task == "multi-label" else score_split
    found = score(
        test.pictures.labels,
        test.probabilities,
        test.pictures.subject_ids,
        classes=config.data.classes,
        resamples=config.train.bootstrap,
        seed=config.train.seed,
    )
    run_files.write_json(run / run_files.SCORES, found.as_json())
    for name, picture in _plots(test, found, config.data.classes).items():
        atomic_write(run / name, picture)
    return found


def _plots(test: Predicted, found: TestScores, classes: Sequence[str]) -> dict[str, bytes]:
    labels, probabilities = test.pictures.labels, test.probabilities
    if isinstance(found, LabelSetScores):
        return {
            "roc.png": figures.roc_of_each(labels, probabilities, classes),
            "calibration.png": figures.calibration_of_each(labels, probabilities, classes),
        }
    plots = {
        "confusion.png": figures.confusion(np.asarray(found.confusion), classes),
        "calibration.png": figures.calibration(labels, probabilities),
    }
    if found.auc is not None:
        plots["roc.png"] = figures.roc(labels, probabilities, classes)
    return plots


def draw_curves(
    run: Path, history: Sequence[Mapping[str, float]], *, best_epoch: int, data: DataSummary
) -> None:
    """Draw ``curves.png`` from ``metrics.csv``, without durations: they never repeat."""
    rows = [{name: row[name] for name in row if name != "seconds"} for row in history]
    chance = 0.5 if data.task == "multi-label" else 1 / len(data.classes)
    picture = figures.curves(rows, best_epoch=best_epoch, chance=chance)
    atomic_write(run / "curves.png", picture)


def tabulate(history: Sequence[Mapping[str, float]]) -> list[dict[str, float | str]]:
    """Give every row the same columns; what was not measured is empty."""
    names = list(dict.fromkeys(name for row in history for name in row))
    return [{name: _cell(row.get(name)) for name in names} for row in history]


def _cell(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def validated(best: Mapping[str, float]) -> str:
    """Say what the best epoch scored on the validation split, beside its loss."""
    for name, words in (("balanced_accuracy", "balanced accuracy"), ("auc", "mean area")):
        if name in best:
            return f"{words} {best[name]:.3f}"
    return "no score defined"


def model_card(
    config: RunConfig,
    *,
    parameters: int,
    best: Mapping[str, float],
    test: TestScores | None,
    remarks: Sequence[str],
) -> str:
    """Return ``model_card.md``."""
    data, settings = config.data, config.train
    size = settings.image_size or f"{data.picture_size[0]} x {data.picture_size[1]}"
    rows = ", ".join(f"{name} {count}" for name, count in data.rows.items())
    lines = [
        f"# {settings.network} / {settings.variant} on {data.name}",
        "",
        "For research on explanations of classifiers. Not a medical device; not for diagnosis.",
        "",
        "## Model",
        "",
        f"- network {settings.network}, attention variant {settings.variant}, "
        f"{parameters:,} parameters",
        f"- input: {data.in_channels} channel(s), {size} pixels",
        f"- {ANSWERS[data.task]}: {', '.join(data.classes)}",
        f"- weights chosen at epoch {best['epoch']:.0f} by the loss on the validation "
        f"split ({best['loss']:.3f}, {validated(best)} there); the test split took no part in any "
        "choice",
        "",
        "## Data",
        "",
        f"- {data.name}; labelled samples: {rows}; patients are never shared between splits",
        f"- manifest SHA-256 {data.manifest_sha256 or '(none)'}",
        *(f"- {remark}" for remark in remarks),
        "",
        "## Test scores",
        "",
        *_score_lines(test),
        "",
        "## Settings",
        "",
        "```yaml",
        settings.to_yaml().rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _score_lines(test: TestScores | None) -> list[str]:
    if test is None:
        return ["No labelled test sample: nothing to report."]
    counted = (
        f"{test.samples} samples of {test.patients} patients; 95 % intervals from "
        f"{test.resamples} resamples of the patients."
    )
    lines = _finding_lines(test) if isinstance(test, LabelSetScores) else _class_lines(test)
    return [counted, "", *lines]


def _class_lines(test: SplitScores) -> list[str]:
    return [
        f"- balanced accuracy {_with_interval(test.balanced_accuracy)}; guessing gives "
        f"{test.chance:.3f}",
        f"- accuracy {_with_interval(test.accuracy)}",
        f"- area under the ROC curve {_with_interval(test.auc)} (mean over classes against rest)",
        f"- macro F1 {test.f1_macro:.3f}",
        f"- calibration error {test.calibration_error:.3f}, Brier score {test.brier:.3f}, "
        f"log loss {test.log_loss:.3f}",
    ]


def _finding_lines(test: LabelSetScores) -> list[str]:
    rows = [
        f"| {item.name} | {item.positives} | {item.positive_patients} "
        f"| {_with_interval(item.auc, absent='–')} "
        f"| {_with_interval(item.average_precision, absent='–')} | {item.prevalence:.3f} "
        f"| {item.brier:.3f} | {item.calibration_error:.3f} |"
        for item in test.findings
    ]
    none = "not defined: no finding is both seen and absent"
    return [
        f"- mean area under the ROC curve {_with_interval(test.mean_auc, absent=none)}, over "
        f"{len(test.scored)} findings; guessing gives {test.chance:.3f}",
        f"- mean average precision {_with_interval(test.mean_average_precision, absent=none)}",
        f"- calibration error {test.calibration_error:.3f}, Brier score {test.brier:.3f}, "
        f"log loss {test.log_loss:.3f}",
        f"- {test.without_finding} samples show no finding",
        "",
        "| finding | samples | patients | area under the ROC curve | average precision "
        "| by guessing | Brier score | calibration error |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        "A dash: the split shows the finding always or never. An interval from 0 to 1: fewer than "
        f"{LEAST_PATIENTS} patients have it, or lack it. Means, the log loss aside, are over the "
        "findings that have an area.",
    ]


def _with_interval(found: Interval | None, absent: str = "not defined with one class") -> str:
    if found is None:
        return absent
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
