"""One finished run on the test split: probabilities, and how good each sample's maps are.

One pass over the pictures writes ``map_scores.csv``, one row per sample, from which tables and
intervals can be made again, and then ``measured.json``, which holds the facts of the run and binds
both to its weights.

Axes: b batch, n sample, k class, h row, w column.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from models.metrics import average_precision, total_variation, uniform_map
from models.networks import Classifier
from models.records import Prediction
from models.scoped import evaluating
from pipelines import run as run_files
from pipelines.assemble import Forward, TrainingData, network_of, pick_device, to_device
from pipelines.comparison_measures import AVERAGE_PRECISION, DISTANCE, UNIFORM, RunScores, Truth
from pipelines.config import RunConfig
from pipelines.errors import RunError
from pipelines.feed import EvaluationFeed, Pictures, resample
from pipelines.label_sets import SEPARATOR, names_of, probabilities
from pipelines.progress import silent
from pipelines.stores import store

MAP_SCORES, MEASURED = "map_scores.csv", "measured.json"
MASK = "mask"
MASK_SHARE = 0.5  # of a pixel's area that must lie in the mask
PROBABILITY, REGION = "probability_", "true_region"
WARM_UP_EPOCHS = 1  # opening files and first calls of kernels are no part of an epoch's time


def is_sealed(run: Path) -> bool:
    """Say whether training is complete.

    Raises
    ------
    RunError
        ``RUN_ALTERED`` where a file changed after training.
    """
    run_files.check_seal(run)
    return (run / run_files.SEAL).is_file()


def is_measured(run: Path) -> bool:
    """Say whether the run's weights, as they are now, were measured on the test split."""
    if not (is_sealed(run) and (run / MEASURED).is_file() and (run / MAP_SCORES).is_file()):
        return False
    try:
        measured = json.loads((run / MEASURED).read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError):  # damaged: the run is measured again
        return False
    return measured == _hashes(run)


def _hashes(run: Path) -> dict[str, str]:
    names = (run_files.CONFIG, run_files.WEIGHTS, MAP_SCORES)
    return {name: run_files.sha256(run / name) for name in names}


def measure_run(run: Path, data: TrainingData) -> None:
    """Let the best model of a run classify and explain the test split.

    Parameters
    ----------
    data
        The data set that the run was trained on, at the run's picture size.

    Raises
    ------
    RunError
        The run is incomplete or was altered.
    MetricError
        ``MAP_HOLDS_NAN`` where a map is none.
    """
    config = run_files.read_config(run)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and replaced at once
        network = network_of(config)
    run_files.load_weights(run, network)
    rows = _rows(network, config, data.splits["test"])
    run_files.write_table(run / MAP_SCORES, rows)
    parameters = sum(value.numel() for value in network.parameters())
    facts = {"parameters": parameters, **_of_training(run)}
    run_files.write_json(run / MEASURED, facts | {"sha256": _hashes(run)})


def _of_training(run: Path) -> dict[str, Any]:
    """Epochs, the best of them, and the median time of one, from ``metrics.csv``."""
    with (run / run_files.METRICS).open(newline="", encoding="utf-8") as stream:
        epochs = list(csv.DictReader(stream))
    seconds = [float(row["seconds"]) for row in epochs]
    losses = [float(row["validation_loss"]) for row in epochs]
    return {
        "epochs": len(epochs),
        "best_epoch": int(np.argmin(losses)) + 1,
        "seconds_per_epoch": float(np.median(seconds[WARM_UP_EPOCHS:] or seconds)),
    }


def _rows(network: Classifier, config: RunConfig, test: Pictures) -> list[dict[str, Any]]:
    device = pick_device(config.train.device)
    pixels = store(
        test, feed="stream", device=device, workers=config.train.workers, progress=silent
    )
    feed = EvaluationFeed(
        pixels, test.labels, measured=config.normalisation, batch_size=config.train.batch_size
    )
    forward = Forward(device, config.train.precision)
    rows: list[dict[str, Any]] = []
    with evaluating(network.to(device)), torch.no_grad():
        for batch in feed:
            images, _ = to_device(batch, device, non_blocking=False)
            prediction = forward(images, network)
            masks, regions = masks_of(test, batch["index"].tolist())
            scores = map_scores(prediction, level_names(network), masks)
            shares = probabilities(prediction.logits, config.data.task)
            for place, i in enumerate(batch["index"].tolist()):
                found = {name: float(values[place]) for name, values in scores.items()}
                row = _row(test, i, shares[place], found, config.data.classes)
                rows.append(row | ({} if masks is None else {REGION: int(regions[place])}))
    return rows


def _row(
    test: Pictures,
    i: int,
    shares: Float[np.ndarray, " k"],
    scores: Mapping[str, float],
    classes: Sequence[str],
) -> dict[str, Any]:
    """Write floats so that they read back to the bit, and nothing where a score is undefined."""
    label = test.labels[i]
    names = names_of(label, classes) if np.ndim(label) else (classes[int(label)],)
    row = {"sample_id": test.sample_ids[i], "subject_id": test.subject_ids[i]}
    row["label"] = SEPARATOR.join(names)
    row |= {PROBABILITY + name: float(p) for name, p in zip(classes, shares, strict=True)}
    return row | {name: "" if np.isnan(value) else value for name, value in scores.items()}


def level_names(network: Classifier) -> tuple[str, ...]:
    """Name the maps so that variants can be compared.

    A chain calls its levels by their stages; the two that other variants gate are ``fine`` and
    ``coarse`` in every variant.
    """
    pair = dict(zip(network.trunk.pair, ("fine", "coarse"), strict=False))
    return tuple(pair.get(name, name) for name in network.map_names)


def masks_of(
    test: Pictures, indices: Sequence[int]
) -> tuple[Bool[Tensor, "b h w"] | None, Bool[np.ndarray, " b"]]:
    """Read true masks, resampled as the pictures are, and say which mark anything at full size.

    None where the data set has none. A mask that fills no half of a pixel becomes empty.
    """
    regions = np.zeros(len(indices), dtype=bool)
    if MASK not in test.rows.fields:
        return None, regions
    found = []
    for place, i in enumerate(indices):
        mask = test.rows.read(int(test.positions[i]), (MASK,))[MASK] > 0
        regions[place] = mask.any()
        share = resample(torch.from_numpy(mask.astype(np.float32))[None], test.size)
        found.append(share[0] >= MASK_SHARE)
    return torch.stack(found), regions


def map_scores(
    prediction: Prediction, levels: Sequence[str], masks: Bool[Tensor, "b h w"] | None
) -> dict[str, Float[np.ndarray, " b"]]:
    """Score every sample's maps: average precision of each level, and how far levels are apart.

    Average precision is NaN without a true region; a uniform map's stands beside it. With more than
    two levels, the distance is the largest between neighbours.
    """
    found: dict[str, Tensor] = {}
    maps = [level.detach().cpu() for level in prediction.maps]
    if masks is not None:
        for name, level in zip(levels, maps, strict=True):
            found[AVERAGE_PRECISION + name] = average_precision(level, masks)
        found[UNIFORM] = average_precision(uniform_map((len(masks), 1, 1)), masks)
    if len(maps) > 1:
        apart = [total_variation(fine, coarse) for fine, coarse in pairwise(maps)]
        found[DISTANCE] = torch.stack(apart).amax(dim=0)
    return {name: values.numpy() for name, values in found.items()}


def read_scores(run: Path, *, variant: str, seed: int, truth: Truth) -> RunScores:
    """Read what ``measure_run`` wrote.

    Raises
    ------
    RunError
        ``RUN_ALTERED`` where the rows are not those of the test split.
    """
    facts = json.loads((run / MEASURED).read_text(encoding="utf-8"))
    with (run / MAP_SCORES).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if [row["subject_id"] for row in rows] != list(truth.subject_ids):
        raise RunError(
            "RUN_ALTERED",
            f"{MAP_SCORES} does not hold the {len(truth.subject_ids)} samples of the test split: "
            "delete it and go on with --resume, which measures the run again",
        )
    shares = [name for name in rows[0] if name.startswith(PROBABILITY)]
    maps = [name for name in rows[0] if name == DISTANCE or name.startswith(AVERAGE_PRECISION)]
    return RunScores(
        variant=variant,
        seed=seed,
        probabilities=np.array([[float(row[name]) for name in shares] for row in rows]),
        maps={name: np.array([float(row[name] or "nan") for row in rows]) for name in maps},
        true_regions=sum(row.get(REGION) == "1" for row in rows),
        parameters=facts["parameters"],
        seconds_per_epoch=facts["seconds_per_epoch"],
        epochs=facts["epochs"],
        best_epoch=facts["best_epoch"],
    )
