"""Maps against boxes: laws, and every number against flood fill on the upsampled map."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import MetricError
from models.metrics.boxes import HIT_LEVELS, matches
from pipelines.box_measures import CRITERIA, MEASURES, THRESHOLDS, TrueBoxes, at, measured
from pipelines.box_truth import box_mask

FRAME = (24, 20)


def truth_of(cases: list[np.ndarray], grid: tuple[int, int] = FRAME) -> TrueBoxes:
    """True boxes (left, top, width, height) of each case, drawn one by one."""
    single = [box_mask(box[None], frame=FRAME, grid=grid) for boxes in cases for box in boxes]
    owner = [i for i, boxes in enumerate(cases) for _ in boxes]
    union = [
        np.logical_or.reduce([m for m, o in zip(single, owner, strict=True) if o == i])
        for i in range(len(cases))
    ]
    return TrueBoxes(
        union=torch.from_numpy(np.stack(union)),
        single=torch.from_numpy(np.stack(single)),
        owner=torch.tensor(owner),
    )


def named(values: torch.Tensor, truth: TrueBoxes) -> list[dict[str, float]]:
    rows = measured(values, truth).tolist()
    return [dict(zip(MEASURES, row, strict=True)) for row in rows]


def flooded(selected: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, bottom, right) around 8-connected regions, by flood fill."""
    left_over = selected.copy()
    boxes = []
    while left_over.any():
        row, column = (int(found[0]) for found in np.nonzero(left_over))
        region, queue = [], [(row, column)]
        left_over[row, column] = False
        while queue:
            row, column = queue.pop()
            region.append((row, column))
            for near in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                inside = all(0 <= x < n for x, n in zip(near, selected.shape, strict=True))
                if inside and left_over[near]:
                    left_over[near] = False
                    queue.append(near)
        rows, columns = zip(*region, strict=True)
        boxes.append((min(rows), min(columns), max(rows) + 1, max(columns) + 1))
    return boxes


def painted(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def share_inside(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / one.sum()


def slow(values: np.ndarray, singles: list[np.ndarray], threshold: int) -> dict[str, float]:
    """The definitions, pixel by pixel, for one case."""
    truth = np.logical_or.reduce(singles)
    rows = np.arange(truth.shape[0]) * values.shape[0] // truth.shape[0]
    columns = np.arange(truth.shape[1]) * values.shape[1] // truth.shape[1]
    fine = values[rows][:, columns]
    spread = fine.max() - fine.min()
    selected = (
        np.ones_like(truth) if not spread else (fine - fine.min()) / spread >= threshold / 255
    )
    boxes = [painted(box, truth.shape) for box in flooded(selected)]
    union = np.logical_or.reduce(boxes)
    found: dict[str, float] = {
        f"ior_{threshold}": share_inside(selected, truth),
        f"union_iobb_{threshold}": share_inside(union, truth),
        f"union_iou_{threshold}": iou(union, truth),
    }
    for level in HIT_LEVELS:
        for criterion in CRITERIA:
            score = share_inside if criterion == "iobb" else iou
            best = [max(score(box, single) for box in boxes) for single in singles]
            hits = [x >= level for x in best]
            found[at("best", criterion, threshold, level)] = sum(hits) / len(hits)
            found[at("union", criterion, threshold, level)] = float(
                found[f"union_{criterion}_{threshold}"] >= level
            )
        missed = [share_inside(box, truth) < level for box in boxes]
        found[at("false", "iobb", threshold, level)] = sum(missed)
        missed = [max(iou(box, single) for single in singles) < level for box in boxes]
        found[at("false", "iou", threshold, level)] = sum(missed)
    return found


@st.composite
def drawn(draw: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Maps of three cases, and one to three boxes for each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    values = rng.integers(0, draw(st.sampled_from([1, 3, 1000])), (3, *shape)) / 4.0
    cases = []
    for _ in range(3):
        places = rng.uniform(0, 16, (int(rng.integers(1, 4)), 2))
        sizes = rng.uniform(0.1, 12, (len(places), 2))
        cases.append(np.concatenate([places, sizes], axis=1))
    return values, cases


@settings(max_examples=40)
@given(drawn())
def test_all_numbers_equal_their_definitions(case: tuple[np.ndarray, list[np.ndarray]]) -> None:
    values, cases = case
    truth = truth_of(cases)
    found = named(torch.from_numpy(values), truth)
    for i, row in enumerate(found):
        singles = [
            single.numpy()
            for single, owner in zip(truth.single, truth.owner.tolist(), strict=True)
            if owner == i
        ]
        for threshold in THRESHOLDS:
            for name, wanted in slow(values[i], singles, threshold).items():
                assert row[name] == pytest.approx(wanted, abs=1e-12), name


BOX = np.array([[3.0, 4.0, 8.0, 10.0]])


@pytest.mark.parametrize(
    "boxes",
    [BOX, np.array([[0.0, 0.0, 5.0, 24.0]]), np.array([[15.5, 20.5, 30.0, 30.0]])],
    ids=["inside", "edge to edge", "over the border"],
)
def test_the_filled_true_box_scores_one_everywhere(boxes: np.ndarray) -> None:
    truth = truth_of([boxes])
    (row,) = named(truth.union.float(), truth)
    for name, value in row.items():
        assert value == (0 if name.startswith("false") else 1), name


def test_a_uniform_map_scores_the_share_of_the_area() -> None:
    truth = truth_of([BOX])
    share = 80 / (24 * 20)
    for values in (torch.ones(1, 24, 20), torch.zeros(1, 3, 4), torch.full((1, 1, 1), -2.0)):
        (row,) = named(values, truth)
        for name in ("ior_60", "union_iobb_180", "union_iou_60", "ior_equal_area", "pointing_game"):
            assert row[name] == pytest.approx(share), name
        assert row["best_iobb_60@0.1"] == row["union_iou_180@0.1"] == 1
        assert row["best_iobb_60@0.25"] == row["union_iou_180@0.25"] == 0
        assert (row["false_iobb_60@0.1"], row["false_iobb_60@0.25"]) == (0, 1)


@settings(max_examples=15)
@given(drawn(), st.sampled_from([1e-3, 0.5, 64.0]))
def test_positive_rescaling_changes_nothing(
    case: tuple[np.ndarray, list[np.ndarray]], factor: float
) -> None:
    values, cases = torch.from_numpy(case[0]), truth_of(case[1])
    np.testing.assert_allclose(
        measured(values * factor, cases), measured(values, cases), rtol=0, atol=1e-12
    )


@settings(max_examples=15)
@given(drawn())
def test_accuracies_fall_with_t_and_false_boxes_rise(
    case: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    for row in named(torch.from_numpy(case[0]), truth_of(case[1])):
        for criterion in CRITERIA:
            for threshold in THRESHOLDS:
                each = {
                    form: [row[at(form, criterion, threshold, t)] for t in HIT_LEVELS]
                    for form in ("best", "union", "false")
                }
                assert each["best"] == sorted(each["best"], reverse=True)
                assert each["union"] == sorted(each["union"], reverse=True)
                assert each["false"] == sorted(each["false"])


@settings(max_examples=15)
@given(drawn())
def test_a_batch_equals_its_parts(case: tuple[np.ndarray, list[np.ndarray]]) -> None:
    values = torch.from_numpy(case[0])
    parts = [measured(values[i : i + 1], truth_of([boxes])) for i, boxes in enumerate(case[1])]
    np.testing.assert_array_equal(measured(values, truth_of(case[1])), np.concatenate(parts))


TWO = np.array([[1.0, 1.0, 5.0, 6.0], [12.0, 14.0, 6.0, 7.0]])


def test_of_two_boxes_each_is_found_by_itself() -> None:
    truth = truth_of([TWO])
    (both,) = named(truth.union.float(), truth)
    assert both["best_iou_180@0.9"] == both["union_iou_180@0.9"] == both["iou_equal_area"] == 1
    assert both["false_iou_180@0.9"] == 0
    (one,) = named(truth.single[:1].float(), truth)
    assert one["best_iobb_180@0.9"] == one["best_iou_180@0.1"] == 0.5
    assert one["union_iobb_180"] == 1
    assert one["union_iou_180"] == pytest.approx(30 / 72)
    assert one["false_iou_180@0.9"] == one["false_iobb_180@0.9"] == 0


def test_a_box_below_a_cell_of_the_map_can_be_pointed_at() -> None:
    truth = truth_of([np.array([[10.2, 12.2, 0.3, 0.3]])])
    assert truth.union.sum() == 1
    values = torch.zeros(1, 4, 4)
    values[0, 2, 2] = 1
    (row,) = named(values, truth)
    assert row["pointing_game"] == pytest.approx(1 / 30)
    assert row["union_iobb_180"] == pytest.approx(1 / 30)


def test_single_boxes_of_an_empty_mask_have_no_score() -> None:
    found = matches(torch.rand(2, 4, 4), torch.zeros(2, 8, 8, dtype=torch.bool), threshold=60.0)
    assert len(found.sample)
    assert found.iobb.isnan().all()
    assert found.iou.isnan().all()


def test_a_map_with_nan_is_refused() -> None:
    values = torch.rand(1, 4, 4)
    values[0, 1, 1] = torch.nan
    with pytest.raises(MetricError, match="a map holds NaN"):
        measured(values, truth_of([BOX]))
