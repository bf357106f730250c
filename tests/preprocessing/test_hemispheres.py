import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from preprocessing.hemispheres import halves, right_pixels, tumour_edge
from preprocessing.midline import CutLine

SHAPE = (9, 12)
LINES = st.builds(CutLine, st.floats(-3, 15), st.floats(-0.6, 0.6))
MASKS = arrays(bool, SHAPE)
CROSSINGS = st.sampled_from(["exclude", "label-both"])


@given(line=LINES)
def test_a_pixel_is_right_if_its_centre_is(line):
    found = right_pixels(line, SHAPE)
    for row, column in np.ndindex(SHAPE):
        assert found[row, column] == (column < line.offset + line.slope * row)


@given(tumour=MASKS.filter(np.any))
def test_the_published_cut_touches_the_tumour_and_parts_it_from_nothing(tumour):
    line = tumour_edge(tumour)
    right = right_pixels(line, SHAPE)
    columns = np.flatnonzero(tumour.any(axis=0))
    holds_right = (columns[0] + columns[-1]) / 2 < SHAPE[1] / 2
    assert not (tumour & (~right if holds_right else right)).any()
    beside = columns[-1] if holds_right else columns[0]
    assert abs(line.offset - beside) == 0.5  # the tumour's last column is the half's last


def test_the_published_cut_needs_a_tumour():
    with pytest.raises(ValueError, match="no tumour to cut beside"):
        tumour_edge(np.zeros(SHAPE, bool))


@given(line=LINES, tumour=MASKS, brain=MASKS, crossing=CROSSINGS, least=st.integers(1, 30))
@settings(deadline=None)
def test_halves_part_every_slice_and_no_half_labelled_0_holds_tumour(
    line, tumour, brain, crossing, least
):
    right, left = halves(line, tumour, brain, crossing=crossing, min_half_area=least)
    assert (right.side, left.side) == ("right", "left")
    np.testing.assert_array_equal(right.pixels, ~left.pixels)
    crosses = right.tumour_pixels > 0 and left.tumour_pixels > 0
    for half in (right, left):
        assert half.tumour_pixels == (tumour & half.pixels).sum()
        assert (half.label is None) == bool(half.code)
        if half.label == 0:
            assert not (tumour & half.pixels).any()
        if half.label == 1:
            assert half.tumour_pixels >= (least if crossing == "label-both" else 1)
        if half.label is not None:
            assert (brain & half.pixels).any()
        if half.code == "CROSSING_MIDLINE":
            assert crosses
            assert crossing == "exclude"
        if half.code == "HALF_UNCLEAR":
            assert 0 < half.tumour_pixels < least
            assert crossing == "label-both"
        if half.code == "HALF_EMPTY":
            assert not (brain & half.pixels).any()
    if crosses and crossing == "exclude":
        assert right.code == left.code == "CROSSING_MIDLINE"
