"""Equal to captum where captum is right; complete or conserving where captum is not.

Captum's maps were computed once, by ``tests/reference/make_captum_golden.py``.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.explainers import (
    DeepLift,
    Epsilon,
    GradCam,
    GradientTimesInput,
    IntegratedGradients,
    LayerwiseRelevance,
    Occlusion,
    SimpleGradient,
)
from tests.models.captum_nets import (
    TARGET,
    Dense,
    Plain,
    Residual,
    flattening,
    pictures,
    settled,
)

RULE = Epsilon(epsilon=1e-12)
LRP = LayerwiseRelevance(convolution=RULE, dense=RULE, rest=RULE, share_biases=False)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "captum.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize(
    ("name", "explainer", "model"),
    [
        ("gradient", SimpleGradient(), Plain()),
        ("gradient-x-input", GradientTimesInput(), Plain()),
        ("integrated-gradients", IntegratedGradients(tolerance=1e-7), Plain(nn.Softplus)),
        ("deeplift", DeepLift(), Plain()),
        ("deeplift-residual", DeepLift(), Residual()),
        ("lrp-epsilon", LRP, Plain(bias=False)),
        ("lrp-epsilon-bias", LRP, Plain()),
        ("gradcam", GradCam(layer="second"), Plain()),
    ],
)
def test_equal_to_captum_where_it_is_right(golden, name, explainer, model):
    (found,) = explainer(settled(model), pictures(), TARGET)
    expected = torch.from_numpy(golden[name]).sum(1).float()
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().max() > 1e-3


def test_occlusion_is_captums_with_windows_as_cells(golden):
    (found,) = Occlusion(cells=3)(settled(Plain()), pictures(), TARGET)
    expected = torch.from_numpy(golden["occlusion"])[:, 0, ::2, ::2].float()
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6)


def change(model):
    """Scores less those of a black picture."""
    with torch.no_grad():
        scores = model(pictures()) - model(torch.zeros_like(pictures()))
    return scores.gather(1, TARGET[:, None])[:, 0]


def missing(values, model):
    return ((values.sum((1, 2)) - change(model)) / change(model)).abs()


@pytest.mark.parametrize(
    ("name", "explainer", "model", "least"),
    [
        ("deeplift-functional", DeepLift(), Dense(functional=True), 0.05),
        ("lrp-residual", LRP, Residual(), 0.5),
    ],
)
def test_right_where_captum_misses_without_a_word(golden, name, explainer, model, least):
    """Functional activations are gradients to it; of a residual sum both sides get all."""
    captums = torch.from_numpy(golden[name]).sum(1)
    (ours,) = explainer(settled(model), pictures(), TARGET)
    assert missing(captums, model).max() > least
    assert missing(ours.values.double(), model).max() < 1e-5
    assert {verdict.word for verdict in ours.verdicts} == {"sound"}


@pytest.mark.parametrize(
    ("name", "explainer", "model", "said"),
    [
        ("deeplift-shared", DeepLift(), Dense(functional=False), "RuntimeError: A Module ReLU()"),
        ("lrp-flatten", LRP, flattening(), "Flatten"),
    ],
)
def test_right_where_captum_raises(golden, name, explainer, model, said):
    assert said in str(golden[name])
    (ours,) = explainer(settled(model), pictures(), TARGET)
    assert missing(ours.values.double(), model).max() < 1e-5
    assert {verdict.word for verdict in ours.verdicts} == {"sound"}
