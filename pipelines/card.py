"""The data card and the Croissant description that lie beside a data set's shards.

Both hold what the manifest, the samples table and the exclusions say, and nothing else: no path,
no date, no identifier.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import jinja2
import yaml

from data_cards import read_text
from pipelines.card_findings import finding_rows
from pipelines.croissant import describe
from pipelines.errors import DataError
from pipelines.probe import LeakProbe, card_section
from preprocessing.layout import FieldSpec
from preprocessing.records import Exclusion

SPLITS = ("train", "validation", "test")
LICENSE = "none stated; to be set by the owner of the scans"
UNLABELLED = "no label"
_RANGES: tuple[tuple[str, str, str], ...] = (
    ("suv_max", "highest SUV of a projection (g/mL)", ".1f"),
    ("suv_factor", "SUV per Bq/mL", ".3g"),
    ("uptake_min", "minutes from injection to scan, rounded to 5", ".0f"),
    ("spacing_z_mm", "slice spacing (mm)", ".3g"),
    ("slices", "slices", ".0f"),
)


def render_card(
    manifest: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    exclusions: Sequence[Exclusion],
    *,
    found: LeakProbe | None = None,
) -> str:
    """Fill the data set's card template with one build's numbers.

    Parameters
    ----------
    manifest
        Content of ``manifest.json``; keys that are missing leave their line out.
    samples
        Rows of ``samples.csv``.
    found
        What the leak probe says; it stands at the top where it is above chance.

    Raises
    ------
    DataError
        ``CARD``: the data set has no template, or its template breaks ``schema.json``.
    """
    name = str(manifest["name"])
    try:
        template = read_text(f"{name.replace('-', '_')}.md")
    except FileNotFoundError:
        raise DataError(
            "CARD", f"data set '{name}' has no card: write data_cards/{name.replace('-', '_')}.md"
        ) from None
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    context = _context(manifest, samples, exclusions) | _probed(found)
    text = environment.from_string(template).render(context)
    check_card(text)
    return text


def croissant(
    manifest: Mapping[str, Any],
    *,
    layout: Mapping[str, FieldSpec] | None = None,
    samples_csv: bytes | None = None,
    license_text: str = LICENSE,
) -> dict[str, Any]:
    """Describe the data set as Croissant 1.0 JSON-LD; see ``pipelines.croissant.describe``."""
    return describe(manifest, license_text=license_text, layout=layout, samples_csv=samples_csv)


def license_of(text: str) -> str:
    """Return the licence that a card states."""
    return str(_split_front_matter(text)[0]["license"])


def check_card(text: str) -> None:
    """Refuse a card that leaves out what every card must say.

    Raises
    ------
    DataError
        ``CARD``, naming each missing key of the front matter and each missing or empty section.
    """
    schema = json.loads(read_text("schema.json"))
    front, body = _split_front_matter(text)
    missing = [f"key '{key}'" for key in schema["front_matter"] if front.get(key) in (None, "", [])]
    sections = _sections(body)
    missing += [f"section '{title}'" for title in schema["sections"] if not sections.get(title)]
    if missing:
        raise DataError("CARD", f"the data card lacks {', '.join(missing)}: mend its template")
    wanted = [title for title in sections if title in schema["sections"]]
    if wanted != schema["sections"]:
        raise DataError("CARD", "the data card's sections are not in the order of schema.json")


def _split_front_matter(text: str) -> tuple[Mapping[str, Any], str]:
    opening, _, rest = text.partition("---\n")
    front, closing, body = rest.partition("\n---\n")
    if opening or not closing:
        raise DataError("CARD", "the data card does not begin with front matter between --- lines")
    try:
        values = yaml.safe_load(front)
    except yaml.YAMLError:
        raise DataError(
            "CARD", "the data card's front matter is no YAML: quote its values"
        ) from None
    return values if isinstance(values, dict) else {}, body


def _sections(body: str) -> dict[str, str]:
    sections: dict[str, str] = {}
    title = ""
    for line in body.splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ").strip()
            sections[title] = ""
        elif title:
            sections[title] += line.strip()
    return sections


def _probed(found: LeakProbe | None) -> dict[str, Any]:
    if found is None:
        return {"probe_above": False, "probe_section": ""}
    return {"probe_above": found.above_chance, "probe_section": card_section(found)}


def _context(
    manifest: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    exclusions: Sequence[Exclusion],
) -> dict[str, Any]:
    config = dict(manifest.get("config", {}))
    labels = {str(row["label"]) or UNLABELLED for row in samples}
    routes = Counter(str(row["suv_route"]) for row in samples if row.get("suv_route"))
    return {
        "name": manifest["name"],
        "config": config,
        "known_leak": manifest.get("known_leak", ""),
        "classes": list(manifest["classes"]),
        "sample_count": len(samples),
        "subject_count": len({row["subject_id"] for row in samples}),
        "code_version": manifest.get("code_version", "unknown"),
        "key_id": manifest.get("key_id", "unknown"),
        "license": LICENSE,
        "has_mask": "mask" in manifest.get("fields", ()),
        "has_unlabelled": UNLABELLED in labels,
        "vendors": ", ".join(sorted({str(row["vendor"]) for row in samples if row.get("vendor")})),
        "is_paper_formula": config.get("suv_formula") == "paper",
        "routes": sorted(routes.items()),
        "image_size": config.get("image_size", 512),
        "keep_aspect": bool(config.get("keep_aspect", False)),
        "config_yaml": yaml.safe_dump(config, sort_keys=True).rstrip(),
        "class_columns": _class_columns(manifest, labels),
        "split_rows": _split_rows(samples, _class_columns(manifest, labels)),
        "ranges": [
            row for key, title, form in _RANGES for row in _range(samples, key, title, form)
        ],
        "files": _file_counts(manifest),
        "exclusions": _exclusion_rows(exclusions),
        "skipped": sorted(manifest.get("skipped", {}).items()),
        "finding_rows": finding_rows(samples),
        "warnings": sorted(warning_counts(samples).items()),
    }


def warning_counts(samples: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Count the samples that carry each warning code; texts read ``CODE: text | CODE: text``."""
    counts: Counter[str] = Counter()
    for row in samples:
        texts = str(row.get("warnings", "")).split(" | ")
        counts.update({text.partition(":")[0].strip() for text in texts if text.strip()})
    return counts


def _class_columns(manifest: Mapping[str, Any], labels: set[str]) -> list[str]:
    return [*manifest["classes"], *([UNLABELLED] if UNLABELLED in labels else [])]


def _split_rows(
    samples: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for split in (*SPLITS, "all"):
        chosen = [row for row in samples if split in (row["split"], "all")]
        counts = Counter(str(row["label"]) or UNLABELLED for row in chosen)
        rows.append(
            {
                "split": split,
                "counts": [counts[column] for column in columns],
                "samples": len(chosen),
                "subjects": len({row["subject_id"] for row in chosen}),
            }
        )
    return rows


def _range(
    samples: Sequence[Mapping[str, Any]], key: str, title: str, form: str
) -> list[dict[str, str]]:
    values = [float(row[key]) for row in samples if row.get(key) not in (None, "")]
    if not values:
        return []
    numbers = {"low": min(values), "median": median(values), "high": max(values)}
    return [{"title": title, **{name: format(number, form) for name, number in numbers.items()}}]


def _file_counts(manifest: Mapping[str, Any]) -> list[tuple[str, int]]:
    files = manifest.get("counts", {}).get("files", {})
    return [
        (title, files[title]) for title in ("seen", "used", "excluded", "skipped") if title in files
    ]


def _exclusion_rows(exclusions: Sequence[Exclusion]) -> list[dict[str, Any]]:
    times = Counter(item.code for item in exclusions)
    files: Counter[str] = Counter()
    for item in exclusions:
        files[item.code] += item.files
    return [{"code": code, "times": times[code], "files": files[code]} for code in sorted(times)]
