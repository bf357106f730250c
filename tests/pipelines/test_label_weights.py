"""Weights counted in each training batch, and in the training split where pictures are judged."""

import pytest
import torch

from models.losses import WEIGHTINGS, multi_label_loss
from models.records import Prediction
from pipelines.handlers import Losses

LABELS = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.uint8)
SPLIT = torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.uint8)


def prediction(rows: slice = slice(None)) -> Prediction:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return Prediction(logits=logits[rows], maps=(), penalty=torch.zeros(4)[rows])


@pytest.fixture(params=WEIGHTINGS)
def losses(request: pytest.FixtureRequest) -> Losses:
    return Losses(
        alpha=0.0,
        class_weights=None,
        label_smoothing=0.0,
        weighting=request.param,
        label_weights=WEIGHTINGS[request.param](SPLIT),
    )


def test_training_counts_in_the_batch(losses: Losses) -> None:
    found = losses(prediction(), LABELS)
    each = [
        multi_label_loss(prediction(), LABELS, label_weights=f(LABELS)) for f in WEIGHTINGS.values()
    ]
    assert any(torch.equal(found, values.mean()) for values in each)
    assert not torch.allclose(found, losses.evaluate(prediction(), LABELS).loss)


def test_a_judged_picture_does_not_depend_on_its_batch(losses: Losses) -> None:
    together = losses.each(prediction(), LABELS)
    alone = [losses.each(prediction(slice(i, i + 1)), LABELS[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone))
