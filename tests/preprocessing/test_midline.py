import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from preprocessing.errors import GeometryError
from preprocessing.midline import CutLine, Midplane, estimate
from preprocessing.phantoms.brats18 import Brats18Options, PhantomHead, draw_cohort, scan_head

PIXELS = 2.0
"""What the cut may be off, at 1 mm."""
COARSE = Brats18Options(spacing_mm=2.0, matrix=120, slices=78)


def brain_of(scan: PhantomHead) -> np.ndarray:
    return np.any([picture != 0 for picture in scan.pictures.values()], axis=0)


def furthest(found: Midplane, true: tuple[float, float, float], brain: np.ndarray) -> float:
    """Largest distance, in columns, of two planes in any row of any slice with brain."""
    z, y = np.nonzero(brain.any(axis=2))
    offset, per_row, per_slice = true
    apart = found.offset + found.per_row * y + found.per_slice * z
    return float(np.abs(apart - (offset + per_row * y + per_slice * z)).max())


def estimated(scan: PhantomHead, spacing: float) -> Midplane:
    return estimate(list(scan.pictures.values()), brain_of(scan), spacing_mm=(spacing,) * 3)


def ellipsoid(tilt: float, axes=(68.0, 84.0, 62.0), *, tumour=True, shape=(78, 120, 120)):
    """A featureless brain of 2 mm voxels, tilted about two axes; a third of one half is tumour."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    b, c = np.tan(np.radians(tilt)), -np.tan(np.radians(tilt / 2))
    across = np.array([1, -b, -c]) / np.linalg.norm([1, b, c])
    along = np.array([0, 1, 0]) - across * across[1]
    along /= np.linalg.norm(along)
    centre = np.array([58.0, 61, 38])
    places = 2 * (np.stack([x, y, z], axis=-1) - centre)
    u, v, w = places @ across, places @ along, places @ np.cross(across, along)
    brain = (u / axes[0]) ** 2 + (v / axes[1]) ** 2 + (w / axes[2]) ** 2 < 1
    noise = np.random.default_rng(0).normal(300, 20, (4, *shape))
    pictures = np.where(brain, noise, 0)
    if tumour:
        pictures[:, ((u - 34) / 28) ** 2 + (v / 46) ** 2 + (w / 42) ** 2 < 1] *= 2.5
    plane = (centre[0] - b * centre[1] - c * centre[2], b, c)
    return list(np.where(brain, pictures, 0).astype(np.int16)), brain, plane


@pytest.mark.slow
def test_on_heads_with_a_known_plane_19_of_20_cuts_are_within_two_pixels():
    apart, shares = [], []
    for drawn in draw_cohort(24, seed=11):
        scan = scan_head(drawn, seed=11)
        brain = brain_of(scan)
        apart.append(furthest(estimated(scan, 1.0), scan.plane, brain))
        shares.append(2 * np.count_nonzero(scan.truth.labels) / np.count_nonzero(brain))
    assert np.mean(np.array(apart) <= PIXELS) >= 0.95
    assert np.median(apart) < 0.75
    assert max(shares) > 0.3  # the cohort holds what is asked for


@pytest.mark.parametrize("tilt", [-15, -6, 0, 4, 12])
@pytest.mark.parametrize("tumour", [False, True])
def test_a_tumour_in_a_featureless_brain_does_not_pull(tilt, tumour):
    pictures, brain, plane = ellipsoid(tilt, tumour=tumour)
    found = estimate(pictures, brain, spacing_mm=(2.0, 2.0, 2.0))
    assert furthest(found, plane, brain) <= PIXELS / 2  # voxels of 2 mm
    assert found.symmetry > 0.95


def test_a_round_head_without_features_is_cut_upright():
    pictures, brain, plane = ellipsoid(0, axes=(66.0, 66.0, 66.0))
    found = estimate(pictures, brain, spacing_mm=(2.0, 2.0, 2.0))
    assert furthest(found, plane, brain) <= PIXELS / 2


@pytest.fixture(scope="module")
def head() -> PhantomHead:
    return scan_head(draw_cohort(8, seed=4)[2], seed=4, options=COARSE)


def test_a_mirrored_head_has_the_mirrored_plane(head):
    brain = brain_of(head)
    mirrored = [picture[:, :, ::-1] for picture in head.pictures.values()]
    found = estimate(mirrored, brain[:, :, ::-1], spacing_mm=(2.0, 2.0, 2.0))
    there = estimated(head, 2.0)
    expected = (brain.shape[2] - 1 - there.offset, -there.per_row, -there.per_slice)
    assert furthest(found, expected, brain) < 0.75


def test_voxels_need_not_be_cubes(head):
    thick = [picture[::2] for picture in head.pictures.values()]
    found = estimate(thick, brain_of(head)[::2], spacing_mm=(4.0, 2.0, 2.0))
    offset, per_row, per_slice = head.plane
    assert furthest(found, (offset, per_row, 2 * per_slice), brain_of(head)[::2]) < PIXELS / 2


def test_the_place_in_the_grid_does_not_matter(head):
    shift = (5, -7, 9)
    moved = [np.roll(picture, shift, axis=(0, 1, 2)) for picture in head.pictures.values()]
    found = estimate(moved, np.roll(brain_of(head), shift, (0, 1, 2)), spacing_mm=(2.0,) * 3)
    there = estimated(head, 2.0)
    assert (found.per_row, found.per_slice) == (there.per_row, there.per_slice)
    moved_offset = there.offset + 9 + 7 * there.per_row - 5 * there.per_slice
    assert found.offset == pytest.approx(moved_offset, abs=2e-3)


def test_the_segmentation_is_not_asked_and_the_answer_is_repeatable(head):
    assert estimated(head, 2.0) == estimated(head, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [-7, 5])
def test_a_real_head_turned_has_the_turned_plane(degrees, reference_data):
    import nibabel

    folder = reference_data / "brats_style" / "TCGA-DU-7294"
    volumes = [
        np.asarray(nibabel.load(folder / f"TCGA-DU-7294_{kind}.nii.gz").dataobj).transpose(2, 1, 0)
        for kind in ("t1", "t1ce", "t2", "flair")
    ]
    angle = np.radians(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centre = np.array([77.0, 120, 120])
    turned = [
        affine_transform(volume, turn, offset=centre - turn @ centre, order=0) for volume in volumes
    ]
    there, found = (
        estimate(
            pictures,
            np.any([picture != 0 for picture in pictures], axis=0),
            spacing_mm=(1.0, 1.0, 1.0),
        )
        for pictures in (volumes, turned)
    )
    normal = np.array([-there.per_slice, -there.per_row, 1.0])
    offset = there.offset - normal @ (centre - turn @ centre)
    normal = turn.T @ normal
    expected = (offset / normal[2], -normal[1] / normal[2], -normal[0] / normal[2])
    assert furthest(found, expected, turned[0] != 0) <= PIXELS


@given(
    offset=st.floats(-50, 300),
    row=st.floats(-0.6, 0.6),
    slope=st.floats(-0.6, 0.6),
    z=st.integers(0, 155),
)
@settings(deadline=None)
def test_a_slice_of_the_plane_is_the_line_in_it(offset, row, slope, z):
    plane = Midplane(offset=offset, per_row=row, per_slice=slope, symmetry=1.0)
    assert plane.line(z) == CutLine(offset + slope * z, row)


class TestRefusals:
    def refused(self, brain, match, pictures=None):
        pictures = [brain.astype(np.int16)] * 4 if pictures is None else pictures
        with pytest.raises(GeometryError, match=match) as caught:
            estimate(pictures, brain, spacing_mm=(2.0, 2.0, 2.0))
        assert caught.value.code == "NO_MIDLINE"

    def test_nothing(self):
        self.refused(np.zeros((20, 20, 20), bool), "every voxel is zero")

    def test_too_little(self):
        brain = np.zeros((40, 40, 40), bool)
        brain[10:16, 10:16, 10:16] = True
        self.refused(brain, "too little of it")

    def test_half_a_brain_that_resembles_no_mirror_image(self):
        z, y, x = np.meshgrid(*[np.arange(60)] * 3, indexing="ij")
        corner = (x + y + z < 60) & (y < 2 * x + 5)
        spiral = corner & (np.sin(0.2 * x + 0.1 * y * np.cos(0.1 * z)) > -0.2)
        brain = spiral | ((x > 40) & (y > 45) & (z > 40))
        self.refused(brain, "covers only|no upright plane")
