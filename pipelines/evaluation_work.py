"""What a unit of an evaluation is, and what it needs at hand: networks, pictures, makers of maps.

Axes: b batch, c channel, h row, w column, k class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from models.inference import InferenceCopy
from models.networks import Classifier
from pipelines import evaluation_files as files
from pipelines import evaluation_measured as measured
from pipelines import run as run_files
from pipelines.assemble import TrainingData, network_of, pick_device
from pipelines.config import EvaluateConfig
from pipelines.evaluation_controls import Known, control_maps, controls_of
from pipelines.evaluation_files import Key, UnitFiles
from pipelines.evaluation_maps import (
    LevelMaps,
    Maker,
    makers_of,
    methods_for,
)
from pipelines.evaluation_records import CONTROL
from pipelines.evaluation_runs import EvaluatedRun
from pipelines.evaluation_samples import (
    NONE,
    Batch,
    Samples,
    regions_of,
    samples_of,
)
from pipelines.feed import normalise
from pipelines.label_sets import probabilities

VERSION = 1
"""Of the measures: another one measures everything anew."""
EVERY_LEVEL = "*"
AnyMaker = Callable[[Any], list[LevelMaps]]
"""What the network sees, or what controls are made of -> maps, finest first."""
WITHOUT_EFFECT_ON_UNITS = frozenset(
    {"against", "batch_size", "resamples", "device", "controls", "synthetic", "robustness"}
)
OF_ROBUSTNESS = frozenset({"robustness", "seed"})
"""Settings that numbers under attack depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is measured in one go, and where it goes.

    Attributes
    ----------
    kind
        The maps of ``run``, controls, which ``run`` only judges, or attacks on ``run``.
    judge
        The run whose network classifies pictures with removed pixels.
    manifest_sha256
        Of the data set.
    """

    kind: Literal["run", "controls", "robustness"]
    run: EvaluatedRun
    judge: EvaluatedRun
    settings: EvaluateConfig
    data: Path
    manifest_sha256: str
    out: Path

    @property
    def model(self) -> str:
        """Name of the model in the files."""
        return CONTROL if self.kind == "controls" else self.run.model

    @property
    def name(self) -> str:
        """Say which one, in words."""
        attacked = " under attack" if self.kind == "robustness" else ""
        return f"{self.model}, seed {self.run.seed}{attacked}"

    @property
    def files(self) -> UnitFiles:
        """Return where its files are."""
        folders = files.OF_ATTACKS if self.kind == "robustness" else files.FOLDERS
        name = files.file_name(self.model, self.run.seed)
        return UnitFiles(out=self.out, name=name, folders=folders)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the numbers depend on."""
        settings = self.settings.model_dump(mode="json", exclude=set(WITHOUT_EFFECT_ON_UNITS))
        if self.kind == "robustness":
            settings = self.settings.model_dump(mode="json", include=set(OF_ROBUSTNESS))
        return files.fingerprint_of(
            {
                "version": VERSION,
                "kind": self.kind,
                "model": self.model,
                "run": self.run.sha256,
                "judge": self.judge.sha256,
                "data": self.manifest_sha256,
                "settings": settings,
            }
        )

    @property
    def facts(self) -> dict[str, Any] | None:
        """What its seal says; None where it is not measured, or not in this way."""
        return self.files.read_seal(self.fingerprint)


def loaded(run: EvaluatedRun, device: torch.device) -> Classifier:
    """Return a run's network with its weights.

    Raises
    ------
    RunError
        ``RUN_ALTERED`` and others, as ``pipelines.run.load_weights``.
    """
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced at once
        network = network_of(run.config)
    run_files.load_weights(run.folder, network)
    return network.to(device).eval()


@dataclass(slots=True, kw_only=True)
class Work:
    """A unit under way.

    Attributes
    ----------
    similar
        Method and level -> index of a picture -> similarity with maps of random weights.
    failed
        Method and level (or every level) -> why it is left out.
    """

    unit: Unit
    samples: Samples
    network: Classifier = field(repr=False)
    judge: measured.Judge = field(repr=False)
    device: torch.device
    makers: Mapping[str, AnyMaker] = field(repr=False)
    similar: dict[Key, dict[int, float]] = field(default_factory=dict, repr=False)
    failed: dict[Key, str] = field(default_factory=dict)
    verdicts: dict[Key, dict[str, int]] = field(default_factory=dict)
    signed: dict[Key, bool] = field(default_factory=dict)

    def is_left_out(self, key: Key) -> bool:
        """Tell whether a map failed before."""
        return key in self.failed or (key[0], EVERY_LEVEL) in self.failed


def work_of(unit: Unit, data: TrainingData) -> Work:
    """Load the networks, and find out what they are asked."""
    settings, device = unit.settings, pick_device(unit.settings.device)
    samples = samples_of(
        data.splits["test"],
        data.summary.classes,
        perturbed=settings.perturbation_samples,
        seed=settings.seed,
    ).resized(unit.run.size)
    network = loaded(unit.run, device)
    same = unit.judge.sha256 == unit.run.sha256
    train = replace(data.splits["train"], size=unit.run.size)
    normalisation = unit.judge.config.normalisation
    judge = measured.Judge(
        network=InferenceCopy(network if same else loaded(unit.judge, device)),
        normalisation=normalisation,
        fills=measured.fillings(settings.fills, train, normalisation, device=device),
        exclusive=samples.exclusive,
        seed=settings.seed,
    )
    makers: Mapping[str, AnyMaker]
    if unit.kind == "controls":
        controls = controls_of(samples, train, seed=settings.seed + unit.run.seed)
        makers = {name: partial(control_maps, name, each) for name, each in controls.items()}
    else:
        methods = methods_for(settings.methods, unit.run.variant, network)
        made = makers_of(methods, network, batch_size=settings.batch_size)
        makers = {name: _explaining(each) for name, each in made.items()}
    return Work(
        unit=unit, samples=samples, network=network, judge=judge, device=device, makers=makers
    )


def _explaining(make: Maker) -> AnyMaker:
    return lambda shown: make(shown.images, shown.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A batch, as the network sees it.

    Attributes
    ----------
    targets
        The class that is explained.
    """

    batch: Batch
    images: Float[Tensor, "b c h w"] = field(repr=False)
    probabilities: Float64[np.ndarray, "b k"] = field(repr=False)
    targets: Int[Tensor, " b"]
    regions: Bool[Tensor, "b h w"] | None = field(repr=False)

    @property
    def known(self) -> Known:
        """What controls are made of."""
        return Known(indices=tuple(self.batch.indices), images=self.images, regions=self.regions)


def shown_to(work: Work, batch: Batch) -> Shown:
    """Prepare a batch, and let the network classify it."""
    images = normalise(batch.raw.to(work.device), work.unit.run.config.normalisation)
    with torch.no_grad():
        parts = images.split(work.unit.settings.batch_size)
        logits = torch.cat([work.network(part).logits for part in parts])
    targets = logits.argmax(dim=1)
    if work.unit.settings.target == "truth":
        truths = torch.from_numpy(work.samples.truths[list(batch.indices)]).to(work.device)
        targets = torch.where(truths > NONE, truths, targets)
    task = work.unit.run.config.data.task
    return Shown(
        batch=batch,
        images=images,
        probabilities=probabilities(logits, task),
        targets=targets,
        regions=regions_of(work.samples, batch.indices) if work.samples.has_regions else None,
    )


def maps_of(work: Work, shown: Shown, method: str) -> list[LevelMaps]:
    """Make the maps of one method, or of one control.

    Raises
    ------
    ModelError
        The method cannot explain the network.
    """
    asked = shown.known if work.unit.kind == "controls" else shown
    return work.makers[method](asked)
