"""What the measures of an evaluation are called, how they are read, and where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.metrics import METRICS
from pipelines.comparison_measures import LOWER_IS_BETTER


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A measure in words.

    Attributes
    ----------
    title
        Short, for the head of a column.
    definition
        One sentence that a physician can follow.
    percent
        Whether it is a share that is shown in per cent.
    """

    title: str
    definition: str
    percent: bool = False


def _iou(share: str) -> Words:
    return Words(
        title=f"IoU {share}",
        definition="Intersection over union of the true region and the most important "
        f"{100 - 100 * float('0' + share):.2g} % of the pixels. A perfect map scores the cap that "
        "the row of the true mask shows, since the two areas differ.",
        percent=True,
    )


WORDS: Mapping[str, Words] = {
    "average_precision": Words(
        title="AP",
        definition="Average precision: the area under precision against recall when the pixels are "
        "ranked by the map, against those of the true region. A flat map scores the share of the "
        "picture that the region takes.",
        percent=True,
    ),
    "iou_975": _iou(".975"),
    "iou_950": _iou(".95"),
    "iou_900": _iou(".90"),
    "iou_equal_area": Words(
        title="IoU, equal area",
        definition="Intersection over union of the true region and as many of the most important "
        "pixels as it has: a perfect map scores 100 %.",
        percent=True,
    ),
    "pointing_game": Words(
        title="pointing",
        definition="Share of pictures in which the most important place lies in the true region.",
        percent=True,
    ),
    "mass_inside": Words(
        title="mass inside",
        definition="Share of the map's positive total that lies in the true region.",
        percent=True,
    ),
    "accuracy": Words(
        title="accuracy", definition="Share of pictures that are classified rightly.", percent=True
    ),
    "balanced_accuracy": Words(
        title="balanced accuracy",
        definition="Share of rightly classified pictures within each class, mean over classes.",
        percent=True,
    ),
    "auc": Words(
        title="area under ROC",
        definition="Probability that a picture of a class is given a higher probability of it than "
        "a picture of another, mean over classes.",
        percent=True,
    ),
    "calibration_error": Words(
        title="calibration error",
        definition="Mean distance between the probability of the predicted class and how often it "
        "is right (Guo et al., ICML 2017).",
        percent=True,
    ),
    "total_variation": Words(
        title="distance of levels",
        definition="Total variation between the coarse map and the fine one summed over its cells: "
        "0 where the two levels tell the same, 1 where they have nothing in common.",
    ),
    "kl_from_coarse": Words(
        title="KL coarse to fine",
        definition="Kullback-Leibler divergence of the summed fine map from the coarse one.",
    ),
    "kl_from_fine": Words(
        title="KL fine to coarse",
        definition="Kullback-Leibler divergence of the coarse map from the summed fine one.",
    ),
    "program_value": Words(
        title="program value",
        definition="Optimal value of the convex program that makes the two levels consistent: how "
        "much either must give, 0 where they agree.",
    ),
    "gini": Words(
        title="Gini",
        definition="Gini index of the map's magnitudes: 0 for a flat map, near 1 where a few cells "
        "hold everything.",
    ),
    "group_gini": Words(title="group Gini", definition="The Gini index over patches of the map."),
    "sparsity": Words(
        title="sparsity", definition="How few cells hold the map: 0 flat, 1 a single cell."
    ),
    "entropy": Words(
        title="entropy", definition="Entropy of the map as a distribution over its cells."
    ),
    "input_perturbation": Words(
        title="area",
        definition="Pixels are removed, the least important first, and the judging network "
        "classifies what is left: area under its balanced accuracy against the removed share, "
        "from none to all. High where the map knew what the network needs.",
        percent=True,
    ),
    "input_perturbation_above_chance": Words(
        title="area above chance",
        definition="The same less the balanced accuracy of guessing. The paper does not say which "
        "of the two it reports.",
        percent=True,
    ),
    "input_perturbation_opposite": Words(
        title="opposite order",
        definition="The same area with the most important pixels removed first.",
        percent=True,
    ),
    "insertion": Words(
        title="insertion",
        definition="Area under the class's probability while pixels are put in, the most important "
        "first.",
    ),
    "deletion": Words(
        title="deletion",
        definition="Area under the class's probability while pixels are taken out, the most "
        "important first.",
    ),
    "comprehensiveness": Words(
        title="comprehensiveness",
        definition="Mean loss of the class's probability when the most important 1, 5, 10, 20 and "
        "50 % of the pixels are taken out.",
    ),
    "sufficiency": Words(
        title="sufficiency",
        definition="Mean loss of the class's probability when only those shares are left.",
    ),
    "randomised_similarity": Words(
        title="similarity after randomisation",
        definition="Rank correlation between the maps of the network and those of the same network "
        "with random weights: a map that stays the same explains the picture, not the network "
        "(Adebayo et al., NeurIPS 2018).",
    ),
    "attacked_accuracy": Words(
        title="accuracy under attack",
        definition="Share of pictures that stay classified rightly whatever a strong attack tries: "
        "an upper bound, and a low one only where the attack is strong.",
        percent=True,
    ),
    "attacked_balanced_accuracy": Words(
        title="balanced accuracy under attack",
        definition="The same within each class, mean over classes.",
        percent=True,
    ),
    "attacked_auc": Words(
        title="area under ROC under attack",
        definition="Area under ROC of the probabilities at the worst point that the attack found "
        "of each picture.",
        percent=True,
    ),
    "top_k_intersection": Words(
        title="top-k intersection",
        definition="Share of a map's greatest 40 % of cells that are still among its greatest when "
        "the picture is changed a little and the decision is not: 1 where none moved.",
    ),
    "normalised_distance": Words(
        title="normalised distance",
        definition="Distance between the two maps, each scaled to length 1: 0 where they are "
        "alike, 2 where they are opposite.",
    ),
    "structural_similarity": Words(
        title="SSIM", definition="Structural similarity of the two maps as they are shown."
    ),
    "cosine": Words(title="cosine", definition="Cosine between the two maps."),
    "preserved": Words(
        title="attackable",
        definition="Share of maps of whose pictures any change that was tried keeps the decision.",
        percent=True,
    ),
    "stability_top_k_intersection": Words(
        title="top-k intersection between seeds",
        definition="The top-k intersection of the maps of one picture by networks that were "
        "trained with different seeds, mean over the pairs.",
    ),
    "stability_structural_similarity": Words(
        title="SSIM between seeds", definition="The same by structural similarity."
    ),
    "stability_cosine": Words(
        title="cosine between seeds", definition="The same by the cosine between the maps."
    ),
}
"""Measure -> its words."""
ROBUST_SOURCES: Mapping[str, str] = dict.fromkeys(
    ("attacked_accuracy", "attacked_balanced_accuracy", "attacked_auc"),
    "Madry et al., ICLR 2018; Athalye et al., ICML 2018",
)
FALLS = LOWER_IS_BETTER | {"randomised_similarity"}
"""Lower is better, of what ``METRICS`` does not hold."""
MARK = "@"
"""Between a measure and what stands for a removed pixel."""


def split_measure(name: str) -> tuple[str, str]:
    """Return a measure without its fill, and the fill; "" where it has none."""
    metric, _, fill = name.partition(MARK)
    return metric, fill


def higher_is_better(name: str) -> bool:
    """Tell how a measure is read."""
    metric, _ = split_measure(name)
    return METRICS[metric].higher_is_better if metric in METRICS else metric not in FALLS


def words_of(name: str) -> Words:
    """Return a measure in words; one that has none is called by its name."""
    metric, _ = split_measure(name)
    return WORDS.get(metric, Words(title=metric.replace("_", " "), definition=""))


def source_of(name: str) -> str:
    """Return the paper that a measure is from; "" where none is named."""
    metric, _ = split_measure(name)
    plain = metric.removesuffix("_above_chance").removeprefix("stability_")
    return METRICS[plain].source if plain in METRICS else ROBUST_SOURCES.get(metric, "")


def title_of(name: str) -> str:
    """Name a measure for the head of a column, with its direction."""
    arrow = "↑" if higher_is_better(name) else "↓"
    unit = ", %" if words_of(name).percent else ""
    return f"{words_of(name).title}{unit} {arrow}"
