"""LRP: matrix forms, LRP-0 is gradient x input, conservation, and who kept what is missing."""

import pytest
import torch
from torch import nn

from models.errors import ExplainerError
from models.explainers import (
    EXPLAINERS,
    AlphaBeta,
    Epsilon,
    Gamma,
    GradientTimesInput,
    LayerwiseRelevance,
)
from models.explainers.rules import Rule
from tests.models.explainer_cases import MODELS, TARGET, Linear, classifier, images

PURE = {"epsilon": Epsilon(), "gamma": Gamma(), "alpha-beta": AlphaBeta()}


def everywhere(rule, **settings):
    return LayerwiseRelevance(convolution=rule, dense=rule, rest=rule, **settings)


def mlp(bias):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(8, 6, bias=bias),
        nn.ReLU(),
        nn.Linear(6, 5, bias=bias),
        nn.ReLU(),
        nn.Linear(5, 3, bias=bias),
    ).double()


def slow_layer(rule, x, weight, bias, relevance):
    """Relevance of the inputs of one layer and of its bias, output by output, input by input."""
    found, kept = torch.zeros_like(x), 0.0
    for j, (row, b) in enumerate(zip(weight, bias, strict=True)):
        parts = [*(x * row).tolist(), float(b)]
        positive = sum(p for p in parts if p > 0)
        negative = sum(p for p in parts if p < 0)
        z = positive + negative
        r = float(relevance[j])
        if isinstance(rule, Epsilon):
            shares = [p / z * r for p in parts]
        elif isinstance(rule, Gamma):
            lifted = z + rule.gamma * (positive if z >= 0 else negative)
            shares = [
                (p + rule.gamma * p * ((p > 0) == (z >= 0) and p != 0)) / lifted * r for p in parts
            ]
        else:
            alpha = 1 + rule.beta if positive and negative else float(positive != 0)
            shares = [
                (alpha * p / positive if p > 0 else (1 - alpha) * p / negative if p < 0 else 0) * r
                for p in parts
            ]
        found += torch.tensor(shares[:-1], dtype=x.dtype)
        kept += shares[-1]
    return found, kept


def slow_lrp(rule, model, x, target):
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    inputs = [x.flatten()]
    for layer in layers[:-1]:
        inputs.append(layer(inputs[-1]).relu())
    logits = layers[-1](inputs[-1])
    relevance, kept = torch.zeros_like(logits), 0.0
    relevance[target] = logits[target]
    for layer, values in zip(reversed(layers), reversed(inputs), strict=True):
        bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
        relevance, lost = slow_layer(rule, values, layer.weight, bias, relevance)
        kept += lost
    return relevance.view(2, 2, 2).sum(0), kept / float(logits[target])


@pytest.mark.parametrize("rule", [Epsilon(epsilon=0.0), Gamma(gamma=0.4, epsilon=0.0), AlphaBeta()])
@pytest.mark.parametrize("bias", [False, True])
def test_each_rule_is_its_matrix_form(rule, bias):
    model, x = mlp(bias), images(3, side=2).double()
    (found,) = everywhere(rule, share_biases=False)(model, x, TARGET)
    for i in range(3):
        with torch.no_grad():
            expected, kept = slow_lrp(rule, model, x[i], int(TARGET[i]))
        torch.testing.assert_close(found.values[i], expected.float(), rtol=1e-4, atol=1e-6)
        reason = found.verdicts[i].reason
        assert f"biases took {100 * abs(kept):.2g} %, kept" in reason


class Residual(nn.Module):
    """Rectifiers, sums, concatenation and pooling without biases."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.one = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.two = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.head = nn.Linear(12, 3, bias=False)

    def forward(self, x):
        first = self.one(x).relu()
        second = (self.two(first) + first).relu()
        both = nn.functional.max_pool2d(torch.cat([first, second], 1), 2)
        return self.head(nn.functional.avg_pool2d(both, 4).mean((2, 3)))


@pytest.mark.parametrize("make", [lambda: mlp(bias=False), Residual])
def test_without_biases_lrp_0_is_gradient_x_input(make):
    model = make().double()
    x = images(3, side=2 if isinstance(model, nn.Sequential) else 16).double()
    (lrp,) = everywhere(Epsilon(epsilon=1e-12))(model, x, TARGET)
    (product,) = GradientTimesInput()(model, x, TARGET)
    torch.testing.assert_close(lrp.values, product.values, rtol=1e-5, atol=1e-7)
    assert lrp.residual.max() < 1e-6


@pytest.mark.parametrize("method", ["lrp", "lrp-gamma", "lrp-alpha-beta"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bottleneck"])
def test_conserves_on_every_family_or_says_why_not(name, method):
    (found,) = EXPLAINERS[method](MODELS[name](), images(), TARGET)
    for residual, verdict in zip(found.residual.tolist(), found.verdicts, strict=True):
        assert "biases took" in verdict.reason
        if residual > 1e-2:  # class tokens and dead inputs keep relevance
            assert name in ("transformer", "dense")
            assert verdict.word in ("doubtful", "refused")
    assert found.values.abs().max() > 0
    assert torch.isfinite(found.values).all()


def test_what_biases_keep_is_what_is_missing():
    """Of an affine score: the map has the linear part, the bias the rest."""
    model, x = Linear(classes=3), images(3, side=6)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([2.0, -3.0, 4.0]))
        logits = model(x).gather(1, TARGET[:, None])[:, 0]
    (kept,) = everywhere(Epsilon(), share_biases=False)(model, x, TARGET)
    torch.testing.assert_close(kept.values, (model.weight(TARGET) * x).sum(1), rtol=1e-4, atol=1e-5)
    expected = (model.head.bias[TARGET] / logits).abs().detach()
    torch.testing.assert_close(kept.residual, expected, rtol=1e-3, atol=1e-4)
    assert "sound" not in {verdict.word for verdict in kept.verdicts}
    assert "see 'deeplift', which is complete with biases" in kept.verdicts[0].reason
    (shared,) = everywhere(Epsilon())(model, x, TARGET)
    parts = model.weight(TARGET) * x
    share = parts.abs() / parts.abs().sum((1, 2, 3), keepdim=True)
    bias = model.head.bias[TARGET].detach()[:, None, None, None]
    torch.testing.assert_close(shared.values, (parts + share * bias).sum(1), rtol=1e-4, atol=1e-5)
    assert shared.residual.max() < 1e-5


def test_biases_of_dead_inputs_are_missing_and_said_so():
    """Nothing to share a bias among: on a black picture the whole score is the bias."""
    model, x = Linear(classes=3), torch.zeros(3, 2, 6, 6)
    (found,) = everywhere(Epsilon())(model, x, TARGET)
    assert (found.values == 0).all()
    assert {verdict.word for verdict in found.verdicts} == {"refused"}
    assert "biases took 1e+02 %" in found.verdicts[0].reason


def test_features_take_all_and_the_map_that_gates_them_nothing():
    """Sign and size of the gate's potentials do not matter beyond the gate's value."""

    class Gated(nn.Module):
        def __init__(self, constant):
            super().__init__()
            torch.manual_seed(6)
            self.conv, self.gate = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 1, 1)
            self.head, self.constant = nn.Linear(4, 3, bias=False), constant

        def forward(self, x):
            features = self.conv(x).relu()
            gate = self.gate(features).flatten(1).softmax(1).view(len(x), 1, 6, 6)
            gate = gate.detach() if self.constant else gate
            return self.head((features * gate).sum((2, 3)))

    x = images(3, side=8)
    (found,) = everywhere(Epsilon())(Gated(False), x, TARGET)
    # for a gate that is no function of the picture the model has no biases: gradient x input
    (product,) = GradientTimesInput()(Gated(True), x, TARGET)
    torch.testing.assert_close(found.values, product.values, rtol=1e-3, atol=1e-6)
    assert found.residual.max() < 1e-4


def test_two_features_share_a_product_by_halves_and_the_dividend_takes_all():
    class Products(nn.Module):
        def forward(self, x):
            one, other = x[:, :1], x[:, 1:]
            return torch.cat([(one * other).mean((2, 3)), (one / other).mean((2, 3))], 1)

    x = images(2, side=4).abs() + 0.5
    (product,) = everywhere(Epsilon())(Products(), x, torch.tensor([0, 0]))
    torch.testing.assert_close(product.values, (x[:, 0] * x[:, 1]) / 16)
    (quotient,) = everywhere(Epsilon())(Products(), x, torch.tensor([1, 1]))
    torch.testing.assert_close(quotient.values, (x[:, 0] / x[:, 1]) / 16)


def test_relevance_that_cancels_is_doubted_and_that_bursts_is_refused():
    """Two great parts of opposite sign: the map adds up, and says nothing."""

    class Cancels(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size

        def forward(self, x):
            first = x[:, :, :1].sum((2, 3)) * self.size
            return first - x[:, :, 1:2].sum((2, 3)) * self.size

    x = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    x[:, :, 0] += 0.001
    (found,) = everywhere(Epsilon())(Cancels(3.0), x, torch.tensor([0]))
    assert found.residual < 1e-2
    assert found.verdicts[0].word == "doubtful"
    assert "adds up to 2e+03 times the score: choose the gamma rule" in found.verdicts[0].reason
    x[:, :, 0] = 1 + 1e-5
    (found,) = everywhere(Epsilon(epsilon=0.0))(Cancels(3.0), x, torch.tensor([0]))
    assert found.verdicts[0].word == "refused"


class Softmaxed(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)).softmax(1)


class Adaptive(nn.Module):
    """Convolves pictures with themselves."""

    def forward(self, x):
        return nn.functional.conv2d(x, x[:2]).flatten(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Softmaxed(), r"operation 'aten\._softmax\.default', which has no rule; explain .* by 'de"),
        (Adaptive(), r"the weights of 'aten\.convolution\.default' depend on the picture"),
    ],
)
def test_operations_without_a_rule_are_refused(model, message):
    with pytest.raises(ExplainerError, match=message):
        LayerwiseRelevance()(model, images(3), TARGET // 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epsilon(epsilon=-1.0), r"epsilon is -1\.0; it must be 0 or more"),
        (lambda: Gamma(gamma=-1.0), r"gamma is -1\.0; it must be 0 or more"),
        (lambda: AlphaBeta(beta=-1.0), r"beta is -1\.0; it must be 0 or more"),
    ],
)
def test_rules_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ExplainerError, match=message):
        make()


def test_names_tell_the_rules():
    model, x = classifier("baseline"), images()
    for name, rule in PURE.items():
        assert isinstance(rule, Rule)
        (found,) = everywhere(rule)(model, x, TARGET)
        assert found.method == f"lrp-{name}"
