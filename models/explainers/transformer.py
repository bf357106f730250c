"""Maps of a vision transformer's self-attention: block by block, and rolled out over all of them.

Axes: b batch, h row, w column (of patches), a attention head, n token (the class token first).

References
----------
Dosovitskiy et al., "An image is worth 16 x 16 words", ICLR 2021.
Abnar, Zuidema, "Quantifying attention flow in transformers", ACL 2020, section 3 (rollout).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TypeGuard, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models.errors import ExplainerError
from models.explainers.base import Explainer
from models.explainers.laws import Law, judged
from models.explainers.scoring import scores_of
from models.networks import Classifier
from models.records import Attribution
from models.vit import PATCH, ClassToken, self_attention

ROWS = Law(
    name="row sums",
    sound=1e-3,
    refused=1e-2,
    says="between a token's attention to all tokens and 1",
    way_out="explain the model in single precision or by 'gradcam'",
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention(Explainer):
    """What the class token looks at in every block, as the mean of the heads; first block first.

    What it gives to itself is left out, and the rest sums to 1. Not tied to a class.

    Attributes
    ----------
    batch_size
        Pictures at once; the matrices of one block are held, "a n n" per picture.
    """

    batch_size: int = 8

    @property
    def name(self) -> str:
        """``self-attention``."""
        return "self-attention"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One map per block, named ``self-attention-block1``, ...

        Raises
        ------
        ExplainerError
            If the model is no transformer.
        """
        with torch.no_grad():
            heads, grid = mean_heads(model, images), _grid(model, images, target)
            return tuple(
                _seen(matrix, grid, target, method=f"{self.name}-block{number}")
                for number, matrix in enumerate(heads, start=1)
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRollout(Explainer):
    """How much of each patch reaches the class token over all blocks; not tied to a class.

    The product over blocks of (A + I) / 2, with A the mean of the heads: what skips a block counts
    as much as what passes through its attention. The class token's own share is left out, and the
    rest sums to 1.

    Attributes
    ----------
    batch_size
        Pictures at once; the matrices of one block are held, "a n n" per picture.
    """

    batch_size: int = 8

    @property
    def name(self) -> str:
        """``rollout``."""
        return "rollout"

    def explain(
        self, model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
    ) -> tuple[Attribution, ...]:
        """One map on the grid of patches.

        Raises
        ------
        ExplainerError
            If the model is no transformer.
        """
        with torch.no_grad():
            heads, grid = mean_heads(model, images), _grid(model, images, target)
            return (_seen(roll_out(heads), grid, target, method=self.name),)


def is_transformer(model: nn.Module) -> TypeGuard[Classifier]:
    """Whether a model is one of the toolkit's vision transformers."""
    return isinstance(model, Classifier) and isinstance(model.trunk.readout, ClassToken)


def mean_heads(
    model: nn.Module, images: Float[Tensor, "b c h w"]
) -> Iterator[Float[Tensor, "b n n"]]:
    """Attention matrices of a transformer's blocks, first block first, as means of the heads.

    Raises
    ------
    ExplainerError
        If the model is no transformer.
    """
    if not is_transformer(model):
        raise ExplainerError(
            "NO_SELF_ATTENTION",
            "the model is no vision transformer of this toolkit, so that it has no self-attention "
            "to show; explain it by 'gradcam', or by 'attention' if it has gates",
        )
    return (weights.mean(1) for weights in self_attention(model.trunk, images))


def roll_out(matrices: Iterable[Float[Tensor, "b n n"]]) -> Float[Tensor, "b n n"]:
    """Product of the matrices, each mixed half and half with the identity; the last is leftmost."""
    return reduce(lambda below, above: above @ below, map(_with_skip, matrices))


def _with_skip(matrix: Float[Tensor, "b n n"]) -> Float[Tensor, "b n n"]:
    return (matrix + torch.eye(matrix.shape[1]).to(matrix)) / 2


def _seen(
    rows: Float[Tensor, "b n n"], grid: tuple[int, int], target: Int[Tensor, " b"], *, method: str
) -> Attribution:
    """Map of what the first token, the class token, sees of the patches."""
    patches = rows[:, 0, 1:]
    values = patches / patches.sum(1, keepdim=True)
    return judged(
        values.view(-1, *grid),
        torch.full_like(target, -1),
        method=method,
        law=ROWS,
        residual=(rows.sum(2) - 1).abs().amax(1),
        signed=False,
    )


def _grid(
    model: nn.Module, images: Float[Tensor, "b c h w"], target: Int[Tensor, " b"]
) -> tuple[int, int]:
    """Rows and columns of patches, of images and targets that the model can take."""
    scores_of(model, images, target)
    return images.shape[2] // PATCH, images.shape[3] // PATCH
