"""Time of building a 299 x 256 x 256 PET series, against the plain loop a user would write.

    python benchmarks/build.py [--series 8] [--workers 4]

Printed as ratios from one run. The plain loop reads each file with pydicom, takes ``pixel_array``,
scales it, takes numpy's maximum, and equalises and resizes with scikit-image; it checks nothing and
writes one ``.npy``. Ours checks everything and writes verified shards.
"""

import argparse
import os
import secrets
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from scans import write_series
from skimage.exposure import equalize_hist
from skimage.transform import resize

from pipelines.build import build
from pipelines.config import FdgPetConfig
from preprocessing.fdg_pet import Sources

SLICES, MATRIX = 299, 256


def plain_loop(folder: Path, out: Path) -> None:
    """Read, scale, project, equalise and resize as a user would write it in an afternoon."""
    slices = [pydicom.dcmread(path) for path in folder.rglob("*") if path.is_file()]
    slices.sort(key=lambda item: float(item.ImagePositionPatient[2]))
    first = slices[0]
    injected = first.RadiopharmaceuticalInformationSequence[0]
    factor = 1000 * float(first.PatientWeight) / float(injected.RadionuclideTotalDose)
    volume = np.stack(
        [item.pixel_array * float(item.RescaleSlope) * factor for item in slices]
    ).astype(np.float32)
    picture = equalize_hist(volume.max(axis=1)[::-1], nbins=256)
    square = resize(picture, (512, 512), anti_aliasing=True)
    np.save(out, (255 * square).astype(np.uint8))


def seconds(function: object, *arguments: object, **options: object) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function(*arguments, **options)  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), arguments.series, arguments.workers, arguments.repeats)


def measure(folder: Path, series: int, workers: int, repeats: int) -> None:
    """Write the scans, then time the loop and the build in turn."""
    for number in range(series):
        write_series(folder / "dicom" / f"{number:03d}", SLICES, MATRIX, seed=number)
    key = secrets.token_bytes(32)
    config = FdgPetConfig(test_fraction=0, validation_fraction=0)
    sources = Sources(dicom_dir=folder / "dicom")
    plain, one, many = [], [], []
    for repeat in range(repeats):
        plain.append(
            sum(
                seconds(plain_loop, folder / "dicom" / f"{number:03d}", folder / "plain.npy")
                for number in range(series)
            )
        )
        for count, times in ((1, one), (workers, many)):
            out = folder / f"out-{repeat}-{count}"
            times.append(
                seconds(build, "fdg-pet", config, sources, out=out, key=key, workers=count)
            )
    print(
        f"{series} series of {SLICES} x {MATRIX} x {MATRIX}, {len(os.sched_getaffinity(0))} cores"
    )
    print(f"plain loop        {statistics.median(plain) / series:.3f} s a series")
    print(f"build, 1 worker   {statistics.median(one) / series:.3f} s a series")
    print(f"build, {workers} workers  {statistics.median(many) / series:.3f} s a series")
    ratios = [a / b for a, b in zip(one, plain, strict=True)]
    print(f"one worker / plain loop: {statistics.median(ratios):.2f} (to hold: at most 0.75)")
    ratios = [a / b for a, b in zip(one, many, strict=True)]
    print(
        f"one worker / {workers} workers: {statistics.median(ratios):.2f} (to hold: at least 3.2)"
    )


if __name__ == "__main__":
    main()
