"""A part of an evaluation's page that was measured elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Appendix:
    """What is shown on the page beside what the evaluation itself measured.

    Attributes
    ----------
    name
        Anchor of the section; "" where there is none.
    sentences
        Before the evaluation's own verdict.
    section
        Finished HTML, in which every text is escaped already.
    """

    name: str = ""
    heading: str = ""
    sentences: Sequence[str] = ()
    section: str = field(default="", repr=False)


NO_APPENDIX = Appendix()
