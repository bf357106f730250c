"""Small data sets with a known answer: bright blobs whose number and size give the class."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines import pictures
from preprocessing.records import Example
from preprocessing.shards import FieldSpec, write_case, write_manifest, write_shard
from tests.pipelines.sketches import SketchCanvas

CLASSES = ("normal", "mild", "severe")
MakeBlobs = Callable[..., Path]


def layout(size: int, channels: int, with_truth: bool) -> dict[str, FieldSpec]:
    square = (size, size)
    fields = {
        "image": FieldSpec((channels, *square), "uint8", "picture"),
        "suv": FieldSpec(square, "float16", "uptake", "g/mL"),
        "depth": FieldSpec(square, "int32", "voxel"),
        "volume_affine": FieldSpec((4, 4), "float64", "index to LPS", "mm"),
        "volume_shape": FieldSpec((3,), "int32", "voxels"),
    }
    if with_truth:
        fields["mask"] = FieldSpec(square, "uint8", "blob")
    return fields


def picture(rng: np.random.Generator, label: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a dark disc that means nothing, and one bright disc that grows with the class."""
    rows, columns = np.mgrid[:size, :size]
    suv = rng.uniform(0.5, 1.5, (size, size))
    mask = np.zeros((size, size), dtype=np.uint8)

    def disc(radius: float) -> np.ndarray:
        row, column = rng.uniform(radius, size - radius, 2)
        return (rows - row) ** 2 + (columns - column) ** 2 < radius**2

    suv[disc(size / 10)] *= 0.3
    if label > 0:
        mask[disc(size / 12 * (label + 1))] = 1
        suv[mask == 1] += 5
    return suv, mask


def example(
    rng: np.random.Generator, i: int, label: int, *, size: int, channels: int, with_truth: bool
) -> Example:
    suv, mask = picture(rng, max(label, 0), size)
    image = np.repeat(np.clip(suv * 30, 0, 255).astype(np.uint8)[None], channels, axis=0)
    depth = np.arange(size * size, dtype=np.int32).reshape(size, 1, size)  # one voxel per pixel
    arrays = {
        "image": image,
        "suv": suv.astype(np.float16),
        "depth": np.ascontiguousarray(depth[:, 0, :]),
        "volume_affine": np.diag([4.0, 4.0, 3.0, 1.0]),
        "volume_shape": np.array([size, 1, size], dtype=np.int32),
    }
    if with_truth:
        arrays["mask"] = mask
    return Example(
        sample_id=f"sample{i:04d}", subject_id=f"patient{i // 2:04d}", arrays=arrays, label=label
    )


@pytest.fixture
def sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots hold what they show and are not drawn; those of module fixtures are."""
    monkeypatch.setattr(pictures, "FigureCanvasAgg", SketchCanvas)


@pytest.fixture(scope="module")
def all_sketched() -> Iterator[None]:
    """As ``sketched``, for all of a module: what its fixtures leave and what its tests do."""
    with pytest.MonkeyPatch.context() as during:
        during.setattr(pictures, "FigureCanvasAgg", SketchCanvas)
        yield


@pytest.fixture(scope="session")
def make_blobs(tmp_path_factory: pytest.TempPathFactory) -> MakeBlobs:
    """Write a data set: ``make_blobs(counts={"train": 18, ...}, label=lambda i: i % 3)``."""

    def make(
        *,
        counts: dict[str, int] | None = None,
        label: Callable[[int], int] = lambda i: i % 3,
        size: int = 64,
        channels: int = 1,
        with_truth: bool = True,
        seed: int = 0,
        subject_offset: dict[str, int] | None = None,
    ) -> Path:
        out = tmp_path_factory.mktemp("blobs")
        rng = np.random.default_rng(seed)
        fields = layout(size, channels, with_truth)
        records, begin = [], 0
        for split, count in (counts or {"train": 18, "validation": 6, "test": 6}).items():
            start = (subject_offset or {}).get(split, begin)
            rows = [
                example(
                    rng, start + i, label(i), size=size, channels=channels, with_truth=with_truth
                )
                for i in range(count)
            ]
            begin += count + count % 2
            if not count:
                continue
            case = out / f"{split}.case"
            write_case(case, rows, layout=fields)
            records.append(
                write_shard(
                    out / "shards" / f"{split}-00000-of-00001.h5",
                    [(case, i) for i in range(count)],
                    layout=fields,
                    split=split,
                    name="blobs",
                    classes=CLASSES,
                    workspace=out,
                )
            )
            case.unlink()
        write_manifest(
            out,
            {
                "name": "blobs",
                "classes": list(CLASSES),
                "config": {"seed": seed},
                "shards": [
                    {"file": r.file, "sha256": r.sha256, "rows": r.rows, "split": r.split}
                    for r in records
                ],
            },
        )
        return out

    return make


@pytest.fixture(scope="session")
def blobs(make_blobs: MakeBlobs) -> Path:
    """18 training, 6 validation and 6 test pictures of 64 x 64 in three classes."""
    return make_blobs()
