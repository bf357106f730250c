"""The paper's claims, and ours, as data: whose maps, against whose, in what measure.

References
----------
Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022, sections 4.1 and
4.2, tables 1 to 3.
Gong, Dou, Farnia, "Structured gradient-based interpretations via norm-regularized adversarial
training", CVPR 2024 (sparse gradients).
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023 (explanations under attack).
Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipelines.evaluation_cells import PAIR

HEADLINES = ("exact", "pyramid", "dual", "dual-published")
"""Variants that claims are made of."""
PAPER = ("dual", "dual-published")
"""Those of them that are the paper's, which trains gates on the frozen trunk of a baseline."""
POINT = 0.01
Rivals = Literal["variants", "post-hoc", "transformer", "controls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence that a measurement can bear out or not.

    Attributes
    ----------
    short
        The claim in a few words.
    sentence
        What is claimed of the subject, its name left out.
    origin
        Who claims it.
    measure
        Metric; where the answer depends on the fill, every fill is a comparison.
    rivals
        ``variants``: own maps of these variants; ``post-hoc``: methods applied to them;
        ``transformer``: attention of transformers; ``controls``: maps that know nothing.
    variants
        Whom the rivals are made of.
    margin
        By how much the subject may be worse, of a claim of "no worse".
    of_models
        Whether models are compared, not their maps.
    both_levels
        Whether the levels are compared one by one.
    at_finest
        Whether the finest level is compared with methods on grids of their own, not on its own.
    subjects
        Variants of which it is claimed.
    """

    short: str
    sentence: str
    origin: Literal["paper", "ours"] = "paper"
    measure: str
    rivals: Rivals = "variants"
    variants: tuple[str, ...] = ()
    margin: float = 0.0
    of_models: bool = False
    both_levels: bool = True
    at_finest: bool = False
    subjects: tuple[str, ...] = HEADLINES


PRECISION, REMOVAL, APART = "average_precision", "input_perturbation", "total_variation"
CLAIMS: Mapping[str, Claim] = {
    "finds-more-than-post-hoc": Claim(
        short="finding more than methods applied afterwards",
        sentence="its maps find the true region better than every method that is applied to the "
        "finished network without gates, on the same grid",
        measure=PRECISION,
        rivals="post-hoc",
        variants=("baseline",),
    ),
    "finds-more-than-pixels": Claim(
        short="finding more than methods that answer pixel by pixel",
        sentence="its finest map finds the true region better than every method that is applied to "
        "the finished network without gates, on that method's own grid",
        origin="ours",
        measure=PRECISION,
        rivals="post-hoc",
        variants=("baseline",),
        at_finest=True,
    ),
    "finds-more-than-transformer": Claim(
        short="finding more than a transformer's attention",
        sentence="its maps find the true region better than the attention of a transformer",
        measure=PRECISION,
        rivals="transformer",
    ),
    "finds-more-than-unconstrained": Claim(
        short="finding more than free gates",
        sentence="its maps find the true region better than two gates that may disagree",
        measure=PRECISION,
        variants=("unconstrained",),
    ),
    "finds-more-than-one-gate": Claim(
        short="finding more than one gate",
        sentence="its maps find the true region better than a gate on one level alone",
        measure=PRECISION,
        variants=PAIR,
    ),
    "finds-more-than-cvx": Claim(
        short="finding more than gates made to agree afterwards",
        sentence="its maps find the true region better than free gates made to agree afterwards",
        measure=PRECISION,
        variants=("cvx",),
    ),
    "finds-more-than-kl": Claim(
        short="finding more than with a divergence alone",
        sentence="its maps find the true region better than gates held together by a divergence "
        "alone",
        measure=PRECISION,
        variants=("kl-forward", "kl-reverse"),
    ),
    "accuracy-is-kept": Claim(
        short="keeping the accuracy",
        sentence="it classifies no worse than the network without gates, within one point of "
        "balanced accuracy",
        measure="balanced_accuracy",
        variants=("baseline",),
        margin=POINT,
        of_models=True,
    ),
    "lasts-longer-than-post-hoc": Claim(
        short="keeping the judge right for longer than methods applied afterwards",
        sentence="with what its maps hold for unimportant removed, the network without gates stays "
        "right for longer than with every method that is applied to the finished network",
        measure=REMOVAL,
        rivals="post-hoc",
        variants=("baseline",),
    ),
    "lasts-longer-than-other-gates": Claim(
        short="keeping the judge right for longer than other gates",
        sentence="with what its maps hold for unimportant removed, the network without gates stays "
        "right for longer than with the maps of one gate, or of two that may disagree",
        measure=REMOVAL,
        variants=("unconstrained", *PAIR),
    ),
    "levels-agree-more": Claim(
        short="levels that agree more",
        sentence="its two levels agree more than those of gates that are free, or held together by "
        "a divergence alone",
        measure=APART,
        variants=("unconstrained", "kl-forward", "kl-reverse"),
        both_levels=False,
    ),
    "knows-more-than-nothing": Claim(
        short="finding more than maps that know nothing",
        sentence="its maps find the true region better than every map that knows nothing of the "
        "network",
        origin="ours",
        measure=PRECISION,
        rivals="controls",
    ),
    "exact-is-no-worse": Claim(
        short="finding no less than learned agreement",
        sentence="agreement by construction finds the true region no worse than agreement that is "
        "learned, within one point of average precision",
        origin="ours",
        measure=PRECISION,
        variants=("dual", "dual-published"),
        margin=POINT,
        subjects=("exact",),
    ),
    "exact-agrees-more": Claim(
        short="agreeing more than learned agreement",
        sentence="levels that agree by construction agree more than those that learn to",
        origin="ours",
        measure=APART,
        variants=("dual", "dual-published"),
        both_levels=False,
        subjects=("exact",),
    ),
}
"""Name of a claim -> what is claimed and what it is measured by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustClaim:
    """A sentence about training on a robust objective, or about explanations under attack.

    Attributes
    ----------
    short, sentence, origin
        As of ``Claim``.
    about
        ``gradients``: the gradient maps of a model against those of the same network trained as
        usual; ``predictions``: its answers under attack, likewise; ``methods``: maps of a method
        against those of the simple gradient of the same model.
    objectives
        How the names begin of the objectives of which it is claimed; none for every model.
    measures
        Each is a comparison.
    margin
        By how much the balanced accuracy may be worse; None where it is not asked for.
    """

    short: str
    sentence: str
    origin: str
    about: Literal["gradients", "predictions", "methods"]
    objectives: tuple[str, ...] = ()
    measures: tuple[str, ...]
    margin: float | None = None


ROBUST_CLAIMS: Mapping[str, RobustClaim] = {
    "gradients-are-sparser": RobustClaim(
        short="sparser gradient maps by norm-regularised training",
        sentence="its gradient maps are sparser (Gini index) than those of the same network "
        "trained as usual, at less than three points of balanced accuracy",
        origin="Gong et al., CVPR 2024",
        about="gradients",
        objectives=("l1", "fgsm", "elastic"),
        measures=("gini",),
        margin=3 * POINT,
    ),
    "gradients-are-sparser-by-groups": RobustClaim(
        short="gradient maps sparser by groups by group training",
        sentence="its gradient maps are sparser by groups (group Gini index) than those of the "
        "same network trained as usual",
        origin="Gong et al., CVPR 2024",
        about="gradients",
        objectives=("group",),
        measures=("group_gini",),
    ),
    "robust-predictions": RobustClaim(
        short="higher accuracy under attack by robust training",
        sentence="it classifies better under attack than the same network trained as usual, on "
        "average over the radii of the attack that its objective guards against",
        origin="Madry et al., ICLR 2018",
        about="predictions",
        objectives=("fgsm", "pgd", "l1", "elastic", "group", "l2"),
        measures=("attacked_balanced_accuracy",),
    ),
    "moreau-withstands": RobustClaim(
        short="MoreauGrad moving less than the gradient",
        sentence="under attack MoreauGrad keeps more of its greatest cells than the simple "
        "gradient does, at every radius",
        origin="Zhang, Farnia, ICCV 2023",
        about="methods",
        measures=("top_k_intersection",),
    ),
}
"""Name of a claim -> what is claimed and what it is measured by."""
