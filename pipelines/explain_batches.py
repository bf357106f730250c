"""Scans to batches, and a batch's attributions to the maps of its scans.

Axes: b batch, k class, c channel, h row, w column.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from models.errors import ModelError
from models.metrics import random_map, score, uniform_map
from models.records import Attribution
from models.scoped import evaluating
from pipelines import label_sets
from pipelines.errors import UsageError
from pipelines.explain_records import PATIENT_SPACE, Map, Scan, Task, truth_fields
from pipelines.feed import normalise, pictures

LOCALISATION = ("average_precision", "iou_equal_area", "mass_inside")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Scans that are explained together, on the device.

    Attributes
    ----------
    indices
        Their rows.
    target
        The class that class-bound methods explain.
    """

    indices: Sequence[int]
    images: Float[Tensor, "b c h w"] = field(repr=False)
    logits: Float[Tensor, "b k"] = field(repr=False)
    target: Int[Tensor, " b"] = field(repr=False)


def ranges(task: Task) -> list[range]:
    """Cut the scans into batches."""
    size = task.settings.batch_size
    return [range(start, min(start + size, task.count)) for start in range(0, task.count, size)]


def batch_of(task: Task, indices: Sequence[int]) -> Batch:
    """Read, prepare and classify some scans; at most ``batch_size`` go through the network at once.

    Raises
    ------
    UsageError
        The network cannot take the pictures.
    """
    side = task.config.train.image_size
    size = (side, side) if side else task.config.data.picture_size
    found = pictures(task.scans, size, labelled=False)
    raw = torch.stack([found[i] for i in indices]).to(task.device)
    images = normalise(raw, task.config.normalisation)
    try:
        with evaluating(task.network), torch.no_grad():
            parts = images.split(task.settings.batch_size)
            logits = torch.cat([task.network(part).logits for part in parts])
    except ModelError as error:
        raise UsageError(error.code, str(error)) from None
    return Batch(
        indices=indices, images=images, logits=logits, target=_targets(task, indices, logits)
    )


def _targets(task: Task, indices: Sequence[int], logits: Float[Tensor, "b k"]) -> Int[Tensor, " b"]:
    """Take the predicted class, or the true one where that is asked for and known.

    Of label sets: the most probable finding, or the most probable of the true ones.
    """
    predicted = logits.argmax(dim=1)
    if task.settings.target == "prediction":
        return predicted
    if task.config.data.task == "multi-label":
        sets = np.stack(
            [task.scans.read(i, (label_sets.FIELD,))[label_sets.FIELD] for i in indices]
        )
        shown = torch.from_numpy(sets == 1).to(predicted.device)
        likeliest = logits.masked_fill(~shown, -torch.inf).argmax(dim=1)
        return torch.where(shown.any(dim=1), likeliest, predicted)
    labels = torch.from_numpy(np.asarray(task.scans.labels)[list(indices)]).to(predicted.device)
    return torch.where(labels >= 0, labels, predicted)


def scans_of(task: Task, batch: Batch) -> list[Scan]:
    """Read what the explanations of a batch are drawn with."""
    probabilities = label_sets.probabilities(batch.logits, task.config.data.task)
    fields = ("suv", "mask", *PATIENT_SPACE, *truth_fields(task))
    wanted = [name for name in fields if name in task.scans.fields]
    names = wanted if "suv" in wanted else ["image", *wanted]
    return [
        Scan(
            name=_safe_name(task.scans.sample_ids[i], i),
            index=i,
            label=int(task.scans.labels[i]),
            probabilities=probabilities[place],
            arrays=task.scans.read(i, names),
        )
        for place, i in enumerate(batch.indices)
    ]


def _safe_name(sample_id: str, i: int) -> str:
    """Name of the scan's files: shards of others may hold any text."""
    return sample_id if SAFE_NAME.fullmatch(sample_id) else f"row-{i:06d}"


def map_of(
    task: Task, scan: Scan, attribution: Attribution, *, place: int, explainer: str, condemned: str
) -> Map:
    """Take one scan's map out of a batch's, with its scores and its verdict.

    Parameters
    ----------
    place
        Of the scan in the batch.
    condemned
        Why the whole method is refused; "" where it is not.
    """
    values = attribution.values[place].float().cpu()
    word, reason = "", "not checked: the method has no law"
    if attribution.verdicts:
        word, reason = attribution.verdicts[place].word, attribution.verdicts[place].reason
    if condemned:
        word, reason = "refused", f"the method failed its check on this model: {condemned}"
    residual = None if attribution.residual is None else float(attribution.residual[place])
    if not bool(torch.isfinite(values).all()):
        word, reason = "refused", "the map holds NaN or infinity; they are shown as 0"
        values = values.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return Map(
        method=attribution.method,
        explainer=explainer,
        target=int(attribution.target[place]),
        signed=attribution.signed,
        values=values.numpy(),
        scores=_localisation(scan, values, seed=task.config.train.seed),
        law=attribution.law,
        residual=residual,
        word=word,
        reason=reason,
    )


def _localisation(scan: Scan, values: Float[Tensor, "h w"], *, seed: int) -> dict[str, float]:
    """Scores against the true mask, beside two maps that know nothing; empty without a mask."""
    if "mask" not in scan.arrays:
        return {}
    mask = torch.from_numpy(scan.arrays["mask"] > 0)[None]
    values = _no_finer_than(values, (mask.shape[1], mask.shape[2]))
    found = {name: float(score(name, values[None], mask).per_sample) for name in LOCALISATION}
    shape = (1, values.shape[0], values.shape[1])
    state = np.random.SeedSequence([seed, scan.index]).generate_state(1)
    generator = torch.Generator().manual_seed(int(state[0]))
    for control, drawn in (
        ("uniform", uniform_map(shape)),
        ("random", random_map(shape, generator=generator)),
    ):
        found[f"{control}_average_precision"] = float(
            score("average_precision", drawn, mask).per_sample
        )
    return found


def _no_finer_than(
    values: Float[Tensor, "h w"], size: tuple[int, int]
) -> Float[Tensor, "_rows _columns"]:
    """Pool a map to the mask's size where the network saw an enlarged picture."""
    rows, columns = (min(pair) for pair in zip(values.shape, size, strict=True))
    return adaptive_avg_pool2d(values[None], (rows, columns))[0]


def is_number(value: float | None) -> bool:
    """Tell whether a residual is there and finite."""
    return value is not None and math.isfinite(value)
