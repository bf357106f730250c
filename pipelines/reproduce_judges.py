"""How the runs of a reproduction are measured: as ``evaluate`` does, with boxes where there are."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.box_evaluation import BoxSettings, evaluate_boxes
from pipelines.box_gallery import gallery_cases
from pipelines.box_report import BOXES, html_section, verdict, write_box_report
from pipelines.config import EvaluateConfig
from pipelines.evaluate import evaluate
from pipelines.evaluation_appendix import Appendix
from pipelines.evaluation_findings import findings
from pipelines.evaluation_sentences import verdict as verdict_of_maps
from pipelines.progress import Progress, silent
from pipelines.reproduce_groups import Plan

Judge = Callable[..., Sequence[str]]
"""Measures runs, writes the page, and returns its first sentences; called as ``evaluate``."""
BOX_NUMBERS = "boxes"
"""Folder beside the evaluation: numbers of each run, which need not be measured again."""


def judge_of(plan: Plan) -> Judge:
    """Return what measures the runs of a plan."""
    return evaluated if plan.boxes is None else partial(evaluated_with_boxes, boxes=plan.boxes)


def evaluated(config: EvaluateConfig, **where: Any) -> list[str]:
    """Measure runs as ``pipelines.evaluate.evaluate``, and return what the report says first."""
    found = evaluate(config, **where).found
    return verdict_of_maps(found, findings(found))


def evaluated_with_boxes(
    config: EvaluateConfig,
    *,
    boxes: BoxSettings,
    runs: Sequence[Path],
    data: Path,
    out: Path,
    resume: bool = False,
    jobs: int = 1,
    progress: Progress = silent,
) -> list[str]:
    """Measure runs as ``evaluated`` and against boxes, and put both on one page.

    Tables and figures of boxes stand beside the others; what failed is told by the page.

    Raises
    ------
    UsageError, DataError, RunError, RunExists, OutputError
        As ``evaluate`` and ``evaluate_boxes``.
    """
    numbers = out.parent / BOX_NUMBERS
    found = evaluate_boxes(boxes, runs=runs, data=data, out=numbers, jobs=jobs, progress=progress)
    cases = gallery_cases(found, runs, data)
    first = verdict(found)
    appendix = Appendix(
        name=BOXES,
        heading=found.title,
        sentences=first,
        section=html_section(found, cases, with_verdict=False),
    )
    said = evaluated(
        config,
        runs=runs,
        data=data,
        out=out,
        resume=resume,
        jobs=jobs,
        progress=progress,
        appendix=appendix,
    )
    write_box_report(found, out, cases=cases)
    return [*first, *said]
