"""What is explained of each test picture, its true region, and which pictures are perturbed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.evaluation_samples import (
    Samples,
    batch_at,
    batches_of,
    regions_of,
    samples_of,
    some_of,
    spread_over,
)
from pipelines.feed import Pictures

SIDE = 8


class Toy:
    """Rows of a data set, held in memory."""

    def __init__(self, **arrays: np.ndarray) -> None:
        self._arrays = {"image": np.zeros((len(arrays["label"]), 1, SIDE, SIDE), "uint8"), **arrays}
        self.labels = arrays["label"].astype(np.int64)
        self.sample_ids = [f"s{i}" for i in range(len(self.labels))]
        self.subject_ids = [f"p{i // 2}" for i in range(len(self.labels))]
        self.fields = tuple(name for name in self._arrays if name != "label")

    def read(self, i: int, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        return {name: self._arrays[name][i] for name in names}


def pictures(rows: Toy, labels: Any = None, size: tuple[int, int] = (SIDE, SIDE)) -> Pictures:
    labels = rows.labels if labels is None else labels
    return Pictures(rows=rows, labels=labels, positions=np.arange(len(rows.labels)), size=size)


def boxed() -> Samples:
    """Four pictures: two findings of which the second has a box, one without box, none, two."""
    sets = np.array([[1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=np.uint8)
    boxes = np.full((4, 2, 5), np.nan, dtype=np.float32)
    boxes[:, :, 0] = -1
    boxes[0, 0] = (1, 2, 0, 4, 3)
    boxes[3, 0] = (0, 0, 0, 1.5, 2)
    boxes[3, 1] = (0, 6, 6, 2, 2)
    rows = Toy(label=np.full(4, -1), labels=sets, boxes=boxes)
    return samples_of(pictures(rows, sets), ("a", "b", "c"), perturbed=0)


class TestLabelSets:
    def test_the_first_true_finding_with_a_box_is_explained(self) -> None:
        assert boxed().truths.tolist() == [1, 2, -1, 0]
        assert boxed().removed.tolist() == [True, True, False, True]
        assert some_of(boxed(), 2) == [0, 3]
        assert [boxed().label_names(i) for i in range(4)] == ["a|b", "c", "", "a|c"]

    def test_the_region_is_the_union_of_its_boxes(self) -> None:
        regions = regions_of(boxed(), range(4)).numpy()
        expected = np.zeros((4, SIDE, SIDE), dtype=bool)
        expected[0, 0:3, 2:6] = True
        expected[3, 0:2, 0:1] = True  # 1.5 pixels hold the middle of one
        expected[3, 6:8, 6:8] = True
        np.testing.assert_array_equal(regions, expected)

    def test_at_half_the_size_a_pixel_counts_that_is_half_in_a_box(self) -> None:
        region = regions_of(boxed().resized((4, 4)), [0])[0].numpy()
        expected = np.zeros((4, 4), dtype=bool)
        expected[0:2, 1:3] = True
        np.testing.assert_array_equal(region, expected)


class TestMasks:
    def test_pictures_of_the_first_class_have_no_region(self) -> None:
        masks = np.ones((3, SIDE, SIDE), dtype=np.uint8)
        masks[2] = 0
        samples = samples_of(
            pictures(Toy(label=np.array([0, 1, 1]), mask=masks)), ("no", "yes"), perturbed=0
        )
        assert samples.has_regions
        assert regions_of(samples, range(3)).flatten(1).sum(1).tolist() == [0, SIDE * SIDE, 0]

    def test_a_data_set_without_masks_has_no_region(self) -> None:
        samples = samples_of(pictures(Toy(label=np.array([0, 1]))), ("no", "yes"), perturbed=0)
        assert not samples.has_regions
        assert not regions_of(samples, range(2)).any()


class TestBatches:
    def test_all_pictures_pass_once(self) -> None:
        rows = Toy(label=np.arange(5) % 2)
        samples = samples_of(pictures(rows), ("no", "yes"), perturbed=0)
        found = list(batches_of(samples, 2))
        assert [list(batch.indices) for batch in found] == [[0, 1], [2, 3], [4]]
        assert torch.equal(batch_at(samples, [4]).raw, found[2].raw)


class TestSpreadOver:
    CLASSES = np.array([0] * 12 + [1] * 4 + [-1] * 2)
    PATIENTS = tuple(f"p{i // 3}" for i in range(18))

    @pytest.mark.parametrize(("wanted", "first", "second"), [(6, 3, 3), (12, 8, 4), (0, 12, 4)])
    def test_classes_alike_and_what_small_ones_leave_to_the_larger(
        self, wanted: int, first: int, second: int
    ) -> None:
        chosen = spread_over(self.CLASSES, self.PATIENTS, wanted=wanted, seed=0)
        assert (chosen[:12].sum(), chosen[12:16].sum()) == (first, second)
        assert not chosen[16:].any()

    @pytest.mark.parametrize("seed", range(5))
    def test_no_patient_is_taken_twice_before_all_were_taken_once(self, seed: int) -> None:
        chosen = spread_over(self.CLASSES[:12], self.PATIENTS[:12], wanted=4, seed=seed)
        taken = [self.PATIENTS[i] for i in np.flatnonzero(chosen)]
        assert sorted(taken) == ["p0", "p1", "p2", "p3"]

    def test_nothing_to_choose_from(self) -> None:
        assert not spread_over(np.full(3, -1), ("a", "b", "c"), wanted=2, seed=0).any()
