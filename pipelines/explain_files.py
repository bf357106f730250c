"""What explaining leaves in files: maps, volumes in patient space, tables and one page."""

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float32

from models.explainers.verify import WORDS
from pipelines import label_sets, pages
from pipelines import run as run_files
from pipelines.explain_batches import is_number
from pipelines.explain_records import PATIENT_SPACE, Map, Scan, Task, truth_fields
from pipelines.report import Overlap, gain
from pipelines.resampling import resample
from preprocessing import nifti
from preprocessing.atomic_files import atomic_write
from preprocessing.mip import back_project
from preprocessing.records import Exclusion

TABLE, PAGE, VERIFICATION = "explanations.csv", "index.html", "verification.csv"
MAPS, VOLUMES = "maps", "volumes"
INTRO = (
    "The colour shows what the model used, not what is there; a wrong prediction can have a tidy "
    "map. For research; not for diagnosis.",
)
CHECKED_NOTE = (
    "The model's weights are replaced by random ones: a map that stays shows the picture, not the "
    "model. 'Randomised' is the rank correlation with such maps, 'by chance' that with the same "
    "maps flipped and shifted, 'repeated' the change when the map is asked for again."
)


def write(task: Task, scan: Scan, maps: Sequence[Map]) -> list[dict[str, Any]]:
    """Write the maps of one scan, and return its rows of the table."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {found.method: found.values for found in maps}
    np.savez_compressed(stream, **arrays)
    file = f"{MAPS}/{scan.name}.npz"
    atomic_write(task.out / file, stream.getvalue())
    return [_row(task, scan, found, file) for found in maps]


def _row(task: Task, scan: Scan, found: Map, file: str) -> dict[str, Any]:
    shown = scan.prediction if found.target < 0 else found.target
    scores = {name: value if np.isfinite(value) else "" for name, value in found.scores.items()}
    return {
        "sample_id": scan.name,
        "subject_id": task.scans.subject_ids[scan.index],
        "split": task.scans.splits[scan.index],
        "label": label_sets.SEPARATOR.join(scan.truth(task.classes)),
        "prediction": task.classes[scan.prediction],
        "method": found.method,
        "explainer": found.explainer,
        "level": found.level,
        "target": "" if found.target < 0 else task.classes[found.target],
        "probability": round(float(scan.probabilities[shown]), 6),
        "signed": found.signed,
        "verdict": found.word,
        "verdict_reason": found.reason,
        "law": found.law,
        "residual": _residual(found),
        "map": file,
        "volume": _write_volume(task, scan, found),
        **scores,
    }


def _residual(found: Map) -> float | str:
    """Return a number, "" without a law, and a word for what is no number."""
    if found.residual is None or is_number(found.residual):
        return "" if found.residual is None else found.residual
    return "nan" if math.isnan(found.residual) else "infinite"


def has_volume(scan: Scan) -> bool:
    """Tell whether the scan's maps can be carried back into its voxels."""
    return set(PATIENT_SPACE) <= scan.arrays.keys()


def volume_of(scan: Scan, found: Map) -> Float32[np.ndarray, "z y x"]:
    """Carry a map back into the scan's voxels.

    Raises
    ------
    ProjectionError
        The depth does not belong to the volume.
    """
    depth = scan.arrays["depth"]
    values = resample(found.values, *depth.shape)
    z, y, x = (int(side) for side in scan.arrays["volume_shape"])
    return back_project(values, depth.astype(np.int32), (z, y, x))


def _write_volume(task: Task, scan: Scan, found: Map) -> str:
    """Write a map in the scan's voxels; empty where the data set holds no depth."""
    if not task.settings.volumes or not has_volume(scan):
        return ""
    file = f"{VOLUMES}/{scan.name}_{found.method}.nii.gz"
    affine = scan.arrays["volume_affine"].astype(np.float64)
    nifti.save(task.out / file, (volume_of(scan, found), affine))
    return file


def overlaps_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Overlap, ...]:
    """Gather, per map, how well it finds the true region; none without masks."""
    overlaps = []
    for method in dict.fromkeys(str(row["method"]) for row in rows):
        own = [row for row in rows if row["method"] == method]
        if "average_precision" not in own[0]:
            continue
        columns = {
            name: np.array([row[name] if row[name] != "" else np.nan for row in own], np.float64)
            for name in (
                "average_precision",
                "uniform_average_precision",
                "random_average_precision",
            )
        }
        overlap = Overlap(
            method=method,
            subject_ids=tuple(str(row["subject_id"]) for row in own),
            model=columns["average_precision"],
            uniform=columns["uniform_average_precision"],
            random=columns["random_average_precision"],
        )
        overlaps.append(overlap)
    return tuple(overlaps)


def write_predictions(task: Task, probabilities: Mapping[str, Mapping[str, float]]) -> None:
    """Write ``predictions.csv``."""
    rows = []
    for i, (name, found) in enumerate(probabilities.items()):
        row: dict[str, Any] = {
            "sample_id": name,
            "subject_id": task.scans.subject_ids[i],
            "split": task.scans.splits[i],
        }
        rows.append(row | _answers(task, i, found))
    run_files.write_table(task.out / run_files.PREDICTIONS, rows)


def _answers(task: Task, i: int, found: Mapping[str, float]) -> dict[str, str]:
    if truth_fields(task):
        label_set = task.scans.read(i, (label_sets.FIELD,))[label_sets.FIELD]
        return label_sets.columns(label_set, np.array(list(found.values())), task.classes)
    label = int(task.scans.labels[i])
    return {
        "label": task.classes[label] if label >= 0 else "",
        "prediction": max(found, key=found.__getitem__),
        **{f"probability_{kind}": f"{p:.6f}" for kind, p in found.items()},
    }


def write_exclusions(task: Task, exclusions: Sequence[Exclusion]) -> None:
    """Write ``exclusions.csv`` where a scan was refused."""
    if exclusions:
        run_files.write_table(task.out / "exclusions.csv", [asdict(item) for item in exclusions])


def write_verification(task: Task, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``verification.csv`` where methods were checked."""
    if rows:
        run_files.write_table(task.out / VERIFICATION, rows)


def tables_of(
    rows: Sequence[Mapping[str, Any]],
    verification: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, str],
) -> list[pages.Table]:
    """Tables of a page: verdicts of the maps, checks of the methods, what cannot explain the run.

    Parameters
    ----------
    rows
        Those of ``explanations.csv``.
    verification
        Those of ``verification.csv``.
    left_out
        Method -> reason.
    """
    return [
        pages.Table(
            heading="Verdicts",
            rows=[_verdict_row(name, rows) for name in dict.fromkeys(r["method"] for r in rows)],
            note="Each map is held to what its own method promises. The residual is the share by "
            "which it misses that; the middle one and the largest are shown.",
        ),
        pages.Table(
            heading="Does the method explain this model?",
            rows=[_check_row(row) for row in verification],
            note=CHECKED_NOTE,
        ),
        pages.Table(
            heading="Methods that this network cannot be explained by",
            rows=[{"method": name, "reason": reason} for name, reason in left_out.items()],
        ),
    ]


def _verdict_row(name: str, rows: Sequence[Mapping[str, Any]]) -> pages.Row:
    own = [row for row in rows if row["method"] == name]
    counts = Counter(row["verdict"] for row in own)
    residuals = [row["residual"] for row in own if isinstance(row["residual"], float)]
    worst = max(own, key=lambda row: _severity(row["verdict"]))
    return {
        "map": name,
        **{word: counts[word] for word in WORDS},
        "not checked": counts[""],
        "law": str(own[0]["law"]),
        "median residual": f"{np.median(residuals):.2g}" if residuals else "",
        "largest": f"{max(residuals):.2g}" if residuals else "",
        "the worst map's reason": str(worst["verdict_reason"]),
    }


def _severity(word: str) -> int:
    return ("", *WORDS).index(word)


def _check_row(row: Mapping[str, Any]) -> pages.Row:
    return {
        "method": row["method"],
        "verdict": row["verdict"],
        "randomised": row["randomised_similarity"],
        "by chance": row["random_similarity"],
        "repeated": row["repeat_difference"],
        "median residual": row["law_residual"],
        "reason": row["reason"],
    }


def page(
    task: Task,
    cases: Sequence[pages.CaseView],
    overlaps: Sequence[Overlap],
    *,
    notes: Sequence[str],
    tables: Sequence[pages.Table],
    gallery: str,
) -> str:
    """Return ``index.html``; ``gallery`` is the name of the gallery's page, "" without one."""
    settings = task.config.train
    intro = [*INTRO, *_about_target(task)]
    if task.count > len(cases):
        intro.append(
            f"The first {len(cases)} of {task.count} scans are shown here; the pictures of all are "
            "in the folder overlays."
        )
    return pages.explanation_page(
        f"{settings.network} / {settings.variant} on {task.config.data.name}",
        cases=cases,
        summary=[_summary_row(overlap) for overlap in overlaps if overlap.measured],
        intro=[*intro, *notes],
        tables=tables,
        gallery=gallery,
    )


def _about_target(task: Task) -> tuple[str, ...]:
    kind = "predicted" if task.settings.target == "prediction" else "true (where known)"
    return (f"Maps that are tied to a class explain the {kind} class.",)


def _summary_row(overlap: Overlap) -> dict[str, str | int | float]:
    better = gain(overlap)
    measured = np.isfinite(overlap.model)
    return {
        "map": overlap.method,
        "scans with a true region": int(measured.sum()),
        "average precision": float(overlap.model[measured].mean()),
        "uniform map": float(overlap.uniform[measured].mean()),
        "random map": float(overlap.random[measured].mean()),
        "gain over uniform": better.value,
        "95 % from": better.low,
        "to": better.high,
    }
