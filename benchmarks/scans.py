"""Scans for the benchmarks: series of one exact size with a real scanner's kind of header."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from preprocessing.phantoms.fdg_pet import FdgPetOptions, PhantomScan, scan_subject, write_scan


def write_series(folder: Path, slices: int, matrix: int, *, seed: int) -> None:
    """Write one synthetic patient of exactly ``slices`` x ``matrix`` x ``matrix`` voxels."""
    options = FdgPetOptions(
        spacing_mm=(1500.0 / slices, 700.0 / matrix, 700.0 / matrix), matrix=matrix
    )
    scan = _cut(scan_subject(seed, label="mild", seed=seed, options=options), slices)
    write_scan(scan, folder, rng=np.random.default_rng(seed))


def _cut(scan: PhantomScan, slices: int) -> PhantomScan:
    count = len(scan.suv)
    if count < slices:
        raise ValueError(f"the patient has {count} slices, fewer than the {slices} asked for")
    shape = (slices, *scan.grid.shape[1:])
    return replace(scan, suv=scan.suv[:slices], grid=replace(scan.grid, shape=shape))
