import copy
import pickle

import pytest
import torch
from safetensors.torch import load, save

from models.attention import ATTENTIONS
from models.errors import ModelError, NetworkError, ShapeError
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


@pytest.mark.parametrize("network", NETWORKS)
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


def test_trunk_walks_from_stage_to_stage():
    trunk = NETWORKS["resnet10-narrow"](1).eval()
    assert trunk.between(None, "block1") == ("stem", "block1")
    assert trunk.between("block2", None) == ("block3", "block4")
    assert trunk.between("block2", "block2") == ()
    images = torch.randn(1, 1, 64, 64)
    middle = trunk.walk(images, upto="block2")
    torch.testing.assert_close(trunk.walk(middle, after="block2"), trunk(images))


@pytest.mark.parametrize("variant", ATTENTIONS)
def test_any_channels_and_oblong_images(variant):
    model = build(
        "resnet10-narrow", variant=variant, in_channels=4, classes=2, image_size=(64, 128)
    )
    prediction = model(torch.randn(2, 4, 64, 128))
    assert prediction.logits.shape == (2, 2)
    expected = {"fine": (4, 8), "coarse": (2, 4), "block2": (8, 16), "block3": (4, 8)}
    for name, level in zip(model.map_names, prediction.maps, strict=True):
        assert level.shape[1:] == expected.get(name, (2, 4))


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
        ({"embedding": (8, 0)}, "BAD_COUNT", r"embedding\[1\] is 0; it must be 1 or more"),
        ({"in_channels": 0}, "BAD_COUNT", "in_channels is 0; it must be 1 or more"),
        ({"classes": 1}, "BAD_COUNT", "classes is 1; it must be 2 or more"),
        ({"image_size": 0}, "BAD_IMAGE_SIZE", r"image size is \(0, 0\); give positive rows"),
        (
            {"image_size": 240},
            "MAPS_DO_NOT_NEST",
            "images of 240 x 240 pixels give 15 x 15 cells at block3 and 8 x 8 at block4, which "
            "do not nest; use sides that are multiples of 32, the nearest being 256 x 256",
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
