import io

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread
from numpy.testing import assert_allclose
from scipy.stats import binomtest

from pipelines import plots
from pipelines.plots import Estimate, bars, calibration, confusion, curves, roc

CLASSES = ("normal", "mild", "severe")
NAN = float("nan")


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    probabilities = rng.dirichlet((1, 1, 1), 40) + 0.5 * np.eye(3)[labels]
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.fixture
def lines(monkeypatch):
    """Label -> points of every line that was plotted."""
    seen = {}
    plot = Axes.plot

    def record(self, x, y, *rest, **style):
        seen[style.get("label", "")] = (np.atleast_1d(x), np.atleast_1d(y))
        return plot(self, x, y, *rest, **style)

    monkeypatch.setattr(Axes, "plot", record)
    return seen


EPOCHS = [
    {"epoch": 1, "train_loss": 1.1, "validation_loss": 1.2, "validation_balanced_accuracy": 0.4},
    {"epoch": 2, "train_loss": 0.9, "validation_loss": NAN, "lr": 0.001, "penalty": 0.02},
]


def all_plots(predictions):
    labels, probabilities = predictions
    matrix = np.array([[4, 1, 0], [0, 3, 2], [0, 0, 5]])
    estimates = [Estimate(name="accuracy", value=0.7, low=0.5, high=0.9, chance=1 / 3)]
    return [
        curves(EPOCHS, best_epoch=1, chance=1 / 3),
        confusion(matrix, CLASSES),
        roc(labels, probabilities, CLASSES),
        calibration(labels, probabilities),
        bars(estimates, label="share", title="Test"),
    ]


def test_plots_are_pictures_with_equal_bytes_whatever_the_users_settings(predictions):
    first = all_plots(predictions)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.family": "serif", "axes.facecolor": "red"}):
        second = all_plots(predictions)
    assert first == second
    assert dict(matplotlib.rcParams) == before
    for png in first:
        assert imread(io.BytesIO(png)).std() > 0.01
        assert b"matplotlib" not in png.lower()


def test_curves_group_metrics_by_kind_and_drop_what_was_never_measured():
    rows = [{"epoch": 1, "loss": 1.0, "auc": NAN}, {"epoch": 2, "lr": 0.1, "penalty": 2}]
    epochs, groups = plots._grouped(rows)
    assert epochs.tolist() == [1, 2]
    assert {kind: list(series) for kind, series in groups.items()} == {
        "loss": ["loss"],
        "learning rate": ["lr"],
        "other": ["penalty"],
    }
    assert_allclose(groups["loss"]["loss"], [1.0, NAN])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no epochs to plot"),
        ([{"loss": 1.0}], "needs the key 'epoch'"),
        ([{"epoch": 1, "loss": NAN}], "hold no measured value"),
    ],
)
def test_curves_without_content_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        curves(rows)


def test_confusion_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"confusion matrix \(2, 2\) does not fit 3 classes"):
        confusion(np.eye(2, dtype=int), CLASSES)


def test_confusion_draws_a_class_without_samples():
    assert confusion(np.array([[0, 0], [1, 2]]), ("a", "b"))


def test_roc_runs_from_corner_to_corner_and_names_what_is_not_defined(lines):
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1, 0], [0.4, 0.6, 0], [0.6, 0.4, 0], [0.2, 0.8, 0]])
    roc(labels, probabilities, CLASSES)
    x, y = lines["mild: AUC 0.75 (n = 2)"]
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert len(lines["severe: not defined here"][0]) == 0


def test_roc_with_other_classes_is_refused(predictions):
    with pytest.raises(ValueError, match="3 probabilities for 2 classes"):
        roc(*predictions, ("a", "b"))


@pytest.mark.parametrize("plot", [calibration, lambda y, p: roc(y, p, CLASSES)])
def test_labels_and_probabilities_that_do_not_fit_are_refused(predictions, plot):
    labels, probabilities = predictions
    with pytest.raises(ValueError, match="39 labels for 40 rows of probabilities"):
        plot(labels[1:], probabilities)
    with pytest.raises(ValueError, match="no predictions to plot"):
        plot(labels[:0], probabilities[:0])


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 5), (5, 5), (17, 40)])
def test_interval_of_a_bin_is_wilsons(right, count):
    expected = binomtest(right, count).proportion_ci(method="wilson")
    actual = plots._wilson(np.arange(count) < right)
    assert_allclose(actual, (expected.low, expected.high), atol=1e-4)


def test_calibration_stands_one_or_three_predictions():
    one = np.array([[0.2, 0.8]])
    assert calibration(np.array([1]), one)
    assert calibration(np.array([0, 1, 1]), np.repeat(one, 3, axis=0))


def test_bars_mark_chance_and_stand_a_missing_interval(lines):
    bars(
        [
            Estimate(name="a", value=0.7, low=0.5, high=0.9, chance=0.25),
            Estimate(name="b $x$ 肺", value=0.4, low=NAN, high=NAN),
        ]
    )
    assert "chance or control" in lines


def test_bars_without_estimates_are_refused():
    with pytest.raises(ValueError, match="no estimates to draw"):
        bars([])
