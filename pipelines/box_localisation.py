"""Maps of trained models against boxes of findings: each map explains the finding that is boxed.

Pictures of the test split pass once per run and attack, batch by batch: all are classified, for the
area under each finding's ROC curve; those with boxes are explained, once for each boxed finding. A
few numbers of each are kept, and no picture and no map.

Axes: b batch, c channel, h row, w column, k class, n case, m measure.

References
----------
Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks", CVPR 2017, section
4.2.
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust optimization",
MICCAI 2019.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from models.errors import unknown
from models.explainers import EXPLAINERS, Explainer
from pipelines.assemble import TrainingData, open_for_training
from pipelines.box_controls import CONTROLS, SMOOTH_GRID, no_finer
from pipelines.box_records import CLEAN, BoxScores
from pipelines.box_scores import scored
from pipelines.box_truth import MeanBoxes, cases_of
from pipelines.box_units import Attack, Measured, Split
from pipelines.errors import DataError, UsageError
from pipelines.evaluation_runs import EvaluatedRun, runs_of
from pipelines.progress import Progress, silent

STANDARD = ("cam", "gradcam", "attention")
"""Explain where no method is named; those that a network cannot take are left out."""
NO_ATTACKS: Mapping[str, Attack] = {}


def box_localisation(
    runs: Path | Sequence[Path],
    data: Path,
    methods: Sequence[str] = (),
    *,
    batch_size: int = 16,
    generator: torch.Generator,
    attacks: Mapping[str, Attack] = NO_ATTACKS,
    resamples: int = 1000,
    progress: Progress = silent,
) -> BoxScores:
    """Measure maps of one or several runs against the boxes of the test split.

    Parameters
    ----------
    runs
        Finished runs on ``data``; those that differ in the seed only are one model.
    methods
        Names in ``EXPLAINERS``; none named: ``STANDARD``, as far as they fit.
    batch_size
        Pictures that a network sees at once; it bounds the memory and changes nothing else.
    generator
        Draws the random maps and the resamples of the patients.
    attacks
        Name of a condition -> what it does to the pictures; each stands beside the clean one.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``, ``NO_METHOD_FITS`` where no model can be explained, or none by a method
        that is named, ``BAD_BATCH_SIZE``, ``BAD_CONDITION``, and as ``trained_on``.
    DataError
        ``NO_BOXES``, ``NO_LABEL_SETS``, ``BAD_BOX``, and as ``open_for_training`` and ``runs_of``.
    RunError
        As ``runs_of``.
    MemoryShortError
        ``OUT_OF_MEMORY``.
    """
    explainers = explainers_of(methods, batch_size)
    if CLEAN in attacks:
        raise UsageError("BAD_CONDITION", "an attack has no name: its rows could not be told apart")
    found = open_for_training(data, image_size=None)
    split = split_of(found, generator)
    trained = trained_on(runs, found)
    measured = Measured(split=split, batch_size=batch_size, attacks=attacks)
    for done, run in enumerate(trained, start=1):
        measured.take_run(run, explainers)
        progress("runs", done, len(trained))
    return completed(found, measured, methods, resamples=resamples)


def trained_on(runs: Path | Sequence[Path], found: TrainingData) -> tuple[EvaluatedRun, ...]:
    """Open finished runs on a data set, grouped into models.

    Raises
    ------
    UsageError
        ``NO_RUNS``, and as ``runs_of``.
    DataError, RunError
        As ``runs_of``.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    if not folders:
        raise UsageError("NO_RUNS", "no run is named: there is no model whose maps to measure")
    return runs_of(folders, found.summary)


def completed(
    found: TrainingData, measured: Measured, methods: Sequence[str], *, resamples: int
) -> BoxScores:
    """Add the controls to what was measured of all runs, and score it.

    Raises
    ------
    UsageError
        ``NO_METHOD_FITS``.
    """
    _refuse_unfit(measured, methods or STANDARD, named=bool(methods))
    for name in CONTROLS:
        measured.take_control(name)
    return scored(found, measured, resamples=resamples)


def explainers_of(methods: Sequence[str], batch_size: int) -> dict[str, Explainer]:
    """Return explainers by name; none named: ``STANDARD``.

    Raises
    ------
    UsageError
        ``BAD_BATCH_SIZE``, ``UNKNOWN_METHOD``.
    """
    if batch_size < 1:
        raise UsageError("BAD_BATCH_SIZE", f"batch_size is {batch_size}; it must be 1 or more")
    for name in methods:
        if name not in EXPLAINERS:
            raise UsageError("UNKNOWN_METHOD", unknown("method", name, EXPLAINERS))
    names = dict.fromkeys(methods or STANDARD)
    return {name: replace(EXPLAINERS[name], batch_size=batch_size) for name in names}


def split_of(found: TrainingData, generator: torch.Generator) -> Split:
    """Read the boxes of the test split.

    Raises
    ------
    DataError
        ``NO_BOXES``, ``NO_LABEL_SETS``, ``BAD_BOX``.
    """
    summary, test = found.summary, found.splits["test"]
    if summary.task != "multi-label":
        raise DataError(
            "NO_LABEL_SETS",
            "pictures of this data set have one class each, and boxes are measured finding by "
            "finding: name a data set whose rows hold label sets",
        )
    cases = cases_of(test, summary.classes)
    if not cases:
        raise DataError(
            "NO_BOXES",
            f"none of the {len(test)} test pictures has a box: there is nothing to hold maps "
            "against; build the data set with the table of boxes",
        )
    training = cases_of(found.splits["train"], summary.classes)
    seeds = torch.randint(2**62, (len(cases) + 1,), generator=generator).tolist()
    return Split(
        test=test,
        classes=summary.classes,
        cases=tuple(cases),
        means=MeanBoxes(
            cases=training or cases,
            frame=summary.picture_size,
            grid=no_finer(SMOOTH_GRID, summary.picture_size),
            leave_out=not training,
        ),
        seeds=tuple(seeds[1:]),
        seed=seeds[0] % 2**32,
    )


def _refuse_unfit(measured: Measured, methods: Sequence[str], *, named: bool) -> None:
    wanted = methods if named else [name for name in methods if name in measured.explained]
    missing = [name for name in wanted if name not in measured.explained]
    if missing or not measured.explained:
        reasons = list(measured.failures.values())
        raise UsageError(
            "NO_METHOD_FITS",
            f"{', '.join(missing) or 'no method'} can explain none of the models: {reasons[0]}; "
            "name another --method",
        )
