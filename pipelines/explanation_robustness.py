"""How far the explanations of a run change where its pictures hardly do and its decisions do not.

A radius is the root mean square of the change over all values of a picture, in standard deviations
of the training split (of z-scores, in their own): the Euclidean ball of an attack is the radius
times the square root of the number of values. It means the same for pictures of any size. Attacked
pictures stay in the range of their data: 0 to 255 for stored bytes, and otherwise what each channel
of the picture itself goes from and to.

Axes: b batch, c channel, h row, w column, k class.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.errors import ModelError, unknown
from models.explainers import Explainer
from models.explainers.derivatives import differentiable
from models.explainers.scoring import logits_of
from models.explanation_attacks import ATTACKS
from models.explanation_case import Attacked
from models.explanation_limits import Limits
from models.metrics.similarity import (
    cosine,
    normalised_distance,
    structural_similarity,
    top_k_intersection,
)
from models.scoped import evaluating
from pipelines.config import RunConfig
from pipelines.errors import UsageError
from pipelines.feed import Pictures, normalise

RADII = (0.01, 0.03, 0.1, 0.3)
STANDARD = ("top-k", "transfer", "noise")
CONTROL = "noise"
SUBSTITUTE = "search"
BATCH_SIZE = 8
IMPOSSIBLE = "no changed picture that was tried keeps its class: the given one is measured"
NOT_FOUND = "no change that was tried moves the map out of its greatest cells"
ONE_CELL = "the map has one cell, out of which nothing can move"
WITHOUT_DERIVATIVE = "searched at random: the method's maps have no derivative to follow"


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustnessRow:
    """What one attack did to one map of one picture.

    Attributes
    ----------
    sample
        Number of the picture.
    method
        Name of the map: the explainer's and, where it gives several, the level's.
    radius
        Greatest root mean square of the change, in standard deviations.
    attack
        Key of ``models.explanation_attacks.ATTACKS``.
    top_k_intersection, normalised_distance, structural_similarity, cosine
        Of the maps before and after, as of ``models.metrics.similarity``; NaN where one of them is
        zero everywhere.
    preserved
        Whether any changed picture that was tried keeps its class; the one that is measured does.
    change
        Root mean square of the change that was made.
    confidence_change
        Probability of the explained class after less before.
    note
        What a reader must know of the row; often empty.
    """

    sample: int
    method: str
    radius: float
    attack: str
    top_k_intersection: float
    normalised_distance: float
    structural_similarity: float
    cosine: float
    preserved: bool
    change: float
    confidence_change: float
    note: str = ""


def robustness_rows(
    network: nn.Module,
    config: RunConfig,
    pictures: Pictures,
    *,
    methods: Mapping[str, Explainer],
    samples: Sequence[int],
    generator: torch.Generator,
    radii: Sequence[float] = RADII,
    attacks: Sequence[str] = STANDARD,
) -> list[RobustnessRow]:
    """Attack the maps of a run's network, one batch of pictures after the other.

    The class that is explained is the one predicted before. Every level of a method is attacked
    for itself. Where the maps of a method have no derivative, ``search`` takes the place of
    ``top-k``. A picture's randomness is the same for all methods, radii and attacks.

    Parameters
    ----------
    methods
        Name -> explainer; each is called some dozen times per picture, radius and attack.
    samples
        Numbers of the pictures to attack.

    Raises
    ------
    UsageError
        ``UNKNOWN_ATTACK``, ``NOTHING_TO_ATTACK``, or with the code of what cannot be explained or
        attacked as asked, the method's name before it.
    DataError
        As ``Pictures``.
    """
    _check(methods, samples, radii, attacks)
    seeds = torch.randint(2**62, (len(samples),), generator=generator)
    rows: list[RobustnessRow] = []
    for start in range(0, len(samples), BATCH_SIZE):
        numbers = samples[start : start + BATCH_SIZE]
        batch = _batch_of(network, config, pictures, numbers, seeds[start : start + BATCH_SIZE])
        for name, explainer in methods.items():
            try:
                rows.extend(_rows_of(batch, explainer, radii, attacks))
            except ModelError as error:
                raise UsageError(error.code, f"{name}: {error}") from None
    return rows


def as_records(rows: Sequence[RobustnessRow]) -> list[dict[str, Any]]:
    """Return plain values for a table; what is not a number is empty."""
    return [
        {
            name: "" if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(row).items()
        }
        for row in rows
    ]


def worst_attacks(rows: Sequence[RobustnessRow]) -> list[RobustnessRow]:
    """Of each map and radius keep the attack that left the least of its greatest cells.

    The control is no attack and is left out. Where two left as much the first stands.
    """
    kept: dict[tuple[int, str, float], RobustnessRow] = {}
    for row in rows:
        key = (row.sample, row.method, row.radius)
        if row.attack != CONTROL and (key not in kept or _left(row) < _left(kept[key])):
            kept[key] = row
    return list(kept.values())


def _left(row: RobustnessRow) -> float:
    return math.inf if math.isnan(row.top_k_intersection) else row.top_k_intersection


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    network: nn.Module
    numbers: Sequence[int]
    images: Float[Tensor, "b c h w"]
    target: Int[Tensor, " b"]
    bounds: tuple[Float[Tensor, "b c 1 1"], Float[Tensor, "b c 1 1"]]
    seeds: Int[Tensor, " b"]
    several: bool

    def limits(self, radius: float) -> Limits:
        """Ball and range of the pictures for a radius per value."""
        return Limits(
            radius=radius * self.images[0].numel() ** 0.5,
            low=self.bounds[0],
            high=self.bounds[1],
            decision="set" if self.several else "class",
        )


def _check(
    methods: Mapping[str, Explainer],
    samples: Sequence[int],
    radii: Sequence[float],
    attacks: Sequence[str],
) -> None:
    for name in attacks:
        if name not in ATTACKS:
            raise UsageError("UNKNOWN_ATTACK", unknown("attack", name, ATTACKS))
    given = {"methods": methods, "samples": samples, "radii": radii, "attacks": attacks}
    missing = [name for name, values in given.items() if not len(values)]
    if missing:
        raise UsageError("NOTHING_TO_ATTACK", f"no {' and no '.join(missing)}: give one or more")


def _batch_of(
    network: nn.Module,
    config: RunConfig,
    pictures: Pictures,
    numbers: Sequence[int],
    seeds: Int[Tensor, " b"],
) -> _Batch:
    device = next(network.parameters()).device
    raw = torch.stack([pictures[number] for number in numbers])
    bounds = [normalise(edge, config.normalisation).to(device) for edge in _range_of(raw)]
    images = normalise(raw, config.normalisation).to(device)
    try:
        with evaluating(network), torch.no_grad():
            target = logits_of(network, images).argmax(dim=1)
    except ModelError as error:
        raise UsageError(error.code, str(error)) from None
    return _Batch(
        network=network,
        numbers=numbers,
        images=images,
        target=target,
        bounds=(bounds[0], bounds[1]),
        seeds=seeds,
        several=config.data.task == "multi-label",
    )


def _range_of(
    raw: Shaped[Tensor, "b c h w"],
) -> tuple[Shaped[Tensor, "b c 1 1"], Shaped[Tensor, "b c 1 1"]]:
    """Smallest and greatest value that a picture may have, before normalisation."""
    low, high = raw.amin((2, 3), keepdim=True), raw.amax((2, 3), keepdim=True)
    if raw.dtype == torch.uint8:
        return torch.zeros_like(low), torch.full_like(high, 255)
    return low, high


def _rows_of(
    batch: _Batch, explainer: Explainer, radii: Sequence[float], attacks: Sequence[str]
) -> Iterator[RobustnessRow]:
    levels = [found.method for found in explainer(batch.network, batch.images, batch.target)]
    for (level, method), radius, asked in product(enumerate(levels), radii, attacks):
        replaced = asked.startswith("top-k") and not differentiable(explainer)
        attack = SUBSTITUTE if replaced else asked
        found = ATTACKS[attack](
            explainer,
            batch.network,
            batch.images,
            batch.target,
            limits=batch.limits(radius),
            seeds=batch.seeds,
            level=level,
        )
        measures = _measured(batch, found)
        for place, number in enumerate(batch.numbers):
            values = {name: float(column[place]) for name, column in measures.items()}
            note = _note(
                values["change"],
                radius,
                preserved=bool(found.possible[place]),
                replaced=replaced,
                cells=found.before[place].numel(),
            )
            yield RobustnessRow(
                sample=number,
                method=method,
                radius=radius,
                attack=attack,
                preserved=bool(found.possible[place]),
                note=note,
                **values,
            )


def _measured(batch: _Batch, found: Attacked) -> dict[str, Float[Tensor, " b"]]:
    before, after = found.before, found.after
    change = (found.images - batch.images).square().mean((1, 2, 3)).sqrt()
    confidence = [
        _probability(logits, batch) for logits in (found.logits_before, found.logits_after)
    ]
    return {
        "top_k_intersection": top_k_intersection(before, after),
        "normalised_distance": normalised_distance(before, after),
        "structural_similarity": structural_similarity(
            _shown(before, batch.images), _shown(after, batch.images)
        ),
        "cosine": cosine(before, after),
        "change": change,
        "confidence_change": confidence[1] - confidence[0],
    }


def _probability(logits: Float[Tensor, "b k"], batch: _Batch) -> Float[Tensor, " b"]:
    exact = logits.detach().double()
    found = exact.sigmoid() if batch.several else exact.softmax(dim=1)
    return found.gather(1, batch.target[:, None])[:, 0]


def _shown(maps: Float[Tensor, "b p q"], images: Float[Tensor, "b c h w"]) -> Tensor:
    """Stretch a coarse map to its picture: the window of SSIM then means the same for all."""
    return interpolate(maps[:, None], images.shape[2:], mode="nearest")[:, 0]


def _note(change: float, radius: float, *, preserved: bool, replaced: bool, cells: int) -> str:
    said = [WITHOUT_DERIVATIVE] if replaced else []
    if not preserved:
        said.append(IMPOSSIBLE)
    elif cells == 1:
        said.append(ONE_CELL)
    elif radius > 0 and not change:
        said.append(NOT_FOUND)
    return "; ".join(said)
