"""Vision transformer as a trunk that attends by itself, with its attention exposed.

Axes: b batch, c channel, h row, w column (of patches), n token (the class token, then the patches
row by row), a attention head.

References
----------
Dosovitskiy et al., "An image is worth 16 x 16 words", ICLR 2021.
"""

from collections.abc import Iterator
from typing import final

import torch
from jaxtyping import Float
from monai.networks.blocks.transformerblock import TransformerBlock
from torch import Tensor, nn
from torch.nn.functional import interpolate

from models.trunk import Readout, Trunk

PATCH = 16
PRETRAINED_GRID = 14  # patches per side of the 224 pixel images that such networks are trained on
EPSILON = 1e-6


def vit_trunk(in_channels: int, *, width: int = 768, depth: int = 12, heads: int = 12) -> Trunk:
    """Patches of 16 x 16 pixels, a class token, and blocks of self-attention from MONAI.

    Position embeddings are learned for 14 x 14 patches and interpolated to the grid of the images.
    """
    stages: dict[str, nn.Module] = {"patches": Patches(in_channels, width)}
    for i in range(1, depth + 1):
        stages[f"block{i}"] = _block(width, heads)
    stages["norm"] = nn.LayerNorm(width, eps=EPSILON)
    return Trunk(
        stages,
        channels=dict.fromkeys(stages, width),
        strides=dict.fromkeys(stages, PATCH),
        gated=(),
        multiple=PATCH,
        family="vit",
        readout=ClassToken(),
    )


def _block(width: int, heads: int) -> TransformerBlock:
    block = TransformerBlock(width, 4 * width, heads, qkv_bias=True, use_flash_attention=True)
    block.register_module("norm_cross_attn", nn.Identity())  # would hold weights that nothing uses
    for norm in (block.norm1, block.norm2):
        norm.eps = EPSILON
    for part in block.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    return block


@final
class Patches(nn.Module):
    """Images to tokens: the class token and one per patch, each with its position."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, width, kernel_size=PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + PRETRAINED_GRID**2, width))
        nn.init.normal_(self.class_token, std=1e-6)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Tokens; the first is the class token."""
        patches = self.projection(images)
        positions = resampled_positions(self.positions, (patches.shape[2], patches.shape[3]))
        tokens = patches.flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(tokens), -1, -1).to(tokens.dtype)
        return torch.cat([first, tokens], dim=1) + positions


@final
class ClassToken(Readout):
    """The class token at the end, and what it looks at in the last block."""

    map_names = ("self-attention",)

    def forward(
        self, trunk: Trunk, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b d"], tuple[Float[Tensor, "b _h _w"], ...]]:
        """Its features, and its attention to the patches: mean of the heads, of sum 1."""
        last = trunk.names[-2]
        tokens = trunk.walk(images, upto=trunk.names[-3])
        weights = attention_weights(trunk.get_submodule(last), tokens, queries=1)
        values = weights.mean(1)[:, 0, 1:]
        values = values / values.sum(1, keepdim=True)
        grid = trunk.grid(last, (images.shape[2], images.shape[3]))
        pooled = trunk.walk(tokens, after=trunk.names[-3])[:, 0]
        return pooled, (values.view(-1, *grid),)


def attention_weights(
    block: nn.Module, tokens: Float[Tensor, "b n d"], *, queries: int | None = None
) -> Float[Tensor, "b a m n"]:
    """How much the first ``queries`` tokens (all, if not given) look at each token, per head.

    Computed beside the block, whose own attention is never held as a matrix; differentiable.
    Each row sums to 1, in float32 at least.

    Parameters
    ----------
    block
        One of the trunk's stages ``block1``, ``block2``, ...
    tokens
        What goes into it, as ``trunk.walk`` hands it on.
    """
    attention = block.get_submodule("attn")
    normalised = block.get_submodule("norm1")(tokens)
    linear = attention.get_submodule("qkv")
    width = tokens.shape[2]
    query_weight, key_weight, _ = linear.get_parameter("weight").split(width)
    query_bias, key_bias, _ = linear.get_parameter("bias").split(width)
    query = nn.functional.linear(normalised[:, :queries], query_weight, query_bias)
    key = nn.functional.linear(normalised, key_weight, key_bias)
    heads = int(attention.num_heads)  # pyright: ignore[reportArgumentType] - an integer of MONAI's
    query, key = (side.unflatten(2, (heads, -1)).transpose(1, 2) for side in (query, key))
    scores = query @ key.transpose(2, 3) * (width // heads) ** -0.5
    scores = scores.float() if scores.element_size() < 4 else scores
    return scores.softmax(3)


def self_attention(
    trunk: Trunk, images: Float[Tensor, "b c h w"]
) -> Iterator[Float[Tensor, "b a n n"]]:
    """Attention matrices of every block of a transformer, first block first, one at a time."""
    tokens = trunk.walk(images, upto=trunk.names[0])
    for name in trunk.names[1:-1]:
        block = trunk.get_submodule(name)
        yield attention_weights(block, tokens)
        tokens = block(tokens)


def resampled_positions(
    positions: Float[Tensor, "1 n d"], grid: tuple[int, int]
) -> Float[Tensor, "1 m d"]:
    """Position embeddings of a square grid, resampled to another one; the class token's stays.

    Bicubic, as a product of matrices: its gradient is the same on every run and device.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    rows, columns = (_resampling(side, size).to(positions) for size in grid)
    square = positions[:, 1:].unflatten(1, (side, side))
    resampled = torch.einsum("ri,sj,bijd->brsd", rows, columns, square)
    return torch.cat([positions[:, :1], resampled.flatten(1, 2)], dim=1)


def _resampling(before: int, after: int) -> Tensor:
    """Matrix "after before" of bicubic interpolation along one axis."""
    with torch.no_grad():
        identity = torch.eye(before)[None, None]
        return interpolate(identity, (after, before), mode="bicubic", align_corners=False)[0, 0]
