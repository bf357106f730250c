"""The voxels of a BraTS case: read, checked, brought to patient axes, summed up over the brain."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from preprocessing.brats_files import MODALITIES, SEGMENTATION, BratsCase
from preprocessing.errors import FileError, LabelError
from preprocessing.nifti_reader import read_voxels

KNOWN_LABELS = (frozenset({0, 1, 2, 4}), frozenset({0, 1, 2, 3}))
"""Until 2022 enhancing tumour is 4, from 2023 on it is 3; 1 is necrosis, 2 oedema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Pictures of one head on one grid.

    Attributes
    ----------
    pictures
        ``MODALITIES``, in the type that shards store.
    brain
        Where any modality is not 0: the challenge's files are skull-stripped.
    mean, sd
        Of each modality over ``brain``.
    """

    pictures: tuple[Shaped[np.ndarray, "z y x"], ...]
    brain: Bool[np.ndarray, "z y x"]
    mean: Float32[np.ndarray, " modality"]
    sd: Float32[np.ndarray, " modality"]
    warnings: tuple[str, ...]


def load_tumour(case: BratsCase) -> Bool[np.ndarray, "z y x"]:
    """Read the segmentation and return the whole tumour, of every kind of tissue.

    Raises
    ------
    FileError
        As ``nifti_reader.read_voxels``.
    LabelError
        ``NII_SEG_FLOAT``: values between labels. ``NII_SEG_LABELS``: labels of no year's
        challenge. ``NII_EMPTY_SEG``.
    """
    labels = read_voxels(case.paths[SEGMENTATION])
    if labels.dtype.kind == "f" and not (
        np.isfinite(labels).all() and np.array_equal(labels, np.rint(labels))
    ):
        raise LabelError(
            "NII_SEG_FLOAT",
            "the segmentation holds values between its labels: it was interpolated, and its "
            "edges are nobody's; resample it by nearest neighbour",
        )
    tumour = labels != 0
    found = {0, *(int(label) for label in np.unique(labels[tumour]))}
    if not any(found <= known for known in KNOWN_LABELS):
        raise LabelError(
            "NII_SEG_LABELS",
            f"the segmentation holds the labels {sorted(found)}; known are 0, 1, 2 and either 4 or "
            "3: what the others mean, and whether they are tumour, is unknown",
        )
    if len(found) == 1:
        raise LabelError(
            "NII_EMPTY_SEG",
            "the segmentation marks no voxel: a case of the challenge without tumour is a mistake",
        )
    return tumour


def load_pictures(case: BratsCase, *, dtype: str) -> Scan:
    """Read the four modalities without loss.

    Raises
    ------
    FileError
        As ``nifti_reader.read_voxels``; ``NII_NAN``; ``NII_NOT_INT16`` where ``dtype`` is int16 and
        cannot hold a value; ``NII_EMPTY`` where a modality is constant.
    """
    pictures, warnings = [], []
    for name in MODALITIES:
        voxels = read_voxels(case.paths[name])
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise FileError("NII_NAN", f"{name} holds NaN or infinite values: mend the file")
        stored = _as_int16(voxels, name) if dtype == "int16" else voxels.astype(np.float32)
        if voxels.dtype.itemsize > 4 and not np.array_equal(stored, voxels):
            warnings.append(f"NII_ROUNDED: {name} has more digits than float32 holds")
        pictures.append(np.ascontiguousarray(stored))
    brain = pictures[0] != 0
    for picture in pictures[1:]:
        brain |= picture != 0
    mean, sd = _statistics(pictures, brain)
    return Scan(pictures=tuple(pictures), brain=brain, mean=mean, sd=sd, warnings=tuple(warnings))


def _as_int16(voxels: Shaped[np.ndarray, "z y x"], name: str) -> Shaped[np.ndarray, "z y x"]:
    if np.can_cast(voxels.dtype, np.int16):
        return voxels.astype(np.int16, copy=False)
    limits = np.iinfo(np.int16)
    low, high = voxels.min(), voxels.max()
    if low < limits.min or high > limits.max or not _is_whole(voxels):
        raise FileError(
            "NII_NOT_INT16",
            f"{name} holds values from {low:.6g} to {high:.6g} that int16 cannot store without "
            "loss: build with --dtype float32",
        )
    return voxels.astype(np.int16)


def _is_whole(voxels: Shaped[np.ndarray, "z y x"]) -> bool:
    return voxels.dtype.kind in "iu" or np.array_equal(voxels, np.rint(voxels))


def _statistics(
    pictures: list[Shaped[np.ndarray, "z y x"]], brain: Bool[np.ndarray, "z y x"]
) -> tuple[Float32[np.ndarray, " modality"], Float32[np.ndarray, " modality"]]:
    mean, sd = [], []
    for name, picture in zip(MODALITIES, pictures, strict=True):
        values = picture[brain]
        middle, spread = _mean_and_sd(values) if len(values) else (0.0, 0.0)
        if spread == 0 or not picture.any():
            raise FileError("NII_EMPTY", f"{name} has one value everywhere: the file is empty")
        mean.append(middle)
        sd.append(spread)
    return np.array(mean, dtype=np.float32), np.array(sd, dtype=np.float32)


def _mean_and_sd(values: Shaped[np.ndarray, " voxel"]) -> tuple[float, float]:
    """Return mean and standard deviation; of int16 from counts of each value, without rounding."""
    if values.dtype != np.int16:
        exact = values.astype(np.float64)
        return float(exact.mean()), float(exact.std())
    counts = np.bincount(values.view(np.uint16), minlength=2**16).astype(np.float64)
    levels = np.arange(2**16, dtype=np.uint16).view(np.int16).astype(np.float64)
    middle = float(counts @ levels) / len(values)
    return middle, float(np.sqrt(counts @ (levels - middle) ** 2 / len(values)))
