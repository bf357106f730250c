"""Do a map's pixels tell the classes apart? Networks retrained on pictures without them.

Every labelled picture is explained once. For each map and fraction the pictures lose pixels and are
written as a data set beside the networks that are trained on it, as ordinary runs,
``<map>/<what>-<fraction>/seed-<seed>``; the data set goes when they have ended. Finished runs are
known by their seal and not done again, and one that fails does not take the others with it.
``config.yaml`` is written last: its presence means that the tables are those of all the runs.

References
----------
Hooker, Erhan, Kindermans, Kim, "A benchmark for interpretability methods in deep neural networks",
NeurIPS 2019 (remove and retrain, ROAR).
Shah, Jain, Netrapalli, "Do input gradients highlight discriminative features?", NeurIPS 2021
(DiffROAR).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import retraining_figure, retraining_table
from pipelines import run as run_files
from pipelines.assemble import TrainingData, open_for_training, pick_device
from pipelines.comparison_measures import RunScores, Truth
from pipelines.comparison_scores import MeanScore, score_variants
from pipelines.comparison_table import Failure, title_of
from pipelines.config import RetrainConfig, RetrainingConfig, RunConfig
from pipelines.errors import DataError, RunExists, UsageError
from pipelines.label_permutation import remarks_on_labels
from pipelines.launch import launched
from pipelines.loading import load_network
from pipelines.progress import Progress, silent
from pipelines.retraining_cells import MAPS, Work, cells_of, train_cells
from pipelines.retraining_maps import RANDOM, Source, refuse_unknown, write_maps
from pipelines.retraining_pictures import refuse_too_fine
from pipelines.retraining_scores import (
    MEAN,
    Retraining,
    contrasts_of,
    points_of,
    removals_of,
)
from pipelines.run_scores import read_scores
from pipelines.tabular import spread
from preprocessing.atomic_files import atomic_write
from preprocessing.journal import OutputLock

BEGUN = "retraining.json"
"""Which run, data and protocol the folder belongs to; written first."""
TABLE, PER_RUN = "retraining.csv", "per_run.csv"
PAGE, LATEX = "retraining.md", "retraining.tex"
FIGURES = ("retraining.png", "retraining.svg")
FEW_PATIENTS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainReport:
    """What a retraining found, and what became of its networks."""

    found: Retraining
    networks: tuple[Mapping[str, Any], ...] = field(repr=False)

    @property
    def failed(self) -> int:
        """Networks that did not end."""
        return len(self.found.failures)

    def lines(self) -> list[str]:
        """Say for each map how it scores, then what failed."""
        found = self.found
        width = max(len(name) for name in found.rankings)
        key = MEAN if MEAN in found.keys else found.keys[0]
        what = "mean over the fractions" if key == MEAN else f"at {key:g}"
        lines = [f"{title_of(found.measure)}, {what} ({found.config.protocol}):"]
        for name in found.rankings:
            score = found.points[name].get(key)
            lines.append(f"{name:<{width}}  {spread(score) or 'not all networks ended'}")
        lines += [
            f"{x.variant}, seed {x.seed} failed: {x.code}: {x.message}" for x in found.failures
        ]
        if self.failed:
            lines.append("the same command with --resume tries them again")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return the tables as plain values; what is not defined is an empty text."""
        return {
            "curves": retraining_table.curve_rows(self.found),
            "networks": [dict(row) for row in self.networks],
            "failures": [
                {"network": x.variant, "seed": x.seed, "code": x.code, "message": x.message}
                for x in self.found.failures
            ],
            "notes": list(self.found.notes),
        }


def retrain(
    config: RetrainConfig,
    *,
    run: Path,
    data: Path,
    out: Path,
    methods: Sequence[str] = (),
    resume: bool = False,
    progress: Progress = silent,
) -> RetrainReport:
    """Retrain networks of a run's own settings on pictures that its maps took pixels from.

    They begin at random weights, and their normalisation is measured on the pictures as they then
    are. A random map stands in every table.

    Parameters
    ----------
    run
        Whose maps remove the pixels; its settings train the networks.
    data
        The data set that the run was trained on.
    out
        A new or empty folder; with ``resume``, one that a retraining was begun in. Then methods,
        fractions and seeds may be added, and networks that failed are tried again.
    methods
        Names in ``EXPLAINERS`` or ``retraining_maps.CONTROLS``, or ``all``; none named: attention,
        where the network has any, and gradcam.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``, or a named one that cannot explain the network; ``FRACTION_TOO_FINE``,
        ``FROZEN_TRUNK``, ``RESUME_DIFFERS``, ``RETRAINING_LAUNCHED``, ``NO_MASKS``.
    DataError
        ``RUN_DATA_MISMATCH``, ``EMPTY_SPLIT``.
    RunExists
        The folder holds something already.
    RunError
        The run is incomplete or was altered; ``ALL_RUNS_FAILED``.
    ShardError, OutputError
        The data set is broken; the disk is full, or another process retrains into the folder.
    """
    refuse_unknown(methods)
    settings = run_files.read_config(run)
    network = load_network(run, settings)
    found = _opened(settings, config, data)
    _claim(out, resume=resume)
    with OutputLock(out):
        run_files.clear_parts(out)
        origin = _begin(out, run, settings, config)
        (out / run_files.CONFIG).unlink(missing_ok=True)
        device = pick_device(settings.train.device)
        source = Source(
            config=settings,
            retrain=config,
            methods=tuple(dict.fromkeys(methods)),
            network=network.to(device),
            device=device,
            data=found,
            folder=out / MAPS,
        )
        rankings = write_maps(source, progress)
        work = Work(config=config, settings=settings, data=data, out=out, origin=origin)
        failures = train_cells(work, rankings, progress)
        return _concluded(work, rankings, failures, found, source.methods)


def _opened(settings: RunConfig, config: RetrainConfig, data: Path) -> TrainingData:
    """Open the run's own data set, and refuse what would end in an empty table."""
    if not launched().alone:
        raise UsageError(
            "RETRAINING_LAUNCHED",
            "a retraining was started in several processes that train together: start it without "
            "torchrun and give it --jobs",
        )
    if settings.train.freeze_trunk:
        raise UsageError(
            "FROZEN_TRUNK",
            "the run's trunk is frozen, and retrained networks begin at random weights, which "
            "would never learn: name a run that was trained as a whole (freeze_trunk=false)",
        )
    found = open_for_training(data, image_size=settings.train.image_size)
    if found.summary != settings.data:
        raise DataError(
            "RUN_DATA_MISMATCH",
            "the data set is not the one that the run was trained on, or was rebuilt since; "
            "retrained networks are compared on its patients: name the run's own data set",
        )
    if not len(found.splits["test"]):
        raise DataError(
            "EMPTY_SPLIT",
            "the test split has no labelled sample, and retrained networks are compared on test "
            "patients: build the data set with a larger test_fraction, and train a run on it",
        )
    for removal in removals_of(config, (RANDOM,)):
        refuse_too_fine(removal, found.splits["test"].size)
    return found


def _claim(out: Path, *, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunExists("NOT_A_RETRAINING", "--out names a file: name a new folder")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    held = {name for name in held if not run_files.LEFT_BY_A_KILL.fullmatch(name)}
    if held and not resume:
        raise RunExists(
            "RUN_EXISTS",
            "the folder exists and is not empty: name another --out, or continue the retraining in "
            "it with --resume",
        )
    if held and BEGUN not in held:
        raise RunExists(
            "NOT_A_RETRAINING",
            f"the folder to resume holds no {BEGUN}, so no retraining was begun in it: name the "
            "retraining's own folder",
        )
    out.mkdir(parents=True, exist_ok=True)


def _begin(out: Path, run: Path, settings: RunConfig, config: RetrainConfig) -> dict[str, str]:
    """Write down what the folder belongs to, or refuse to mix it with something else."""
    origin = {
        "encoding-type": "dualwitness-retraining",
        "protocol": config.protocol,
        "run_sha256": run_files.sha256(run / run_files.WEIGHTS),
        "run_config_sha256": run_files.sha256(run / run_files.CONFIG),
        "data_sha256": settings.data.manifest_sha256,
    }
    if not (out / BEGUN).exists():
        run_files.write_json(out / BEGUN, origin)
        return origin
    try:
        before = json.loads((out / BEGUN).read_text(encoding="utf-8"))
        differing = [name for name in origin if before[name] != origin[name]]
    except (ValueError, KeyError, TypeError):
        differing = ["its own record, which is damaged"]
    if differing:
        raise UsageError(
            "RESUME_DIFFERS",
            f"the retraining to resume was begun otherwise ({', '.join(differing)}): name the same "
            "run, data set and protocol, or another --out",
        )
    return origin


def _concluded(
    work: Work,
    rankings: Sequence[str],
    failures: Sequence[Failure],
    found: TrainingData,
    methods: tuple[str, ...],
) -> RetrainReport:
    """Score all networks on the same resamples of the patients, and write what was found."""
    test = found.splits["test"]
    truth = Truth(labels=np.asarray(test.labels).astype(np.int64), subject_ids=test.subject_ids)
    runs = _read(work, rankings, failures, truth)
    resamples = work.settings.train.bootstrap
    scores = score_variants(truth, runs, resamples=resamples, seed=work.settings.train.seed)
    outcome = _outcome(work, rankings, failures, found, scores)
    removals = removals_of(work.config, rankings)
    networks = retraining_table.network_rows(outcome, runs, removals)
    _write(work.out, outcome, networks)
    record = RetrainingConfig(methods=methods, retrain=work.config, explained=work.settings)
    run_files.write_text(work.out / run_files.CONFIG, record.to_yaml())
    return RetrainReport(found=outcome, networks=tuple(networks))


def _read(
    work: Work, rankings: Sequence[str], failures: Sequence[Failure], truth: Truth
) -> list[RunScores]:
    failed = {(item.variant, item.seed) for item in failures}
    return [
        read_scores(cell.run(seed), variant=cell.name, seed=seed, truth=truth)
        for cell in cells_of(work, rankings)
        for seed in cell.seeds
        if (cell.name, seed) not in failed
    ]


def _outcome(
    work: Work,
    rankings: Sequence[str],
    failures: Sequence[Failure],
    found: TrainingData,
    scores: Mapping[str, Mapping[str, MeanScore]],
) -> Retraining:
    test = found.splits["test"]
    several = test.labels.ndim > 1
    measure = "auc" if several else "balanced_accuracy"
    accuracies = {name: each[measure] for name, each in scores.items() if measure in each}
    points = points_of(work.config, rankings, accuracies)
    patients = len(set(test.subject_ids))
    settings = work.settings.train
    return Retraining(
        title=f"{settings.network} / {settings.variant} on {found.summary.name}, retrained",
        config=work.config,
        rankings=tuple(rankings),
        measure=measure,
        accuracies=accuracies,
        points=points,
        contrasts=contrasts_of(work.config, points, measure),
        failures=tuple(failures),
        chance=0.5 if several else 1 / len(np.unique(test.labels)),
        size=test.size,
        samples=len(test),
        patients=patients,
        resamples=settings.bootstrap,
        notes=_notes(work, found, patients),
    )


def _notes(work: Work, found: TrainingData, patients: int) -> tuple[str, ...]:
    rows, columns = found.splits["test"].size
    fill = ", ".join(f"{value:.6g}" for value in work.settings.normalisation.mean)
    notes = [
        f"Pictures of {rows} x {columns} pixels. A removed pixel shows the mean of the training "
        f"pictures in its channel ({fill}; z-scored brains: 0, the mean of the brain), in the "
        "training, the validation and the test split.",
        "Signed maps rank pixels by magnitude. Cells of coarse maps stand for all their pixels; "
        "pixels that tie go in an order drawn once, the same for every picture.",
        f"Networks have the settings of the explained run, {work.config.seeds} seed(s) from "
        f"{work.settings.train.seed} on, and begin at random weights; pixels are normalised by "
        "what remains.",
    ]
    notes += [f"The explained run is {text}." for text in remarks_on_labels(work.settings.train)]
    if patients < FEW_PATIENTS:
        notes.append(
            f"only {patients} test patients: intervals are too narrow rather than too wide"
        )
    return (*notes, *found.remarks)


def _write(out: Path, outcome: Retraining, networks: Sequence[Mapping[str, Any]]) -> None:
    run_files.write_table(out / TABLE, retraining_table.curve_rows(outcome))
    run_files.write_table(out / PER_RUN, networks)
    run_files.write_text(out / PAGE, retraining_table.markdown(outcome))
    run_files.write_text(out / LATEX, retraining_table.latex(outcome))
    drawn = retraining_figure.draw(outcome)
    for name in FIGURES:
        atomic_write(out / name, drawn[name.rpartition(".")[2]])
