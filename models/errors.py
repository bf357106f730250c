"""Every refusal of the models room, typed and coded.

::

    ModelError (ValueError)       code, the value seen, the way out
    ├── ShapeError                tensors whose sizes do not belong together
    ├── NetworkError              a network, variant or option that is unknown or cannot be built
    ├── LossError                 labels or weights that no loss can be computed from
    ├── ExplainerError            a model, layer or target that cannot be explained as asked
    ├── AttackError               a perturbation or robust objective that cannot be made as asked
    └── MetricError               a map or mask that cannot be measured
"""

from collections.abc import Iterable
from difflib import get_close_matches


class ModelError(ValueError):
    """A refusal with a stable upper-case ``code``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle through worker processes with the code kept."""
        return type(self), (self.code, str(self))


class ShapeError(ModelError):
    """Tensors whose sizes do not belong together."""


class NetworkError(ModelError):
    """A network, variant or option that does not exist or cannot be built."""


class LossError(ModelError):
    """Labels or weights that no loss can be computed from."""


class ExplainerError(ModelError):
    """A model, layer or target that cannot be explained as asked."""


class AttackError(ModelError):
    """A perturbation or robust objective that cannot be made as asked."""


class MetricError(ModelError):
    """A map or mask that cannot be measured."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is not in a registry, with the nearest one that is."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"no {kind} '{name}'; {hint}known: {', '.join(names)}"
