from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.func import grad, vmap
from torch.nn.functional import avg_pool2d

from models.convex import (
    block_logsumexp,
    block_sum,
    chain_value,
    consistency_value,
    consistent,
    consistent_chain,
    log_consistent,
)
from models.errors import ShapeError
from tests.reference import convex_oracle

GRIDS = [
    ((2, 2), (1, 1)),
    ((4, 4), (2, 2)),
    ((6, 4), (2, 4)),
    ((3, 5), (3, 5)),
    ((9, 8), (3, 2)),
    ((1, 12), (1, 3)),
    ((32, 32), (16, 16)),
]


def logits(seed, *shape, sd=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return sd * torch.randn(*shape, generator=generator, dtype=dtype)


def softmax(phi):
    return phi.flatten(1).softmax(1).view_as(phi)


def slow_block_sum(fine, grid):
    rows, columns = fine.shape[1] // grid[0], fine.shape[2] // grid[1]
    out = torch.zeros(len(fine), *grid, dtype=fine.dtype)
    for i in range(fine.shape[1]):
        for j in range(fine.shape[2]):
            out[:, i // rows, j // columns] += fine[:, i, j]
    return out


def oracle(phis, weights):
    """The general solver's maps and cost for one sample of each level's logits."""
    taus = [softmax(phi)[0].flatten().double().numpy() for phi in phis]
    parents = [
        convex_oracle.block_parents(tuple(fine.shape[1:]), tuple(coarse.shape[1:]))
        for fine, coarse in pairwise(phis)
    ]
    maps = convex_oracle.solve(taus, parents, weights)
    value = convex_oracle.cost(maps, taus, weights)
    shaped = [torch.from_numpy(m).view(1, *p.shape[1:]) for m, p in zip(maps, phis, strict=True)]
    return shaped, value


@st.composite
def pairs(draw):
    """A batch of fine and coarse logits on nested grids, peaky or flat."""
    h, w, r, s = (draw(st.integers(1, 4)) for _ in range(4))
    batch, seed = draw(st.integers(1, 3)), draw(st.integers(0, 2**31))
    sd = draw(st.sampled_from([0.1, 1.0, 5.0]))
    return logits(seed, batch, h * r, w * s, sd=sd), logits(seed + 1, batch, h, w, sd=sd)


@given(pairs(), st.floats(0, 1))
def test_maps_are_distributions_that_agree(pair, weight):
    fine, coarse = consistent(*pair, weight=weight)
    assert (fine >= 0).all()
    assert (coarse >= 0).all()
    torch.testing.assert_close(fine.sum((1, 2)), torch.ones(len(fine), dtype=fine.dtype))
    torch.testing.assert_close(
        slow_block_sum(fine, coarse.shape[1:]), coarse, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("sd", [1.0, 10.0, 80.0])
@pytest.mark.parametrize(("fine_grid", "grid"), GRIDS)
def test_marginals_agree_in_float32(fine_grid, grid, sd):
    fine, coarse = consistent(
        logits(0, 8, *fine_grid, sd=sd, dtype=torch.float32),
        logits(1, 8, *grid, sd=sd, dtype=torch.float32),
    )
    assert fine.dtype == torch.float32
    torch.testing.assert_close(block_sum(fine, grid), coarse, rtol=0, atol=1e-6)
    torch.testing.assert_close(fine.sum((1, 2)), torch.ones(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.9])
@pytest.mark.parametrize(("fine_grid", "grid"), GRIDS)
def test_equals_general_convex_solver(fine_grid, grid, weight):
    weights = [2 * (1 - weight), 2 * weight]
    for seed, sd in ((0, 0.3), (1, 1.0), (2, 2.0)):
        phis = [logits(seed, 1, *fine_grid, sd=sd), logits(seed + 9, 1, *grid, sd=sd)]
        expected, cost = oracle(phis, weights)
        for map_, tau_map in zip(consistent(*phis, weight=weight), expected, strict=True):
            torch.testing.assert_close(map_, tau_map, rtol=1e-7, atol=1e-9)
        for map_, tau_map in zip(
            consistent(*(phi.float() for phi in phis), weight=weight), expected, strict=True
        ):
            torch.testing.assert_close(map_.double(), tau_map, rtol=0, atol=1e-5)
        value = consistency_value(*phis, weight=weight)
        assert float(value) == pytest.approx(cost, rel=1e-8, abs=1e-10)


def test_equals_sequential_quadratic_programming():
    phis = [logits(3, 1, 4, 6), logits(4, 1, 2, 3)]
    taus = np.concatenate([softmax(phi).flatten().numpy() for phi in phis])
    parent = convex_oracle.block_parents((4, 6), (2, 3))
    answer = minimize(
        lambda x: float(np.sum(x * np.log(x / taus))),
        np.concatenate([np.full(24, 1 / 24), np.full(6, 1 / 6)]),
        jac=lambda x: np.log(x / taus) + 1,
        bounds=[(1e-12, 1)] * 30,
        constraints=[
            {"type": "eq", "fun": lambda x: np.bincount(parent, x[:24]) - x[24:]},
            {"type": "eq", "fun": lambda x: np.array([x[:24].sum() - 1])},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert answer.success
    mine = torch.cat([level.flatten() for level in consistent(*phis)]).numpy()
    np.testing.assert_allclose(mine, answer.x, rtol=0, atol=1e-6)
    assert float(consistency_value(*phis)) == pytest.approx(answer.fun, abs=1e-9)


@given(pairs())
def test_theorem_of_the_dual_witness(pair):
    """One lambda satisfies all three optimality conditions with the same normaliser Z."""
    fine, coarse = consistent(*pair)
    tau_fine, tau_coarse = softmax(pair[0]), softmax(pair[1])
    block = slow_block_sum(tau_fine, coarse.shape[1:])
    witness = (block / tau_coarse).log() / 2
    z = (block * tau_coarse).sqrt().sum((1, 2), keepdim=True)
    rows, columns = fine.shape[1] // coarse.shape[1], fine.shape[2] // coarse.shape[2]
    spread = witness.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    torch.testing.assert_close(coarse, tau_coarse * witness.exp() / z)
    torch.testing.assert_close(fine, tau_fine * (-spread).exp() / z)


@given(pairs())
def test_value_is_the_cost_of_the_maps_and_renyi_divergence(pair):
    value = consistency_value(*pair)
    taus = [softmax(phi) for phi in pair]
    cost = sum(
        (m * (m / t).log()).sum((1, 2)) for m, t in zip(consistent(*pair), taus, strict=True)
    )
    torch.testing.assert_close(value, cost, rtol=1e-8, atol=1e-10)
    renyi = -2 * (slow_block_sum(taus[0], pair[1].shape[1:]) * taus[1]).sqrt().sum((1, 2)).log()
    torch.testing.assert_close(value, renyi, rtol=1e-8, atol=1e-10)
    assert (value >= -1e-12).all()


@given(pairs())
def test_gradient_of_the_value_is_tau_minus_mu(pair):
    fine, coarse = (phi.requires_grad_() for phi in pair)
    grads = torch.autograd.grad(consistency_value(fine, coarse).sum(), (fine, coarse))
    for gradient, phi, mu in zip(grads, pair, consistent(*pair), strict=True):
        torch.testing.assert_close(gradient, softmax(phi) - mu, rtol=1e-8, atol=1e-12)


def test_value_is_zero_just_for_maps_that_agree():
    fine = logits(0, 3, 6, 4)
    agreeing = block_logsumexp(fine, (3, 2)) + 7.0
    torch.testing.assert_close(
        consistency_value(fine, agreeing), torch.zeros(3, dtype=torch.float64)
    )
    agreeing[:, 0, 0] += 0.5
    assert (consistency_value(fine, agreeing) > 1e-4).all()
    for mu, phi in zip(consistent(fine, block_logsumexp(fine, (3, 2))), (fine,), strict=False):
        torch.testing.assert_close(mu, softmax(phi))


def test_weight_zero_keeps_the_fine_map_and_one_the_coarse():
    fine, coarse = logits(0, 2, 4, 6), logits(1, 2, 2, 2)
    torch.testing.assert_close(consistent(fine, coarse, weight=0.0)[0], softmax(fine))
    torch.testing.assert_close(consistent(fine, coarse, weight=1.0)[1], softmax(coarse))
    for weight in (0.0, 1.0):
        value = consistency_value(fine, coarse, weight=weight)
        torch.testing.assert_close(value, torch.zeros(2, dtype=torch.float64))


@given(pairs(), st.floats(-50, 50), st.floats(-50, 50))
def test_shifting_a_level_changes_nothing(pair, up, down):
    shifted = consistent(pair[0] + up, pair[1] + down)
    for before, after in zip(consistent(*pair), shifted, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-8, atol=1e-12)


@given(pairs(), st.floats(0, 1))
def test_log_domain_is_the_logarithm(pair, weight):
    for log_map, level in zip(
        log_consistent(*pair, weight=weight), consistent(*pair, weight=weight), strict=True
    ):
        torch.testing.assert_close(log_map.exp(), level, rtol=1e-9, atol=1e-14)


def test_each_sample_may_have_its_own_weight():
    fine, coarse, weight = logits(0, 3, 4, 4), logits(1, 3, 2, 2), torch.tensor([0.1, 0.5, 1.0])
    weight = weight.double().requires_grad_()
    together = consistent(fine, coarse, weight=weight)
    for i, share in enumerate(weight.tolist()):
        alone = consistent(fine[i : i + 1], coarse[i : i + 1], weight=share)
        for level, sample in zip(together, alone, strict=True):
            torch.testing.assert_close(level[i], sample[0])
    assert torch.autograd.gradcheck(lambda w: consistent(fine, coarse, weight=w), (weight,))


@pytest.mark.parametrize("weight", [0.5, 0.25, 0.0, 1.0])
@pytest.mark.parametrize(
    ("fine_grid", "grid"), [((4, 4), (2, 2)), ((3, 4), (1, 4)), ((2, 6), (2, 2))]
)
def test_gradients_equal_finite_differences(fine_grid, grid, weight):
    phis = (
        logits(0, 2, *fine_grid).requires_grad_(),
        logits(1, 2, *grid).requires_grad_(),
    )
    for function in (consistent, log_consistent, consistency_value):
        assert torch.autograd.gradcheck(lambda f, c, g=function: g(f, c, weight=weight), phis)
        assert torch.autograd.gradgradcheck(lambda f, c, g=function: g(f, c, weight=weight), phis)


def test_gradients_equal_those_of_the_composition():
    phis = [logits(0, 2, 8, 8).requires_grad_(), logits(1, 2, 4, 4).requires_grad_()]
    weights = [logits(2, 2, 8, 8), logits(3, 2, 4, 4)]
    closed = sum((m * w).sum() for m, w in zip(consistent(*phis), weights, strict=True))
    composed = sum((m.exp() * w).sum() for m, w in zip(log_consistent(*phis), weights, strict=True))
    for a, b in zip(
        torch.autograd.grad(closed, phis), torch.autograd.grad(composed, phis), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("function", [consistent, log_consistent, consistency_value])
@pytest.mark.parametrize("sd", [80.0, 1000.0])
def test_peaky_logits_stay_finite(function, sd):
    phis = [
        logits(0, 16, 32, 32, sd=sd, dtype=torch.float32).requires_grad_(),
        logits(1, 16, 16, 16, sd=sd, dtype=torch.float32).requires_grad_(),
    ]
    outputs = function(*phis)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((out * torch.randn_like(out)).sum() for out in outputs)
    for tensor in (*outputs, *torch.autograd.grad(loss, phis)):
        assert torch.isfinite(tensor).all()


def test_float32_gradients_of_peaky_logits_equal_float64():
    phis = [logits(0, 8, 16, 16, sd=80), logits(1, 8, 8, 8, sd=80)]
    seeds = [logits(2, 8, 16, 16), logits(3, 8, 8, 8)]

    def gradients(dtype):
        leaves = [phi.to(dtype).requires_grad_() for phi in phis]
        return torch.autograd.grad(consistent(*leaves), leaves, [s.to(dtype) for s in seeds])

    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)


def test_a_sample_does_not_see_its_neighbours():
    phis = [logits(0, 5, 32, 32, dtype=torch.float32), logits(1, 5, 16, 16, dtype=torch.float32)]
    whole, value = consistent(*phis), consistency_value(*phis)
    for i in range(5):
        alone = [phi[i : i + 1] for phi in phis]
        for level, sample in zip(whole, consistent(*alone), strict=True):
            torch.testing.assert_close(level[i : i + 1], sample, rtol=0, atol=1e-7)
        torch.testing.assert_close(value[i : i + 1], consistency_value(*alone), rtol=0, atol=1e-6)


def test_half_precision_is_computed_in_float32():
    fine, coarse = logits(0, 2, 8, 8).bfloat16(), logits(1, 2, 4, 4).bfloat16()
    maps = consistent(fine, coarse)
    assert [level.dtype for level in maps] == [torch.float32] * 2
    torch.testing.assert_close(block_sum(maps[0], (4, 4)), maps[1], rtol=0, atol=1e-6)
    assert consistent_chain([fine, coarse])[0].dtype == torch.float32
    assert chain_value([fine, coarse]).dtype == torch.float32


def test_memory_layout_does_not_matter():
    fine, coarse = logits(0, 2, 8, 4), logits(1, 2, 4, 2)
    turned = consistent(fine.mT.contiguous().mT, coarse.mT.contiguous().mT)
    for a, b in zip(consistent(fine, coarse), turned, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_vmap_agrees_with_a_loop():
    fine, coarse = logits(0, 3, 2, 4, 4), logits(1, 3, 2, 2, 2)

    def loss(f, c):
        return (consistent(f, c)[0] ** 2).sum() + consistency_value(f, c).sum()

    mapped = vmap(grad(loss))(fine, coarse)
    looped = torch.stack([grad(loss)(f, c) for f, c in zip(fine, coarse, strict=True)])
    torch.testing.assert_close(mapped, looped)


@given(pairs())
def test_pooling_is_by_blocks(pair):
    fine, grid = pair[0], tuple(pair[1].shape[1:])
    torch.testing.assert_close(block_sum(fine, grid), slow_block_sum(fine, grid))
    torch.testing.assert_close(
        block_logsumexp(fine, grid), slow_block_sum(fine.exp(), grid).log(), rtol=1e-7, atol=1e-7
    )


def test_block_sum_equals_average_pooling():
    fine = logits(0, 2, 8, 12)
    torch.testing.assert_close(block_sum(fine, (4, 4)), 6 * avg_pool2d(fine, (2, 3)))


@st.composite
def chains(draw):
    """Logits of 2 to 5 nested levels, one sample, with positive weights."""
    levels, seed = draw(st.integers(2, 5)), draw(st.integers(0, 2**31))
    grid = [draw(st.integers(1, 2)), draw(st.integers(1, 3))]
    grids = [tuple(grid)]
    for _ in range(levels - 1):
        factors = draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3), (1, 1)]))
        grids.append((grids[-1][0] * factors[0], grids[-1][1] * factors[1]))
    phis = [logits(seed + i, 1, *g) for i, g in enumerate(reversed(grids))]
    return phis, [draw(st.sampled_from([0.3, 1.0, 2.5])) for _ in phis]


@settings(max_examples=40)
@given(chains())
def test_chain_equals_general_convex_solver(chain):
    phis, weights = chain
    maps = consistent_chain(phis, weights)
    expected, cost = oracle(phis, weights)
    for mu, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(mu, reference, rtol=1e-6, atol=1e-8)
    assert float(chain_value(phis, weights)) == pytest.approx(cost, rel=1e-7, abs=1e-9)


@settings(max_examples=40)
@given(chains())
def test_chain_satisfies_the_optimality_conditions(chain):
    """Stationarity within each level, with multipliers that the recursion itself names."""
    phis, weights = chain
    maps = consistent_chain(phis, weights)
    for finer, coarser in pairwise(maps):
        torch.testing.assert_close(
            slow_block_sum(finer, coarser.shape[1:]), coarser, rtol=1e-9, atol=1e-12
        )
    # w_l log(mu/tau) + lambda_l - lambda_{l+1, parent} is constant within every level, finest up
    below = torch.zeros_like(maps[0])
    for level, (mu, phi, weight) in enumerate(zip(maps, phis, weights, strict=True)):
        stationary = weight * (mu / softmax(phi)).log() + below
        if level == len(maps) - 1:
            break
        grid = maps[level + 1].shape[1:]
        cells = mu.shape[1] // grid[0] * (mu.shape[2] // grid[1])
        upper = slow_block_sum(stationary, grid) / cells  # any member: equal within a block
        spread = upper.repeat_interleave(mu.shape[1] // grid[0], 1)
        spread = spread.repeat_interleave(mu.shape[2] // grid[1], 2)
        torch.testing.assert_close(stationary, spread, rtol=1e-8, atol=1e-8)
        below = upper
    mean = stationary.mean().expand_as(stationary)
    torch.testing.assert_close(stationary, mean, rtol=1e-8, atol=1e-8)


def test_two_levels_equal_consistent():
    phis = [logits(0, 3, 8, 6), logits(1, 3, 4, 3)]
    for a, b in zip(consistent_chain(phis), consistent(*phis), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(consistent_chain(phis, [0.6, 1.4]), consistent(*phis, weight=0.7), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(chain_value(phis), consistency_value(*phis))


def test_one_level_is_its_softmax():
    phi = logits(0, 2, 3, 3)
    torch.testing.assert_close(consistent_chain([phi])[0], softmax(phi))
    torch.testing.assert_close(chain_value([phi]), torch.zeros(2, dtype=torch.float64))


def test_chain_gradients():
    phis = tuple(logits(i, 2, n, n).requires_grad_() for i, n in enumerate((4, 2, 1)))
    weights = [1.0, 0.5, 2.0]
    assert torch.autograd.gradcheck(lambda *p: tuple(consistent_chain(p, weights)), phis)
    assert torch.autograd.gradgradcheck(lambda *p: chain_value(p, weights), phis)
    grads = torch.autograd.grad(chain_value(phis, weights).sum(), phis)
    for g, phi, mu, w in zip(grads, phis, consistent_chain(phis, weights), weights, strict=True):
        torch.testing.assert_close(g, w * (softmax(phi) - mu), rtol=1e-8, atol=1e-12)


def test_peaky_chain_stays_finite_and_agrees():
    phis = [
        logits(i, 4, n, n, sd=80, dtype=torch.float32).requires_grad_()
        for i, n in enumerate((32, 16, 8))
    ]
    maps = consistent_chain(phis)
    for finer, coarser in pairwise(maps):
        torch.testing.assert_close(block_sum(finer, coarser.shape[1:]), coarser, rtol=0, atol=1e-6)
    loss = sum((m * torch.randn_like(m)).sum() for m in maps) + chain_value(phis).sum()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, phis))


@pytest.mark.parametrize("function", [consistent, log_consistent, consistency_value])
def test_grids_that_do_not_nest_are_refused(function):
    with pytest.raises(ShapeError, match="a 15 x 15 map does not divide into 8 x 8 blocks"):
        function(torch.zeros(1, 15, 15), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="a 8 x 6 map does not divide into 4 x 4 blocks"):
        function(torch.zeros(1, 8, 6), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("function", [block_sum, block_logsumexp])
def test_pooling_to_a_grid_that_does_not_nest_is_refused(function):
    with pytest.raises(ShapeError, match="a 4 x 4 map does not divide into 3 x 2 blocks"):
        function(torch.zeros(1, 4, 4), (3, 2))


@pytest.mark.parametrize("function", [consistent, log_consistent, consistency_value])
def test_batches_that_differ_are_refused(function):
    with pytest.raises(ShapeError, match="finer level has 4 samples and the coarser 1; give both"):
        function(torch.zeros(4, 2, 2), torch.zeros(1, 1, 1))


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("function", [consistent, log_consistent, consistency_value])
def test_weights_outside_the_unit_interval_are_refused(function, weight):
    with pytest.raises(ValueError, match=f"weight is {weight}; the coarse level's share lies"):
        function(torch.zeros(1, 2, 2), torch.zeros(1, 1, 1), weight=weight)


@pytest.mark.parametrize("function", [consistent_chain, chain_value])
def test_chains_that_make_no_sense_are_refused(function):
    levels = [torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)]
    with pytest.raises(ShapeError, match="a chain needs the logits of at least one level"):
        function([])
    with pytest.raises(ShapeError, match="a 2 x 2 map does not divide into 4 x 4 blocks"):
        function(levels[::-1])
    with pytest.raises(ValueError, match=r"weights are \[1.0\]; a chain of 2 levels needs 2"):
        function(levels, [1.0])
    with pytest.raises(ValueError, match=r"weights are \[1.0, 0.0\]; a chain of 2 levels"):
        function(levels, [1.0, 0.0])
