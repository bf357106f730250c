"""What a run asks of torch: reproducible numbers, threads, a compiler."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipelines.errors import UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Settings under which cuBLAS repeats to the bit (NVIDIA, cuBLAS Library, section 2.1.4)."""


@contextmanager
def threads_for(count: int) -> Iterator[None]:
    """Let torch compute with so many threads; give back as many as there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def reproducible(seed: int, device: torch.device, *, deterministic: bool) -> Iterator[None]:
    """Seed torch and choose its kernels; give everything back as it was.

    Without ``deterministic`` CUDA takes the fastest kernels that it finds by trying them.

    Raises
    ------
    UsageError
        ``CUBLAS_WORKSPACE`` where cuBLAS cannot repeat: it reads its setting once, when the process
        starts to use CUDA.
    """
    if deterministic and device.type == "cuda" and os.environ.get(WORKSPACE) not in WORKSPACES:
        raise UsageError(
            "CUBLAS_WORKSPACE",
            f"deterministic=true on CUDA needs the environment variable {WORKSPACE}, which is "
            f"{os.environ.get(WORKSPACE) or 'not set'}: start the command with "
            f"{WORKSPACE}={WORKSPACES[0]} before it",
        )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _kernels(deterministic):
        torch.manual_seed(seed)
        yield


@contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    strict = torch.are_deterministic_algorithms_enabled()
    cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
    torch.use_deterministic_algorithms(deterministic or strict)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.use_deterministic_algorithms(strict)


def refuse_no_compiler(device: torch.device) -> None:
    """Refuse ``compile`` where ``torch.compile`` would find nothing to compile with.

    Raises
    ------
    UsageError
        ``NO_COMPILER``.
    """
    missing = _missing_compiler(device)
    if missing:
        raise UsageError(
            "NO_COMPILER",
            f"compile=true needs {missing}, which is not there: install it, or set compile=false",
        )


def _missing_compiler(device: torch.device) -> str:
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the Python package triton"
        found = any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "clang"))
        return "" if found else "a C compiler (gcc, clang, or the one that CC names)"
    found = shutil.which(os.environ.get("CXX", "g++"))
    return "" if found else "a C++ compiler (g++, or the one that CXX names)"
