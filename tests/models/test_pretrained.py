"""Files named as torchvision and timm name them, made here; networks against their formulas."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import (
    avg_pool2d,
    batch_norm,
    conv2d,
    gelu,
    layer_norm,
    linear,
    max_pool2d,
    scaled_dot_product_attention,
)

from models.errors import NetworkError
from models.networks import build
from models.pretrained import fit_channels, fit_pretrained, load_pretrained, read_weights

SIZE = 64


class Maker:
    """State dicts by name and shape, of small random numbers."""

    def __init__(self):
        self.weights, self.generator = {}, torch.Generator().manual_seed(5)

    def convolution(self, name, after, before, side):
        weight = torch.randn(after, before, side, side, generator=self.generator)
        self.weights[f"{name}.weight"] = weight * (2 / (before * side * side)) ** 0.5

    def norm(self, name, channels, *, counter=True):
        uniform = torch.rand(4, channels, generator=self.generator)
        self.weights[f"{name}.weight"] = 0.5 + uniform[0]
        self.weights[f"{name}.bias"] = uniform[1] - 0.5
        self.weights[f"{name}.running_mean"] = uniform[2] - 0.5
        self.weights[f"{name}.running_var"] = 0.5 + uniform[3]
        if counter:
            self.weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def dense(self, name, after, before):
        weight = torch.randn(after, before, generator=self.generator)
        self.weights[f"{name}.weight"] = weight * before**-0.5
        self.weights[f"{name}.bias"] = 0.1 * torch.randn(after, generator=self.generator)


def resnet_file(layers, *, bottleneck, classes=1000):
    make, before = Maker(), 64
    make.convolution("conv1", 64, 3, 7)
    make.norm("bn1", 64)
    for stage, count in enumerate(layers, start=1):
        width = 32 * 2**stage
        after = 4 * width if bottleneck else width
        for i in range(count):
            name = f"layer{stage}.{i}"
            sides = [(width, before, 1), (width, width, 3), (after, width, 1)]
            if not bottleneck:
                sides = [(width, before, 3), (width, width, 3)]
            for place, shape in enumerate(sides, start=1):
                make.convolution(f"{name}.conv{place}", *shape)
                make.norm(f"{name}.bn{place}", shape[0])
            if i == 0 and (stage > 1 or before != after):
                make.convolution(f"{name}.downsample.0", after, before, 1)
                make.norm(f"{name}.downsample.1", after)
            before = after
    make.dense("fc", classes, before)
    return make.weights


def normalised(weights, name, features):
    state = [
        weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    ]
    return batch_norm(features, *state)


def resnet_formula(weights, images):
    """Torchvision's forward pass; the stride of a bottleneck is in its 3 x 3 convolution."""
    features = conv2d(images, weights["conv1.weight"], stride=2, padding=3)
    features = max_pool2d(normalised(weights, "bn1", features).relu(), 3, 2, 1)
    blocks = sorted({tuple(map(int, re.findall(r"\d+", k)[:2])) for k in weights if "layer" in k})
    for stage, i in blocks:
        name = f"layer{stage}.{i}"
        stride, inner = 2 if stage > 1 and i == 0 else 1, features
        last = 3 if f"{name}.conv3.weight" in weights else 2
        for place in range(1, last + 1):
            weight = weights[f"{name}.conv{place}.weight"]
            step = stride if place == last - 1 else 1
            inner = conv2d(inner, weight, stride=step, padding=weight.shape[2] // 2)
            inner = normalised(weights, f"{name}.bn{place}", inner)
            inner = inner if place == last else inner.relu()
        if f"{name}.downsample.0.weight" in weights:
            features = conv2d(features, weights[f"{name}.downsample.0.weight"], stride=stride)
            features = normalised(weights, f"{name}.downsample.1", features)
        features = (inner + features).relu()
    return linear(features.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


def densenet_file(layers=(6, 12, 24, 16), *, classes=1000, old=False):
    """``old`` names have a dot between the kind and the number of a layer's parts."""
    make, width, dot = Maker(), 64, "." if old else ""
    make.convolution("features.conv0", 64, 3, 7)
    make.norm("features.norm0", 64)
    for block, count in enumerate(layers, start=1):
        for i in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{i}"
            make.norm(f"{name}.norm{dot}1", width, counter=not old)
            make.convolution(f"{name}.conv{dot}1", 128, width, 1)
            make.norm(f"{name}.norm{dot}2", 128, counter=not old)
            make.convolution(f"{name}.conv{dot}2", 32, 128, 3)
            width += 32
        if block < len(layers):
            make.norm(f"features.transition{block}.norm", width)
            make.convolution(f"features.transition{block}.conv", width // 2, width, 1)
            width //= 2
    make.norm("features.norm5", width)
    make.dense("classifier", classes, width)
    return make.weights


def densenet_formula(weights, images, layers=(6, 12, 24, 16)):
    features = conv2d(images, weights["features.conv0.weight"], stride=2, padding=3)
    features = max_pool2d(normalised(weights, "features.norm0", features).relu(), 3, 2, 1)
    for block, count in enumerate(layers, start=1):
        for i in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{i}"
            inner = normalised(weights, f"{name}.norm1", features).relu()
            inner = conv2d(inner, weights[f"{name}.conv1.weight"])
            inner = normalised(weights, f"{name}.norm2", inner).relu()
            inner = conv2d(inner, weights[f"{name}.conv2.weight"], padding=1)
            features = torch.cat([features, inner], dim=1)
        if block < len(layers):
            name = f"features.transition{block}"
            features = normalised(weights, f"{name}.norm", features).relu()
            features = avg_pool2d(conv2d(features, weights[f"{name}.conv.weight"]), 2)
    features = normalised(weights, "features.norm5", features).relu().mean((2, 3))
    return linear(features, weights["classifier.weight"], weights["classifier.bias"])


def vit_file(*, width=768, depth=12, side=14, classes=1000):
    make = Maker()
    make.convolution("patch_embed.proj", width, 3, 16)
    make.weights["patch_embed.proj.bias"] = torch.randn(width, generator=make.generator)
    make.weights["cls_token"] = torch.randn(1, 1, width, generator=make.generator)
    make.weights["pos_embed"] = torch.randn(1, 1 + side**2, width, generator=make.generator)
    for i in range(depth):
        for name in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                values = torch.rand(width, generator=make.generator)
                make.weights[f"blocks.{i}.{name}.{part}"] = values
        make.dense(f"blocks.{i}.attn.qkv", 3 * width, width)
        make.dense(f"blocks.{i}.attn.proj", width, width)
        make.dense(f"blocks.{i}.mlp.fc1", 4 * width, width)
        make.dense(f"blocks.{i}.mlp.fc2", width, 4 * width)
    make.weights["norm.weight"] = torch.rand(width, generator=make.generator)
    make.weights["norm.bias"] = torch.rand(width, generator=make.generator)
    make.dense("head", classes, width)
    return make.weights


def vit_formula(weights, images, *, heads, depth):
    """Timm's forward pass at the size of the position embeddings."""
    patches = conv2d(images, weights["patch_embed.proj.weight"], stride=16)
    patches = patches + weights["patch_embed.proj.bias"][:, None, None]
    first = weights["cls_token"].expand(len(images), -1, -1)
    tokens = torch.cat([first, patches.flatten(2).mT], dim=1) + weights["pos_embed"]
    width = tokens.shape[2]

    def normal(name, values):
        return layer_norm(
            values, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6
        )

    def dense(name, values):
        return linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    for i in range(depth):
        name = f"blocks.{i}"
        joint = dense(f"{name}.attn.qkv", normal(f"{name}.norm1", tokens))
        query, key, value = joint.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + dense(f"{name}.attn.proj", mixed)
        inner = gelu(dense(f"{name}.mlp.fc1", normal(f"{name}.norm2", tokens)))
        tokens = tokens + dense(f"{name}.mlp.fc2", inner)
    return dense("head", normal("norm", tokens)[:, 0])


def make(network, *, variant="baseline", channels=3, classes=1000, size=SIZE):
    torch.manual_seed(0)
    return build(
        network, variant=variant, in_channels=channels, classes=classes, image_size=size
    ).eval()


def images(channels=3, size=SIZE):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def save(weights, folder, suffix):
    path = folder / f"weights{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("network", "layers", "bottleneck"),
    [("resnet18", (2, 2, 2, 2), False), ("resnet50", (3, 4, 6, 3), True)],
)
def test_resnet_of_torchvision(tmp_path, network, layers, bottleneck, suffix):
    weights, model = resnet_file(layers, bottleneck=bottleneck), make(network)
    report = load_pretrained(model, save(weights, tmp_path, suffix))
    expected = resnet_formula(weights, images())
    with torch.no_grad():
        torch.testing.assert_close(model(images()).logits, expected, rtol=1e-3, atol=1e-3)
    assert set(report.matched) == set(model.state_dict())
    assert (report.adapted, report.fresh, report.unused) == ((), (), ())


@pytest.mark.parametrize("old", [False, True])
def test_densenet_of_torchvision(tmp_path, old):
    weights, model = densenet_file(old=old), make("densenet121")
    report = load_pretrained(model, save(weights, tmp_path, ".safetensors"))
    expected = densenet_formula(densenet_file(), images())
    with torch.no_grad():
        torch.testing.assert_close(model(images()).logits, expected, rtol=1e-3, atol=1e-3)
    assert set(report.matched) | set(report.fresh) == set(model.state_dict())
    assert len(report.fresh) == (2 * 58 if old else 0)
    assert all(name.endswith("num_batches_tracked") for name in report.fresh)


def test_transformer_of_timm(tmp_path):
    """The narrow one, whose names are the same, at the size its positions were learned for."""
    weights = vit_file(width=64, depth=4)
    model = make("vit-narrow", size=224)
    report = load_pretrained(model, save(weights, tmp_path, ".safetensors"))
    expected = vit_formula(weights, images(size=224), heads=4, depth=4)
    with torch.no_grad():
        found = model(images(size=224)).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert set(report.matched) == set(model.state_dict())


def test_base_transformer_takes_every_name_of_timm():
    with torch.device("meta"):
        names = {name: weight.shape for name, weight in make("vit-b16").state_dict().items()}
    model = make("vit-b16")
    assert set(fit_pretrained(model, vit_file()).matched) == set(names)


def test_positions_of_another_grid_are_resampled():
    model = make("vit-narrow", size=224)
    report = fit_pretrained(model, vit_file(width=64, depth=4, side=24))
    assert report.adapted == ("trunk.patches.positions",)
    assert model.trunk.patches.positions.shape == (1, 197, 64)


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_first_convolution_keeps_its_answer_to_grey(channels):
    weights = resnet_file((2, 2, 2, 2), bottleneck=False)
    model = make("resnet18", channels=channels)
    report = fit_pretrained(model, weights)
    assert report.adapted == ("trunk.stem.conv1.weight",)
    grey = images(1)
    expected = resnet_formula(weights, grey.expand(-1, 3, -1, -1))
    with torch.no_grad():
        found = model(grey.expand(-1, channels, -1, -1)).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_channels_are_shared_out_alike():
    weight = torch.randn(5, 3, 7, 7)
    fitted = fit_channels(weight, 4)
    assert fitted.shape == (5, 4, 7, 7)
    torch.testing.assert_close(fitted.sum(1), weight.sum(1))
    assert (fitted == fitted[:, :1]).all()


@pytest.mark.parametrize("variant", ["exact-two-pass", "dual", "exact"])
def test_gates_stay_as_they_were_and_the_first_look_starts_with_the_file(variant):
    weights = resnet_file((2, 2, 2, 2), bottleneck=False)
    model = make("resnet18", variant=variant, classes=3)
    gates = {name: value.clone() for name, value in model.attention.gates.state_dict().items()}
    report = fit_pretrained(model, weights, allow=("head",))
    for name, value in model.attention.gates.state_dict().items():
        torch.testing.assert_close(value, gates[name], rtol=0, atol=0)
    assert {name.split(".")[0] for name in report.fresh} == {"attention", "head"}
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    if variant == "exact-two-pass":
        first = model.attention.first_look["block4"].get_buffer("0__bn1__running_mean")
        torch.testing.assert_close(first, weights["layer4.0.bn1.running_mean"])


@pytest.mark.parametrize(
    ("network", "dropped"),
    [("densenet121-stride16", (4, 3)), ("densenet121-stride8", (4, 3, 2))],
)
def test_cut_networks_name_what_they_leave(network, dropped):
    parts = {4: ("denseblock4", "transition3"), 3: (), 2: ("denseblock3", "transition2")}
    leave = [f"features.{part}" for block in dropped for part in parts[block]]
    leave += ["features.norm5", "trunk.block2.norm5"] if 2 in dropped else []
    model = make(network, classes=14)
    report = fit_pretrained(model, densenet_file(), allow=("classifier", *leave))
    assert "trunk.block2.denseblock2.denselayer12.layers.conv2.weight" in report.matched
    assert all(name.startswith(("features.", "classifier.")) for name in report.unused)
    kept = ("head.weight", "head.bias")
    assert set(kept) <= set(report.fresh)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_files_of_training_scripts_are_unwrapped(tmp_path, key):
    weights = resnet_file((2, 2, 2, 2), bottleneck=False)
    wrapped = {key: {f"module.{name}": value for name, value in weights.items()}, "epoch": 3}
    read = read_weights(save(wrapped, tmp_path, ".pth"))
    assert set(read) == set(weights)


def test_own_names_are_known_to_every_network():
    ours, theirs = make("unet-encoder-narrow", classes=2), make("unet-encoder-narrow", classes=2)
    torch.nn.init.normal_(theirs.head.weight)
    report = fit_pretrained(ours, theirs.state_dict())
    torch.testing.assert_close(ours.head.weight, theirs.head.weight)
    assert set(report.matched) == set(ours.state_dict())


class TestRefusals:
    def test_what_is_not_allowed_is_named_and_nothing_changes(self):
        model = make("resnet18", classes=3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(NetworkError, match=r"2 weights .* \(fc.weight, fc.bias\) and 2 .*head"):
            fit_pretrained(model, resnet_file((2, 2, 2, 2), bottleneck=False))
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_another_network(self):
        with pytest.raises(NetworkError, match=", and 100 more") as caught:
            fit_pretrained(make("resnet18"), densenet_file(layers=(2, 2, 2, 2)), allow=("head",))
        assert caught.value.code == "WEIGHTS_UNMATCHED"

    def test_a_weight_that_is_missing(self):
        weights = resnet_file((2, 2, 2, 2), bottleneck=False)
        del weights["layer3.1.bn2.weight"]
        with pytest.raises(NetworkError, match=r"0 weights .* 1 .*\(trunk.block3.1.bn2.weight\)"):
            fit_pretrained(make("resnet18"), weights)

    def test_a_weight_too_many(self):
        weights = resnet_file((2, 2, 2, 2), bottleneck=False)
        weights["layer5.0.conv1.weight"] = torch.zeros(1, 1, 1, 1)
        with pytest.raises(NetworkError, match=r"1 weights .*\(layer5.0.conv1.weight\) and 0 of"):
            fit_pretrained(make("resnet18"), weights)
        assert fit_pretrained(make("resnet18"), weights, allow=("layer5",)).unused == (
            "layer5.0.conv1.weight",
        )

    @pytest.mark.parametrize(
        ("network", "name", "shape"),
        [
            ("resnet18", "conv1.weight", (64, 3, 5, 5)),
            ("vit-narrow", "pos_embed", (1, 12, 64)),
            ("vit-narrow", "pos_embed", (1, 10, 32)),
        ],
    )
    def test_shapes_that_cannot_be_fitted(self, network, name, shape):
        weights = {
            "resnet18": lambda: resnet_file((2, 2, 2, 2), bottleneck=False),
            "vit-narrow": lambda: vit_file(width=64, depth=4),
        }[network]()
        weights[name] = torch.zeros(shape)
        with pytest.raises(NetworkError, match=rf"1 weights .*\({name}\) and 1 of"):
            fit_pretrained(make(network), weights)

    def test_weights_that_are_no_numbers(self):
        weights = resnet_file((2, 2, 2, 2), bottleneck=False)
        weights["bn1.weight"][3] = float("nan")
        with pytest.raises(NetworkError, match=r"1 weights .* NaN or infinity \(trunk.stem.bn1"):
            fit_pretrained(make("resnet18"), weights)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("content", [b"", b"no weights at all", None])
    def test_files_that_cannot_be_read(self, tmp_path, suffix, content):
        path = tmp_path / f"patient{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(NetworkError, match=r"cannot be read \(\w+\); give a") as caught:
            read_weights(path)
        assert caught.value.code == "WEIGHTS_UNREADABLE"
        assert "patient" not in str(caught.value)

    def test_code_in_a_file_does_not_run(self, tmp_path):
        torch.save(make("resnet10-narrow"), tmp_path / "model.pth")
        with pytest.raises(NetworkError, match=r"cannot be read \(UnpicklingError\)"):
            read_weights(tmp_path / "model.pth")

    @pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"a": torch.zeros(1), "b": 2}])
    def test_files_without_a_state_dict(self, tmp_path, content):
        with pytest.raises(NetworkError, match="no state dict, a mapping from names to tensors"):
            read_weights(save(content, tmp_path, ".pth"))
