"""A run and scans to explanations: maps, overlays, pages, and maps in patient space.

Pictures are explained batch by batch and written as they come, so that memory does not grow with
the data set.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from models.explainers.verify import Verification
from models.records import Attribution
from pipelines import explain_files as files
from pipelines import explain_methods as methods
from pipelines import explain_pictures as drawn
from pipelines import gallery, pages
from pipelines import run as run_files
from pipelines.assemble import pick_device
from pipelines.config import ExplainConfig, RunConfig
from pipelines.errors import RunExists, UsageError
from pipelines.explain_batches import batch_of, map_of, ranges, scans_of
from pipelines.explain_records import Map, Scan, Task, VolumeExport
from pipelines.explain_report import ExplainReport
from pipelines.explain_sources import NewScans, from_dataset, from_dicom
from pipelines.label_permutation import remarks_on_labels
from pipelines.loading import load_network
from pipelines.progress import Progress, silent
from preprocessing.journal import OutputLock
from preprocessing.records import Exclusion

PICTURES_ON_PAGE = 240  # a page of more cannot be scrolled, nor opened on a small machine


def explain(
    settings: ExplainConfig,
    *,
    run: Path,
    out: Path,
    data: Path | None = None,
    dicom_dir: Path | None = None,
    key: bytes | None = None,
    export: VolumeExport | None = None,
    progress: Progress = silent,
) -> ExplainReport:
    """Explain a split of a data set, or the scans in a DICOM folder.

    Parameters
    ----------
    run
        Written by training; its ``config.yaml`` says how pictures are prepared.
    out
        A new or empty folder.
    key
        Pseudonym key for ``dicom_dir``; None draws one.
    export
        Writes the maps of ``dicom_dir``'s series under their own identifiers, into another folder.

    Raises
    ------
    UsageError
        Unknown methods, neither or both sources, a named method that cannot explain the network,
        an export that has no series or lies in ``out``.
    MemoryShortError
        A batch does not fit into memory.
    RunError
        The run is incomplete, foreign or was altered.
    DataError
        The data set does not fit the run; no scan can be used.
    RunExists
        ``out``, or the export's folder, holds something already.
    """
    if (data is None) == (dicom_dir is None):
        raise UsageError("ONE_SOURCE", "name either a data set or a folder of DICOM, not both")
    asked = methods.chosen(settings)
    config = run_files.read_config(run)
    _refuse_export(export, dicom_dir=dicom_dir, out=out, config=config)
    device = pick_device(settings.device)
    network = load_network(run, config).to(device)
    exclusions: tuple[Exclusion, ...] = ()
    if data is not None:
        scans = from_dataset(data, config, split=settings.split)
    else:
        scans, exclusions = from_dicom(
            _given(dicom_dir),
            config,
            key=key,
            with_series=export is not None,
            progress=progress,
        )
    task = Task(
        config=config, settings=settings, scans=scans, network=network, device=device, out=out
    )
    _refuse_full(out)
    first = batch_of(task, ranges(task)[0])
    found = methods.fitting(asked, task, first, progress)
    out.mkdir(parents=True, exist_ok=True)
    with OutputLock(out):
        checks = methods.verified(found.explainers, task, progress) if settings.verify else {}
        work = _Work(task=task, found=found, checks=checks, export=export)
        return _explain(work, exclusions, progress)


def _given(path: Path | None) -> Path:
    if path is None:
        raise UsageError("ONE_SOURCE", "name either a data set or a folder of DICOM")
    return path


def _refuse_export(
    export: VolumeExport | None, *, dicom_dir: Path | None, out: Path, config: RunConfig
) -> None:
    if export is None:
        return
    if dicom_dir is None or config.data.recipe != "fdg-pet":
        raise UsageError(
            "NO_SERIES",
            "maps can be written as DICOM only into the study of the series that they explain: "
            "name it with --dicom-dir, with a run that was trained on DICOM series (fdg-pet)",
        )
    place, other = export.folder.resolve(), out.resolve()
    if place.is_relative_to(other) or other.is_relative_to(place):
        raise UsageError(
            "IDENTIFIED_OUTPUT",
            "DICOM maps hold the patient's identifiers and --out holds pseudonyms: name two "
            "folders of which neither lies in the other",
        )
    _refuse_full(export.folder)


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunExists(
            "OUTPUT_EXISTS",
            "the output folder exists and is not empty: name another --out or --dicom-out",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A task with what is known of its methods."""

    task: Task
    found: methods.Fitting = field(repr=False)
    checks: Mapping[str, Verification] = field(repr=False)
    export: VolumeExport | None

    def maps(self, progress: Progress) -> Iterator[tuple[Scan, list[Map]]]:
        """Explain batch by batch, and yield scan by scan."""
        count, kinds = self.task.count, len(self.found.explainers)
        for indices in ranges(self.task):
            batch = batch_of(self.task, indices)
            attributions = {}
            for name, explainer in self.found.explainers.items():
                attributions[name] = (
                    self.found.first[name]
                    if indices.start == 0
                    else methods.explained(explainer, self.task, batch)
                )
                done = indices.start * kinds + len(attributions) * len(indices)
                progress("maps", done, count * kinds)
            for place, scan in enumerate(scans_of(self.task, batch)):
                yield scan, self._maps_of(scan, attributions, place)

    def _maps_of(
        self, scan: Scan, attributions: Mapping[str, Sequence[Attribution]], place: int
    ) -> list[Map]:
        return [
            map_of(
                self.task,
                scan,
                level,
                place=place,
                explainer=name,
                condemned=methods.condemned(self.checks.get(name)),
            )
            for name, levels in attributions.items()
            for level in levels
        ]


def _explain(work: _Work, exclusions: tuple[Exclusion, ...], progress: Progress) -> ExplainReport:
    task = work.task
    for folder in (files.MAPS, drawn.OVERLAYS, files.VOLUMES):
        (task.out / folder).mkdir()
    left = _Left(task=task, in_gallery=_in_gallery(task))
    for done, (scan, maps) in enumerate(work.maps(progress), start=1):
        left.take(scan, maps)
        _export(work, scan, maps)
        progress("explaining", done, task.count)
    for folder in (drawn.OVERLAYS, files.VOLUMES):
        if not any((task.out / folder).iterdir()):
            (task.out / folder).rmdir()
    report = ExplainReport(
        rows=tuple(left.rows),
        probabilities=left.probabilities,
        overlaps=files.overlaps_of(left.rows),
        exclusions=exclusions,
        left_out=work.found.left_out,
        verification=tuple(methods.verification_rows(work.checks)),
    )
    _write(task, report, left, exported=work.export is not None)
    return report


@dataclass(slots=True, kw_only=True)
class _Left:
    """What is kept of scans whose files are written: rows, and as many pictures as a page holds."""

    task: Task
    in_gallery: frozenset[int]
    rows: list[dict[str, Any]] = field(default_factory=list)
    cases: list[pages.CaseView] = field(default_factory=list)
    shown: list[gallery.GalleryCase] = field(default_factory=list)
    probabilities: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: int = 0

    def take(self, scan: Scan, maps: Sequence[Map]) -> None:
        """Write the files of one scan."""
        images = drawn.draw(self.task, scan, maps)
        self.rows += files.write(self.task, scan, maps)
        named = zip(self.task.classes, scan.probabilities, strict=True)
        self.probabilities[scan.name] = {name: float(value) for name, value in named}
        if self.pictures + len(maps) < PICTURES_ON_PAGE or not self.cases:
            self.pictures += len(maps) + 1
            self.cases.append(drawn.case_view(self.task, scan, images))
        if scan.index in self.in_gallery:
            self.shown.append(drawn.gallery_case(self.task, scan, maps))


def _in_gallery(task: Task) -> frozenset[int]:
    """Choose rows from the first to the last, of every class in turn."""
    wanted = task.settings.gallery if task.settings.overlays else 0
    labels = task.scans.labels[: task.count]
    kinds = [np.flatnonzero(labels == kind).tolist() for kind in np.unique(labels)]
    queues = [[own[place] for place in methods.spread(len(own), wanted)] for own in kinds]
    turns = chain.from_iterable(zip_longest(*queues))
    return frozenset(islice((i for i in turns if i is not None), wanted))


def _export(work: _Work, scan: Scan, maps: Sequence[Map]) -> None:
    """Write a scan's maps as DICOM; an archive of patients gets no map that is refused."""
    export, scans = work.export, work.task.scans
    if export is None or not isinstance(scans, NewScans):
        return
    series = scans.series[scans.sample_ids[scan.index]]
    for found in maps:
        if found.word == "refused":
            continue
        target = "" if found.target < 0 else f" for {work.task.classes[found.target]}"
        export.write(
            series,
            files.volume_of(scan, found),
            signed=found.signed,
            name=found.method,
            about=f"{found.method}{target} ({found.word or 'not checked'})",
            remark=drawn.caption(work.task, scan, found),
        )


def _write(task: Task, report: ExplainReport, left: _Left, *, exported: bool) -> None:
    """Write the tables and the pages."""
    run_files.write_table(task.out / files.TABLE, report.rows)
    files.write_predictions(task, report.probabilities)
    files.write_exclusions(task, report.exclusions)
    files.write_verification(task, report.verification)
    tables = files.tables_of(report.rows, report.verification, report.left_out)
    notes = [f"The run is {remark}." for remark in remarks_on_labels(task.config.train)]
    notes += [f"Refused, {item.code}: {item.detail}" for item in report.exclusions]
    refused = {str(row["method"]) for row in report.rows if row["verdict"] == "refused"}
    if exported and refused:
        notes.append(
            f"Maps that are refused were not written as DICOM: {', '.join(sorted(refused))}"
        )
    if left.shown:
        verdicts = {str(row["method"]): str(row["verdict"]) for row in report.verification}
        checks = {str(r["method"]): verdicts.get(str(r["explainer"]), "") for r in report.rows}
        drawn.write_gallery(task, left.shown, checks=checks, intro=files.INTRO, tables=tables)
    page = files.page(
        task,
        left.cases,
        report.overlaps,
        notes=notes,
        tables=tables,
        gallery=drawn.GALLERY if left.shown else "",
    )
    run_files.write_text(task.out / files.PAGE, page)
