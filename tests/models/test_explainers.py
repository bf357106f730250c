"""GradCAM against closed forms and a slow manual computation; models come back as they were."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models.attention import ATTENTIONS
from models.convex import block_sum
from models.errors import ExplainerError, ShapeError
from models.explainers import EXPLAINERS, AttentionMaps, GradCam
from models.explainers.scoring import check_request
from models.networks import build
from tests.models.explainer_cases import QUICK, assert_as_found, snapshot

SETTINGS = {"in_channels": 1, "classes": 3, "image_size": 64}
TARGET = torch.tensor([0, 2, 1])
OF_OUR_MODELS = {"attention", "cvx", "self-attention", "rollout"}


def test_every_name_is_the_method_of_its_attributions():
    for name, explainer in EXPLAINERS.items():
        assert explainer.name == name
        found = QUICK[name](make_for(name), images(1), TARGET[:1])
        levels = ("fine", "coarse", *(f"block{i}" for i in range(1, 5)))
        for attribution in found:
            assert attribution.method in (name, *(f"{name}-{level}" for level in levels))
            assert not attribution.values.requires_grad
            assert len(attribution.verdicts) == (name != "gradcam")


def make(variant, seed=0, network="resnet10-narrow"):
    torch.manual_seed(seed)
    model = build(network, variant=variant, **SETTINGS)
    for gate in model.attention.gates.values() if variant != "baseline" else ():
        nn.init.normal_(gate.potential.weight, std=10)
    return model.eval()


def make_for(method):
    """A model that the method can explain."""
    if method in ("self-attention", "rollout"):
        return make("baseline", network="vit-narrow")
    return make("exact")


def images(count=3):
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(5))


def unusual(model):
    """A model in the middle of fine-tuning: mixed modes, frozen weights, pending gradients."""
    model.train()
    model.trunk.block1.eval()
    for weight in next(model.trunk.children()).parameters():
        weight.requires_grad_(False)
    model(images()).logits.sum().backward()
    model.trunk.block2.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("method", QUICK)
def test_all_is_as_found_after_it_and_when_it_raises_at_its_last_look(method):
    model, pictures = unusual(make_for(method)), images(2)
    looks = []

    def fail(*_):
        looks.append(None)
        if len(looks) == last:
            raise RuntimeError("in the middle")

    last = 0
    handle = model.head.register_forward_hook(fail)
    before = snapshot(model)
    QUICK[method](model, pictures, TARGET[:2])
    assert_as_found(model, before)
    last = 2 * len(looks)
    with pytest.raises((RuntimeError, ExplainerError), match="in the middle"):
        QUICK[method](model, pictures, TARGET[:2])
    assert_as_found(model, before)
    handle.remove()
    assert torch.equal(pictures, images(2))


def test_all_is_as_found_when_a_layer_has_no_map():
    model = unusual(make("exact"))
    before = snapshot(model)
    with pytest.raises(ExplainerError, match="layer 'head' gives 2 axes"):
        GradCam(layer="head")(model, images(2), TARGET[:2])
    assert_as_found(model, before)


@pytest.mark.parametrize("method", QUICK)
def test_memory_is_bounded_by_the_batch_size(method):
    model, seen = make_for(method), []
    model.head.register_forward_hook(lambda _layer, inputs, _output: seen.append(len(inputs[0])))
    explainer = replace(QUICK[method], batch_size=2)
    together = explainer(model, images(5), torch.arange(5) % 3)
    assert max(seen) == 2
    assert {len(found.values) for found in together} == {5}
    for found in together:
        assert found.residual is None or len(found.residual) == 5
        assert len(found.verdicts) in (0, 5)


@pytest.mark.parametrize("variant", [name for name in ATTENTIONS if name != "baseline"])
def test_attention_maps_are_those_of_the_prediction(variant):
    model = make(variant)
    attributions = AttentionMaps()(model, images(), TARGET)
    maps = model(images()).maps
    assert [a.method for a in attributions] == [f"attention-{name}" for name in model.map_names]
    for attribution, level in zip(attributions, maps, strict=True):
        torch.testing.assert_close(attribution.values, level, rtol=0, atol=0)
        assert not attribution.values.requires_grad
        assert attribution.target.tolist() == [-1, -1, -1]
        assert not attribution.signed
        assert attribution.law == "mass"
        assert {verdict.word for verdict in attribution.verdicts} == {"sound"}


def test_gradcam_of_the_last_stage_of_a_baseline_is_the_class_activation_map():
    """Pooling and a linear head: the gradient is the head's weight over the number of cells."""
    model = make("baseline")
    (cam,) = GradCam()(model, images(), TARGET)
    features = model.trunk(images())
    cells = features.shape[2] * features.shape[3]
    expected = torch.einsum("bchw,bc->bhw", features, model.head.weight[TARGET]) / cells
    torch.testing.assert_close(cam.values, expected.relu().detach())
    assert (cam.method, cam.signed, cam.target.tolist()) == ("gradcam", False, TARGET.tolist())
    assert not cam.values.requires_grad
    # before rectification its sum over cells is the logit, less the head's bias
    logits = model(images()).logits.gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(expected.sum((1, 2)) + model.head.bias[TARGET], logits)


def manual_gradcam(model, image, target, stage):
    """One sample: the gradient of the logit by finite differences of every feature."""
    features = model.trunk.walk(image, upto=stage)
    count, step = features.numel(), 1e-5
    bumps = step * torch.eye(count, dtype=features.dtype).view(count, *features.shape[1:])
    changed = torch.cat([features + bumps, features - bumps])
    replaced = model.trunk.get_submodule(stage).register_forward_hook(lambda *_: changed)
    above, below = model(image.expand(2 * count, -1, -1, -1)).logits[:, target].chunk(2)
    replaced.remove()
    gradient = ((above - below) / (2 * step)).view_as(features)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * features).sum(1).relu()


@pytest.mark.parametrize("variant", ["unconstrained", "exact", "exact-two-pass"])
def test_gradcam_equals_finite_differences(variant):
    """In the middle of the trunk, through gates and through both looks."""
    torch.manual_seed(1)
    model = build("resnet10-narrow", variant=variant, in_channels=1, classes=2, image_size=32)
    for gate in model.attention.gates.values() if model.map_names else ():
        nn.init.normal_(gate.potential.weight, std=10)
    model = model.eval().double()
    image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    greatest = 0.0
    for target in (0, 1):
        with torch.no_grad():
            expected = manual_gradcam(model, image, target, "block3")
        (cam,) = GradCam(layer="block3")(model, image, torch.tensor([target]))
        torch.testing.assert_close(cam.values, expected.float(), rtol=1e-4, atol=1e-8)
        greatest = max(greatest, cam.values.max().item())
    assert greatest > 1e-5


def test_gradcam_explains_the_look_that_is_classified():
    """In ``exact-two-pass`` the last stage is walked twice; its gated features are explained."""
    model = make("exact-two-pass")
    (cam,) = GradCam()(model, images(), TARGET)
    fine, coarse = model(images()).maps
    features = model.trunk.walk(images(), upto="block3")
    gated = model.trunk.block4(fine[0].numel() * fine[:, None] * features)
    # logit = scale * sum over cells of mu_i <w, A_i>: the mean gradient is w * scale / cells
    weights = model.attention.options.pool_scale * model.head.weight[TARGET] / coarse[0].numel()
    expected = torch.einsum("bchw,bc->bhw", gated, weights).relu()
    torch.testing.assert_close(cam.values, expected.detach(), rtol=1e-4, atol=1e-8)


def test_the_deep_network_of_the_paper_is_explained():
    """ResNet-50, both levels gated: maps that agree, and GradCAM of the coarser stage."""
    torch.manual_seed(0)
    model = build("resnet50", variant="exact-two-pass", **SETTINGS)
    for gate in model.attention.gates.values():
        nn.init.normal_(gate.potential.weight, std=10)
    model.eval()
    fine, coarse = (found.values for found in AttentionMaps()(model, images(), TARGET))
    assert (fine.shape, coarse.shape) == ((3, 4, 4), (3, 2, 2))
    torch.testing.assert_close(block_sum(fine, (2, 2)), coarse, rtol=0, atol=1e-6)
    assert fine.std() > 1e-3
    (cam,) = GradCam()(model, images(), TARGET)
    features = model.trunk.walk(images(), upto="block3")
    gated = model.trunk.block4(fine[0].numel() * fine[:, None] * features)
    weights = model.attention.options.pool_scale * model.head.weight[TARGET] / coarse[0].numel()
    expected = torch.einsum("bchw,bc->bhw", gated, weights).relu()
    torch.testing.assert_close(cam.values, expected.detach(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("layer", ["stem", "block1", "trunk.block2", "trunk.block3.0.conv2"])
def test_gradcam_of_any_layer(layer):
    (cam,) = GradCam(layer=layer)(make("dual"), images(), TARGET)
    size = {"stem": 16, "block1": 16, "trunk.block2": 8, "trunk.block3.0.conv2": 4}[layer]
    assert cam.values.shape == (3, size, size)
    assert (cam.values >= 0).all()
    assert cam.values.max() > 0


@pytest.mark.parametrize("method", QUICK)
def test_a_sample_does_not_see_its_neighbours(method):
    model, x = make_for(method).double(), images().double()
    together = QUICK[method](model, x, TARGET)
    for i in (0, 2):
        alone = QUICK[method](model, x[i : i + 1], TARGET[i : i + 1])
        for many, one in zip(together, alone, strict=True):
            rounding = 1e-5 * one.values.abs().max().item()
            torch.testing.assert_close(many.values[i : i + 1], one.values, rtol=0, atol=rounding)
            assert [v.word for v in many.verdicts[i : i + 1]] == [v.word for v in one.verdicts]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", QUICK)
def test_works_inside_modes_without_gradients(method, mode):
    model = make_for(method).requires_grad_(False)
    expected = QUICK[method](model, images(1), TARGET[:1])
    with mode():
        found = QUICK[method](model, images(1), TARGET[:1])
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(before.values, after.values, rtol=0, atol=0)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ExplainerError, match=r"no attention maps .*; explain it by 'gradcam'"):
        AttentionMaps()(make("baseline"), images(), TARGET)


@pytest.mark.parametrize("method", QUICK)
def test_requests_that_make_no_sense_are_refused(method):
    model, explain = make_for(method), QUICK[method]
    broken = images()
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(ExplainerError, match="an image holds NaN or infinity"):
        explain(model, broken, TARGET)
    for target in (-1, 3):
        with pytest.raises(ExplainerError, match=f"target {target} is not one of the model's 3"):
            explain(model, images(), torch.tensor([0, target, 1]))
    with pytest.raises(ShapeError, match=r"images are 2 x 64 x 64 .*; resize the images or build"):
        explain(model, torch.zeros(3, 2, 64, 64), TARGET)


@pytest.mark.parametrize("method", [name for name in QUICK if name not in OF_OUR_MODELS])
def test_pictures_that_a_foreign_model_cannot_take_are_refused(method):
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    said = (
        r"fails on images of 1 x 64 x 64 \(channels, rows, columns\): .*; give images of the size"
    )
    with pytest.raises(ExplainerError, match=said):
        QUICK[method](model, images(), TARGET)


@pytest.mark.parametrize("method", sorted(OF_OUR_MODELS))
def test_models_without_the_maps_of_the_method_are_refused(method):
    with pytest.raises(ExplainerError, match=r"the model (is no|has no) .*; explain it by"):
        QUICK[method](make("baseline"), images(), TARGET)


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.zeros(1, 64, 64), r"images have the sizes \[1, 64, 64\]; .* picture\[None\]"),
        (torch.zeros(0, 1, 64, 64), r"images have the sizes \[0, 1, 64, 64\]"),
        (torch.zeros(1, 1, 64, 64, dtype=torch.uint8), r"images are torch\.uint8, .* normalise"),
    ],
)
def test_pictures_that_have_no_map_are_refused(pictures, message):
    with pytest.raises(ExplainerError, match=message):
        check_request(make("exact"), pictures, TARGET[: len(pictures)])


def test_targets_of_another_number_are_refused():
    with pytest.raises(ExplainerError, match="2 targets for 3 images; give one class number per"):
        check_request(make("exact"), images(), TARGET[:2])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("block5", "no layer 'block5'; did you mean 'block4'"),
        ("head", "layer 'head' gives 2 axes; GradCAM needs features with the axes batch, channel"),
        ("attention", "layer 'attention' gives no tensor; GradCAM needs"),
        ("attention.gates", "layer 'attention.gates' gives no tensor; GradCAM needs"),
    ],
)
def test_layers_without_a_map_are_refused(layer, message):
    with pytest.raises(ExplainerError, match=message):
        GradCam(layer=layer)(make("exact"), images(), TARGET)


@pytest.mark.parametrize("frozen", [True, False])
def test_layers_without_effect_are_refused(frozen):
    model = make("baseline").requires_grad_(not frozen)
    model.trunk.block4.register_forward_hook(lambda _layer, _inputs, output: output.detach())
    with pytest.raises(ExplainerError, match=r"layer 'trunk\.block3' has no part in"):
        GradCam(layer="block3")(model, images(), TARGET)
