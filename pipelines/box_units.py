"""Runs and controls on the test split, batch by batch: what is kept is a few numbers of each case.

Axes: b batch, c channel, h row, w column, k class, n case or picture, m measure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Num
from torch import Tensor, nn

from models.errors import ModelError
from models.explainers import Explainer
from models.networks import Classifier
from models.records import Attribution
from models.scoped import evaluating
from pipelines.assemble import pick_device, to_device
from pipelines.box_controls import Knowledge, control_maps
from pipelines.box_measures import MEASURES, TrueBoxes, measured
from pipelines.box_records import CLEAN, CONTROL
from pipelines.box_truth import BoxCase, MeanBoxes, Size, box_mask
from pipelines.errors import MemoryShortError, UsageError
from pipelines.evaluation_records import Kind
from pipelines.evaluation_runs import EvaluatedRun
from pipelines.evaluation_work import loaded
from pipelines.feed import EvaluationFeed, Pictures, pictures
from pipelines.label_sets import probabilities
from pipelines.stores import StreamStore

Attack = Callable[
    [nn.Module, Float[Tensor, "b c h w"], Num[Tensor, "b k"]], Float[Tensor, "b c h w"]
]
"""Model, pictures as it sees them, and their labels to pictures that lead it astray."""
OWN_MAPS = frozenset({"attention", "self-attention", "rollout"})
"""Explainers that read what the network attended to, and compute nothing of it."""
NO_SEED = -1
Key = tuple[str, str, str]
"""Model, method with its level, condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The test split with its boxes.

    Attributes
    ----------
    test
        At the size of the shards.
    cases
        Findings of pictures that have boxes, picture by picture.
    means
        Where boxes of a finding lie on the average.
    seeds
        For each case's random map.
    seed
        For the resamples.
    """

    test: Pictures = field(repr=False)
    classes: tuple[str, ...]
    cases: tuple[BoxCase, ...] = field(repr=False)
    means: MeanBoxes = field(repr=False)
    seeds: tuple[int, ...] = field(repr=False)
    seed: int

    def truth(self, cases: Sequence[int], grid: Size) -> TrueBoxes:
        """Draw the true boxes of some cases on one grid over the picture."""
        each = [self.cases[i].boxes for i in cases]
        union = [box_mask(boxes, frame=self.means.frame, grid=grid) for boxes in each]
        single = [box_mask(box[None], frame=self.means.frame, grid=grid) for box in chain(*each)]
        owner = np.repeat(np.arange(len(cases)), [len(boxes) for boxes in each])
        return TrueBoxes(
            union=torch.from_numpy(np.stack(union)),
            single=torch.from_numpy(np.stack(single)),
            owner=torch.from_numpy(owner),
        )

    def of_pictures(self, indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """Numbers of the cases in some pictures, and which of these pictures each is in."""
        places = {index: place for place, index in enumerate(indices)}
        found = [i for i, case in enumerate(self.cases) if case.index in places]
        return found, [places[self.cases[i].index] for i in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pictures under one condition, as a network sees them, on its device."""

    indices: Sequence[int]
    images: Float[Tensor, "b c h w"] = field(repr=False)
    labels: Num[Tensor, "b k"] = field(repr=False)
    condition: str = CLEAN


@dataclass(slots=True, kw_only=True)
class Measured:
    """What was measured so far.

    Attributes
    ----------
    tables
        Whose maps -> seed -> measures of every case.
    shares
        Model and condition -> seed -> probabilities of every picture.
    signed
        Models and methods whose maps have signs.
    explained
        Explainers that fitted some run.
    failures
        Model and method -> why it could not be measured.
    explainers
        Model and method with its level -> explainer that gave the maps.
    """

    split: Split
    batch_size: int
    attacks: Mapping[str, Attack]
    tables: dict[Key, dict[int, Float64[np.ndarray, "n m"]]] = field(default_factory=dict)
    shares: dict[tuple[str, str], dict[int, Float64[np.ndarray, "n k"]]] = field(
        default_factory=dict
    )
    signed: set[tuple[str, str]] = field(default_factory=set)
    explained: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    explainers: dict[tuple[str, str], str] = field(default_factory=dict)

    def explainer(self, model: str, method: str) -> str:
        """Name the explainer that gave a map; "" for a control."""
        return self.explainers.get((model, method), "")

    def kind(self, model: str, method: str) -> Kind:
        """Say whose map it is."""
        if model == CONTROL:
            return "control"
        return "attention" if self.explainer(model, method) in OWN_MAPS else "post-hoc"

    def take_run(self, run: EvaluatedRun, explainers: Mapping[str, Explainer]) -> None:
        """Let one run classify and explain the split, clean and under each attack.

        Raises
        ------
        MemoryShortError
            ``OUT_OF_MEMORY``.
        UsageError
            ``BAD_CONDITION`` where an attack gives something else than pictures.
        RunError
            Weights that are damaged or of another run.
        """
        device = pick_device(run.config.train.device)
        network = loaded(run, device)
        fitting = dict(explainers)
        with evaluating(network):
            for clean in _batches(self.split, run, self.batch_size, device):
                for batch in (clean, *self._attacked(network, clean)):
                    self._classify(run, network, batch)
                    self._explain(run, network, batch, fitting)
        self.explained |= set(fitting)

    def _attacked(self, network: Classifier, clean: Batch) -> Iterator[Batch]:
        for name, attack in self.attacks.items():
            images = attack(network, clean.images, clean.labels).detach()
            if images.shape != clean.images.shape or not bool(images.isfinite().all()):
                raise UsageError(
                    "BAD_CONDITION",
                    f"the attack '{name}' gives pictures of {tuple(images.shape)} for "
                    f"{tuple(clean.images.shape)}, or such that are not finite: nothing can be "
                    "explained; let it return pictures of the same shape",
                )
            yield Batch(indices=clean.indices, images=images, labels=clean.labels, condition=name)

    def _classify(self, run: EvaluatedRun, network: Classifier, batch: Batch) -> None:
        with torch.no_grad():
            logits = network(batch.images).logits
        seeds = self.shares.setdefault((run.model, batch.condition), {})
        shape = len(self.split.test), len(self.split.classes)
        table = seeds.setdefault(run.seed, np.full(shape, np.nan))
        table[list(batch.indices)] = probabilities(logits, "multi-label")

    def _explain(
        self, run: EvaluatedRun, network: Classifier, batch: Batch, fitting: dict[str, Explainer]
    ) -> None:
        """Explain what is boxed; a method that cannot is taken out of ``fitting``."""
        cases, places = self.split.of_pictures(batch.indices)
        if not cases:
            return
        images = batch.images[places]
        target = torch.tensor([self.split.cases[i].finding for i in cases], device=images.device)
        frame, size = self.split.means.frame, (images.shape[2], images.shape[3])
        truth = self.split.truth(cases, (max(frame[0], size[0]), max(frame[1], size[1])))
        for name, explainer in list(fitting.items()):
            try:
                levels = _explained(explainer, network, images, target)
                rows = [measured(_unsigned(level), truth) for level in levels]
            except ModelError as error:
                del fitting[name]
                self._drop(run, name, f"{error.code}: {error}")
                continue
            for level, measures in zip(levels, rows, strict=True):
                self._keep(run, name, level, batch.condition, cases, measures)

    def _keep(
        self,
        run: EvaluatedRun,
        explainer: str,
        level: Attribution,
        condition: str,
        cases: Sequence[int],
        measures: Float64[np.ndarray, "n m"],
    ) -> None:
        key = run.model, level.method
        if level.signed:
            self.signed.add(key)
        self.explainers[key] = explainer
        self._table((*key, condition), run.seed)[list(cases)] = measures

    def _table(self, key: Key, seed: int) -> Float64[np.ndarray, "n m"]:
        blank = np.full((len(self.split.cases), len(MEASURES)), np.nan)
        return self.tables.setdefault(key, {}).setdefault(seed, blank)

    def _drop(self, run: EvaluatedRun, explainer: str, reason: str) -> None:
        """Remember why a method failed, and forget what it gave before: half a split is none."""
        self.failures[f"{run.model} {explainer}, seed {run.seed}"] = reason
        for key in list(self.tables):
            if key[0] == run.model and self.explainers.get(key[:2]) == explainer:
                self.tables[key].pop(run.seed, None)
                if not self.tables[key]:
                    del self.tables[key]

    def take(self, other: "Measured") -> None:
        """Add what was measured of other runs, or of other seeds, on the same split."""
        for key, tables in other.tables.items():
            self.tables.setdefault(key, {}).update(tables)
        for place, shares in other.shares.items():
            self.shares.setdefault(place, {}).update(shares)
        self.signed |= other.signed
        self.explained |= other.explained
        self.failures |= other.failures
        self.explainers |= other.explainers

    def take_control(self, name: str) -> None:
        """Measure maps that no network made."""
        split, frame = self.split, self.split.means.frame
        known = Knowledge(means=split.means, frame=frame, grid=frame, seeds=split.seeds)
        table = self._table((CONTROL, name, CLEAN), NO_SEED)
        for start in range(0, len(split.cases), self.batch_size):
            cases = range(start, min(start + self.batch_size, len(split.cases)))
            maps = control_maps(name, cases, split.cases, known)
            there = maps.isfinite().flatten(1).all(1)
            if bool(there.any()):
                held = [i for i, is_there in zip(cases, there.tolist(), strict=True) if is_there]
                table[held] = measured(maps[there], split.truth(held, frame))


def _batches(
    split: Split, run: EvaluatedRun, batch_size: int, device: torch.device
) -> Iterator[Batch]:
    side = run.config.train.image_size
    size = (side, side) if side else split.test.size
    test = pictures(split.test.rows, size, labelled=True)
    feed = EvaluationFeed(
        StreamStore(test, device=device),
        test.labels,
        measured=run.config.normalisation,
        batch_size=batch_size,
    )
    for batch in feed:
        images, labels = to_device(batch, device, non_blocking=False)
        yield Batch(indices=batch["index"].tolist(), images=images, labels=labels)


def _explained(
    explainer: Explainer,
    network: Classifier,
    images: Float[Tensor, "b c h w"],
    target: Int[Tensor, " b"],
) -> tuple[Attribution, ...]:
    try:
        return explainer(network, images, target)
    except torch.OutOfMemoryError:
        raise MemoryShortError(
            "OUT_OF_MEMORY",
            f"memory ran out while '{explainer.name}' explained {explainer.batch_size} pictures at "
            "once: lower the batch size, the maps stay the same",
        ) from None


def _unsigned(level: Attribution) -> Float[Tensor, "b h w"]:
    values = level.values.detach().float().cpu()
    return values.relu() if level.signed else values
