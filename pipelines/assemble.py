"""A data set and settings to everything that training and explaining start from."""

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from monai.inferers.inferer import SimpleInferer
from torch import Tensor, nn

from models.errors import ModelError
from models.networks import Classifier, build
from models.records import Prediction
from pipelines.config import DataSummary, RunConfig, TrainConfig
from pipelines.errors import UsageError
from pipelines.feed import Pictures, pictures
from pipelines.label_sets import task_of
from pipelines.trainable import refuse_misshapen, refuse_untrainable, remarks_on
from preprocessing.shards import Dataset, open_dataset

SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """A data set that can be trained on.

    Attributes
    ----------
    splits
        Labelled pictures by split; ``test`` may be empty.
    remarks
        What is unusual about it, for the model card and the console.
    """

    summary: DataSummary
    splits: Mapping[str, Pictures] = field(repr=False)
    remarks: tuple[str, ...]


def open_for_training(data: Path, *, image_size: int | None) -> TrainingData:
    """Open a data set and refuse what cannot be trained on.

    Raises
    ------
    ShardError
        The folder is no complete data set, or of another schema version.
    DataError
        ``BAD_LABELS``, ``LABEL_SETS``, and as ``refuse_untrainable``.
    """
    dataset = open_dataset(data)
    summary = summarise(dataset, data)
    size = (image_size, image_size) if image_size else summary.picture_size
    refuse_misshapen(dataset.layout, summary.classes)
    splits = {name: pictures(dataset.split(name), size, labelled=True) for name in SPLITS}
    labels = np.asarray(dataset.labels)
    refuse_untrainable(splits, labels, summary.classes)
    rows = {name: len(found) for name, found in splits.items()}
    summary = summary.model_copy(update={"rows": rows})
    remarks = remarks_on(splits, labels, summary.classes)
    return TrainingData(summary=summary, splits=splits, remarks=remarks)


def summarise(dataset: Dataset, data: Path) -> DataSummary:
    """Collect what a run keeps about its data set."""
    channels, height, width = dataset.layout["image"].shape
    manifest = data / MANIFEST
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
    return DataSummary(
        name=dataset.name,
        task=task_of(dataset.fields),
        classes=tuple(dataset.classes),
        in_channels=channels,
        picture_size=(height, width),
        recipe=str(dataset.manifest.get("name", "")),
        recipe_config=dict(dataset.manifest.get("config", {})),
        manifest_sha256=digest,
    )


def network_for(settings: TrainConfig, summary: DataSummary) -> Classifier:
    """Build the network with fresh weights from torch's global generator.

    Raises
    ------
    UsageError
        A name or option is unknown, or pictures of this size cannot be gated.
    """
    side = settings.image_size
    size = (side, side) if side else summary.picture_size
    try:
        return build(
            settings.network,
            variant=settings.variant,
            in_channels=summary.in_channels,
            classes=len(summary.classes),
            image_size=size,
            **settings.network_options,
        )
    except ModelError as error:
        raise UsageError(error.code, str(error)) from None


def network_of(config: RunConfig) -> Classifier:
    """Build the network that a run's settings describe; weights are still to be loaded."""
    return network_for(config.train, config.data)


def pick_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a device that is there.

    Raises
    ------
    UsageError
        ``NO_CUDA``.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(
            "NO_CUDA",
            "device 'cuda' was asked for and torch sees none: install a CUDA build of torch and "
            "its driver, or set device=cpu",
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


HALVES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bfloat16": torch.bfloat16, "float16": torch.float16}
)


class Forward(SimpleInferer):
    """Run the network, under the autocast that the precision asks for."""

    def __init__(self, device: torch.device, precision: str) -> None:
        super().__init__()
        if precision == "auto" and device.type == "cuda":
            precision = "bfloat16"
        self._device, self._half = device.type, HALVES.get(precision)

    def __call__(self, inputs: Tensor, network: nn.Module) -> Prediction:  # pyright: ignore[reportIncompatibleMethodOverride] - the engines pass no more
        """Predict a batch."""
        with self._autocast():
            return network(inputs)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._half is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._half)


def to_device(
    batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool
) -> tuple[Tensor, Tensor]:
    """Hand a batch to MONAI's engines, channels last as the convolutions like it."""
    image = batch["image"].to(device, non_blocking=non_blocking, memory_format=torch.channels_last)
    return image, batch["label"].to(device, non_blocking=non_blocking)
