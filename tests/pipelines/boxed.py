"""A small data set with boxes: two findings that stand out, one that nobody shows in the test."""

import json
from pathlib import Path

import h5py
import numpy as np

SIZE = 32
CLASSES = ("Effusion", "Mass", "Hernia")
COUNTS = {"train": 24, "validation": 8, "test": 12}
MASS, EFFUSION = 1, 0


def write_boxed(
    out: Path, *, size: int = SIZE, boxed: tuple[str, ...] = ("test",), field: str = "boxes"
) -> Path:
    """Two pictures to a patient; a third shows nothing, some show both, one has two boxes."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        pictures, sets, boxes = [], [], []
        for i in range(count):
            image, label_set, own = _picture(rng, i, size)
            pictures.append(image)
            sets.append(label_set)
            boxes.append(own if split in boxed else _unused())
        with h5py.File(out / f"{split}.h5", "w") as file:
            file.attrs["encoding-type"] = "dualwitness-shard"
            file.attrs["encoding-version"] = "1.0"
            file["image"] = np.stack(pictures)
            file["label"] = np.full(count, -1)
            file["labels"] = np.array(sets, dtype=np.uint8)
            file[field] = np.stack(boxes)
            file["subject_id"] = np.array([f"{split}{i // 2}" for i in range(count)], dtype="S16")
            file["sample_id"] = np.array([f"{split}-{i}" for i in range(count)], dtype="S16")
    manifest = {
        "encoding-type": "dualwitness-dataset",
        "encoding-version": "1.0",
        "name": "boxed",
        "classes": list(CLASSES),
        "shards": [{"file": f"{split}.h5", "split": split} for split in COUNTS],
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def _unused() -> np.ndarray:
    table = np.full((4, 5), np.nan, dtype=np.float32)
    table[:, 0] = -1
    return table


def _picture(
    rng: np.random.Generator, i: int, size: int
) -> tuple[np.ndarray, list[int], np.ndarray]:
    image = rng.integers(60, 120, (1, size, size)).astype(np.uint8)
    table, label_set, used = _unused(), [0, 0, 0], 0
    kinds = ((), (MASS,), (EFFUSION,), (MASS, EFFUSION))[i % 4]
    for kind in kinds:
        for _ in range(2 if (i, kind) == (7, MASS) else 1):
            width, height = (6, 6) if kind == MASS else (16, 5)
            left = int(rng.integers(size - width))
            top = int(rng.integers(size // 2 - height)) if kind == MASS else size - height
            image[0, top : top + height, left : left + width] = 250 if kind == MASS else 10
            table[used] = (kind, left, top, width, height)
            label_set[kind], used = 1, used + 1
    return image, label_set, table
