"""How each data set is read and derived. A new data set plugs in here: one module and one line.

Workers import this module: it must stay free of torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config import BuildConfig, FdgPetConfig
from pipelines.progress import Progress
from preprocessing import fdg_pet
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Discovery, Example, Mapper
from preprocessing.shards import FieldSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One data set: pure functions from a folder to cases, and from a case to rows of a shard.

    Attributes
    ----------
    name
        As on the command line.
    classes
        Label i means ``classes[i]``.
    config
        The recipe's settings.
    sources
        The dataclass that names the recipe's input folders and tables.
    root
        The field of ``sources`` that holds the scans.
    layout
        Settings and sources to the datasets of a shard row.
    discover
        Sources to cases; every file seen is accounted for.
    derive
        One case to its rows; raises ``PreprocessingError`` where the case cannot be used.
    """

    name: str
    classes: tuple[str, ...]
    config: type[BuildConfig]
    sources: type[Any]
    root: str
    layout: Callable[[Any, Any], Mapping[str, FieldSpec]]
    discover: Callable[[Any, Any, Pseudonyms, Mapper, Progress], Discovery]
    derive: Callable[[Any, Any], tuple[Example, ...]]


def _pet_options(config: FdgPetConfig) -> fdg_pet.Options:
    return fdg_pet.Options(**config.model_dump(exclude=set(BuildConfig.model_fields)))


def _pet_layout(config: FdgPetConfig, sources: fdg_pet.Sources) -> Mapping[str, FieldSpec]:
    return fdg_pet.layout(image_size=config.image_size, with_truth=sources.truth is not None)


def _discover_pet(
    sources: fdg_pet.Sources,
    config: FdgPetConfig,
    pseudonyms: Pseudonyms,
    mapper: Mapper,
    progress: Progress,
) -> Discovery:
    return fdg_pet.discover(
        sources, _pet_options(config), pseudonyms=pseudonyms, mapper=mapper, progress=progress
    )


def _derive_pet(case: fdg_pet.PetCase, config: FdgPetConfig) -> tuple[Example, ...]:
    return fdg_pet.derive(case, _pet_options(config))


RECIPES: Mapping[str, Recipe] = {
    "fdg-pet": Recipe(
        name="fdg-pet",
        classes=fdg_pet.CLASSES,
        config=FdgPetConfig,
        sources=fdg_pet.Sources,
        root="dicom_dir",
        layout=_pet_layout,
        discover=_discover_pet,
        derive=_derive_pet,
    ),
}
"""Name on the command line to recipe."""
