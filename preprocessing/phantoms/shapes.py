"""Analytic solids painted onto a voxel grid: a voxel belongs to a solid if its centre does.

Coordinates are patient LPS in millimetres, written (x, y, z): +x to the patient's left, +y to
posterior, +z to the head. Arrays of voxels are indexed z, y, x.
"""

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

Number = float | int
"""Written out because type checking at run time takes no int for a float."""
Point = tuple[Number, Number, Number]
"""x, y, z in millimetres."""
_Box = tuple[Point, Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Voxel centres at ``origin_mm + index * spacing_mm``.

    Attributes
    ----------
    shape
        Number of voxels along z, y, x.
    spacing_mm
        Distance between voxel centres along z, y, x.
    origin_mm
        Centre of voxel (0, 0, 0) as x, y, z.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: Point

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def affine(self) -> Float64[np.ndarray, "4 4"]:
        """Map from the index vector (x, y, z, 1) to LPS millimetres."""
        affine = np.diag([*self.spacing_mm[::-1], 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def axis(self, axis: int, indices: slice = slice(None)) -> Float64[np.ndarray, " n"]:
        """Coordinates of the voxel centres along array axis 0 (z), 1 (y) or 2 (x)."""
        index = np.arange(self.shape[axis])[indices]
        return self.origin_mm[2 - axis] + index * self.spacing_mm[axis]

    def box(self, lower: Point, upper: Point) -> tuple[slice, slice, slice]:
        """Return the slices along z, y, x that hold every centre between two corners."""
        slices = []
        for axis, (count, step) in enumerate(zip(self.shape, self.spacing_mm, strict=True)):
            origin = self.origin_mm[2 - axis]
            first = int(np.ceil((lower[2 - axis] - origin) / step))
            last = int(np.floor((upper[2 - axis] - origin) / step))
            slices.append(slice(min(max(first, 0), count), min(max(last + 1, 0), count)))
        return slices[0], slices[1], slices[2]


@runtime_checkable
class Shape(Protocol):
    """A solid that knows where it is."""

    def bounds(self) -> tuple[Point, Point]:
        """Return the corners (lowest and highest x, y, z) of a box around the solid."""
        ...

    def contains(
        self,
        z: Float[np.ndarray, "z 1 1"],
        y: Float[np.ndarray, "1 y 1"],
        x: Float[np.ndarray, "1 1 x"],
    ) -> Bool[np.ndarray, "z y x"]:
        """Tell which of the points lie inside or on the surface."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ellipsoid:
    """An ellipsoid, turned in the coronal plane.

    Attributes
    ----------
    tilt_deg
        Rotation about the y axis; positive moves the upper end towards the patient's left.
    """

    centre: Point
    radii: Point
    tilt_deg: Number = 0.0

    def bounds(self) -> tuple[Point, Point]:
        """Return the corners of the tightest box."""
        sine, cosine = _sine_cosine(self.tilt_deg)
        rx, ry, rz = self.radii
        reach = (math.hypot(rx * cosine, rz * sine), ry, math.hypot(rx * sine, rz * cosine))
        return _around(self.centre, self.centre, reach, reach)

    def contains(
        self,
        z: Float[np.ndarray, "z 1 1"],
        y: Float[np.ndarray, "1 y 1"],
        x: Float[np.ndarray, "1 1 x"],
    ) -> Bool[np.ndarray, "z y x"]:
        """Tell which of the points lie inside or on the surface."""
        sine, cosine = _sine_cosine(self.tilt_deg)
        (cx, cy, cz), (rx, ry, rz) = self.centre, self.radii
        across = ((x - cx) * cosine - (z - cz) * sine) / rx
        along = ((x - cx) * sine + (z - cz) * cosine) / rz
        return across**2 + along**2 <= 1.0 - ((y - cy) / ry) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Capsule:
    """All points within a radius of a line segment; the radius changes linearly along it."""

    start: Point
    end: Point
    start_radius: Number
    end_radius: Number

    def bounds(self) -> tuple[Point, Point]:
        """Return the corners of the tightest box."""
        first, second = self.start_radius, self.end_radius
        return _around(self.start, self.end, (first, first, first), (second, second, second))

    def contains(
        self,
        z: Float[np.ndarray, "z 1 1"],
        y: Float[np.ndarray, "1 y 1"],
        x: Float[np.ndarray, "1 1 x"],
    ) -> Bool[np.ndarray, "z y x"]:
        """Tell which of the points lie inside or on the surface."""
        (sx, sy, sz), direction = self.start, np.subtract(self.end, self.start)
        dx, dy, dz = direction
        along = (x - sx) * dx + (y - sy) * dy + (z - sz) * dz
        share = np.clip(along / max(float(direction @ direction), 1e-12), 0.0, 1.0)
        radius = self.start_radius + share * (self.end_radius - self.start_radius)
        squared = (x - sx - share * dx) ** 2 + (y - sy - share * dy) ** 2
        return squared + (z - sz - share * dz) ** 2 <= radius**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tube:
    """A stack of ellipses: limbs, trunk and long muscles.

    Attributes
    ----------
    z
        Heights of the knots, ascending; between them everything changes linearly.
    x, y
        Centre of the ellipse at each knot.
    a, b
        Its semi-axes along x and y.
    """

    z: Sequence[Number]
    x: Sequence[Number]
    y: Sequence[Number]
    a: Sequence[Number]
    b: Sequence[Number]

    def bounds(self) -> tuple[Point, Point]:
        """Return the corners of the tightest box."""
        x, y, a, b = (np.asarray(knots) for knots in (self.x, self.y, self.a, self.b))
        lower = (float(np.min(x - a)), float(np.min(y - b)), self.z[0])
        return lower, (float(np.max(x + a)), float(np.max(y + b)), self.z[-1])

    def contains(
        self,
        z: Float[np.ndarray, "z 1 1"],
        y: Float[np.ndarray, "1 y 1"],
        x: Float[np.ndarray, "1 1 x"],
    ) -> Bool[np.ndarray, "z y x"]:
        """Tell which of the points lie inside or on the surface."""
        cx, cy, a, b = (np.interp(z, self.z, knots) for knots in (self.x, self.y, self.a, self.b))
        inside = ((x - cx) / a) ** 2 <= 1.0 - ((y - cy) / b) ** 2
        return inside & (z >= self.z[0]) & (z <= self.z[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A solid and the region it belongs to; later parts cover earlier ones."""

    region: str
    shape: Shape


AIR = "air"


def paint_parts(
    parts: Iterable[Part], *, grid: Grid, outline: Set[str]
) -> tuple[tuple[str, ...], UInt8[np.ndarray, "z y x"]]:
    """Paint parts in their order.

    Only regions named in ``outline`` may grow into the air, so that no organ reaches out of the
    body. Returns the regions' names, ``AIR`` first, and each voxel's index into them.
    """
    names = [AIR]
    regions = np.zeros(grid.shape, dtype=np.uint8)
    for part in parts:
        if part.region not in names:
            names.append(part.region)
        number, within = names.index(part.region), part.region not in outline
        paint(regions, part.shape, grid=grid, number=number, within=within)
    return tuple(names), regions


def paint(
    regions: UInt8[np.ndarray, "z y x"], shape: Shape, *, grid: Grid, number: int, within: bool
) -> None:
    """Write a region's number into the voxels of a solid, in place.

    ``within`` leaves the voxels that are still 0 (air) alone: organs never reach out of the body.
    """
    box = grid.box(*shape.bounds())
    z, y, x = (grid.axis(axis, indices) for axis, indices in enumerate(box))
    inside = shape.contains(z[:, None, None], y[None, :, None], x[None, None, :])
    view = regions[box]
    if within:
        inside &= view > 0
    view[inside] = number


def _sine_cosine(degrees: Number) -> tuple[float, float]:
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees))


def _around(first: Point, second: Point, first_reach: Point, second_reach: Point) -> _Box:
    start, end = np.asarray(first), np.asarray(second)
    lower = np.minimum(start - first_reach, end - second_reach)
    upper = np.maximum(start + first_reach, end + second_reach)
    return _point(lower), _point(upper)


def _point(values: Float[np.ndarray, "3"]) -> Point:
    x, y, z = values.tolist()
    return x, y, z
