"""What is in a folder, what each series would become, and which files a pseudonym stands for."""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.progress import Progress, silent
from pipelines.workers import Workers
from preprocessing import intake
from preprocessing.intake import SeriesIntake
from preprocessing.pseudonyms import KEY_BYTES, Pseudonyms


def inspect_folder(
    folder: Path, *, workers: int = 1, progress: Progress = silent
) -> dict[str, Any]:
    """Look at every header; decode no pixel, write nothing.

    Pseudonyms are not shown, so a key for this one look is enough.
    """
    pseudonyms = Pseudonyms(secrets.token_bytes(KEY_BYTES))
    if workers == 1:
        found = intake.scan(folder, pseudonyms=pseudonyms, progress=progress)
    else:
        with Workers(workers) as pool:
            found = intake.scan(folder, pseudonyms=pseudonyms, mapper=pool.map, progress=progress)
    return {
        "files": {
            "seen": found.seen,
            "used": found.used,
            "excluded": found.excluded,
            "skipped": sum(found.skipped.values()),
        },
        "series": [_series(item) for item in found.series],
        "skipped": dict(found.skipped),
        "excluded_files": [
            {"code": item.code, "detail": item.detail, "files": item.files}
            for item in found.exclusions
            if item.where.startswith("file")
        ],
    }


def _series(series: SeriesIntake) -> dict[str, Any]:
    conversion = series.suv
    return {
        "modality": series.modality,
        "status": series.status,
        "code": series.code,
        "detail": series.detail,
        "shape": list(series.shape) if series.shape else None,
        "spacing_mm": list(series.spacing_mm) if series.spacing_mm else None,
        "warnings": list(series.warnings),
        "suv": None
        if conversion is None
        else {
            "factors": conversion.factors.tolist(),
            "route": conversion.route,
            "warnings": list(conversion.warnings),
        },
    }


def describe(found: dict[str, Any]) -> Iterator[str]:
    """Say line by line, for people, what ``inspect_folder`` found."""
    files = found["files"]
    yield (
        f"{files['seen']} files seen = {files['used']} used + {files['excluded']} excluded "
        f"+ {files['skipped']} skipped"
    )
    for reason, count in sorted(found["skipped"].items()):
        yield f"  skipped   {count:>6}  {reason}"
    for item in found["excluded_files"]:
        yield f"  excluded  {item['files']:>6}  {item['code']}: {item['detail']}"
    if not found["series"]:
        yield "no series of images was found"
    for number, item in enumerate(found["series"], start=1):
        yield ""
        yield f"series {number}: {item['modality'] or 'no Modality'}, {_verdict(item)}"
        yield from (f"    {line}" for line in _facts(item))


def _verdict(item: dict[str, Any]) -> str:
    return "accepted" if item["status"] == "accepted" else f"excluded, {item['code']}"


def _facts(item: dict[str, Any]) -> Iterator[str]:
    if item["detail"]:
        yield item["detail"]
    if item["shape"] and item["spacing_mm"]:
        voxels = " x ".join(str(count) for count in item["shape"])
        spacing = " x ".join(f"{length:.4g}" for length in item["spacing_mm"])
        yield f"{voxels} voxels of {spacing} mm (z, y, x)"
    if item["suv"]:
        low, high = min(item["suv"]["factors"]), max(item["suv"]["factors"])
        factors = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
        yield f"SUVbw = {factors} x value after rescale; {item['suv']['route']}"
        yield from item["suv"]["warnings"]
    yield from item["warnings"]


def files_behind(folder: Path, names: Sequence[str], *, key: bytes) -> list[Path]:
    """Find the files of patients, series, samples or single files by pseudonym.

    ``names`` may be whole entries of a table's ``where`` column, such as ``series abc``.
    """
    pseudonyms = Pseudonyms(key)
    wanted = {name.split()[-1] for name in names if name.split()}
    found = intake.scan(folder, pseudonyms=pseudonyms)
    paths = [
        instance.path
        for series in found.series
        if wanted & _names_of(series)
        for instance in series.instances
    ]
    root = folder.resolve()
    paths += [
        path
        for path in intake.list_files(folder).files
        if pseudonyms.file(path.relative_to(root)) in wanted
    ]
    return sorted(set(paths))


def _names_of(series: SeriesIntake) -> set[str]:
    sample = f"{series.subject_id[:8]}-{series.series_id[:8]}"
    return {series.subject_id, series.study_id, series.series_id, sample}
