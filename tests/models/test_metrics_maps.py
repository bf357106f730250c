"""Complexity of one map, agreement of two levels, likeness of two maps."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from skimage.metrics import structural_similarity as skimage_similarity
from torch.nn.functional import interpolate

from models.convex import consistency_value
from models.errors import MetricError, ShapeError
from models.metrics import METRICS, score, uniform_map
from models.metrics.complexity import entropy, gini, group_gini, sparsity
from models.metrics.similarity import (
    cosine,
    normalised_distance,
    structural_similarity,
    top_k_intersection,
)


def names(category):
    return [name for name, metric in METRICS.items() if metric.category == category]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def maps(*shape, seed=0):
    values = drawn(*shape, seed=seed).exp()
    return values / values.sum((1, 2), keepdim=True)


def one_hot(h, w):
    values = torch.zeros(1, h, w).double()
    values[0, h // 2, w // 3] = -2.0
    return values


def slow_gini(sizes):
    """Mean distance between all pairs over twice the mean."""
    return np.abs(sizes[:, None] - sizes).mean() / (2 * sizes.mean())


def test_gini_is_the_mean_distance_of_pairs():
    values = drawn(3, 5, 7)
    expected = [slow_gini(row.abs().flatten().numpy()) for row in values]
    np.testing.assert_allclose(gini(values).numpy(), expected, rtol=1e-12)


def test_gini_of_the_extremes():
    assert gini(torch.full((1, 4, 5), -3.0)).item() == pytest.approx(0, abs=1e-15)
    assert gini(one_hot(4, 5)).item() == pytest.approx(1 - 1 / 20)


def test_gini_is_that_of_the_upsampled_map():
    values = drawn(2, 4, 6)
    fine = interpolate(values[:, None], scale_factor=3, mode="nearest")[:, 0]
    torch.testing.assert_close(gini(fine), gini(values))


def test_group_gini_is_the_gini_of_patch_norms():
    values = drawn(2, 7, 10)
    expected = []
    for sample in values.numpy():
        norms = [
            np.linalg.norm(sample[row : row + 4, column : column + 4])
            for row in (0, 4)
            for column in (0, 4, 8)
        ]
        expected.append(slow_gini(np.array(norms)))
    np.testing.assert_allclose(group_gini(values, side=4).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(group_gini(values, side=1), gini(values))


def test_sparsity_and_entropy_by_hand():
    values = torch.tensor([[[-100.0, 2.0], [0.5, 0.0]]])
    assert sparsity(values, below=0.01).item() == 0.5
    assert sparsity(values, below=1.0).item() == 0.75
    assert entropy(uniform_map((1, 4, 4))).item() == pytest.approx(np.log(16))
    assert entropy(one_hot(3, 3)).item() == 0
    values = drawn(3, 5, 7)
    expected = scipy_entropy(values.abs().flatten(1).numpy(), axis=1)
    np.testing.assert_allclose(entropy(values).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", names("complexity"))
def test_complexity_laws(name):
    values = drawn(3, 8, 8)
    found = score(name, values).per_sample
    torch.testing.assert_close(score(name, -1e-300 * values).per_sample, found)
    parts = torch.cat([score(name, row[None]).per_sample for row in values])
    torch.testing.assert_close(found, parts)
    with_nothing = torch.cat([values[:1], torch.zeros(1, 8, 8)])
    nothing = score(name, with_nothing.double()).per_sample
    assert nothing.isnan().tolist() == [False, True]
    for bad in (torch.nan, torch.inf):
        with pytest.raises(MetricError, match="its shape cannot be measured"):
            score(name, torch.full((1, 4, 4), bad))


def test_complexity_options_are_checked():
    with pytest.raises(MetricError, match="side is 0; a patch has at least one cell"):
        group_gini(drawn(1, 4, 4), side=0)
    for below in (0.0, 1.5):
        with pytest.raises(MetricError, match=f"below is {below}; it is a share of the greatest"):
            sparsity(drawn(1, 4, 4), below=below)


@pytest.mark.parametrize("name", names("consistency"))
def test_levels_that_agree_are_zero_apart_and_others_are_not(name):
    fine = maps(3, 8, 8)
    coarse = fine.unflatten(1, (4, 2)).unflatten(3, (4, 2)).sum((2, 4))
    agreed = score(name, fine, coarse).per_sample
    torch.testing.assert_close(agreed, torch.zeros(3).double(), rtol=0, atol=1e-12)
    apart = score(name, fine, maps(3, 4, 4, seed=1)).per_sample
    assert (apart > 1e-3).all()
    assert (agreed >= 0).all()
    part = score(name, fine[1:2], maps(3, 4, 4, seed=1)[1:2]).per_sample
    torch.testing.assert_close(part, apart[1:2])


def test_divergences_equal_scipy_and_the_program_its_own_module():
    fine, coarse = maps(3, 8, 8), maps(3, 4, 4, seed=1)
    pooled = fine.unflatten(1, (4, 2)).unflatten(3, (4, 2)).sum((2, 4)).flatten(1).numpy()
    level = coarse.flatten(1).numpy()
    found = score("kl_from_coarse", fine, coarse).per_sample
    np.testing.assert_allclose(found, scipy_entropy(level, pooled, axis=1), rtol=1e-9)
    found = score("kl_from_fine", fine, coarse).per_sample
    np.testing.assert_allclose(found, scipy_entropy(pooled, level, axis=1), rtol=1e-9)
    expected = consistency_value(fine.log(), coarse.log())
    torch.testing.assert_close(score("program_value", fine, coarse).per_sample, expected)


def test_disjoint_levels_are_infinitely_apart():
    fine, coarse = torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)
    fine[0, 0, 0] = coarse[0, 1, 1] = 1
    for name in ("kl_from_coarse", "kl_from_fine", "program_value"):
        assert score(name, fine, coarse).per_sample.isinf().all()
    assert score("total_variation", fine, coarse).per_sample.item() == 1


@pytest.mark.parametrize("name", names("robustness"))
def test_a_map_is_like_itself(name):
    values = drawn(2, 12, 13).round()  # with ties and zeros
    best = 0.0 if name == "normalised_distance" else 1.0
    found = score(name, values, 3 * values).per_sample
    torch.testing.assert_close(found, torch.full((2,), best).double(), rtol=0, atol=1e-9)
    other = score(name, values, drawn(2, 12, 13, seed=1)).per_sample
    assert ((other - best).abs() > 0.1).all()


@pytest.mark.parametrize("name", names("robustness"))
def test_likeness_of_a_batch_equals_its_parts(name):
    one, other = drawn(3, 12, 12), drawn(3, 12, 12, seed=1)
    parts = [score(name, one[i : i + 1], other[i : i + 1]).per_sample for i in range(3)]
    torch.testing.assert_close(score(name, one, other).per_sample, torch.cat(parts))


def test_top_k_by_sets():
    one, other = drawn(4, 5, 8), drawn(4, 5, 8, seed=1)
    expected = []
    for first, second in zip(one.flatten(1).abs(), other.flatten(1).abs(), strict=True):
        tops = [set(each.argsort(descending=True)[:16].tolist()) for each in (first, second)]
        expected.append(len(tops[0] & tops[1]) / 16)
    np.testing.assert_allclose(top_k_intersection(one, other), expected)


def test_top_k_counts_the_cells_that_are_not_zero_and_shares_ties():
    one = torch.tensor([[[4.0, 3.0, 2.0, 1.0, 0.0, 0.0]]])
    other = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]])
    # two of four; each of six equal cells belongs to the two greatest by a third
    assert top_k_intersection(one, other, share=0.5).item() == pytest.approx(1 / 3)
    with pytest.raises(MetricError, match=r"share is 0\.0; it is a share of cells"):
        top_k_intersection(one, other, share=0.0)


def test_distances_by_hand():
    one, other = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[-6.0, -8.0]]])
    assert normalised_distance(one, other).item() == pytest.approx(2)
    assert cosine(one, other).item() == pytest.approx(-1)
    across = torch.tensor([[[1e-200, 0.0]]], dtype=torch.float64)
    assert cosine(one.double(), across).item() == pytest.approx(0.6)
    assert normalised_distance(one.double(), across).item() == pytest.approx(np.sqrt(0.8))


def test_maps_of_nothing_have_no_direction():
    nothing, values = torch.zeros(1, 12, 12), drawn(1, 12, 12).float()
    for name in ("normalised_distance", "cosine", "top_k_intersection"):
        assert score(name, nothing, values).per_sample.isnan().all()
    for name in ("normalised_distance", "cosine"):
        assert score(name, values, nothing).per_sample.isnan().all()
    assert score("structural_similarity", nothing, nothing).per_sample.item() == 1


def test_structural_similarity_equals_scikit_image():
    one, other = drawn(2, 20, 15), drawn(2, 20, 15, seed=1)
    other = 0.5 * one + other
    expected = []
    for pair in zip(one.numpy(), other.numpy(), strict=True):
        shown = [(each - each.min()) / np.ptp(each) for each in pair]
        expected.append(
            skimage_similarity(
                *shown, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
        )
    np.testing.assert_allclose(structural_similarity(one, other), expected, atol=1e-9)


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(MetricError, match="the maps have 4 x 12 cells and the window 11 x 11"):
        structural_similarity(drawn(1, 4, 12), drawn(1, 4, 12))
    for name in names("robustness"):
        with pytest.raises(MetricError, match="a map holds NaN or an infinite value; it is like"):
            score(name, drawn(1, 12, 12), torch.full((1, 12, 12), torch.nan).double())
        with pytest.raises(ShapeError, match=r"maps of \(1, 12, 12\) and \(1, 6, 6\) cannot be"):
            score(name, drawn(1, 12, 12), drawn(1, 6, 6))
