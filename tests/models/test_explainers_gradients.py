"""Gradients, their integrals and occlusion: closed forms, laws, memory, refusals."""

import pytest
import torch
from torch import nn

from models.errors import ExplainerError
from models.explainers import (
    GradientTimesInput,
    IntegratedGradients,
    Occlusion,
    SimpleGradient,
    SmoothGrad,
)
from models.explainers.laws import Law
from models.explainers.scoring import logits_of
from tests.models.explainer_cases import (
    MODELS,
    TARGET,
    Linear,
    Quadratic,
    Soft,
    images,
)


class Calls(nn.Module):
    """A model that remembers how many pictures it saw at once."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, pictures):
        self.seen.append(len(pictures))
        return self.model(pictures)


def pictures(count=3):
    return images(count, side=6)


GRADIENTS = [SimpleGradient(), SmoothGrad(draws=6)]


@pytest.mark.parametrize("explainer", GRADIENTS)
def test_the_gradient_of_a_linear_model_is_its_weight(explainer):
    model, target = Linear(classes=3), TARGET
    (found,) = explainer(model, pictures(), target)
    torch.testing.assert_close(found.values, model.weight(target).sum(1))
    assert found.signed
    assert [verdict.word for verdict in found.verdicts] == ["sound"] * 3


@pytest.mark.parametrize(
    "explainer", [GradientTimesInput(), IntegratedGradients(), IntegratedGradients(baseline=0.7)]
)
def test_contributions_to_a_linear_model_are_weights_times_differences(explainer):
    model, target = Linear(classes=3), TARGET
    baseline = explainer.baseline if isinstance(explainer, IntegratedGradients) else 0.0
    (found,) = explainer(model, pictures(), target)
    expected = (model.weight(target) * (pictures() - baseline)).sum(1)
    torch.testing.assert_close(found.values, expected)
    assert found.law == "completeness"
    assert found.residual.max() < 1e-4


def test_one_hidden_layer_on_paper():
    model, target = Soft(), torch.tensor([0, 1])
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    before = model.hidden(x.flatten(1))
    gradient = (model.head.weight[target] * before.sigmoid()) @ model.hidden.weight
    (simple,) = SimpleGradient()(model, x, target)
    torch.testing.assert_close(simple.values, gradient.detach().view(2, 3, 3).float())
    # along the straight way each unit's mean slope is its change over its input's change
    start = model.hidden.bias
    rise = nn.functional.softplus(before) - nn.functional.softplus(start)
    mean = (model.head.weight[target] * rise / (before - start)) @ model.hidden.weight
    (integrated,) = IntegratedGradients(tolerance=1e-9, most_steps=6561)(model, x, target)
    expected = (mean * x.flatten(1)).detach().view(2, 3, 3).float()
    torch.testing.assert_close(integrated.values, expected, rtol=1e-5, atol=1e-7)


def test_integrated_gradients_of_a_quadratic():
    """Half of the quadratic part's gradient times the picture, and the whole of the linear's."""
    model, target = Quadratic(), torch.tensor([1, 0])
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    flat = x.flatten(1)
    bent = torch.einsum("bij,bj->bi", model.curved[target], flat)
    expected = (flat * (bent / 2 + model.slope[target])).detach().view(2, 3, 3)
    (found,) = IntegratedGradients()(model, x, target)
    torch.testing.assert_close(found.values, expected.float())


@pytest.mark.parametrize("name", ["functional", "unconstrained"])
def test_integrated_gradients_are_complete(name):
    (found,) = IntegratedGradients()(MODELS[name](), images(), TARGET)
    assert found.residual.max() <= 1e-3
    assert {verdict.word for verdict in found.verdicts} == {"sound"}


def test_a_map_that_is_not_complete_is_refused():
    class Steep(nn.Module):
        def forward(self, x):
            return torch.sigmoid(400 * (x.mean((2, 3)) - 0.1))

    (found,) = IntegratedGradients(most_steps=1)(Steep(), torch.ones(1, 2, 4, 4), TARGET[:1])
    assert found.verdicts[0].word == "refused"
    assert "raise most_steps" in found.verdicts[0].reason
    (mended,) = IntegratedGradients()(Steep(), torch.ones(1, 2, 4, 4), TARGET[:1])
    assert mended.residual < found.residual
    assert mended.verdicts[0].word == "sound"


@pytest.mark.parametrize(
    "explainer",
    [
        SmoothGrad(draws=11, batch_size=4),
        IntegratedGradients(most_steps=27, tolerance=-1.0, batch_size=4),
        Occlusion(cells=5, batch_size=4),
    ],
)
def test_memory_is_bounded_by_the_batch_size(explainer):
    model = Calls(Linear(classes=3))
    explainer(model, pictures(), TARGET)
    assert max(model.seen) <= 4
    assert len(model.seen) > 8


def test_steps_are_taken_where_the_score_bends_and_no_more_than_allowed():
    linear = Calls(Linear(classes=3))
    IntegratedGradients()(linear, pictures(1), TARGET[:1])
    assert sum(linear.seen) == 9 + 8  # scores at the ends of eight pieces, gradients in the middles

    class Bend(nn.Module):
        def forward(self, x):
            return (x.mean((2, 3)) - 0.71).relu()

    x = torch.ones(1, 2, 4, 4)
    bent = Calls(Bend())
    (found,) = IntegratedGradients(tolerance=1e-3)(bent, x, TARGET[:1])
    assert found.residual <= 1e-3
    assert sum(bent.seen) < 40  # one piece of eight is halved again and again
    for most in (8, 12, 50):
        endless = Calls(Bend())
        IntegratedGradients(tolerance=-1.0, most_steps=most)(endless, x, TARGET[:1])
        assert most / 3 < sum(endless.seen) - 9 <= most


def test_smoothgrad_of_a_quadratic_is_its_gradient_at_the_mean_of_the_noise():
    model, target = Quadratic(), torch.tensor([1, 0])
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    settings = SmoothGrad(draws=7, spread=0.2, seed=9)
    generator = torch.Generator().manual_seed(9)
    noise = torch.stack([torch.randn(1, 3, 3, generator=generator) for _ in range(7)]).double()
    width = x.amax((1, 2, 3), keepdim=True) - x.amin((1, 2, 3), keepdim=True)
    shifted = (x + 0.2 * width * noise.mean(0)).flatten(1)
    expected = torch.einsum("bij,bj->bi", model.curved[target], shifted) + model.slope[target]
    (found,) = settings(model, x, target)
    torch.testing.assert_close(found.values, expected.detach().view(2, 3, 3).float())
    (again,) = settings(model, x, target)
    assert torch.equal(again.values, found.values)


def test_more_draws_repeat_better():
    model = MODELS["baseline"]()
    few, many = (SmoothGrad(draws=n)(model, images(), TARGET)[0] for n in (4, 64))
    assert (many.residual < few.residual / 2).all()


def test_a_gradient_that_is_cut_off_is_not_called_sound():
    class Cut(nn.Module):
        def forward(self, x):
            return (x + 3 * x.detach()).mean((2, 3))

    (found,) = SimpleGradient()(Cut(), images(2), TARGET[:2] // 2)
    assert found.residual.min() > 0.5
    assert {verdict.word for verdict in found.verdicts} == {"refused"}


def test_gradient_x_input_says_how_incomplete_it_is():
    model = MODELS["baseline"]()
    (found,) = GradientTimesInput()(model, images(), TARGET)
    with torch.no_grad():
        logits = [
            model(x).logits.gather(1, TARGET[:, None])[:, 0] for x in (images(), 0 * images())
        ]
    change = logits[0] - logits[1]
    expected = ((found.values.sum((1, 2)) - change) / change).abs()
    torch.testing.assert_close(found.residual, expected, rtol=1e-3, atol=1e-5)
    assert {verdict.word for verdict in found.verdicts} == {"doubtful"}


def test_occlusion_of_a_linear_model():
    """Cells tile the picture, also where they do not divide it: the map adds up to the change."""
    model, x, fill = Linear(classes=3, side=7), images(3, side=7), 0.25
    (found,) = Occlusion(cells=3, fill=fill)(model, x, TARGET)
    contributions = (model.weight(TARGET) * (x - fill)).sum(1)
    edges = [0, 3, 5, 7]
    expected = torch.stack(
        [
            contributions[:, edges[r] : edges[r + 1], edges[c] : edges[c + 1]].sum((1, 2))
            for r in range(3)
            for c in range(3)
        ],
        1,
    ).view(3, 3, 3)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6)
    assert {verdict.word for verdict in found.verdicts} == {"sound"}


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (SmoothGrad, {"draws": 1}, "draws is 1; it must be 2 or more"),
        (SmoothGrad, {"spread": -0.1}, r"spread is -0\.1; it must be 0 or more"),
        (SmoothGrad, {"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        (IntegratedGradients, {"most_steps": 0}, "most_steps is 0; it must be 1 or more"),
        (Occlusion, {"cells": 0}, "cells is 0; it must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(method, settings, message):
    with pytest.raises(ExplainerError, match=message):
        method(**settings)


def test_cells_smaller_than_pixels_are_refused():
    with pytest.raises(ExplainerError, match="7 cells on a side of 6 pixels; a cell needs a pixel"):
        Occlusion(cells=7)(Linear(classes=3), pictures(), TARGET)


@pytest.mark.parametrize(
    "explainer", [SimpleGradient(), GradientTimesInput(), SmoothGrad(), IntegratedGradients()]
)
@pytest.mark.parametrize("constant", [True, False])
def test_a_model_without_gradient_is_refused(explainer, constant):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            values = x.detach().mean((2, 3))
            return values if constant else values + self.bias

    with pytest.raises(ExplainerError, match=r"no gradient .* explain it by 'occlusion'"):
        explainer(Detached(), images(2), TARGET[:2] // 2)


def test_a_target_that_a_module_has_no_class_for_is_refused():
    with pytest.raises(ExplainerError, match="target 2 is not one of the model's 2 classes"):
        SimpleGradient()(Linear(classes=2), pictures(), TARGET)


def test_a_module_without_logits_is_refused():
    with pytest.raises(ExplainerError, match=r"the model gives \[3, 2, 6, 6\] for 3 images"):
        logits_of(nn.Identity(), pictures())
    with pytest.raises(ExplainerError, match="the model gives tuple for 3 images; explainers need"):
        logits_of(nn.MaxPool2d(2, return_indices=True), pictures())


def test_verdicts_follow_the_residual():
    law = Law(name="law", sound=0.1, refused=0.5, says="is missing", way_out="mend it")
    found = law.judge(torch.tensor([0.0625, 0.3, 0.6, torch.nan]), why=lambda i: f"case {i}")
    assert [verdict.word for verdict in found] == ["sound", "doubtful", "refused", "refused"]
    assert found[0].reason == "law: 6.2 % is missing (case 0)"
    assert found[1].reason == "law: 30 % is missing (case 1); mend it"
