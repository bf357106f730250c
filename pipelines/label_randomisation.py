"""Maps of a run against those of its control, which learnt the labels of other patients.

A method whose maps are the same for both shows what the pictures and the network's architecture
give away, not what was learnt.

References
----------
Adebayo et al., "Sanity checks for saliency maps", NeurIPS 2018, section 3.2 (data randomisation).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.explainers.randomise_similarity import likeness
from models.records import Attribution
from pipelines import explain_methods as methods_of
from pipelines import run as run_files
from pipelines.assemble import pick_device
from pipelines.config import ExplainConfig, RunConfig
from pipelines.errors import UsageError
from pipelines.explain_batches import Batch, batch_of, ranges
from pipelines.explain_records import Task
from pipelines.explain_sources import from_dataset
from pipelines.loading import load_network
from pipelines.progress import Progress, silent
from pipelines.train import WITHOUT_EFFECT_ON_WEIGHTS

BATCH = 8
MAY_DIFFER = frozenset({"labels", "device", *WITHOUT_EFFECT_ON_WEIGHTS})
Row = dict[str, str | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """The run, its control, and the methods that can explain both."""

    true: Task
    permuted: Task
    found: methods_of.Fitting = field(repr=False)


def label_randomisation(
    run: Path,
    permuted_run: Path,
    data: Path,
    methods: Sequence[str],
    *,
    batch_size: int = BATCH,
    limit: int = 0,
    progress: Progress = silent,
) -> list[Row]:
    """Compare the maps of two runs on the test split, picture by picture.

    Both explain the true class, or where a picture has none the one that the run predicts. Pictures
    are explained batch by batch; only the rows are kept.

    Parameters
    ----------
    run, permuted_run
        Trained alike but for ``labels``: true, and permuted.
    methods
        Names in ``EXPLAINERS``, or ``all``; none named: attention and gradcam.
    batch_size
        Pictures, or copies of them, that a network sees at once: it bounds the memory.
    limit
        Compare only so many pictures; 0 compares all.

    Returns
    -------
    list of dict
        For each picture and map: ``sample_id``, ``subject_id``, ``method``, ``rank_correlation``,
        ``magnitude_rank_correlation`` and ``structural_similarity``; NaN where a map is not finite,
        or a picture too small.

    Raises
    ------
    UsageError
        ``NOT_A_PAIR``, ``UNKNOWN_METHOD``, or a named method that cannot explain the network.
    RunError
        A run is incomplete, foreign or was altered.
    DataError
        The data set does not fit the runs.
    """
    settings = ExplainConfig(
        methods=tuple(methods), target="truth", batch_size=batch_size, limit=limit
    )
    asked = methods_of.chosen(settings)
    true, permuted = (_task(folder, data, settings) for folder in (run, permuted_run))
    _refuse_no_pair(true.config, permuted.config)
    found = methods_of.fitting(asked, true, batch_of(true, ranges(true)[0]), progress)
    pair = _Pair(true=true, permuted=permuted, found=found)
    rows: list[Row] = []
    for indices in ranges(true):
        rows += _rows(pair, indices)
        progress("label randomisation", indices.stop, true.count)
    return rows


def _task(run: Path, data: Path, settings: ExplainConfig) -> Task:
    config = run_files.read_config(run)
    device = pick_device(settings.device)
    return Task(
        config=config,
        settings=settings,
        scans=from_dataset(data, config, split="test"),
        network=load_network(run, config).to(device),
        device=device,
        out=run,
    )


def _refuse_no_pair(true: RunConfig, permuted: RunConfig) -> None:
    said = true.train.labels, permuted.train.labels
    if said != ("true", "permuted"):
        raise UsageError(
            "NOT_A_PAIR",
            f"the labels of the two runs are {said[0]} and {said[1]}: name a run with true labels, "
            "and one that was trained alike with labels=permuted",
        )
    one, other = true.model_dump(), permuted.model_dump()
    differing = [key for key in ("data", "normalisation", "origin") if one[key] != other[key]]
    differing += [
        f"train.{key}"
        for key in one["train"]
        if one["train"][key] != other["train"][key] and key not in MAY_DIFFER
    ]
    if differing:
        raise UsageError(
            "NOT_A_PAIR",
            f"the two runs differ in {', '.join(differing)} too, so their maps would differ for "
            "other reasons than labels: train the control with the run's own settings and data",
        )


def _rows(pair: _Pair, indices: range) -> list[Row]:
    batch = batch_of(pair.true, indices)
    rows = []
    for name, explainer in pair.found.explainers.items():
        first = indices.start == 0
        own = pair.found.first[name] if first else methods_of.explained(explainer, pair.true, batch)
        control = methods_of.explained(explainer, pair.permuted, batch)
        rows += _compared(pair.true, batch, own, control)
    return rows


def _compared(
    task: Task, batch: Batch, own: Sequence[Attribution], control: Sequence[Attribution]
) -> list[Row]:
    size = (batch.images.shape[2], batch.images.shape[3])
    rows = []
    for level, other in zip(own, control, strict=True):
        found = likeness(level.values, other.values, size=size)
        for place, i in enumerate(batch.indices):
            row: dict[str, Any] = {
                "sample_id": task.scans.sample_ids[i],
                "subject_id": task.scans.subject_ids[i],
                "method": level.method,
                "rank_correlation": float(found.ranks[place]),
                "magnitude_rank_correlation": float(found.magnitudes[place]),
                "structural_similarity": float(found.structure[place]),
            }
            rows.append(row)
    return rows
