"""What the paper of MoreauGrad reports of explanations under attack: theirs, and on other data.

Values are read off the chart in the authors' repository, to about 0.02: mean over 50 pictures of
top-k intersection, structural similarity and normalised distance at four Euclidean radii, of an
EfficientNet-b0 without robust training. Their attack followed another map than the one that was
measured, so that similarities of MoreauGrad may flatter it.

References
----------
Zhang, Farnia, "MoreauGrad: sparse and robust interpretation of neural networks via Moreau
envelope", ICCV 2023, arXiv 2302.05294.
Ghorbani, Abid, Zou, "Interpretation of neural networks is fragile", AAAI 2019 (the attack).
"""

from collections.abc import Mapping
from types import MappingProxyType

PAPER = "Zhang, Farnia, ICCV 2023"
METHODS = (
    "gradient",
    "smoothgrad",
    "integrated-gradients",
    "smoothgrad, sparsified",
    "moreaugrad",
    "moreaugrad-sparse",
)
"""In the order of the values, by their name here where there is one."""
RADII: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "CIFAR-10": (0.3, 1.0, 3.0, 10.0),
        "ImageNet": (1.0, 3.0, 10.0, 20.0),
        "Tiny-ImageNet": (1.0, 3.0, 10.0, 20.0),
    }
)
Chart = tuple[tuple[float, float, float, float], ...]
VALUES: Mapping[str, Mapping[str, Chart]] = MappingProxyType(
    {
        "top_k_intersection": MappingProxyType(
            {
                "CIFAR-10": (
                    (0.86, 0.58, 0.28, 0.14),
                    (0.80, 0.75, 0.53, 0.26),
                    (0.89, 0.68, 0.43, 0.28),
                    (0.89, 0.86, 0.71, 0.18),
                    (0.95, 0.89, 0.80, 0.56),
                    (0.97, 0.91, 0.79, 0.51),
                ),
                "ImageNet": (
                    (0.79, 0.64, 0.56, 0.55),
                    (0.74, 0.72, 0.66, 0.62),
                    (0.87, 0.74, 0.63, 0.60),
                    (0.90, 0.89, 0.86, 0.82),
                    (0.97, 0.96, 0.91, 0.84),
                    (0.96, 0.94, 0.88, 0.81),
                ),
                "Tiny-ImageNet": (
                    (0.83, 0.74, 0.65, 0.64),
                    (0.72, 0.72, 0.70, 0.66),
                    (0.86, 0.78, 0.71, 0.69),
                    (0.88, 0.88, 0.85, 0.78),
                    (0.97, 0.96, 0.93, 0.89),
                    (0.92, 0.91, 0.89, 0.85),
                ),
            }
        ),
        "structural_similarity": MappingProxyType(
            {
                "CIFAR-10": (
                    (0.92, 0.55, 0.18, 0.08),
                    (0.84, 0.79, 0.50, 0.23),
                    (0.95, 0.71, 0.36, 0.20),
                    (0.86, 0.82, 0.65, 0.21),
                    (0.99, 0.97, 0.92, 0.68),
                    (1.00, 0.98, 0.91, 0.67),
                ),
                "ImageNet": (
                    (0.86, 0.66, 0.56, 0.55),
                    (0.90, 0.88, 0.78, 0.70),
                    (0.96, 0.84, 0.68, 0.62),
                    (0.93, 0.92, 0.85, 0.77),
                    (1.00, 1.00, 0.99, 0.97),
                    (1.00, 0.98, 0.96, 0.93),
                ),
                "Tiny-ImageNet": (
                    (0.86, 0.72, 0.61, 0.59),
                    (0.84, 0.84, 0.78, 0.71),
                    (0.95, 0.83, 0.71, 0.69),
                    (0.91, 0.90, 0.86, 0.79),
                    (0.99, 0.99, 0.96, 0.90),
                    (1.00, 0.99, 0.97, 0.92),
                ),
            }
        ),
        "normalised_distance": MappingProxyType(
            {
                "CIFAR-10": (
                    (0.21, 0.62, 0.95, 1.15),
                    (0.30, 0.37, 0.62, 0.91),
                    (0.17, 0.50, 0.86, 1.10),
                    (0.18, 0.20, 0.39, 1.05),
                    (0.10, 0.23, 0.45, 0.92),
                    (0.08, 0.21, 0.49, 1.03),
                ),
                "ImageNet": (
                    (0.41, 0.76, 0.91, 0.95),
                    (0.47, 0.52, 0.66, 0.75),
                    (0.25, 0.56, 0.83, 0.92),
                    (0.23, 0.25, 0.36, 0.52),
                    (0.05, 0.09, 0.19, 0.36),
                    (0.07, 0.11, 0.24, 0.40),
                ),
                "Tiny-ImageNet": (
                    (0.35, 0.53, 0.72, 0.74),
                    (0.52, 0.52, 0.57, 0.64),
                    (0.30, 0.46, 0.67, 0.71),
                    (0.25, 0.25, 0.31, 0.46),
                    (0.06, 0.07, 0.16, 0.28),
                    (0.07, 0.08, 0.18, 0.30),
                ),
            }
        ),
    }
)
"""Measure -> data set -> one line of values for each method, one for each radius."""
