"""Pictures from which a map has removed pixels, as a data set that training reads like any other.

They are stored as the network takes them but for normalisation: resampled, and as z-scores where
the data set asks for them. Every removed pixel shows the mean of the training pictures in its
channel. All three splits lose pixels alike, so that a network meets what it was trained on.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from models.metrics import perturbed
from models.metrics.perturbation import Order
from pipelines.assemble import TrainingData
from pipelines.errors import UsageError
from pipelines.feed import Pictures
from pipelines.label_sets import FIELD as LABEL_SETS
from pipelines.retraining_maps import PICTURES_IN_FILE, read_maps
from preprocessing.records import Example
from preprocessing.shards import (
    FieldSpec,
    Layout,
    ShardRecord,
    write_case,
    write_manifest,
    write_shard,
)

FILES_IN_SHARD = 4
NOTHING = "nothing"
What = Literal["nothing", "removed", "top", "bottom"]
PARTS: Mapping[str, tuple[What, ...]] = MappingProxyType(
    {"roar": ("removed",), "diffroar": ("top", "bottom")}
)
"""Protocol -> what becomes of the pictures at each fraction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Which pixels are removed from every picture.

    Attributes
    ----------
    ranking
        Name of the map that ranks them; "" where nothing is removed.
    what
        ``removed``: the fraction of greatest importance is. ``top``, ``bottom``: only the fraction
        of greatest, or least, importance is kept.
    """

    ranking: str = ""
    what: What = NOTHING
    fraction: float = 0.0

    @property
    def name(self) -> str:
        """Say which one, in words; also its folder."""
        if self.what == NOTHING:
            return NOTHING
        return f"{self.ranking}/{self.what}-{self.fraction:g}"

    @property
    def order(self) -> Order:
        """Return which pixels go first."""
        return "ascending" if self.what == "top" else "descending"

    def pixels(self, size: tuple[int, int]) -> int:
        """Return how many pixels of a picture are removed."""
        return round(self.share * size[0] * size[1])

    @property
    def share(self) -> float:
        """Fraction of the pixels that are removed."""
        return 1 - self.fraction if self.what in ("top", "bottom") else self.fraction


def refuse_too_fine(removal: Removal, size: tuple[int, int]) -> None:
    """Refuse a fraction of which no pixel, or every pixel, is the nearest whole number.

    Raises
    ------
    UsageError
        ``FRACTION_TOO_FINE``.
    """
    count, total = removal.pixels(size), size[0] * size[1]
    if removal.what != NOTHING and not 0 < count < total:
        raise UsageError(
            "FRACTION_TOO_FINE",
            f"{removal.fraction:g} of a picture of {size[0]} x {size[1]} pixels leaves {count} of "
            f"{total} to remove, which compares nothing: name fractions further from 0 and 1",
        )


def without(
    images: Float[Tensor, "b c h w"],
    importance: Float[Tensor, "b _h _w"],
    removal: Removal,
    *,
    fill: Sequence[float],
    seed: int,
) -> Float[Tensor, "b c h w"]:
    """Remove pixels by their importance.

    Parameters
    ----------
    fill
        What shows there in each channel.
    seed
        Of the order among pixels that tie, the same for every picture.

    Raises
    ------
    MetricError
        As ``models.metrics.perturbed``.
    """
    shown = torch.tensor(fill, dtype=images.dtype)[None, :, None, None]
    return perturbed(
        importance, images, fraction=removal.share, fill=shown, order=removal.order, seed=seed
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a data set of such pictures is made of.

    Attributes
    ----------
    maps
        Where ``retraining_maps.write_maps`` wrote.
    origin
        What the maps are of, for the manifest: hashes.
    """

    removal: Removal
    maps: Path
    fill: tuple[float, ...]
    seed: int
    origin: Mapping[str, str]


def write_pictures(out: Path, found: TrainingData, recipe: Recipe) -> None:
    """Write the labelled pictures of all splits as a data set; the same input gives the same bytes.

    Some pictures are in memory at a time. Rows are in the order of the splits; masks and other
    fields that training does not read are left out.

    Parameters
    ----------
    out
        A folder that does not exist.
    """
    layout = _layout(found)
    name = f"{found.summary.name}, pixels removed"
    classes = found.summary.classes
    records: list[ShardRecord] = []
    for split, pictures in found.splits.items():
        starts = range(0, len(pictures), PICTURES_IN_FILE)
        groups = [starts[i : i + FILES_IN_SHARD] for i in range(0, len(starts), FILES_IN_SHARD)]
        for number, group in enumerate(groups):
            cases = [out / f"{split}-{start}.case" for start in group]
            out.mkdir(parents=True, exist_ok=True)
            rows: list[tuple[Path, int]] = []
            for case, start in zip(cases, group, strict=True):
                examples = _examples(pictures, split, start, recipe)
                rows += [(case, row) for row in range(len(examples))]
                write_case(case, examples, layout=layout)
            path = out / "shards" / f"{split}-{number:05d}-of-{len(groups):05d}.h5"
            records.append(
                write_shard(
                    path,
                    rows,
                    layout=layout,
                    split=split,
                    name=name,
                    classes=classes,
                    workspace=out,
                )
            )
            for case in cases:
                case.unlink()
    write_manifest(out, _manifest(name, classes, recipe, records))


def _layout(found: TrainingData) -> Layout:
    pictures = found.splits["train"]
    shape = (found.summary.in_channels, *pictures.size)
    layout = {"image": FieldSpec(shape, "float32", "picture from which pixels were removed")}
    if pictures.labels.ndim > 1:
        kinds = len(found.summary.classes)
        layout[LABEL_SETS] = FieldSpec((kinds,), "uint8", "1 for every class that is shown")
    return layout


def _examples(pictures: Pictures, split: str, start: int, recipe: Recipe) -> list[Example]:
    indices = range(start, min(start + PICTURES_IN_FILE, len(pictures)))
    images = torch.stack([pictures[i] for i in indices]).float()
    if recipe.removal.what != NOTHING:
        values = read_maps(recipe.maps, recipe.removal.ranking, split, start)
        importance = torch.from_numpy(values)
        images = without(images, importance, recipe.removal, fill=recipe.fill, seed=recipe.seed)
    names = zip(pictures.sample_ids, pictures.subject_ids, pictures.labels, strict=True)
    rows = zip(islice(names, indices.start, indices.stop), images.numpy(), strict=True)
    return [_example(*row, image) for row, image in rows]


def _example(
    sample_id: str,
    subject_id: str,
    label: np.integer | UInt8[np.ndarray, " k"],
    image: Float32[np.ndarray, "c h w"],
) -> Example:
    arrays: dict[str, np.ndarray] = {"image": image}
    if isinstance(label, np.ndarray):
        arrays[LABEL_SETS] = label
    return Example(
        sample_id=sample_id,
        subject_id=subject_id,
        arrays=arrays,
        label=-1 if isinstance(label, np.ndarray) else int(label),
    )


def _manifest(
    name: str, classes: Sequence[str], recipe: Recipe, records: Sequence[ShardRecord]
) -> dict[str, Any]:
    removal = recipe.removal
    return {
        "name": name,
        "classes": list(classes),
        "config": {
            "ranking": removal.ranking,
            "what": removal.what,
            "fraction": removal.fraction,
            "fill": list(recipe.fill),
            "ties_seed": recipe.seed,
            **recipe.origin,
        },
        "shards": [
            {"file": r.file, "sha256": r.sha256, "rows": r.rows, "split": r.split} for r in records
        ],
    }
