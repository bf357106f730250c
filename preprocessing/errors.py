"""Every refusal of the preprocessing room, typed and coded.

::

    PreprocessingError            code, what was seen, how to mend it
    ├── FileError                 one file cannot be read as what it claims to be
    ├── HeaderError               DICOM attributes are missing, impossible or contradict each other
    ├── GeometryError             slices do not form one regular volume
    ├── ProjectionError           a projector is unknown or cannot run on this machine
    ├── LabelError                a label table is unreadable or contradicts itself
    ├── SplitError                patients cannot be split as asked
    ├── ShardError                a shard, journal or manifest breaks its contract
    └── OutputError               the output folder exists, is locked or cannot be written

A message names the attribute as ``PatientWeight (0010,1030)``, the value seen, the consequence and
the way out. It never holds a patient's name, identifier, UID, date, file name or path.
"""


class PreprocessingError(Exception):
    """A refusal with a stable upper-case ``code`` that users may filter ``exclusions.csv`` by."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Pickle through worker processes with the code kept."""
        return type(self), (self.code, str(self))


class FileError(PreprocessingError):
    """One file cannot be read as what it claims to be."""


class HeaderError(PreprocessingError):
    """DICOM attributes are missing, impossible or contradict each other."""


class GeometryError(PreprocessingError):
    """Slices do not form one regular volume."""


class ProjectionError(PreprocessingError):
    """A projector is unknown or cannot run on this machine."""


class LabelError(PreprocessingError):
    """A label table is unreadable or contradicts itself."""


class SplitError(PreprocessingError):
    """Patients cannot be split as asked."""


class ShardError(PreprocessingError):
    """A shard, journal or manifest breaks its contract."""


class OutputError(PreprocessingError):
    """The output folder exists, is locked or cannot be written."""
