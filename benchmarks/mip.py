"""Projection and equalisation beside what a user would otherwise run, as ratios from one run.

Usage: ``python benchmarks/mip.py [--repeat N] [--mapper]``. Below 1.0 the toolkit is faster; the
other side gives the picture only, the toolkit also the depth of every pixel and its checks.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from skimage.exposure import equalize_hist
from skimage.transform import resize

from preprocessing import mip
from preprocessing.equalize import equalize
from preprocessing.records import Unit, Volume

SHAPE = (299, 256, 256)
SPACING_MM = (3.27, 2.73, 2.73)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeat", type=int, default=7)
    options.add_argument("--mapper", action="store_true", help="also draw with VTK's volume mapper")
    arguments = options.parse_args()
    volume = _body()
    voxels, projection = volume.voxels, mip.project(volume)
    pixels = projection.pixels

    def against(name: str, ours: Callable[[], object], other: Callable[[], object]) -> None:
        mine, theirs = _fastest(ours, arguments.repeat), _fastest(other, arguments.repeat)
        print(f"{name:<58} {mine * 1e3:8.1f} ms {theirs * 1e3:8.1f} ms  ratio {mine / theirs:6.2f}")

    print(f"{'volume ' + 'x'.join(map(str, SHAPE)):<58} {'toolkit':>11} {'other':>11}")
    for azimuth, axis in ((0, 1), (90, 2)):
        against(
            f"project {azimuth} degrees : numpy maximum",
            lambda azimuth=azimuth: mip.project(volume, azimuth_deg=azimuth),
            lambda axis=axis: voxels.max(axis=axis),
        )
        against(
            f"project {azimuth} degrees : numpy maximum and argmax",
            lambda azimuth=azimuth: mip.project(volume, azimuth_deg=azimuth),
            lambda axis=axis: (voxels.max(axis=axis), voxels.argmax(axis=axis)),
        )
    against(
        "project 0 degrees : the same through VTK's reslice",
        lambda: mip.project(volume),
        lambda: mip.project_resliced(volume, 0.0),
    )
    against(
        "project 45 degrees : project 0 degrees",
        lambda: mip.project(volume, azimuth_deg=45),
        lambda: mip.project(volume),
    )
    against("equalize to 512 : scikit-image", lambda: equalize(projection), lambda: _other(pixels))
    against(
        "project and equalize : numpy and scikit-image",
        lambda: equalize(mip.project(volume)),
        lambda: _other(voxels.max(axis=1)[::-1]),
    )
    if arguments.mapper:
        _measure_mapper(volume)
    print(f"memory beyond the volume, project 0 degrees: {_extra_memory(volume):.1%} of it")


def _body() -> Volume:
    """Noise within an ellipse, nothing around it, as a whole-body scan."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.linspace(-1, 1, SHAPE[1]), np.linspace(-1, 1, SHAPE[2]), indexing="ij")
    body = (y / 0.45) ** 2 + (x / 0.7) ** 2 < 1
    voxels = (rng.gamma(2.0, 0.6, SHAPE) * body).astype(np.float32)
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    return Volume(voxels=voxels, affine=affine, unit=Unit.SUVBW, subject_id="benchmark")


def _other(pixels: np.ndarray) -> np.ndarray:
    picture = resize(equalize_hist(pixels, nbins=256), (512, 512), order=1, anti_aliasing=False)
    return np.rint(255 * picture).astype(np.uint8)


def _fastest(call: Callable[[], object], repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _measure_mapper(volume: Volume) -> None:
    available, reason = mip.mapper_available()
    if not available:
        print(reason)
        return
    for azimuth in (0, 45):
        start = time.perf_counter()
        drawn = mip.project(volume, azimuth_deg=azimuth, projector="vtk-mapper")
        seconds = time.perf_counter() - start
        off = np.abs(drawn.pixels - mip.project(volume, azimuth_deg=azimuth).pixels)
        share = off / volume.voxels.max()
        print(
            f"vtk-mapper {azimuth} degrees: {seconds:.2f} s; off the default by "
            f"{share.mean():.2%} of the range on average, {share.max():.2%} at most"
        )


def _extra_memory(volume: Volume) -> float:
    tracemalloc.start()
    mip.project(volume)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / volume.voxels.nbytes


if __name__ == "__main__":
    main()
