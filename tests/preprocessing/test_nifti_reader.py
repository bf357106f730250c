import gzip
import os
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from preprocessing import nifti_reader
from preprocessing.errors import FileError, GeometryError, PreprocessingError
from preprocessing.nifti_reader import read_grid, read_voxels

# Voxels on patient axes (z, y, x), and where they lie: LPS millimetres of index (x, y, z, 1).
VOXELS = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5) - 7
LPS = np.array([[2.0, 0, 0, -10], [0, 3.0, 0, 20], [0, 0, 4.0, -30], [0, 0, 0, 1]])
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])
ALL_AXES = [codes for letters in permutations(("LR", "PA", "SI")) for codes in product(*letters)]


def image_of(voxels=VOXELS, affine=LPS, *, codes=("L", "P", "S"), kind=nibabel.Nifti1Image):
    """The same voxels at the same places, stored along other axes."""
    turn = ornt_transform(axcodes2ornt(("L", "P", "S")), axcodes2ornt(codes))
    stored = voxels.transpose(2, 1, 0)
    image = kind(
        apply_orientation(stored, turn), LPS_TO_RAS @ affine @ inv_ornt_aff(turn, stored.shape)
    )
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    return image


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix.lower() == ".gz" else content)
    return path


@pytest.mark.parametrize("codes", ALL_AXES, ids="".join)
def test_every_order_of_axes_gives_the_same_array_at_the_same_place(codes, tmp_path):
    path = written(tmp_path / "a.nii.gz", image_of(codes=codes).to_bytes())
    grid = read_grid(path)
    assert grid.shape == VOXELS.shape
    np.testing.assert_allclose(grid.affine, LPS, atol=1e-4)
    read = read_voxels(path)
    np.testing.assert_array_equal(read, VOXELS)
    assert read.dtype == np.int16


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII", "A.NII.GZ"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_either_version_compressed_or_not(name, kind, tmp_path):
    path = written(tmp_path / name, image_of(kind=kind).to_bytes())
    assert read_grid(path).shape == VOXELS.shape
    np.testing.assert_array_equal(read_voxels(path), VOXELS)


def test_the_qform_serves_where_there_is_no_sform(tmp_path):
    image = image_of(codes=("R", "A", "S"))
    image.header["sform_code"] = 0
    path = written(tmp_path / "a.nii", image.to_bytes())
    np.testing.assert_allclose(read_grid(path).affine, LPS, atol=1e-4)
    np.testing.assert_array_equal(read_voxels(path), VOXELS)


def test_an_unset_qfac_counts_as_one(tmp_path):
    # L,P,S is right-handed in RAS only with an even number of flips, so that qfac 1 is right.
    content = bytearray(image_of().to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]))
    header["sform_code"] = 0
    header["pixdim"][0] = 0
    content[:348] = header.binaryblock
    path = written(tmp_path / "a.nii", bytes(content))
    np.testing.assert_allclose(read_grid(path).affine, LPS, atol=1e-4)


def test_scaling_is_applied_and_nan_means_none(tmp_path):
    content = bytearray(image_of().to_bytes())
    for slope, intercept, expected in ((0.5, 3, 0.5 * VOXELS + 3), (np.nan, np.nan, VOXELS)):
        header = nibabel.Nifti1Header(bytes(content[:348]))
        header["scl_slope"], header["scl_inter"] = slope, intercept
        content[:348] = header.binaryblock
        path = written(tmp_path / "a.nii", bytes(content))
        np.testing.assert_array_equal(read_voxels(path), expected)


def test_several_gzip_members_are_one_file(tmp_path):
    content = image_of().to_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(content[:400]) + gzip.compress(content[400:]))
    np.testing.assert_array_equal(read_voxels(path), VOXELS)


def test_a_trailing_axis_of_one_is_no_axis(tmp_path):
    image = nibabel.Nifti1Image(VOXELS.transpose(2, 1, 0)[..., None], LPS_TO_RAS @ LPS)
    path = written(tmp_path / "a.nii", image.to_bytes())
    np.testing.assert_array_equal(read_voxels(path), VOXELS)


def test_the_fingerprint_changes_with_content_and_time(tmp_path):
    path = written(tmp_path / "a.nii.gz", image_of().to_bytes())
    first = read_grid(path).fingerprint
    assert read_grid(path).fingerprint == first
    os.utime(path, ns=(1, 1))
    second = read_grid(path).fingerprint
    changed = VOXELS.copy()
    changed[2, 3, 4] += 1
    written(path, image_of(changed).to_bytes())
    os.utime(path, ns=(1, 1))
    assert len({first, second, read_grid(path).fingerprint}) == 3


class TestRefusals:
    def refused(self, path: Path, code: str, match: str, *, read=read_voxels):
        with pytest.raises(PreprocessingError, match=match) as caught:
            read(path)
        assert caught.value.code == code
        assert path.name not in str(caught.value)
        assert str(path.parent) not in str(caught.value)

    def edited(self, path: Path, **fields) -> Path:
        content = bytearray(image_of().to_bytes())
        header = nibabel.Nifti1Header(bytes(content[:348]))
        for name, value in fields.items():
            header[name] = value
        content[:348] = header.binaryblock
        return written(path, bytes(content))

    @pytest.mark.parametrize("read", [read_grid, read_voxels])
    def test_a_file_that_is_gone(self, read, tmp_path):
        self.refused(tmp_path / "no.nii", "NII_UNREADABLE", "No such file", read=read)

    @pytest.mark.parametrize(
        "content", [b"", b"no image", bytes(400), b"\x5c\x01\0\0" + bytes(400)]
    )
    @pytest.mark.parametrize("read", [read_grid, read_voxels])
    def test_no_header(self, content, read, tmp_path):
        path = written(tmp_path / "a.nii", content)
        self.refused(path, "NII_UNREADABLE", "header is no", read=read)

    def test_a_header_without_data_beside_it(self, tmp_path):
        path = self.edited(tmp_path / "a.nii", magic=b"ni1")
        self.refused(path, "NII_UNREADABLE", "no single-file NIfTI")

    @pytest.mark.parametrize("offset", [np.nan, np.inf, -np.inf, -8.0, 0.0, 351.0, 1e30])
    @pytest.mark.parametrize("read", [read_grid, read_voxels])
    def test_values_that_begin_nowhere(self, offset, read, tmp_path):
        path = self.edited(tmp_path / "a.nii", vox_offset=offset)
        self.refused(path, "NII_UNREADABLE", "vox_offset is no place", read=read)

    def test_values_that_begin_beyond_the_end(self, tmp_path):
        path = self.edited(tmp_path / "a.nii", vox_offset=4000.0)
        self.refused(path, "NII_TRUNCATED", "values are missing")

    def test_damaged_compression(self, tmp_path):
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(b"x")[:3] + b"\xff" * 60)
        self.refused(path, "NII_UNREADABLE", "damaged at the start", read=read_grid)
        self.refused(path, "NII_TRUNCATED", "checksum is wrong")

    @pytest.mark.parametrize("lost", [1, 8, 40])
    def test_truncated_compression(self, lost, tmp_path):
        path = written(tmp_path / "a.nii.gz", image_of().to_bytes())
        path.write_bytes(path.read_bytes()[:-lost])
        self.refused(path, "NII_TRUNCATED", "ends early")

    def test_wrong_checksum(self, tmp_path):
        path = written(tmp_path / "a.nii.gz", image_of().to_bytes())
        content = bytearray(path.read_bytes())
        content[-6] ^= 1
        path.write_bytes(content)
        self.refused(path, "NII_TRUNCATED", "checksum is wrong")

    def test_truncated_values(self, tmp_path):
        path = written(tmp_path / "a.nii", image_of().to_bytes()[:-1])
        self.refused(path, "NII_TRUNCATED", "values are missing")

    def test_a_series_of_volumes(self, tmp_path):
        image = nibabel.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4))
        path = written(tmp_path / "a.nii", image.to_bytes())
        self.refused(path, "NII_SHAPE", r"\(2, 2, 2, 3\)")

    def test_colours(self, tmp_path):
        pixels = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        path = written(tmp_path / "a.nii", nibabel.Nifti1Image(pixels, np.eye(4)).to_bytes())
        self.refused(path, "NII_DATATYPE", "datatype is 128")

    def test_a_forged_size_asks_for_no_memory(self, tmp_path):
        path = self.edited(tmp_path / "a.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])
        self.refused(path, "NII_TOO_LARGE", "more than 134217728 voxels")

    def test_a_bomb_is_not_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(nifti_reader, "MAX_BYTES", 10_000)
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress(bytes(20_000)))
        self.refused(path, "NII_TOO_LARGE", "no head scan")

    @pytest.mark.parametrize("read", [read_grid, read_voxels])
    def test_no_sides(self, read, tmp_path):
        path = self.edited(tmp_path / "a.nii", sform_code=0, qform_code=0)
        self.refused(path, "NII_NO_AFFINE", "which side is left", read=read)

    @pytest.mark.parametrize(
        "row", [[0, 0, 0, 0], [np.nan, 0, 0, 0], [1e30, 0, 0, 0], [0, 3, 0, 0]]
    )
    def test_an_affine_without_a_space(self, row, tmp_path):
        path = self.edited(tmp_path / "a.nii", srow_x=row)
        self.refused(path, "NII_AFFINE", "flattens space")

    def test_a_quaternion_that_turns_nothing(self, tmp_path):
        path = self.edited(tmp_path / "a.nii", sform_code=0, quatern_b=5.0)
        self.refused(path, "NII_AFFINE", "flattens space")

    def test_sizes_that_overflow(self, tmp_path):
        sizes = [-1, 1e-3, 1e-38, np.inf, 1, 1, 1, 1]
        path = self.edited(tmp_path / "a.nii", sform_code=0, quatern_c=1e-3, pixdim=sizes)
        self.refused(path, "NII_AFFINE", "flattens space")

    def test_a_space_too_small_for_numbers(self, tmp_path):
        content = bytearray(image_of(kind=nibabel.Nifti2Image).to_bytes())
        header = nibabel.Nifti2Header(bytes(content[:540]))
        header["srow_x"], header["srow_y"] = [-1.0, -1e-20, 2.0, 0], [0, 0, 0.56, 0]
        header["srow_z"] = [0, 5e-324, -1.2, 0]
        content[:540] = header.binaryblock
        path = written(tmp_path / "a.nii", bytes(content))
        self.refused(path, "NII_AFFINE", "flattens space")

    def test_slices_that_are_not_axial(self, tmp_path):
        turn = np.eye(4)
        angle = np.radians(40)
        turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        path = written(
            tmp_path / "a.nii", image_of(affine=turn @ np.diag([1.0, 1, 1, 1])).to_bytes()
        )
        self.refused(path, "NII_OBLIQUE", "40 degrees off")


def code_of(read, path: Path) -> str:
    try:
        read(path)
    except (FileError, GeometryError) as error:
        return error.code
    return "NII_READ"


@given(cuts=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=150)
def test_damaged_bytes_never_end_in_anything_but_a_code(cuts, tmp_path_factory):
    content = bytearray(image_of().to_bytes())
    for place, value in cuts:
        content[place % len(content)] = value
    path = tmp_path_factory.mktemp("fuzz") / "a.nii"
    path.write_bytes(content)
    for read in (read_grid, read_voxels):
        assert code_of(read, path).startswith("NII_")
