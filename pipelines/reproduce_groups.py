"""What a reproduction consists of: groups of runs of one recipe, and the plan that holds them.

A group is a recipe, every variant of which is trained with every seed. The paper's own protocol
is ``frozen``: gates, witness and head on the finished trunk of a baseline. ``joint`` trains the
same variants, and those of this toolkit, from nothing; ``vit`` is the transformer that the paper
compares with; ``robust-*`` are trained on a robust objective. ``small`` is for four cores and an
hour, ``full`` for an accelerator, as published.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, section 4.
Gong, Dou, Farnia, "Structured gradient-based interpretations via norm-regularized adversarial
training", CVPR 2024, arXiv 2404.04647.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.attention import ATTENTIONS
from pipelines.box_evaluation import BoxSettings
from pipelines.config import BuildConfig, EvaluateConfig, RobustnessConfig, TrainConfig
from pipelines.demo_chains import DEMOS, Chain

Size = Literal["small", "full"]
BASELINE, STANDARD = "baseline", "standard"
PAPER = (
    "fine", "coarse", "unconstrained", "cvx", "kl-forward", "kl-reverse", "dual", "dual-published",
)  # fmt: skip
"""Variants of the paper, and the program solved after the fact."""
EXACT = ("exact", "exact-two-pass")
"""Forms that agree exactly, on the paper's terms."""
ON_THE_WAY = (
    "value", "exact-one-pass", "exact-one-sided", "exact-factored", "chain-two-pass",
    "chain-one-pass", "chain-factored",
)  # fmt: skip
"""Forms that agree exactly and were found to show less than ``exact``."""
EVERY = tuple(name for name in ATTENTIONS if name != BASELINE)
ATTACKED = EvaluateConfig(robustness=RobustnessConfig(enabled=True))
"""Maps measured as usual, and predictions and maps under attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs of one recipe.

    Attributes
    ----------
    name
        Of its folder.
    variants
        Each is trained with every seed.
    settings
        Fields of ``TrainConfig`` that all share, without variant and seed.
    start
        Group whose baseline run of the same seed its runs begin with; "" for weights at random.
    """

    name: str
    variants: tuple[str, ...]
    settings: Mapping[str, Any]
    start: str = ""

    @property
    def objective(self) -> str:
        """Name in ``OBJECTIVES`` of what its runs are trained on."""
        return self.settings.get("objective", STANDARD)

    def called(self, variant: str) -> str:
        """Name a run's kind on the command line: its variant, or a baseline's group."""
        if variant == BASELINE:
            return self.name
        return variant if self.objective == STANDARD else f"{variant}-{self.objective}"

    def training(self, variant: str, seed: int) -> TrainConfig:
        """Return the settings of one run."""
        return TrainConfig.of({**self.settings, "variant": variant, "seed": seed})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One reproduction.

    Attributes
    ----------
    subjects
        Synthetic patients.
    phantoms
        Further arguments of the phantoms' writer.
    phantom_build, real_build
        How a data set is made of synthetic and of real scans.
    groups
        Those that others start from come first.
    evaluate
        How maps are measured.
    boxes
        How they are held against boxes; None where findings have none.
    pictures, megabytes, seconds
        Of one synthetic patient, about: rows of the data set, scans and rows on disk, and work of
        one processor until the rows are there. For forecasts only.
    real_pictures
        Rows that the paper's data set gives, about.
    left_out
        Sentences: what the paper or the full plan has and this plan has not.
    """

    dataset: str
    size: Size
    subjects: int
    phantoms: Mapping[str, Any] = field(default_factory=dict)
    phantom_build: BuildConfig
    real_build: BuildConfig
    groups: tuple[Group, ...]
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    boxes: BoxSettings | None = None
    pictures: float
    megabytes: float
    seconds: float
    real_pictures: int
    left_out: tuple[str, ...] = ()

    @property
    def chain(self) -> Chain:
        """How scans of this data set lie in a folder."""
        return DEMOS[self.dataset]

    @property
    def names(self) -> tuple[str, ...]:
        """Kinds of runs that can be asked for."""
        return tuple(
            dict.fromkeys(group.called(name) for group in self.groups for name in group.variants)
        )

    def judged(self, *, real: bool) -> EvaluateConfig:
        """Return how maps are measured, and whether the report warns of phantoms."""
        return self.evaluate.model_copy(update={"synthetic": not real})


def robust_groups(
    settings: Mapping[str, Any], strengths: Mapping[str, Mapping[str, Any]], *, gated: str = ""
) -> tuple[Group, ...]:
    """Return a group for each robust objective.

    Parameters
    ----------
    settings
        Those of the baseline.
    strengths
        Objective -> fields of ``RobustConfig``.
    gated
        The objective on which ``exact`` is trained, too.
    """
    return tuple(
        Group(
            name=f"robust-{objective}",
            variants=(BASELINE, "exact") if objective == gated else (BASELINE,),
            settings={**settings, "objective": objective, "robust": dict(strength)},
        )
        for objective, strength in strengths.items()
    )
