"""The whole chain on synthetic patients: scans, data set, classifier, maps, one page.

Every step is the one that the command line offers for real scans. A demo that was interrupted goes
on where it stopped; one that is complete is only reported again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.build import BuildReport, build
from pipelines.config import ExplainConfig, FdgPetConfig, TrainConfig
from pipelines.errors import RunExists
from pipelines.explain import ExplainReport, explain
from pipelines.figures import Estimate
from pipelines.pages import CaseView
from pipelines.progress import Progress, silent
from pipelines.report import Demo, demo_report, gain, pick_cases, verdict
from pipelines.scores import SplitScores
from pipelines.train import TrainReport, train
from pipelines.workers import Workers
from preprocessing.atomic_files import atomic_write
from preprocessing.fdg_pet import Sources
from preprocessing.phantoms import PHANTOMS

MARK = "demo.json"
DEMO_KEY = hashlib.sha256(b"dualwitness demo").digest()
"""Nobody's secret: the patients are synthetic, and a fixed key gives every demo the same splits."""
PAGE = "report.html"
SETTINGS = TrainConfig(
    network="resnet10-narrow",
    variant="exact",
    image_size=256,
    epochs=80,
    batch_size=8,
    learning_rate=3e-3,
)
"""Small enough for two cores; the defaults of ``train`` are for a GPU. A shallow network sees
little around each cell, so that its maps say where and not only whether."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """Where the page is, and its first sentences."""

    page: Path
    verdict: str


@dataclass(slots=True)
class _Clock:
    """Seconds of each step, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start


def run_demo(
    out: Path,
    *,
    subjects: int = 60,
    seed: int = 0,
    workers: int = 1,
    settings: TrainConfig = SETTINGS,
    progress: Progress = silent,
) -> DemoReport:
    """Run the chain into ``out``.

    Raises
    ------
    RunExists
        ``OUTPUT_EXISTS``: the folder holds something else, or a demo with other numbers.
    """
    _claim(out, {"subjects": subjects, "seed": seed, "settings": settings.model_dump(mode="json")})
    clock = _Clock()
    with clock.timing("synthetic scans"):
        _scans(out / "phantoms", subjects=subjects, seed=seed, workers=workers, progress=progress)
    with clock.timing("data set"):
        built = _data(out, workers=workers, progress=progress)
    with clock.timing("training"):
        run = out / "run"
        trained = train(
            settings, data=out / "data", run=run, resume=run.exists(), progress=progress
        )
    with clock.timing("explanations"):
        shutil.rmtree(out / "explanations", ignore_errors=True)
        explained = explain(
            ExplainConfig(), run=run, out=out / "explanations", data=out / "data", progress=progress
        )
    return _report(out, settings, built, trained, explained, clock.seconds, subjects, seed)


def _claim(out: Path, identity: Mapping[str, Any]) -> None:
    mark = out / MARK
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")) != identity:
            raise RunExists(
                "OUTPUT_EXISTS",
                "the output folder holds a demo with other numbers or settings: name another --out",
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunExists(
            "OUTPUT_EXISTS", "the output folder exists and holds no demo: name another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(mark, json.dumps(identity, indent=2).encode("utf-8"))


def _scans(folder: Path, *, subjects: int, seed: int, workers: int, progress: Progress) -> None:
    if (folder / "labels.csv").exists():  # written last
        return
    shutil.rmtree(folder, ignore_errors=True)
    with Workers(workers) as pool:
        PHANTOMS["fdg-pet"](
            folder,
            subjects=subjects,
            seed=seed,
            mapper=pool.map,
            progress=lambda done, total: progress("synthetic scans", done, total),
        )


def _data(out: Path, *, workers: int, progress: Progress) -> BuildReport:
    phantoms = out / "phantoms"
    return build(
        "fdg-pet",
        FdgPetConfig(),
        Sources(
            dicom_dir=phantoms / "dicom",
            labels=phantoms / "labels.csv",
            truth=phantoms / "truth",
        ),
        out=out / "data",
        key=DEMO_KEY,
        workers=workers,
        progress=progress,
    )


def _report(
    out: Path,
    settings: TrainConfig,
    built: BuildReport,
    trained: TrainReport,
    explained: ExplainReport,
    seconds: Mapping[str, float],
    subjects: int,
    seed: int,
) -> DemoReport:
    scores = _estimates(trained.test)
    demo = Demo(
        ran=_ran(settings, built, trained, seconds, subjects, seed),
        intake=_intake_rows(built),
        contact_sheet=next(iter(sorted((out / "data" / "qc").glob("contact*.png")))).read_bytes(),
        training_curves=(out / "run" / "curves.png").read_bytes(),
        scores=scores,
        figures=_figures(out / "run"),
        overlaps=explained.overlaps,
        gallery=_gallery(out / "explanations", explained),
        how=HOW,
    )
    atomic_write(out / PAGE, demo_report(demo, seed=seed).encode("utf-8"))
    measured = [overlap for overlap in explained.overlaps if overlap.measured]
    sentences = verdict(scores[:1], [gain(overlap, seed=seed) for overlap in measured[:1]])
    return DemoReport(page=out / PAGE, verdict=" ".join(sentences))


HOW = (
    (
        "balanced accuracy",
        "mean over classes of the share of their test scans that were named rightly; interval from "
        "resampled patients. The model was chosen on the validation patients only.",
    ),
    (
        "area under the ROC curve",
        "each class against the rest, mean over classes; interval from resampled patients.",
    ),
    (
        "average precision",
        "pixels of the projection ranked by the map, against the projected altered muscle; scans "
        "without altered muscle have none. A uniform map scores the share of altered pixels.",
    ),
)


def _estimates(test: SplitScores | None) -> list[Estimate]:
    if test is None:
        return []
    found = [
        ("balanced accuracy", test.balanced_accuracy, test.chance),
        ("accuracy", test.accuracy, None),
        ("area under the ROC curve", test.auc, 0.5),
    ]
    return [
        Estimate(name=name, value=item.value, low=item.low, high=item.high, chance=chance)
        for name, item, chance in found
        if item is not None
    ]


def _ran(
    settings: TrainConfig,
    built: BuildReport,
    trained: TrainReport,
    seconds: Mapping[str, float],
    subjects: int,
    seed: int,
) -> list[tuple[str, str]]:
    rows = ", ".join(f"{split} {count}" for split, count in built.samples.items())
    return [
        ("scans", f"{subjects} synthetic patients in DICOM, seed {seed}"),
        ("data set", f"SUVbw, coronal projection, {rows} patients never shared between parts"),
        (
            "classifier",
            f"{settings.network}, attention '{settings.variant}', {trained.parameters:,} weights, "
            f"pictures at {settings.image_size} x {settings.image_size}, {trained.epochs} epochs, "
            f"epoch {trained.best['epoch']:.0f} chosen on the validation patients",
        ),
        *((f"seconds for {step}", f"{value:.0f}") for step, value in seconds.items()),
    ]


def _intake_rows(built: BuildReport) -> list[dict[str, str | int | float]]:
    rows: list[dict[str, str | int | float]] = [
        {"files": name, "count": count, "why": ""} for name, count in built.files.items()
    ]
    for code in sorted({item.code for item in built.exclusions}):
        items = [item for item in built.exclusions if item.code == code]
        count = sum(item.files for item in items)
        rows.append({"files": f"excluded: {code}", "count": count, "why": items[0].detail})
    for reason, count in sorted(built.skipped.items()):
        rows.append({"files": f"skipped: {reason}", "count": count, "why": "no candidate"})
    return rows


def _figures(run: Path) -> list[tuple[str, bytes, str]]:
    known = (
        ("confusion.png", "Confusion", "Counts on the test patients; share of each true class."),
        ("roc.png", "ROC", "Each class against the rest, on the test patients."),
        ("calibration.png", "Calibration", "How often the model is right when it says so."),
    )
    return [
        (title, (run / name).read_bytes(), caption)
        for name, title, caption in known
        if (run / name).exists()
    ]


def _gallery(folder: Path, explained: ExplainReport) -> list[tuple[str, CaseView]]:
    """Show the best, the median and the worst case of the first method that was measured."""
    measured = [overlap for overlap in explained.overlaps if overlap.measured]
    if not measured:
        return []
    first = measured[0]
    names = [str(row["sample_id"]) for row in explained.rows if row["method"] == first.method]
    return [
        (f"{title} case by {first.method}", _case(folder, names[index], explained))
        for title, index in pick_cases(first.model).items()
    ]


def _case(folder: Path, name: str, explained: ExplainReport) -> CaseView:
    rows: Sequence[Mapping[str, Any]] = [r for r in explained.rows if r["sample_id"] == name]
    overlays = folder / "overlays"
    images = [("scan", (overlays / f"{name}_scan.png").read_bytes(), "")]
    images += [
        (
            str(row["method"]),
            (overlays / f"{name}_{row['method']}.png").read_bytes(),
            f"average precision {row['average_precision']:.3f}"
            if row["average_precision"] != ""
            else "",
        )
        for row in rows
    ]
    return CaseView(
        sample_id=name,
        label=str(rows[0]["label"]),
        prediction=str(rows[0]["prediction"]),
        probabilities=explained.probabilities[name],
        images=images,
    )
