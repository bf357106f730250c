"""Robust objectives in several processes: the gradient of one process, and none left waiting."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.distributed import ALONE
from tests.pipelines.robust_processes import CASES, trained
from tests.pipelines.two_processes import WORLD

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found (``robust_processes.py``)."""
    out = tmp_path_factory.mktemp("two")
    script = ROOT / "tests" / "pipelines" / "robust_processes.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(out)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    return [torch.load(out / f"robust-{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_weights_statistics_and_losses_are_those_of_one_process(
    two: list[dict[str, Any]], case: str
) -> None:
    expected = trained(ALONE, CASES[case])
    for name, value in expected["state"].items():
        torch.testing.assert_close(two[0][case]["state"][name], value, rtol=1e-9, atol=1e-11)
    assert two[0][case]["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert [name for name in expected["losses"] if name.startswith("robust_")]
    for name, value in two[0][case]["state"].items():
        assert torch.equal(two[1][case]["state"][name], value)
