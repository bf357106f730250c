"""Every labelled picture's maps of the true class, explained once and kept for many removals.

Maps are written as importance on their own grids, some pictures to a file, so that what is written
is not explained again. Controls that know nothing of the run, or everything, stand among them.

Axes: b batch, c channel, h row, w column, k class.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from models.errors import unknown
from models.explainers import EXPLAINERS
from models.metrics import edge_map, random_map
from models.networks import Classifier
from models.scoped import evaluating
from pipelines import explain_methods as methods_of
from pipelines.assemble import SPLITS, TrainingData
from pipelines.config import ExplainConfig, RetrainConfig, RunConfig
from pipelines.errors import UsageError
from pipelines.explain_batches import Batch
from pipelines.explain_records import Task
from pipelines.feed import Pictures, normalise
from pipelines.progress import Progress
from pipelines.run_scores import MASK, masks_of
from preprocessing.atomic_files import atomic_write

RANDOM, EDGES, TRUE_MASK = "random", "edges", "true-mask"
PICTURES_IN_FILE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some pictures of one split: as they are prepared, and as the network takes them."""

    split: str
    pictures: Pictures = field(repr=False)
    indices: range
    images: Float[Tensor, "b c h w"] = field(repr=False)
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.images.shape[2], self.images.shape[3]


def _random(part: Part) -> Float[Tensor, "b h w"]:
    """Draw each picture's map by its own place, whatever batch it is in."""
    drawn = []
    for i in part.indices:
        state = np.random.SeedSequence([part.seed, SPLITS.index(part.split), i]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        drawn.append(random_map((1, *part.size), generator=generator))
    return torch.cat(drawn)


def _edges(part: Part) -> Float[Tensor, "b h w"]:
    return edge_map(part.images)


def _true_mask(part: Part) -> Float[Tensor, "b h w"]:
    masks, _ = masks_of(part.pictures, part.indices)
    if masks is None:
        raise UsageError(
            "NO_MASKS",
            f"'{TRUE_MASK}' ranks pixels by the true mask and the data set has no field '{MASK}': "
            "leave it out",
        )
    return masks.float()


CONTROLS: Mapping[str, Callable[[Part], Tensor]] = MappingProxyType(
    {RANDOM: _random, EDGES: _edges, TRUE_MASK: _true_mask}
)
"""Name of a control -> its map of each picture; ``random`` stands in every table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is explained, by what, and where the maps are kept.

    Attributes
    ----------
    methods
        Explainers and controls by name, as they were asked for.
    folder
        ``<map>/<split>-<first picture>.npy`` below it.
    """

    config: RunConfig
    retrain: RetrainConfig
    methods: tuple[str, ...]
    network: Classifier = field(repr=False)
    device: torch.device
    data: TrainingData = field(repr=False)
    folder: Path

    @property
    def controls(self) -> tuple[str, ...]:
        """Return the controls that are asked for, and the random map in any case."""
        return tuple(name for name in CONTROLS if name in self.methods or name == RANDOM)


def refuse_unknown(methods: Sequence[str]) -> None:
    """Refuse a name that is neither an explainer's nor a control's.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``.
    """
    known = (*EXPLAINERS, *CONTROLS, methods_of.ALL)
    for name in methods:
        if name not in known:
            raise UsageError("UNKNOWN_METHOD", unknown("method", name, known))


def write_maps(source: Source, progress: Progress) -> tuple[str, ...]:
    """Explain all labelled pictures, but for those whose maps are there already.

    Returns
    -------
    tuple of str
        Names of the maps: of every method's levels, then of the controls.

    Raises
    ------
    UsageError
        A named method cannot explain the network, or none can; ``NO_MASKS``, ``MAP_NOT_FINITE``.
    MemoryShortError
        A batch does not fit into memory.
    OutputError
        The disk is full.
    """
    fitting = _fitting(source, progress)
    levels = {name: tuple(level.method for level in maps) for name, maps in fitting.first.items()}
    total = sum(len(found) for found in source.data.splits.values())
    done = 0
    for split, found in source.data.splits.items():
        for start in range(0, len(found), PICTURES_IN_FILE):
            indices = range(start, min(start + PICTURES_IN_FILE, len(found)))
            _write_file(source, split, indices, fitting, levels)
            done += len(indices)
            progress("maps", done, total)
    return (*dict.fromkeys(name for names in levels.values() for name in names), *source.controls)


def _fitting(source: Source, progress: Progress) -> methods_of.Fitting:
    named = tuple(name for name in source.methods if name not in CONTROLS)
    if source.methods and not named:
        return methods_of.Fitting(explainers={}, first={})
    asked = methods_of.chosen(ExplainConfig(methods=named, batch_size=source.retrain.batch_size))
    pictures = source.data.splits["train"]
    part = _part(source, "train", range(min(source.retrain.batch_size, len(pictures))))
    return methods_of.fitting(asked, _task(source, part), _batch(source, part), progress)


def _write_file(
    source: Source,
    split: str,
    indices: range,
    fitting: methods_of.Fitting,
    levels: Mapping[str, Sequence[str]],
) -> None:
    """Explain the pictures of one file by the methods of which it is missing, batch by batch."""

    def is_missing(name: str) -> bool:
        return not _file(source.folder, name, split, indices.start).is_file()

    explainers = [name for name, maps in levels.items() if any(map(is_missing, maps))]
    controls = [name for name in source.controls if is_missing(name)]
    if not explainers and not controls:
        return
    found: dict[str, list[Tensor]] = {}
    for batch in _cut(indices, source.retrain.batch_size):
        part = _part(source, split, batch)
        for name, values in _maps(source, part, fitting, explainers, controls):
            found.setdefault(name, []).append(values)
    for name, parts in found.items():
        _write(_file(source.folder, name, split, indices.start), torch.cat(parts), name)


def _maps(
    source: Source,
    part: Part,
    fitting: methods_of.Fitting,
    explainers: Sequence[str],
    controls: Sequence[str],
) -> Iterator[tuple[str, Tensor]]:
    """Yield importance by name: the magnitude where a map is signed."""
    for control in controls:
        yield control, CONTROLS[control](part)
    if not explainers:
        return
    task, batch = _task(source, part), _batch(source, part)
    for name in explainers:
        for level in methods_of.explained(fitting.explainers[name], task, batch):
            yield level.method, (level.values.abs() if level.signed else level.values)


def _write(path: Path, values: Float[Tensor, "b h w"], name: str) -> None:
    importance = values.detach().cpu().float().numpy()
    if not np.isfinite(importance).all():
        raise UsageError(
            "MAP_NOT_FINITE",
            f"a map of '{name}' holds NaN or an infinite value, by which no pixel can be ranked: "
            "leave the method out",
        )
    content = io.BytesIO()
    np.save(content, importance, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, content.getvalue())


def read_maps(folder: Path, name: str, split: str, start: int) -> Float32[np.ndarray, "b h w"]:
    """Read the importance of ``PICTURES_IN_FILE`` pictures (the last file: of fewer)."""
    return np.load(_file(folder, name, split, start), allow_pickle=False)


def _file(folder: Path, name: str, split: str, start: int) -> Path:
    return folder / name / f"{split}-{start:07d}.npy"


def _cut(indices: range, size: int) -> list[range]:
    stop = indices.stop
    return [range(i, min(i + size, stop)) for i in range(indices.start, stop, size)]


def _part(source: Source, split: str, indices: range) -> Part:
    pictures = source.data.splits[split]
    raw = torch.stack([pictures[i] for i in indices]).to(source.device)
    images = normalise(raw, source.config.normalisation)
    return Part(
        split=split,
        pictures=pictures,
        indices=indices,
        images=images,
        seed=source.config.train.seed,
    )


def _batch(source: Source, part: Part) -> Batch:
    with evaluating(source.network), torch.no_grad():
        logits = source.network(part.images).logits
    labels = torch.from_numpy(part.pictures.labels[list(part.indices)].astype(np.int64))
    target = true_targets(labels.to(logits.device), logits)
    return Batch(indices=part.indices, images=part.images, logits=logits, target=target)


def true_targets(
    labels: Int[Tensor, " b"] | Int[Tensor, "b k"], logits: Float[Tensor, "b k"]
) -> Int[Tensor, " b"]:
    """Return the true class; of label sets the most probable true one, or of all without any."""
    if labels.ndim == 1:
        return labels
    shown = labels > 0
    likeliest = logits.masked_fill(~shown, -torch.inf).argmax(dim=1)
    return torch.where(shown.any(dim=1), likeliest, logits.argmax(dim=1))


def _task(source: Source, part: Part) -> Task:
    return Task(
        config=source.config,
        settings=ExplainConfig(target="truth", batch_size=source.retrain.batch_size),
        scans=part.pictures.rows,  # pyright: ignore[reportArgumentType] - a data set view is both
        network=source.network,
        device=source.device,
        out=source.folder,
    )
