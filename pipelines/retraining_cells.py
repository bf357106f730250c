"""The networks of a retraining: which they are, and how those of one removal are trained.

Networks that see the same pictures are trained one after the other beside these pictures, which are
written before and removed after: the disk holds one data set per job.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from models.errors import ModelError
from pipelines.assemble import TrainingData, open_for_training
from pipelines.comparison_table import Failure
from pipelines.config import RetrainConfig, RunConfig, TrainConfig
from pipelines.errors import PipelineError, RunError
from pipelines.member_processes import run_all
from pipelines.progress import Progress
from pipelines.retraining_pictures import Recipe, write_pictures
from pipelines.retraining_scores import removals_of
from pipelines.run_scores import is_measured, is_sealed, measure_run
from pipelines.train import train
from preprocessing.atomic_files import disk_errors
from preprocessing.errors import PreprocessingError
from preprocessing.records import Died

MAPS, PICTURES = "maps", "pictures"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What all networks of a retraining have in common.

    Attributes
    ----------
    settings
        The explained run's.
    origin
        Hashes of what the maps are of.
    """

    config: RetrainConfig
    settings: RunConfig
    data: Path
    out: Path
    origin: Mapping[str, str]

    @property
    def seeds(self) -> range:
        """Return the seeds of the networks, the run's own first."""
        first = self.settings.train.seed
        return range(first, first + self.config.seeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The networks that are trained on the same pictures; what a process needs to know of them."""

    recipe: Recipe
    train: TrainConfig
    seeds: tuple[int, ...]
    data: Path
    folder: Path

    @property
    def name(self) -> str:
        """Say which, in words."""
        return self.recipe.removal.name

    def run(self, seed: int) -> Path:
        """Return the folder of one network."""
        return self.folder / f"seed-{seed}"


def cells_of(work: Work, rankings: Sequence[str]) -> list[Cell]:
    """Return what is trained, nothing removed first, then fraction by fraction."""
    return [
        Cell(
            recipe=Recipe(
                removal=removal,
                maps=work.out / MAPS,
                fill=work.settings.normalisation.mean,
                seed=work.settings.train.seed,
                origin=work.origin,
            ),
            train=work.settings.train,
            seeds=tuple(work.seeds),
            data=work.data,
            folder=work.out / removal.name,
        )
        for removal in removals_of(work.config, rankings)
    ]


def train_cells(work: Work, rankings: Sequence[str], progress: Progress) -> list[Failure]:
    """Do what is left to do; finished networks of an earlier call are not loaded again.

    Raises
    ------
    RunError
        ``ALL_RUNS_FAILED``.
    """
    cells = cells_of(work, rankings)
    left = [cell for cell in cells if not all(is_measured(cell.run(seed)) for seed in cell.seeds)]
    failures: list[Failure] = []
    stage = f"{len(left)} retraining{'' if len(left) == 1 else 's'}"
    with closing(
        run_all(retrain_cell, left, jobs=work.config.jobs, stage=stage, progress=progress)
    ) as ended:
        for place, result in ended:
            failures += _died(left[place]) if isinstance(result, Died) else result
    if failures and len(failures) == len(cells) * work.config.seeds:
        first = failures[0]
        raise RunError(
            "ALL_RUNS_FAILED",
            f"none of the {len(failures)} networks ended; the first with {first.code}: "
            f"{first.message}",
        )
    order = {cell.name: place for place, cell in enumerate(cells)}
    return sorted(failures, key=lambda item: (order[item.variant], item.seed))


def _died(cell: Cell) -> list[Failure]:
    left = [seed for seed in cell.seeds if not is_measured(cell.run(seed))]
    message = (
        "its process ended without an answer, most often for want of memory: go on with --resume "
        "and a smaller --jobs"
    )
    return [
        Failure(variant=cell.name, seed=seed, code="PROCESS_DIED", message=message) for seed in left
    ]


def retrain_cell(cell: Cell, progress: Progress) -> list[Failure]:
    """Write the pictures, train and measure a network for each seed, remove the pictures."""
    left = [seed for seed in cell.seeds if not is_measured(cell.run(seed))]
    pictures = cell.folder / PICTURES
    try:
        _remove(pictures)
        source = open_for_training(cell.data, image_size=cell.train.image_size)
        write_pictures(pictures, source, cell.recipe)
        found = open_for_training(pictures, image_size=cell.train.image_size)
        failures: list[Failure] = []
        for place, seed in enumerate(left):
            failures += _network(cell, seed, found, _Share(progress, place, len(left)))
        return failures
    except (PipelineError, PreprocessingError, ModelError) as error:
        return [_failure(cell, seed, error) for seed in left]
    finally:
        _remove(pictures)


def _remove(folder: Path) -> None:
    with disk_errors():
        if folder.exists():
            shutil.rmtree(folder)


def _network(cell: Cell, seed: int, found: TrainingData, progress: Progress) -> list[Failure]:
    run = cell.run(seed)
    try:
        if not is_sealed(run):
            train(
                cell.train.model_copy(update={"seed": seed}),
                data=cell.folder / PICTURES,
                run=run,
                resume=True,
                progress=progress,
            )
        measure_run(run, found)
    except (PipelineError, PreprocessingError, ModelError) as error:
        return [_failure(cell, seed, error)]
    return []


def _failure(cell: Cell, seed: int, error: Exception) -> Failure:
    code = str(getattr(error, "code", type(error).__name__))
    return Failure(variant=cell.name, seed=seed, code=code, message=str(error))


class _Share:
    """Reports one network's training as its share of its cell's."""

    def __init__(self, progress: Progress, place: int, networks: int) -> None:
        self._progress, self._place, self._networks = progress, place, networks

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, self._place * total + done, self._networks * total)
