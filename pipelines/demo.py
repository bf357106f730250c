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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from pipelines import run as run_files
from pipelines.build import BuildReport, build
from pipelines.config import TrainConfig
from pipelines.demo_chains import DEMOS, Chain
from pipelines.errors import RunExists, UsageError
from pipelines.explain import explain
from pipelines.explain_pictures import verdict_line
from pipelines.explain_report import ExplainReport
from pipelines.figures import Estimate
from pipelines.label_sets import SEPARATOR
from pipelines.outcome import TestScores
from pipelines.pages import CaseView
from pipelines.progress import Progress, silent
from pipelines.report import Demo, demo_report, gain, pick_cases, verdict
from pipelines.train import TrainReport, train
from pipelines.workers import Workers
from preprocessing.atomic_files import atomic_write
from preprocessing.phantoms import PHANTOMS

MARK = "demo.json"
DEMO_KEY = hashlib.sha256(b"dualwitness demo").digest()
"""Nobody's secret: the patients are synthetic, and a fixed key gives every demo the same splits."""
PAGE = "report.html"


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
    dataset: str = "fdg-pet",
    subjects: int = 60,
    seed: int = 0,
    workers: int = 1,
    settings: TrainConfig | None = None,
    progress: Progress = silent,
) -> DemoReport:
    """Run the chain of a data set into ``out``.

    Parameters
    ----------
    dataset
        A name in ``DEMOS``.
    settings
        Of the training, in place of the demo's own.

    Raises
    ------
    UsageError
        ``DATASET``: there is no such demo.
    RunExists
        ``OUTPUT_EXISTS``: the folder holds something else, or a demo with other numbers.
    """
    if dataset not in DEMOS:
        raise UsageError(
            "DATASET", f"--dataset {dataset!r} has no demo: choose from {', '.join(DEMOS)}"
        )
    chain = DEMOS[dataset]
    chain = chain if settings is None else replace(chain, train=settings)
    demo = _Task(out=out, name=dataset, chain=chain, subjects=subjects, seed=seed, workers=workers)
    _claim(demo)
    clock = _Clock()
    with clock.timing("synthetic scans"):
        _scans(demo, progress)
    with clock.timing("data set"):
        built = _data(demo, progress)
    with clock.timing("training"):
        run = out / "run"
        trained = train(
            chain.train, data=out / "data", run=run, resume=run.exists(), progress=progress
        )
    with clock.timing("explanations"):
        shutil.rmtree(out / "explanations", ignore_errors=True)
        explained = explain(
            chain.explain, run=run, out=out / "explanations", data=out / "data", progress=progress
        )
    return _report(demo, built, trained, explained, clock.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One demo to be run."""

    out: Path
    name: str
    chain: Chain
    subjects: int
    seed: int
    workers: int

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "dataset": self.name,
            "subjects": self.subjects,
            "seed": self.seed,
            "settings": self.chain.train.model_dump(mode="json"),
        }


def _claim(demo: _Task) -> None:
    out, identity = demo.out, demo.identity
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


def _scans(demo: _Task, progress: Progress) -> None:
    folder = demo.out / "phantoms"
    if (folder / demo.chain.written_last).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    with Workers(demo.workers) as pool:
        PHANTOMS[demo.name](
            folder,
            subjects=demo.subjects,
            seed=demo.seed,
            mapper=pool.map,
            progress=lambda done, total: progress("synthetic scans", done, total),
            **demo.chain.phantoms,
        )


def _data(demo: _Task, progress: Progress) -> BuildReport:
    return build(
        demo.name,
        demo.chain.build,
        demo.chain.sources(demo.out / "phantoms"),
        out=demo.out / "data",
        key=DEMO_KEY,
        workers=demo.workers,
        progress=progress,
    )


def _report(
    demo: _Task,
    built: BuildReport,
    trained: TrainReport,
    explained: ExplainReport,
    seconds: Mapping[str, float],
) -> DemoReport:
    out, seed = demo.out, demo.seed
    scores = _estimates(trained.test)
    task = run_files.read_config(out / "run").data.task
    page = Demo(
        ran=_ran(demo, built, trained, seconds),
        intake=_intake_rows(built),
        contact_sheet=next(iter(sorted((out / "data" / "qc").glob("contact*.png")))).read_bytes(),
        training_curves=(out / "run" / "curves.png").read_bytes(),
        scores=scores,
        figures=_figures(out / "run", task),
        overlaps=explained.overlaps,
        gallery=_gallery(out / "explanations", explained, task),
        chosen_by=CHOSEN_BY[any(overlap.measured for overlap in explained.overlaps)],
        how=(*HOW[task], ("average precision of maps", demo.chain.truth)),
    )
    atomic_write(out / PAGE, demo_report(page, seed=seed).encode("utf-8"))
    measured = [overlap for overlap in explained.overlaps if overlap.measured]
    sentences = verdict(scores[:1], [gain(overlap, seed=seed) for overlap in measured[:1]])
    return DemoReport(page=out / PAGE, verdict=" ".join(sentences))


HOW: Mapping[str, tuple[tuple[str, str], ...]] = {
    "multi-class": (
        (
            "balanced accuracy",
            "mean over classes of the share of their test scans that were named rightly; interval "
            "from resampled patients. The model was chosen on the validation patients only.",
        ),
        (
            "area under the ROC curve",
            "each class against the rest, mean over classes; interval from resampled patients.",
        ),
    ),
    "multi-label": (
        (
            "area for a finding",
            "under its ROC curve: pictures that show it against all others, whatever else they "
            "show; the mean is over the findings. Intervals from resampled patients. The model was "
            "chosen on the validation patients only.",
        ),
        (
            "mean average precision",
            "of the pictures ranked by a finding's probability, mean over findings; guessing gives "
            "the share of pictures that show it.",
        ),
    ),
}


def _estimates(test: TestScores | None) -> list[Estimate]:
    return [
        Estimate(name=name, value=item.value, low=item.low, high=item.high, chance=chance)
        for name, item, chance in (test.estimates() if test is not None else [])
    ]


def _ran(
    demo: _Task, built: BuildReport, trained: TrainReport, seconds: Mapping[str, float]
) -> list[tuple[str, str]]:
    rows = ", ".join(f"{split} {count}" for split, count in built.samples.items())
    settings = demo.chain.train
    size = settings.image_size
    pictures = "pictures as stored" if size is None else f"pictures at {size} x {size}"
    return [
        ("scans", f"{demo.subjects} {demo.chain.scans}, seed {demo.seed}"),
        ("data set", f"{demo.chain.data_set}: {rows} pictures, patients never shared"),
        *(("note", remark) for remark in built.remarks),
        (
            "classifier",
            f"{settings.network}, attention '{settings.variant}', {trained.parameters:,} weights, "
            f"{pictures}, {trained.epochs} epochs, "
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


FIGURES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "multi-class": (
        ("confusion.png", "Confusion", "Counts on the test patients; share of each true class."),
        ("roc.png", "ROC", "Each class against the rest, on the test patients."),
        ("calibration.png", "Calibration", "How often the model is right when it says so."),
    ),
    "multi-label": (
        ("roc.png", "ROC", "Each finding on the test patients; the others in grey."),
        ("calibration.png", "Calibration", "How often a finding is there when the model says so."),
    ),
}
"""File, title and caption."""


def _figures(run: Path, task: str) -> list[tuple[str, bytes, str]]:
    return [
        (title, (run / name).read_bytes(), caption)
        for name, title, caption in FIGURES[task]
        if (run / name).exists()
    ]


CHOSEN_BY = {
    True: "the average precision of the first method's map",
    False: "the probability of the true class, of several the highest",
}
"""Whether a map was measured, to what the cases are chosen by."""


def _gallery(folder: Path, explained: ExplainReport, task: str) -> list[tuple[str, CaseView]]:
    """Show the best, the median and the worst case of the first method that was measured."""
    measured = [overlap for overlap in explained.overlaps if overlap.measured]
    method = measured[0].method if measured else str(explained.rows[0]["method"])
    rows = [row for row in explained.rows if row["method"] == method]
    values = measured[0].model if measured else _certainties(rows, explained)
    by = f" by {method}" if measured else ""
    return [
        (f"{title} case{by}", _case(folder, str(rows[index]["sample_id"]), explained, task))
        for title, index in pick_cases(values).items()
    ]


def _certainties(
    rows: Sequence[Mapping[str, Any]], explained: ExplainReport
) -> Float64[np.ndarray, " n"]:
    """Probability of the true class, the highest of several; NaN without one."""
    found = [
        [explained.probabilities[str(row["sample_id"])][name] for name in _names(row)]
        for row in rows
    ]
    return np.array([max(values, default=np.nan) for values in found])


def _names(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(filter(None, str(row["label"]).split(SEPARATOR)))


def _about(row: Mapping[str, Any]) -> str:
    about = f"for '{row['target']}'" if row["target"] else "not tied to a class"
    if row.get("average_precision", "") != "":
        about = f"average precision {row['average_precision']:.3f}"
    return f"{about}. {verdict_line(str(row['verdict']), str(row['verdict_reason']))}"


def _case(folder: Path, name: str, explained: ExplainReport, task: str) -> CaseView:
    rows: Sequence[Mapping[str, Any]] = [r for r in explained.rows if r["sample_id"] == name]
    overlays = folder / "overlays"
    images = [("scan", (overlays / f"{name}_scan.png").read_bytes(), "")]
    images += [
        (
            str(row["method"]),
            (overlays / f"{name}_{row['method']}.png").read_bytes(),
            _about(row),
        )
        for row in rows
    ]
    return CaseView(
        sample_id=name,
        label=", ".join(_names(rows[0])),
        prediction=str(rows[0]["prediction"]),
        findings=_names(rows[0]) if task == "multi-label" else None,
        probabilities=explained.probabilities[name],
        images=images,
    )
