"""Pictures that may be of several classes at once: a set of labels for each, in place of one label.

A data set says so itself, by the field ``labels`` of its rows. Then every class (here: finding) is
a question of its own, answered by a sigmoid; a row without any finding is a row like the others.
Axes: n sample, k class.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped, UInt8
from torch import Tensor

from pipelines.errors import DataError

FIELD = "labels"
"""Field of a row: 1 for every class that the picture shows, in the order of the classes."""
SEPARATOR = "|"
TaskKind = Literal["multi-class", "multi-label"]
Labels = Int64[np.ndarray, " n"] | UInt8[np.ndarray, "n k"]
"""One class number per picture, or one 0 or 1 per picture and class."""


@runtime_checkable
class Readable(Protocol):
    """What this module asks of a data set view."""

    @property
    def fields(self) -> Sequence[str]:
        """Names that ``read`` knows."""
        ...

    def read(self, i: int, names: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Read the named fields of one row."""
        ...


def task_of(fields: Collection[str]) -> TaskKind:
    """Say whether rows with these fields have one class each or a set of them."""
    return "multi-label" if FIELD in fields else "multi-class"


def read_label_sets(rows: Readable, positions: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n k"]:
    """Read the label sets of some rows, without their pictures.

    Raises
    ------
    DataError
        ``BAD_LABELS`` where one holds anything but 0 and 1.
    """
    found = [rows.read(int(i), (FIELD,))[FIELD] for i in positions]
    if not found:
        return np.zeros((0, 0), dtype=np.uint8)
    sets = np.stack(found)
    wrong = sets[(sets != 0) & (sets != 1)]
    if wrong.size:
        raise DataError(
            "BAD_LABELS",
            f"'{FIELD}' holds {wrong.flat[0]:g}; it says 1 for every class that a picture shows "
            "and 0 for every other: leave out pictures of which that is not known",
        )
    return sets.astype(np.uint8)


def probabilities(logits: Float[Tensor, "n k"], task: TaskKind) -> Float64[np.ndarray, "n k"]:
    """Softmax of the logits, or the sigmoid of each where classes do not exclude each other."""
    exact = logits.detach().double()
    found = exact.sigmoid() if task == "multi-label" else exact.softmax(dim=1)
    return found.cpu().numpy()


def names_of(label_set: Shaped[np.ndarray, " k"], classes: Sequence[str]) -> tuple[str, ...]:
    """Names of the classes that a picture shows."""
    return tuple(classes[int(i)] for i in np.flatnonzero(label_set))


def columns(
    label_set: Shaped[np.ndarray, " k"] | None,
    found: Float[np.ndarray, " k"],
    classes: Sequence[str],
) -> dict[str, str]:
    """Truth and probability of every class for one line of a table; no truth where not known."""
    truth = [""] * len(classes) if label_set is None else [str(int(value)) for value in label_set]
    return {f"truth_{name}": value for name, value in zip(classes, truth, strict=True)} | {
        f"probability_{name}": f"{value:.6f}" for name, value in zip(classes, found, strict=True)
    }
