"""What a run leaves for people: predictions, scores, plots, the model card."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipelines import figures
from pipelines import run as run_files
from pipelines.config import RunConfig
from pipelines.feed import Pictures
from pipelines.scores import Interval, SplitScores, score_split
from preprocessing.atomic_files import atomic_write


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One split and what the best model says about it."""

    split: str
    pictures: Pictures
    probabilities: Float[np.ndarray, "n k"]


def write_predictions(run: Path, predicted: Sequence[Predicted], classes: Sequence[str]) -> None:
    """Write ``predictions.csv``: one row per sample, its patient, and every class's probability."""
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
                "label": classes[int(label)],
                "prediction": classes[int(probabilities.argmax())],
            }
            named = zip(classes, probabilities, strict=True)
            rows.append(row | {f"probability_{name}": f"{value:.6f}" for name, value in named})
    run_files.write_table(run / run_files.PREDICTIONS, rows)


def score_test(run: Path, test: Predicted, config: RunConfig) -> SplitScores:
    """Score the test split and write ``test_scores.json`` and its plots."""
    classes = config.data.classes
    labels = test.pictures.labels
    found = score_split(
        labels,
        test.probabilities,
        test.pictures.subject_ids,
        classes=classes,
        resamples=config.train.bootstrap,
        seed=config.train.seed,
    )
    run_files.write_json(run / run_files.SCORES, found.as_json())
    counts = np.asarray(found.confusion)
    atomic_write(run / "confusion.png", figures.confusion(counts, classes))
    atomic_write(run / "calibration.png", figures.calibration(labels, test.probabilities))
    if found.auc is not None:
        atomic_write(run / "roc.png", figures.roc(labels, test.probabilities, classes))
    return found


def draw_curves(
    run: Path, history: Sequence[Mapping[str, float]], *, best_epoch: int, classes: int
) -> None:
    """Draw ``curves.png`` from ``metrics.csv``, without durations: they never repeat."""
    rows = [{name: row[name] for name in row if name != "seconds"} for row in history]
    picture = figures.curves(rows, best_epoch=best_epoch, chance=1 / classes)
    atomic_write(run / "curves.png", picture)


def tabulate(history: Sequence[Mapping[str, float]]) -> list[dict[str, float | str]]:
    """Give every row the same columns; what was not measured is empty."""
    names = list(dict.fromkeys(name for row in history for name in row))
    return [{name: _cell(row.get(name)) for name in names} for row in history]


def _cell(value: float | None) -> float | str:
    return "" if value is None or math.isnan(value) else value


def model_card(
    config: RunConfig,
    *,
    parameters: int,
    best: Mapping[str, float],
    test: SplitScores | None,
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
        f"- classes: {', '.join(data.classes)}",
        f"- weights chosen at epoch {best['epoch']:.0f} by the loss on the validation "
        f"split ({best['loss']:.3f}, balanced accuracy there {best['balanced_accuracy']:.3f}); the "
        "test split took no part in any choice",
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


def _score_lines(test: SplitScores | None) -> list[str]:
    if test is None:
        return ["No labelled test sample: nothing to report."]
    return [
        f"{test.samples} samples of {test.patients} patients; 95 % intervals from "
        f"{test.resamples} resamples of the patients.",
        "",
        f"- balanced accuracy {_with_interval(test.balanced_accuracy)}; guessing gives "
        f"{test.chance:.3f}",
        f"- accuracy {_with_interval(test.accuracy)}",
        f"- area under the ROC curve {_with_interval(test.auc)} (mean over classes against rest)",
        f"- macro F1 {test.f1_macro:.3f}",
        f"- calibration error {test.calibration_error:.3f}, Brier score {test.brier:.3f}, "
        f"log loss {test.log_loss:.3f}",
    ]


def _with_interval(found: Interval | None) -> str:
    if found is None:
        return "not defined with one class"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
