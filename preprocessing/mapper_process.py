"""VTK's volume mapper, run in a child process of its own.

Where no OpenGL library is found, or a driver fails, VTK ends the process it runs in instead of
raising. Here that is the child's process, and this one raises with what to install.
"""

import json
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from preprocessing.errors import ProjectionError
from preprocessing.rays import RayGrid, ray_grid

SCRIPT = Path(__file__).with_name("vtk_mapper.py")
PROBE_TIMEOUT_S = 60.0
RENDER_TIMEOUT_S = 600.0
STEPS_PER_VOXEL = 2
"""The mapper's samples per smallest in-plane spacing: a voxel's peak is at most 1/4 away."""


@cache
def mapper_available() -> tuple[bool, str]:
    """Return whether VTK's volume mapper can draw here, and if not, why and what to install.

    Without an OpenGL library VTK ends the process instead of raising, so the question is put to a
    child process, once.
    """
    point = np.zeros((3, 3, 3), dtype=np.float32)
    point[1, 1, 1] = 1.0
    grid = ray_grid(point.shape, (1.0, 1.0, 1.0), 0.0)
    try:
        picture = render_in_child(point, (1.0, 1.0, 1.0), grid, timeout_s=PROBE_TIMEOUT_S)
    except ProjectionError as error:
        return False, str(error)
    if np.unravel_index(picture.argmax(), picture.shape) != (1, 1) or picture[1, 1] < 0.5:
        return False, _unavailable("it draws a wrong picture")
    return True, "VTK's volume mapper draws off-screen"


def render_in_child(
    voxels: Float32[np.ndarray, "z y x"],
    spacing_mm: tuple[float, float, float],
    grid: RayGrid,
    *,
    timeout_s: float = RENDER_TIMEOUT_S,
) -> Float32[np.ndarray, "z column"]:
    """Draw with VTK's volume mapper in a process of its own, which may die without harm."""
    scene = {
        "shape": voxels.shape,
        "spacing_mm": spacing_mm,
        "cosine": grid.cosine,
        "sine": grid.sine,
        "columns": grid.columns,
        "column_spacing_mm": grid.column_spacing_mm,
        "step_mm": min(spacing_mm[1:]) / STEPS_PER_VOXEL,
    }
    try:
        child = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), json.dumps(scene)],
            input=np.ascontiguousarray(voxels).data.cast("B"),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = _unavailable(f"it gave no picture within {timeout_s:g} s")
        raise ProjectionError("MAPPER_UNAVAILABLE", reason) from None
    size = len(voxels) * grid.columns
    if child.returncode != 0 or len(child.stdout) != size * np.dtype(np.float32).itemsize:
        reason = _unavailable(_ending(child.returncode))
        raise ProjectionError("MAPPER_UNAVAILABLE", reason)
    return np.frombuffer(child.stdout, np.float32).reshape(len(voxels), grid.columns)


def _ending(returncode: int) -> str:
    if returncode < 0:
        return f"VTK ended its process with {signal.Signals(-returncode).name}"
    return f"VTK ended its process with exit code {returncode}"


def _unavailable(reason: str) -> str:
    return (
        f"VTK's volume mapper cannot draw on this machine: {reason}. It needs an OpenGL library: "
        "install EGL (Debian and Ubuntu: libegl1 libgl1-mesa-dri) or OSMesa (libosmesa6), "
        "or use --projector vtk, which needs none"
    )
