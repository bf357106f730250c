"""What stands beside the shards: tables, card with leak probe, contact sheet, Croissant."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import card, qc
from pipelines.probe import LeakProbe, probe
from preprocessing.atomic_files import atomic_write
from preprocessing.records import Exclusion, Mapper
from preprocessing.shards import FieldSpec

EXCLUSIONS = "exclusions.csv"
EXCLUSION_COLUMNS = ("code", "subject_id", "where", "detail", "files")


def write_beside(
    out: Path,
    manifest: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    exclusions: Sequence[Exclusion],
    layout: Mapping[str, FieldSpec],
    *,
    mapper: Mapper = map,
) -> LeakProbe:
    """Write everything of a data set that is neither shard nor manifest.

    Returns
    -------
    LeakProbe
        What the card says about leaks.
    """
    columns = list(dict.fromkeys(name for row in samples for name in row))
    table = _csv(columns, samples)
    atomic_write(out / "samples.csv", table)
    atomic_write(
        out / EXCLUSIONS,
        _csv(
            EXCLUSION_COLUMNS,
            [{name: getattr(item, name) for name in EXCLUSION_COLUMNS} for item in exclusions],
        ),
    )
    qc.write_all(out, manifest, samples, mapper=mapper)
    found = probe(out, manifest, samples, mapper=mapper)
    text = card.render_card(manifest, samples, exclusions, found=found)
    atomic_write(out / "README.md", text.encode("utf-8"))
    described = card.croissant(
        manifest, layout=layout, samples_csv=table, license_text=card.license_of(text)
    )
    content = json.dumps(described, indent=2, ensure_ascii=False)
    atomic_write(out / "croissant.json", content.encode("utf-8"))
    return found


def read_exclusions(out: Path) -> tuple[Exclusion, ...]:
    """Read ``exclusions.csv`` back."""
    with (out / EXCLUSIONS).open(encoding="utf-8", newline="") as stream:
        return tuple(
            Exclusion(
                code=row["code"],
                subject_id=row["subject_id"],
                where=row["where"],
                detail=row["detail"],
                files=int(row["files"]),
            )
            for row in csv.DictReader(stream)
        )


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8")
