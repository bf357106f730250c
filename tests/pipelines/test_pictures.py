import io
import struct
import warnings

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.image import imread
from numpy.testing import assert_allclose, assert_array_equal

from pipelines.pictures import (
    CONTOUR,
    MISSING_GLYPH,
    OPACITY,
    Canvas,
    blend,
    heat_table,
    outline,
    printable,
    shrink_mask,
    wrap,
)
from pipelines.resampling import inverted_grey, resample

IMAGES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)
SIZES = st.integers(1, 24)


def slow_resample(image, rows, columns):
    """Every output pixel by its definition: a triangle centred on it, no narrower than itself."""

    def share(source, target, place):
        scale = source / target
        centre = (place + 0.5) * scale - 0.5
        heights = [max(0.0, 1 - abs(centre - i) / max(1.0, scale)) for i in range(source)]
        return [height / sum(heights) for height in heights]

    result = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            result[row, column] = sum(
                a * b * image[i, j]
                for i, a in enumerate(share(image.shape[0], rows, row))
                for j, b in enumerate(share(image.shape[1], columns, column))
            )
    return result


@settings(max_examples=40, deadline=None)
@given(image=IMAGES, rows=SIZES, columns=SIZES)
def test_resampling_follows_its_definition_and_stays_in_range(image, rows, columns):
    result = resample(image, rows, columns)
    assert_allclose(result, slow_resample(image, rows, columns), atol=1e-3)
    assert result.min() >= image.min() - 1e-4
    assert result.max() <= image.max() + 1e-4


@settings(max_examples=40, deadline=None)
@given(image=IMAGES, rows=SIZES, columns=SIZES)
def test_resampling_commutes_with_mirrors(image, rows, columns):
    mirrored = resample(np.ascontiguousarray(image[::-1, ::-1]), rows, columns)
    assert_allclose(mirrored, resample(image, rows, columns)[::-1, ::-1], atol=1e-3)


def test_resampling_to_the_same_size_changes_nothing():
    image = np.random.default_rng(0).random((7, 5), dtype=np.float32)
    assert_array_equal(resample(image, 7, 5), image)


def test_grey_is_white_without_uptake_and_black_at_the_top_of_the_window():
    suv = np.array([[-1.0, 0.0, 3.5, 7.0, 80.0]])
    assert inverted_grey(suv, 7.0)[0, :, 0].tolist() == [255, 255, 128, 0, 0]


def luminance(table):
    return table[:, :3] @ np.array([0.2126, 0.7152, 0.0722])


def test_colour_of_an_unsigned_map_brightens_and_grows_denser_with_importance():
    table = heat_table(signed=False).astype(float)
    assert np.all(np.diff(table[:, 3]) >= 0)
    assert table[0, 3] == 0
    assert table[-1, 3] == round(255 * OPACITY)
    assert luminance(table)[-1] > luminance(table)[0] + 60
    assert luminance(table).min() > 45  # seen on black
    assert luminance(table).max() < 190  # seen on white


def test_colour_of_a_signed_map_is_nothing_at_zero_and_opposite_at_the_ends():
    table = heat_table(signed=True).astype(int)
    assert_allclose(table[:, 3], table[::-1, 3], atol=1)
    assert table[127:129, 3].max() <= 1
    assert table[0, 2] > table[0, 0] + 80  # blue below zero
    assert table[-1, 0] > table[-1, 2] + 80  # red above


@pytest.mark.parametrize("signed", [False, True])
def test_a_map_of_zeros_shows_the_bare_scan(signed):
    ground = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    zeros = np.zeros((6, 4), dtype=np.float32)
    assert_array_equal(blend(ground, zeros, peak=0.0, signed=signed), ground)
    difference = blend(ground, zeros, peak=1.0, signed=signed).astype(int) - ground
    assert np.abs(difference).max() <= 1


def test_blending_is_the_mean_of_scan_and_colour_weighted_by_opacity():
    rng = np.random.default_rng(1)
    ground = rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)
    values = rng.random((5, 3)).astype(np.float32) * 2
    result = blend(ground, values, peak=2.0, signed=False)
    for row, column in np.ndindex(5, 3):
        *colour, opacity = heat_table(signed=False)[round(255 * values[row, column] / 2)] / 255
        expected = ground[row, column] * (1 - opacity) + 255 * np.array(colour) * opacity
        assert_allclose(result[row, column], expected, atol=0.51)


def test_outline_paints_the_border_and_nothing_far_from_it():
    picture = np.full((40, 30, 3), 120, dtype=np.uint8)
    mask = np.zeros((40, 30), dtype=bool)
    mask[10:30, 8:22] = True
    painted = outline(picture, mask)
    assert_array_equal(painted[10, 15], CONTOUR)
    assert_array_equal(painted[9, 15], CONTOUR)
    assert_array_equal(painted[14:26, 12:18], picture[14:26, 12:18])
    assert_array_equal(painted[:6], picture[:6])
    assert (picture == 120).all()


def test_outline_follows_a_mask_that_touches_the_edge_of_the_picture():
    picture = np.full((20, 20, 3), 255, dtype=np.uint8)
    painted = outline(picture, np.ones((20, 20), dtype=bool))
    assert_array_equal(painted[0, 10], CONTOUR)
    assert_array_equal(painted[10, 10], (255, 255, 255))


def test_outline_of_an_empty_mask_is_the_picture():
    picture = np.full((8, 8, 3), 50, dtype=np.uint8)
    assert_array_equal(outline(picture, np.zeros((8, 8), dtype=bool)), picture)


def test_a_mask_of_one_pixel_survives_shrinking():
    mask = np.zeros((512, 512), dtype=np.uint8)
    mask[100, 300] = 1
    small = shrink_mask(mask, 64, 64)
    assert small.any()
    assert small[12, 37]
    assert not shrink_mask(np.zeros((8, 8), dtype=np.uint8), 4, 4).any()


def chunks(png):
    position, names = 8, []
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        names.append(png[position + 4 : position + 8])
        position += length + 12
    return names


def test_canvas_bytes_hold_pixels_and_nothing_about_when_or_with_what():
    canvas = Canvas(60, 200)
    canvas.write("text", 10, 10)
    png = canvas.png()
    assert set(chunks(png)) <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
    assert png == canvas.png()
    assert b"matplotlib" not in png.lower()


def test_canvas_does_not_listen_to_the_users_settings():
    def drawn():
        canvas = Canvas(40, 120)
        canvas.write("Ag 0.5", 10, 10)
        return canvas.png()

    plain = drawn()
    with matplotlib.rc_context({"font.family": "serif", "text.color": "red"}):
        assert drawn() == plain


def test_canvas_puts_pictures_and_text_where_it_is_told():
    canvas = Canvas(60, 100)
    canvas.paste(np.zeros((10, 20, 3), dtype=np.uint8), 70, 40, frame=False)
    canvas.write("I", 5, 5, size=20)
    pixels = imread(io.BytesIO(canvas.png()))[..., :3]
    assert pixels.shape == (60, 100, 3)
    assert pixels[40:50, 70:90].max() == 0
    assert pixels[5:25, 5:15].min() < 0.5
    assert pixels[30:, :60].min() == 1


@pytest.mark.parametrize("text", ["a $b_c$ \\frac", "$", "肺 scan", "<b>&amp;"])
def test_any_text_can_be_written_without_a_warning(text):
    canvas = Canvas(30, 200)
    canvas.write(text, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert canvas.png()


def test_what_the_font_cannot_draw_becomes_a_square():
    assert printable("肺 Größe ≥ ×") == f"{MISSING_GLYPH} Größe ≥ ×"


def test_wrapped_text_fits_and_says_where_it_was_cut():
    text = " ".join(["word"] * 100)
    lines = wrap(text, 300, size=15, lines=3)
    assert len(lines) == 3
    assert all(len(line) * 0.56 * 15 <= 300 for line in lines)
    assert lines[-1].endswith("…")
    assert wrap("", 300) == []
    assert " ".join(wrap("one two", 300)) == "one two"
