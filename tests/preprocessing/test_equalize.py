import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.exposure import equalize_hist
from skimage.transform import resize

from preprocessing import equalize
from preprocessing.errors import GeometryError
from preprocessing.records import Projection

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(2, 40)


def projection_of(pixels: np.ndarray, spacing_mm: tuple[float, float] = (3.27, 2.7)) -> Projection:
    pixels = np.asarray(pixels, np.float32)
    depth = np.arange(pixels.size, dtype=np.int32).reshape(pixels.shape)
    return Projection(pixels=pixels, depth=depth, spacing_mm=spacing_mm, azimuth_deg=0.0)


def body_like(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Most pixels low, a few very bright: the histogram of a PET projection."""
    return (rng.gamma(0.6, 1.5, shape) * (rng.random(shape) < 0.7)).astype(np.float32)


def slow_triangle(pixels: np.ndarray, count: int) -> np.ndarray:
    """Rows resampled by the definition: shares fall off linearly from a picture pixel's centre."""
    source = len(pixels)
    reach = max(1.0, source / count)
    out = np.zeros((count, pixels.shape[1]))
    for i in range(count):
        centre, total = (i + 0.5) * source / count - 0.5, 0.0
        for j in range(math.floor(centre - reach), math.ceil(centre + reach) + 1):
            share = max(0.0, 1 - abs(j - centre) / reach)
            out[i] += share * pixels[min(max(j, 0), source - 1)]
            total += share
        out[i] /= total
    return out


class TestHistogram:
    @given(seed=seeds, rows=lengths, columns=lengths)
    @settings(deadline=None)
    def test_equalises_as_scikit_image_does(self, seed: int, rows: int, columns: int) -> None:
        pixels = body_like(np.random.default_rng(seed), (rows, columns))
        pixels[0, 0] = 3.0  # two values at least
        pixels[0, 1] = 0.0
        cdf, value_range = equalize.cumulative_histogram(pixels)
        expected = 255 * equalize_hist(pixels.astype(np.float64), nbins=256)
        grey = equalize.apply_cdf(pixels, cdf, value_range)
        assert np.abs(grey - expected).max() <= 0.5 + 1e-6

    @given(seed=seeds)
    def test_cdf_is_the_share_at_or_below_each_upper_edge(self, seed: int) -> None:
        pixels = np.random.default_rng(seed).normal(0, 3, (17, 23)).astype(np.float32)
        cdf, (low, high) = equalize.cumulative_histogram(pixels)
        edges = np.linspace(low, high, 257)[1:]
        # A pixel within rounding of an edge may count on either side of it.
        rounding = 1e-9 * (high - low)
        below = np.array([(pixels <= edge - rounding).mean() for edge in edges])
        above = np.array([(pixels <= edge + rounding).mean() for edge in edges])
        assert (below - 1e-12 <= cdf).all()
        assert (cdf <= above + 1e-12).all()
        assert (low, high) == (pixels.min(), pixels.max())

    def test_takes_values_a_rounding_apart(self) -> None:
        pixels = np.full((4, 4), 1.0, np.float32)
        pixels[0] = np.nextafter(np.float32(1), np.float32(2))
        image = equalize.equalize(projection_of(pixels), size=4).image
        assert image[0, 0] == 255
        assert image[3, 3] == round(255 * 12 / 16)


class TestPicture:
    @given(seed=seeds, rows=lengths, columns=lengths, keep_aspect=st.booleans())
    @settings(deadline=None, max_examples=30)
    def test_is_its_own_suv_read_off_its_own_cdf(
        self, seed: int, rows: int, columns: int, keep_aspect: bool
    ) -> None:
        pixels = body_like(np.random.default_rng(seed), (rows, columns))
        pixels[0, :2] = 0.0, 60.0
        picture = equalize.equalize(projection_of(pixels), size=64, keep_aspect=keep_aspect)
        again = equalize.apply_cdf(picture.suv, picture.cdf, picture.value_range)
        np.testing.assert_array_equal(again, picture.image)
        stored = equalize.apply_cdf(
            picture.suv.astype(np.float16), picture.cdf.astype(np.float32), picture.value_range
        )
        assert np.abs(stored.astype(int) - picture.image).max() <= 1

    def test_brighter_suv_is_never_darker_grey(self) -> None:
        pixels = body_like(np.random.default_rng(0), (60, 40))
        picture = equalize.equalize(projection_of(pixels), size=128)
        order = np.argsort(picture.suv, axis=None, kind="stable")
        assert (np.diff(picture.image.reshape(-1)[order].astype(int)) >= 0).all()
        assert picture.image.max() > picture.image.min()

    def test_brightest_native_pixel_is_white(self) -> None:
        pixels = body_like(np.random.default_rng(0), (32, 32))
        picture = equalize.equalize(projection_of(pixels), size=32)
        np.testing.assert_array_equal(picture.suv, pixels)
        assert picture.image[np.unravel_index(pixels.argmax(), pixels.shape)] == 255

    def test_stretches_to_the_square(self) -> None:
        picture = equalize.equalize(projection_of(np.random.default_rng(0).random((30, 8))))
        assert picture.image.shape == picture.suv.shape == picture.depth.shape == (512, 512)
        assert (picture.depth >= 0).all()

    def test_is_read_only(self) -> None:
        picture = equalize.equalize(projection_of([[0.0, 1.0]]), size=8)
        for array in (picture.image, picture.suv, picture.depth, picture.cdf):
            assert not array.flags.writeable


class TestKeptAspect:
    @pytest.mark.parametrize(
        ("shape", "spacing_mm", "extent"),
        [
            ((30, 20), (2.0, 2.0), (90, 60)),
            ((30, 20), (2.0, 6.0), (45, 90)),
            ((10, 10), (1.0, 1.0), (90, 90)),
            ((1000, 2), (1.0, 1.0), (90, 1)),
        ],
    )
    def test_pads_with_suv_zero_around_the_centre(
        self, shape: tuple[int, int], spacing_mm: tuple[float, float], extent: tuple[int, int]
    ) -> None:
        pixels = 1 + np.random.default_rng(0).random(shape)
        picture = equalize.equalize(projection_of(pixels, spacing_mm), size=90, keep_aspect=True)
        inside = picture.depth >= 0
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        assert (len(rows), len(columns)) == extent
        for places in (rows, columns):
            assert abs(places[0] - (89 - places[-1])) <= 1
        assert inside.sum() == len(rows) * len(columns)
        assert (picture.suv[~inside] == 0).all()
        assert (picture.suv[inside] >= 1).all()
        assert (picture.image[~inside] == picture.image.min()).all()

    def test_shows_a_round_thing_round(self) -> None:
        spacing = (5.0, 2.0)
        y, x = np.meshgrid((np.arange(40) - 20) * 5.0, (np.arange(60) - 30) * 2.0, indexing="ij")
        disc = (np.hypot(y, x) < 40).astype(np.float32)
        picture = equalize.equalize(projection_of(disc, spacing), size=400, keep_aspect=True)
        lit = picture.suv > 0.5
        height, width = lit.any(axis=1).sum(), lit.any(axis=0).sum()
        # the disc's own pixels are 10 and 4 picture pixels large
        assert abs(int(height) - int(width)) <= 14
        stretched = equalize.equalize(projection_of(disc, spacing), size=400).suv > 0.5
        assert abs(int(stretched.any(axis=1).sum()) - int(stretched.any(axis=0).sum())) > 40


class TestResampling:
    @given(seed=seeds, rows=lengths, columns=lengths, new_rows=lengths, new_columns=lengths)
    @settings(deadline=None, max_examples=50)
    def test_is_the_triangle_along_rows_and_then_columns(
        self, seed: int, rows: int, columns: int, new_rows: int, new_columns: int
    ) -> None:
        pixels = np.random.default_rng(seed).normal(0, 5, (rows, columns)).astype(np.float32)
        expected = slow_triangle(slow_triangle(pixels, new_rows).T, new_columns).T
        resampled = equalize.resample(pixels, rows=new_rows, columns=new_columns)
        np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-4)
        assert resampled.min() >= pixels.min()
        assert resampled.max() <= pixels.max()

    @pytest.mark.parametrize("shape", [(299, 256), (100, 511), (512, 512)])
    def test_enlarges_as_scikit_image_does(self, shape: tuple[int, int]) -> None:
        pixels = body_like(np.random.default_rng(1), shape)
        expected = resize(pixels, (512, 512), order=1, mode="edge", anti_aliasing=False)
        resampled = equalize.resample(pixels, rows=512, columns=512)
        np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-4)

    @given(value=st.floats(-1e6, 1e6, width=32), count=st.integers(1, 70))
    def test_keeps_a_constant(self, value: float, count: int) -> None:
        pixels = np.full((13, 7), value, np.float32)
        assert (equalize.resample(pixels, rows=count, columns=71 - count) == pixels[0, 0]).all()

    @given(seed=seeds, count=st.integers(1, 70))
    def test_mirrors_what_is_mirrored(self, seed: int, count: int) -> None:
        pixels = np.random.default_rng(seed).random((23, 31)).astype(np.float32)
        straight = equalize.resample(pixels, rows=count, columns=count)
        mirrored = equalize.resample(pixels[::-1, ::-1], rows=count, columns=count)
        np.testing.assert_allclose(mirrored[::-1, ::-1], straight, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("size", [24, 50, 64, 200])
    def test_keeps_the_centre_of_mass_in_place(self, size: int) -> None:
        y, x = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
        blob = np.exp(-((y - 25.3) ** 2 + (x - 39.8) ** 2) / 18).astype(np.float32)
        resampled = equalize.resample(blob, rows=size, columns=size).astype(np.float64)
        place = (np.arange(size) + 0.5) * 64 / size - 0.5
        mass = resampled.sum()
        assert resampled.sum(axis=1) @ place / mass == pytest.approx(25.3, abs=0.02)
        assert resampled.sum(axis=0) @ place / mass == pytest.approx(39.8, abs=0.02)

    def test_reduces_without_aliasing(self) -> None:
        checkerboard = (np.indices((512, 512)).sum(axis=0) % 2).astype(np.float32)
        reduced = equalize.resample(checkerboard, rows=100, columns=100)
        np.testing.assert_allclose(reduced[2:-2, 2:-2], 0.5, atol=0.02)

    @given(rows=lengths, columns=lengths, new_rows=lengths, new_columns=lengths)
    def test_depth_is_that_of_the_pixel_which_holds_the_centre(
        self, rows: int, columns: int, new_rows: int, new_columns: int
    ) -> None:
        depth = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
        nearest = equalize.resample_nearest(depth, rows=new_rows, columns=new_columns)
        for i in range(new_rows):
            for j in range(new_columns):
                row = (2 * i + 1) * rows // (2 * new_rows)
                column = (2 * j + 1) * columns // (2 * new_columns)
                assert nearest[i, j] == depth[row, column]

    def test_depth_and_suv_show_the_same_place(self) -> None:
        pixels = np.zeros((20, 30), np.float32)
        pixels[4, 21] = 9.0
        picture = equalize.equalize(projection_of(pixels), size=480)
        brightest = np.unravel_index(picture.suv.argmax(), picture.suv.shape)
        assert picture.depth[brightest] == 4 * 30 + 21


class TestRefusals:
    def test_projection_of_one_value(self) -> None:
        with pytest.raises(GeometryError, match=r"every pixel is 2\.5: its histogram") as caught:
            equalize.equalize(projection_of(np.full((3, 3), 2.5)))
        assert caught.value.code == "EMPTY_PROJECTION"

    def test_projection_without_pixels(self) -> None:
        with pytest.raises(GeometryError, match="there is no pixel") as caught:
            equalize.equalize(projection_of(np.ones((0, 3))))
        assert caught.value.code == "EMPTY_PROJECTION"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_values_that_are_no_numbers(self, value: float) -> None:
        with pytest.raises(GeometryError, match="NaN or infinite") as caught:
            equalize.equalize(projection_of([[0.0, value]]))
        assert caught.value.code == "NOT_FINITE"
        with pytest.raises(GeometryError, match="NaN or infinite"):
            equalize.apply_cdf(np.array([[value]], np.float32), np.linspace(0, 1, 256), (0.0, 1.0))

    def test_size_below_one(self) -> None:
        with pytest.raises(GeometryError, match="picture size is 0 pixels") as caught:
            equalize.equalize(projection_of([[0.0, 1.0]]), size=0)
        assert caught.value.code == "BAD_SIZE"

    def test_cdf_of_an_empty_range(self) -> None:
        with pytest.raises(GeometryError, match="value range 1 to 1 is empty") as caught:
            equalize.apply_cdf(np.ones((1, 1), np.float32), np.linspace(0, 1, 256), (1.0, 1.0))
        assert caught.value.code == "EMPTY_PROJECTION"
