"""Every refusal of the training and explaining steps, typed, coded, with its exit code.

::

    PipelineError            code, what was seen, how to mend it, exit code of the command line
    ├── UsageError           2  a name or a setting cannot be used as asked
    ├── DataError            3  the data set cannot train or be explained by this run
    ├── RunError             3  a run folder is incomplete, foreign or was altered
    ├── RunExists            4  the output folder exists or is locked
    ├── DivergedError        2  the loss is no longer a number; a setting must change
    ├── MemoryShortError     2  a batch does not fit into memory; a setting must change
    ├── PeerFailed           1  another process of this training refused, and says why
    └── PeerLost             1  another process of this training died or does not answer

A message never holds an identifier, a date, a file name or a path of the user's data. The names of
the files that a run itself consists of are not private and may appear. A full disk and a second
writer are ``preprocessing.errors.OutputError``.
"""

from typing import ClassVar


class PipelineError(Exception):
    """A refusal with a stable upper-case ``code`` and the exit code of the command line."""

    exit_code: ClassVar[int] = 2

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle through worker processes with the code kept."""
        return type(self), (self.code, str(self))


class UsageError(PipelineError):
    """A name or a setting cannot be used as asked."""


class DataError(PipelineError):
    """The data set cannot train, or does not fit the run."""

    exit_code = 3


class RunError(PipelineError):
    """A run folder is incomplete, foreign or was altered."""

    exit_code = 3


class RunExists(PipelineError):
    """The output folder exists, or another process writes into it."""

    exit_code = 4


class DivergedError(PipelineError):
    """The loss is no longer a number."""


class MemoryShortError(PipelineError):
    """A batch, or what training keeps beside it, does not fit into memory."""


class PeerFailed(PipelineError):
    """Another process of the same training refused: it says why, and this one says nothing."""

    exit_code = 1


class PeerLost(PipelineError):
    """Another process of the same training died, or does not answer."""

    exit_code = 1
