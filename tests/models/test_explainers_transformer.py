"""Self-attention block by block and rolled out, against a slow product; GradCAM of tokens."""

import pytest
import torch

from models.errors import ExplainerError
from models.explainers import AttentionMaps, AttentionRollout, GradCam, SelfAttention
from models.explainers.transformer import mean_heads, roll_out
from models.networks import build
from tests.models.explainer_cases import images

SIZE = (32, 48)
TARGET = torch.tensor([0, 2])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build("vit-narrow", variant="baseline", in_channels=2, classes=3, image_size=SIZE)
    with torch.no_grad():  # far from uniform attention
        for name, weight in model.named_parameters():
            if "qkv" in name and name.endswith("weight"):
                weight.mul_(15)
    return model.eval()


def pictures():
    return images(2, side=48)[:, :, : SIZE[0]]


def slow_rollout(model, image):
    """One picture, token by token: sum over all ways through the blocks, backwards."""
    share = torch.zeros(1 + 2 * 3)
    share[0] = 1.0
    for matrix in reversed(list(mean_heads(model, image))):
        spread = torch.zeros_like(share)
        for token, amount in enumerate(share):
            spread[token] += amount / 2
            for other, weight in enumerate(matrix[0, token]):
                spread[other] += amount * weight / 2
        share = spread
    return share


def test_rollout_is_the_product_over_blocks_and_its_rows_sum_to_one(model):
    (found,) = AttentionRollout()(model, pictures(), TARGET)
    with torch.no_grad():
        rolled = roll_out(mean_heads(model, pictures()))
        torch.testing.assert_close(rolled.sum(2), torch.ones(2, 7), rtol=0, atol=1e-5)
        for i in range(2):
            share = slow_rollout(model, pictures()[i : i + 1])
            torch.testing.assert_close(rolled[i, 0], share, rtol=1e-4, atol=1e-6)
            expected = (share[1:] / share[1:].sum()).view(2, 3)
            torch.testing.assert_close(found.values[i], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.values.sum((1, 2)), torch.ones(2))
    assert found.values.flatten(1).std(dim=1).min() > 1e-2
    assert (found.target.tolist(), found.signed, found.law) == ([-1, -1], False, "row sums")
    assert found.residual.max() < 1e-5
    assert {verdict.word for verdict in found.verdicts} == {"sound"}


def test_every_block_is_shown_as_the_mean_of_its_heads(model):
    found = SelfAttention()(model, pictures(), TARGET)
    assert [level.method for level in found] == [f"self-attention-block{i}" for i in range(1, 5)]
    for level, heads in zip(found, mean_heads(model, pictures()), strict=True):
        seen = heads.detach()[:, 0, 1:]
        expected = (seen / seen.sum(1, keepdim=True)).view(2, 2, 3)
        torch.testing.assert_close(level.values, expected)
        assert {verdict.word for verdict in level.verdicts} == {"sound"}
    (last,) = AttentionMaps()(model, pictures(), TARGET)
    torch.testing.assert_close(found[-1].values, last.values)


def test_attention_that_is_no_distribution_is_refused(model, monkeypatch):
    broken = [1.1 * matrix for matrix in mean_heads(model, pictures())]
    monkeypatch.setattr("models.explainers.transformer.mean_heads", lambda *_: iter(broken))
    (found,) = AttentionRollout()(model, pictures(), TARGET)
    assert {verdict.word for verdict in found.verdicts} == {"refused"}
    assert "between a token's attention to all tokens and 1; explain" in found.verdicts[0].reason


def test_gradcam_of_a_transformer_has_the_patches_as_cells(model):
    """By default of the last tokens that the class token still looks at."""
    (found,) = GradCam()(model, pictures(), TARGET)
    tokens = model.trunk.walk(pictures(), upto="block3").detach().requires_grad_()
    logits = model.head(model.trunk.walk(tokens, after="block3")[:, 0])
    logits.gather(1, TARGET[:, None]).sum().backward()
    weights = tokens.grad[:, 1:].mean(1, keepdim=True)
    expected = (weights * tokens[:, 1:]).sum(2).relu().view(2, 2, 3)
    torch.testing.assert_close(found.values, expected.detach(), rtol=1e-4, atol=1e-7)
    assert found.values.max() > 0
    with pytest.raises(ExplainerError, match=r"layer 'head' gives 2 axes; GradCAM needs features"):
        GradCam(layer="head")(model, pictures(), TARGET)
