"""Killed at any moment, the same command ends with the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from preprocessing.shards import MANIFEST, verify

ROOT = Path(__file__).parents[2]
BUILD = """
import sys
from pathlib import Path
from pipelines.build import build
from pipelines.config import FdgPetConfig
from preprocessing.fdg_pet import Sources

if __name__ == "__main__":
    folder, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    build(
        "fdg-pet",
        FdgPetConfig(image_size=64, samples_per_shard=1),
        Sources(dicom_dir=folder / "dicom", labels=folder / "labels.csv", truth=folder / "truth"),
        out=out,
        key=bytes(range(32)),
        workers=workers,
    )
"""
KILLS_PER_TEST = 5


class Builder:
    """A build in a process group of its own, so that its workers die with it."""

    def __init__(self, folder: Path, out: Path, workers: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(folder), str(out), str(workers)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def kill_after(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def finish(self) -> None:
        _, stderr = self.process.communicate()
        assert self.process.returncode == 0, stderr.decode()


def shards(out: Path) -> dict[str, bytes]:
    folder = out / "shards"
    return {path.name: path.read_bytes() for path in folder.glob("*")} if folder.exists() else {}


@pytest.fixture(scope="module")
def undisturbed(
    small_phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    builder, start = Builder(small_phantoms, out, 1), time.perf_counter()
    builder.finish()
    return shards(out), time.perf_counter() - start


def check_what_is_visible(out: Path) -> None:
    for path in (out / "shards").glob("*") if (out / "shards").exists() else ():
        assert path.suffix == ".h5"
        with h5py.File(path) as file:
            for name in file:
                assert file[name][()].size
    if (out / MANIFEST).exists():
        assert verify(out).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(
    seed: int, small_phantoms: Path, tmp_path: Path, undisturbed: tuple[dict[str, bytes], float]
) -> None:
    expected, duration = undisturbed
    rng = random.Random(seed)
    for kill in range(KILLS_PER_TEST):
        out = tmp_path / f"out-{kill}"
        builder = Builder(small_phantoms, out, workers=1 + kill % 2)
        builder.kill_after(rng.uniform(0.0, duration))
        check_what_is_visible(out)
        Builder(small_phantoms, out, workers=1).finish()
        assert shards(out) == expected
        assert verify(out).problems == ()
