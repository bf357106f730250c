"""What the demo does for each data set: synthetic scans, how they are built and trained on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import (
    Brats18Config,
    BuildConfig,
    ChestXray14Config,
    ExplainConfig,
    FdgPetConfig,
    TrainConfig,
)
from preprocessing import brats, chestxray, fdg_pet
from preprocessing.phantoms.brats18 import Brats18Options

HEADS = Brats18Options(spacing_mm=2.5, matrix=96, slices=62)
"""Coarse heads: a demo shows the chain, not the detail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One data set's demo.

    Attributes
    ----------
    scans, data_set, truth
        For the report: what is synthesised, what is made of it, and what maps are held against.
    written_last
        File of the phantoms whose presence means that they are complete.
    phantoms
        Further arguments of the phantoms' writer.
    build, train, explain
        Settings of the three steps: small enough for two cores.
    sources
        The phantoms' folder to the recipe's sources.
    """

    scans: str
    data_set: str
    truth: str
    written_last: str
    build: BuildConfig
    train: TrainConfig
    sources: Callable[[Path], Any]
    explain: ExplainConfig = field(default_factory=ExplainConfig)
    phantoms: Mapping[str, Any] = field(default_factory=dict)


def _pet_sources(folder: Path) -> fdg_pet.Sources:
    return fdg_pet.Sources(
        dicom_dir=folder / "dicom", labels=folder / "labels.csv", truth=folder / "truth"
    )


def _brats_sources(folder: Path) -> brats.Sources:
    return brats.Sources(root=folder)


def _chest_sources(folder: Path) -> chestxray.Sources:
    return chestxray.Sources(root=folder)


# A shallow network sees little around each cell, so that its maps say where and not only whether.
DEMOS: Mapping[str, Chain] = {
    "fdg-pet": Chain(
        scans="synthetic patients in DICOM",
        data_set="SUVbw, coronal projection",
        truth=(
            "pixels of the projection ranked by the map, against the projected altered muscle; "
            "scans without altered muscle have none. A uniform map scores the share of altered "
            "pixels."
        ),
        written_last="labels.csv",
        build=FdgPetConfig(),
        train=TrainConfig(
            network="resnet18-narrow",
            variant="exact",
            image_size=256,
            epochs=60,
            batch_size=8,
            learning_rate=3e-3,
        ),
        sources=_pet_sources,
    ),
    "brats18": Chain(
        scans="synthetic heads with tumours, in NIfTI under BraTS18's names",
        data_set="hemispheres of axial slices, cut at the brain's own midline",
        truth=(
            "pixels of the hemisphere ranked by the map, against the whole tumour; hemispheres "
            "without tumour have none. A uniform map scores the share of tumour pixels."
        ),
        written_last="truth.json",
        phantoms={"options": HEADS},
        build=Brats18Config(image_size=96, min_tumour_area=240, min_half_area=80),
        train=TrainConfig(
            network="unet-encoder-narrow",
            variant="exact",
            epochs=12,
            batch_size=16,
            learning_rate=3e-3,
        ),
        sources=_brats_sources,
        explain=ExplainConfig(limit=150),
    ),
    "chestxray14": Chain(
        scans="synthetic chest radiographs in the files of ChestX-ray14, with four findings",
        data_set="square radiographs, each labelled with any number of findings, and with boxes",
        truth="there are no masks of findings here, only boxes: nothing is measured.",
        written_last="Data_Entry_2017_v2020.csv",
        phantoms={
            "findings": ("Cardiomegaly", "Effusion", "Mass", "Pneumothorax"),
            "image_size": 512,
        },
        build=ChestXray14Config(image_size=256),
        train=TrainConfig(
            network="resnet18-narrow",
            variant="exact",
            image_size=128,
            epochs=60,
            batch_size=8,
            learning_rate=3e-3,
            balance="loss",
        ),
        sources=_chest_sources,
    ),
}
"""Name on the command line to demo."""
