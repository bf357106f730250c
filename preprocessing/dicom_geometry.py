"""Where the slices of a series lie in the patient, and whether they form one regular volume.

Works for any modality. Slices are ordered by their position along the normal of the slice plane
(``ImagePositionPatient``, ``ImageOrientationPatient``), never by number, time or file name. Index
axes are ``k r c``: slice, row, column as stored; patient axes are LPS in millimetres.

References
----------
DICOM PS3.3 C.7.6.2.1.1 (Image Plane Module, equation C.7.6.2.1-1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from preprocessing.dicom_file import Instance
from preprocessing.dicom_values import attribute_name, tag_of
from preprocessing.errors import GeometryError
from preprocessing.raw_elements import decimals, whole

MIN_SLICES = 3
"""Two gaps at least, or nothing can be said of regularity."""
SPACING_TOLERANCE_MM = 0.05
SPACING_TOLERANCE = 0.01
"""A slice may lie off the regular grid by the larger of both (the second is a share of the
spacing): vendors round positions, and the joints of beds differ by hundredths of a millimetre."""
ROUNDED_MM = 0.01
"""How far slices may lie off the regular grid without a note: headers round their decimals."""
GAP = 1.5
"""Distance between neighbours, in median spacings, from which a slice is missing."""
SHEAR_DEG = 0.5
ALIGNED_DEG = 0.1
"""Below it, 0.5 mm at the edge of a 600 mm field of view, axes count as the patient's own."""
UNIT_TOLERANCE = 1e-3
JUMP_TOLERANCE_MM = 0.5
"""How far a slice may lie beside the line through the others."""
SAME_POSITION_MM = 0.01
LARGEST_MM = 1e5
"""No scanner places or sizes anything beyond a hundred metres."""

POSITION = tag_of("ImagePositionPatient")
ORIENTATION = tag_of("ImageOrientationPatient")
PIXEL_SPACING = tag_of("PixelSpacing")
ROWS = tag_of("Rows")
COLUMNS = tag_of("Columns")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SliceGeometry:
    """A regular stack of slices.

    Attributes
    ----------
    order
        Index of each given instance, along the normal that points to the patient's left, back or
        head (whichever is nearest).
    slots
        Place of each ordered instance in the volume; places without one are missing slices to fill.
    shape
        Slices, rows and columns, missing slices included.
    spacing_mm
        Along slices, rows and columns.
    directions
        Unit vectors, one per row, in which the slice, row and column index grow.
    origin_mm
        Centre of the first voxel.
    notes
        What was mended, each text beginning with its code.
    """

    order: tuple[int, ...]
    slots: tuple[int, ...]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    directions: Float64[np.ndarray, "3 3"]
    origin_mm: Float64[np.ndarray, "3"]
    notes: tuple[str, ...]

    @property
    def axes(self) -> tuple[int, int, int]:
        """Patient axis (0 x, 1 y, 2 z) nearest to the slice, row and column direction."""
        size = np.abs(self.directions)
        k = int(size[0].argmax())
        others = [axis for axis in range(3) if axis != k]
        straight = size[1, others[0]] + size[2, others[1]]
        crossed = size[1, others[1]] + size[2, others[0]]
        r, c = others if straight >= crossed else reversed(others)
        return k, r, c

    @property
    def signs(self) -> tuple[int, int, int]:
        """1 where an index grows along its patient axis, -1 where against it."""
        return tuple(1 if self.directions[i, a] > 0 else -1 for i, a in enumerate(self.axes))  # type: ignore[return-value]

    @property
    def is_aligned(self) -> bool:
        """Whether the index axes are the patient's, so that no resampling is needed."""
        nearest = [abs(self.directions[i, a]) for i, a in enumerate(self.axes)]
        return bool(min(nearest) >= np.cos(np.radians(ALIGNED_DEG)))

    @property
    def lps_origin_mm(self) -> Float64[np.ndarray, "3"]:
        """Centre of the voxel that comes first along all three patient axes."""
        origin = self.origin_mm.copy()
        for i, sign in enumerate(self.signs):
            if sign < 0:
                origin += self.directions[i] * self.spacing_mm[i] * (self.shape[i] - 1)
        return origin

    @property
    def lps_directions(self) -> Float64[np.ndarray, "3 3"]:
        """Directions of the volume's x, y and z index as columns; the identity where aligned."""
        if self.is_aligned:
            return np.eye(3)
        columns = np.empty((3, 3))
        for i, (axis, sign) in enumerate(zip(self.axes, self.signs, strict=True)):
            columns[:, axis] = sign * self.directions[i]
        return columns

    @property
    def lps_shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x, before any resampling."""
        by_axis = dict(zip(self.axes, self.shape, strict=True))
        return by_axis[2], by_axis[1], by_axis[0]

    @property
    def lps_spacing_mm(self) -> tuple[float, float, float]:
        """Spacing along z, y, x."""
        by_axis = dict(zip(self.axes, self.spacing_mm, strict=True))
        return by_axis[2], by_axis[1], by_axis[0]


def check_geometry(instances: Sequence[Instance], *, fill_gaps: int = 0) -> SliceGeometry:
    """Order slices along their normal and check that they form one regular volume.

    Parameters
    ----------
    instances
        One image each, in any order.
    fill_gaps
        Longest run of missing slices that is left as free ``slots`` instead of refused.

    Raises
    ------
    GeometryError
        ``TOO_FEW_SLICES``, ``POSITION_MISSING``, ``ORIENTATION_MISSING``, ``ORIENTATION_INVALID``,
        ``PIXEL_SPACING``, ``MIXED_ORIENTATION``, ``NOT_A_VOLUME``, ``GAP``, ``SPACING`` or
        ``SHEAR``.
    """
    if len(instances) < MIN_SLICES:
        raise GeometryError(
            "TOO_FEW_SLICES",
            f"{len(instances)} slices are no volume, {MIN_SLICES} at least are needed: was the "
            "export interrupted?",
        )
    row, column = _orientation(instances)
    normal = np.cross(row, column)
    normal *= np.sign(normal[np.abs(normal).argmax()])
    positions = positions_mm(instances)
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    positions, along = positions[order], along[order]
    if along[-1] - along[0] < SAME_POSITION_MM:
        raise GeometryError(
            "NOT_A_VOLUME",
            f"all {len(instances)} slices lie at one position along their normal: "
            f"{attribute_name(POSITION)} describes a time series or single pictures, no volume",
        )
    slots, notes = _slots(along, fill_gaps)
    spacing, start, regular_notes = _regular(along, slots)
    in_plane, shear_notes = _in_plane(positions, along, normal)
    rows_mm, columns_mm = _pixel_spacing(instances)
    return SliceGeometry(
        order=tuple(order.tolist()),
        slots=tuple(slots.tolist()),
        shape=(int(slots[-1]) + 1, *_picture_shape(instances)),
        spacing_mm=(spacing, rows_mm, columns_mm),
        directions=np.stack([normal, column, row]),
        origin_mm=in_plane + start * normal,
        notes=(*notes, *regular_notes, *shear_notes),
    )


def positions_mm(instances: Sequence[Instance]) -> Float64[np.ndarray, "slice 3"]:
    """Return the centre of each slice's first pixel.

    Raises
    ------
    GeometryError
        ``POSITION_MISSING`` where it is absent or not three numbers of a scanner's surroundings.
    """
    values = [decimals(instance.elements, POSITION) for instance in instances]
    if any(
        value is None or len(value) != 3 or max(map(abs, value)) > LARGEST_MM for value in values
    ):
        raise GeometryError(
            "POSITION_MISSING",
            f"{attribute_name(POSITION)} is absent or not three numbers within {LARGEST_MM:g} mm: "
            "a slice cannot be placed",
        )
    return np.array(values, dtype=np.float64)


def _orientation(
    instances: Sequence[Instance],
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Return the direction along a row (column index grows) and down a column."""
    known: dict[bytes, tuple[float, ...]] = {}
    for instance in instances:
        element = instance.elements.get(ORIENTATION)
        value = b"" if element is None else element.value or b""
        if value not in known:
            known[value] = _six(decimals(instance.elements, ORIENTATION))
    cosines = np.array(list(known.values()))
    if np.abs(cosines - cosines[0]).max() > UNIT_TOLERANCE:
        raise GeometryError(
            "MIXED_ORIENTATION",
            f"{attribute_name(ORIENTATION)} differs inside the series: these are several stacks, "
            "as of a localizer; export one of them",
        )
    row, column = cosines[0, :3], cosines[0, 3:]
    norms = np.linalg.norm(row), np.linalg.norm(column)
    if max(abs(norms[0] - 1), abs(norms[1] - 1), abs(row @ column)) > UNIT_TOLERANCE:
        raise GeometryError(
            "ORIENTATION_INVALID",
            f"{attribute_name(ORIENTATION)} holds vectors of length {norms[0]:.4g} and "
            f"{norms[1]:.4g} with the product {row @ column:.4g}, not two perpendicular unit "
            "vectors: the direction of the slices is unknown",
        )
    row = row / norms[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def _six(value: tuple[float, ...] | None) -> tuple[float, ...]:
    if value is None or len(value) != 6:
        raise GeometryError(
            "ORIENTATION_MISSING",
            f"{attribute_name(ORIENTATION)} is absent or not six numbers: left and right cannot be "
            "told apart, and PatientPosition (0018,5100) alone does not say it",
        )
    return value


def _pixel_spacing(instances: Sequence[Instance]) -> tuple[float, float]:
    value = decimals(instances[0].elements, PIXEL_SPACING)
    if value is None or len(value) != 2 or not 0 < min(value) <= max(value) <= LARGEST_MM:
        seen = "no list of numbers" if value is None else value
        raise GeometryError(
            "PIXEL_SPACING",
            f"{attribute_name(PIXEL_SPACING)} is {seen}, not two positive distances: the size of a "
            "pixel is unknown",
        )
    return value[0], value[1]


def _picture_shape(instances: Sequence[Instance]) -> tuple[int, int]:
    elements = instances[0].elements
    return whole(elements, ROWS) or 0, whole(elements, COLUMNS) or 0


def _slots(
    along: Float64[np.ndarray, " slice"], fill_gaps: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the place of each slice on the regular grid, leaving room for missing ones."""
    steps = np.diff(along)
    # The lower of two middle steps: of 3 slices with one missing the usual median is the mean.
    median = float(np.quantile(steps, 0.5, method="lower"))
    wide = steps > GAP * median
    if not wide.any():
        return np.arange(len(along)), ()
    missing = np.where(wide, np.rint(steps / max(median, SAME_POSITION_MM)).astype(int) - 1, 0)
    where = int(steps.argmax())
    if int(missing.max()) > fill_gaps:
        raise GeometryError(
            "GAP",
            f"{steps[where]:.4g} mm between slices {where + 1} and {where + 2} of {len(along)}, "
            f"the median is {median:.4g} mm: {int(missing.sum())} slice(s) are missing; export "
            f"again, or fill them by interpolation with --fill-gaps {int(missing.max())}",
        )
    slots = np.concatenate([[0], np.cumsum(1 + missing)])
    note = f"GAP_FILLED: {int(missing.sum())} missing slice(s) interpolated"
    return slots, (note,)


def _regular(
    along: Float64[np.ndarray, " slice"], slots: np.ndarray
) -> tuple[float, float, tuple[str, ...]]:
    """Return spacing and start of the regular grid that the slices lie on.

    The grid has the median spacing; where that drifts off over many slices, because positions are
    rounded, and the best straight line stays nearer to them, the spacing of that line.
    """
    steps = np.diff(along) / np.diff(slots)
    median = round(float(np.median(steps)), 6)  # differences of decimals are no decimals
    slope = float(np.polyfit(slots, along, 1)[0])
    tolerance = max(SPACING_TOLERANCE_MM, SPACING_TOLERANCE * median)
    off, spacing, start = _off_grid(along, slots, median)
    if off > ROUNDED_MM:
        off, spacing, start = min((off, spacing, start), _off_grid(along, slots, slope))
    if off <= tolerance:
        return spacing, start, _spacing_note(steps, spacing, off)
    raise GeometryError(
        "SPACING",
        f"slices are {steps.min():.4g} to {steps.max():.4g} mm apart and lie up to {off:.3g} mm "
        f"off a regular grid ({tolerance:.3g} mm are allowed): distances would be wrong",
    )


def _off_grid(
    along: Float64[np.ndarray, " slice"], slots: np.ndarray, spacing: float
) -> tuple[float, float, float]:
    """Return how far slices lie off the best grid of a spacing, the spacing, and its start."""
    from_grid = along - slots * spacing
    start = float(from_grid.max() + from_grid.min()) / 2
    return float(np.abs(from_grid - start).max()), spacing, start


def _spacing_note(
    steps: Float64[np.ndarray, " gap"], spacing: float, off: float
) -> tuple[str, ...]:
    if off <= ROUNDED_MM:
        return ()
    return (
        f"SPACING_REGULARISED: slices {steps.min():.4g} to {steps.max():.4g} mm apart taken as "
        f"{spacing:.4g} mm, at most {off:.3g} mm off",
    )


def _in_plane(
    positions: Float64[np.ndarray, "slice 3"],
    along: Float64[np.ndarray, " slice"],
    normal: Float64[np.ndarray, "3"],
) -> tuple[Float64[np.ndarray, "3"], tuple[str, ...]]:
    """Return where the first pixels lie across the normal, refusing a stack that leans or jumps."""
    across = positions - np.outer(along, normal)
    lean = np.polyfit(along - along.mean(), across, 1)[0]
    degrees = float(np.degrees(np.arctan(np.linalg.norm(lean))))
    if degrees > SHEAR_DEG:
        raise GeometryError(
            "SHEAR",
            f"the slices shift sideways by {degrees:.3g} degrees against their normal, as with a "
            "tilted gantry: the volume is no box; reconstruct without tilt",
        )
    centre = across.mean(axis=0)
    residual = across - centre - np.outer(along - along.mean(), lean)
    jump = float(np.linalg.norm(residual, axis=1).max())
    if jump > JUMP_TOLERANCE_MM:
        raise GeometryError(
            "SHEAR",
            f"a slice lies {jump:.3g} mm beside the others: {attribute_name(POSITION)} does not "
            "describe one stack",
        )
    shift = float(np.linalg.norm(lean) * (along[-1] - along[0]))
    if shift < SPACING_TOLERANCE_MM:
        return centre, ()
    return centre, (f"SHEAR_IGNORED: the slices shift sideways by {shift:.3g} mm from end to end",)
