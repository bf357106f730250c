"""Boxes of a data set: reading, drawing on a grid, the mean box, controls."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from models.metrics import centred_gaussian_map
from pipelines.box_controls import CONTROLS, Knowledge, control_maps
from pipelines.box_records import MEAN_BOX, TRUE_BOX
from pipelines.box_truth import (
    PUBLISHED_ORDER,
    BoxCase,
    MeanBoxes,
    box_coverage,
    box_mask,
    cases_of,
    columns_of,
    findings_of,
)
from pipelines.errors import DataError
from pipelines.feed import Pictures
from preprocessing.chestxray import CLASSES

FRAME = (32, 24)


class Held:
    """Rows in memory."""

    fields = ("image", "labels", "boxes")

    def __init__(self, boxes: Sequence[Sequence[Sequence[float]]]) -> None:
        self._boxes = boxes
        self.labels = np.full(len(boxes), -1, dtype=np.int64)
        self.subject_ids = [f"patient{i // 2}" for i in range(len(boxes))]
        self.sample_ids = [f"sample{i}" for i in range(len(boxes))]

    def read(self, i: int, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        table = np.full((4, 5), np.nan, dtype=np.float32)
        table[:, 0] = -1
        for row, box in enumerate(self._boxes[i]):
            table[row] = box
        return {"boxes": table}


def held(boxes: Sequence[Sequence[Sequence[float]]]) -> Pictures:
    return Pictures(
        rows=Held(boxes),
        labels=np.zeros((len(boxes), 14), dtype=np.uint8),
        positions=np.arange(len(boxes)),
        size=FRAME,
    )


def case(finding: int, *boxes: Sequence[float], subject: str = "p", index: int = 0) -> BoxCase:
    return BoxCase(
        index=index,
        sample_id="s",
        subject_id=subject,
        finding=finding,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
    )


class TestReading:
    def test_findings_of_a_picture_are_cases_with_all_their_boxes(self) -> None:
        found = cases_of(
            held([[], [(2, 1, 2, 3, 4), (0, 5, 5, 2, 2), (2, 9, 9, 1, 1)], [(2, 0, 0, 1, 1)]]),
            CLASSES,
        )
        assert [(c.index, c.finding, len(c.boxes)) for c in found] == [
            (1, 2, 2),
            (1, 0, 1),
            (2, 2, 1),
        ]
        assert [c.subject_id for c in found] == ["patient0", "patient0", "patient1"]
        np.testing.assert_array_equal(found[0].boxes, [[1, 2, 3, 4], [9, 9, 1, 1]])

    def test_rows_without_the_field_have_none(self) -> None:
        pictures = held([[(0, 1, 1, 1, 1)]])
        pictures.rows.fields = ("image", "labels")  # pyright: ignore[reportAttributeAccessIssue] - a stub
        assert cases_of(pictures, CLASSES) == []

    @pytest.mark.parametrize(
        "box", [(0, 1, 1, 0, 4), (0, 1, 1, 3, -1), (0, np.nan, 1, 3, 3), (14, 1, 1, 3, 3)]
    )
    def test_a_box_without_size_place_or_class_is_refused(self, box: tuple[float, ...]) -> None:
        with pytest.raises(DataError, match=r"a box is \[.*\] .* for 14 classes") as caught:
            cases_of(held([[box]]), CLASSES)
        assert caught.value.code == "BAD_BOX"

    def test_findings_are_in_the_published_order(self) -> None:
        cases = [case(CLASSES.index(name)) for name in ("Hernia", "Mass", "Atelectasis")]
        found = findings_of(cases, CLASSES)
        assert tuple(CLASSES[k] for k in found) == (*PUBLISHED_ORDER, "Hernia")
        assert columns_of(cases, found).tolist() == [8, 4, 0]
        assert findings_of([case(1)], ("x", "y")) == (1,)


class TestDrawing:
    def test_cells_are_marked_by_their_centres(self) -> None:
        mask = box_mask(np.array([[2.0, 4.0, 3.0, 5.0]]), frame=FRAME, grid=FRAME)
        rows, columns = np.nonzero(mask)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 8, 2, 4)
        assert mask.sum() == 15
        half = box_mask(np.array([[2.6, 0.0, 1.8, 32.0]]), frame=FRAME, grid=FRAME)
        assert np.flatnonzero(half.any(axis=0)).tolist() == [3]

    @pytest.mark.parametrize("grid", [FRAME, (4, 3), (64, 48), (7, 7)])
    @pytest.mark.parametrize(
        "box",
        [(0.0, 0.0, 0.1, 0.1), (23.9, 31.9, 9.0, 9.0), (-3.0, -3.0, 3.5, 3.5), (11.9, 0, 0.2, 32)],
    )
    def test_no_box_vanishes_however_small_and_none_leaves_the_grid(
        self, grid: tuple[int, int], box: tuple[float, ...]
    ) -> None:
        assert box_mask(np.array([box], dtype=float), frame=FRAME, grid=grid).any()

    def test_a_box_on_the_border_is_cut(self) -> None:
        mask = box_mask(np.array([[20.0, 28.0, 10.0, 10.0]]), frame=FRAME, grid=FRAME)
        assert mask.sum() == 16
        assert mask[-4:, -4:].all()

    @pytest.mark.parametrize("grid", [FRAME, (4, 3), (64, 48), (7, 5)])
    def test_coverage_adds_up_to_the_area(self, grid: tuple[int, int]) -> None:
        boxes = np.array([[1.3, 2.7, 8.1, 9.9], [14.2, 20.1, 3.3, 4.4]])
        share = box_coverage(boxes, frame=FRAME, grid=grid).mean()
        assert share == pytest.approx((8.1 * 9.9 + 3.3 * 4.4) / (32 * 24))
        twice = box_coverage(np.repeat(boxes, 2, axis=0), frame=FRAME, grid=FRAME)
        assert twice.max() == 1


def there(mean: np.ndarray | None) -> np.ndarray:
    """Return a mean that is not missing."""
    assert mean is not None
    return mean


class TestMeanBox:
    cases = (
        case(0, (1, 1, 8, 8), subject="a"),
        case(0, (4, 4, 8, 8), subject="a"),
        case(0, (10, 10, 4, 9), subject="b"),
        case(1, (2, 2, 5, 5), subject="b"),
    )

    def test_is_that_of_other_patients_by_a_loop(self) -> None:
        means = MeanBoxes(cases=self.cases, frame=FRAME, grid=(8, 6), leave_out=True)
        own = [box_coverage(c.boxes, frame=FRAME, grid=(8, 6)) for c in self.cases]
        np.testing.assert_allclose(there(means.of(self.cases[0])), own[2])
        np.testing.assert_allclose(there(means.of(self.cases[2])), (own[0] + own[1]) / 2)
        assert means.of(self.cases[3]) is None

    def test_of_training_leaves_nobody_out(self) -> None:
        means = MeanBoxes(cases=self.cases, frame=FRAME, grid=(8, 6), leave_out=False)
        own = [box_coverage(c.boxes, frame=FRAME, grid=(8, 6)) for c in self.cases]
        np.testing.assert_allclose(there(means.of(self.cases[0])), sum(own[:3]) / 3)
        assert means.of(case(1, (9, 9, 1, 1), subject="b")) is not None


class TestControls:
    def known(self, seeds: Sequence[int] = (5, 6, 7, 8), **changes: Any) -> Knowledge:
        means = MeanBoxes(cases=TestMeanBox.cases, frame=FRAME, grid=(8, 6), leave_out=True)
        return Knowledge(means=means, frame=FRAME, grid=FRAME, seeds=seeds)

    @pytest.mark.parametrize("name", CONTROLS)
    def test_cases_are_drawn_alike_alone_and_together(self, name: str) -> None:
        together = control_maps(name, range(4), TestMeanBox.cases, self.known())
        alone = [control_maps(name, [i], TestMeanBox.cases, self.known()) for i in range(4)]
        torch.testing.assert_close(together, torch.cat(alone), equal_nan=True)

    def test_each_is_what_its_name_says(self) -> None:
        known, cases = self.known(), TestMeanBox.cases
        assert control_maps("uniform", range(4), cases, known).std() == 0
        bell = control_maps("centred Gaussian", [0], cases, known)
        torch.testing.assert_close(bell, centred_gaussian_map((1, *FRAME)))
        truth = control_maps(TRUE_BOX, [2], cases, known)[0].numpy()
        np.testing.assert_array_equal(truth, box_mask(cases[2].boxes, frame=FRAME, grid=FRAME))
        place = control_maps(MEAN_BOX, range(4), cases, known)
        assert place[3].isnan().all()
        assert place[:3].isfinite().all()

    def test_a_random_map_is_of_its_own_seed(self) -> None:
        one = control_maps("random", [0, 1], TestMeanBox.cases, self.known(seeds=(1, 2)))
        other = control_maps("random", [0, 1], TestMeanBox.cases, self.known(seeds=(1, 3)))
        assert torch.equal(one[0], other[0])
        assert not torch.equal(one[1], other[1])
        assert not torch.equal(one[0], one[1])
