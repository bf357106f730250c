import copy

import pytest
import torch
from torch import nn

from models.errors import NetworkError
from models.inference import InferenceCopy
from models.networks import build
from models.synchronised import GlobalBatchNorm

SIDE = 32


def batch(count=6):
    return torch.randn(count, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def stir(network):
    """Give batch normalisation numbers that a fold must take into account."""
    drawn = torch.Generator().manual_seed(4)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.2, generator=drawn)
            part.running_var.uniform_(0.5, 2.0, generator=drawn)
            part.weight.data.uniform_(0.5, 1.5, generator=drawn)
            part.bias.data.normal_(0, 0.2, generator=drawn)
    return network


def network(name="resnet10-narrow", variant="exact"):
    torch.manual_seed(0)
    built = build(name, variant=variant, in_channels=2, classes=2, image_size=SIDE)
    stir(built).train()
    for part in built.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        built(batch(16))  # statistics that keep what sets pictures apart
        logits = built.eval()(batch()).logits
        built.head.weight.div_(logits.std(0).mean())
        built.head.bias.sub_(logits.mean(0)).div_(logits.std(0).mean())
    return built


def norms(of):
    return sum(isinstance(part, nn.BatchNorm2d) for part in of.modules())


@pytest.mark.parametrize(
    ("name", "variant", "size", "left"),
    [
        ("resnet10-narrow", "exact", SIDE, 0),
        ("resnet10-narrow", "exact-two-pass", SIDE, 0),
        ("unet-encoder-narrow", "chain", SIDE, 0),
        ("densenet-narrow", "baseline", SIDE, 12),  # those that follow a concatenation or a pool
        ("vit-narrow", "baseline", SIDE, 0),
    ],
)
def test_a_copy_answers_as_the_model_does(name, variant, size, left):
    model = network(name, variant).eval()
    inference = InferenceCopy(model)
    assert norms(inference) == left
    assert inference.folded == norms(model) - left
    found, expected = inference(batch()), model(batch())
    assert expected.logits.std(0).max() > 0.5
    probabilities = expected.logits.softmax(1)
    torch.testing.assert_close(found.logits.softmax(1), probabilities, rtol=0, atol=1e-5)
    for one, other in zip(found.maps, expected.maps, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not found.logits.requires_grad


def test_a_bottleneck_is_folded():
    torch.manual_seed(0)
    model = build("resnet50", variant="baseline", in_channels=1, classes=2, image_size=SIDE)
    inference = InferenceCopy(stir(model.trunk.get_submodule("block1")))
    assert norms(inference) == 0
    images = torch.randn(2, 64, 8, 8)
    expected = model.trunk.get_submodule("block1").eval()(images)
    torch.testing.assert_close(inference(images), expected, rtol=1e-4, atol=1e-4)


def test_the_model_stays_as_it_was():
    model = network().train()
    model.trunk.get_submodule("block1").eval()
    model(batch()).logits.sum().backward()
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    inference = InferenceCopy(model)
    answer = inference(batch()).logits
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    kept = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(torch.equal(one, other) for one, other in zip(gradients, kept, strict=True))
    assert all(weight.requires_grad for weight in model.parameters())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    torch.testing.assert_close(inference(batch()).logits, answer)  # weights of its own


def test_a_copy_is_not_taken_for_the_model():
    model = network()
    inference = InferenceCopy(model)
    assert not any(weight.requires_grad for weight in inference.parameters())
    assert not set(inference.state_dict()) & set(model.state_dict())
    with pytest.raises(NetworkError, match="cannot be trained; train the network itself"):
        inference.train()
    assert inference.eval() is inference
    assert not any(part.training for part in inference.modules())


class Halved(nn.Conv2d):
    """A convolution that does more than its class says."""

    def forward(self, input):
        return super().forward(input) / 2


def sequence(*layers):
    return stir(nn.Sequential(*layers)).eval()


SHARED = nn.Conv2d(2, 2, 3, padding=1)


@pytest.mark.parametrize(
    "model",
    [
        sequence(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3)),
        sequence(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)),
        sequence(Halved(2, 3, 3), nn.BatchNorm2d(3)),
        sequence(SHARED, nn.BatchNorm2d(2), SHARED),
        sequence(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).eval(),
    ],
    ids=["before", "rectified", "derived", "shared", "parametrised", "batch statistics"],
)
def test_what_cannot_be_folded_stays(model):
    inference = InferenceCopy(model)
    assert inference.folded == 0
    torch.testing.assert_close(inference(batch()), model(batch()))


def test_what_can_be_folded_is():
    model = sequence(
        nn.Sequential(nn.Conv2d(2, 3, 3, bias=False)),
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        GlobalBatchNorm(4, affine=True),
    )
    inference = InferenceCopy(model)
    assert inference.folded == 2
    torch.testing.assert_close(inference(batch()), model(batch()), rtol=1e-5, atol=1e-5)


def test_hooks_see_what_they_saw():
    model = network().eval()
    seen = []
    norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    norm.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.detach()))
    model(batch())
    inference = InferenceCopy(model)
    assert inference.folded == 0
    inference(batch())
    torch.testing.assert_close(seen[0], seen[1])
    assert len(norm._forward_hooks) == 1
