from pathlib import Path

import nibabel
import numpy as np
import pytest

from preprocessing.errors import LabelError
from preprocessing.records import Unit, Volume
from preprocessing.truth import load_truth

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AFFINE = np.array([[4.0, 0, 0, -30], [0, 4.0, 0, -20], [0, 0, 3.0, 100], [0, 0, 0, 1]])
VOLUME = Volume(
    voxels=np.zeros((3, 4, 5), np.float32), affine=AFFINE, unit=Unit.SUVBW, subject_id="a"
)


def saved(path: Path, mask: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a mask given along z, y, x with its LPS affine."""
    image = nibabel.Nifti1Image(mask.transpose(2, 1, 0).astype(np.uint8), LPS_TO_RAS @ affine)
    nibabel.save(image, path)
    return path


def test_a_mask_comes_back_on_the_scans_voxels(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((3, 4, 5)) > 0.5
    np.testing.assert_array_equal(load_truth(saved(tmp_path / "m.nii.gz", mask), VOLUME), mask)


def test_header_rounding_is_no_other_place(tmp_path: Path) -> None:
    near = AFFINE + np.array([[0, 0, 0, 0.01]] * 3 + [[0, 0, 0, 0]])
    mask = np.ones((3, 4, 5), bool)
    assert load_truth(saved(tmp_path / "m.nii.gz", mask, near), VOLUME).all()


@pytest.mark.parametrize(
    ("shape", "shift", "message"),
    [
        ((3, 4, 6), 0.0, r"has \(3, 4, 6\) voxels along z, y, x, the scan \(3, 4, 5\)"),
        ((3, 4, 5), 1.0, "lies up to 1 mm off the scan's voxels"),
    ],
)
def test_another_grid_is_refused(
    tmp_path: Path, shape: tuple[int, int, int], shift: float, message: str
) -> None:
    affine = AFFINE.copy()
    affine[1, 3] += shift
    path = saved(tmp_path / "m.nii.gz", np.ones(shape), affine)
    with pytest.raises(LabelError, match=message) as caught:
        load_truth(path, VOLUME)
    assert caught.value.code == "TRUTH_GRID"


@pytest.mark.parametrize("content", [b"", b"not a scan", b"\x1f\x8b\x08broken"])
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.nii.gz").write_bytes(content)
    with pytest.raises(LabelError, match="no readable NIfTI file") as caught:
        load_truth(tmp_path / "m.nii.gz", VOLUME)
    assert caught.value.code == "TRUTH_UNREADABLE"
