"""The transformer against its formulas, written out head by head and token by token."""

import pytest
import torch
from torch.nn.functional import gelu, interpolate, layer_norm

from models.networks import NETWORKS, build
from models.vit import attention_weights, resampled_positions, self_attention

SIZE = (64, 96)


def make(seed=0, network="vit-narrow", **shape):
    torch.manual_seed(seed)
    shape = {"in_channels": 2, "classes": 3, "image_size": SIZE, **shape}
    return build(network, variant="baseline", **shape).eval()


def images(count=3):
    return torch.randn(count, 2, *SIZE, generator=torch.Generator().manual_seed(7))


def slow_attention(block, tokens):
    """One matrix per head from the rows of the joint projection."""
    state = block.state_dict()
    normalised = layer_norm(tokens, (64,), state["norm1.weight"], state["norm1.bias"], 1e-6)
    matrices, outputs = [], []
    for head in range(4):
        parts = []
        for part in range(3):
            rows = slice(part * 64 + head * 16, part * 64 + head * 16 + 16)
            weight, bias = state["attn.qkv.weight"][rows], state["attn.qkv.bias"][rows]
            parts.append(normalised @ weight.T + bias)
        query, key, value = parts
        matrices.append((query @ key.transpose(1, 2) / 16**0.5).softmax(2))
        outputs.append(matrices[-1] @ value)
    return torch.stack(matrices, dim=1), torch.cat(outputs, dim=2)


def slow_block(block, tokens):
    state = block.state_dict()
    mixed = slow_attention(block, tokens)[1]
    tokens = tokens + mixed @ state["attn.out_proj.weight"].T + state["attn.out_proj.bias"]
    inner = layer_norm(tokens, (64,), state["norm2.weight"], state["norm2.bias"], 1e-6)
    inner = gelu(inner @ state["mlp.linear1.weight"].T + state["mlp.linear1.bias"])
    return tokens + inner @ state["mlp.linear2.weight"].T + state["mlp.linear2.bias"]


def test_base_transformer_has_the_known_parameters():
    """86,567,656 for ImageNet; the paper's 85.4 million with one channel and three classes."""

    def count(**shape):
        with torch.device("meta"):
            return sum(weight.numel() for weight in make(network="vit-b16", **shape).parameters())

    assert count(in_channels=3, classes=1000, image_size=224) == 86_567_656
    assert count(in_channels=1, classes=3, image_size=224) // 100_000 == 854
    assert count(in_channels=1, classes=3, image_size=512) // 100_000 == 854


def test_blocks_are_their_formulas():
    trunk = make().trunk
    tokens = trunk.walk(images(), upto="patches")
    assert tokens.shape == (3, 1 + 4 * 6, 64)
    for name in trunk.names[1:-1]:
        expected = slow_block(trunk.get_submodule(name), tokens)
        tokens = trunk.get_submodule(name)(tokens)
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    final = layer_norm(tokens, (64,), trunk.norm.weight, trunk.norm.bias, 1e-6)
    torch.testing.assert_close(trunk(images()), final, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(make()(images()).logits, make().head(final[:, 0]))


def test_patches_are_projected_row_by_row():
    stage = make().trunk.get_submodule("patches")
    tokens = stage(images())
    positions = resampled_positions(stage.positions, (4, 6))
    weight = stage.projection.weight.flatten(1)
    for row in range(4):
        for column in range(6):
            patch = images()[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            place = 1 + 6 * row + column
            expected = patch.flatten(1) @ weight.T + stage.projection.bias + positions[0, place]
            torch.testing.assert_close(tokens[:, place], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens[:, 0], (stage.class_token + positions)[:, 0].expand(3, -1))


def test_attention_is_exposed_block_by_block():
    trunk = make().trunk
    matrices = list(self_attention(trunk, images()))
    assert [tuple(matrix.shape) for matrix in matrices] == [(3, 4, 25, 25)] * 4
    tokens = trunk.walk(images(), upto="block2")
    expected = slow_attention(trunk.get_submodule("block3"), tokens)[0]
    torch.testing.assert_close(matrices[2], expected, rtol=1e-4, atol=1e-6)
    first = attention_weights(trunk.get_submodule("block3"), tokens, queries=1)
    torch.testing.assert_close(first, expected[:, :, :1], rtol=1e-4, atol=1e-6)


def test_map_is_what_the_class_token_looks_at_last():
    model = make()
    prediction = model(images())
    assert model.map_names == ("self-attention",)
    last = list(self_attention(model.trunk, images()))[-1].mean(1)[:, 0, 1:]
    expected = (last / last.sum(1, keepdim=True)).view(3, 4, 6)
    torch.testing.assert_close(prediction.maps[0], expected)
    assert (prediction.maps[0] >= 0).all()
    torch.testing.assert_close(prediction.maps[0].sum((1, 2)), torch.ones(3))
    torch.testing.assert_close(prediction.penalty, torch.zeros(3))


def test_map_receives_gradients_and_does_not_see_its_neighbours():
    model, batch = make().double(), images().double().requires_grad_()
    whole = model(batch).maps[0]
    alone = model(batch[1:2]).maps[0]
    torch.testing.assert_close(whole[1:2], alone)
    (gradient,) = torch.autograd.grad(whole[1].square().sum(), batch)
    assert gradient[1].abs().max() > 0
    assert (gradient[0] == 0).all()


def test_every_weight_is_trained():
    model = make().train()
    model(images()).logits.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("grid", [(14, 14), (7, 14), (32, 20)])
def test_positions_are_resampled_bicubically(grid):
    positions = torch.randn(1, 1 + 14 * 14, 5, generator=torch.Generator().manual_seed(0))
    square = positions[:, 1:].view(1, 14, 14, 5).permute(0, 3, 1, 2)
    expected = interpolate(square, grid, mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).flatten(1, 2)
    resampled = resampled_positions(positions, grid)
    torch.testing.assert_close(resampled[:, 1:], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resampled[:, :1], positions[:, :1])


def test_trunk_hands_tokens_on():
    trunk = NETWORKS["vit-narrow"](2).eval()
    tokens = trunk.walk(images(), upto="block2")
    torch.testing.assert_close(trunk.walk(tokens, after="block2"), trunk(images()))
    assert trunk.grid("block1", SIZE) == (4, 6)
    assert trunk.features == 64


def test_half_precision():
    model = make()
    full = model(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(images())
    assert mixed.maps[0].dtype == torch.float32
    torch.testing.assert_close(mixed.maps[0].sum((1, 2)), torch.ones(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed.logits, full.logits, rtol=0.1, atol=0.05)
