import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import sobel
from sklearn.metrics import average_precision_score
from torch.nn.functional import interpolate

from models.errors import MetricError, ShapeError
from models.metrics import (
    METRICS,
    average_precision,
    centred_gaussian_map,
    edge_map,
    iou_cap,
    iou_equal_area,
    iou_quantile,
    mass_inside,
    mean_mask_map,
    pointing_game,
    random_map,
    score,
    scores,
    total_variation,
    true_map,
    uniform_map,
)

LOCALISATION = [name for name, metric in METRICS.items() if metric.category == "localisation"]


def upsampled(values, shape):
    """Nearest neighbour by index arithmetic in integers."""
    rows = np.arange(shape[0]) * values.shape[0] // shape[0]
    columns = np.arange(shape[1]) * values.shape[1] // shape[1]
    return values[rows][:, columns]


@st.composite
def cases(draw):
    """Maps with many ties and masks that are not empty, one sample, any two sizes."""
    h, w = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    height, width = draw(st.integers(h, 13)), draw(st.integers(w, 13))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    values = rng.integers(-levels, levels + 1, (h, w)) / 4
    mask = rng.random((height, width)) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    mask[rng.integers(height), rng.integers(width)] = True
    return values, mask


def tensors(case):
    return torch.from_numpy(case[0])[None], torch.from_numpy(case[1])[None]


@given(cases())
def test_average_precision_equals_scikit_learn(case):
    values, mask = case
    expected = average_precision_score(mask.ravel(), upsampled(values, mask.shape).ravel())
    assert average_precision(*tensors(case)).item() == pytest.approx(expected, abs=1e-12)


def selections(values, mask, area):
    """Mean intersection over random orders of tied pixels, each order explicit."""
    pixels, true = upsampled(values, mask.shape).ravel(), mask.ravel()
    rng, hits = np.random.default_rng(0), []
    for _ in range(400):
        order = np.lexsort((rng.random(len(pixels)), -pixels))
        hits.append(true[order[:area]].sum())
    return np.mean(hits)


@pytest.mark.parametrize("seed", range(5))
def test_ties_are_shared_as_random_orders_would(seed):
    rng = np.random.default_rng(seed)
    values, mask = rng.integers(0, 3, (4, 4)).astype(float), rng.random((8, 8)) < 0.3
    area = 20
    score_ = iou_quantile(*tensors((values, mask)), quantile=1 - area / 64).item()
    union_and_intersection = area + mask.sum()
    intersection = score_ * union_and_intersection / (1 + score_)
    assert intersection == pytest.approx(selections(values, mask, area), abs=0.4)


@given(cases(), st.sampled_from([0.0, 0.5, 0.9, 0.975]))
def test_iou_without_ties_is_that_of_the_top_pixels(case, quantile):
    mask = case[1]
    rng = np.random.default_rng(mask.sum())
    values = rng.permutation(mask.size).reshape(mask.shape).astype(float)
    area = (1 - quantile) * mask.size
    order = np.argsort(-values.ravel())
    whole = int(area + 1e-9)
    true = mask.ravel()[order]
    last = (area - whole) * true[whole] if whole < mask.size else 0.0
    intersection = true[:whole].sum() + last
    expected = intersection / (area + mask.sum() - intersection)
    found = iou_quantile(*tensors((values, mask)), quantile=quantile).item()
    assert found == pytest.approx(expected, abs=1e-9)


@given(cases())
def test_perfect_map_is_perfect(case):
    mask = torch.from_numpy(case[1])[None]
    perfect = mask.double()
    assert average_precision(perfect, mask).item() == 1
    assert iou_equal_area(perfect, mask).item() == pytest.approx(1)
    assert pointing_game(perfect, mask).item() == 1
    assert mass_inside(perfect, mask).item() == 1
    area, selected = mask.sum().item(), 0.1 * mask.numel()
    cap = min(area, selected) / max(area, selected)
    assert iou_quantile(perfect, mask, quantile=0.9).item() == pytest.approx(cap)


@given(cases(), st.sampled_from([0.0, 0.5, 0.9, 0.975]))
def test_the_true_mask_scores_the_cap(case, quantile):
    mask = torch.from_numpy(case[1])[None]
    found = iou_quantile(true_map(mask), mask, quantile=quantile)
    torch.testing.assert_close(found, iou_cap(mask, quantile=quantile))


@given(cases())
def test_equal_area_ratio_and_overlap_say_the_same(case):
    values, mask = tensors(case)
    ratio = score("ior_equal_area", values, mask).per_sample
    # of two sets of one size, IoU is r / (2 - r) with r their share of each other
    torch.testing.assert_close(iou_equal_area(values, mask), ratio / (2 - ratio))


@given(cases())
def test_metrics_by_rank_ignore_the_scale(case):
    values, mask = tensors(case)
    names = [name for name, metric in METRICS.items() if metric.ranks]
    for one, other in zip(
        scores(names, values, mask), scores(names, values**3 - 9, mask), strict=True
    ):
        torch.testing.assert_close(one.per_sample, other.per_sample, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOCALISATION)
def test_a_batch_equals_its_parts(name):
    values, mask = torch.rand(5, 8, 8), torch.rand(5, 16, 16) < 0.3
    whole = score(name, values, mask).per_sample
    parts = [score(name, values[i : i + 1], mask[i : i + 1]).per_sample for i in range(5)]
    torch.testing.assert_close(whole, torch.cat(parts))


@pytest.mark.parametrize("name", LOCALISATION)
def test_a_mask_of_the_whole_picture_has_a_defined_answer(name):
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    found = score(name, torch.rand(1, 4, 4), mask).per_sample.item()
    known = {"iou_975": 0.025, "iou_950": 0.05, "iou_900": 0.1}
    if name.startswith("false_boxes"):
        assert found == 0
    elif "box_iou" in name:
        assert 0 < found <= 1
    else:
        assert found == pytest.approx(known.get(name, 1.0))


def test_several_metrics_of_one_ranking_are_each_their_own():
    values, mask = torch.rand(4, 8, 8), torch.rand(4, 16, 16) < 0.3
    for found in scores(LOCALISATION, values, mask):
        torch.testing.assert_close(
            found.per_sample, METRICS[found.name].measure(values, mask), rtol=0, atol=0
        )


def test_every_metric_says_where_it_is_from():
    assert all(metric.source for metric in METRICS.values())


@given(cases())
def test_constant_map_scores_chance(case):
    values, mask = tensors(case)
    constant, share = torch.full_like(values, 0.25), mask.double().mean().item()
    assert average_precision(constant, mask).item() == pytest.approx(share)
    assert pointing_game(constant, mask).item() == pytest.approx(share)
    assert mass_inside(constant, mask).item() == pytest.approx(share)
    hit = 0.1 * share
    chance = hit / (0.1 + share - hit)
    assert iou_quantile(constant, mask, quantile=0.9).item() == pytest.approx(chance)
    assert iou_equal_area(constant, mask).item() == pytest.approx(share / (2 - share))


@pytest.mark.parametrize("name", LOCALISATION)
def test_cells_stand_for_the_upsampled_map(name):
    values = torch.rand(3, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.2
    fine = interpolate(values[:, None], size=(16, 16), mode="nearest")[:, 0]
    torch.testing.assert_close(
        score(name, values, mask).per_sample, score(name, fine, mask).per_sample
    )


@pytest.mark.parametrize("name", LOCALISATION)
def test_empty_mask_is_undefined_and_touches_no_other_sample(name):
    values = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1, :3] = True
    scores = score(name, values, mask).per_sample
    assert scores[0].isnan()
    assert scores[1].item() == score(name, values[1:], mask[1:]).per_sample.item()


def test_pointing_game_by_hand():
    values = torch.tensor([[[1.0, 3.0], [3.0, 0.0]]])
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2, 2:] = True  # one of the two greatest cells
    assert pointing_game(values, mask).item() == 0.5
    mask[:, 0, 2:] = False  # half of it
    assert pointing_game(values, mask).item() == 0.25


def test_mass_inside_by_hand():
    values = torch.tensor([[[3.0, -5.0], [1.0, 0.0]]])
    mask = torch.tensor([[[True, True], [False, False]]])
    assert mass_inside(values, mask).item() == 0.75
    assert mass_inside(-values.relu(), mask).isnan().all()


def test_total_variation_by_hand():
    fine = torch.zeros(2, 4, 4)
    fine[:, 0, 0], fine[:, 1, 1], fine[:, 3, 3] = 0.25, 0.25, 0.5
    coarse = torch.tensor([[[0.5, 0.0], [0.0, 0.5]], [[0.0, 1.0], [0.0, 0.0]]])
    torch.testing.assert_close(
        total_variation(fine, coarse), torch.tensor([0.0, 1.0], dtype=torch.float64)
    )


def test_controls_are_distributions():
    uniform = uniform_map((2, 3, 4))
    torch.testing.assert_close(uniform, torch.full((2, 3, 4), 1 / 12))
    drawn = random_map((500, 2, 2), generator=torch.Generator().manual_seed(0))
    again = random_map((500, 2, 2), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, again, rtol=0, atol=0)
    torch.testing.assert_close(drawn.sum((1, 2)), torch.ones(500))
    torch.testing.assert_close(drawn.mean(0), torch.full((2, 2), 0.25), rtol=0, atol=0.03)
    # the first cell of a flat Dirichlet of four has the variance 3/80
    assert drawn[:, 0, 0].var().item() == pytest.approx(3 / 80, rel=0.25)


def test_the_centred_gaussian_by_hand():
    bell = centred_gaussian_map((2, 9, 5), spread=0.3)
    torch.testing.assert_close(bell.sum((1, 2)), torch.ones(2))
    assert bell[0].argmax() == 4 * 5 + 2
    torch.testing.assert_close(bell, bell.flip(1, 2))
    ratio = np.exp(-((1 / 5) ** 2) / (2 * 0.3**2))
    assert (bell[0, 4, 3] / bell[0, 4, 2]).item() == pytest.approx(ratio)
    with pytest.raises(MetricError, match=r"spread is 0\.0; a bell has a positive width"):
        centred_gaussian_map((1, 2, 2), spread=0.0)


def test_the_mean_mask_by_hand():
    masks = torch.tensor([[[True, False]], [[True, True]]])
    torch.testing.assert_close(
        mean_mask_map(masks, 3), torch.tensor([[[2 / 3, 1 / 3]]]).expand(3, -1, -1)
    )
    with pytest.raises(MetricError, match="none of 2 training masks holds a pixel"):
        mean_mask_map(torch.zeros(2, 3, 3, dtype=torch.bool), 1)


def test_edges_equal_those_of_scipy():
    images = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0)).double()
    expected = np.zeros((2, 9, 7))
    for sample, channel in np.ndindex(2, 3):
        for axis in (0, 1):  # whose kernel sums to 8
            slope = sobel(images[sample, channel].numpy(), axis=axis, mode="nearest") / 8
            expected[sample] += slope**2
    expected = np.sqrt(expected)
    np.testing.assert_allclose(edge_map(images).numpy(), expected, atol=1e-12)
    assert edge_map(torch.full((1, 2, 4, 4), 3.0)).abs().max() == 0


def test_scores_carry_their_direction():
    values, mask = uniform_map((1, 2, 2)), torch.ones(1, 4, 4, dtype=torch.bool)
    made = score("average_precision", values, mask)
    assert (made.name, made.higher_is_better, made.category) == (
        "average_precision",
        True,
        "localisation",
    )
    made = score("total_variation", uniform_map((1, 4, 4)), values)
    assert (made.higher_is_better, made.category) == (False, "consistency")
    assert made.per_sample.item() == pytest.approx(0)


@pytest.mark.parametrize("name", LOCALISATION)
def test_maps_that_cannot_be_measured_are_refused(name):
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(MetricError, match="a map holds NaN; it has no order"):
        score(name, torch.full((1, 2, 2), torch.nan), mask)
    with pytest.raises(MetricError, match="the map has 8 x 2 cells and the mask only 4 x 4"):
        score(name, torch.zeros(1, 8, 2), mask)


@pytest.mark.parametrize("quantile", [-0.1, 1.0, 97.5])
def test_quantiles_out_of_range_are_refused(quantile):
    with pytest.raises(MetricError, match=rf"quantile is {quantile}; it lies in \[0, 1\)"):
        iou_quantile(uniform_map((1, 2, 2)), torch.ones(1, 2, 2).bool(), quantile=quantile)
    with pytest.raises(MetricError, match="quantile is"):
        iou_cap(torch.ones(1, 2, 2).bool(), quantile=quantile)


def test_unknown_metrics_are_refused():
    with pytest.raises(MetricError, match="no metric 'iou_95'; did you mean 'iou_9"):
        score("iou_95", uniform_map((1, 2, 2)), torch.ones(1, 2, 2).bool())


@pytest.mark.parametrize("scale", [2.0, 0.0, float("nan")])
def test_maps_that_are_no_distributions_are_refused(scale):
    with pytest.raises(MetricError, match=r"a coarse map sums to .*; levels are compared as maps"):
        total_variation(uniform_map((2, 4, 4)), scale * uniform_map((2, 2, 2)))
    with pytest.raises(MetricError, match="a fine map sums to"):
        total_variation(scale * uniform_map((2, 4, 4)), uniform_map((2, 2, 2)))


def test_maps_with_a_negative_cell_are_no_distributions():
    fine = torch.tensor([[[1.5, -0.5], [0.0, 0.0]]])
    with pytest.raises(MetricError, match=r"a fine map goes down to -0\.5"):
        total_variation(fine, uniform_map((1, 1, 1)))


def test_infinite_maps_have_an_order_and_no_mass():
    values = torch.tensor([[[torch.inf, 0.0], [0.0, -torch.inf]]])
    mask = torch.tensor([[[True, False], [False, False]]])
    assert average_precision(values, mask).item() == 1
    with pytest.raises(MetricError, match="a map holds an infinite value; its mass"):
        mass_inside(values, mask)


def test_references_that_are_missing_are_refused():
    with pytest.raises(MetricError, match="'iou_900' is a localisation metric and has nothing to"):
        score("iou_900", uniform_map((1, 2, 2)))


def test_grids_that_do_not_nest_are_refused():
    with pytest.raises(ShapeError, match="a 4 x 4 map does not divide into 3 x 3 blocks"):
        total_variation(uniform_map((1, 4, 4)), uniform_map((1, 3, 3)))
