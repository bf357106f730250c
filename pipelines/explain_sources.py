"""What is explained: rows of a data set, or new scans read as the run's own data set was."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from pipelines.build import derive_examples
from pipelines.config import BuildConfig, ConfigError, DataSummary, RunConfig
from pipelines.errors import DataError, RunError, UsageError
from pipelines.label_sets import FIELD, task_of
from pipelines.progress import Progress, silent
from pipelines.recipes import RECIPES, Recipe
from pipelines.trainable import refuse_misshapen
from preprocessing.fdg_pet import PetCase
from preprocessing.intake_records import SeriesIntake
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Example, Exclusion
from preprocessing.shards import open_dataset


@runtime_checkable
class Scans(Protocol):
    """Rows that can be explained: those of a data set, or of new scans."""

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class of each row, -1 where it has none."""
        ...

    @property
    def sample_ids(self) -> Sequence[str]:
        """Pseudonym of each row."""
        ...

    @property
    def subject_ids(self) -> Sequence[str]:
        """Pseudonym of each row's patient."""
        ...

    @property
    def splits(self) -> Sequence[str]:
        """Split of each row; "new" for a new scan."""
        ...

    @property
    def fields(self) -> Sequence[str]:
        """Names that ``read`` knows."""
        ...

    def read(self, i: int, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Read the named fields of one row."""
        ...

    def __getitem__(self, i: int) -> Example:
        """Return one row with all its fields and its provenance."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NewScans:
    """Examples in memory with the interface of a data set view.

    Attributes
    ----------
    series
        ``sample_id`` -> the DICOM series that the example was derived from; empty where the recipe
        reads no DICOM, or nobody asked.
    """

    examples: tuple[Example, ...] = field(repr=False)
    series: Mapping[str, SeriesIntake] = field(default_factory=dict, repr=False)

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class of each row, -1 where it has none."""
        return np.array([example.label for example in self.examples], dtype=np.int64)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """Pseudonym of each row."""
        return tuple(example.sample_id for example in self.examples)

    @property
    def subject_ids(self) -> tuple[str, ...]:
        """Pseudonym of each row's patient."""
        return tuple(example.subject_id for example in self.examples)

    @property
    def splits(self) -> tuple[str, ...]:
        """They belong to no split."""
        return ("new",) * len(self.examples)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that ``read`` knows."""
        return tuple(self.examples[0].arrays)

    def read(self, i: int, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read the named fields of one row."""
        return {name: self.examples[i].arrays[name] for name in names}

    def __getitem__(self, i: int) -> Example:
        """Return one row with all its fields and its provenance."""
        return self.examples[i]


def from_dataset(data: Path, config: RunConfig, *, split: str) -> Scans:
    """Open a split (or ``all``) of a data set that fits the run.

    Raises
    ------
    ShardError
        The folder is no complete data set.
    DataError
        ``EMPTY_SPLIT``, ``LABEL_SETS``, or ``RUN_DATA_MISMATCH`` where its pictures, its classes
        or the kind of its labels are not the run's.
    """
    dataset = open_dataset(data)
    channels, height, width = dataset.layout["image"].shape
    _refuse_mismatch(config.data, tuple(dataset.classes), (channels, height, width))
    _refuse_other_task(config.data, dataset.fields)
    refuse_misshapen(dataset.layout, dataset.classes)
    view = dataset if split == "all" else dataset.split(split)
    if not len(view):
        raise DataError(
            "EMPTY_SPLIT",
            f"the {split} split has no sample to explain: name another with --split, or all",
        )
    return view


def from_dicom(
    folder: Path,
    config: RunConfig,
    *,
    key: bytes | None,
    with_series: bool = False,
    progress: Progress = silent,
) -> tuple[NewScans, tuple[Exclusion, ...]]:
    """Read new scans with the recipe and the settings that the run's data set was built with.

    Parameters
    ----------
    key
        Pseudonym key; None draws one, so that the pseudonyms cannot be linked to any other.
    with_series
        Keep, beside each example, the series that it came from.

    Raises
    ------
    UsageError
        ``NO_RECIPE``: the run does not say how its data set was built.
    RunError
        ``RUN_CONFIG``: its recipe's settings cannot be used.
    DataError
        ``NOTHING_USABLE``, with the codes of what was refused.
    """
    name = config.data.recipe
    if name not in RECIPES:
        raise UsageError(
            "NO_RECIPE",
            f"the run was trained on the data set '{config.data.name}', which no recipe of this "
            f"toolkit reads (known: {', '.join(RECIPES)}): explain prepared shards with --data",
        )
    recipe = RECIPES[name]
    try:
        settings = recipe.config.of(dict(config.data.recipe_config))
    except ConfigError as error:
        raise RunError("RUN_CONFIG", f"recipe_config of the run is not usable: {error}") from None
    sources = recipe.sources(**{recipe.root: folder})
    key = secrets.token_bytes(32) if key is None else key
    examples, exclusions = derive_examples(name, settings, sources, key=key, progress=progress)
    channels, height, width = examples[0].arrays["image"].shape
    _refuse_mismatch(config.data, recipe.classes, (channels, height, width))
    series = _series(recipe, settings, sources, key) if with_series else {}
    return NewScans(examples=tuple(examples), series=series), tuple(exclusions)


def _series(
    recipe: Recipe, settings: BuildConfig, sources: Any, key: bytes
) -> dict[str, SeriesIntake]:
    """Read the headers once more: an example knows no file, and must not."""
    found = recipe.discover(sources, settings, Pseudonyms(key), map, silent)
    return {case.case_id: case.series for case in found.cases if isinstance(case, PetCase)}


def _refuse_mismatch(
    data: DataSummary, classes: tuple[str, ...], shape: tuple[int, int, int]
) -> None:
    wanted = (data.in_channels, *data.picture_size)
    if shape != wanted:
        raise DataError(
            "RUN_DATA_MISMATCH",
            f"the pictures are {_sizes(shape)} (channels, rows, columns), the run was trained on "
            f"{_sizes(wanted)}: name the data set or the run that belongs to it",
        )
    if classes != data.classes:
        raise DataError(
            "RUN_DATA_MISMATCH",
            f"the classes are {', '.join(classes)}, the run was trained on "
            f"{', '.join(data.classes)}: name the data set or the run that belongs to it",
        )


def _refuse_other_task(data: DataSummary, fields: Sequence[str]) -> None:
    task = task_of(fields)
    if task != data.task:
        raise DataError(
            "RUN_DATA_MISMATCH",
            f"the labels are {task} ('{FIELD}' {'is' if FIELD in fields else 'is not'} among the "
            f"fields), the run was trained on {data.task} ones: name the data set or the run that "
            "belongs to it",
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
