"""Does a method explain this model at all? Random weights, other noise, maps that know nothing.

A map that stays when the model's weights are replaced by random ones shows the picture, not the
model. A map that changes when it is asked for again shows the noise.

Axes: b batch, c channel, h row, w column.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3 (model randomisation).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.explainers.base import Explainer, check_at_least
from models.explainers.laws import Law, relative
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

    The model is given back as found, also when the method raises.

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
    again = _reseeded(explainer, generator)(model, images, targets)
    repeat = float(_per_level(_difference, maps, again).amax())
    alike, chance = [], []
    for _ in range(rounds):
        with randomised(model, generator=generator):
            alike.append(_per_level(_similarity, maps, explainer(model, images, targets)))
        misplaced = (_misplaced(maps, generator) for _ in range(CONTROLS))
        chance += [_per_level(_similarity, maps, other) for other in misplaced]
    similarity, control = (float(torch.stack(found).mean(0).amax()) for found in (alike, chance))
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
        repeat_difference=repeat,
        law_residual=max(residuals) if residuals else None,
        verdict=WORDS[max(WORDS.index(verdict.word) for verdict in verdicts)],
        reason="; ".join(dict.fromkeys(verdict.reason for verdict in verdicts)),
    )


@contextmanager
def randomised(model: nn.Module, *, generator: torch.Generator) -> Iterator[None]:
    """Give a model random weights of the same size for a while; its own tensors come back.

    Weights of two axes or more are normal with the root mean square of the model's; vectors, such
    as biases and factors of normalisations, are shuffled. Buffers stay.
    """
    kept = [(weight, weight.data) for weight in model.parameters() if weight.is_floating_point()]
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            for weight, own in kept:
                weight.data = _redrawn(own, generator)
        yield
    finally:
        for weight, own in kept:
            weight.data = own


def _redrawn(own: Tensor, generator: torch.Generator) -> Tensor:
    if own.ndim < 2:
        order = torch.randperm(own.numel(), generator=generator).to(own.device)
        return own.flatten()[order].view_as(own)
    size = own.double().square().mean().sqrt()
    return (torch.randn(own.shape, generator=generator).to(own) * size).to(own)


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


def _similarity(one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    return rank_correlation(one, other).abs().mean()


def _difference(one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    apart = (one.double() - other.double()).flatten(1).norm(dim=1)
    return relative(apart, one.double().flatten(1).norm(dim=1)).median()


def rank_correlation(
    one: Float[Tensor, "b h w"], other: Float[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Spearman's rank correlation of each pair of maps; ties share their mean rank.

    Two constant maps are the same, 1; a constant one and another have nothing in common, 0.
    """
    first, second = (_ranks(values) for values in (one, other))
    spreads = first.norm(dim=1), second.norm(dim=1)
    product = spreads[0] * spreads[1]
    found = (first * second).sum(1) / torch.where(product > 0, product, 1.0)
    return torch.where((spreads[0] == 0) & (spreads[1] == 0), 1.0, found)


def _ranks(values: Float[Tensor, "b h w"]) -> Float[Tensor, "b n"]:
    """Ranks less their mean."""
    flat = values.double().flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    below = torch.searchsorted(ordered, flat, right=False)
    upto = torch.searchsorted(ordered, flat, right=True)
    ranks = (below + upto).double() / 2
    return ranks - flat.shape[1] / 2


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
