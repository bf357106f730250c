"""Fenchel pairs against suprema found by searching, and the laws that tie them."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from models.conjugates import CONJUGATE_PAIRS, Strength, ridge_share
from models.convex import CONJUGATE_PAIRS as SHARED
from models.errors import AttackError

STRENGTH = Strength(radius=0.3, ridge=0.7, patch=2)
LINE = (3, 1, 1, 4)  # patches of one row and two columns: every set is a square or a disc
BOUNDED = ("l1", "group", "l2")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((1, 2, 3))


def highest(function: Callable[[float], float], low: float, high: float) -> float:
    """Best of a grid, refined between its neighbours."""
    step = (high - low) / 400
    peak = max((low + i * step for i in range(401)), key=function)
    around = (max(low, peak - step), min(high, peak + step))
    found = minimize_scalar(
        lambda x: -function(x), bounds=around, method="bounded", options={"xatol": 1e-12}
    )
    return max(function(peak), -float(found.fun))  # the search ends short of the bounds


def supremum_over_angles(row: list[float], radius: float) -> float:
    """Largest <row, delta> over discs of that radius, one for each pair of numbers."""
    pairs = zip(row[::2], row[1::2], strict=True)
    return sum(
        highest(lambda t, p=pair: radius * (p[0] * math.cos(t) + p[1] * math.sin(t)), 0, 7)
        for pair in pairs
    )


def supremum_of(name: str, row: list[float]) -> float:
    """Search for sup <row, delta> - h*(delta), where h* is written down once more."""
    radius, ridge = STRENGTH.radius, STRENGTH.ridge
    if name == "l1":
        return sum(highest(lambda d, g=g: g * d, -radius, radius) for g in row)
    if name == "elastic":
        reach = radius + 2 * ridge * max(map(abs, row)) + 1
        return sum(
            highest(
                lambda d, g=g: g * d - max(abs(d) - radius, 0) ** 2 / (4 * ridge), -reach, reach
            )
            for g in row
        )
    return supremum_over_angles(row, radius)


def test_the_registry_is_that_of_the_shared_mathematics() -> None:
    assert SHARED is CONJUGATE_PAIRS


@pytest.mark.parametrize("name", CONJUGATE_PAIRS)
def test_the_penalty_is_the_supremum_over_perturbations(name: str) -> None:
    shape = (3, 1, 1, 2) if name == "l2" else LINE
    gradient = drawn(*shape)
    found = CONJUGATE_PAIRS[name](STRENGTH).h(gradient)
    for value, row in zip(found.tolist(), gradient.flatten(1).tolist(), strict=True):
        assert value == pytest.approx(supremum_of(name, row), abs=1e-9)


@pytest.mark.parametrize("name", CONJUGATE_PAIRS)
def test_the_conjugate_is_the_supremum_over_gradients(name: str) -> None:
    """Of perturbations in the set, 0, attained at no gradient; elastic: by searching."""
    pair = CONJUGATE_PAIRS[name](STRENGTH)
    delta = pair.project(drawn(4, 2, 3, 5, seed=1))
    found = pair.conjugate(delta)
    if name in BOUNDED:
        assert found.tolist() == [0.0] * 4
        for seed in range(200):
            gradient = drawn(4, 2, 3, 5, seed=seed) * 10 ** (seed % 5 - 2)
            assert (inner(delta, gradient) - pair.h(gradient) <= 1e-12).all()
        return
    for value, row in zip(found.tolist(), delta.flatten(1).tolist(), strict=True):
        searched = sum(
            highest(lambda g, d=d: g * d - 0.3 * abs(g) - 0.7 * g * g, -9, 9) for d in row
        )
        assert value == pytest.approx(searched, abs=1e-9)


@pytest.mark.parametrize("name", BOUNDED)
def test_outside_of_its_set_a_perturbation_costs_without_bound(name: str) -> None:
    pair = CONJUGATE_PAIRS[name](STRENGTH)
    border = pair.maximiser(drawn(2, 2, 3, 5))
    assert pair.conjugate(border).tolist() == [0, 0]
    assert pair.conjugate(border * 1.0001).isinf().all()


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("name", CONJUGATE_PAIRS)
def test_the_maximiser_attains_the_supremum(name: str, across: bool) -> None:
    strength = Strength(radius=0.3, ridge=0.7, patch=2, across_channels=across)
    pair, gradient = CONJUGATE_PAIRS[name](strength), drawn(4, 2, 5, 7)
    delta = pair.maximiser(gradient)
    attained = inner(gradient, delta) - pair.conjugate(delta)
    torch.testing.assert_close(attained, pair.h(gradient), rtol=0, atol=1e-12)
    for seed in range(200):
        other = pair.project(delta + 0.5 * drawn(4, 2, 5, 7, seed=seed))
        assert (inner(gradient, other) - pair.conjugate(other) <= pair.h(gradient) + 1e-12).all()


@pytest.mark.parametrize("name", CONJUGATE_PAIRS)
def test_the_maximiser_is_the_gradient_of_the_penalty(name: str) -> None:
    pair, gradient = CONJUGATE_PAIRS[name](STRENGTH), drawn(2, 2, 5, 5).requires_grad_()
    (slope,) = torch.autograd.grad(pair.h(gradient).sum(), gradient)
    torch.testing.assert_close(slope, pair.maximiser(gradient.detach()))


@pytest.mark.parametrize("across", [False, True])
def test_patches_are_those_of_a_loop_also_at_the_border(across: bool) -> None:
    """A picture of 5 x 7 in patches of 3: the last ones are 2 rows high and 1 column wide."""
    gradient = drawn(2, 3, 5, 7)
    strength = Strength(radius=0.3, patch=3, across_channels=across)
    pair, expected = CONJUGATE_PAIRS["group"](strength), torch.zeros_like(gradient)
    total = torch.zeros(2, dtype=torch.float64)
    for sample in range(2):
        for channels in [slice(None)] if across else [slice(k, k + 1) for k in range(3)]:
            for top in (0, 3):
                for left in (0, 3, 6):
                    place = (sample, channels, slice(top, top + 3), slice(left, left + 3))
                    norm = gradient[place].square().sum().sqrt()
                    total[sample] += 0.3 * norm
                    expected[place] = 0.3 * gradient[place] / norm
    torch.testing.assert_close(pair.maximiser(gradient), expected)
    torch.testing.assert_close(pair.h(gradient), total)


@pytest.mark.parametrize("name", CONJUGATE_PAIRS)
class TestWhereNothingIs:
    def test_a_zero_gradient_moves_nothing(self, name: str) -> None:
        pair, nothing = CONJUGATE_PAIRS[name](STRENGTH), torch.zeros(2, 1, 4, 4).requires_grad_()
        assert not pair.maximiser(nothing.detach()).any()
        (slope,) = torch.autograd.grad(pair.h(nothing).sum(), nothing)
        assert slope.isfinite().all()
        assert pair.h(nothing).tolist() == [0, 0]

    def test_a_zero_patch_stays_beside_others(self, name: str) -> None:
        gradient = torch.zeros(1, 1, 4, 4)
        gradient[..., :2, :2] = 1
        found = CONJUGATE_PAIRS[name](STRENGTH).maximiser(gradient)
        assert found.isfinite().all()
        assert not found[gradient == 0].any()
        assert (found[gradient > 0] > 0).all()

    def test_radius_0_is_no_perturbation(self, name: str) -> None:
        pair, gradient = CONJUGATE_PAIRS[name](Strength(radius=0.0)), drawn(2, 1, 3, 3)
        assert not pair.maximiser(gradient).any()
        assert not pair.project(gradient).any()
        assert pair.h(gradient).tolist() == [0, 0]

    def test_tiny_and_huge_gradients_have_a_direction(self, name: str) -> None:
        if name == "elastic":
            return  # the size of a gradient is part of its maximiser
        pair, gradient = CONJUGATE_PAIRS[name](STRENGTH), drawn(2, 1, 4, 4).float()
        for size in (1e-30, 1e30):
            torch.testing.assert_close(
                pair.maximiser(gradient * size), pair.maximiser(gradient), rtol=1e-5, atol=1e-7
            )


@given(
    st.sampled_from(BOUNDED), st.integers(0, 999), st.floats(1e-3, 10.0), st.integers(1, 6)
)  # fmt: skip
def test_projection_is_the_nearest_point_of_the_set(
    name: str, seed: int, radius: float, patch: int
) -> None:
    pair = CONJUGATE_PAIRS[name](Strength(radius=radius, patch=patch))
    outside = drawn(3, 2, 4, 5, seed=seed)
    nearest, other = pair.project(outside), pair.project(drawn(3, 2, 4, 5, seed=seed + 1))
    assert pair.conjugate(nearest).tolist() == [0] * 3
    torch.testing.assert_close(pair.project(nearest), nearest)
    # of a convex set: no other point of it lies on the near side
    assert (inner(outside - nearest, other - nearest) <= 1e-9).all()


def test_elastic_without_a_ridge_is_l1() -> None:
    gradient = drawn(2, 1, 3, 3)
    one, other = (CONJUGATE_PAIRS[name](Strength(radius=0.2)) for name in ("elastic", "l1"))
    for one_of, other_of in zip(one, other, strict=True):
        assert torch.equal(one_of(gradient), other_of(gradient))


def test_ridge_share_says_when_the_ridge_is_idle() -> None:
    gradient = torch.full((1, 1, 2, 2), 0.5)
    strength = Strength(radius=0.1, ridge=0.2)
    moved = CONJUGATE_PAIRS["elastic"](strength).maximiser(gradient)
    assert float(ridge_share(gradient, strength)) == pytest.approx(2.0)
    assert float(moved.max()) == pytest.approx(0.1 * (1 + 2.0))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"radius": -0.1}, "radius is -0.1; it must be a number that is 0 or more"),
        ({"radius": float("nan")}, "radius is nan"),
        ({"radius": float("inf")}, "radius is inf"),
        ({"radius": 0.1, "ridge": -1.0}, "ridge is -1.0"),
        ({"radius": 0.1, "patch": 0}, "patch is 0; it must be a number that is 1 or more"),
    ],
)
def test_a_strength_out_of_range(given: dict, message: str) -> None:
    with pytest.raises(AttackError, match=message) as refusal:
        Strength(**given)
    assert refusal.value.code == "BAD_STRENGTH"
