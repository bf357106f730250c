import copy
import pickle
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load, save

from models.attention import ATTENTIONS
from models.convex import block_sum
from models.errors import ModelError, NetworkError, ShapeError
from models.losses import objective
from models.networks import NETWORKS, build
from models.trunk import Trunk

SHAPE = {"in_channels": 1, "classes": 3, "image_size": 64}


def parameters(model):
    return sum(weight.numel() for weight in model.parameters())


def test_resnet50_has_the_parameters_of_the_paper():
    """Table 3: 23.5, 26.6, 27.7 and 30.8 million (cut, not rounded), with cascaded gates."""
    shape = {"in_channels": 3, "classes": 3, "image_size": 512, "embedding": (1024, 2048)}
    counts = {
        name: parameters(build("resnet50", variant=name, **shape))
        for name in ("baseline", "fine", "coarse", "unconstrained", "dual")
    }
    assert counts["baseline"] == 23_514_179
    assert {name: count // 100_000 for name, count in counts.items()} == {
        "baseline": 235,
        "fine": 266,
        "coarse": 277,
        "unconstrained": 308,
        "dual": 308,
    }
    assert counts["dual"] - counts["unconstrained"] == 16 * 16


def test_resnet_has_the_geometry_of_the_paper():
    """Maps of 32 x 32 and 16 x 16 cells at 512 pixels."""
    model = build("resnet18", variant="exact", in_channels=1, classes=3, image_size=512).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 1, 512, 512)).maps
    assert [tuple(level.shape) for level in maps] == [(1, 32, 32), (1, 16, 16)]


def test_unet_encoder_has_the_parameters_of_the_paper():
    """With two classes and four channels; released gates: 512 wide, biased, one witness."""
    shape = {"in_channels": 4, "classes": 2, "image_size": 256}
    published = {"embedding": (512,), "gate_bias": True}
    counts = {
        name: parameters(build("unet-encoder", variant=name, **shape, **published))
        for name in ("baseline", "fine", "coarse", "unconstrained", "dual")
    }
    assert counts["baseline"] == 4_715_522
    assert counts["fine"] - counts["baseline"] == 66_561
    assert counts["coarse"] - counts["baseline"] == 132_097
    assert counts["dual"] - counts["unconstrained"] == 1_024
    assert counts["dual"] == 4_915_204
    assert parameters(build("unet-encoder", variant="dual-published", **shape)) == 4_915_204


def test_unet_encoder_has_the_geometry_of_the_paper():
    """Gates before the last two pools: 64 x 64 and 32 x 32 cells at 256 pixels."""
    model = build("unet-encoder", variant="unconstrained", **{**SHAPE, "image_size": 256}).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 1, 256, 256)).maps
    assert [tuple(level.shape) for level in maps] == [(1, 64, 64), (1, 32, 32)]
    trunk = model.trunk
    assert trunk.names == ("encoder1", "encoder2", "encoder3", "encoder4", "bottleneck")
    assert list(trunk.channels.values()) == [32, 64, 128, 256, 512]


def test_unet_stage_is_two_convolutions_with_normalisation_and_rectifier():
    stage = NETWORKS["unet-encoder-narrow"](1).get_submodule("encoder2").eval()
    features = torch.randn(2, 8, 8, 8)
    expected = torch.nn.functional.max_pool2d(features, 2)
    convolutions = [part for part in stage.modules() if isinstance(part, torch.nn.Conv2d)]
    assert len(convolutions) == 2
    for convolution in convolutions:
        assert convolution.bias is None
        expected = torch.nn.functional.conv2d(expected, convolution.weight, padding=1)
        expected = (expected / (1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(stage(features), expected)


def test_densenet121_has_the_known_parameters_and_its_cuts_their_geometry():
    """7,978,856 with 1,000 classes; 14 x 14 cells without the last block, 28 x 28 without two."""
    shape = {"in_channels": 3, "classes": 1000, "image_size": 224}
    assert parameters(build("densenet121", variant="baseline", **shape)) == 7_978_856
    sizes = {
        "densenet121": (1024, 7),
        "densenet121-stride16": (1024, 14),
        "densenet121-stride8": (512, 28),
        "densenet121-upsampled": (1024, 28),
    }
    for network, (channels, side) in sizes.items():
        trunk = NETWORKS[network](1).eval()
        with torch.no_grad():
            features = trunk(torch.randn(1, 1, 224, 224))
        assert features.shape == (1, channels, side, side)
        assert (features >= 0).all()


def test_cut_densenets_are_the_whole_one_up_to_the_cut():
    torch.manual_seed(0)
    whole = NETWORKS["densenet121"](1).eval()
    cut = NETWORKS["densenet121-stride8"](1).eval()
    cut.load_state_dict(whole.state_dict(), strict=False)
    images = torch.randn(1, 1, 64, 64)
    expected = cut.block2.norm5(whole.walk(images, upto="block2")).relu()
    torch.testing.assert_close(cut(images), expected)


CONVOLUTIONAL = [name for name in NETWORKS if not name.startswith("vit")]
SMALL = ["resnet10-narrow", "unet-encoder-narrow", "densenet-narrow"]


@pytest.mark.parametrize("network", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [(64, 96), (75, 41)])
def test_trunk_tells_its_shapes(network, size):
    trunk = NETWORKS[network](2).eval()
    features = torch.zeros(1, 2, *size)
    with torch.no_grad():
        for name in trunk.names:
            features = trunk.get_submodule(name)(features)
            assert features.shape == (1, trunk.channels[name], *trunk.grid(name, size))
        torch.testing.assert_close(trunk(torch.zeros(1, 2, *size)), features)
    assert trunk.features == features.shape[1]
    assert set(trunk.gated) <= set(trunk.names)
    assert set(trunk.pair) <= set(trunk.pyramid)
    strides = [trunk.strides[name] for name in trunk.pyramid]
    assert all(coarse % fine == 0 for fine, coarse in pairwise(strides))


def test_trunk_walks_from_stage_to_stage():
    trunk = NETWORKS["resnet10-narrow"](1).eval()
    assert trunk.between(None, "block1") == ("stem", "block1")
    assert trunk.between("block2", None) == ("block3", "block4")
    assert trunk.between("block2", "block2") == ()
    images = torch.randn(1, 1, 64, 64)
    middle = trunk.walk(images, upto="block2")
    torch.testing.assert_close(trunk.walk(middle, after="block2"), trunk(images))


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("variant", ATTENTIONS)
def test_any_channels_and_oblong_images(variant, network):
    model = build(network, variant=variant, in_channels=4, classes=2, image_size=(64, 128))
    prediction = model(torch.randn(2, 4, 64, 128))
    assert prediction.logits.shape == (2, 2)
    stages = {"fine": model.trunk.pair[0], "coarse": model.trunk.pair[1]}
    for name, level in zip(model.map_names, prediction.maps, strict=True):
        stride = model.trunk.strides[stages.get(name, name)]
        assert level.shape[1:] == (64 // stride, 128 // stride)
        torch.testing.assert_close(level.sum((1, 2)), torch.ones(2), rtol=0, atol=1e-5)
    if variant.startswith(("exact", "chain", "pyramid", "cvx")):
        for finer, coarser in pairwise(prediction.maps):
            pooled = block_sum(finer, coarser.shape[1:])
            torch.testing.assert_close(pooled, coarser, rtol=0, atol=1e-6)
    objective(prediction, torch.tensor([0, 1]), alpha=1.0).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_seed_decides_the_weights_and_safetensors_keep_them(variant):
    torch.manual_seed(3)
    model = build("resnet10-narrow", variant=variant, **SHAPE).eval()
    torch.manual_seed(3)
    twin = build("resnet10-narrow", variant=variant, **SHAPE).eval()
    other = build("resnet10-narrow", variant=variant, **SHAPE).eval()
    images = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(model(images).logits, twin(images).logits, rtol=0, atol=0)
    assert not torch.allclose(model(images).logits, other(images).logits)
    other.load_state_dict(load(save(model.state_dict())))
    torch.testing.assert_close(model(images).logits, other(images).logits, rtol=0, atol=0)
    clone = copy.deepcopy(model)
    torch.testing.assert_close(model(images).logits, clone(images).logits, rtol=0, atol=0)


def test_a_baseline_is_the_trunk_and_head_of_every_variant():
    baseline = build("resnet10-narrow", variant="baseline", **SHAPE).state_dict()
    dual = build("resnet10-narrow", variant="dual", **SHAPE).state_dict()
    assert set(baseline) <= set(dual)
    assert all(name.startswith("attention.") for name in set(dual) - set(baseline))


def test_shortcuts_carry_gradient():
    """The first block's input gets gradient through the shortcut alone."""
    block = NETWORKS["resnet18-narrow"](1).get_submodule("block2")[0]
    torch.nn.init.zeros_(block.bn2.weight)
    features = torch.randn(2, 16, 8, 8, requires_grad=True)
    block(features).square().sum().backward()
    assert features.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            {"network": "resnet19"},
            "UNKNOWN_NETWORK",
            "no network 'resnet19'; did you mean 'resnet1",
        ),
        ({"network": "zzz"}, "UNKNOWN_NETWORK", "no network 'zzz'; known: resnet18, resnet50"),
        ({"variant": "exakt"}, "UNKNOWN_VARIANT", "no variant 'exakt'; did you mean 'exact'"),
        ({"wieght": 1}, "UNKNOWN_OPTION", "no option 'wieght'; did you mean 'weight'"),
        ({"weight": 1.5}, "BAD_WEIGHT", "weight is 1.5; the coarse level's share lies between"),
        ({"pool_scale": 0.0}, "BAD_POOL_SCALE", "pool_scale is 0.0; it lies above 0 and up to 1"),
        ({"mean": "harmonic"}, "BAD_MEAN", "no mean 'harmonic'; known: geometric, arithmetic"),
        ({"witness": "images"}, "BAD_WITNESS", "no witness 'images'; did you mean 'image'"),
        ({"cascade": 0}, "BAD_COUNT", "cascade is 0; it must be 1 or more"),
        (
            {"variant": "chain", "weight": 1.0},
            "BAD_WEIGHT",
            "weight is 1.0; in a chain of 3 levels it lies between 0 and 1 and is neither",
        ),
        (
            {"network": "vit-narrow"},
            "NOTHING_TO_GATE",
            "'vit-narrow' has no stages that variant 'dual' could gate: it attends by itself; use",
        ),
        (
            {"network": "vit-narrow", "variant": "baseline", "image_size": (64, 75)},
            "NO_WHOLE_PATCHES",
            "images of 64 x 75 pixels do not divide into patches of 16; use sides that are "
            "multiples of 16, the nearest being 64 x 64 or 64 x 80",
        ),
        (
            {"network": "unet-encoder-narrow", "image_size": 60},
            "MAPS_DO_NOT_NEST",
            "images of 60 x 60 pixels give 15 x 15 cells at encoder3 and 8 x 8 at encoder4, which "
            "do not nest; use sides that are multiples of 8, the nearest being 56 x 56 or 64 x 64",
        ),
        ({"embedding": (8, 0)}, "BAD_COUNT", r"embedding\[1\] is 0; it must be 1 or more"),
        ({"in_channels": 0}, "BAD_COUNT", "in_channels is 0; it must be 1 or more"),
        ({"classes": 1}, "BAD_COUNT", "classes is 1; it must be 2 or more"),
        ({"image_size": 0}, "BAD_IMAGE_SIZE", r"image size is \(0, 0\); give positive rows"),
        (
            {"image_size": 240},
            "MAPS_DO_NOT_NEST",
            "images of 240 x 240 pixels give 15 x 15 cells at block3 and 8 x 8 at block4, which "
            "do not nest; use sides that are multiples of 32, the nearest being 224 x 224 or "
            "256 x 256",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(change, code, message):
    request = {"network": "resnet10-narrow", "variant": "dual", **SHAPE, **change}
    with pytest.raises(NetworkError, match=message) as caught:
        build(request.pop("network"), **request)
    assert caught.value.code == code


@pytest.mark.parametrize("variant", ["baseline", "fine", "coarse"])
def test_sizes_that_need_not_nest_are_built(variant):
    model = build("resnet10-narrow", variant=variant, in_channels=1, classes=2, image_size=75)
    assert model(torch.randn(2, 1, 75, 75)).logits.shape == (2, 2)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 32)])
def test_images_of_another_shape_are_refused(shape):
    model = build("resnet10-narrow", variant="exact", **SHAPE)
    seen = " x ".join(map(str, shape))
    with pytest.raises(ShapeError, match=f"images are {seen} .* built for 1 x 64 x 64; resize"):
        model(torch.zeros(2, *shape))


def test_errors_survive_worker_processes():
    error = pickle.loads(pickle.dumps(NetworkError("BAD_COUNT", "classes is 1")))
    assert isinstance(error, ModelError)
    assert (type(error), error.code, str(error)) == (NetworkError, "BAD_COUNT", "classes is 1")


def test_trunk_is_a_plain_module():
    trunk = Trunk(
        {"only": torch.nn.Identity()}, channels={"only": 1}, strides={"only": 1}, gated=("only",)
    )
    images = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(trunk(images), images)
