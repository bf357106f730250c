"""Time and bytes of building BraTS18 hemispheres, against the published way of working.

    python benchmarks/brats.py [--cases 16] [--workers 4] [--repeats 3]

The reference way: nibabel's ``get_fdata`` in float64, one ``.npy`` per half, cut beside the
tumour; it checks nothing. Ours estimates the midline, checks everything, and writes verified
shards with card, contact sheet and leak probe. Both use every slice of more than 1000 tumour
pixels, so both write the same number of halves. Printed as ratios from one run.
"""

import argparse
import os
import resource
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

MODALITIES = ("t1", "t1ce", "t2", "flair")
MIN_AREA = 1000


def reference_way(folder: Path, out: Path) -> int:
    """Read, cut and save one case as float64; return how many halves."""
    import nibabel
    import numpy as np

    name = folder.name
    volumes = [nibabel.load(folder / f"{name}_{kind}.nii.gz").get_fdata() for kind in MODALITIES]
    tumour = nibabel.load(folder / f"{name}_seg.nii.gz").get_fdata() > 0
    stacked = np.stack(volumes)
    count = 0
    for z in range(tumour.shape[2]):
        mask = tumour[:, :, z]
        if mask.sum() <= MIN_AREA:
            continue
        columns = np.flatnonzero(mask.any(axis=1))
        first, last = columns[0], columns[-1]
        cut = last + 1 if (first + last) / 2 < mask.shape[0] / 2 else first
        for side, half in (("right", slice(0, cut)), ("left", slice(cut, None))):
            picture = np.zeros((len(MODALITIES), *mask.shape))
            picture[:, half] = stacked[:, half, :, z]
            np.save(out / f"{name}_{z}_{side}.npy", picture)
            count += 1
    return count


def reference_all(root: Path, out: Path) -> int:
    """Save all cases, one after another, as the published code does."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return sum(reference_way(path, out) for path in sorted(root.glob("[HL]GG/*")))


def ours(root: Path, out: Path, *, workers: int) -> int:
    """Build one data set anew; return how many halves."""
    from pipelines.build import build
    from pipelines.config import Brats18Config
    from preprocessing.brats import Sources

    shutil.rmtree(out, ignore_errors=True)
    report = build(
        "brats18",
        Brats18Config(crossing="label-both", min_half_area=1),
        Sources(root=root),
        out=out,
        key=secrets.token_bytes(32),
        workers=workers,
    )
    return sum(report.samples.values())


def measured(function: Callable[[], int]) -> tuple[float, float, int]:
    """Wall seconds, processor seconds with those of ended children, and the result."""
    before, start = _processor(), time.perf_counter()
    found = function()
    return time.perf_counter() - start, _processor() - before, found


def _processor() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), arguments.cases, arguments.workers, arguments.repeats)


def measure(folder: Path, cases: int, workers: int, repeats: int) -> None:
    """Write the heads, then time the ways in turn."""
    from pipelines.workers import Workers
    from preprocessing.phantoms.brats18 import write_brats18

    root = folder / "heads"
    with Workers(workers) as pool:
        write_brats18(root, subjects=cases, seed=1, mapper=pool.map)
    ways = {
        "reference": partial(reference_all, root, folder / "reference"),
        "one": partial(ours, root, folder / "one", workers=1),
        "many": partial(ours, root, folder / "many", workers=workers),
    }
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            found[name].append(measured(way))
    bytes_of = {name: size_of(folder / name) for name in ways}
    report(found, bytes_of, cases, workers)


def report(
    found: dict[str, list[tuple[float, float, int]]],
    bytes_of: dict[str, int],
    cases: int,
    workers: int,
) -> None:
    """Print medians and their ratios."""
    wall, processor = (
        {name: statistics.median(run[place] for run in runs) for name, runs in found.items()}
        for place in (0, 1)
    )
    halves = {name: runs[0][2] for name, runs in found.items()}
    print(f"{cases} cases of 4 x 240 x 240 x 155, {len(os.sched_getaffinity(0))} cores")
    for name, title in (
        ("reference", "reference way"),
        ("one", "build, 1 worker"),
        ("many", f"build, {workers} workers"),
    ):
        times = f"{wall[name] / cases:.3f} s a case (processor {processor[name] / cases:.3f} s)"
        print(f"{title:<18} {times}, {halves[name]} halves, {bytes_of[name] / 2**20:.0f} MiB")
    print(f"cases a second, 1 worker / reference: {wall['reference'] / wall['one']:.2f}")
    print(
        f"cases a second, {workers} workers / reference: {wall['reference'] / wall['many']:.2f} "
        "(to hold: at least 5)"
    )
    print(
        f"bytes, reference / build: {bytes_of['reference'] / bytes_of['many']:.1f} "
        "(to hold: at least 20)"
    )


if __name__ == "__main__":
    main()
