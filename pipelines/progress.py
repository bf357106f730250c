"""How long work tells whoever watches; drawing is the command line's business."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Called with a stage's name, how much is done, and how much there is (0 while unknown)."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
