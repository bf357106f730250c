"""MoreauGrad: thresholds, the fixed point and its derivative, on problems solved on paper."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from models.errors import ExplainerError
from models.explainers import MoreauGrad
from models.explainers.gradients import SimpleGradient
from models.explainers.implicit import conjugate_gradients
from models.explainers.proximal import block_threshold, soft_threshold
from tests.models.explainer_cases import MODELS, TARGET, Linear, Quadratic, Soft, images

EXACT = {"spread": 0.0, "tolerance": 1e-12, "most_steps": 2000}
WHICH = torch.tensor([0, 1])


def points(channels=1, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 3, 3, generator=generator, dtype=torch.float64)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0, 2))
def test_soft_threshold_is_the_proximal_operator_of_magnitudes(values, threshold):
    x = torch.tensor(values, dtype=torch.float64)[None, None, None]
    found = soft_threshold(x, threshold)
    below = x.abs() <= threshold
    assert (found[below] == 0).all()
    torch.testing.assert_close(found[~below], x[~below] - threshold * x[~below].sign())
    for other in (x, 0 * x, found + 0.01, found - 0.01):
        assert (
            cost(found, x, threshold * found.abs().sum())
            <= cost(other, x, threshold * other.abs().sum()) + 1e-12
        )


def cost(z, x, penalty):
    return float((z - x).square().sum() / 2 + penalty)


@pytest.mark.parametrize("side", [4, 5])
def test_block_threshold_shrinks_each_patch_by_its_norm_over_channels(side):
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).double()
    found = block_threshold(x, 3.2, patch=2)
    zeros = 0
    for b in range(2):
        for r in range(0, side, 2):
            for c in range(0, side, 2):
                patch = x[b, :, r : r + 2, c : c + 2]
                norm = float(patch.norm())
                expected = patch * max(0.0, 1 - 3.2 / norm)
                zeros += norm <= 3.2
                torch.testing.assert_close(found[b, :, r : r + 2, c : c + 2], expected)
    assert zeros > 0
    assert (found != 0).any()


def test_block_threshold_is_the_proximal_operator_of_the_norm():
    x = torch.tensor([1.0, -2.0, 0.5, 1.5], dtype=torch.float64).view(1, 1, 2, 2)
    found = block_threshold(x, 0.8, patch=2).flatten().numpy()
    flat = x.flatten().numpy()
    solved = minimize(
        lambda z: ((z - flat) ** 2).sum() / 2 + 0.8 * np.linalg.norm(z), flat, tol=1e-14
    )
    np.testing.assert_allclose(found, solved.x, atol=1e-6)


def test_zero_patches_stay_zero():
    assert (block_threshold(torch.zeros(1, 2, 4, 4), 0.0, patch=2) == 0).all()


def test_a_patch_without_pixels_is_refused():
    with pytest.raises(ExplainerError, match="patch is 0; it must be 1 pixel or more"):
        block_threshold(torch.zeros(1, 2, 4, 4), 0.1, patch=0)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_map_of_a_quadratic_solves_its_linear_system(channels):
    """grad f(z) = (x - z) / rho with f' = Q z + c gives the map (I + rho Q)^-1 (Q x + c)."""
    model, x, rho = Quadratic(channels), points(channels), 1.0
    (found,) = MoreauGrad(rho=rho, **EXACT)(model, x, WHICH)
    curved, slope = model.curved[WHICH].detach(), model.slope[WHICH].detach()
    gradient = torch.einsum("bij,bj->bi", curved, x.flatten(1)) + slope
    system = torch.eye(9 * channels, dtype=torch.float64) + rho * curved
    expected = torch.linalg.solve(system, gradient).view_as(x).sum(1)
    torch.testing.assert_close(found.values, expected.float(), rtol=0, atol=1e-6)
    assert found.residual.max() < 1e-6
    assert {verdict.word for verdict in found.verdicts} == {"sound"}


@pytest.mark.parametrize("model", [Quadratic(), Soft()])
@pytest.mark.parametrize(("eta", "patch"), [(0.0, 0), (0.1, 0), (0.2, 2)])
def test_the_map_is_the_thresholded_gradient_at_its_own_proximal_point(model, eta, patch):
    x, rho = points(), 0.9
    settings = MoreauGrad(rho=rho, eta=eta, patch=patch, **EXACT)
    (found,) = settings(model, x, WHICH)
    nearest = (x - rho * found.values[:, None].double()).requires_grad_()
    model(nearest).gather(1, WHICH[:, None]).sum().backward()
    gradient = nearest.grad
    if patch:
        gradient = block_threshold(gradient, eta, patch=patch)
    elif eta:
        gradient = soft_threshold(gradient, eta)
    torch.testing.assert_close(found.values[:, None], gradient.float(), rtol=0, atol=1e-6)
    assert found.residual.max() < 1e-6


def test_the_nearest_point_minimises_the_penalised_score():
    model, x, rho, eta = Quadratic(), points(), 0.9, 0.3
    (found,) = MoreauGrad(rho=rho, eta=eta, **EXACT)(model, x, WHICH)

    def penalised(z):
        score = model(z).gather(1, WHICH[:, None])[:, 0]
        step = (z - x).flatten(1)
        return score + step.square().sum(1) / (2 * rho) + eta * step.abs().sum(1)

    with torch.no_grad():
        best = penalised(x - rho * found.values[:, None].double())
        for seed in range(50):
            generator = torch.Generator().manual_seed(seed)
            bump = 0.05 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
            assert (penalised(x - rho * found.values[:, None].double() + bump) > best).all()


def test_sparse_maps_have_exact_zeros_and_groups_vanish_together():
    model, x = Quadratic(), points()
    (sparse,) = MoreauGrad(eta=0.5, **EXACT)(model, x, WHICH)
    (group,) = MoreauGrad(eta=0.9, patch=2, **EXACT)(model, x, WHICH)
    for found in (sparse, group):
        assert (found.values == 0).any()
        assert (found.values != 0).any()
    for r, c in ((0, 0), (0, 2), (2, 0), (2, 2)):
        patch = group.values[:, r : r + 2, c : c + 2].flatten(1)
        assert ((patch == 0).all(1) | (patch != 0).all(1)).all()


def test_signs_are_those_of_the_gradient():
    model, x = Linear(classes=3), images(3, side=6)
    for settings in (MoreauGrad(), MoreauGrad(eta=1e-3), MoreauGrad(eta=1e-3, patch=3)):
        (found,) = settings(model, x, TARGET)
        if not settings.eta:
            torch.testing.assert_close(found.values, model.weight(TARGET).sum(1), atol=1e-5, rtol=0)
        kept = found.values != 0
        assert kept.any()
        (gradient,) = SimpleGradient()(model, x, TARGET)
        agree = found.values[kept].sign() == gradient.values[kept].sign()
        assert agree.float().mean() > 0.95


@pytest.mark.parametrize("make", [Quadratic, Soft])
@pytest.mark.parametrize(("eta", "patch"), [(0.0, 0), (0.1, 0), (0.05, 2)])
def test_the_derivative_is_that_of_finite_differences(make, eta, patch):
    model, x, rho = make(), points(), 0.7
    settings = MoreauGrad(rho=rho, eta=eta, patch=patch, **EXACT)
    generator = torch.Generator().manual_seed(8)
    way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    step = 1e-3
    maps = []
    for place in (x + step * way, x - step * way):
        score = settings._smoothed(model, place, WHICH)
        maps.append(-settings._solve(score, place).best / rho)  # in full precision
    expected = (maps[0] - maps[1]) / (2 * step)
    found = settings.derivative(model, x, WHICH, way)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.abs().max() > 1e-3


def test_the_derivative_of_a_quadratic_is_its_hessian_over_one_plus_rho_hessian():
    model, x, rho = Quadratic(), points(), 0.7
    generator = torch.Generator().manual_seed(8)
    way = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    found = MoreauGrad(rho=rho, **EXACT).derivative(model, x, WHICH, way)
    hessian = model.curved[WHICH].detach()
    system = torch.eye(9, dtype=torch.float64) + rho * hessian
    bent = torch.einsum("bij,bj->bi", hessian, way.flatten(1))
    expected = torch.linalg.solve(system, bent).view_as(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_derivative_of_a_linear_score_is_zero():
    x = images(3, side=6)
    found = MoreauGrad(draws=2).derivative(Linear(classes=3), x, TARGET, torch.ones_like(x))
    assert (found == 0).all()


def test_noise_smooths_with_fixed_draws():
    """The smoothed quadratic has the same curvature, and its slope is that at the shifted mean."""
    model, x, rho = Quadratic(), points(), 1.0
    settings = {"spread": 0.3, "draws": 5, "seed": 6, "tolerance": 1e-12, "most_steps": 2000}
    (found,) = MoreauGrad(rho=rho, **settings)(model, x, WHICH)
    generator = torch.Generator().manual_seed(6)
    noise = torch.stack([torch.randn(1, 3, 3, generator=generator) for _ in range(5)]).double()
    width = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    shifted = (x + 0.3 * width * noise.mean(0)).flatten(1)
    gradient = torch.einsum("bij,bj->bi", model.curved[WHICH], shifted) + model.slope[WHICH]
    system = torch.eye(9, dtype=torch.float64) + rho * model.curved[WHICH]
    expected = torch.linalg.solve(system, gradient).detach().view(2, 3, 3)
    torch.testing.assert_close(found.values, expected.float(), rtol=0, atol=1e-6)
    (again,) = MoreauGrad(rho=rho, **settings)(model, x, WHICH)
    assert torch.equal(again.values, found.values)


@pytest.mark.parametrize("settings", [{}, {"eta": 1e-4}, {"eta": 1e-4, "patch": 5}])
def test_a_batch_of_sixteen_is_sixteen_batches_of_one(settings):
    model, x, target = MODELS["exact"](), images(16), torch.arange(16) % 3
    explainer = MoreauGrad(draws=2, most_steps=6, rho=0.5, batch_size=7, **settings)
    (together,) = explainer(model, x, target)
    for i in range(16):
        (alone,) = explainer(model, x[i : i + 1], target[i : i + 1])
        rounding = 1e-3 * alone.values.abs().max().item()
        torch.testing.assert_close(together.values[i], alone.values[0], rtol=0, atol=rounding)
        assert alone.values.abs().max() > 0


def test_rho_is_checked_against_the_smoothness_bound():
    """For a linear score the steepest slope is the weight's norm: the bound is noise over it."""
    model, x = Linear(classes=3), images(3, side=6)
    slopes = model.weight(TARGET).flatten(1).norm(dim=1)
    bounds = 0.1 * (x.amax((1, 2, 3)) - x.amin((1, 2, 3))) / slopes
    (below,) = MoreauGrad(rho=0.99 * float(bounds.min()))(model, x, TARGET)
    assert {verdict.word for verdict in below.verdicts} == {"sound"}
    (above,) = MoreauGrad(rho=1.01 * float(bounds.max()))(model, x, TARGET)
    assert {verdict.word for verdict in above.verdicts} == {"doubtful"}
    for verdict, bound in zip(above.verdicts, bounds.tolist(), strict=True):
        assert f"is not below {bound:.3g}, the noise over the steepest slope" in verdict.reason


def test_without_noise_rho_is_checked_against_the_curvature():
    (found,) = MoreauGrad(rho=3.0, spread=0.0, most_steps=200)(Quadratic(), points(), WHICH)
    assert "sound" not in {verdict.word for verdict in found.verdicts}
    doubtful = [v.reason for v in found.verdicts if v.word == "doubtful"]
    assert all("times the curvature seen" in reason for reason in doubtful)


def test_too_few_steps_are_not_called_sound():
    settings = MoreauGrad(rho=0.9, spread=0.0, most_steps=1)
    (found,) = settings(Quadratic(), points(), WHICH)
    assert {verdict.word for verdict in found.verdicts} == {"refused"}
    assert "raise most_steps" in found.verdicts[0].reason


@pytest.mark.parametrize("patch", [0, 3])
def test_a_map_that_sparsity_emptied_is_doubted(patch):
    settings = MoreauGrad(eta=1e3, patch=patch, rho=0.1)
    (found,) = settings(Linear(classes=3), images(3, side=6), TARGET)
    assert (found.values == 0).all()
    assert {verdict.word for verdict in found.verdicts} == {"doubtful"}
    assert "above every gradient: the map is empty; lower it" in found.verdicts[0].reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -0.1}, r"eta is -0\.1; it must be 0 or more"),
        ({"rho": 0.0}, r"rho is 0\.0; it must be 1e-09 or more"),
        ({"draws": 0}, "draws is 0; it must be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ExplainerError, match=message):
        MoreauGrad(**settings)


@pytest.mark.parametrize(("eta", "patch"), [(0.0, 0), (0.1, 0), (0.2, 2)])
def test_pulling_back_is_the_transpose_of_going_forward(eta, patch):
    x = points()
    implicit = MoreauGrad(rho=0.7, eta=eta, patch=patch, **EXACT).linearised(
        Quadratic(), x, WHICH, steps=50
    )
    one, other = points(seed=5), points(seed=6)
    forward, _ = implicit.forward(one)
    back, _ = implicit.pull(other)
    ahead, behind = (other * forward).sum((1, 2, 3)), (back * one).sum((1, 2, 3))
    torch.testing.assert_close(ahead, behind, rtol=1e-10, atol=1e-14)
    assert ahead.abs().min() > 1e-3
    assert (implicit.pull_masked(other) - back).abs().max() > 0.1


def test_a_curvature_too_large_for_rho_has_no_derivative():
    settings = MoreauGrad(rho=3.0, spread=0.0)
    with pytest.raises(ExplainerError, match=r"unsolved by inf: rho 3 times .* not below 1"):
        settings.derivative(Quadratic(), points(), WHICH, points(seed=5))


def test_conjugate_gradients_solve_each_sample_and_stop_where_nothing_is_convex():
    scale = torch.tensor([2.0, -1.0, 4.0], dtype=torch.float64)[:, None, None, None]
    right = points(seed=3)[:1].repeat(3, 1, 1, 1)
    right[2] = 0
    found, residual = conjugate_gradients(lambda v: scale * v, right, steps=5, tolerance=1e-12)
    torch.testing.assert_close(found[0], right[0] / 2)
    assert torch.equal(found[1], right[1])
    assert torch.equal(found[2], right[2])
    assert residual.tolist() == [0.0, torch.inf, 0.0]
