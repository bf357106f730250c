"""VTK's volume mapper in an off-screen window: the child of ``preprocessing.mapper_process``.

Run as a script, because VTK ends the process where no OpenGL library is found. It needs numpy and
VTK only and imports nothing of this toolkit. In: the scene as a JSON argument, float32 voxels
("z y x", C order) on standard input. Out: float32 pixels ("z column", row 0 the lowest slice) on
standard output and nothing else there.

A window has 8 bits per channel. The value range is therefore cut into consecutive bands, each
mapped to one channel that rises from 0 to 1 within its band and stays there above it. Three bands
fit into a drawing, and the sum over all channels of all drawings is linear in the value.
"""

import json
import os
import resource
import sys
from typing import Any

import numpy as np
import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  registers what draws the window
from jaxtyping import Float32, Float64
from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
from vtkmodules.vtkCommonCore import vtkUnsignedCharArray
from vtkmodules.vtkCommonDataModel import vtkImageData, vtkPiecewiseFunction
from vtkmodules.vtkRenderingCore import (
    vtkColorTransferFunction,
    vtkRenderer,
    vtkRenderWindow,
    vtkVolume,
    vtkVolumeProperty,
)
from vtkmodules.vtkRenderingVolumeOpenGL2 import vtkSmartVolumeMapper

DRAWINGS = 6
"""Drawings per picture: 18 bands of 255 steps, 1/4590 of the value range each."""

CHANNELS = 3
FULL = 255.0


def render(
    voxels: Float32[np.ndarray, "z y x"], scene: dict[str, Any]
) -> Float32[np.ndarray, "z column"]:
    """Draw the maximum along the scene's rays; see ``preprocessing.rays.RayGrid`` for its terms."""
    low, high = float(voxels.min()), float(voxels.max())
    size = (len(voxels), scene["columns"])
    if low == high:
        return np.full(size, low, dtype=np.float32)
    padded = np.pad(voxels, 1, mode="edge")  # the mapper's box ends at the outer voxels' centres
    look = vtkVolumeProperty()
    look.SetInterpolationTypeToLinear()
    look.ShadeOff()
    opaque = vtkPiecewiseFunction()
    opaque.AddPoint(low, 1.0)
    opaque.AddPoint(high, 1.0)
    look.SetScalarOpacity(opaque)
    window = _window(_actor(_image(padded, scene), look, scene["step_mm"]), size, scene)
    share = np.zeros(size)
    edges = np.linspace(low, high, DRAWINGS * CHANNELS + 1)
    for first in range(0, DRAWINGS * CHANNELS, CHANNELS):
        look.SetColor(_ramps(edges, first))
        window.Render()
        share += _channel_sum(window, size)
    return (low + share * (edges[1] - edges[0])).astype(np.float32)


def _image(padded: Float32[np.ndarray, "z y x"], scene: dict[str, Any]) -> vtkImageData:
    """Centre the volume; slices as far apart as columns, so that a window's pixels are square.

    Rays stay within a slice, so the distance between slices does not change what they meet.
    """
    nz, ny, nx = padded.shape
    _, dy, dx = scene["spacing_mm"]
    spacing = np.array([dx, dy, scene["column_spacing_mm"]])
    image = vtkImageData()
    image.SetDimensions(nx, ny, nz)
    image.SetSpacing(*spacing)
    image.SetOrigin(*(-(np.array([nx, ny, nz]) - 1) / 2 * spacing))
    image.GetPointData().SetScalars(numpy_to_vtk(padded.reshape(-1)))
    return image


def _actor(image: vtkImageData, look: vtkVolumeProperty, step_mm: float) -> vtkVolume:
    mapper = vtkSmartVolumeMapper()
    mapper.SetInputData(image)
    mapper.SetBlendModeToMaximumIntensity()
    mapper.SetAutoAdjustSampleDistances(0)
    mapper.SetInteractiveAdjustSampleDistances(0)
    mapper.SetSampleDistance(step_mm)
    actor = vtkVolume()
    actor.SetMapper(mapper)
    actor.SetProperty(look)
    return actor


def _window(actor: vtkVolume, size: tuple[int, int], scene: dict[str, Any]) -> vtkRenderWindow:
    rows, columns = size
    window = vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(columns, rows)
    renderer = vtkRenderer()
    renderer.AddVolume(actor)
    window.AddRenderer(renderer)
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()
    camera.SetParallelScale(rows * scene["column_spacing_mm"] / 2)
    distance = actor.GetLength()
    camera.SetFocalPoint(0, 0, 0)
    camera.SetPosition(distance * scene["sine"], -distance * scene["cosine"], 0)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCameraClippingRange()
    return window


def _ramps(edges: Float64[np.ndarray, " edge"], first: int) -> vtkColorTransferFunction:
    """Map bands ``first`` to ``first + 2`` to red, green and blue."""
    colours = vtkColorTransferFunction()
    colours.AddRGBPoint(edges[0], 0, 0, 0)
    colours.AddRGBPoint(edges[-1], 1, 1, 1)
    for band, colour in enumerate([(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)], start=first):
        colours.AddRGBPoint(edges[band], *colour)
    return colours


def _channel_sum(
    window: vtkRenderWindow, size: tuple[int, int]
) -> Float64[np.ndarray, "row column"]:
    rows, columns = size
    channels = vtkUnsignedCharArray()
    window.GetPixelData(0, 0, columns - 1, rows - 1, 0, channels, 0)
    colours = vtk_to_numpy(channels).reshape(rows, columns, CHANNELS)
    return colours.sum(axis=2) / FULL


def main() -> None:
    """Answer one scene; whatever VTK prints goes to standard error.

    A crash leaves no core file, which would hold the voxels.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer = os.dup(1)
    os.dup2(2, 1)
    scene = json.loads(sys.argv[1])
    voxels = np.frombuffer(sys.stdin.buffer.read(), np.float32).reshape(scene["shape"])
    with os.fdopen(answer, "wb") as stream:
        stream.write(render(voxels, scene).tobytes())


if __name__ == "__main__":
    main()
