"""A run and scans to explanations: maps, overlays, one page, and maps in patient space.

Pictures are explained batch by batch and written as they come, so that memory does not grow with
the data set. Axes: b batch, k class, h row, w column.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from models.errors import ModelError, unknown
from models.explainers import EXPLAINERS
from models.metrics import random_map, score, uniform_map
from models.networks import Classifier
from models.records import Attribution
from models.scoped import evaluating
from pipelines import explain_files as files
from pipelines import pages
from pipelines import run as run_files
from pipelines.assemble import network_of, pick_device
from pipelines.config import ExplainConfig, RunConfig
from pipelines.errors import RunExists, UsageError
from pipelines.explain_files import Map, Scan, Task
from pipelines.explain_sources import from_dataset, from_dicom
from pipelines.feed import normalise, pictures
from pipelines.progress import Progress, silent
from pipelines.report import Overlap
from preprocessing.journal import OutputLock
from preprocessing.records import Exclusion

LOCALISATION = ("average_precision", "iou_equal_area", "mass_inside")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CASES_ON_PAGE = 60  # a page of more cannot be scrolled, nor opened on a small machine


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
    """

    rows: tuple[Mapping[str, Any], ...] = field(repr=False)
    probabilities: Mapping[str, Mapping[str, float]] = field(repr=False)
    overlaps: tuple[Overlap, ...] = field(repr=False)
    exclusions: tuple[Exclusion, ...] = ()

    def summary(self) -> str:
        """Say in one line what was explained."""
        maps = sorted({str(row["method"]) for row in self.rows})
        one = len(self.probabilities) == 1
        scans = "1 scan" if one else f"{len(self.probabilities)} scans"
        text = f"{scans} explained by {', '.join(maps)}"
        if one:
            ((_, found),) = self.probabilities.items()
            text += "; " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        if self.exclusions:
            codes = sorted({item.code for item in self.exclusions})
            text += f"; {len(self.exclusions)} refused ({', '.join(codes)})"
        return text

    def as_json(self) -> dict[str, Any]:
        """Return probabilities, rows and exclusions as plain values."""
        return {
            "probabilities": {name: dict(found) for name, found in self.probabilities.items()},
            "explanations": [dict(row) for row in self.rows],
            "exclusions": [asdict(item) for item in self.exclusions],
        }


def explain(
    settings: ExplainConfig,
    *,
    run: Path,
    out: Path,
    data: Path | None = None,
    dicom_dir: Path | None = None,
    key: bytes | None = None,
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

    Raises
    ------
    UsageError
        Unknown methods, neither or both sources, no attention to show.
    RunError
        The run is incomplete, foreign or was altered.
    DataError
        The data set does not fit the run; no scan can be used.
    RunExists
        ``out`` holds something already.
    """
    if (data is None) == (dicom_dir is None):
        raise UsageError("ONE_SOURCE", "name either a data set or a folder of DICOM, not both")
    config = run_files.read_config(run)
    device = pick_device(settings.device)
    network = _load(run, config).to(device)
    _refuse_methods(settings.methods, network)
    exclusions: tuple[Exclusion, ...] = ()
    if data is not None:
        scans = from_dataset(data, config, split=settings.split)
    else:
        scans, exclusions = from_dicom(_given(dicom_dir), config, key=key, progress=progress)
    _claim(out)
    with OutputLock(out):
        task = Task(
            config=config,
            settings=settings,
            scans=scans,
            network=network,
            device=device,
            out=out,
        )
        return _explain(task, exclusions, progress)


def _given(path: Path | None) -> Path:
    if path is None:
        raise UsageError("ONE_SOURCE", "name either a data set or a folder of DICOM")
    return path


def _load(run: Path, config: RunConfig) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced at once
        network = network_of(config)
    run_files.load_weights(run, network)
    return network.eval()


def _refuse_methods(methods: Sequence[str], network: Classifier) -> None:
    for method in methods:
        if method not in EXPLAINERS:
            raise UsageError("UNKNOWN_METHOD", unknown("method", method, EXPLAINERS))
    if not methods:
        raise UsageError("UNKNOWN_METHOD", f"no method named; known: {', '.join(EXPLAINERS)}")
    if "attention" in methods and not network.map_names and len(methods) == 1:
        raise UsageError(
            "NO_ATTENTION",
            "the run's variant has no attention maps: explain it with --method gradcam",
        )


def _claim(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunExists(
            "OUTPUT_EXISTS", "the output folder exists and is not empty: name another --out"
        )
    out.mkdir(parents=True, exist_ok=True)


def _explain(task: Task, exclusions: tuple[Exclusion, ...], progress: Progress) -> ExplainReport:
    rows: list[dict[str, Any]] = []
    cases: list[pages.CaseView] = []
    probabilities: dict[str, dict[str, float]] = {}
    total = _count(task)
    for folder in (files.MAPS, files.OVERLAYS, files.VOLUMES):
        (task.out / folder).mkdir()
    for done, (scan, maps) in enumerate(_explained(task), start=1):
        images = files.draw(task, scan, maps)
        rows += files.write(task, scan, maps)
        named = zip(task.classes, scan.probabilities, strict=True)
        probabilities[scan.name] = {name: float(value) for name, value in named}
        if len(cases) < CASES_ON_PAGE:
            cases.append(files.case_view(task, scan, images))
        progress("explaining", done, total)
    for folder in (files.OVERLAYS, files.VOLUMES):
        if not any((task.out / folder).iterdir()):
            (task.out / folder).rmdir()
    overlaps = files.overlaps_of(rows)
    run_files.write_table(task.out / files.TABLE, rows)
    files.write_predictions(task, probabilities)
    files.write_exclusions(task, exclusions)
    run_files.write_text(
        task.out / files.PAGE, files.page(task, cases, overlaps, exclusions, total)
    )
    return ExplainReport(
        rows=tuple(rows), probabilities=probabilities, overlaps=overlaps, exclusions=exclusions
    )


def _count(task: Task) -> int:
    count = len(task.scans.labels)
    return min(count, task.settings.limit) if task.settings.limit else count


def _explained(task: Task) -> Iterator[tuple[Scan, list[Map]]]:
    """Predict and explain batch by batch; yield scan by scan."""
    side = task.config.train.image_size
    size = (side, side) if side else task.config.data.picture_size
    found = pictures(task.scans, size, labelled=False)
    for start in range(0, _count(task), task.settings.batch_size):
        indices = range(start, min(start + task.settings.batch_size, _count(task)))
        raw = torch.stack([found[i] for i in indices]).to(task.device)
        images = normalise(raw, task.config.normalisation)
        yield from _explained_batch(task, indices, images)


def _explained_batch(
    task: Task, indices: range, images: Float[Tensor, "b c h w"]
) -> Iterator[tuple[Scan, list[Map]]]:
    try:
        with evaluating(task.network), torch.no_grad():
            logits = task.network(images).logits
        target = _targets(task, indices, logits)
        attributions = [
            attribution
            for method in task.settings.methods
            if method != "attention" or task.network.map_names
            for attribution in EXPLAINERS[method](task.network, images, target)
        ]
    except ModelError as error:
        raise UsageError(error.code, str(error)) from None
    probabilities = logits.double().softmax(dim=1).cpu().numpy()
    for place, i in enumerate(indices):
        scan = _scan(task, i, probabilities[place])
        yield scan, [_map(task, scan, attribution, place) for attribution in attributions]


def _targets(task: Task, indices: range, logits: Float[Tensor, "b k"]) -> Int[Tensor, " b"]:
    """Take the predicted class, or the true one where that is asked for and known."""
    predicted = logits.argmax(dim=1)
    if task.settings.target == "prediction":
        return predicted
    labels = torch.from_numpy(np.asarray(task.scans.labels)[list(indices)]).to(predicted.device)
    return torch.where(labels >= 0, labels, predicted)


def _scan(task: Task, i: int, probabilities: Float64[np.ndarray, " k"]) -> Scan:
    sample_id = task.scans.sample_ids[i]
    safe = SAFE_NAME.fullmatch(sample_id) is not None  # shards of others may hold any text
    wanted = [name for name in ("suv", "mask", *files.PATIENT_SPACE) if name in task.scans.fields]
    names = wanted if "suv" in wanted else ["image", *wanted]
    return Scan(
        name=sample_id if safe else f"row-{i:06d}",
        index=i,
        label=int(task.scans.labels[i]),
        probabilities=probabilities,
        arrays=task.scans.read(i, names),
    )


def _map(task: Task, scan: Scan, attribution: Attribution, place: int) -> Map:
    values = attribution.values[place].float().cpu()
    return Map(
        method=attribution.method,
        target=int(attribution.target[place]),
        signed=attribution.signed,
        values=values.numpy(),
        scores=_localisation(scan, values, seed=task.config.train.seed),
    )


def _localisation(scan: Scan, values: Float[Tensor, "h w"], *, seed: int) -> dict[str, float]:
    """Scores against the true mask, beside two maps that know nothing; empty without a mask."""
    if "mask" not in scan.arrays:
        return {}
    mask = torch.from_numpy(scan.arrays["mask"] > 0)[None]
    found = {name: float(score(name, values[None], mask).per_sample) for name in LOCALISATION}
    shape = (1, values.shape[0], values.shape[1])
    state = np.random.SeedSequence([seed, scan.index]).generate_state(1)
    generator = torch.Generator().manual_seed(int(state[0]))
    for control, drawn in (
        ("uniform", uniform_map(shape)),
        ("random", random_map(shape, generator=generator)),
    ):
        found[f"{control}_average_precision"] = float(
            score("average_precision", drawn, mask).per_sample
        )
    return found
