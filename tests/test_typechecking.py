"""What the suite checks annotations with: nothing that is annotated goes unchecked."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError

from models.losses import sample_losses
from pipelines.progress import silent
from preprocessing.splits import check_disjoint
from tests.typechecking import checked, has_shapes

Vector = Float[np.ndarray, " n"]
typed = checked(typechecker=beartype)


@typed
def plain(count: int, *, share: float = 0.5) -> str:
    return "" if share else count  # type: ignore[return-value]


@typed
def product(one: Vector, other: Vector) -> Float[np.ndarray, ""]:
    return np.asarray(one @ other)


@typed
@dataclass(frozen=True)
class Named:
    name: str

    @property
    @typed
    def size(self) -> int:
        return self.name  # type: ignore[return-value]

    @staticmethod
    @typed
    def of(name: str) -> str:
        return name


@typed
@dataclass(frozen=True)
class Pair:
    one: Vector
    other: Vector


def test_types_are_checked_where_there_is_no_array():
    assert plain(1) == ""
    for call in (
        lambda: plain("1"),
        lambda: plain(1, share=1),
        lambda: plain(1, share=0.0),  # which returns an int
        lambda: Named(name=1),
        lambda: Named(name="a").size,
        lambda: Named.of(1),
    ):
        with pytest.raises(BeartypeCallHintViolation):
            call()
    assert dataclasses.asdict(Named(name="a")) == {"name": "a"}


def test_shapes_are_checked_against_each_other():
    assert product(np.ones(3), np.ones(3)) == 3
    assert Pair(one=np.ones(2), other=np.ones(2)).one.sum() == 2
    with pytest.raises(TypeCheckError, match="parameters of"):
        product(np.ones(3), np.ones(2))
    with pytest.raises(TypeCheckError, match="parameters of"):
        Pair(one=np.ones(3), other=np.ones(2))


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (int, False),
        (dict[str, list[int]], False),
        ("int", True),
        (Vector, True),
        (Vector | None, True),
        (dict[str, tuple[Vector, ...]], True),
    ],
)
def test_arrays_are_found_wherever_they_stand(annotation, expected):
    assert has_shapes(annotation) == expected


def test_the_code_under_test_is_checked():
    wrong: Any = 1.5
    with pytest.raises(BeartypeCallHintViolation):
        check_disjoint(wrong)
    with pytest.raises(BeartypeCallHintViolation):
        silent("reading", 1, wrong)
    with pytest.raises(TypeCheckError, match=r"parameters of models\.losses\.sample_losses"):
        sample_losses(wrong, wrong)
