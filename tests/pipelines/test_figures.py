import io

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.testing import assert_allclose, assert_array_equal

from pipelines.figures import (
    MARGIN,
    PICTURE_HEIGHT,
    SUV_BLACK,
    overlay,
    picture_extent_mm,
)
from pipelines.pictures import CONTOUR, Canvas

TOP = MARGIN + 24  # no title: the margin, then the line that says R and L


@pytest.fixture
def suv():
    rng = np.random.default_rng(0)
    return (rng.random((48, 48)) * 6).astype(np.float32)


@pytest.fixture
def written(monkeypatch):
    """Texts that were written on a canvas."""
    texts = []
    write = Canvas.write

    def record(self, text, left, top, **style):
        texts.append((text, left, top))
        write(self, text, left, top, **style)

    monkeypatch.setattr(Canvas, "write", record)
    return texts


def pixels(png):
    return np.rint(255 * imread(io.BytesIO(png))[..., :3]).astype(int)


def picture(png, width=PICTURE_HEIGHT):
    return pixels(png)[TOP : TOP + PICTURE_HEIGHT, MARGIN : MARGIN + width]


def test_scan_is_inverted_grey_with_head_up_and_patients_right_on_the_left():
    suv = np.zeros((48, 48), dtype=np.float16)
    suv[:16, :16] = 99  # head, patient's right
    suv[32:, 32:] = SUV_BLACK / 2
    drawn = picture(overlay(suv))
    assert (drawn[10:100, 10:100] == 0).all()
    assert_allclose(drawn[-100:-10, -100:-10], 128, atol=1)
    assert (drawn[10:100, -100:-10] == 255).all()


def test_window_ends_where_the_caller_says():
    suv = np.full((8, 8), 3.0, dtype=np.float32)
    assert (picture(overlay(suv, suv_max=3.0)) == 0).all()
    assert_allclose(picture(overlay(suv, suv_max=6.0)), 128, atol=1)


def test_right_and_left_are_marked_at_the_right_ends(suv, written):
    overlay(suv)
    places = {text: left for text, left, _ in written}
    assert places["R"] == MARGIN
    assert places["L"] == MARGIN + PICTURE_HEIGHT


def test_picture_of_a_mirrored_scan_is_mirrored(suv):
    mirrored = overlay(np.ascontiguousarray(suv[:, ::-1]))
    assert_allclose(picture(mirrored), picture(overlay(suv))[:, ::-1], atol=1)


def test_colour_lies_where_the_map_is_and_nowhere_else(suv):
    values = np.zeros((16, 16), dtype=np.float32)
    values[4, 12] = 1.0
    scan, fused = picture(overlay(suv)), picture(overlay(suv, values))
    changed = np.abs(scan - fused).max(axis=-1) > 2
    rows, columns = np.nonzero(changed)
    cell = PICTURE_HEIGHT / 16
    assert_allclose([rows.mean(), columns.mean()], [4.5 * cell, 12.5 * cell], atol=3)
    assert rows.min() >= 3.4 * cell
    assert rows.max() <= 5.6 * cell
    peak = fused[round(4.5 * cell), round(12.5 * cell)]
    assert peak[0] > peak[2] + 50  # orange


def test_map_scaled_by_a_constant_draws_the_same_picture(suv):
    values = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    assert_array_equal(picture(overlay(suv, values)), picture(overlay(suv, values * 4)))


def test_map_of_zeros_is_the_scan_and_says_so(suv, written):
    zeros = np.zeros((4, 4), dtype=np.float32)
    assert_array_equal(picture(overlay(suv, zeros)), picture(overlay(suv)))
    assert "zero everywhere" in " ".join(text for text, _, _ in written)


@pytest.mark.parametrize(("hot", "label"), [(1.0, "1 ×"), (16.0, "8.26 ×")])
def test_colour_bar_says_how_far_the_peak_stands_above_the_mean(suv, written, hot, label):
    values = np.ones((4, 4), dtype=np.float32)
    values[0, 0] = hot  # mean (15 + 16) / 16
    overlay(suv, values)
    assert label in [text for text, _, _ in written]


def test_signed_map_is_red_for_and_blue_against(suv):
    values = np.zeros((8, 8), dtype=np.float32)
    values[:, :3], values[:, 5:] = -2.0, 2.0
    drawn = picture(overlay(suv * 0, values, signed=True))
    against, in_favour = drawn[300, 50], drawn[300, -50]
    assert against[2] > against[0] + 50
    assert in_favour[0] > in_favour[2] + 50


def test_contour_is_drawn_around_the_true_region(suv, written):
    mask = np.zeros((48, 48), dtype=np.uint8)
    mask[12:24, 12:24] = 1
    drawn = picture(overlay(suv, mask=mask))
    rows, columns = np.nonzero((drawn == CONTOUR).all(axis=-1))
    scale = PICTURE_HEIGHT / 48
    assert_allclose([rows.min(), rows.max()], [12 * scale, 24 * scale], atol=2)
    assert_allclose([columns.min(), columns.max()], [12 * scale, 24 * scale], atol=2)
    assert "true region" in [text for text, _, _ in written]


def test_grey_that_is_no_uptake_is_not_called_suv(suv, written):
    overlay(suv, unit="")
    assert "SUV" not in [text for text, _, _ in written]
    overlay(suv, unit="paper")
    assert "paper" in [text for text, _, _ in written]


def test_extent_gives_the_patient_his_proportions(suv, written):
    overlay(suv, extent_mm=(1600.0, 800.0))
    places = {text: left for text, left, _ in written}
    assert places["L"] - places["R"] == PICTURE_HEIGHT // 2


def test_equal_input_gives_equal_bytes(suv):
    values = suv[::3, ::3].copy()
    first = overlay(suv, values, mask=suv > 5, title="a $ b", caption="c " * 90)
    assert first == overlay(suv, values, mask=suv > 5, title="a $ b", caption="c " * 90)


def test_drawing_changes_no_input(suv):
    before = suv.copy()
    suv.flags.writeable = False
    overlay(suv, suv, mask=suv > 3)
    assert_array_equal(suv, before)


def test_a_scan_that_is_not_finite_is_refused(suv):
    suv[3, :2] = np.nan
    with pytest.raises(ValueError, match="the SUV projection holds 2 values that are not finite"):
        overlay(suv)


def test_an_empty_scan_is_refused():
    with pytest.raises(ValueError, match=r"the SUV projection is empty: shape \(0, 4\)"):
        overlay(np.zeros((0, 4), dtype=np.float32))


def test_a_map_that_is_not_finite_is_refused(suv):
    with pytest.raises(ValueError, match="the map holds 1 values that are not finite"):
        overlay(suv, np.array([[np.inf, 0.0]], dtype=np.float32))


def test_negative_values_of_an_unsigned_map_are_refused(suv):
    values = np.array([[1.0, -0.5]], dtype=np.float32)
    with pytest.raises(ValueError, match=r"negative values \(down to -0.5\): draw it as signed"):
        overlay(suv, values)
    overlay(suv, np.array([[1.0, -1e-9]], dtype=np.float32))


def test_a_mask_of_another_shape_is_refused(suv):
    with pytest.raises(ValueError, match=r"mask \(4, 4\) does not fit the picture \(48, 48\)"):
        overlay(suv, mask=np.zeros((4, 4)))


def test_a_window_without_width_is_refused(suv):
    with pytest.raises(ValueError, match=r"suv_max is 0.0: the window must end above SUV 0"):
        overlay(suv, suv_max=0.0)


def test_an_extent_without_size_is_refused(suv):
    with pytest.raises(ValueError, match="height and width must be positive"):
        overlay(suv, extent_mm=(0.0, 400.0))


def test_extent_of_the_picture_comes_from_spacing_and_shape():
    affine = np.diag([4.0, 5.0, 3.0, 1.0])
    affine[:3, 3] = (-100, 20, 7)
    shape = np.array([200, 128, 100], dtype=np.int32)
    assert picture_extent_mm(affine, shape) == (600.0, 400.0)
    assert picture_extent_mm(affine, shape, keep_aspect=True) == (600.0, 600.0)
