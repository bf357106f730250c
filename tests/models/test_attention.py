"""Laws that every variant obeys, and what each of them computes, spelled out slowly."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from models.attention import ATTENTIONS
from models.convex import (
    block_sum,
    chain_value,
    consistency_value,
    consistent,
    consistent_chain,
    consistent_maps,
)
from models.gates import GateOptions, PotentialGate
from models.losses import objective
from models.networks import build

GATED = [name for name in ATTENTIONS if name != "baseline"]
PAIRS = [name for name in ATTENTIONS if name not in ("baseline", "fine", "coarse")]
AGREEING = [name for name in ATTENTIONS if name.startswith(("exact", "chain", "pyramid", "cvx"))]
OPTIONS = {
    "dual, witness per image": {"witness": "image"},
    "dual, cascade": {"cascade": 2},
    "value, arithmetic": {"mean": "arithmetic"},
    "exact, arithmetic": {"mean": "arithmetic", "weight": 0.3},
    "exact-two-pass, arithmetic": {"mean": "arithmetic", "weight": 0.3},
    "exact-two-pass, detached": {"detached": True},
    "exact, faithful": {"rescale": False},
    "cvx, arithmetic": {"mean": "arithmetic"},
    "exact-factored, arithmetic": {"mean": "arithmetic"},
    "chain, weighted": {"weight": 0.3},
    "chain, arithmetic": {"mean": "arithmetic"},
    "chain-factored, arithmetic": {"mean": "arithmetic", "weight": 0.7},
}
CASES = [*ATTENTIONS, *OPTIONS]
GATED_CASES = [case for case in CASES if case != "baseline"]
AGREEING_CASES = [case for case in CASES if case.split(",")[0] in AGREEING]


def make(case, **options):
    """A model by the name of its variant, or of a case with options."""
    return make_variant(case.split(",")[0], **{**OPTIONS.get(case, {}), **options})


def make_variant(variant, *, size=64, seed=0, network="resnet10-narrow", sharpness=0.0, **options):
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
@pytest.mark.parametrize("variant", GATED_CASES)
def test_maps_are_distributions(variant, training):
    model = make(variant, sharpness=20).train(training)
    maps = model(images()).maps
    assert len(maps) == len(model.map_names) > 0
    for level in maps:
        assert (level >= 0).all()
        torch.testing.assert_close(level.sum((1, 2)), torch.ones(4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", CASES)
def test_a_sample_does_not_see_its_neighbours(variant):
    model = make(variant, sharpness=20).eval().double()
    batch = images().double()
    with torch.no_grad():
        whole = model(batch)
        for i in range(4):
            alone = model(batch[i : i + 1])
            torch.testing.assert_close(whole.logits[i : i + 1], alone.logits)
            torch.testing.assert_close(whole.penalty[i : i + 1].double(), alone.penalty.double())
            for together, single in zip(whole.maps, alone.maps, strict=True):
                torch.testing.assert_close(together[i : i + 1], single)


@pytest.mark.parametrize("variant", CASES)
def test_every_weight_is_trained(variant):
    model = make(variant, sharpness=1)
    objective(model(images()), LABELS, alpha=model.default_alpha).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("variant", GATED_CASES)
def test_maps_depend_on_the_image_and_receive_gradients(variant):
    model = make(variant, sharpness=20).eval()
    batch = images().requires_grad_()
    for level in model(batch).maps:
        assert (level[0] - level[1]).abs().max() > 1e-4
        (gradient,) = torch.autograd.grad((level**2).sum(), batch, retain_graph=True)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("variant", CASES)
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
@pytest.mark.parametrize("variant", AGREEING_CASES)
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
    if variant.startswith("dual"):
        nn.init.normal_(model.attention.disagreement.witness)
    penalty = model(images().double()).penalty
    fine, coarse = potentials[-2:]
    p, q = softmax(coarse), block_sum(softmax(fine), coarse.shape[1:])
    if variant.startswith("dual"):
        witness = model.attention.disagreement.witness
        p, q = p * witness.exp(), q * (-witness).exp()
        p, q = p / p.sum((1, 2), keepdim=True), q / q.sum((1, 2), keepdim=True)
    expected = {
        "unconstrained": torch.zeros(4, dtype=torch.float64),
        "cvx": torch.zeros(4, dtype=torch.float64),
        "kl-forward": (p * (p / q).log()).sum((1, 2)),
        "dual": (p * (p / q).log()).sum((1, 2)),
        "dual-published": (p * (p / q).log()).sum((1, 2)),
        "kl-reverse": (q * (q / p).log()).sum((1, 2)),
        "value": consistency_value(fine, coarse),
        "chain": chain_value(potentials),
        "chain-two-pass": chain_value(potentials),
        "chain-one-pass": chain_value(potentials),
        "chain-factored": chain_value(potentials),
        "pyramid": chain_value(potentials),
    }.get(variant, consistency_value(fine, coarse))
    torch.testing.assert_close(penalty, expected)
    assert variant in ("unconstrained", "cvx") or (penalty > 0).all()


def test_dual_witness_has_one_number_per_coarse_cell():
    model = make("dual", size=96)
    assert model.attention.disagreement.witness.shape == (3, 3)
    assert make("kl-forward").attention.disagreement.witness is None


def test_witness_per_image_is_a_function_of_its_coarse_features():
    """And there is one that no pair of maps costs anything: lambda = log(T / tau) / 2."""
    model = make("dual, witness per image", sharpness=5).eval().double()
    penalty = model.attention.disagreement
    nn.init.normal_(penalty.witness.weight)
    generator = torch.Generator().manual_seed(1)
    fine, coarse = (torch.randn(3, n, n, generator=generator).double() for n in (4, 2))
    features = torch.randn(3, 128, 2, 2, generator=generator).double()
    witness = torch.einsum("bchw,c->bhw", features, penalty.witness.weight[0, :, 0, 0])
    p = softmax(coarse + witness)
    q = softmax(block_sum(softmax(fine), (2, 2)).log() - witness)
    expected = (p * (p / q).log()).sum((1, 2))
    torch.testing.assert_close(penalty([fine, coarse], features), expected)
    best = (block_sum(softmax(fine), (2, 2)) / softmax(coarse)).log() / 2
    nn.init.zeros_(penalty.witness.weight)
    with torch.no_grad():
        penalty.witness.weight[0, 0] = 1
        features[:, 0] = best
    torch.testing.assert_close(penalty([fine, coarse], features), torch.zeros(3).double())


def test_published_penalty_couples_the_batch_while_it_trains_and_only_then():
    """In training, sum_b w_b KL_b + KL(w || w') with the samples' shares w, w' of all mass."""
    penalty = make("dual-published").attention.disagreement.double()
    nn.init.normal_(penalty.witness, std=2)
    generator = torch.Generator().manual_seed(1)
    fine, coarse = (torch.randn(5, n, n, generator=generator).double() for n in (4, 2))
    features = torch.zeros(5, 1, 2, 2).double()
    p = softmax(coarse) * penalty.witness.exp()
    q = block_sum(softmax(fine), (2, 2)) * (-penalty.witness).exp()
    w, v = (side.sum((1, 2)) / side.sum() for side in (p, q))
    p, q = (side / side.sum((1, 2), keepdim=True) for side in (p, q))
    alone = (p * (p / q).log()).sum((1, 2))
    together = (w * alone).sum() + (w * (w / v).log()).sum()
    torch.testing.assert_close(penalty.train()([fine, coarse], features).mean(), together)
    torch.testing.assert_close(penalty.eval()([fine, coarse], features), alone)
    assert (together - alone.mean()).abs() > 1e-3


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
def test_two_passes_gate_both_levels_with_the_consistent_maps(weight):
    model = make("exact-two-pass", sharpness=20, weight=weight, pool_scale=1.0).eval()
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


@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_chain_gates_three_levels_with_the_chain_of_their_first_look(weight):
    model = make("chain-two-pass", sharpness=20, pool_scale=1.0, weight=weight).eval()
    trunk, gates = model.trunk, model.attention.gates
    prediction = model(images())
    assert model.map_names == ("block2", "block3", "block4")
    features, logits = trunk.walk(images(), upto="block2"), []
    walked = features
    for level in model.map_names:
        walked = walked if level == "block2" else trunk.get_submodule(level)(walked)
        logits.append(gates[level](walked))
    maps = consistent_chain(logits, [(1 - weight) ** 2, weight * (1 - weight), weight**2])
    torch.testing.assert_close(list(prediction.maps), maps)
    for level, gate in zip(model.map_names, maps, strict=True):
        features = features if level == "block2" else trunk.get_submodule(level)(features)
        features = gate[0].numel() * gate[:, None] * features
    torch.testing.assert_close(prediction.logits, model.head(features.mean((2, 3))))


@pytest.mark.parametrize("options", [{}, {"mean": "arithmetic", "weight": 0.3}])
def test_cvx_is_the_unconstrained_model_with_projected_maps(options):
    model = make("cvx", sharpness=20, **options).eval()
    twin = make("unconstrained", seed=1).eval()
    twin.load_state_dict(model.state_dict())
    theirs, ours = twin(images()), model(images())
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=0)
    weights = model.attention.options.level_weights(2)
    mean = options.get("mean", "geometric")
    projected = consistent_maps(theirs.maps, weights, mean=mean)
    torch.testing.assert_close(list(ours.maps), projected, rtol=1e-4, atol=1e-6)
    assert (ours.maps[0] - theirs.maps[0]).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["exact-one-pass", "chain-one-pass"])
def test_one_pass_gates_each_path_as_the_reported_maps_do(monkeypatch, variant):
    """Product of the gates from a fine cell up: that of the report, but for a factor per sample."""
    model = make(variant, sharpness=20).eval().double()
    gated, gate = [], GateOptions.gated

    def recorded(options, features, level_map, *, cells=None):
        gated.append(level_map)
        return gate(options, features, level_map, cells=cells)

    monkeypatch.setattr(GateOptions, "gated", recorded)
    prediction = model(images().double())
    ratio = torch.ones(4, *gated[0].shape[1:], dtype=torch.float64)
    for used, reported in zip(gated, prediction.maps, strict=True):
        block = ratio.shape[1] // used.shape[1]
        ratio *= (reported / used).repeat_interleave(block, 1).repeat_interleave(block, 2)
    expected = prediction.penalty.exp()[:, None, None].expand_as(ratio)
    torch.testing.assert_close(ratio, expected)
    assert (prediction.maps[0] - gated[0]).abs().max() > 1e-3


def test_one_sided_gates_fine_with_tau_and_coarse_with_mu():
    model = make("exact-one-sided", sharpness=20, pool_scale=1.0).eval()
    trunk, gates = model.trunk, model.attention.gates
    prediction = model(images())
    fine_features = trunk.walk(images(), upto="block3")
    fine_logits = gates["block3"](fine_features)
    coarse_features = trunk.block4(16 * softmax(fine_logits)[:, None] * fine_features)
    maps = consistent(fine_logits, gates["block4"](coarse_features))
    pooled = (4 * maps[1][:, None] * coarse_features).mean((2, 3))
    torch.testing.assert_close(prediction.maps, maps)
    torch.testing.assert_close(prediction.logits, model.head(pooled))


@pytest.mark.parametrize("network", ["resnet10-narrow", "unet-encoder-narrow"])
def test_late_gates_classify_from_sums_weighted_by_the_maps(network):
    model = make("exact", network=network, sharpness=20, pool_scale=1.0).eval()
    trunk, gates = model.trunk, model.attention.gates
    fine_name, coarse_name = trunk.pair
    fine_features = trunk.walk(images(), upto=fine_name)
    coarse_features = trunk.walk(fine_features, after=fine_name, upto=coarse_name)
    maps = consistent(gates[fine_name](fine_features), gates[coarse_name](coarse_features))
    fine = torch.einsum("bhw,bchw->bc", maps[0], fine_features)
    cells = maps[1][0].numel()
    coarse = trunk.walk(cells * maps[1][:, None] * coarse_features, after=coarse_name).mean((2, 3))
    prediction = model(images())
    torch.testing.assert_close(prediction.maps, maps)
    torch.testing.assert_close(prediction.logits, model.head(torch.cat([fine, coarse], dim=1)))


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("variant", ["exact-factored", "chain-factored"])
def test_factored_gates_multiply_to_the_maps(monkeypatch, variant, mean):
    """What gates a cell, times what gates its block, and so on up, is what is reported."""
    model = make(variant, sharpness=20, mean=mean, pool_scale=1.0).eval()
    gated, gate = [], GateOptions.gated

    def recorded(options, features, level_map, *, cells=None):
        gated.append(level_map)
        return gate(options, features, level_map, cells=cells)

    monkeypatch.setattr(GateOptions, "gated", recorded)
    prediction = model(images())
    factor = gated[-1]
    torch.testing.assert_close(factor, prediction.maps[-1])
    for share, level in zip(gated[-2::-1], prediction.maps[-2::-1], strict=True):
        rows, columns = (s // c for s, c in zip(share.shape[1:], factor.shape[1:], strict=True))
        factor = share * factor.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
        torch.testing.assert_close(factor, level)
    assert len(gated) == len(prediction.maps)


def test_factored_gates_are_followed_cell_by_cell():
    model = make("exact-factored", sharpness=20, pool_scale=1.0).eval()
    trunk, gates = model.trunk, model.attention.gates
    prediction = model(images())
    fine_features = trunk.walk(images(), upto="block3")
    fine_logits = gates["block3"](fine_features)
    tau = softmax(fine_logits)
    block = block_sum(tau, (2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    coarse_features = trunk.block4(4 * (tau / block)[:, None] * fine_features)
    maps = consistent(fine_logits, gates["block4"](coarse_features))
    pooled = (4 * maps[1][:, None] * coarse_features).mean((2, 3))
    torch.testing.assert_close(prediction.maps, maps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prediction.logits, model.head(pooled), rtol=1e-4, atol=1e-5)


def test_a_detached_first_look_gives_the_same_prediction_and_no_gradient_through_its_stages():
    whole = make("exact-two-pass", sharpness=20)
    detached = make("exact-two-pass, detached", sharpness=20)
    ours, theirs = detached.train()(images()), whole.train()(images())
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.maps, theirs.maps)
    ours.penalty.sum().backward()
    theirs.penalty.sum().backward()
    assert all(weight.grad is None for weight in detached.trunk.block4.parameters())
    assert all(weight.grad is not None for weight in whole.trunk.block4.parameters())
    assert detached.attention.gates["block4"].potential.weight.grad.abs().sum() > 0
    assert detached.trunk.block3[0].conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_level_weights_are_in_one_ratio_and_have_mean_one(levels, weight):
    weights = GateOptions(weight=weight).level_weights(levels)
    assert sum(weights) == pytest.approx(levels)
    for finer, coarser in itertools.pairwise(weights):
        assert coarser / finer == pytest.approx(weight / (1 - weight))


def test_first_look_keeps_its_own_statistics():
    """Each look's running mean follows the features of that look, not a mixture of the two."""
    model = make("exact-two-pass", sharpness=20).train()
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
    model = make(variant, pool_scale=1.0, rescale=True).eval()
    for gate in model.attention.gates.values():
        nn.init.zeros_(gate.potential.weight)
    baseline = make("baseline").eval()
    baseline.trunk.load_state_dict(model.trunk.state_dict())
    with torch.no_grad():
        baseline.head.weight.copy_(model.head.weight[:, -model.trunk.features :])
        baseline.head.bias.copy_(model.head.bias)
        if variant in ("exact", "chain", "pyramid"):  # their heads also see the finer levels
            model.head.weight[:, : -model.trunk.features] = 0
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


@pytest.mark.parametrize("variant", CASES)
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
    if variant in AGREEING_CASES:
        for finer, coarser in zip(mixed.maps, mixed.maps[1:], strict=False):
            pooled = block_sum(finer, coarser.shape[1:])
            torch.testing.assert_close(pooled, coarser, rtol=0, atol=1e-6)
