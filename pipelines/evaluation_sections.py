"""What a part of an evaluation's page holds: a question, figures, tables, claims, cases."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.evaluation_cells import Row
from pipelines.evaluation_gallery import Group
from pipelines.evaluation_tables import EvaluationTable


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTable:
    """A table with the name of its files."""

    name: str
    table: EvaluationTable


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFigure:
    """A figure with its words."""

    title: str
    caption: str
    png: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page that answers one question.

    Attributes
    ----------
    name
        Its anchor.
    texts
        Paragraphs under the heading.
    findings
        Claims that belong to it, as ``finding_rows``.
    groups
        Cases that belong to it.
    """

    name: str
    heading: str
    texts: Sequence[str] = ()
    figures: Sequence[NamedFigure] = ()
    tables: Sequence[NamedTable] = ()
    findings: Sequence[Row] = ()
    groups: Sequence[Group] = field(default=(), repr=False)
