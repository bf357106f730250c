"""Statistics measured afresh are those of the present weights, for every look, and nothing else."""

import pytest
import torch
from torch import nn

from models.attention import ATTENTIONS
from models.networks import build
from models.statistics import remeasure


def make(variant="exact-two-pass"):
    """A network whose running statistics are of no use."""
    torch.manual_seed(0)
    model = build("resnet10-narrow", variant=variant, in_channels=1, classes=3, image_size=64)
    for gate in model.attention.gates.values() if model.map_names else ():
        nn.init.normal_(gate.potential.weight, std=20)  # the two looks differ
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(3, 5)
    return model


def images(count=6, seed=7):
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


def statistics(model):
    return {name: value.clone() for name, value in model.named_buffers()}


def inputs_of(model, norm, batch):
    """What a batch normalisation is given in each look, with every norm on its batch's own."""
    seen = []
    handle = model.get_submodule(norm).register_forward_hook(
        lambda _norm, given, _out: seen.append(given[0].detach())
    )
    model.train()
    with torch.no_grad():
        model(batch)
    handle.remove()
    return seen


@pytest.mark.parametrize(
    ("norm", "own"),
    [
        ("trunk.stem.bn1", ["trunk.stem.bn1.{}"]),
        ("trunk.block3.0.bn2", ["trunk.block3.0.bn2.{}"]),
        (
            "trunk.block4.0.bn1",
            ["attention.first_look.block4.0__bn1__{}", "trunk.block4.0.bn1.{}"],
        ),
    ],
)
def test_each_look_holds_the_mean_over_the_batches(norm, own):
    model = make()
    batches = [images(seed=1), images(seed=2), images(seed=3)]
    seen = [inputs_of(make(), norm, batch) for batch in batches]
    remeasure(model, batches)
    for look, name in enumerate(own):
        given = [calls[look] for calls in seen]
        mean = torch.stack([values.mean((0, 2, 3)) for values in given]).mean(0)
        var = torch.stack([values.var((0, 2, 3), unbiased=True) for values in given]).mean(0)
        found = statistics(model)
        torch.testing.assert_close(found[name.format("running_mean")], mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name.format("running_var")], var, rtol=1e-4, atol=1e-5)
    assert len(seen[0]) == len(own)


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_the_measured_batch_is_evaluated_as_it_is_trained(variant):
    """But for the divisor of the variance, n against n - 1."""
    model, batch = make(variant), images(count=24)
    with torch.no_grad():
        astray = model.eval()(batch).logits
        remeasure(model, [batch])
        found = model(batch).logits
        trained = model.train()(batch).logits
    spread = (trained - trained.mean(0)).norm()
    assert (found - trained).norm() < 0.1 * spread
    assert (astray - trained).norm() > 0.5 * spread


def test_what_was_known_before_does_not_matter():
    model, other = make(), make()
    for name, buffer in other.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(float("nan"))
    remeasure(model, [images()])
    remeasure(other, [images()])
    for name, value in statistics(model).items():
        assert torch.equal(value, statistics(other)[name]), name


@pytest.mark.parametrize("fails", [False, True])
def test_everything_else_comes_back_as_found(fails):
    model = make().train()
    model.trunk.block1.eval()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    modes = [part.training for part in model.modules()]

    def forward(batch, network):
        assert not torch.is_grad_enabled()
        assert not network.training
        network(batch)
        if fails:
            raise RuntimeError("in the middle")

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            remeasure(model, [images()], forward=forward)
    else:
        remeasure(model, [images()], forward=forward)
    assert [part.training for part in model.modules()] == modes
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name])
        assert value.grad is None


def test_dropout_rests():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1))
    batch = images()
    remeasure(model, [batch])
    torch.testing.assert_close(model[1].running_mean, batch.mean((0, 2, 3)))


def test_without_batches_the_old_statistics_stay():
    model = make()
    before = statistics(model)
    remeasure(model, [])
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name])


def test_a_network_without_batch_normalisation_is_not_run():
    calls = []
    remeasure(nn.Conv2d(1, 1, 1), [images()], forward=lambda *given: calls.append(given))
    assert calls == []
