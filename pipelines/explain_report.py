"""What explaining answers with."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.report import Overlap
from preprocessing.records import Exclusion

NAMED_METHODS = 6
"""More are counted in the line that sums up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainReport:
    """What was explained.

    Attributes
    ----------
    rows
        Those of ``explanations.csv``: one per sample and map.
    probabilities
        Sample to class to probability.
    overlaps
        For each map, how well it finds the true region, where the data set has masks.
    exclusions
        New scans that were refused, with their codes.
    left_out
        Methods that the network cannot be explained by, with the reason.
    verification
        Rows of ``verification.csv``: each method's check on the model, where it was asked for.
    """

    rows: tuple[Mapping[str, Any], ...] = field(repr=False)
    probabilities: Mapping[str, Mapping[str, float]] = field(repr=False)
    overlaps: tuple[Overlap, ...] = field(repr=False)
    exclusions: tuple[Exclusion, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    verification: tuple[Mapping[str, Any], ...] = ()

    def summary(self) -> str:
        """Say in one line what was explained."""
        maps = sorted({str(row["method"]) for row in self.rows})
        one = len(self.probabilities) == 1
        scans = "1 scan" if one else f"{len(self.probabilities)} scans"
        told = ", ".join(maps) if len(maps) <= NAMED_METHODS else f"{len(maps)} maps each"
        text = f"{scans} explained by {told}"
        if one:
            ((_, found),) = self.probabilities.items()
            text += "; " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        words = Counter(str(row["verdict"]) for row in self.rows)
        for word in ("doubtful", "refused"):
            if words[word]:
                text += f"; {words[word]} of {len(self.rows)} maps {word}"
        if self.left_out:
            text += f"; the network cannot be explained by {', '.join(self.left_out)}"
        if self.exclusions:
            codes = sorted({item.code for item in self.exclusions})
            text += f"; {len(self.exclusions)} refused ({', '.join(codes)})"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return everything but the overlaps as plain values."""
        return {
            "probabilities": {name: dict(found) for name, found in self.probabilities.items()},
            "explanations": [dict(row) for row in self.rows],
            "exclusions": [asdict(item) for item in self.exclusions],
            "left_out": dict(self.left_out),
            "verification": [dict(row) for row in self.verification],
        }
