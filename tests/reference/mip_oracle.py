"""Projections by the definition, one ray and one plane at a time, in patient millimetres.

Independent of the production code: rays are lines, planes are met by solving for the line's
parameter, and values between two voxels are weighed by hand.
"""

import math

import numpy as np

from preprocessing.records import Volume


def right_angle_maximum(volume: Volume, azimuth_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and depth at 0, 90, 180 or 270 degrees with numpy's own maximum, ray by ray."""
    voxels = volume.voxels
    nz, ny, nx = voxels.shape
    lines = {
        0: [[(y, x) for y in range(ny)] for x in range(nx)],
        90: [[(y, x) for x in reversed(range(nx))] for y in range(ny)],
        180: [[(y, x) for y in reversed(range(ny))] for x in reversed(range(nx))],
        270: [[(y, x) for x in range(nx)] for y in reversed(range(ny))],
    }[int(azimuth_deg)]
    pixels = np.zeros((nz, len(lines)), np.float32)
    depth = np.zeros((nz, len(lines)), np.int32)
    for row, z in enumerate(reversed(range(nz))):
        for column, line in enumerate(lines):
            y, x = max(line, key=lambda place: voxels[z, *place])  # the first of equals
            pixels[row, column] = voxels[z, y, x]
            depth[row, column] = (z * ny + y) * nx + x
    return pixels, depth


def expected_column(volume: Volume, voxel: tuple[int, int, int], azimuth_deg: float) -> float:
    """Where a voxel's centre lies across the picture, in millimetres to the right of its middle."""
    _, ny, nx = volume.voxels.shape
    _, dy, dx = volume.spacing_mm
    angle = math.radians(azimuth_deg)
    left = (voxel[2] - (nx - 1) / 2) * dx
    posterior = (voxel[1] - (ny - 1) / 2) * dy
    return left * math.cos(angle) + posterior * math.sin(angle)


def oblique_maximum(volume: Volume, azimuth_deg: float) -> np.ndarray:
    """Pixels at any angle: the largest value where a ray crosses planes of voxel centres."""
    voxels = volume.voxels
    nz, ny, nx = voxels.shape
    _, dy, dx = volume.spacing_mm
    angle = math.radians(azimuth_deg)
    right = np.array([math.cos(angle), math.sin(angle)])
    ahead = np.array([-math.sin(angle), math.cos(angle)])
    spacing = math.hypot(dx * right[0], dy * right[1])
    columns = math.ceil((abs(nx * dx * right[0]) + abs(ny * dy * right[1])) / spacing - 1e-6)
    steps_through_y = abs(ahead[1]) / dy >= abs(ahead[0]) / dx * (1 - 1e-6)
    pixels = np.zeros((nz, columns))
    for column in range(columns):
        start = (column - (columns - 1) / 2) * spacing * right
        for row, z in enumerate(reversed(range(nz))):
            crossings = []
            for plane in range(ny if steps_through_y else nx):
                axis, count, step = (1, ny, dy) if steps_through_y else (0, nx, dx)
                along = ((plane - (count - 1) / 2) * step - start[axis]) / ahead[axis]
                place = start + along * ahead
                if steps_through_y:
                    line, position = voxels[z, plane], place[0] / dx + (nx - 1) / 2
                    reach = spacing / abs(right[0]) / dx / 2
                else:
                    line, position = voxels[z, :, plane], place[1] / dy + (ny - 1) / 2
                    reach = spacing / abs(right[1]) / dy / 2
                if -reach - 1e-6 <= position <= len(line) - 1 + reach + 1e-6:
                    crossings.append(np.interp(position, np.arange(len(line)), line))
            pixels[row, column] = max(crossings, default=0.0)
    return pixels
