"""A data set whose class is told by one block of pixels, and by nothing else."""

from pathlib import Path

import numpy as np

from pipelines.config import AugmentConfig, TrainConfig
from preprocessing.records import Example
from preprocessing.shards import FieldSpec, write_case, write_manifest, write_shard

SIDE = 32
BLOCK = (slice(8, 16), slice(16, 24))  # 64 of 1024 pixels
CLASSES = ("dark", "bright")
LAYOUT = {
    "image": FieldSpec((1, SIDE, SIDE), "uint8", "picture"),
    "mask": FieldSpec((SIDE, SIDE), "uint8", "the block, in both classes"),
}
STILL = AugmentConfig(flip_left_right=0, rotate_deg=0, translate=0, scale=0, intensity=0)
QUICK = TrainConfig(
    network="resnet10-narrow",
    variant="baseline",
    epochs=4,
    batch_size=12,
    learning_rate=3e-3,
    warmup_epochs=0,
    augment=STILL,
    workers=0,
    bootstrap=40,
)
"""Learns to tell the block's class from two dozen pictures, in a second or two."""


def block_mask() -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    mask[BLOCK] = 1
    return mask


def example(rng: np.random.Generator, number: int, label: int) -> Example:
    mask = block_mask()
    image = rng.integers(90, 166, (SIDE, SIDE))
    image[mask == 1] += 80 * label - 40
    return Example(
        sample_id=f"sample{number:04d}",
        subject_id=f"patient{number // 2:04d}",
        arrays={"image": image.astype(np.uint8)[None], "mask": mask},
        label=label,
    )


def write_blocks(out: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Write noise with a block at one place, dark in one class and bright in the other."""
    rng = np.random.default_rng(seed)
    shards, number = [], 0
    out.mkdir(parents=True)
    for split, count in counts.items():
        rows = [example(rng, number + i, i % 2) for i in range(count)]
        number += count
        if not count:
            continue
        case = out / f"{split}.case"
        write_case(case, rows, layout=LAYOUT)
        record = write_shard(
            out / "shards" / f"{split}-00000-of-00001.h5",
            [(case, i) for i in range(count)],
            layout=LAYOUT,
            split=split,
            name="blocks",
            classes=CLASSES,
            workspace=out,
        )
        case.unlink()
        shards.append({"file": record.file, "sha256": record.sha256, "rows": count, "split": split})
    manifest = {"name": "blocks", "classes": list(CLASSES), "config": {}, "shards": shards}
    write_manifest(out, manifest)
    return out
