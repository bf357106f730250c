"""Models as lists of operations: equal, untouched, refused where they cannot be; CAM on them."""

import pytest
import torch
from torch import nn

from models.errors import ExplainerError
from models.explainers import ClassActivation, DeepLift, LayerwiseRelevance, ProjectedMaps
from models.explainers.scoring import logits_of
from models.explainers.tracing import BATCH_NORMS, channel_affine, trace
from tests.models.explainer_cases import (
    MODELS,
    SIDE,
    TARGET,
    Linear,
    assert_as_found,
    classifier,
    images,
    snapshot,
)

TRACED = [ClassActivation(), DeepLift(), LayerwiseRelevance()]


@pytest.mark.parametrize("name", MODELS)
def test_the_rewritten_model_is_the_model(name):
    model = MODELS[name]()
    program = trace(model, images())
    other = images(seed=11)  # also on pictures that it was not traced with
    with torch.no_grad():
        expected = logits_of(model, other)
        found = program.run(other)[program.logits]
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * scale)
    assert 0 <= program.difference < 1e-4 * scale


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_shared_in_place_or_normalised_any_more(name):
    program = trace(MODELS[name](), images())
    operations = [n.target for n in program.module.graph.nodes if n.op == "call_function"]
    assert not any(operation in BATCH_NORMS for operation in operations)
    for operation in operations:
        schema = getattr(operation, "_schema", None)
        assert schema is None or not schema.is_mutable


@pytest.mark.parametrize("name", ["functional", "dense", "transformer"])
def test_tracing_leaves_the_model_as_found(name):
    model = MODELS[name]().train()
    model.requires_grad_(False)
    before = snapshot(model)
    trace(model, images())
    assert_as_found(model, before)


def test_batch_norms_after_convolutions_are_folded_and_others_stay_affine():
    def affine(name):
        graph = trace(MODELS[name](), images()).module.graph
        return sum(node.target is channel_affine for node in graph.nodes)

    assert affine("baseline") == 0
    assert affine("dense") > 0


def test_a_convolution_that_is_used_twice_keeps_its_normalisation_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(0.4)

        def forward(self, x):
            features = self.conv(x)
            return (self.norm(features) * features).mean((2, 3))

    program = trace(Twice().eval(), images())
    assert program.difference < 1e-5
    assert any(node.target is channel_affine for node in program.module.graph.nodes)


class Deciding(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if float(x.sum()) > 0 else -x.mean((2, 3))


class Random(nn.Module):
    def forward(self, x):
        return (x * torch.rand_like(x)).mean((2, 3))


class Deaf(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 2)


class Sequence(nn.Module):
    """A normalisation without running statistics."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2, track_running_stats=False)

    def forward(self, x):
        return self.norm(x).mean((2, 3))


class Views(nn.Module):
    """Changes a tensor through a view of it."""

    def forward(self, x):
        features = x * 2
        features.view(-1).mul_(3)
        return features.mean((2, 3))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Deciding(), "cannot be written as a list of operations .* explain it by 'integrated-g"),
        (Random(), "gives logits that differ by .* explain it by 'integrated-gradients'"),
        (Views(), r"gives logits that differ by .* changes tensors through views"),
        (Deaf(), "the logits do not depend on the images"),
        (Sequence(), "keeps no running statistics, .* build it with track_running_stats=True"),
    ],
)
@pytest.mark.parametrize("explainer", TRACED)
def test_models_that_cannot_be_rewritten_are_refused_and_left_as_found(explainer, model, message):
    model.train()
    state = torch.get_rng_state()
    before = snapshot(model)
    with pytest.raises(ExplainerError, match=message):
        explainer(model, images(), TARGET // 2)
    torch.set_rng_state(state)  # one of the models draws numbers itself
    assert_as_found(model, before)


@pytest.mark.parametrize(
    ("variant", "side"),
    [
        ("baseline", 2),
        ("fine", 2),
        ("unconstrained", 2),
        ("exact-two-pass", 2),
        ("exact", 4),  # the head sees both levels
        ("chain", 8),  # three
    ],
)
def test_the_mean_of_a_class_activation_map_is_the_logit(variant, side):
    model = classifier(variant, side=64)
    x = images(3, side=64)
    (found,) = ClassActivation(batch_size=2)(model, x, TARGET)
    with torch.no_grad():
        logits = model(x).logits.gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(found.values.mean((1, 2)), logits, rtol=1e-4, atol=1e-6)
    assert found.values.shape == (3, side, side)
    assert found.values.flatten(1).std(dim=1).min() > 1e-4
    assert found.residual.max() < 1e-3
    assert {verdict.word for verdict in found.verdicts} == {"sound"}


def test_class_activation_on_paper():
    """Features W are the head's weight's dot product, cell by cell, with the bias in each."""

    class Plain(nn.Module):
        def __init__(self, pool):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.pool, self.head = nn.Conv2d(2, 5, 1), pool, nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.pool(self.conv(x).relu()).flatten(1) * 0.5)

    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1))):
        model, x = Plain(pool), images()
        (found,) = ClassActivation()(model, x, TARGET)
        features = model.conv(x).relu()
        expected = 0.5 * torch.einsum("bchw,bc->bhw", features, model.head.weight[TARGET])
        expected = expected + model.head.bias[TARGET][:, None, None]
        torch.testing.assert_close(found.values, expected.detach())


class NotPooled(nn.Module):
    """A head on a pooling to more than one cell."""

    def __init__(self, mean):
        super().__init__()
        self.mean, self.head = mean, nn.Linear(2 if mean else 8, 3)

    def forward(self, x):
        pooled = x.amax((2, 3)) if self.mean else nn.functional.adaptive_avg_pool2d(x, 2)
        return self.head(pooled.flatten(1))


class Joined(nn.Module):
    """A head on two poolings, one of a constant or of a grid that does not nest."""

    def __init__(self, constant):
        super().__init__()
        self.constant, self.head = constant, nn.Linear(4, 3)

    def forward(self, x):
        coarse = nn.functional.adaptive_avg_pool2d(x, 3) * 2
        other = torch.ones(len(x), 2) if self.constant else coarse.mean((2, 3))
        pooled = nn.functional.avg_pool2d(x, 4).mean((2, 3))
        return self.head(torch.cat([pooled, other], 1))


class HeadOfPicture(nn.Module):
    def forward(self, x):
        pooled = x.mean((2, 3))
        return pooled @ (pooled.T @ pooled)


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        (MODELS["transformer"](), "the logits come from"),
        (NotPooled(True), "what the head sees comes from"),
        (NotPooled(False), "what the head sees comes from"),
        (HeadOfPicture(), "the head's weights depend on the picture"),
        (Joined(True), "what the head sees is joined to constants"),
        (Joined(False), r"\[3, 3\] cells do not nest in 8 x 8"),
    ],
)
def test_no_class_activation_map_where_the_head_is_not_linear_on_a_mean(model, seen):
    with pytest.raises(ExplainerError, match=rf"{seen}.*; explain the model by 'gradcam'"):
        ClassActivation()(model, images(), TARGET // 2)


def test_projected_maps_agree_and_are_the_nearest():
    model = classifier("unconstrained", side=64)
    x = images(3, side=64)
    fine, coarse = ProjectedMaps()(model, x, TARGET)
    with torch.no_grad():
        tau_fine, tau_coarse = model(x).maps
    mass = tau_fine.unflatten(2, (2, 2)).unflatten(1, (2, 2)).sum((2, 4))
    expected = (mass * tau_coarse).sqrt()
    expected = expected / expected.sum((1, 2), keepdim=True)
    torch.testing.assert_close(coarse.values, expected, rtol=1e-4, atol=1e-7)
    spread = (expected / mass).repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(fine.values, spread * tau_fine, rtol=1e-4, atol=1e-7)
    assert (tau_coarse - coarse.values).abs().max() > 1e-4
    assert fine.target.tolist() == [-1, -1, -1]
    assert {verdict.word for verdict in (*fine.verdicts, *coarse.verdicts)} == {"sound"}
    assert fine.residual.max() < 1e-6


def test_projection_of_an_exact_model_changes_nothing():
    model = classifier("exact", side=64)
    found = ProjectedMaps()(model, images(3, side=64), TARGET)
    with torch.no_grad():
        maps = model(images(3, side=64)).maps
    for attribution, level in zip(found, maps, strict=True):
        torch.testing.assert_close(attribution.values, level, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("variant", "levels"), [("fine", 1), ("coarse", 1)])
def test_one_level_has_nothing_to_agree_with(variant, levels):
    with pytest.raises(ExplainerError, match=f"has {levels} attention maps; .* 'unconstrained'"):
        ProjectedMaps()(classifier(variant), images(), TARGET)


def test_maps_that_do_not_nest_are_refused(monkeypatch):
    model = classifier("unconstrained", side=64)
    model.attention.register_forward_hook(_odd)
    with pytest.raises(ExplainerError, match=r"maps of \[4, 4\] and \[3, 3\] cells do not nest"):
        ProjectedMaps()(model, images(3, side=64), TARGET)


def _odd(_module, _inputs, output):
    fine, _ = output.maps
    return type(output)(pooled=output.pooled, maps=(fine, fine[:, :3, :3]), penalty=output.penalty)


def test_a_linear_model_is_one_operation():
    program = trace(Linear(classes=3, side=SIDE), images())
    assert program.difference == 0.0
