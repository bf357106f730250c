"""GradCAM against closed forms and a slow manual computation; models come back as they were."""

import pytest
import torch
from torch import nn

from models.attention import ATTENTIONS
from models.convex import block_sum
from models.errors import ExplainerError, ShapeError
from models.explainers import EXPLAINERS, AttentionMaps, GradCam
from models.explainers.base import check_request
from models.networks import build
from tests.models.explainer_cases import QUICK, assert_as_found, snapshot

SETTINGS = {"in_channels": 1, "classes": 3, "image_size": 64}
TARGET = torch.tensor([0, 2, 1])


def test_every_name_is_the_method_of_its_attributions():
    model = make("exact")
    for name, explainer in EXPLAINERS.items():
        found = QUICK[name](model, images(1), TARGET[:1])
        assert type(explainer) is type(QUICK[name])
        for attribution in found:
            assert attribution.method in (name, f"{name}-fine", f"{name}-coarse")
            assert not attribution.values.requires_grad


def make(variant, seed=0):
    torch.manual_seed(seed)
    model = build("resnet10-narrow", variant=variant, **SETTINGS)
    for gate in model.attention.gates.values() if model.map_names else ():
        nn.init.normal_(gate.potential.weight, std=10)
    return model.eval()


def images(count=3):
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(5))


def unusual(model):
    """A model in the middle of fine-tuning: mixed modes, frozen weights, pending gradients."""
    model.train()
    model.trunk.block1.eval()
    for weight in model.trunk.stem.parameters():
        weight.requires_grad_(False)
    model(images()).logits.sum().backward()
    model.trunk.block2.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("variant", ["dual", "exact"])
def test_model_comes_back_as_found(variant, method):
    model = unusual(make(variant))
    before = snapshot(model)
    QUICK[method](model, images(), TARGET)
    assert_as_found(model, before)


@pytest.mark.parametrize("explainer", [*QUICK.values(), GradCam(layer="head")])
@pytest.mark.parametrize("variant", ["baseline", "exact"])
def test_model_comes_back_as_found_when_it_raises(variant, explainer):
    model = unusual(make(variant))
    before = snapshot(model)

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = model.head.register_forward_hook(fail)
    with pytest.raises((RuntimeError, ExplainerError)):
        explainer(model, images(), TARGET)
    handle.remove()
    assert_as_found(model, before)


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
        assert attribution.residual is None


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
    block3 = model.trunk.walk(image, upto=stage)

    def logit(features):
        replaced = model.trunk.get_submodule(stage).register_forward_hook(lambda *_: features)
        value = model(image).logits[0, target].item()
        replaced.remove()
        return value

    gradient, step = torch.zeros_like(block3), 1e-5
    for index in range(block3.numel()):
        bump = torch.zeros_like(block3)
        bump.view(-1)[index] = step
        change = logit(block3 + bump) - logit(block3 - bump)
        gradient.view(-1)[index] = change / (2 * step)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * block3).sum(1).relu()


@pytest.mark.parametrize("variant", ["baseline", "unconstrained", "exact"])
def test_gradcam_equals_finite_differences(variant):
    """In the middle of the trunk, through gates and through both looks of ``exact``."""
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
    """In ``exact`` the last stage is walked twice; its gated features are the ones explained."""
    model = make("exact")
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
    model = build("resnet50", variant="exact", **SETTINGS)
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
    model = make("exact")
    together = QUICK[method](model, images(), TARGET)
    for i in range(3):
        alone = QUICK[method](model, images()[i : i + 1], TARGET[i : i + 1])
        for many, one in zip(together, alone, strict=True):
            rounding = 1e-3 * one.values.abs().max().item()
            torch.testing.assert_close(many.values[i : i + 1], one.values, rtol=0, atol=rounding)
            assert [v.word for v in many.verdicts[i : i + 1]] == [v.word for v in one.verdicts]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", QUICK)
def test_works_inside_modes_without_gradients(method, mode):
    model = make("exact").requires_grad_(False)
    expected = QUICK[method](model, images(), TARGET)
    with mode():
        found = QUICK[method](model, images(), TARGET)
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(before.values, after.values, rtol=0, atol=0)


def test_a_model_without_attention_is_refused():
    with pytest.raises(ExplainerError, match=r"no attention maps .*; explain it by 'gradcam'"):
        AttentionMaps()(make("baseline"), images(), TARGET)


@pytest.mark.parametrize("method", QUICK)
def test_requests_that_make_no_sense_are_refused(method):
    model, explain = make("exact"), QUICK[method]
    broken = images()
    broken[1, 0, 3, 3] = torch.nan
    with pytest.raises(ExplainerError, match="an image holds NaN or infinity"):
        explain(model, broken, TARGET)
    for target in (-1, 3):
        with pytest.raises(ExplainerError, match=f"target {target} is not one of the model's 3"):
            explain(model, images(), torch.tensor([0, target, 1]))
    with pytest.raises(ShapeError, match="images are 2 x 64 x 64"):
        explain(model, torch.zeros(3, 2, 64, 64), TARGET)


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
