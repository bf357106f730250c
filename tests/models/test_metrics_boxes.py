import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from models.errors import MetricError
from models.metrics import METRICS, hits
from models.metrics.boxes import best_box_iou, best_iobb, box_iou, false_boxes, iobb, ior
from models.metrics.components import boxes_of, covered_by, regions

BOX_METRICS = {
    "ior": ior,
    "iobb": iobb,
    "box_iou": box_iou,
    "best_iobb": best_iobb,
    "best_box_iou": best_box_iou,
    "false_boxes": false_boxes,
}


def labelled(selected):
    return ndimage.label(selected, structure=np.ones((3, 3)))


def slow(values, mask, threshold):
    """The definitions on the upsampled map, box by box, with scipy's labels."""
    rows = np.arange(mask.shape[0]) * values.shape[0] // mask.shape[0]
    columns = np.arange(mask.shape[1]) * values.shape[1] // mask.shape[1]
    fine = values[rows][:, columns]
    spread = np.ptp(fine)
    selected = (fine - fine.min()) / (spread or 1) >= threshold / 255
    selected |= spread == 0
    labels, _ = labelled(selected)
    union, single_iobb, single_iou = np.zeros_like(mask), [], []
    for box in ndimage.find_objects(labels):
        one = np.zeros_like(mask)
        one[box] = True
        union |= one
        single_iobb.append((one & mask).sum() / one.sum())
        single_iou.append((one & mask).sum() / (one | mask).sum())
    return {
        "ior": (selected & mask).sum() / selected.sum(),
        "iobb": (union & mask).sum() / union.sum(),
        "box_iou": (union & mask).sum() / (union | mask).sum(),
        "best_iobb": max(single_iobb),
        "best_box_iou": max(single_iou),
        "false_boxes": sum(found < 0.1 for found in single_iobb),
    }


@st.composite
def cases(draw):
    h, w = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    height, width = draw(st.integers(h, 20)), draw(st.integers(w, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    values = rng.integers(0, draw(st.sampled_from([1, 2, 5, 1000])), (h, w)) / 4
    top, left = rng.integers(height), rng.integers(width)
    mask = np.zeros((height, width), dtype=bool)
    mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = True
    return values, mask


@given(cases(), st.sampled_from([0.0, 60.0, 180.0, 255.0]))
def test_boxes_equal_the_definitions(case, threshold):
    values, mask = case
    expected = slow(values, mask, threshold)
    for name, metric in BOX_METRICS.items():
        found = metric(
            torch.from_numpy(values)[None], torch.from_numpy(mask)[None], threshold=threshold
        )
        assert found.item() == pytest.approx(expected[name], abs=1e-12), name


def spiral(side):
    """One region as long as it can be, two cells apart from itself."""
    picture = np.zeros((side, side), dtype=bool)
    row, column, down, across = 0, 0, 0, 1
    for length in [side - 1, *np.repeat(np.arange(side - 1, 0, -2), 2)]:
        for _ in range(length):
            picture[row, column] = True
            row, column = row + down, column + across
        down, across = across, -down
    return picture


@pytest.mark.parametrize("density", [0.1, 0.35, 0.5, 0.9])
def test_regions_equal_those_of_scipy(density):
    selected = np.random.default_rng(0).random((3, 40, 31)) < density
    selected[2] = False
    found = regions(torch.from_numpy(selected)).numpy()
    assert (found[~selected] == -1).all()
    for sample in range(3):
        labels, count = labelled(selected[sample])
        pairs = set(zip(labels[selected[sample]], found[sample][selected[sample]], strict=True))
        assert len(pairs) == count == len({name for _, name in pairs})
    assert len(set(found[0].ravel()) & set(found[1].ravel())) == 1  # -1 alone is shared


def test_a_spiral_is_one_region():
    picture = torch.from_numpy(spiral(33))[None]
    assert picture.sum() > 400
    assert regions(picture).unique().tolist() == [-1, 0]


def test_boxes_by_hand():
    picture = torch.zeros(2, 5, 6, dtype=torch.bool)
    picture[0, 0, 0] = picture[0, 1, 1] = True  # touch at a corner
    picture[1, 3, 2:5] = picture[0, 4, 5] = True
    boxes = boxes_of(picture)
    found = torch.stack([boxes.sample, boxes.top, boxes.left, boxes.bottom, boxes.right], 1)
    assert found.tolist() == [[0, 0, 0, 2, 2], [0, 4, 5, 5, 6], [1, 3, 2, 4, 5]]
    covered = covered_by(boxes, picture.shape)
    assert covered.sum((1, 2)).tolist() == [5, 3]
    nothing = boxes_of(torch.zeros_like(picture))
    assert len(nothing.sample) == 0
    assert not covered_by(nothing, picture.shape).any()


def test_hits_by_hand():
    found = hits(torch.tensor([0.1, 0.6, torch.nan, 0.0, 1.0], dtype=torch.float64))
    assert found[:2].tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]]
    assert found[2].isnan().all()
    assert found[3:].sum(1).tolist() == [0, 5]


def test_a_perfect_map_scores_one_and_a_constant_one_chance():
    mask = torch.zeros(1, 10, 10, dtype=torch.bool)
    mask[:, 2:6, 3:8] = True
    for name, metric in BOX_METRICS.items():
        best = 0.0 if name == "false_boxes" else 1.0
        assert metric(mask.float(), mask, threshold=180.0).item() == best
        chance = 0.0 if name == "false_boxes" else 0.2
        found = metric(torch.full((1, 5, 5), -3.0), mask, threshold=180.0).item()
        assert found == pytest.approx(chance)


@pytest.mark.parametrize("metric", BOX_METRICS.values())
def test_what_cannot_be_cut_is_refused(metric):
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    for threshold in (-1.0, 256.0):
        with pytest.raises(MetricError, match=r"threshold is .*; maps are scaled to \[0, 255\]"):
            metric(torch.rand(1, 4, 4), mask, threshold=threshold)
    with pytest.raises(MetricError, match="a map holds an infinite value; it cannot be scaled"):
        metric(torch.full((1, 4, 4), torch.inf), mask, threshold=60.0)


def test_thresholds_are_those_of_the_names():
    values, mask = torch.rand(2, 8, 8), torch.rand(2, 8, 8) < 0.4
    for name, metric in BOX_METRICS.items():
        for threshold in (60, 180):
            found = METRICS[f"{name}_{threshold}"].measure(values, mask)
            torch.testing.assert_close(found, metric(values, mask, threshold=float(threshold)))
