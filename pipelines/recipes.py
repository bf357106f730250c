"""How each data set is read and derived. A new data set plugs in here: one module and one line.

Workers import this module: it must stay free of torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config import Brats18Config, BuildConfig, ChestXray14Config, FdgPetConfig
from pipelines.progress import Progress
from preprocessing import brats, chestxray, fdg_pet
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Derivation, Discovery, Mapper
from preprocessing.shards import FieldSpec, Layout


def _one_row(case: Any, layout: Layout) -> int:
    return sum(spec.row_bytes for spec in layout.values())


def _no_leak(config: Any) -> str:
    return ""


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
    identifiers
        What tells patients apart in the input.
    advice
        What to do where nothing can be used.
    layout
        Settings and sources to the datasets of a shard row.
    discover
        Sources to cases; every file seen is accounted for.
    derive
        One case to its rows and to notes on what of it was left out; raises ``PreprocessingError``
        where the case cannot be used.
    space
        A case to the bytes that its compressed rows take: rather too many than too few.
    leak
        Settings to the sentence that says how they give the labels away, or to nothing.
    """

    name: str
    classes: tuple[str, ...]
    config: type[BuildConfig]
    sources: type[Any]
    root: str
    identifiers: str
    advice: str
    layout: Callable[[Any, Any], Mapping[str, FieldSpec]]
    discover: Callable[[Any, Any, Pseudonyms, Mapper, Progress], Discovery]
    derive: Callable[[Any, Any], Derivation]
    space: Callable[[Any, Layout], int] = _one_row
    leak: Callable[[Any], str] = _no_leak


def _own(config: BuildConfig) -> dict[str, Any]:
    """Return the settings that are a recipe's own."""
    return config.model_dump(exclude=set(BuildConfig.model_fields))


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
        sources,
        fdg_pet.Options(**_own(config)),
        pseudonyms=pseudonyms,
        mapper=mapper,
        progress=progress,
    )


def _derive_pet(case: fdg_pet.PetCase, config: FdgPetConfig) -> Derivation:
    return fdg_pet.derive(case, fdg_pet.Options(**_own(config)))


def _brats_layout(config: Brats18Config, sources: brats.Sources) -> Mapping[str, FieldSpec]:
    return brats.layout(image_size=config.image_size, dtype=config.dtype)


def _discover_brats(
    sources: brats.Sources,
    config: Brats18Config,
    pseudonyms: Pseudonyms,
    mapper: Mapper,
    progress: Progress,
) -> Discovery:
    return brats.discover(
        sources,
        brats.Options(**_own(config)),
        pseudonyms=pseudonyms,
        mapper=mapper,
        progress=progress,
    )


def _derive_brats(case: brats.BratsCase, config: Brats18Config) -> Derivation:
    return brats.derive(case, brats.Options(**_own(config)))


def _brats_leak(config: Brats18Config) -> str:
    return brats.known_leak(brats.Options(**_own(config)))


def _chest_layout(config: ChestXray14Config, sources: chestxray.Sources) -> Mapping[str, FieldSpec]:
    return chestxray.layout(image_size=config.image_size)


def _discover_chest(
    sources: chestxray.Sources,
    config: ChestXray14Config,
    pseudonyms: Pseudonyms,
    mapper: Mapper,
    progress: Progress,
) -> Discovery:
    return chestxray.discover(
        sources,
        chestxray.Options(**_own(config)),
        pseudonyms=pseudonyms,
        mapper=mapper,
        progress=progress,
    )


def _derive_chest(case: chestxray.ChestCase, config: ChestXray14Config) -> Derivation:
    return chestxray.derive(case, chestxray.Options(**_own(config)))


RECIPES: Mapping[str, Recipe] = {
    "fdg-pet": Recipe(
        name="fdg-pet",
        classes=fdg_pet.CLASSES,
        config=FdgPetConfig,
        sources=fdg_pet.Sources,
        root="dicom_dir",
        identifiers="PatientIDs (0010,0020)",
        advice="`dualwitness inspect DIR` tells what each series lacks",
        layout=_pet_layout,
        discover=_discover_pet,
        derive=_derive_pet,
    ),
    "brats18": Recipe(
        name="brats18",
        classes=brats.CLASSES,
        config=Brats18Config,
        sources=brats.Sources,
        root="root",
        identifiers="case names",
        advice="a case needs <case>_t1, _t1ce, _t2, _flair and _seg as .nii or .nii.gz",
        layout=_brats_layout,
        discover=_discover_brats,
        derive=_derive_brats,
        space=brats.space_bytes,
        leak=_brats_leak,
    ),
    "chestxray14": Recipe(
        name="chestxray14",
        classes=chestxray.CLASSES,
        config=ChestXray14Config,
        sources=chestxray.Sources,
        root="root",
        identifiers="Patient IDs of the table",
        advice="PNG images and the release's Data_Entry_2017*.csv are needed",
        layout=_chest_layout,
        discover=_discover_chest,
        derive=_derive_chest,
    ),
}
"""Name on the command line to recipe."""
