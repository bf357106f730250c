"""What the annotations of the code under test are checked with: shapes only where there are shapes.

A check of shapes binds the arguments of every call, which takes longer than most of the functions.
Where no annotation holds an array there is no shape to check, and the types are checked alone.
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import jaxtyping
from beartype import beartype

_with_shapes = jaxtyping.jaxtyped


def has_shapes(annotation: Any) -> bool:
    """Tell whether an array is in the annotation; one that is still text may hold any."""
    if isinstance(annotation, str):
        return True
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else get_args(annotation)
    return any(has_shapes(part) for part in parts)


def checked(thing: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Stand in for ``jaxtyped``: the same decorator, which leaves out what nothing depends on."""
    if thing is None:
        return partial(checked, typechecker=typechecker)
    parts = _functions(thing)
    if any(has_shapes(hint) for part in parts for hint in _hints(part)):
        return _with_shapes(thing, typechecker=typechecker)
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and parts:
            thing.__init__ = beartype(thing.__init__)
        return thing
    return beartype(thing)


def _functions(thing: Any) -> Sequence[Any]:
    if inspect.isclass(thing):
        return [vars(thing)["__init__"]] if "__init__" in vars(thing) else []
    if isinstance(thing, property):
        return [part for part in (thing.fget, thing.fset, thing.fdel) if part is not None]
    return [getattr(thing, "__func__", thing)]


def _hints(function: Any) -> Sequence[Any]:
    return list(getattr(function, "__annotations__", {}).values())
