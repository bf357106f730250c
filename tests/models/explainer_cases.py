"""Models and checks that the tests of explainers share."""

from dataclasses import replace

import numpy as np
import torch
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.vit import ViT
from torch import nn

from models.explainers import (
    EXPLAINERS,
    IntegratedGradients,
    MoreauGrad,
    Occlusion,
    SmoothGrad,
)
from models.networks import build

SIDE = 32


def quick(explainer):
    """The same method with fewer draws and steps."""
    if isinstance(explainer, MoreauGrad):
        return replace(explainer, draws=3, most_steps=4, rho=0.5, eta=explainer.eta / 100)
    if isinstance(explainer, SmoothGrad):
        return replace(explainer, draws=4)
    if isinstance(explainer, Occlusion):
        return replace(explainer, cells=3)
    if isinstance(explainer, IntegratedGradients):
        return replace(explainer, most_steps=64)
    return explainer


QUICK = {name: quick(explainer) for name, explainer in EXPLAINERS.items()}


def unsettled(model, seed=1):
    """Statistics, biases and gates as after training, so that nothing is zero by initialisation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.2 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
            if name.endswith("potential.weight"):
                weight.copy_(5 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def classifier(variant, network="resnet10-narrow", side=SIDE):
    torch.manual_seed(0)
    return unsettled(build(network, variant=variant, in_channels=2, classes=3, image_size=side))


class First(nn.Module):
    """The first of what a model returns."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)[0]


class Functional(nn.Module):
    """One activation for all, in place and functional; sums, joined features, a gate."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.more = nn.Conv2d(6, 6, 3, padding=1)
        self.gate = nn.Conv2d(12, 1, 1)
        self.head = nn.Linear(12 * 4, 3)

    def forward(self, images):
        features = self.act(self.norm(self.conv(images)))
        features = nn.functional.avg_pool2d(features, 2)
        other = self.more(features)
        other += features
        other = self.act(other)
        both = torch.cat([torch.tanh(other), nn.functional.leaky_relu(features - 0.3)], 1)
        gate = self.gate(both)
        both = both * gate.flatten(1).softmax(1).view_as(gate) * gate.shape[2] * gate.shape[3]
        both = nn.functional.max_pool2d(both, 3, stride=2, padding=1)
        return self.head(nn.functional.adaptive_avg_pool2d(both, 2).flatten(1))


def dense_net():
    torch.manual_seed(0)
    net = DenseNet(2, 2, 3, init_features=8, growth_rate=4, block_config=(2, 2))
    return unsettled(net)


def transformer():
    torch.manual_seed(0)
    net = ViT(
        2,
        (SIDE, SIDE),
        (8, 8),
        hidden_size=16,
        mlp_dim=32,
        num_layers=2,
        num_heads=2,
        classification=True,
        num_classes=3,
        spatial_dims=2,
    )
    return unsettled(First(net))


def functional():
    torch.manual_seed(0)
    return unsettled(Functional())


def attended(variant):
    return lambda: classifier(variant)


MODELS = {
    "baseline": attended("baseline"),
    "unconstrained": attended("unconstrained"),
    "two-pass": attended("exact-two-pass"),
    "exact": attended("exact"),
    "chain": attended("chain"),
    "bottleneck": lambda: classifier("exact", "resnet50"),
    "dense": dense_net,
    "transformer": transformer,
    "functional": functional,
}
"""Families of networks, ours and others."""

TARGET = torch.tensor([0, 2, 1])


def images(count=3, seed=5, side=SIDE):
    return torch.randn(count, 2, side, side, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    def __init__(self, classes=2, channels=2, side=6, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.flat = nn.Flatten()
        self.head = nn.Linear(channels * side * side, classes, bias=bias)
        self.shape = (channels, side, side)

    def forward(self, pictures):
        return self.head(self.flat(pictures))

    def weight(self, target):
        return self.head.weight[target].detach().view(-1, *self.shape)


class Quadratic(nn.Module):
    """Logits x' Q x / 2 + c' x, with Q symmetric of norm below 0.8, not convex."""

    def __init__(self, channels=1, side=3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        size = channels * side * side
        root = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
        curved = (root + root.transpose(1, 2)) / 2
        norms = torch.linalg.matrix_norm(curved, ord=2)[:, None, None]
        self.curved = nn.Parameter(0.8 * curved / norms)
        self.slope = nn.Parameter(torch.randn(2, size, generator=generator, dtype=torch.float64))

    def forward(self, pictures):
        x = pictures.flatten(1)
        return torch.einsum("bi,kij,bj->bk", x, self.curved, x) / 2 + x @ self.slope.T


class Soft(nn.Module):
    """One hidden layer of softplus units, smooth everywhere."""

    def __init__(self, size=9):
        super().__init__()
        torch.manual_seed(4)
        self.hidden, self.head = nn.Linear(size, 7), nn.Linear(7, 2)
        self.double()

    def forward(self, pictures):
        return self.head(nn.functional.softplus(self.hidden(pictures.flatten(1))))


def snapshot(model):
    """Everything an explainer could leave behind."""
    return {
        "training": [part.training for part in model.modules()],
        "requires_grad": [weight.requires_grad for weight in model.parameters()],
        "identity": [
            (id(tensor), tensor.data_ptr(), id(tensor.grad))
            for tensor in [*model.parameters(), *model.buffers()]
        ],
        "grad": {
            name: weight.grad.clone()
            for name, weight in model.named_parameters()
            if weight.grad is not None
        },
        "state": {
            name: tensor.clone()
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        },
        "hooks": [
            [
                list(hooks)
                for hooks in (
                    part._forward_hooks,
                    part._forward_pre_hooks,
                    part._backward_hooks,
                    part._backward_pre_hooks,
                )
            ]
            for part in model.modules()
        ],
        "modes": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()),
        "numpy's random": str(np.random.get_state()),  # noqa: NPY002
        "random": torch.get_rng_state(),
    }


def assert_as_found(model, before):
    after = snapshot(model)
    for key in ("training", "requires_grad", "identity", "hooks", "modes", "numpy's random"):
        assert after[key] == before[key], key
    assert torch.equal(after["random"], before["random"])
    for kind in ("grad", "state"):
        assert before[kind].keys() == after[kind].keys()
        for name, value in before[kind].items():
            assert torch.equal(value, after[kind][name]), name
