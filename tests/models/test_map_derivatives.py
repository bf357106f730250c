"""Maps that can be followed back to the pixels, against finite differences and closed forms."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.errors import ExplainerError
from models.explainers import (
    EXPLAINERS,
    AttentionMaps,
    GradCam,
    GradientTimesInput,
    IntegratedGradients,
    MoreauGrad,
    ProjectedMaps,
    SimpleGradient,
    SmoothGrad,
)
from models.explainers.derivatives import DERIVATIVES, differentiable, map_derivative
from models.explainers.scoring import explaining
from models.softened import soft_relu, softened
from tests.models.explainer_cases import Linear, Quadratic, Soft, classifier, images

WHICH = torch.tensor([0, 1])
CASES = {
    "gradient": SimpleGradient(),
    "gradient-x-input": GradientTimesInput(),
    "smoothgrad": SmoothGrad(draws=3, spread=0.05, batch_size=2),
    "integrated-gradients": IntegratedGradients(batch_size=1),
    "moreaugrad": MoreauGrad(spread=0.0, rho=1e-3, tolerance=1e-12),
    "gradcam": GradCam(layer="block2"),
    "attention": AttentionMaps(),
    "cvx": ProjectedMaps(),
}


@pytest.fixture(scope="module")
def model():
    return classifier("unconstrained").double()


def weights_for(values):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(values.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_pulled_back_along_the_derivative_of_the_map(model, name):
    x, step = images(2).double(), 1e-6
    way = images(2, seed=9).double()
    # the width of the noise, which is the picture's range, is no part of the derivative
    way = way * (x != x.amax((1, 2, 3), keepdim=True)) * (x != x.amin((1, 2, 3), keepdim=True))
    with explaining(x, model) as pictures:
        here = map_derivative(CASES[name], model, pictures, WHICH)
        weights = weights_for(here.values)
        there = [
            map_derivative(CASES[name], model, pictures + sign * step * way, WHICH).values
            for sign in (1, -1)
        ]
        pulled = here.pull(weights)
    expected = ((there[0] - there[1]) * weights).sum((1, 2)) / (2 * step)
    found = (pulled * way).sum((1, 2, 3))
    size = expected.abs().max().item()
    assert size > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * size)


OWN = [(name, 0) for name in CASES if name != "integrated-gradients"]


@pytest.mark.parametrize(("name", "level"), [*OWN, ("attention", 1), ("cvx", 1)])
def test_the_map_is_the_explainers_own(model, name, level):
    x = images(2).double()
    with explaining(x, model) as pictures:
        found = map_derivative(CASES[name], model, pictures, WHICH, level=level)
    own = CASES[name](model, x, WHICH)[level].values
    torch.testing.assert_close(found.values.float(), own, rtol=1e-4, atol=1e-6)


def test_integrated_gradients_in_sixteen_steps_are_near_to_complete_ones():
    model, x = Soft(), images(2, side=3)[:, :1].double()
    with explaining(x, model) as pictures:
        found = map_derivative(IntegratedGradients(), model, pictures, WHICH)
    (whole,) = IntegratedGradients(tolerance=1e-6)(model, x, WHICH)
    torch.testing.assert_close(found.values.float(), whole.values, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("through", ["implicit", "masked"])
def test_moreaugrad_is_followed_through_its_proximal_point_or_past_it(through):
    """The derivative of a quadratic's map is Q (1 + rho Q)^-1; the surrogate's is Q."""
    model, x, rho = Quadratic(), images(2, side=3)[:, :1].double(), 0.7
    with explaining(x, model) as pictures:
        settings = MoreauGrad(rho=rho, spread=0.0, tolerance=1e-12, most_steps=500)
        found = map_derivative(settings, model, pictures, WHICH, through=through)
        weights = weights_for(found.values)
        pulled = found.pull(weights)
    curved = model.curved[WHICH].detach()
    system = torch.eye(9, dtype=torch.float64) + rho * curved
    vector = weights.flatten(1)
    if through == "implicit":
        vector = torch.linalg.solve(system, vector)
    expected = torch.einsum("bij,bj->bi", curved, vector).view_as(x)
    torch.testing.assert_close(pulled, expected, rtol=0.02, atol=0.02)


def test_a_constant_map_pulls_nothing():
    model, x = Linear(classes=3), images(2, side=6)
    for explainer in (SimpleGradient(), SmoothGrad(draws=2), MoreauGrad(draws=2)):
        with explaining(x, model) as pictures:
            found = map_derivative(explainer, model, pictures, WHICH)
            assert (found.pull(torch.ones_like(found.values)) == 0).all()


def test_methods_without_a_derivative_are_named_with_the_way_out():
    assert differentiable(EXPLAINERS["gradient"])
    assert not differentiable(EXPLAINERS["occlusion"])
    x = images(2)
    with pytest.raises(ExplainerError, match=r"maps of 'lrp' have no derivative .* by 'search'"):
        map_derivative(EXPLAINERS["lrp"], Linear(side=32), x, WHICH)
    assert {type(explainer) for explainer in CASES.values()} == set(DERIVATIVES)


class Rectified(nn.Module):
    """Every way to call a rectifier."""

    def forward(self, x):
        found = [functional.relu(x), torch.relu(x), x.relu(), x.clone().relu_(), nn.ReLU()(x)]
        found += [nn.ReLU(inplace=True)(x.clone()), functional.relu(input=x, inplace=False)]
        return torch.stack(found)


def test_all_calls_of_a_rectifier_are_softened_and_none_afterwards():
    x, model = images(3), Rectified()
    with softened(beta=7.0):
        found = model(x)
    for one in found:
        assert torch.equal(one, soft_relu(x, beta=7.0))
    for one in model(x):
        assert torch.equal(one, x.clamp_min(0))


def test_softening_goes_to_the_rectifier_as_it_gets_sharper():
    x = 100 * images(3)
    gaps = [(soft_relu(x, beta=beta) - x.relu()).abs().max().item() for beta in (3.0, 30.0, 300.0)]
    size = x.square().mean((1, 2, 3)).sqrt().max().item()
    for gap, beta in zip(gaps, (3.0, 30.0, 300.0), strict=True):
        assert 0 < gap <= size * 0.6932 / beta


def test_softening_keeps_samples_apart_and_scales_with_them():
    x = images(3)
    parts = torch.cat([soft_relu(x[i : i + 1], beta=5.0) for i in range(3)])
    torch.testing.assert_close(soft_relu(x, beta=5.0), parts)
    torch.testing.assert_close(soft_relu(8 * x, beta=5.0), 8 * soft_relu(x, beta=5.0))
    assert (soft_relu(torch.zeros(2, 3), beta=5.0).abs() < 1e-30).all()
    assert soft_relu(torch.tensor(2.0), beta=5.0) > 2


@pytest.mark.parametrize("make", [lambda: nn.LeakyReLU(0.2), lambda: nn.PReLU(2, init=0.2)])
def test_leaky_rectifiers_keep_their_slope(make):
    x, part = images(2), make()
    with softened(beta=5.0), torch.no_grad():
        found = part(x)
    torch.testing.assert_close(found, 0.2 * x + 0.8 * soft_relu(x, beta=5.0))


def test_a_softened_network_of_rectifiers_has_a_second_derivative():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 2))
    x = images(2, side=3)
    with explaining(x, model) as pictures:
        ones = torch.ones(2, 3, 3)
        assert (map_derivative(SimpleGradient(), model, pictures, WHICH).pull(ones) == 0).all()
        with softened():
            pulled = map_derivative(SimpleGradient(), model, pictures, WHICH).pull(ones)
    assert (pulled.abs().amax((1, 2, 3)) > 1e-3).all()


def test_a_softplus_needs_a_sharpness():
    wrong = softened(beta=0.0)
    with pytest.raises(ValueError, match=r"beta is 0\.0; the sharpness of a softplus"), wrong:
        pass
