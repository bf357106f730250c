"""Killed at any moment, the same command ends with the same bytes."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest

from preprocessing.shards import MANIFEST, verify
from tests.pipelines.forks import Forks, kill_group

BUILD = """
from pathlib import Path
from pipelines.build import build
from pipelines.config import FdgPetConfig
from preprocessing.fdg_pet import Sources

def run(folder, out, workers):
    folder = Path(folder)
    build(
        "fdg-pet",
        FdgPetConfig(image_size=64, samples_per_shard=1),
        Sources(dicom_dir=folder / "dicom", labels=folder / "labels.csv", truth=folder / "truth"),
        out=Path(out),
        key=bytes(range(32)),
        workers=int(workers),
    )
"""
KILLS_PER_TEST = 5


@pytest.fixture(scope="module")
def builders() -> Iterator[Forks]:
    found = Forks(BUILD)
    yield found
    found.close()


def shards(out: Path) -> dict[str, bytes]:
    folder = out / "shards"
    return {path.name: path.read_bytes() for path in folder.glob("*")} if folder.exists() else {}


@pytest.fixture(scope="module")
def undisturbed(
    builders: Forks, small_phantoms: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    builders.begin(small_phantoms, out, 1)
    start = time.perf_counter()
    assert builders.end() == 0
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
    seed: int,
    builders: Forks,
    small_phantoms: Path,
    tmp_path: Path,
    undisturbed: tuple[dict[str, bytes], float],
) -> None:
    expected, duration = undisturbed
    rng = random.Random(seed)
    for kill in range(KILLS_PER_TEST):
        out = tmp_path / f"out-{kill}"
        process = builders.begin(small_phantoms, out, 1 + kill % 2)
        time.sleep(rng.uniform(0.0, duration))
        kill_group(process)
        assert builders.end() in (0, signal.SIGKILL)
        check_what_is_visible(out)
        builders.begin(small_phantoms, out, 1)
        assert builders.end() == 0
        assert shards(out) == expected
        assert verify(out).problems == ()
