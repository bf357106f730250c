"""Resampling the box that holds the brain is resampling the slice."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.brain_boxes import brain_box
from pipelines.feed import resample

SIZES = st.sampled_from(
    [(24, 24), (48, 48), (12, 12), (8, 8), (32, 32), (25, 23), (5, 9), (48, 12)]
)


@given(
    size=SIZES,
    top=st.integers(0, 23),
    left=st.integers(0, 23),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
)
def test_the_box_resampled_is_the_slice_resampled(
    size: tuple[int, int], top: int, left: int, height: int, width: int
) -> None:
    image = np.zeros((2, 24, 24), dtype=np.float32)
    part = image[:, top : top + height, left : left + width]
    part[...] = np.random.default_rng(0).normal(size=part.shape)
    box = brain_box(image, size)
    assert box is not None
    found = torch.zeros(2, *size)
    rows, columns = box.source
    inside = np.ascontiguousarray(image[:, rows, columns])
    found[:, box.target[0], box.target[1]] = resample(torch.from_numpy(inside), box.size)
    whole = resample(torch.from_numpy(image), size)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_a_box_is_no_larger_than_its_blocks() -> None:
    image = np.zeros((1, 240, 240), dtype=np.int16)
    image[0, 40:80, 100:110] = 1
    box = brain_box(image, (256, 256))
    assert box is not None
    assert box.source == (slice(30, 90), slice(90, 120))
    assert box.target == (slice(32, 96), slice(96, 128))
    same = brain_box(image, (240, 240))
    assert same is not None
    assert same.source == same.target == (slice(39, 81), slice(99, 111))


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_brain_in_any_channel_counts(channel: int) -> None:
    image = np.zeros((3, 16, 16))
    image[channel, 0, 15] = np.nan
    box = brain_box(image, (16, 16))
    assert box is not None
    assert box.source == (slice(0, 2), slice(14, 16))


def test_no_brain_has_no_box() -> None:
    assert brain_box(np.zeros((2, 9, 9)), (9, 9)) is None
