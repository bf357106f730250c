"""DeepLIFT: closed forms, completeness on all families, the rule of each operation."""

import pytest
import torch
from torch import nn

from models.errors import ExplainerError
from models.explainers import DeepLift, IntegratedGradients
from models.explainers.propagation import only
from tests.models.explainer_cases import (
    MODELS,
    TARGET,
    Linear,
    Quadratic,
    Soft,
    images,
)


@pytest.mark.parametrize("baseline", [0.0, 0.7])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bottleneck"])
def test_complete_on_every_family(name, baseline):
    model, x = MODELS[name](), images()
    (found,) = DeepLift(baseline=baseline, batch_size=2)(model, x, TARGET)
    with torch.no_grad():
        now, before = (model(p) for p in (x, torch.full_like(x, baseline)))
    now, before = (getattr(p, "logits", p).gather(1, TARGET[:, None])[:, 0] for p in (now, before))
    error = (found.values.sum((1, 2)) - (now - before)).abs() / (now - before).abs()
    assert error.max() <= 1e-3
    assert found.residual.max() <= 1e-3
    assert {verdict.word for verdict in found.verdicts} == {"sound"}


def test_linear_and_one_hidden_layer_on_paper():
    model = Linear(classes=3)
    x = images(3, side=6)
    (found,) = DeepLift(baseline=0.5)(model, x, TARGET)
    torch.testing.assert_close(found.values, (model.weight(TARGET) * (x - 0.5)).sum(1))

    soft, target = Soft(), torch.tensor([0, 1])
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    before, start = soft.hidden(x.flatten(1)), soft.hidden.bias
    rise = nn.functional.softplus(before) - nn.functional.softplus(start)
    multipliers = (soft.head.weight[target] * rise / (before - start)) @ soft.hidden.weight
    (found,) = DeepLift()(soft, x, target)
    expected = (multipliers * x.flatten(1)).detach().view(2, 3, 3)
    torch.testing.assert_close(found.values, expected.float())


def test_one_hidden_layer_and_a_quadratic_equal_integrated_gradients():
    """With one non-linearity on the way the rescale rule is the mean gradient."""
    x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    for model in (Soft(), Quadratic()):
        (lift,) = DeepLift()(model, x, torch.tensor([0, 1]))
        (mean,) = IntegratedGradients(tolerance=1e-7)(model, x, torch.tensor([0, 1]))
        torch.testing.assert_close(lift.values, mean.values, rtol=1e-4, atol=1e-5)


def test_a_rectifier_that_no_difference_reaches_passes_its_gradient():
    """Pixels equal to the baseline contribute nothing and divide nothing by zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.zeros(1, 2, 2, 2)
    (found,) = DeepLift()(model, x, TARGET[:1])
    assert (found.values == 0).all()
    assert found.residual == 0


class Step(nn.Module):
    """One operation between two linear layers, positive where it must be."""

    def __init__(self, operation, positive=False):
        super().__init__()
        torch.manual_seed(1)
        self.before, self.after = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)
        self.operation, self.positive = operation, positive
        self.double()

    def forward(self, x):
        features = self.before(x)
        features = features.abs() + 0.1 if self.positive else features
        out = self.operation(features)
        return self.after(out).mean((2, 3)) if out.ndim == 4 else out[:, :2]


def halves(f):
    return lambda x: torch.cat([f(x[:, :2], x[:, 2:]), f(x[:, 2:], x[:, :2])], 1)


OPERATIONS = {
    "maximum": (halves(torch.maximum), False),
    "minimum": (halves(torch.minimum), False),
    "same maximum": (lambda x: torch.maximum(x, x), False),
    "product": (halves(torch.mul), False),
    "square": (lambda x: x * x, False),
    "quotient": (halves(torch.div), True),
    "quotient of itself": (lambda x: x / (x + x.mean(1, keepdim=True)), True),
    "reciprocal": (lambda x: 2 / x, True),
    "power": (lambda x: x**1.5, True),
    "softmax": (lambda x: x.softmax(1), False),
    "peaked softmax": (lambda x: (60 * x).softmax(1), False),
    "log softmax": (lambda x: (5 * x).log_softmax(1), False),
    "logsumexp": (lambda x: (5 * x).flatten(2).logsumexp(2), False),
    "logsumexp kept": (lambda x: x.logsumexp(1, keepdim=True) + x, False),
    "lerp": (halves(lambda a, b: torch.lerp(a, b, 0.3)), False),
    "unbind": (lambda x: torch.stack([part.exp() for part in x.unbind(1)], 1), False),
    "max pool": (lambda x: nn.functional.max_pool2d(x, 3, 2, 1), False),
    "average pool": (lambda x: nn.functional.avg_pool2d(x.relu(), 2), False),
    "upsampling": (lambda x: nn.functional.interpolate(x.tanh(), scale_factor=2), False),
    "group norm": (lambda x: nn.functional.group_norm(x, 2), False),
    "layer norm": (lambda x: nn.functional.layer_norm(x, x.shape[1:]), False),
    "gelu": (nn.functional.gelu, False),
    "silu": (nn.functional.silu, False),
    "matrices": (lambda x: x @ x.transpose(2, 3), False),
    "variance": (lambda x: x / (x.var((2, 3), keepdim=True) + 1), False),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_complete(name):
    model = Step(*OPERATIONS[name]).eval()
    x = images(2, side=6).double()
    (found,) = DeepLift(baseline=0.3)(model, x, torch.tensor([0, 1]))
    assert found.residual.max() < 1e-6
    assert found.values.abs().max() > 1e-4


def test_max_pooling_gives_the_change_to_the_pixel_that_made_it():
    """Now 5 at the left, before 3 at the right: the left pixel made all of the change of 2."""

    class Pool(nn.Module):
        def __init__(self, old):
            super().__init__()
            self.register_buffer("old", old)

        def forward(self, x):
            shifted = x + self.old
            return torch.cat([nn.functional.max_pool2d(shifted, (1, 2)).flatten(1)] * 2, 1)

    old, new = torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 2.0]])
    (found,) = DeepLift()(Pool(old[None, None]), (new - old)[None, None], torch.tensor([0]))
    torch.testing.assert_close(found.values[0], torch.tensor([[2.0, 0.0]]))
    (back,) = DeepLift()(Pool(new[None, None]), (old - new)[None, None], torch.tensor([0]))
    torch.testing.assert_close(back.values[0], torch.tensor([[-2.0, 0.0]]))


def test_shared_and_functional_activations_are_each_their_own():
    """The same module twice, and in place: equal to a model with two of its own."""

    class Twice(nn.Module):
        def __init__(self, shared):
            super().__init__()
            torch.manual_seed(2)
            self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3)
            first = nn.ReLU(inplace=shared)
            self.act, self.act2 = first, first if shared else nn.ReLU()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            features = self.act2(self.two(self.act(self.one(x))))
            return self.head(nn.functional.relu(features - 0.05).mean((2, 3)))

    own, shared = (DeepLift()(Twice(flag), images(2), TARGET[:2] // 2)[0] for flag in (False, True))
    torch.testing.assert_close(shared.values, own.values)
    assert own.residual.max() < 1e-4


def test_a_map_that_fails_completeness_is_refused():
    """The score hardly changes: what rounding leaves is not an explanation."""

    class Tiny(nn.Module):
        def forward(self, x):
            return 1e-3 * x.mean((2, 3)) + 1e4 - 1e4

    (found,) = DeepLift()(Tiny(), images(2), TARGET[:2] // 2)
    assert {verdict.word for verdict in found.verdicts} == {"refused"}
    assert "choose a baseline whose score differs more" in found.verdicts[0].reason


class Places(nn.Module):
    """Uses where the maxima are."""

    def forward(self, x):
        pooled, where = nn.functional.max_pool2d(x, 2, return_indices=True)
        return (pooled * where).mean((2, 3))


class Decides(nn.Module):
    def forward(self, x):
        return torch.where(x > 0.1, x, 0.5 * x).mean((2, 3))


@pytest.mark.parametrize("model", [Decides(), Places()])
def test_operations_that_decide_by_values_are_refused(model):
    with pytest.raises(ExplainerError, match=r"decides by values and has no rule; explain it by"):
        DeepLift()(model, images(2), TARGET[:2] // 2)


def test_outputs_that_have_no_rule_are_refused():
    with pytest.raises(ExplainerError, match="uses the places of maxima as numbers; explain it by"):
        only({1: torch.ones(2)})
