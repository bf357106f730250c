import math
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import mapper_process, mip, rays
from preprocessing.errors import GeometryError, ProjectionError
from preprocessing.records import Unit, Volume
from tests.reference import mip_oracle

RIGHT_ANGLES = (0.0, 90.0, 180.0, 270.0)
AROUND = tuple(15.0 * step for step in range(24))


def volume_of(
    voxels: np.ndarray,
    spacing_mm: tuple[float, float, float] = (3.27, 2.7, 2.7),
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Volume:
    affine = np.diag([*spacing_mm[::-1], 1.0])
    affine[:3, 3] = origin_mm
    return Volume(
        voxels=np.asarray(voxels, np.float32), affine=affine, unit=Unit.SUVBW, subject_id="s"
    )


def point_volume(
    shape: tuple[int, int, int], voxel: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> Volume:
    voxels = np.zeros(shape, np.float32)
    voxels[voxel] = 5.0
    return volume_of(voxels, spacing_mm, origin_mm=(-412.0, 33.5, 1207.0))


lengths = st.integers(1, 9)
spacings = st.tuples(*[st.sampled_from([0.9765625, 2.0, 3.27, 5.46875])] * 3)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    shape = (draw(lengths), draw(lengths), draw(lengths))
    rng = np.random.default_rng(draw(seeds))
    coarse = rng.integers(-3, 9, shape).astype(np.float32)  # ties happen
    fine = rng.normal(2.0, 4.0, shape).astype(np.float32)
    return volume_of(
        draw(st.sampled_from([coarse, fine])),
        draw(spacings),
        draw(st.sampled_from([(0.0, 0.0, 0.0), (-349.3, -120.0, 800.25)])),
    )


class TestRightAngles:
    @given(volume=volumes(), azimuth=st.sampled_from(RIGHT_ANGLES))
    @settings(deadline=None)
    def test_is_numpys_maximum_and_its_first_place_from_the_viewer(
        self, volume: Volume, azimuth: float
    ) -> None:
        pixels, depth = mip_oracle.right_angle_maximum(volume, azimuth)
        projection = mip.project(volume, azimuth_deg=azimuth)
        np.testing.assert_array_equal(projection.pixels, pixels)
        np.testing.assert_array_equal(projection.depth, depth)

    @given(volume=volumes(), azimuth=st.sampled_from((*RIGHT_ANGLES, -90.0, 450.0)))
    @settings(deadline=None)
    def test_vtk_samples_the_very_voxels_that_are_read_directly(
        self, volume: Volume, azimuth: float
    ) -> None:
        direct = mip.project_exactly(volume, azimuth)
        sampled = mip.project_resliced(volume, azimuth)
        np.testing.assert_array_equal(sampled.pixels, direct.pixels)
        np.testing.assert_array_equal(sampled.depth, direct.depth)
        assert sampled.spacing_mm == direct.spacing_mm

    @pytest.mark.parametrize("shape", [(33, 128, 127), (34, 65, 200), (3, 300, 257)])
    @pytest.mark.parametrize(("azimuth", "axis"), [(0.0, 1), (90.0, 2)])
    def test_agrees_with_numpy_on_a_body_sized_slice(
        self, shape: tuple[int, int, int], azimuth: float, axis: int
    ) -> None:
        voxels = np.random.default_rng(3).gamma(1.0, 2.0, shape).astype(np.float32)
        volume = volume_of(voxels, (3.27, 4.07, 2.04), (-260.1, -100.0, -900.0))
        upright = voxels.max(axis=axis)[::-1]
        for projection in (
            mip.project(volume, azimuth_deg=azimuth),
            mip.project_resliced(volume, azimuth),
        ):
            np.testing.assert_allclose(projection.pixels, upright, rtol=0, atol=1e-4)

    def test_shows_the_patient_as_on_a_light_box(self) -> None:
        voxels = np.zeros((3, 4, 5), np.float32)
        voxels[2, 0, 4] = 7.0  # head, anterior, the patient's left
        volume = volume_of(voxels)
        front, from_left = mip.project(volume), mip.project(volume, azimuth_deg=90)
        assert np.argwhere(front.pixels).tolist() == [[0, 4]]
        assert np.argwhere(from_left.pixels).tolist() == [[0, 0]]
        assert front.spacing_mm == (3.27, 2.7)

    def test_spacing_across_is_that_of_the_axis_seen(self) -> None:
        volume = volume_of(np.ones((2, 3, 4)), (5.0, 3.0, 2.0))
        assert mip.project(volume).spacing_mm == (5.0, 2.0)
        assert mip.project(volume, azimuth_deg=90).spacing_mm == (5.0, 3.0)

    def test_works_slab_by_slab(self) -> None:
        volume = volume_of(np.random.default_rng(0).random((64, 96, 96)))
        tracemalloc.start()
        try:
            mip.project(volume)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < volume.voxels.nbytes / 2


class TestAnyAngle:
    @pytest.mark.parametrize("azimuth", [1.0, 27.3, 45.0, 88.9, 133.0, 201.7, 250.0, 300.1, -33.0])
    @pytest.mark.parametrize(
        ("shape", "spacing_mm"),
        [((3, 6, 7), (3.0, 2.0, 2.0)), ((2, 9, 4), (1.0, 1.5, 4.1)), ((1, 1, 5), (2.0, 5.0, 1.0))],
    )
    def test_is_the_largest_crossing_of_each_ray(
        self, azimuth: float, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
    ) -> None:
        voxels = np.random.default_rng(5).normal(1.0, 3.0, shape)
        volume = volume_of(voxels, spacing_mm, (10.0, -20.0, 30.0))
        expected = mip_oracle.oblique_maximum(volume, azimuth)
        np.testing.assert_allclose(
            mip.project(volume, azimuth_deg=azimuth).pixels, expected, rtol=0, atol=1e-4
        )

    @given(
        shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 30)),
        spacing_mm=spacings,
        seed=seeds,
    )
    @settings(deadline=None, max_examples=40)
    def test_a_point_lands_within_half_a_pixel_of_where_24_angles_say(
        self, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        voxel = tuple(int(rng.integers(n)) for n in shape)
        volume = point_volume(shape, voxel, spacing_mm)
        for azimuth in AROUND:
            projection = mip.project(volume, azimuth_deg=azimuth)
            row, column = np.unravel_index(projection.pixels.argmax(), projection.pixels.shape)
            assert row == shape[0] - 1 - voxel[0]
            middle = (projection.pixels.shape[1] - 1) / 2
            expected = mip_oracle.expected_column(volume, voxel, azimuth)
            assert abs(expected / projection.spacing_mm[1] + middle - column) <= 0.5 + 1e-6
            assert projection.depth[row, column] == np.ravel_multi_index(voxel, shape)

    @pytest.mark.parametrize("azimuth", AROUND)
    def test_back_projection_puts_the_maximum_at_its_voxel(self, azimuth: float) -> None:
        voxel, shape = (2, 11, 5), (4, 17, 13)
        volume = point_volume(shape, voxel, (4.0, 2.0, 3.0))
        projection = mip.project(volume, azimuth_deg=azimuth)
        back = mip.back_project(projection.pixels, projection.depth, shape)
        assert np.unravel_index(back.argmax(), shape) == voxel
        assert back.max() == projection.pixels.max()

    @pytest.mark.parametrize("azimuth", [30.0, 45.0, 100.0])
    def test_nothing_outside_the_volume_is_seen(self, azimuth: float) -> None:
        projection = mip.project(volume_of(np.full((2, 8, 20), -5.0)), azimuth_deg=azimuth)
        hit = projection.depth >= 0
        assert hit.any()
        np.testing.assert_allclose(projection.pixels[hit], -5.0, atol=1e-5)

    def test_a_ray_that_misses_holds_nothing(self) -> None:
        volume = volume_of(np.full((1, 1, 1), 4.0), (1.0, 1.0, 1.0))
        grid = replace(rays.ray_grid((1, 1, 1), (1.0, 1.0, 1.0), 0.0), columns=3, first=(-1.0, 0.0))
        (_, sampled), *_ = rays.resliced_slabs(volume, grid)
        assert sampled[0, :, 0].tolist() == [rays.OUTSIDE, 4.0, rays.OUTSIDE]

    def test_missing_rays_become_zero_without_a_voxel(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wide = replace(rays.ray_grid((2, 1, 1), (1.0, 1.0, 1.0), 0.0), columns=3, first=(-1.0, 0.0))
        monkeypatch.setattr(mip, "ray_grid", lambda *_: wide)
        projection = mip.project_resliced(volume_of(np.full((2, 1, 1), -4.0), (1.0, 1.0, 1.0)), 0.0)
        assert projection.pixels.tolist() == [[0.0, -4.0, 0.0]] * 2
        assert projection.depth.tolist() == [[-1, 1, -1], [-1, 0, -1]]

    def test_slab_size_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        volume = volume_of(np.random.default_rng(1).random((11, 8, 9)))
        whole = mip.project(volume, azimuth_deg=20)
        monkeypatch.setattr(rays, "SLAB_SAMPLES", 1)
        slice_by_slice = mip.project(volume, azimuth_deg=20)
        np.testing.assert_array_equal(slice_by_slice.pixels, whole.pixels)
        np.testing.assert_array_equal(slice_by_slice.depth, whole.depth)

    @given(volume=volumes(), azimuth=st.floats(-400, 400))
    @settings(deadline=None)
    def test_opposite_views_mirror_each_other(self, volume: Volume, azimuth: float) -> None:
        front = mip.project(volume, azimuth_deg=azimuth)
        back = mip.project(volume, azimuth_deg=azimuth + 180)
        np.testing.assert_allclose(back.pixels[:, ::-1], front.pixels, rtol=0, atol=1e-3)

    @given(seed=seeds, azimuth=st.sampled_from([12.0, 45.0, 71.0]))
    @settings(deadline=None, max_examples=20)
    def test_turning_the_patient_is_turning_the_viewer(self, seed: int, azimuth: float) -> None:
        voxels = np.random.default_rng(seed).random((2, 7, 10)).astype(np.float32)
        # a quarter turn that brings the patient's left (high x) to the front (low y)
        turned = np.rot90(voxels, k=1, axes=(1, 2))
        expected = mip.project(volume_of(voxels, (1.0, 2.0, 3.0)), azimuth_deg=azimuth + 90)
        seen = mip.project(volume_of(turned, (1.0, 3.0, 2.0)), azimuth_deg=azimuth)
        np.testing.assert_allclose(seen.pixels, expected.pixels, rtol=0, atol=1e-4)

    def test_depth_points_at_the_brighter_voxel_of_the_crossing(self) -> None:
        voxels = np.random.default_rng(2).random((2, 12, 9)).astype(np.float32)
        volume = volume_of(voxels)
        projection = mip.project(volume, azimuth_deg=35)
        hit = projection.depth >= 0
        source = voxels.reshape(-1)[projection.depth[hit]]
        assert (source >= projection.pixels[hit] - 1e-6).all()
        assert hit.mean() > 0.8


class TestProjection:
    def test_is_read_only_and_leaves_the_volume_alone(self) -> None:
        voxels = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
        voxels.flags.writeable = False
        for azimuth in (0, 33):
            projection = mip.project(volume_of(voxels), azimuth_deg=azimuth)
            assert not projection.pixels.flags.writeable
            assert not projection.depth.flags.writeable
            assert projection.azimuth_deg == azimuth

    @pytest.mark.parametrize("azimuth", [0, 90, 45])
    def test_takes_volumes_in_any_memory_order(self, azimuth: float) -> None:
        voxels = np.random.default_rng(0).random((5, 4, 3)).astype(np.float32)
        expected = mip.project(volume_of(voxels), azimuth_deg=azimuth)
        seen = mip.project(volume_of(np.asfortranarray(voxels)), azimuth_deg=azimuth)
        np.testing.assert_array_equal(seen.pixels, expected.pixels)
        np.testing.assert_array_equal(seen.depth, expected.depth)

    def test_imports_no_graphics(self) -> None:
        program = (
            "import sys, preprocessing.mip\n"
            "drawing = [n for n in sys.modules if n.startswith('vtkmodules.vtkRendering')]\n"
            "sys.exit(len(drawing))"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", program], cwd=root, check=False)
        assert done.returncode == 0


class TestRefusals:
    def test_unknown_projector(self) -> None:
        with pytest.raises(ProjectionError, match="did you mean 'vtk-mapper'") as caught:
            mip.project(volume_of(np.ones((1, 1, 1))), projector="vtk_maper")
        assert caught.value.code == "UNKNOWN_PROJECTOR"
        with pytest.raises(ProjectionError, match="known: vtk, vtk-mapper"):
            mip.project(volume_of(np.ones((1, 1, 1))), projector="astra")

    @pytest.mark.parametrize("azimuth", [math.nan, math.inf])
    def test_azimuth_that_is_no_number(self, azimuth: float) -> None:
        with pytest.raises(ProjectionError, match=r"azimuth is (nan|inf) degrees") as caught:
            mip.project(volume_of(np.ones((1, 1, 1))), azimuth_deg=azimuth)
        assert caught.value.code == "BAD_AZIMUTH"

    def test_empty_volume(self) -> None:
        with pytest.raises(GeometryError, match=r"\(0, 2, 2\): nothing to project") as caught:
            mip.project(volume_of(np.ones((0, 2, 2))))
        assert caught.value.code == "EMPTY_VOLUME"

    def test_more_voxels_than_depth_can_name(self) -> None:
        huge = np.broadcast_to(np.float32(0), (1300, 1300, 1300))
        with pytest.raises(GeometryError, match="more voxels than a 32-bit depth") as caught:
            mip.project(volume_of(huge))
        assert caught.value.code == "VOLUME_TOO_LARGE"

    @pytest.mark.parametrize("spacing_mm", [(0.0, 1.0, 1.0), (math.nan, 1.0, 1.0)])
    def test_affine_without_a_space(self, spacing_mm: tuple[float, float, float]) -> None:
        with pytest.raises(GeometryError, match=r"voxel spacing x, y, z is .* mm") as caught:
            mip.project(volume_of(np.ones((2, 2, 2)), spacing_mm))
        assert caught.value.code == "BAD_AFFINE"

    @pytest.mark.parametrize("tilt_deg", [3.0, -90.0, 180.0])
    def test_volume_off_the_patients_axes(self, tilt_deg: float) -> None:
        volume = volume_of(np.ones((2, 2, 2)))
        tilt = math.radians(tilt_deg)
        turn = np.eye(4)
        turn[1:3, 1:3] = [[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]]
        with pytest.raises(GeometryError, match=f"{abs(tilt_deg):.1f} degrees off") as caught:
            mip.project(replace(volume, affine=turn @ volume.affine))
        assert caught.value.code == "NOT_ORIENTED"

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("azimuth", [0, 90, 180, 270, 33])
    def test_voxels_that_are_no_numbers(self, value: float, azimuth: float) -> None:
        voxels = np.ones((2, 5, 5), np.float32)
        voxels[1, 2, 2] = value
        with pytest.raises(GeometryError, match="NaN or infinite values") as caught:
            mip.project(volume_of(voxels), azimuth_deg=azimuth)
        assert caught.value.code == "NOT_FINITE"


class TestBackProjection:
    def test_keeps_the_strongest_of_several_pixels_and_skips_what_has_no_voxel(self) -> None:
        values = np.array([[1.0, -3.0, 9.0, 2.0], [2.0, -2.0, 0.5, 0.25]], np.float32)
        depth = np.array([[0, 0, -1, 5], [3, 3, 4, 4]], np.int32)
        back = mip.back_project(values, depth, (1, 2, 4))
        assert back.tolist() == [[[-3.0, 0.0, 0.0, 2.0], [0.5, 2.0, 0.0, 0.0]]]

    @given(volume=volumes(), azimuth=st.sampled_from(RIGHT_ANGLES))
    @settings(deadline=None)
    def test_of_a_projection_holds_the_volumes_own_voxels(
        self, volume: Volume, azimuth: float
    ) -> None:
        projection = mip.project(volume, azimuth_deg=azimuth)
        back = mip.back_project(projection.pixels, projection.depth, volume.voxels.shape)
        seen = np.unique(projection.depth)
        np.testing.assert_array_equal(back.reshape(-1)[seen], volume.voxels.reshape(-1)[seen])
        assert np.count_nonzero(np.delete(back.reshape(-1), seen)) == 0

    def test_refuses_a_depth_of_another_picture(self) -> None:
        with pytest.raises(ProjectionError, match=r"\(1, 2\), its depth \(2, 1\)") as caught:
            mip.back_project(np.ones((1, 2), np.float32), np.zeros((2, 1), np.int32), (1, 1, 1))
        assert caught.value.code == "DEPTH_MISMATCH"

    @pytest.mark.parametrize("depth", [8, -2])
    def test_refuses_a_depth_of_another_volume(self, depth: int) -> None:
        with pytest.raises(ProjectionError, match="voxels 0 to 7: this depth belongs") as caught:
            mip.back_project(
                np.ones((1, 1), np.float32), np.full((1, 1), depth, np.int32), (2, 2, 2)
            )
        assert caught.value.code == "DEPTH_MISMATCH"

    def test_refuses_values_that_are_no_numbers(self) -> None:
        with pytest.raises(ProjectionError, match="NaN or infinite") as caught:
            mip.back_project(
                np.full((1, 1), np.nan, np.float32), np.zeros((1, 1), np.int32), (1, 1, 1)
            )
        assert caught.value.code == "NOT_FINITE"


class TestMapper:
    @pytest.fixture(autouse=True)
    def _fresh_probe(self) -> Iterator[None]:
        mip.mapper_available.cache_clear()
        yield
        mip.mapper_available.cache_clear()

    @pytest.fixture
    def child(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        script = tmp_path / "child.py"
        monkeypatch.setattr(mapper_process, "SCRIPT", script)
        return script

    @pytest.mark.parametrize("azimuth", [0, 90, 180, 40])
    def test_draws_what_the_rays_say(self, azimuth: float) -> None:
        available, reason = mip.mapper_available()
        if not available:
            pytest.skip(reason)
        z, y, x = np.meshgrid(np.arange(20), np.arange(24), np.arange(30), indexing="ij")
        voxels = 8 * np.exp(-((z - 6) ** 2 + (y - 9) ** 2 + (x - 20) ** 2) / 30) - 1
        volume = volume_of(voxels, (3.0, 2.5, 2.0))
        reference = mip.project(volume, azimuth_deg=azimuth)
        drawn = mip.project(volume, azimuth_deg=azimuth, projector="vtk-mapper")
        np.testing.assert_array_equal(drawn.depth, reference.depth)
        assert drawn.spacing_mm == reference.spacing_mm
        np.testing.assert_allclose(
            drawn.pixels, reference.pixels, rtol=0, atol=0.01 * np.ptp(voxels)
        )

    def test_draws_a_volume_of_one_value(self) -> None:
        available, reason = mip.mapper_available()
        if not available:
            pytest.skip(reason)
        drawn = mip.project(volume_of(np.full((2, 3, 4), 2.5)), projector="vtk-mapper")
        assert (drawn.pixels == 2.5).all()

    def test_without_a_graphics_library_ends_the_child_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VTK_DEFAULT_OPENGL_WINDOW", "vtkOSOpenGLRenderWindow")
        available, reason = mip.mapper_available()
        if available:
            pytest.skip("OSMesa is installed: VTK draws with it")
        assert "libosmesa6" in reason
        with pytest.raises(ProjectionError, match="or use --projector vtk") as caught:
            mip.project(volume_of(np.ones((2, 2, 2))), projector="vtk-mapper")
        assert caught.value.code == "MAPPER_UNAVAILABLE"

    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            ("import os; os.abort()", "ended its process with SIGABRT"),
            ("import sys; sys.exit(3)", "ended its process with exit code 3"),
            ("import sys; sys.stdout.buffer.write(bytes(35))", "exit code 0"),
            ("import sys; sys.stdout.buffer.write(bytes(36))", "draws a wrong picture"),
        ],
    )
    def test_says_why_it_cannot_draw_and_what_to_install(
        self, child: Path, program: str, reason: str
    ) -> None:
        child.write_text(program, encoding="utf-8")
        available, message = mip.mapper_available()
        assert not available
        assert reason in message
        assert "libegl1" in message

    def test_does_not_wait_for_ever(self, child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        child.write_text("import time; time.sleep(60)", encoding="utf-8")
        monkeypatch.setattr(mapper_process, "PROBE_TIMEOUT_S", 0.2)
        available, message = mip.mapper_available()
        assert not available
        assert "no picture within 0.2 s" in message

    def test_asks_once(self, child: Path) -> None:
        child.write_text("import sys; sys.exit(3)", encoding="utf-8")
        before = mip.mapper_available()
        child.write_text("import sys; sys.exit(4)", encoding="utf-8")
        assert mip.mapper_available() == before
