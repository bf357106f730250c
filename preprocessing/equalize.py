"""Histogram equalisation of a projection, and its resampling to a square picture.

The 256-bin histogram and its cumulative share (CDF) are taken over the projection's own pixels,
before resampling, so that they do not depend on the picture's size. The projection is then
resampled in SUV, and grey values are read off the CDF. Picture, CDF and value range therefore
belong together: ``apply_cdf(suv, cdf, value_range)`` gives the picture again.

Pixel centres: picture pixel i of n covers source positions [i, i + 1) * source / n, and its centre
is the middle of that interval. Axes: row, column; tap (a source pixel that a picture pixel is
made of).
"""

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, Shaped, UInt8

from preprocessing.errors import GeometryError
from preprocessing.records import Equalized, Projection

BINS = 256
WHITE = 255
BACKGROUND_SUV = 0.0
NO_VOXEL = -1


def equalize(projection: Projection, *, size: int = 512, keep_aspect: bool = False) -> Equalized:
    """Equalise a projection into a ``size`` x ``size`` picture.

    By default the projection is stretched to the square, whatever its pixel spacing. With
    ``keep_aspect`` a millimetre is as long along rows as along columns, and the projection is
    centred on a background of SUV 0, which gets the grey value of SUV 0 and depth -1.

    Values are resampled by ``resample``, depth by nearest neighbour.

    Raises
    ------
    GeometryError
        If ``size`` is not positive, or all pixels are alike, or one is not finite.
    """
    if size < 1:
        raise GeometryError("BAD_SIZE", f"picture size is {size} pixels; give 1 or more")
    cdf, value_range = cumulative_histogram(projection.pixels)
    rows, columns = _extent(projection, size) if keep_aspect else (size, size)
    top, left = (size - rows) // 2, (size - columns) // 2
    inside = np.s_[top : top + rows, left : left + columns]
    suv = np.full((size, size), BACKGROUND_SUV, dtype=np.float32)
    suv[inside] = resample(projection.pixels, rows=rows, columns=columns)
    depth = np.full((size, size), NO_VOXEL, dtype=np.int32)
    depth[inside] = resample_nearest(projection.depth, rows=rows, columns=columns)
    image = apply_cdf(suv, cdf, value_range)
    for array in (image, suv, depth, cdf):
        array.flags.writeable = False
    return Equalized(image=image, suv=suv, depth=depth, cdf=cdf, value_range=value_range)


def cumulative_histogram(
    pixels: Float32[np.ndarray, "row column"],
) -> tuple[Float64[np.ndarray, "256"], tuple[float, float]]:
    """Return the share of pixels at or below the upper edge of each of 256 bins, and their range.

    The bins are equally wide between the lowest and the highest value.

    Raises
    ------
    GeometryError
        If there is no pixel, one is not finite, or all are alike.
    """
    _refuse_not_finite(pixels)
    low, high = float(pixels.min(initial=np.inf)), float(pixels.max(initial=-np.inf))
    if low >= high:
        seen = f"every pixel is {low:g}" if pixels.size else "there is no pixel"
        raise GeometryError(
            "EMPTY_PROJECTION",
            f"the projection shows nothing, {seen}: its histogram cannot be equalised; "
            "check that the series holds an image and was not cropped away",
        )
    counts, _ = np.histogram(pixels.astype(np.float64), bins=BINS, range=(low, high))
    return np.cumsum(counts) / pixels.size, (low, high)


def apply_cdf(
    suv: Float[np.ndarray, "row column"],
    cdf: Float[np.ndarray, "256"],
    value_range: tuple[float, float],
) -> UInt8[np.ndarray, "row column"]:
    """Map values to grey by an equalisation made before.

    The CDF is interpolated linearly between bin centres and held constant beyond the outer two;
    share 1 is white. On an ``Equalized.suv`` with its own CDF this gives ``Equalized.image`` again,
    and within one grey level from float16 values and a float32 CDF.

    Raises
    ------
    GeometryError
        If a value is not finite or the range is empty.

    References
    ----------
    Gonzalez, Woods: Digital Image Processing, 3.3.1 (histogram equalisation).
    """
    low, high = value_range
    if not low < high:
        raise GeometryError(
            "EMPTY_PROJECTION", f"the value range {low:g} to {high:g} is empty: no bin has a width"
        )
    _refuse_not_finite(suv)
    bin_position = (suv - np.float64(low)) * (BINS / (high - low)) - 0.5
    np.clip(bin_position, 0, BINS - 1, out=bin_position)
    below = np.minimum(bin_position.astype(np.intp), BINS - 2)
    bin_position -= below
    heights = WHITE * cdf.astype(np.float64)
    grey = heights[below] + bin_position * np.diff(heights)[below]
    return np.rint(grey).astype(np.uint8)


def resample(
    pixels: Float32[np.ndarray, "row column"], *, rows: int, columns: int
) -> Float32[np.ndarray, "{rows} {columns}"]:
    """Resample by a triangular kernel, separably.

    Enlarging, the kernel is linear interpolation. Reducing, it is widened by the reduction, so that
    every source pixel counts (anti-aliasing). Beyond the border the outermost pixel is repeated. No
    value leaves the source's range, and a constant stays that constant.
    """
    wide = _resample_axis(pixels, columns, axis=1)
    resampled = _resample_axis(wide, rows, axis=0)
    return np.clip(resampled, pixels.min(), pixels.max(), out=resampled)


def resample_nearest(
    pixels: Shaped[np.ndarray, "row column"], *, rows: int, columns: int
) -> Shaped[np.ndarray, "{rows} {columns}"]:
    """Resample by taking the source pixel that holds the picture pixel's centre.

    A centre on the edge between two source pixels takes the later one. Fit for labels, masks and
    depths, which have no values in between.
    """
    row, column = _nearest(pixels.shape[0], rows), _nearest(pixels.shape[1], columns)
    return pixels[row[:, None], column]


def _extent(projection: Projection, size: int) -> tuple[int, int]:
    """Rows and columns of the largest picture of true proportions within the square."""
    lengths_mm = np.multiply(projection.pixels.shape, projection.spacing_mm)
    rows, columns = np.maximum(1, np.rint(lengths_mm * (size / lengths_mm.max())))
    return int(rows), int(columns)


def _resample_axis(
    pixels: Float32[np.ndarray, "row column"], count: int, *, axis: int
) -> Float32[np.ndarray, "_row _column"]:
    source, weight = _taps(pixels.shape[axis], count)
    shape = list(pixels.shape)
    shape[axis] = count
    resampled = np.zeros(shape, dtype=np.float32)
    for index, share in zip(source, weight, strict=True):
        along = share if axis == 1 else share[:, None]
        resampled += pixels.take(index, axis=axis) * along
    return resampled


def _taps(
    source: int, count: int
) -> tuple[Int64[np.ndarray, "tap {count}"], Float32[np.ndarray, "tap {count}"]]:
    """Source pixels of each picture pixel and their shares, which sum to 1."""
    reach = max(1.0, source / count)
    centre = (np.arange(count) + 0.5) * source / count - 0.5
    first = np.floor(centre - reach).astype(np.int64) + 1
    index = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weight = np.maximum(0.0, 1.0 - np.abs(index - centre) / reach)
    weight /= weight.sum(axis=0)
    return np.clip(index, 0, source - 1), weight.astype(np.float32)


def _nearest(source: int, count: int) -> Int64[np.ndarray, " {count}"]:
    return (2 * np.arange(count) + 1) * source // (2 * count)


def _refuse_not_finite(pixels: Float[np.ndarray, "..."]) -> None:
    if not np.isfinite(pixels).all():
        raise GeometryError(
            "NOT_FINITE",
            "the projection holds NaN or infinite values: grey values mean nothing; "
            "mend the volume before projecting",
        )
