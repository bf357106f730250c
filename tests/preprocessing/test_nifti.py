import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import nifti
from preprocessing.errors import GeometryError, OutputError
from preprocessing.records import Unit, Volume

VOXELS = np.random.default_rng(0).normal(1, 2, (3, 4, 5)).astype(np.float32)
AFFINE = np.array(
    [[2.5, 0.0, 0.0, -310.5], [0.0, 3.0, 0.0, 41.25], [0.0, 0.0, 3.27, -905.0], [0, 0, 0, 1.0]]
)


def volume_of(affine: np.ndarray = AFFINE) -> Volume:
    return Volume(voxels=VOXELS, affine=affine, unit=Unit.SUVBW, subject_id="kqzx4subject")


def turned(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("affine", [AFFINE, turned(11.0), turned(180.0)])
class TestRoundTrip:
    def test_every_voxel_keeps_its_value_and_its_place(
        self, name: str, affine: np.ndarray, tmp_path: Path
    ) -> None:
        nifti.save(tmp_path / name, volume_of(affine))
        image = nibabel.load(tmp_path / name)
        stored = np.asarray(image.dataobj)
        for z, y, x in np.ndindex(VOXELS.shape):
            assert stored[x, y, z] == VOXELS[z, y, x]
            left, posterior, head = (affine @ [x, y, z, 1])[:3]
            for frame in (image.get_sform(), image.get_qform()):
                placed = (frame @ [x, y, z, 1])[:3]
                np.testing.assert_allclose(placed, [-left, -posterior, head], atol=1e-3)

    def test_another_reader_finds_the_same_patient_frame(
        self, name: str, affine: np.ndarray, tmp_path: Path
    ) -> None:
        nifti.save(tmp_path / name, (VOXELS, affine))
        image = SimpleITK.ReadImage(str(tmp_path / name))  # ITK's frame is LPS
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), VOXELS)
        for index in ((0, 0, 0), (4, 0, 0), (0, 3, 0), (4, 3, 2)):
            placed = image.TransformIndexToPhysicalPoint(index)
            np.testing.assert_allclose(placed, (affine @ [*index, 1])[:3], atol=1e-3)


@given(
    corner=st.tuples(*[st.floats(-2000, 2000)] * 3), spacing=st.tuples(*[st.floats(0.2, 10)] * 3)
)
@settings(deadline=None, max_examples=25)
def test_affine_differs_from_lps_by_two_signs(
    corner: tuple[float, float, float],
    spacing: tuple[float, float, float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = corner
    path = tmp_path_factory.mktemp("nifti") / "scan.nii"
    nifti.save(path, (VOXELS, affine))
    flipped = affine * [[-1.0], [-1.0], [1.0], [1.0]]
    np.testing.assert_allclose(nibabel.load(path).affine, flipped, rtol=1e-6, atol=1e-6)


class TestFile:
    def test_names_nobody(self, tmp_path: Path) -> None:
        nifti.save(tmp_path / "kqzx4name.nii.gz", volume_of())
        compressed = (tmp_path / "kqzx4name.nii.gz").read_bytes()
        content = gzip.decompress(compressed)
        assert b"kqzx4" not in compressed + content
        assert compressed[3:8] == bytes(5)  # no file name in the gzip header, and no time
        header = nibabel.load(tmp_path / "kqzx4name.nii.gz").header
        for field in ("descrip", "db_name", "aux_file", "intent_name"):
            assert header[field].item() == b""
        assert len(header.extensions) == 0
        assert header.get_xyzt_units()[0] == "mm"
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)

    def test_is_the_same_bytes_every_time(self, tmp_path: Path) -> None:
        nifti.save(tmp_path / "a.nii.gz", volume_of())
        nifti.save(tmp_path / "b.nii.gz", volume_of())
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()

    def test_replaces_in_one_step_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.nii"
        path.write_bytes(b"old")
        nifti.save(path, volume_of())
        assert [entry.name for entry in tmp_path.iterdir()] == ["scan.nii"]
        assert nibabel.load(path).shape == (5, 4, 3)

    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "scan.nii"
        path.write_bytes(b"old")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            nifti.save(path, volume_of())
        assert caught.value.code == "DISK_FULL"
        assert [entry.name for entry in tmp_path.iterdir()] == ["scan.nii"]
        assert path.read_bytes() == b"old"


class TestRefusals:
    @pytest.mark.parametrize("name", ["scan.mha", "scan.gz", "scan"])
    def test_other_suffix(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match=r"ends in \.nii or \.nii\.gz, not in") as caught:
            nifti.save(tmp_path / name, volume_of())
        assert caught.value.code == "NIFTI_SUFFIX"

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="No such file or directory") as caught:
            nifti.save(tmp_path / "missing" / "scan.nii", volume_of())
        assert "missing" not in str(caught.value)

    @pytest.mark.parametrize("affine", [np.full((4, 4), np.nan), np.diag([1.0, 0.0, 1.0, 1.0])])
    def test_affine_without_a_space(self, affine: np.ndarray, tmp_path: Path) -> None:
        with pytest.raises(GeometryError, match="flattens space") as caught:
            nifti.save(tmp_path / "scan.nii", volume_of(affine))
        assert caught.value.code == "BAD_AFFINE"

    def test_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        voxels = np.full((1, 1, 1), np.inf, np.float32)
        with pytest.raises(GeometryError, match="NaN or infinite values") as caught:
            nifti.save(tmp_path / "scan.nii", (voxels, AFFINE))
        assert caught.value.code == "NOT_FINITE"
        assert list(tmp_path.iterdir()) == []
