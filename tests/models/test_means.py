"""The arithmetic mean of levels, agreement after the fact, and single steps of a chain."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.distance import jensenshannon

from models.blocks import block_logsumexp, block_shares, block_sum
from models.convex import (
    chain_value,
    climbed,
    consistency_value,
    consistent,
    consistent_chain,
    consistent_maps,
    log_consistent,
)
from models.errors import ShapeError
from tests.reference import convex_oracle

MEANS = ["geometric", "arithmetic"]


def logits(seed, *shape, sd=1.0):
    generator = torch.Generator().manual_seed(seed)
    return sd * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softmax(phi):
    return phi.flatten(1).softmax(1).view_as(phi)


def divergence(p, q):
    return (p * (p / q).log()).flatten(1).sum(1)


@st.composite
def chains(draw):
    """Logits of 2 to 5 nested levels and positive weights."""
    grids = [(draw(st.integers(1, 2)), draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(1, 4))):
        rows, columns = draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3), (1, 1)]))
        grids.append((grids[-1][0] * rows, grids[-1][1] * columns))
    seed = draw(st.integers(0, 2**31))
    phis = [logits(seed + i, 2, *grid) for i, grid in enumerate(reversed(grids))]
    return phis, [draw(st.sampled_from([0.3, 1.0, 2.5])) for _ in phis]


def reverse_solver(phis, weights):
    """Least sum_l w_l KL(tau_l || mu_l) over the finest map, by a general solver; sample 0."""
    taus = [softmax(phi)[0].flatten().numpy() for phi in phis]
    parents = [
        convex_oracle.block_parents(tuple(fine.shape[1:]), tuple(coarse.shape[1:]))
        for fine, coarse in pairwise(phis)
    ]

    def levels(finest):
        maps = [finest]
        for parent in parents:
            maps.append(np.bincount(parent, maps[-1]))
        return maps

    def cost(finest):
        maps = levels(finest)
        return sum(
            w * np.sum(t * np.log(t / m)) for w, t, m in zip(weights, taus, maps, strict=True)
        )

    def gradient(finest):
        """Each level's slope, handed down to the cells below it."""
        slopes = [-w * t / m for w, t, m in zip(weights, taus, levels(finest), strict=True)]
        total = slopes[-1]
        for slope, parent in zip(slopes[-2::-1], parents[::-1], strict=True):
            total = slope + total[parent]
        return total

    answer = minimize(
        cost,
        np.full(taus[0].size, 1 / taus[0].size),
        jac=gradient,
        bounds=[(1e-9, 1)] * taus[0].size,
        constraints=[{"type": "eq", "fun": lambda x: x.sum() - 1}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert answer.success
    return levels(answer.x), answer.fun


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.0, 1.0])
def test_arithmetic_mean_is_its_definition(weight):
    phis = logits(0, 3, 6, 4, sd=2), logits(1, 3, 3, 2, sd=2)
    fine, coarse = consistent(*phis, weight=weight, mean="arithmetic")
    taus = [softmax(phi) for phi in phis]
    block = block_sum(taus[0], (3, 2))
    expected = (1 - weight) * block + weight * taus[1]
    torch.testing.assert_close(coarse, expected)
    spread = (expected / block).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(fine, taus[0] * spread)
    value = consistency_value(*phis, weight=weight, mean="arithmetic")
    cost = 2 * (1 - weight) * divergence(taus[0], fine) + 2 * weight * divergence(taus[1], coarse)
    torch.testing.assert_close(value, cost)


def test_arithmetic_value_is_twice_the_jensen_shannon_divergence():
    phis = logits(0, 3, 6, 4), logits(1, 3, 3, 2)
    pooled = block_sum(softmax(phis[0]), (3, 2)).flatten(1).numpy()
    coarse = softmax(phis[1]).flatten(1).numpy()
    expected = 2 * jensenshannon(pooled, coarse, axis=1) ** 2
    value = consistency_value(*phis, mean="arithmetic")
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(chains())
def test_arithmetic_chain_equals_a_general_solver(chain):
    phis, weights = chain
    maps, cost = reverse_solver(phis, weights)
    for mu, expected in zip(consistent_chain(phis, weights, mean="arithmetic"), maps, strict=True):
        np.testing.assert_allclose(mu[0].flatten().numpy(), expected, rtol=0, atol=1e-5)
    value = chain_value(phis, weights, mean="arithmetic")[0]
    assert float(value) == pytest.approx(cost, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("mean", MEANS)
def test_two_levels_of_a_chain_equal_the_pair(mean):
    phis = logits(0, 3, 6, 4), logits(1, 3, 3, 2)
    pair = consistent(*phis, weight=0.3, mean=mean)
    torch.testing.assert_close(tuple(consistent_chain(phis, [1.4, 0.6], mean=mean)), pair)
    value = consistency_value(*phis, weight=0.3, mean=mean)
    torch.testing.assert_close(chain_value(phis, [1.4, 0.6], mean=mean), value)


@pytest.mark.parametrize("mean", MEANS)
def test_each_sample_may_have_its_own_weight(mean):
    phis = logits(0, 3, 6, 4), logits(1, 3, 3, 2)
    weights = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    maps = consistent(*phis, weight=weights, mean=mean)
    value = consistency_value(*phis, weight=weights, mean=mean)
    for i, weight in enumerate(weights.tolist()):
        one = tuple(phi[i : i + 1] for phi in phis)
        own = consistent(*one, weight=weight, mean=mean)
        torch.testing.assert_close(tuple(level[i : i + 1] for level in maps), own)
        alone = consistency_value(*one, weight=weight, mean=mean)
        torch.testing.assert_close(value[i : i + 1], alone)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sd", [1.0, 80.0, 1000.0])
def test_peaky_arithmetic_maps_agree_and_have_finite_gradients_in_float32(sd, weight):
    phis = [phi.float().requires_grad_() for phi in (logits(0, 4, 32, 32), logits(1, 4, 16, 16))]
    scaled = [sd * phi for phi in phis]
    fine, coarse = consistent(*scaled, weight=weight, mean="arithmetic")
    torch.testing.assert_close(block_sum(fine, (16, 16)), coarse, rtol=0, atol=1e-6)
    torch.testing.assert_close(coarse.sum((1, 2)), torch.ones(4), rtol=0, atol=1e-5)
    value = consistency_value(*scaled, weight=weight, mean="arithmetic")
    assert (value > -1e-5).all()
    for gradient in torch.autograd.grad(fine.square().sum() + value.sum(), phis):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("function", [consistent, log_consistent, consistency_value])
def test_arithmetic_gradients_equal_finite_differences(function):
    phis = [logits(0, 2, 4, 4).requires_grad_(), logits(1, 2, 2, 2).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *p: function(*p, weight=0.3, mean="arithmetic"), phis)


def test_arithmetic_keeps_what_one_level_dismisses_and_geometric_does_not():
    fine, coarse = torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)
    coarse[0, 0, 0] = -30
    assert consistent(fine, coarse, mean="geometric")[1][0, 0, 0] < 1e-6
    assert consistent(fine, coarse, mean="arithmetic")[1][0, 0, 0] > 0.1


@pytest.mark.parametrize("mean", MEANS)
def test_maps_are_made_to_agree_after_the_fact(mean):
    phis = [logits(0, 3, 8, 8), logits(1, 3, 4, 4), logits(2, 3, 2, 2)]
    maps = [softmax(phi) for phi in phis]
    weights = [1.0, 0.5, 2.0]
    expected = consistent_chain(phis, weights, mean=mean)
    torch.testing.assert_close(consistent_maps(maps, weights, mean=mean), expected)


def test_maps_with_empty_cells_are_made_to_agree():
    fine, coarse = torch.zeros(1, 4, 4), torch.full((1, 2, 2), 0.25)
    fine[0, 0, 0] = 1
    fine_map, coarse_map = consistent_maps([fine, coarse])
    torch.testing.assert_close(block_sum(fine_map, (2, 2)), coarse_map, rtol=0, atol=1e-6)
    assert coarse_map[0, 0, 0] > 0.99


@pytest.mark.parametrize("mean", MEANS)
def test_a_chain_is_its_steps(mean):
    """Shares within blocks going up, times the mass of the block going down."""
    phis, weights = [logits(0, 3, 8, 8), logits(1, 3, 4, 4), logits(2, 3, 2, 2)], [1.0, 0.5, 2.0]
    maps = consistent_chain(phis, weights, mean=mean)
    block, shares = block_shares(phis[0], (4, 4))
    torch.testing.assert_close(block, block_logsumexp(phis[0], (4, 4)))
    joint = climbed(block, phis[1], weights=(1.0, 0.5), mean=mean)
    block, coarser = block_shares(joint, (2, 2))
    top = climbed(block, phis[2], weights=(1.5, 2.0), mean=mean)
    torch.testing.assert_close(softmax(top), maps[2])
    middle = coarser * maps[2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(middle, maps[1])
    finest = shares * middle.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(finest, maps[0])


def test_shares_of_a_block_sum_to_one_however_peaky():
    _, shares = block_shares(logits(0, 2, 8, 8, sd=1000).float(), (4, 2))
    torch.testing.assert_close(block_sum(shares, (4, 2)), torch.ones(2, 4, 2), rtol=0, atol=1e-6)


def test_shares_on_a_grid_that_does_not_nest_are_refused():
    with pytest.raises(ShapeError, match="a 8 x 8 map does not divide into 3 x 2 blocks"):
        block_shares(logits(0, 2, 8, 8), (3, 2))


@settings(max_examples=25, deadline=None)
@given(chains())
def test_along_a_path_agreeing_maps_multiply_to_what_the_plain_ones_do(chain):
    """Up to one factor per sample, each map to the power of its weight: the multipliers cancel."""
    phis, weights = chain
    maps = consistent_chain(phis, weights)
    finest = phis[0].shape[1:]
    total = torch.zeros_like(phis[0])
    for phi, level, weight in zip(phis, maps, weights, strict=True):
        gain = weight * (level / softmax(phi)).log()
        rows, columns = (n // m for n, m in zip(finest, phi.shape[1:], strict=True))
        total += gain.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    spread = total.flatten(1)
    torch.testing.assert_close(spread, spread[:, :1].expand_as(spread), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(spread[:, 0], chain_value(phis, weights))
