"""The paper's numbers, spot-checked against its printed tables, and whom they stand beside."""

import math

import pytest

from models.attention import ATTENTIONS
from models.explainers import EXPLAINERS
from models.metrics import METRICS
from pipelines.published import PUBLISHED, PublishedRow, Value, published


def row(recipe: str, table: str, method: str, level: str = "") -> PublishedRow:
    (found,) = [x for x in PUBLISHED[recipe][table] if (x.method, x.level) == (method, level)]
    return found


@pytest.mark.parametrize(
    ("recipe", "table", "method", "level", "measure", "mean", "sd"),
    [
        ("fdg-pet", "table-1", "Dual", "fine", "input_perturbation", 32.48, 1.81),
        ("fdg-pet", "table-1", "Dual", "coarse", "input_perturbation", 27.59, 1.23),
        ("fdg-pet", "table-1", "GradCAM", "coarse", "input_perturbation", 21.90, None),
        ("fdg-pet", "table-1", "CVX", "fine", "input_perturbation", 22.18, 0.79),
        ("brats18", "table-2", "Dual", "coarse", "average_precision", 76.16, 3.8),
        ("brats18", "table-2", "Dual", "fine", "iou_900", 32.75, 2.3),
        ("brats18", "table-2", "DeepLIFT", "coarse", "iou_975", 40.24, None),
        ("brats18", "table-2", "Unconst.", "fine", "iou_950", 13.82, 11.1),
        ("brats18", "table-2", "CVX", "fine", "iou_900", 23.23, 6.12),
        ("brats18", "table-2", "KL(τ^k, τ^l) reversed", "coarse", "average_precision", 45.56, 7.14),
        ("brats18", "table-3", "Dual", "", "accuracy", 97.36, 0.26),
        ("fdg-pet", "table-3", "τ^l", "", "balanced_accuracy", 80.82, 0.25),
        ("fdg-pet", "table-3", "ViT-B/16", "", "parameters", 85.4, None),
    ],
)
def test_printed_numbers(
    recipe: str,
    table: str,
    method: str,
    level: str,
    measure: str,
    mean: float,
    sd: float | None,
) -> None:
    value = row(recipe, table, method, level).values[measure]
    assert value.mean == mean
    assert (None if math.isnan(value.sd) else value.sd) == sd


def test_every_row_stands_for_something_that_exists() -> None:
    for tables in PUBLISHED.values():
        for rows in tables.values():
            for found in rows:
                assert set(found.variants) <= set(ATTENTIONS)
                assert found.explainer in ("", *EXPLAINERS)
                names = set(found.values) - {"accuracy", "balanced_accuracy", "parameters"}
                assert names <= set(METRICS)


def test_counts_are_those_of_the_paper() -> None:
    counts = {(r, t): len(rows) for r, tables in PUBLISHED.items() for t, rows in tables.items()}
    assert counts == {
        ("fdg-pet", "table-1"): 15,
        ("fdg-pet", "table-3"): 6,
        ("brats18", "table-2"): 16,
        ("brats18", "table-3"): 6,
    }


@pytest.mark.parametrize("variant", ["dual", "dual-published"])
def test_both_duals_stand_for_dual(variant: str) -> None:
    rows = published("brats18", "table-2", variant=variant, network="unet", explainer="attention")
    assert [(x.method, x.level) for x in rows] == [("Dual", "fine"), ("Dual", "coarse")]


def test_free_gates_made_to_agree_afterwards_stand_for_cvx() -> None:
    common = {"network": "resnet50"}
    after = published("fdg-pet", "table-1", variant="unconstrained", explainer="cvx", **common)
    own = published("fdg-pet", "table-1", variant="cvx", explainer="attention", **common)
    assert [x.method for x in after] == ["CVX"]
    assert after == own


def test_a_transformer_is_not_the_convolutional_baseline() -> None:
    one, other = (
        published("brats18", "table-3", variant="baseline", network=name, explainer="")
        for name in ("vit-b16", "unet-encoder")
    )
    assert [x.method for x in one] == ["ViT-B/16"]
    assert [x.method for x in other] == ["baseline"]


@pytest.mark.parametrize(
    ("recipe", "variant", "explainer"),
    [
        ("chestxray14", "dual", "attention"),
        ("brats18", "exact", "attention"),
        ("brats18", "dual", "lrp"),
    ],
)
def test_what_the_paper_does_not_have_has_no_row(recipe: str, variant: str, explainer: str) -> None:
    assert not published(recipe, "table-2", variant=variant, network="unet", explainer=explainer)


def test_values_are_written_as_printed() -> None:
    assert Value(71.82, 4.2).text() == "71.82 ± 4.2"
    assert Value(97.3).text() == "97.30"
    assert Value(23.5).text(1) == "23.5"
