"""Completeness, conservation and the mean of CAM on trained networks of five families."""

import re
from functools import cache

import pytest
import torch
from torch import nn

from models.errors import ExplainerError
from models.explainers import (
    EXPLAINERS,
    ClassActivation,
    DeepLift,
    Epsilon,
    GradientTimesInput,
    IntegratedGradients,
    LayerwiseRelevance,
)
from models.explainers.scoring import logits_of
from models.networks import build
from tests.models.explainer_cases import dense_net, transformer

STEPS = 20
TRANSFORMERS = ("vit-narrow baseline", "foreign transformer")
FAMILIES = (
    "resnet10-narrow baseline",
    "resnet10-narrow exact",
    "unet-encoder-narrow baseline",
    "unet-encoder-narrow exact",
    "densenet-narrow baseline",
    "densenet-narrow exact",
    "foreign densenet",
    *TRANSFORMERS,
)
FOREIGN = {"foreign densenet": dense_net, "foreign transformer": transformer}


def squares(count, generator, side=32):
    """Noise with a bright square in either channel or a dark one in the first, by class."""
    target = torch.arange(count) % 3
    pictures = 0.5 * torch.randn(count, 2, side, side, generator=generator)
    for i, kind in enumerate(target.tolist()):
        r, c = torch.randint(0, side - 8, (2,), generator=generator).tolist()
        pictures[i, kind % 2, r : r + 8, c : c + 8] += 1.5 if kind < 2 else -1.5
    return pictures, target


@cache
def trained(name, steps=STEPS, side=32):
    torch.manual_seed(0)
    if name in FOREIGN:
        model = FOREIGN[name]().train()
    else:
        network, variant = name.split()
        model = build(network, variant=variant, in_channels=2, classes=3, image_size=side)
    generator = torch.Generator().manual_seed(3)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        pictures, target = squares(12, generator, side)
        optimiser.zero_grad()
        nn.functional.cross_entropy(logits_of(model, pictures), target).backward()
        optimiser.step()
    return model.eval()


def unseen(model, side=32):
    """Two of twelve pictures that the model was not trained on, and the classes that they change.

    Errors are relative to the score's change from a black picture: it is the greatest of these.
    """
    pictures, _ = squares(12, torch.Generator().manual_seed(9), side)
    with torch.no_grad():
        change = (logits_of(model, pictures) - logits_of(model, 0 * pictures)).abs()
    most = change.amax(1).topk(2).indices
    return pictures[most], change[most].argmax(1)


def scores(model, pictures, target):
    with torch.no_grad():
        return logits_of(model, pictures).gather(1, target[:, None])[:, 0]


def assert_laws_hold(model, x, target, methods):
    now, before = scores(model, x, target), scores(model, 0 * x, target)
    for explainer in methods:
        (found,) = explainer(model, x, target)
        if explainer.name == "cam":
            summed, expected, tolerance = found.values.mean((1, 2)), now, 1e-3
        elif explainer.name.startswith("lrp"):
            summed, expected, tolerance = found.values.sum((1, 2)), now, 1e-2
        else:
            summed, expected, tolerance = found.values.sum((1, 2)), now - before, 1e-3
        error = ((summed - expected) / expected).abs()
        torch.testing.assert_close(found.residual, error, rtol=0.05, atol=1e-4)
        for missing, verdict in zip(error.tolist(), found.verdicts, strict=True):
            assert (missing <= tolerance) == (verdict.word == "sound")
            if missing > tolerance:
                assert explainer.name == "lrp"
                assert accounted(verdict.reason) == pytest.approx(missing, rel=0.1)


def accounted(reason):
    """Share of the score that the reason of LRP says is not in the map."""
    number = r"(-?[0-9.]+(?:e[+-]?[0-9]+)?) %"
    stayed = re.search(number + " found all inputs zero and stayed", reason)
    joined = re.search("constants joined to features keep " + number, reason)
    return sum(float(found[1]) / 100 for found in (stayed, joined) if found)


@pytest.mark.parametrize("name", FAMILIES)
def test_laws_hold_on_trained_networks_or_the_verdict_says_why_not(name):
    methods = [IntegratedGradients(), DeepLift(), EXPLAINERS["lrp"]]
    if name not in TRANSFORMERS:
        methods.append(ClassActivation())
    assert_laws_hold(trained(name), *unseen(trained(name)), methods)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_have_no_class_activation_map(name):
    with pytest.raises(ExplainerError, match="there is no class activation map; explain"):
        ClassActivation()(trained(name), *unseen(trained(name)))


@pytest.mark.slow
def test_laws_hold_on_the_deep_network_of_the_paper():
    model = trained("resnet50 exact", steps=3, side=64)
    methods = [DeepLift(), EXPLAINERS["lrp"], ClassActivation()]
    assert_laws_hold(model, *unseen(model, 64), methods)


@pytest.mark.parametrize("network", ["resnet10-narrow", "unet-encoder-narrow", "densenet-narrow"])
def test_without_biases_lrp_0_is_gradient_x_input(network):
    """Rectifiers, normalisations without shift, pooling and residual sums scale with the input."""
    torch.manual_seed(1)
    model = build(network, variant="baseline", in_channels=2, classes=3, image_size=32)
    model.load_state_dict(trained(f"{network} baseline").state_dict())
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                tensor.zero_()
    x, target = unseen(model.eval())
    model.double()
    rule = Epsilon(epsilon=1e-12)
    lrp_0 = LayerwiseRelevance(convolution=rule, dense=rule, rest=rule)
    (lrp,), (product,) = (e(model, x.double(), target) for e in (lrp_0, GradientTimesInput()))
    scale = product.values.abs().max().item()
    torch.testing.assert_close(lrp.values, product.values, rtol=0, atol=1e-5 * scale)
    assert max(lrp.residual.max(), product.residual.max()) < 1e-6
    assert {verdict.word for verdict in lrp.verdicts} == {"sound"}
