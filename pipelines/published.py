"""What the paper reports, to stand beside what is measured here: theirs, and on other data.

Ron, Weiler-Sagie, Hazan, "Consistent attention by dual decomposition", ICML 2022. All values are in
per cent, parameters in millions; ± is the standard deviation over five runs where one is given.
"Block 3" is the fine level here, "block 4" the coarse one. Its definition of the area in Table 1 is
not stated: plain, and above chance, are both measured here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

PAPER = "Ron, Weiler-Sagie, Hazan, ICML 2022"
CNN, TRANSFORMER = "cnn", "vit"
ATTENTION = "attention"


@dataclass(frozen=True, slots=True)
class Value:
    """A published number and its ±; NaN where none is given."""

    mean: float
    sd: float = math.nan

    def text(self, decimals: int = 2) -> str:
        """Write it as it is printed."""
        sd = f" ± {self.sd:g}" if math.isfinite(self.sd) else ""
        return f"{self.mean:.{decimals}f}{sd}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One line of a table of the paper.

    Attributes
    ----------
    method
        As the paper calls it.
    level
        ``fine`` (block 3), ``coarse`` (block 4), or "" in the table of accuracies.
    variants
        Variants here that stand for it.
    explainer
        Method here; "" in the table of accuracies.
    family
        Whether the network is a transformer or not.
    """

    method: str
    level: str = ""
    variants: tuple[str, ...]
    explainer: str = ATTENTION
    family: str = CNN
    values: Mapping[str, Value] = field(repr=False)


DUAL = ("dual-published", "dual")
BASELINE = ("baseline",)
LOCALISATION = ("average_precision", "iou_975", "iou_950", "iou_900")


def _post_hoc(method: str, level: str, explainer: str, values: Mapping[str, Value]) -> PublishedRow:
    family = TRANSFORMER if explainer == "self-attention" else CNN
    return PublishedRow(
        method=method,
        level=level,
        variants=BASELINE,
        explainer=explainer,
        family=family,
        values=values,
    )


def _own(
    method: str, level: str, variants: tuple[str, ...], values: Mapping[str, Value]
) -> PublishedRow:
    return PublishedRow(method=method, level=level, variants=variants, values=values)


def _area(mean: float, sd: float = math.nan) -> Mapping[str, Value]:
    return {"input_perturbation": Value(mean, sd)}


def _found(*values: Value) -> Mapping[str, Value]:
    return dict(zip(LOCALISATION, values, strict=False))  # the KL rows report the first alone


def _model(
    method: str,
    variants: tuple[str, ...],
    family: str,
    values: Mapping[str, Value],
) -> PublishedRow:
    return PublishedRow(
        method=method, variants=variants, explainer="", family=family, values=values
    )


_pet = "balanced_accuracy"
_mr = "accuracy"
_size = "parameters"

PUBLISHED: Mapping[str, Mapping[str, tuple[PublishedRow, ...]]] = {
    "fdg-pet": {
        "table-1": (
            _post_hoc("DeepLIFT", "fine", "deeplift", _area(20.37)),
            _post_hoc("DeepLIFT", "coarse", "deeplift", _area(20.37)),
            _post_hoc("LRP", "fine", "lrp", _area(20.48)),
            _post_hoc("LRP", "coarse", "lrp", _area(20.48)),
            _post_hoc("GradCAM", "fine", "gradcam", _area(21.52)),
            _post_hoc("GradCAM", "coarse", "gradcam", _area(21.90)),
            _post_hoc("ViT-B/16", "fine", "self-attention", _area(21.63, 1.17)),
            _post_hoc("ViT-B/16", "coarse", "self-attention", _area(21.63, 1.17)),
            _own("τ^k", "fine", ("fine",), _area(20.52, 0.34)),
            _own("τ^l", "coarse", ("coarse",), _area(22.34, 0.70)),
            _own("Unconst.", "fine", ("unconstrained",), _area(21.23, 0.72)),
            _own("Unconst.", "coarse", ("unconstrained",), _area(22.11, 0.37)),
            _own("CVX", "fine", ("cvx",), _area(22.18, 0.79)),
            _own("Dual", "fine", DUAL, _area(32.48, 1.81)),
            _own("Dual", "coarse", DUAL, _area(27.59, 1.23)),
        ),
        "table-3": (
            _model("baseline", BASELINE, CNN, {_pet: Value(83.66), _size: Value(23.5)}),
            _model("τ^k", ("fine",), CNN, {_pet: Value(82.56, 0.67), _size: Value(26.6)}),
            _model("τ^l", ("coarse",), CNN, {_pet: Value(80.82, 0.25), _size: Value(27.7)}),
            _model(
                "Unconst.", ("unconstrained",), CNN, {_pet: Value(83.49, 0.66), _size: Value(30.8)}
            ),
            _model("Dual", DUAL, CNN, {_pet: Value(82.79, 0.46), _size: Value(30.8)}),
            _model(
                "ViT-B/16", BASELINE, TRANSFORMER, {_pet: Value(74.99, 1.67), _size: Value(85.4)}
            ),
        ),
    },
    "brats18": {
        "table-2": (
            _post_hoc(
                "DeepLIFT",
                "fine",
                "deeplift",
                _found(Value(49.40), Value(35.18), Value(29.20), Value(18.78)),
            ),
            _post_hoc(
                "LRP",
                "fine",
                "lrp",
                _found(Value(35.61), Value(25.12), Value(22.03), Value(15.18)),
            ),
            _post_hoc(
                "GradCAM",
                "fine",
                "gradcam",
                _found(Value(58.68), Value(31.59), Value(39.34), Value(34.20)),
            ),
            _post_hoc(
                "ViT-B/16",
                "fine",
                "self-attention",
                _found(Value(52.40, 4.1), Value(26.63, 3.2), Value(34.28, 2.5), Value(32.95, 0.9)),
            ),
            _own(
                "τ^k",
                "fine",
                ("fine",),
                _found(Value(33.03, 11.4), Value(18.19, 8.1), Value(25.79, 7.1), Value(23.25, 4.6)),
            ),
            _own(
                "Unconst.",
                "fine",
                ("unconstrained",),
                _found(Value(19.01, 12.3), Value(9.89, 8.5), Value(13.82, 11.1), Value(14.32, 8.4)),
            ),
            _own(
                "CVX",
                "fine",
                ("cvx",),
                _found(
                    Value(34.38, 14.0), Value(19.94, 8.6), Value(24.66, 10.5), Value(23.23, 6.12)
                ),
            ),
            _own(
                "Dual",
                "fine",
                DUAL,
                _found(Value(71.82, 4.2), Value(45.23, 2.0), Value(48.59, 2.9), Value(32.75, 2.3)),
            ),
            _post_hoc(
                "DeepLIFT",
                "coarse",
                "deeplift",
                _found(Value(55.66), Value(40.24), Value(33.38), Value(20.93)),
            ),
            _post_hoc(
                "LRP",
                "coarse",
                "lrp",
                _found(Value(39.58), Value(27.51), Value(23.51), Value(16.10)),
            ),
            _post_hoc(
                "GradCAM",
                "coarse",
                "gradcam",
                _found(Value(45.04), Value(23.78), Value(31.87), Value(29.41)),
            ),
            _own(
                "τ^l",
                "coarse",
                ("coarse",),
                _found(Value(34.17, 9.0), Value(17.88, 4.9), Value(24.20, 5.2), Value(23.89, 4.2)),
            ),
            _own(
                "Unconst.",
                "coarse",
                ("unconstrained",),
                _found(Value(41.44, 10.0), Value(23.65, 5.5), Value(29.19, 5.6), Value(26.09, 4.0)),
            ),
            _own("KL(τ^l, pooled τ^k)", "coarse", ("kl-forward",), _found(Value(45.78, 7.21))),
            _own("KL(τ^k, τ^l) reversed", "coarse", ("kl-reverse",), _found(Value(45.56, 7.14))),
            _own(
                "Dual",
                "coarse",
                DUAL,
                _found(Value(76.16, 3.8), Value(46.17, 1.7), Value(51.29, 2.7), Value(34.64, 2.0)),
            ),
        ),
        "table-3": (
            _model("baseline", BASELINE, CNN, {_mr: Value(97.17), _size: Value(4.7)}),
            _model("τ^k", ("fine",), CNN, {_mr: Value(97.09, 0.25), _size: Value(4.7)}),
            _model("τ^l", ("coarse",), CNN, {_mr: Value(97.30, 0.19), _size: Value(4.9)}),
            _model(
                "Unconst.", ("unconstrained",), CNN, {_mr: Value(97.26, 0.17), _size: Value(4.9)}
            ),
            _model("Dual", DUAL, CNN, {_mr: Value(97.36, 0.26), _size: Value(4.9)}),
            _model(
                "ViT-B/16", BASELINE, TRANSFORMER, {_mr: Value(97.31, 0.44), _size: Value(85.4)}
            ),
        ),
    },
}
"""Data set -> table -> the paper's rows."""


def published(
    recipe: str, table: str, *, variant: str, network: str, explainer: str
) -> list[PublishedRow]:
    """Return the paper's rows, of all levels, that a method of a model here stands for.

    Parameters
    ----------
    explainer
        "" in the table of accuracies.
    """
    family = TRANSFORMER if network.startswith(TRANSFORMER) else CNN
    if (variant, explainer) == ("unconstrained", "cvx"):  # the program on free maps is its "CVX"
        variant, explainer = "cvx", ATTENTION
    return [
        row
        for row in PUBLISHED.get(recipe, {}).get(table, ())
        if variant in row.variants and row.explainer == explainer and row.family == family
    ]
