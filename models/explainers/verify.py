"""Does a method explain this model at all? Random weights, other noise, maps that know nothing.

A map that stays when the model's weights are replaced by random ones shows the picture, not the
model. A map that changes when it is asked for again shows the noise.

Axes: b batch, c channel, h row, w column.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3 (model randomisation).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import Explainer, check_at_least
from models.explainers.laws import Law, relative
from models.explainers.randomise import randomised
from models.explainers.randomise_similarity import Likeness, likeness
from models.records import Attribution, Verdict

RANDOMISATION = Law(
    name="randomisation",
    sound=0.5,  # ranks that share a quarter of their variance
    refused=0.9,  # what two estimates of one map reach
    says="rank correlation with the maps of a model with random weights",
    way_out="the map shows the picture more than the model: see 'gradient' or 'gradcam'",
)
REPETITION = Law(
    name="repetition",
    sound=0.35,  # two maps that are each off by 0.25, what 'smoothgrad' may be
    refused=1.41,  # two maps that have nothing in common
    says="change of the map with other noise",
    way_out="raise draws",
)
DETERMINISM = Law(
    name="repetition",
    sound=1e-3,  # sums in another order
    refused=float("inf"),
    says="change of the map when it is asked for again",
    way_out="the model is random in evaluation, or the device adds up in random order",
)
CONTROLS = 5  # random maps for each drawing of weights
ALMOST = 0.89  # even where chance is as great, the same map twice is refused
Word = Literal["sound", "doubtful", "refused"]

WORDS: tuple[Word, ...] = get_args(Word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was found out about a method on a model and some pictures.

    Attributes
    ----------
    method
        Its name in ``EXPLAINERS``.
    randomised_similarity
        Magnitude of the rank correlation between maps of the model and of the same model with
        random weights: mean over pictures and rounds, of the level where it is greatest. 1 where
        both are constant.
    random_similarity
        The control: the same between the maps and themselves, flipped and shifted at random, which
        have their texture and know nothing. Chance, high on grids of few cells.
    structural_similarity, random_structural_similarity
        Structural similarity of the same maps as they are shown, and that of the control. Both are
        high where most of a map is empty, so nothing is judged by them; NaN where not measured, as
        for pictures smaller than its window.
    repeat_difference
        Relative change of the maps when they are asked for again, with another seed where the
        method draws noise: median over pictures.
    law_residual
        The method's own residual of the picture in the middle, from the best to the worst, of the
        level where it is greatest; None where it has no law.
    verdict, reason
        The worst of the findings; all of them in one line.
    """

    method: str
    randomised_similarity: float
    random_similarity: float
    structural_similarity: float = math.nan
    random_structural_similarity: float = math.nan
    repeat_difference: float
    law_residual: float | None
    verdict: Word
    reason: str


def verify(
    explainer: Explainer,
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    targets: Int[Tensor, " b"],
    *,
    generator: torch.Generator,
    rounds: int = 3,
) -> Verification:
    """Check a method by random weights, by random maps, by repetition and by its own law.

    Every drawing of weights is like the last step of ``randomise_cascade.cascade``. The model is
    given back as found, also when the method raises.

    Parameters
    ----------
    images
        A few pictures are enough, such as eight; all are explained 2 + ``rounds`` times.
    generator
        On the processor; weights, flips, shifts and other seeds are drawn from it.
    rounds
        How often the weights are drawn.

    Raises
    ------
    ExplainerError
        If ``rounds`` is below 1, and as the method itself.
    """
    check_at_least(1, rounds=rounds)
    maps = explainer(model, images, targets)
    size = (images.shape[2], images.shape[3])
    again = _reseeded(explainer, generator)(model, images, targets)
    repeat = float(_per_level(_difference, maps, again).amax())
    alike, chance = [], []
    for _ in range(rounds):
        with randomised(model, generator=generator):
            alike.append(_likenesses(maps, explainer(model, images, targets), size))
        misplaced = (_misplaced(maps, generator) for _ in range(CONTROLS))
        chance += [_likenesses(maps, other, size) for other in misplaced]
    (similarity, structure), (control, chance_structure) = map(_greatest, (alike, chance))
    typical = [found for found in map(_typical, maps) if found]
    residuals = [residual for _, residual in typical if residual is not None]
    verdicts = (
        _judged_similarity(similarity, control),
        _only(REPETITION if _is_drawn(explainer) else DETERMINISM, repeat),
        *(verdict for verdict, _ in typical),
    )
    return Verification(
        method=explainer.name,
        randomised_similarity=similarity,
        random_similarity=control,
        structural_similarity=structure,
        random_structural_similarity=chance_structure,
        repeat_difference=repeat,
        law_residual=max(residuals) if residuals else None,
        verdict=WORDS[max(WORDS.index(verdict.word) for verdict in verdicts)],
        reason="; ".join(dict.fromkeys(verdict.reason for verdict in verdicts)),
    )


def _is_drawn(explainer: Explainer) -> bool:
    return "seed" in {field.name for field in fields(explainer)}


def _reseeded(explainer: Explainer, generator: torch.Generator) -> Explainer:
    """Give the method another seed, where it has one."""
    if not _is_drawn(explainer):
        return explainer
    seed = int(torch.randint(2**31, (), generator=generator))
    return replace(explainer, seed=seed)


def _misplaced(maps: Sequence[Attribution], generator: torch.Generator) -> tuple[Attribution, ...]:
    """Flip and shift each map by a draw of its own."""
    return tuple(
        replace(level, values=torch.stack([_moved(values, generator) for values in level.values]))
        for level in maps
    )


def _moved(values: Float[Tensor, "h w"], generator: torch.Generator) -> Float[Tensor, "h w"]:
    shifts = [int(torch.randint(n, (), generator=generator)) for n in values.shape]
    flips = [axis for axis in (0, 1) if torch.rand((), generator=generator) < 0.5]
    return values.flip(flips).roll(shifts, (0, 1))


def _per_level(
    measure: Callable[[Tensor, Tensor], Tensor],
    maps: Sequence[Attribution],
    others: Sequence[Attribution],
) -> Float[Tensor, " levels"]:
    pairs = zip(maps, others, strict=True)
    return torch.stack([measure(one.values, other.values) for one, other in pairs])


def _likenesses(
    maps: Sequence[Attribution], others: Sequence[Attribution], size: tuple[int, int]
) -> Float[Tensor, "2 levels"]:
    """Mean magnitude of the rank correlation, and mean structural similarity, of each level."""
    pairs = zip(maps, others, strict=True)
    found = [likeness(one.values, other.values, size=size) for one, other in pairs]
    return torch.stack([_means(each) for each in found], dim=1)


def _means(found: Likeness) -> Float[Tensor, "2"]:
    return torch.stack([found.ranks.abs().nanmean(), found.structure.nanmean()])


def _greatest(rounds: Sequence[Float[Tensor, "2 levels"]]) -> tuple[float, float]:
    """Means over the rounds, each of the level where it is greatest."""
    similarity, structure = torch.stack(list(rounds)).mean(0).amax(1).tolist()
    return similarity, structure


def _difference(one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    apart = (one.double() - other.double()).flatten(1).norm(dim=1)
    return relative(apart, one.double().flatten(1).norm(dim=1)).median()


def _judged_similarity(similarity: float, control: float) -> Verdict:
    """Doubt no similarity that maps of so few cells have by chance."""
    law = replace(RANDOMISATION, sound=max(RANDOMISATION.sound, min(control, ALMOST)))
    return _only(law, similarity, why=f"{100 * control:.2g} % by chance")


def _only(law: Law, value: float, *, why: str = "") -> Verdict:
    (verdict,) = law.judge(torch.tensor([value]), why=(lambda _: why) if why else None)
    return verdict


def _typical(maps: Attribution) -> tuple[Verdict, float | None] | None:
    """Verdict and residual of the picture in the middle, from the best to the worst."""
    if not maps.verdicts:
        return None
    residuals = [None] * len(maps.verdicts) if maps.residual is None else maps.residual.tolist()
    pairs = list(zip(maps.verdicts, residuals, strict=True))
    pairs.sort(key=lambda pair: (WORDS.index(pair[0].word), pair[1] or 0.0))
    return pairs[len(pairs) // 2]
