"""A panel for each finding: curves from corner to corner, and words where there is none."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from pipelines.finding_plots import calibration_of_each, roc_of_each

NAMES = tuple("abcdefghijklmn")


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sets = (rng.uniform(size=(60, 14)) < 0.2).astype(np.uint8)
    return sets, rng.uniform(size=sets.shape)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    write = Axes.text

    def record(self: Axes, x: float, y: float, text: str, **style: Any) -> Any:
        seen.append(text)
        return write(self, x, y, text, **style)

    monkeypatch.setattr(Axes, "text", record)
    return seen


@pytest.mark.parametrize("plot", [roc_of_each, calibration_of_each])
class TestBoth:
    def test_fourteen_findings_have_panels_in_three_lines(self, predictions, plot) -> None:
        picture = plot(*predictions, NAMES)
        assert picture == plot(*predictions, NAMES)
        height, width, _ = imread(io.BytesIO(picture)).shape
        assert 1.4 * width > height > width

    def test_findings_without_a_curve_take_no_panel(self, predictions, plot, texts) -> None:
        sets, found = predictions
        sets[:, 1:] = 0
        one = plot(sets, found, NAMES)
        assert len(texts) == 1
        sets[:, 0] = 1
        none = plot(sets, found, NAMES)
        assert len(texts) == 1
        assert imread(io.BytesIO(one)).shape == imread(io.BytesIO(none)).shape

    def test_other_counts_are_refused(self, predictions, plot) -> None:
        sets, found = predictions
        with pytest.raises(ValueError, match="14 probabilities for 2 findings"):
            plot(sets, found, ("a", "b"))
        with pytest.raises(ValueError, match="59 labels for 60 rows of probabilities"):
            plot(sets[1:], found, NAMES)
        with pytest.raises(ValueError, match="no predictions to plot"):
            plot(sets[:0], found[:0], NAMES)


def test_roc_names_the_area_and_what_has_none(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    below: list[str] = []
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text, **style: below.append(text))
    sets = np.array([[0, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 1]], dtype=np.uint8)
    found = np.array([[0.1, 0.2, 0.2], [0.6, 0.2, 0.2], [0.4, 0.2, 0.2], [0.8, 0.2, 0.2]])
    roc_of_each(sets, found, ("a", "b", "c"))
    assert texts == ["AUC 0.75 (n = 2)"]
    assert below == ["1 - specificity\nshown always or never: b, c"]


def test_calibration_names_the_seen_and_the_expected_share(texts: list[str]) -> None:
    sets = np.array([[0], [0], [0], [1]], dtype=np.uint8)
    calibration_of_each(sets, np.full((4, 1), 0.5), ("a",))
    assert texts == ["25.0% seen, 50.0% expected"]
