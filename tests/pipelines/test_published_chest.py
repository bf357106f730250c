"""Published numbers, spot-checked, and laws that hold of any such table."""

import numpy as np
import pytest

from models.metrics.boxes import HIT_LEVELS
from pipelines.box_truth import PUBLISHED_ORDER
from pipelines.published_chest import KHAKZAR_AREAS, WANG_AREAS, WANG_IOBB
from preprocessing.chestxray import CLASSES


def test_every_level_and_finding_is_there() -> None:
    assert tuple(WANG_IOBB) == HIT_LEVELS
    for row in WANG_IOBB.values():
        assert tuple(row.accuracy) == tuple(row.false_boxes) == PUBLISHED_ORDER == CLASSES[:8]
    assert set(KHAKZAR_AREAS) == set(CLASSES)
    assert set(WANG_AREAS) == set(PUBLISHED_ORDER)


@pytest.mark.parametrize("finding", PUBLISHED_ORDER)
def test_accuracy_falls_with_t_and_false_boxes_rise(finding: str) -> None:
    accuracy = [WANG_IOBB[level].accuracy[finding] for level in HIT_LEVELS]
    false = [WANG_IOBB[level].false_boxes[finding] for level in HIT_LEVELS]
    assert accuracy == sorted(accuracy, reverse=True)
    assert false == sorted(false)
    assert 0 < min(accuracy) < max(accuracy) <= 1


def test_some_numbers_are_those_of_the_source() -> None:
    assert WANG_IOBB[0.1].accuracy["Cardiomegaly"] == 0.9931
    assert WANG_IOBB[0.25].false_boxes["Nodule"] == 0.6158
    assert WANG_IOBB[0.5].accuracy["Infiltration"] == 0.4227
    assert WANG_IOBB[0.75].accuracy["Pneumothorax"] == 0.1020
    assert WANG_IOBB[0.9].false_boxes["Atelectasis"] == 1.0752
    assert WANG_AREAS["Mass"] == 0.5609
    assert np.mean(list(KHAKZAR_AREAS.values())) == pytest.approx(0.7905, abs=1e-3)
