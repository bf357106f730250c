"""Small networks in double precision with literal weights, for the comparison with captum.

The same on every machine and with every version of torch: no random number is drawn.
"""

import torch
from torch import nn

TARGET = torch.tensor([0, 2])


def settled(model, pace=0.7):
    """Weights from a sine of their number, scaled by the inputs they are summed over."""
    count = 0
    model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            number = torch.arange(count, count + weight.numel(), dtype=torch.float64)
            fan_in = max(1, weight[0].numel())
            weight.copy_((torch.sin(pace * number**1.1 + 0.3) / fan_in**0.5).view_as(weight))
            count += weight.numel()
    return model


def pictures(side=6):
    number = torch.arange(2 * 2 * side * side, dtype=torch.float64)
    return torch.sin(1.3 * number**1.05).view(2, 2, side, side)


class Plain(nn.Module):
    """Each activation a module of its own, no sums: what captum is made for."""

    def __init__(self, activation=nn.ReLU, bias=True):
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.first, self.second = activation(), activation()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3, bias=bias)

    def forward(self, x):
        features = self.second(self.two(self.first(self.one(x))))
        return self.head(self.pool(features)[:, :, 0, 0])


class Residual(nn.Module):
    """One residual sum, no biases: relevance and contributions must add up to the score."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.two = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.first, self.second = nn.ReLU(), nn.ReLU()
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        features = self.first(self.one(x))
        features = self.second(self.two(features) + features)
        return self.head(self.pool(features)[:, :, 0, 0])


class Dense(nn.Module):
    """Two hidden layers, with one activation for both or with functional ones."""

    def __init__(self, functional):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(72, 6), nn.Linear(6, 5), nn.Linear(5, 3)
        self.shared = None if functional else nn.ReLU()

    def forward(self, x):
        activation = self.shared or torch.relu
        return self.head(activation(self.two(activation(self.one(x.flatten(1))))))


def flattening():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False)
    )
