"""What explaining leaves: maps, overlays, volumes in patient space, tables and one page."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64

from models.networks import Classifier
from pipelines import figures, pages
from pipelines import run as run_files
from pipelines.config import ExplainConfig, RunConfig
from pipelines.explain_sources import Scans
from pipelines.report import Overlap, gain
from pipelines.resampling import resample
from preprocessing import nifti
from preprocessing.atomic_files import atomic_write
from preprocessing.mip import back_project
from preprocessing.records import Exclusion

TABLE, PAGE = "explanations.csv", "index.html"
MAPS, OVERLAYS, VOLUMES = "maps", "overlays", "volumes"
PATIENT_SPACE = ("depth", "volume_affine", "volume_shape")
INTRO = (
    "The colour shows what the model used, not what is there; a wrong prediction can have a tidy "
    "map. For research; not for diagnosis.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What stays the same from the first to the last scan."""

    config: RunConfig
    settings: ExplainConfig
    scans: Scans = field(repr=False)
    network: Classifier = field(repr=False)
    device: torch.device
    out: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.config.data.classes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One scan with the fields that its explanation is drawn with."""

    name: str
    index: int
    label: int
    probabilities: Float64[np.ndarray, " k"]
    arrays: Mapping[str, np.ndarray] = field(repr=False)

    @property
    def prediction(self) -> int:
        """Return the most probable class."""
        return int(self.probabilities.argmax())


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """One map of one scan."""

    method: str
    target: int
    signed: bool
    values: Float32[np.ndarray, "h w"]
    scores: Mapping[str, float]


def _background(task: Task, scan: Scan) -> tuple[Float[np.ndarray, "row column"], str]:
    """Return the projection and its unit; else the last channel (FLAIR, of brains) as it is."""
    if "suv" in scan.arrays:
        paper = task.config.data.recipe_config.get("suv_formula") == "paper"
        return scan.arrays["suv"].astype(np.float32), "paper" if paper else "SUV"
    channel = scan.arrays["image"][-1].astype(np.float32)
    low, high = float(channel.min()), float(channel.max())
    # Air is black in a radiograph and in magnetic resonance: the figure inverts.
    return figures.SUV_BLACK * (1 - (channel - low) / max(high - low, 1e-6)), ""


def _extent_mm(task: Task, scan: Scan) -> tuple[float, float] | None:
    if not {"volume_affine", "volume_shape"} <= scan.arrays.keys():
        return None
    return figures.picture_extent_mm(
        scan.arrays["volume_affine"],
        scan.arrays["volume_shape"],
        keep_aspect=bool(task.config.data.recipe_config.get("keep_aspect", False)),
    )


def draw(task: Task, scan: Scan, maps: Sequence[Map]) -> list[tuple[str, bytes, str]]:
    """Draw the scan alone and each map over it, and write them as PNG."""
    if not task.settings.overlays:
        return []
    (suv, unit), extent = _background(task, scan), _extent_mm(task, scan)
    mask = scan.arrays.get("mask")
    mask = mask if mask is not None and mask.any() else None
    images = [("scan", figures.overlay(suv, mask=mask, unit=unit, extent_mm=extent), "")]
    for found in maps:
        caption = _caption(task, found)
        png = figures.overlay(
            suv,
            found.values,
            mask=mask,
            unit=unit,
            extent_mm=extent,
            signed=found.signed,
            title=found.method,
        )
        images.append((found.method, png, caption))
    for name, png, _ in images:
        atomic_write(task.out / OVERLAYS / f"{scan.name}_{name}.png", png)
    return images


def _caption(task: Task, found: Map) -> str:
    about = "not tied to a class" if found.target < 0 else f"for '{task.classes[found.target]}'"
    precision = found.scores.get("average_precision", float("nan"))
    if not np.isfinite(precision):
        return about
    uniform = found.scores["uniform_average_precision"]
    return f"{about}; average precision {precision:.3f} (a uniform map: {uniform:.3f})"


def write(task: Task, scan: Scan, maps: Sequence[Map]) -> list[dict[str, Any]]:
    """Write the maps of one scan, and return its rows of the table."""
    stream = io.BytesIO()
    arrays: dict[str, Any] = {found.method: found.values for found in maps}
    np.savez_compressed(stream, **arrays)
    file = f"{MAPS}/{scan.name}.npz"
    atomic_write(task.out / file, stream.getvalue())
    return [_row(task, scan, found, file) for found in maps]


def _row(task: Task, scan: Scan, found: Map, file: str) -> dict[str, Any]:
    method, _, level = found.method.partition("-")
    shown = scan.prediction if found.target < 0 else found.target
    scores = {name: value if np.isfinite(value) else "" for name, value in found.scores.items()}
    return {
        "sample_id": scan.name,
        "subject_id": task.scans.subject_ids[scan.index],
        "split": task.scans.splits[scan.index],
        "label": task.classes[scan.label] if scan.label >= 0 else "",
        "prediction": task.classes[scan.prediction],
        "method": found.method,
        "explainer": method,
        "level": level,
        "target": "" if found.target < 0 else task.classes[found.target],
        "probability": round(float(scan.probabilities[shown]), 6),
        "map": file,
        "volume": _write_volume(task, scan, found),
        **scores,
    }


def _write_volume(task: Task, scan: Scan, found: Map) -> str:
    """Carry a map back into the scan's voxels; empty where the data set holds no depth."""
    if not task.settings.volumes or not set(PATIENT_SPACE) <= scan.arrays.keys():
        return ""
    depth = scan.arrays["depth"]
    values = resample(found.values, *depth.shape)
    z, y, x = (int(side) for side in scan.arrays["volume_shape"])
    voxels = back_project(values, depth.astype(np.int32), (z, y, x))
    file = f"{VOLUMES}/{scan.name}_{found.method}.nii.gz"
    nifti.save(task.out / file, (voxels, scan.arrays["volume_affine"].astype(np.float64)))
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


def case_view(task: Task, scan: Scan, images: Sequence[tuple[str, bytes, str]]) -> pages.CaseView:
    """Show one scan with its class, its pictures and what its reading warned of."""
    provenance = task.scans[scan.index].provenance
    notes = [f"SUV route: {provenance['suv_route']}"] if provenance.get("suv_route") else []
    if provenance.get("warnings"):
        notes.append(f"Warnings: {provenance['warnings']}")
    named = zip(task.classes, scan.probabilities, strict=True)
    return pages.CaseView(
        sample_id=scan.name,
        label=task.classes[scan.label] if scan.label >= 0 else "",
        prediction=task.classes[scan.prediction],
        probabilities={name: float(value) for name, value in named},
        images=images,
        notes=notes,
    )


def write_predictions(task: Task, probabilities: Mapping[str, Mapping[str, float]]) -> None:
    """Write ``predictions.csv``."""
    rows = []
    for i, (name, found) in enumerate(probabilities.items()):
        label = int(task.scans.labels[i])
        row: dict[str, Any] = {
            "sample_id": name,
            "subject_id": task.scans.subject_ids[i],
            "split": task.scans.splits[i],
            "label": task.classes[label] if label >= 0 else "",
            "prediction": max(found, key=found.__getitem__),
        }
        rows.append(row | {f"probability_{kind}": f"{p:.6f}" for kind, p in found.items()})
    run_files.write_table(task.out / run_files.PREDICTIONS, rows)


def write_exclusions(task: Task, exclusions: Sequence[Exclusion]) -> None:
    """Write ``exclusions.csv`` where a scan was refused."""
    if exclusions:
        run_files.write_table(task.out / "exclusions.csv", [asdict(item) for item in exclusions])


def page(
    task: Task,
    cases: Sequence[pages.CaseView],
    overlaps: Sequence[Overlap],
    exclusions: Sequence[Exclusion],
    total: int,
) -> str:
    """Return ``index.html``."""
    intro: list[str] = list(INTRO)
    if total > len(cases):
        intro.append(
            f"The first {len(cases)} of {total} scans are shown here; the pictures of all are in "
            f"the folder {OVERLAYS}."
        )
    intro += [f"Refused, {item.code}: {item.detail}" for item in exclusions]
    settings = task.config.train
    title = f"{settings.network} / {settings.variant} on {task.config.data.name}"
    summary = [_summary_row(overlap) for overlap in overlaps if overlap.measured]
    return pages.explanation_page(title, cases=cases, summary=summary, intro=intro)


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
