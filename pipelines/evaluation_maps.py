"""The maps that an evaluation measures: which methods explain a network, level by level.

Axes: b batch, c channel, h row, w column.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from models.blocks import block_sum
from models.errors import MetricError, ModelError, unknown
from models.explainers import EXPLAINERS, Explainer, GradCam
from models.explainers.randomise import randomised
from models.explainers.randomise_similarity import rank_correlation
from models.explainers.transformer import is_transformer
from models.networks import Classifier
from models.records import Attribution
from pipelines.errors import MemoryShortError, UsageError

ALL, ATTENTION, CVX, GRADCAM = "all", "attention", "cvx", "gradcam"
OWN = frozenset({ATTENTION, "self-attention", "rollout"})
"""Methods that give a model's own maps; all others are computed of a finished model."""
POST_HOC = (GRADCAM, "gradient-x-input", "deeplift", "lrp")
OF_TRANSFORMERS = ("self-attention", "rollout")
OF_PIXELS = frozenset({"gradient-x-input", "deeplift", "lrp"})
"""Methods whose maps are also summed over the cells of both levels, as the paper does it."""
PAIR = ("fine", "coarse")
ROUNDS = 3
"""How often a network's weights are drawn anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelMaps:
    """One map of every picture of a batch.

    Attributes
    ----------
    signed
        Whether values below zero speak against the class.
    verdicts
        What the method's own law says of each map; empty without one.
    """

    method: str
    level: str
    values: Float[Tensor, "b _h _w"] = field(repr=False)
    signed: bool = False
    verdicts: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, str]:
        """Method and level."""
        return self.method, self.level

    @property
    def importance(self) -> Float[Tensor, "b _h _w"]:
        """What speaks for the class: the positive part of a signed map."""
        return self.values.relu() if self.signed else self.values


Maker = Callable[[Float[Tensor, "b c h w"], Int[Tensor, " b"]], list[LevelMaps]]
"""Pictures as the network takes them and the classes to explain -> maps, finest first."""


def refuse_unknown(methods: Sequence[str]) -> None:
    """Refuse names that are no method's.

    Raises
    ------
    UsageError
        ``UNKNOWN_METHOD``.
    """
    for name in methods:
        if name not in EXPLAINERS and name != ALL:
            raise UsageError("UNKNOWN_METHOD", unknown("method", name, (*EXPLAINERS, ALL)))


def methods_for(named: Sequence[str], variant: str, network: Classifier) -> tuple[str, ...]:
    """Return the methods that a network is explained by, whether they fit or not.

    Parameters
    ----------
    named
        By the user, for every network; none for what is usual.
    variant
        Name in ``ATTENTIONS``. Maps of ``unconstrained`` gates are also made to agree afterwards.
    """
    if ALL in named:
        return tuple(EXPLAINERS)
    if named:
        return tuple(dict.fromkeys(named))
    if is_transformer(network):
        return (*OF_TRANSFORMERS, *POST_HOC)
    if not network.map_names:
        return POST_HOC
    return (ATTENTION, CVX) if variant == "unconstrained" else (ATTENTION,)


def makers_of(
    methods: Sequence[str], network: Classifier, *, batch_size: int
) -> Mapping[str, Maker]:
    """Return what makes the maps of each method, of a network on its device."""
    pair = pair_of(network)

    def maker(method: str) -> Maker:
        explainers = explainers_of(method, EXPLAINERS[method], network)
        sized = [(level, replace(each, batch_size=batch_size)) for level, each in explainers]

        def make(images: Tensor, targets: Tensor) -> list[LevelMaps]:
            made = [
                maps
                for level, explainer in sized
                for maps in level_maps(method, level, explainer, network, (images, targets))
            ]
            if method in OF_PIXELS:
                made += [pooled for maps in made for pooled in _pooled(maps, network, pair)]
            return made

        return make

    return MappingProxyType({method: maker(method) for method in methods})


def pair_of(network: Classifier) -> Mapping[str, str]:
    """Stages of the network that are its levels -> ``fine`` and ``coarse``."""
    return dict(zip(network.trunk.pair, PAIR, strict=False))


def explainers_of(
    method: str, explainer: Explainer, network: Classifier
) -> list[tuple[str | None, Explainer]]:
    """Return what makes a method's maps: one for each level, or None where it names its levels."""
    pair = pair_of(network)
    if method == GRADCAM and isinstance(explainer, GradCam) and pair:
        return [(level, replace(explainer, layer=stage)) for stage, level in pair.items()]
    return [(None, explainer)]


def level_maps(
    method: str,
    level: str | None,
    explainer: Explainer,
    network: Classifier,
    asked: tuple[Float[Tensor, "b c h w"], Int[Tensor, " b"]],
) -> list[LevelMaps]:
    """Explain pictures of some target classes, and name the levels of the maps.

    Raises
    ------
    MemoryShortError
        ``OUT_OF_MEMORY``.
    ModelError
        As the explainer.
    """
    return [
        LevelMaps(
            method=method,
            level=level_name(found.method, level, explainer, network),
            values=found.values.detach().float().cpu(),
            signed=found.signed,
            verdicts=tuple(verdict.word for verdict in found.verdicts),
        )
        for found in _explained(method, explainer, network, *asked)
    ]


def level_name(
    attribution: str, level: str | None, explainer: Explainer, network: Classifier
) -> str:
    """Name the level of a map by the attribution's own name, unless its explainer has one level."""
    named = attribution.removeprefix(explainer.name).removeprefix("-")
    return pair_of(network).get(named, named) if level is None else level


def _pooled(maps: LevelMaps, network: Classifier, pair: Mapping[str, str]) -> Iterator[LevelMaps]:
    """Sum what speaks for the class over the cells of each level; grids that do not fit stay out.

    Ron et al. sum-pool as well, but after a softmax over the pixels, which is no longer a sum of
    attributions.
    """
    rows, columns = maps.values.shape[1:]
    for stage, level in pair.items():
        grid = network.trunk.grid(stage, (rows, columns))
        if rows % grid[0] == 0 and columns % grid[1] == 0:
            values = block_sum(maps.importance, grid)
            yield replace(maps, level=level, values=values, signed=False, verdicts=())


def _explained(
    method: str, explainer: Explainer, network: Classifier, images: Tensor, targets: Tensor
) -> tuple[Attribution, ...]:
    try:
        return explainer(network, images, targets)
    except torch.OutOfMemoryError:
        raise MemoryShortError(
            "OUT_OF_MEMORY",
            f"memory ran out while '{method}' explained {explainer.batch_size} pictures at once: "
            "lower --batch-size, the maps stay the same",
        ) from None


def refuse_nonfinite(maps: LevelMaps) -> None:
    """Refuse maps that cannot be measured.

    Raises
    ------
    MetricError
        ``MAP_NOT_FINITE``.
    """
    wrong = int((~maps.values.isfinite()).flatten(1).any(dim=1).sum())
    if wrong:
        name = " ".join(filter(None, maps.key))
        raise MetricError(
            "MAP_NOT_FINITE",
            f"{wrong} of {len(maps.values)} maps of '{name}' in one batch hold NaN or infinity; "
            "they have no order and the method is left out: explain in single precision, or by "
            "another method",
        )


def fits(method: str, network: Classifier, image: Float[Tensor, "1 c h w"]) -> bool:
    """Try a method on one picture."""
    target = torch.zeros(1, dtype=torch.int64, device=image.device)
    try:
        makers_of((method,), network, batch_size=1)[method](image, target)
    except ModelError:
        return False
    return True


def randomised_similarity(
    make: Maker,
    network: Classifier,
    images: Float[Tensor, "b c h w"],
    targets: Int[Tensor, " b"],
    *,
    seed: int,
) -> dict[tuple[str, str], Float[Tensor, " b"]]:
    """Size of the rank correlation of each map with those of random weights, mean over drawings.

    The network is given back as it was.

    Raises
    ------
    ModelError
        As the method itself.

    References
    ----------
    Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.
    """
    generator = torch.Generator().manual_seed(seed)
    own = make(images, targets)
    rounds: dict[tuple[str, str], list[Tensor]] = {maps.key: [] for maps in own}
    for _ in range(ROUNDS):
        with randomised(network, generator=generator):
            others = make(images, targets)
        for maps, other in zip(own, others, strict=True):
            refuse_nonfinite(maps)
            finite = other.values.isfinite().flatten(1).all(dim=1)
            alike = rank_correlation(maps.values, other.values.nan_to_num()).abs()
            rounds[maps.key].append(alike.where(finite, torch.nan))
    return {key: torch.stack(found).nanmean(0) for key, found in rounds.items()}
