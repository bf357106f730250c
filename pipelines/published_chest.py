"""What others report on ChestX-ray14, to stand beside what is measured here: theirs, on other data.

References
----------
Wang, Peng, Lu, Lu, Bagheri, Summers, "ChestX-ray8: hospital-scale chest X-ray database and
benchmarks on weakly-supervised classification and localization of common thorax diseases", CVPR
2017, Table 4 (IoBB), and areas of ResNet-50 with the weighted cross entropy loss, on a random split
and not on the official one.
Khakzar, Albarqouni, Navab, MICCAI 2019; the areas are from the notebook of the group's later code
(DenseNet-121, official test list).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pipelines.box_truth import PUBLISHED_ORDER

WANG, KHAKZAR = "Wang et al., CVPR 2017", "group of Khakzar et al., later code"
THEIRS = "published, other data"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedHits:
    """One row of Wang et al.'s Table 4: finding -> value.

    Attributes
    ----------
    accuracy
        Share of the boxes that are found.
    false_boxes
        Average number of boxes that find none.
    """

    accuracy: Mapping[str, float] = field(repr=False)
    false_boxes: Mapping[str, float] = field(repr=False)


def _row(*values: float) -> Mapping[str, float]:
    return MappingProxyType(dict(zip(PUBLISHED_ORDER, values, strict=True)))


WANG_IOBB: Mapping[float, PublishedHits] = MappingProxyType(
    {
        0.1: PublishedHits(
            accuracy=_row(0.7277, 0.9931, 0.7124, 0.7886, 0.4352, 0.1645, 0.7500, 0.4591),
            false_boxes=_row(0.8323, 0.3506, 0.7998, 0.5589, 0.6423, 0.6047, 0.9055, 0.4776),
        ),
        0.25: PublishedHits(
            accuracy=_row(0.5500, 0.9794, 0.5424, 0.5772, 0.2823, 0.0506, 0.5583, 0.3469),
            false_boxes=_row(0.9167, 0.4553, 0.8598, 0.6077, 0.6707, 0.6158, 0.9614, 0.5000),
        ),
        0.5: PublishedHits(
            accuracy=_row(0.2833, 0.8767, 0.3333, 0.4227, 0.1411, 0.0126, 0.3833, 0.1836),
            false_boxes=_row(1.0203, 0.5630, 0.9268, 0.6585, 0.6941, 0.6189, 1.0132, 0.5285),
        ),
        0.75: PublishedHits(
            accuracy=_row(0.1666, 0.7260, 0.2418, 0.3252, 0.1176, 0.0126, 0.2583, 0.1020),
            false_boxes=_row(1.0619, 0.6616, 0.9603, 0.6921, 0.7043, 0.6199, 1.0569, 0.5396),
        ),
        0.9: PublishedHits(
            accuracy=_row(0.1333, 0.6849, 0.2091, 0.2520, 0.0588, 0.0126, 0.2416, 0.0816),
            false_boxes=_row(1.0752, 0.7226, 0.9797, 0.7124, 0.7144, 0.6199, 1.0732, 0.5437),
        ),
    }
)
"""T(IoBB) -> accuracy and false boxes; the table does not tell the thresholds 60 and 180 apart."""

WANG_AREAS: Mapping[str, float] = _row(
    0.7069, 0.8141, 0.7362, 0.6128, 0.5609, 0.7164, 0.6333, 0.7891
)
"""Area under the ROC curve of each of their eight findings."""

KHAKZAR_AREAS: Mapping[str, float] = MappingProxyType(
    {
        "Atelectasis": 0.757,
        "Cardiomegaly": 0.874,
        "Consolidation": 0.733,
        "Edema": 0.840,
        "Effusion": 0.820,
        "Emphysema": 0.895,
        "Fibrosis": 0.799,
        "Hernia": 0.854,
        "Infiltration": 0.683,
        "Mass": 0.794,
        "Nodule": 0.721,
        "Pleural_Thickening": 0.754,
        "Pneumonia": 0.702,
        "Pneumothorax": 0.841,
    }
)
"""Area under the ROC curve of each of the 14 findings; their mean is 0.7905."""
AREAS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {WANG: WANG_AREAS, KHAKZAR: KHAKZAR_AREAS}
)
"""Whose -> finding -> area."""
