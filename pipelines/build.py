"""A folder of scans to a data set on disk, for every recipe alike.

Cases are derived in worker processes, each into a compressed case file of its own; when all are
done, patients are split and shards are assembled from the case files. Nothing is visible under its
final name before it is complete and re-read, and the manifest comes last: whatever moment a build
is killed at, the same command goes on from there and ends with the same bytes.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines import finish
from pipelines.build_log import BuildLog
from pipelines.config import BuildConfig
from pipelines.derive import Derived, derive_all, refusal, without_twins
from pipelines.errors import DataError, RunExists
from pipelines.place import Placed, Placement, Placing, place_rows
from pipelines.progress import Progress, silent
from pipelines.recipes import RECIPES, Recipe
from pipelines.workers import Workers
from preprocessing import shards
from preprocessing.errors import LabelError, PreprocessingError, ShardError
from preprocessing.journal import Journal, OutputLock
from preprocessing.pseudonyms import Pseudonyms
from preprocessing.records import Discovery, Example, Exclusion

WORKSPACE = ".tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    samples
        Split to number of rows.
    files
        ``seen``, ``used``, ``excluded``, ``skipped``; seen is the sum of the others.
    exclusions
        Everything that was not used, with its reason.
    skipped
        Reason to number of files that were no candidates.
    remarks
        Where the data set is not what was asked for.
    already_complete
        The same build stood there already; nothing was written.
    """

    samples: Mapping[str, int]
    files: Mapping[str, int]
    exclusions: tuple[Exclusion, ...]
    skipped: Mapping[str, int]
    remarks: tuple[str, ...] = ()
    already_complete: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Build:
    """What stays the same from the first to the last step of one build."""

    recipe: Recipe
    config: BuildConfig
    sources: Any
    out: Path
    pseudonyms: Pseudonyms
    progress: Progress

    @property
    def layout(self) -> Mapping[str, shards.FieldSpec]:
        return self.recipe.layout(self.config, self.sources)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything beside the input that decides the bytes of the shards."""
        return {
            "name": self.recipe.name,
            "config": self.config.model_dump(mode="json"),
            "fields": sorted(self.layout),
            "key_id": self.pseudonyms.key_id,
            "code_version": version("dualwitness"),
        }


def build(
    name: str,
    config: BuildConfig,
    sources: Any,
    *,
    out: Path,
    key: bytes,
    workers: int = 1,
    progress: Progress = silent,
) -> BuildReport:
    """Build, go on with, or recognise a data set.

    Raises
    ------
    DataError
        ``NOTHING_USABLE``: no case could be used.
    RunExists
        ``OUTPUT_EXISTS``: the folder holds something else, or a build with other settings or input.
    OutputError
        ``LOCKED`` by another builder; the disk is full or refuses a write.
    """
    recipe = RECIPES[name]
    task = _Build(
        recipe=recipe,
        config=config,
        sources=sources,
        out=out,
        pseudonyms=Pseudonyms(key),
        progress=progress,
    )
    _refuse_foreign(out)
    fresh = not out.exists()
    with OutputLock(out), Workers(workers) as pool:
        try:
            discovery = discover(task.recipe, sources, config, task.pseudonyms, pool, progress)
            inputs = _fingerprint(discovery)
            if (out / shards.MANIFEST).exists():
                report = _recognised(task, inputs)
            else:
                report = _logged(task, discovery, inputs, pool)
        except (DataError, LabelError):
            if fresh:  # nothing to go on with: leave no trace
                shutil.rmtree(out, ignore_errors=True)
            raise
        shutil.rmtree(out / WORKSPACE, ignore_errors=True)
    return report


def _logged(task: _Build, discovery: Discovery, inputs: str, pool: Workers) -> BuildReport:
    log = BuildLog(task.out)
    seen = {"seen": discovery.seen, "cases": len(discovery.cases), "workers": pool.count}
    log.write("begin", **task.settings, **seen)
    with log.failures():
        report = _complete(task, discovery, inputs, pool)
    codes = dict(sorted(Counter(item.code for item in report.exclusions).items()))
    log.write("complete", samples=dict(report.samples), files=dict(report.files), exclusions=codes)
    return report


def discover(
    recipe: Recipe,
    sources: Any,
    config: BuildConfig,
    pseudonyms: Pseudonyms,
    pool: Workers,
    progress: Progress = silent,
) -> Discovery:
    """Look through the input folder and keep the account: every file seen is in one place.

    Raises
    ------
    DataError
        ``NOTHING_USABLE`` with what was seen instead.
    """
    discovery = recipe.discover(sources, config, pseudonyms, pool.map, progress)
    if not discovery.cases:
        raise DataError("NOTHING_USABLE", nothing_usable(recipe, discovery))
    return discovery


def rehearse(
    name: str,
    config: BuildConfig,
    sources: Any,
    *,
    key: bytes,
    workers: int = 1,
    progress: Progress = silent,
) -> BuildReport:
    """Look at headers and tables only, write nothing, and tell what a build would use."""
    recipe = RECIPES[name]
    with Workers(workers) as pool:
        discovery = discover(recipe, sources, config, Pseudonyms(key), pool, progress)
    files = {
        "seen": discovery.seen,
        "used": sum(case.files for case in discovery.cases),
        "excluded": sum(item.files for item in discovery.exclusions),
        "skipped": sum(discovery.skipped.values()),
    }
    return BuildReport(
        samples={}, files=files, exclusions=discovery.exclusions, skipped=discovery.skipped
    )


def nothing_usable(recipe: Recipe, discovery: Discovery) -> str:
    """Say what was seen where nothing could be used."""
    if not discovery.seen:
        return "the folder holds no files: is it the right one?"
    reasons = Counter[str]()
    for item in discovery.exclusions:
        reasons[item.code] += item.files
    reasons.update(discovery.skipped)
    seen = ", ".join(f"{code} {count}" for code, count in reasons.most_common())
    commonest = Counter(item.code for item in discovery.exclusions).most_common(1)
    examples = [item.detail for item in discovery.exclusions if item.code == commonest[0][0]]
    example = f", for example: {examples[0]}" if examples else ""
    return f"none of the {discovery.seen} files can be used ({seen}){example}; {recipe.advice}"


def _refuse_foreign(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RunExists("OUTPUT_EXISTS", "--out names a file: name a new folder")
    ours = (out / shards.MANIFEST, out / WORKSPACE, out / ".lock")
    if any(out.iterdir()) and not any(path.exists() for path in ours):
        raise RunExists(
            "OUTPUT_EXISTS",
            "the output folder holds something that is no data set of this toolkit: "
            "name a new or empty folder with --out",
        )


def _fingerprint(discovery: Discovery) -> str:
    digest = hashlib.sha256()
    for case in discovery.cases:
        digest.update(f"{case.case_id}|{case.fingerprint}\n".encode())
    return digest.hexdigest()


def _recognised(task: _Build, inputs: str) -> BuildReport:
    """Accept a complete data set that this very build would make again, or refuse."""
    manifest = shards.read_manifest(task.out)
    differing = [
        key
        for key, value in (*task.settings.items(), ("inputs_sha256", inputs))
        if manifest.get(key) != value
    ]
    if differing:
        raise RunExists(
            "OUTPUT_EXISTS",
            f"the output folder holds a complete data set that differs in {', '.join(differing)}: "
            "name another folder with --out, or delete this one",
        )
    return BuildReport(
        samples=manifest["counts"]["samples"],
        files=manifest["counts"]["files"],
        exclusions=finish.read_exclusions(task.out),
        skipped=manifest["skipped"],
        remarks=tuple(manifest["remarks"]),
        already_complete=True,
    )


def _complete(task: _Build, discovery: Discovery, inputs: str, pool: Workers) -> BuildReport:
    workspace = task.out / WORKSPACE
    (workspace / "cases").mkdir(parents=True, exist_ok=True)
    journal = Journal(workspace / "journal.jsonl")
    _begin(task, journal)
    _require_space(task, discovery)
    derived, exclusions = _derive(task, discovery, workspace / "cases", pool)
    placement = Placement(
        out=task.out,
        workspace=workspace,
        recipe=task.recipe,
        config=task.config,
        layout=task.layout,
        journal=journal,
    )
    placing = place_rows(derived, placement, progress=task.progress)
    report = BuildReport(
        samples=placing.samples,
        files=_accounts(discovery, derived, exclusions),
        exclusions=exclusions,
        skipped=discovery.skipped,
        remarks=(*_leak_remarks(task), *placing.remarks),
    )
    manifest = _manifest(task, inputs, placing, report)
    task.progress("card and contact sheet", 0, 1)
    found = finish.write_beside(
        task.out,
        manifest,
        _sample_rows(task.recipe, placing.rows),
        exclusions,
        task.layout,
        mapper=pool.map,
    )
    shards.write_manifest(task.out, {**manifest, "leak_probe": found.summary()})
    task.progress("card and contact sheet", 1, 1)
    return report


def _derive(
    task: _Build, discovery: Discovery, folder: Path, pool: Workers
) -> tuple[list[Derived], tuple[Exclusion, ...]]:
    """Derive every case; return what can be used, and everything that cannot, in a stable order."""
    derived, refused = derive_all(
        discovery.cases,
        recipe=task.recipe.name,
        config=task.config,
        layout=task.layout,
        folder=folder,
        mapper=partial(pool.map, guarded=lambda case: case.guarded),
        progress=task.progress,
    )
    derived, twins = without_twins(derived, identifiers=task.recipe.identifiers)
    notes = [note for item in derived for note in item.notes]
    exclusions = tuple(
        sorted(
            (*discovery.exclusions, *refused, *twins, *notes),
            key=lambda item: (item.code, item.subject_id, item.where, item.detail),
        )
    )
    if not derived:
        left = replace(discovery, exclusions=exclusions)
        raise DataError("NOTHING_USABLE", nothing_usable(task.recipe, left))
    return derived, exclusions


def _leak_remarks(task: _Build) -> tuple[str, ...]:
    known = task.recipe.leak(task.config)
    return (f"LEAKS_LABELS: {known}",) if known else ()


def _manifest(task: _Build, inputs: str, placing: Placing, report: BuildReport) -> dict[str, Any]:
    return {
        **task.settings,
        "classes": list(task.recipe.classes),
        "inputs_sha256": inputs,
        "counts": {
            "samples": dict(report.samples),
            "subjects": placing.subjects,
            "files": dict(report.files),
        },
        "exclusions": dict(sorted(Counter(item.code for item in report.exclusions).items())),
        "skipped": dict(sorted(report.skipped.items())),
        "remarks": list(report.remarks),
        "known_leak": task.recipe.leak(task.config),
        "shards": [asdict(record) for record in placing.records],
    }


def _begin(task: _Build, journal: Journal) -> None:
    """Open the journal, or check that the unfinished build in it is this one."""
    events = journal.replay()
    if not events:
        journal.append({"event": "begin", **task.settings})
        return
    begun = {key: value for key, value in events[0].items() if key != "event"}
    differing = [key for key, value in task.settings.items() if begun.get(key) != value]
    if differing:
        raise RunExists(
            "OUTPUT_EXISTS",
            f"the output folder holds an unfinished build that differs in {', '.join(differing)}: "
            "repeat its command to finish it, or delete the folder",
        )


def _require_space(task: _Build, discovery: Discovery) -> None:
    # Case files and shards hold the same compressed bytes, and stand side by side for a while.
    needed = sum(task.recipe.space(case, task.layout) for case in discovery.cases)
    shards.require_space(task.out, 2 * needed)


def _accounts(
    discovery: Discovery, derived: Sequence[Derived], exclusions: Sequence[Exclusion]
) -> dict[str, int]:
    files = {
        "seen": discovery.seen,
        "used": sum(item.case.files for item in derived),
        "excluded": sum(item.files for item in exclusions),
        "skipped": sum(discovery.skipped.values()),
    }
    if files["seen"] != files["used"] + files["excluded"] + files["skipped"]:
        raise ShardError("ACCOUNT", f"the account of the files does not add up: {files}")
    return files


def _sample_rows(recipe: Recipe, placed: Sequence[Placed]) -> list[dict[str, Any]]:
    return [
        {
            "sample_id": item.row.sample_id,
            "subject_id": item.row.subject_id,
            "split": item.split,
            "label": recipe.classes[item.row.label] if item.row.label >= 0 else "",
            "shard": item.shard,
            "row": item.shard_row,
            **item.row.provenance,
        }
        for item in placed
    ]


def derive_examples(
    name: str,
    config: BuildConfig,
    sources: Any,
    *,
    key: bytes,
    progress: Progress = silent,
) -> tuple[list[Example], list[Exclusion]]:
    """Read a folder as ``build`` would, in this process, and keep the rows in memory.

    Raises
    ------
    DataError
        ``NOTHING_USABLE``, with the codes of what was refused.
    """
    recipe = RECIPES[name]
    discovery = recipe.discover(sources, config, Pseudonyms(key), map, progress)
    examples: list[Example] = []
    exclusions = list(discovery.exclusions)
    for done, case in enumerate(discovery.cases, start=1):
        try:
            found = recipe.derive(case, config)
        except PreprocessingError as error:
            exclusions.append(refusal(case, error.code, str(error)))
        else:
            examples += found.examples
            exclusions += found.notes
        progress("cases", done, len(discovery.cases))
    if not examples:
        left = replace(discovery, exclusions=tuple(exclusions))
        raise DataError("NOTHING_USABLE", nothing_usable(recipe, left))
    return examples, exclusions
