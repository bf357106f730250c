"""Laws that every variant obeys, and what each of them computes, spelled out slowly."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from models.attention import ATTENTIONS
from models.convex import block_sum, chain_value, consistency_value, consistent, consistent_chain
from models.gates import GateOptions, PotentialGate
from models.losses import objective
from models.networks import build

GATED = [name for name in ATTENTIONS if name != "baseline"]
PAIRS = [name for name in ATTENTIONS if name not in ("baseline", "fine", "coarse")]
AGREEING = ["exact", "chain"]


def make(variant, *, size=64, seed=0, network="resnet10-narrow", sharpness=0.0, **options):
    torch.manual_seed(seed)
    model = build(network, variant=variant, in_channels=1, classes=3, image_size=size, **options)
    if sharpness and model.map_names:  # fresh gates are nearly uniform
        for gate in model.attention.gates.values():
            nn.init.normal_(gate.potential.weight, std=sharpness)
    return model


def images(count=4, size=64, seed=7):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 1])


def softmax(phi):
    return phi.flatten(1).softmax(1).view_as(phi)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", GATED)
def test_maps_are_distributions(variant, training):
    model = make(variant, sharpness=20).train(training)
    maps = model(images()).maps
    assert len(maps) == len(model.map_names) > 0
    for level in maps:
        assert (level >= 0).all()
        torch.testing.assert_close(level.sum((1, 2)), torch.ones(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_a_sample_does_not_see_its_neighbours(variant):
    model = make(variant, sharpness=20).eval()
    with torch.no_grad():
        whole = model(images())
        for i in range(4):
            alone = model(images()[i : i + 1])
            torch.testing.assert_close(whole.logits[i : i + 1], alone.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                whole.penalty[i : i + 1], alone.penalty, rtol=1e-4, atol=1e-5
            )
            for together, single in zip(whole.maps, alone.maps, strict=True):
                torch.testing.assert_close(together[i : i + 1], single, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_every_weight_is_trained(variant):
    model = make(variant)
    objective(model(images()), LABELS, alpha=model.default_alpha).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("variant", GATED)
def test_maps_depend_on_the_image_and_receive_gradients(variant):
    model = make(variant, sharpness=20).eval()
    batch = images().requires_grad_()
    for level in model(batch).maps:
        assert (level[0] - level[1]).abs().max() > 1e-4
        (gradient,) = torch.autograd.grad((level**2).sum(), batch, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_loss_of_a_batch_is_the_mean_over_its_samples(variant):
    model = make(variant, sharpness=20).eval()
    weights = torch.tensor([0.5, 1.0, 3.0])

    def loss(batch, labels):
        return objective(model(batch), labels, alpha=10.0, class_weights=weights).loss

    with torch.no_grad():
        parts = [loss(images()[i : i + 1], LABELS[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(
            loss(images(), LABELS), torch.stack(parts).mean(), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("sharpness", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("variant", AGREEING)
def test_exact_maps_agree_across_levels(variant, sharpness):
    maps = make(variant, sharpness=sharpness)(images()).maps
    for finer, coarser in itertools.pairwise(maps):
        pooled = block_sum(finer, coarser.shape[1:])
        torch.testing.assert_close(pooled, coarser, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", PAIRS)
def test_penalty_is_its_definition(variant):
    """Each penalty from the potentials, with plain probabilities instead of log space."""
    model = make(variant, sharpness=5).eval().double()
    potentials = []
    for gate in model.attention.gates.values():
        gate.register_forward_hook(lambda _gate, _inputs, output: potentials.append(output))
    if variant == "dual":
        nn.init.normal_(model.attention.disagreement.witness)
    penalty = model(images().double()).penalty
    fine, coarse = potentials[-2:]
    p, q = softmax(coarse), block_sum(softmax(fine), coarse.shape[1:])
    if variant == "dual":
        witness = model.attention.disagreement.witness
        p, q = p * witness.exp(), q * (-witness).exp()
        p, q = p / p.sum((1, 2), keepdim=True), q / q.sum((1, 2), keepdim=True)
    expected = {
        "unconstrained": torch.zeros(4, dtype=torch.float64),
        "kl-forward": (p * (p / q).log()).sum((1, 2)),
        "dual": (p * (p / q).log()).sum((1, 2)),
        "kl-reverse": (q * (q / p).log()).sum((1, 2)),
        "value": consistency_value(fine, coarse),
        "exact": consistency_value(fine, coarse),
        "chain": chain_value(potentials),
    }[variant]
    torch.testing.assert_close(penalty, expected)
    assert variant == "unconstrained" or (penalty > 0).all()


def test_dual_witness_has_one_number_per_coarse_cell():
    model = make("dual", size=96)
    assert model.attention.disagreement.witness.shape == (3, 3)
    assert make("kl-forward").attention.disagreement.witness is None


@pytest.mark.parametrize("rescale", [True, False])
def test_one_pass_gates_with_the_maps_it_reports(rescale):
    model = make("unconstrained", sharpness=20, rescale=rescale, pool_scale=0.25).eval()
    trunk, gates = model.trunk, model.attention.gates
    prediction = model(images())
    fine_features = trunk.walk(images(), upto="block3")
    fine = softmax(gates["block3"](fine_features))
    scale = fine[0].numel() if rescale else 1
    coarse_features = trunk.block4(scale * fine[:, None] * fine_features)
    coarse = softmax(gates["block4"](coarse_features))
    scale = coarse[0].numel() if rescale else 1
    pooled = (scale * coarse[:, None] * coarse_features).mean((2, 3))
    pooled = pooled * (0.25 if rescale else 1)
    torch.testing.assert_close(prediction.maps[0], fine)
    torch.testing.assert_close(prediction.maps[1], coarse)
    torch.testing.assert_close(prediction.logits, model.head(pooled))


@pytest.mark.parametrize(("variant", "level"), [("fine", "block3"), ("coarse", "block4")])
def test_single_level_variants_gate_that_level(variant, level):
    model = make(variant)
    assert list(model.attention.gates) == [level]
    assert model.map_names == (variant,)
    assert model(images()).maps[0].shape == (4, *model.trunk.grid(level, (64, 64)))


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_exact_gates_both_levels_with_the_consistent_maps(weight):
    model = make("exact", sharpness=20, weight=weight, pool_scale=1.0).eval()
    trunk, gates = model.trunk, model.attention.gates
    prediction = model(images())
    fine_features = trunk.walk(images(), upto="block3")
    fine_logits = gates["block3"](fine_features)
    coarse_logits = gates["block4"](trunk.block4(fine_features))  # statistics are still shared
    fine, coarse = consistent(fine_logits, coarse_logits, weight=weight)
    coarse_features = trunk.block4(fine[0].numel() * fine[:, None] * fine_features)
    pooled = (coarse[0].numel() * coarse[:, None] * coarse_features).mean((2, 3))
    torch.testing.assert_close(prediction.maps, (fine, coarse))
    torch.testing.assert_close(prediction.logits, model.head(pooled))
    torch.testing.assert_close(
        prediction.penalty, consistency_value(fine_logits, coarse_logits, weight=weight)
    )


def test_chain_gates_three_levels_with_the_chain_of_their_first_look():
    model = make("chain", sharpness=20, pool_scale=1.0).eval()
    trunk, gates = model.trunk, model.attention.gates
    prediction = model(images())
    assert model.map_names == ("block2", "block3", "block4")
    features, logits = trunk.walk(images(), upto="block2"), []
    walked = features
    for level in model.map_names:
        walked = walked if level == "block2" else trunk.get_submodule(level)(walked)
        logits.append(gates[level](walked))
    maps = consistent_chain(logits)
    torch.testing.assert_close(list(prediction.maps), maps)
    for level, gate in zip(model.map_names, maps, strict=True):
        features = features if level == "block2" else trunk.get_submodule(level)(features)
        features = gate[0].numel() * gate[:, None] * features
    torch.testing.assert_close(prediction.logits, model.head(features.mean((2, 3))))


def test_first_look_keeps_its_own_statistics():
    """Each look's running mean follows the features of that look, not a mixture of the two."""
    model = make("exact", sharpness=20).train()
    seen = []
    norm = model.trunk.block4[0].bn1
    norm.register_forward_hook(lambda _norm, inputs, _out: seen.append(inputs[0].mean((0, 2, 3))))
    for _ in range(80):
        model(images())
    first, second = (mean.detach() for mean in seen[-2:])
    own = model.attention.first_look["block4"].get_buffer("0__bn1__running_mean")
    torch.testing.assert_close(own, first, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(norm.running_mean, second, rtol=0.01, atol=1e-3)
    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("variant", GATED)
def test_mean_gate_is_one(variant):
    """With uniform potentials the gates change nothing: the model is the baseline."""
    model = make(variant, pool_scale=1.0).eval()
    for gate in model.attention.gates.values():
        nn.init.zeros_(gate.potential.weight)
    baseline = make("baseline").eval()
    baseline.trunk.load_state_dict(model.trunk.state_dict())
    baseline.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(model(images()).logits, baseline(images()).logits)


@pytest.mark.parametrize("embedding", [(), (7,), (5, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_potential_is_the_formula(embedding, bias):
    """phi_i = <u, relu(U v_i / ||U v_i||)>, cell by cell; cascaded by feeding it forward."""
    torch.manual_seed(0)
    gate = PotentialGate(6, GateOptions(embedding=embedding, gate_bias=bias)).double()
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    potentials = gate(features)
    assert [layer.out_channels for layer in gate.embeddings] == list(embedding or (6,))
    for b in range(2):
        for h in range(3):
            for w in range(4):
                v = features[b, :, h, w]
                for layer in gate.embeddings:
                    v = layer.weight[:, :, 0, 0] @ v + (layer.bias if bias else 0)
                    v = normalize(v, dim=0).relu()
                phi = gate.potential.weight.flatten() @ v + (gate.potential.bias if bias else 0)
                torch.testing.assert_close(potentials[b, h, w], phi.squeeze(), rtol=1e-4, atol=1e-5)


def test_gate_is_safe_where_features_are_zero():
    torch.manual_seed(0)
    gate = PotentialGate(6, GateOptions())
    features = torch.zeros(1, 6, 2, 2, requires_grad=True)
    potentials = gate(features)
    assert (potentials == 0).all()
    potentials.sum().backward()
    assert torch.isfinite(features.grad).all()
    assert features.grad.abs().max() < 1e4


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_mixed_precision_and_channels_last(variant):
    """Under bfloat16 autocast: float32 results near the full ones, and levels that still agree."""
    model = make(variant, sharpness=3).to(memory_format=torch.channels_last).eval()
    batch = images().to(memory_format=torch.channels_last)
    full = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(batch)
        loss = objective(mixed, LABELS, alpha=1.0).loss
    loss.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())
    for tensor in (mixed.logits, mixed.penalty, *mixed.maps):
        assert tensor.dtype == torch.float32
    torch.testing.assert_close(mixed.logits, full.logits, rtol=0.1, atol=0.1)
    for level in mixed.maps:
        torch.testing.assert_close(level.sum((1, 2)), torch.ones(4), rtol=0, atol=1e-5)
    if variant in AGREEING:
        for finer, coarser in zip(mixed.maps, mixed.maps[1:], strict=False):
            pooled = block_sum(finer, coarser.shape[1:])
            torch.testing.assert_close(pooled, coarser, rtol=0, atol=1e-6)
