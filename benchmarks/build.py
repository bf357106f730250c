"""Time of building a 299 x 256 x 256 PET series, against the plain loop a user would write.

    python benchmarks/build.py [--series 48] [--workers 4]

Printed as ratios from one run. The plain loop reads each file with pydicom, takes ``pixel_array``,
scales it, takes numpy's maximum, and equalises and resizes with scikit-image; it checks nothing and
writes one ``.npy``. Ours checks everything and writes verified shards. Imports stand inside the
functions, because every worker process imports this file first.
"""

import argparse
import multiprocessing
import os
import secrets
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SLICES, MATRIX = 299, 256


def plain_loop(folder: Path, out: Path) -> None:
    """Read, scale, project, equalise and resize as a user would write it in an afternoon."""
    import numpy as np
    import pydicom
    from skimage.exposure import equalize_hist
    from skimage.transform import resize

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
    parser.add_argument("--series", type=int, default=48)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), arguments.series, arguments.workers, arguments.repeats)


def measure(folder: Path, series: int, workers: int, repeats: int) -> None:
    """Write the scans, then time the loop and the builds in turn.

    A third of the series is built apart: the difference of the two times is what each further
    series costs, without what every build pays once (processes that start, pictures, the card).
    Builds that share nothing, one on each core, tell how far the machine itself scales.
    """
    from scans import write_series

    few = series // 3
    for number in range(series):
        write_series(folder / "all" / f"{number:03d}", SLICES, MATRIX, seed=number)
        if number < few:
            linked(folder, number, "few")
        linked(folder, number, f"part-{number % workers}")
    times: dict[str, list[float]] = {
        "plain": [],
        "one": [],
        "many": [],
        "one few": [],
        "many few": [],
        "apart": [],
    }
    for repeat in range(repeats):
        times["plain"].append(
            sum(
                seconds(plain_loop, folder / "all" / f"{number:03d}", folder / "plain.npy")
                for number in range(series)
            )
        )
        for name, scans, count in (
            ("one", "all", 1),
            ("many", "all", workers),
            ("one few", "few", 1),
            ("many few", "few", workers),
        ):
            times[name].append(build_seconds(folder, scans, count, repeat))
        times["apart"].append(apart_seconds(folder, workers, repeat))
    report(times, series, few, workers)


def linked(folder: Path, number: int, group: str) -> None:
    """Put a series into another folder of scans without copying it."""
    name = f"{number:03d}"
    shutil.copytree(folder / "all" / name, folder / group / name, copy_function=os.link)


def apart_seconds(folder: Path, workers: int, repeat: int) -> float:
    """Build the parts at once, each in a process of its own: what the machine itself can do."""
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(workers + 1), context.Barrier(workers + 1)
    builders = [
        context.Process(target=build_apart, args=(folder, part, repeat, start, end))
        for part in range(workers)
    ]
    for builder in builders:
        builder.start()
    start.wait()
    taken = seconds(end.wait)
    for builder in builders:
        builder.join()
    return taken


def build_apart(folder: Path, part: int, repeat: int, start: Any, end: Any) -> None:
    """Build one part once all are ready."""
    import pipelines.build  # noqa: F401, the time to import is not counted

    start.wait()
    build_seconds(folder, f"part-{part}", 1, repeat)
    end.wait()


def build_seconds(folder: Path, scans: str, workers: int, repeat: int) -> float:
    """Build one data set anew."""
    from pipelines.build import build
    from pipelines.config import FdgPetConfig
    from preprocessing.fdg_pet import Sources

    return seconds(
        build,
        "fdg-pet",
        FdgPetConfig(test_fraction=0.0, validation_fraction=0.0),
        Sources(dicom_dir=folder / scans),
        out=folder / f"out-{scans}-{workers}-{repeat}",
        key=secrets.token_bytes(32),
        workers=workers,
    )


def report(times: dict[str, list[float]], series: int, few: int, workers: int) -> None:
    """Print medians and their ratios."""
    found = {name: statistics.median(values) for name, values in times.items()}
    one = (found["one"] - found["one few"]) / (series - few)
    many = (found["many"] - found["many few"]) / (series - few)
    cores = len(os.sched_getaffinity(0))
    print(f"{series} series of {SLICES} x {MATRIX} x {MATRIX}, {cores} cores, seconds a series")
    print(f"plain loop          {found['plain'] / series:.3f}")
    print(f"build, 1 worker     {found['one'] / series:.3f}   each further series {one:.3f}")
    print(
        f"build, {workers} workers    {found['many'] / series:.3f}   each further series {many:.3f}"
    )
    print(f"1 worker / plain loop: {found['one'] / found['plain']:.2f} (to hold: at most 0.75)")
    print(f"1 worker / {workers} workers, further series: {one / many:.2f} (to hold: at least 3.2)")
    print(f"1 worker / {workers} workers, the whole build: {found['one'] / found['many']:.2f}")
    limit = found["one"] / found["apart"]
    print(f"1 worker / {workers} builds of a part each, at once (the machine's own): {limit:.2f}")


if __name__ == "__main__":
    main()
