"""One run under attack: its predictions, its explanations, and its maps as they are.

What is measured is written row by row, one for each picture, attack and radius; the maps of the
pictures whose explanations are attacked are kept, to be compared with those of other seeds.
"""

import csv
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from models.errors import ModelError
from models.metrics.complexity import gini, group_gini
from models.scoped import evaluating
from pipelines import evaluation_files as files
from pipelines.assemble import TrainingData
from pipelines.errors import MemoryShortError, UsageError
from pipelines.evaluation_maps import LevelMaps, level_maps, level_name, refuse_nonfinite
from pipelines.evaluation_robust_choice import CLEAN, NORMS, Method, methods_on
from pipelines.evaluation_robust_predictions import masked, predicted
from pipelines.evaluation_robust_work import (
    BATCH,
    Work,
    generator_of,
    heading,
    images_of,
    work_of,
)
from pipelines.evaluation_samples import NONE
from pipelines.evaluation_work import EVERY_LEVEL, Unit
from pipelines.explanation_robustness import (
    STANDARD,
    RobustnessRow,
    as_records,
    robustness_rows,
    worst_attacks,
)
from pipelines.progress import Progress
from preprocessing.atomic_files import atomic_write

BETWEEN = "|"
"""Between method and level in the name of kept maps."""
PATCHES = 16
"""Of a group along the shorter side of a map, as in training on the objective ``group``."""
HEAD = ("sample_id", "subject_id", "label", "model", "seed", "method", "level", "attack", "radius")
ALIKE = ("top_k_intersection", "normalised_distance", "structural_similarity", "cosine")
SPARSE = ("gini", "group_gini")
OF_ATTACK = (*ALIKE, "preserved", "change", "confidence_change", "worst", "note")
Rows = list[dict[str, Any]]


def measure_robustness(unit: Unit, data: TrainingData, progress: Progress) -> None:
    """Attack a run, write what came of it, and seal it.

    Raises
    ------
    PipelineError, ModelError
        The run cannot be loaded, or its predictions cannot be attacked.
    """
    work = work_of(unit, data)
    tables = unit.files.tables
    shares = tuple(f"probability_{name}" for name in work.samples.classes)
    unit.files.seal.unlink(missing_ok=True)
    with ExitStack() as stack:
        stack.enter_context(evaluating(work.network))
        first = images_of(work, work.chosen.predicted[:1])
        settings = unit.settings
        work.methods = methods_on(
            settings.robustness.methods, work.network, first, batch_size=settings.batch_size
        )
        columns = (*HEAD, *shares, *SPARSE, *OF_ATTACK)
        writer = stack.enter_context(files.table(tables[files.ATTACKS], columns))
        _write(work, writer, progress)
    _save_maps(work, tables[files.MAPS])
    unit.files.write_seal(unit.fingerprint, _facts(work))


def _write(work: Work, writer: "csv.DictWriter[str]", progress: Progress) -> None:
    """Write predictions batch by batch, then explanations method by method."""
    chosen = work.chosen.predicted
    steps = -(-len(chosen) // BATCH) + len(work.methods)
    for place, start in enumerate(range(0, len(chosen), BATCH), start=1):
        writer.writerows(predicted(work, chosen[start : start + BATCH]))
        progress("training", place, steps)
    work.masking = masked(work)
    for place, method in enumerate(work.methods, start=steps - len(work.methods) + 1):
        try:
            writer.writerows([*_plain(work, method), *_explained(work, method)])
        except (ModelError, UsageError) as error:
            work.failed[method.name] = str(error)
            work.maps = {key: held for key, held in work.maps.items() if key[0] != method.name}
        progress("training", place, steps)


def _plain(work: Work, method: Method) -> Rows:
    """Describe a method's maps as they are, and keep those that are compared between seeds."""
    chosen, rows = work.chosen.predicted, []
    kept = set(work.chosen.explained.tolist())
    for start in range(0, len(chosen), BATCH):
        indices = chosen[start : start + BATCH]
        asked = images_of(work, indices), _targets(work, indices)
        for level, explainer in method.parts:
            for maps in level_maps(method.name, level, explainer, work.network, asked):
                refuse_nonfinite(maps)
                rows += _sparse(work, indices, maps)
                held = work.maps.setdefault(maps.key, [])
                held += [x for i, x in zip(indices, maps.values.numpy(), strict=True) if i in kept]
    return rows


def _targets(work: Work, indices: np.ndarray) -> Tensor:
    """Return the true classes, so that all seeds explain the same; the first where none is true."""
    truths = work.samples.truths[indices]
    return torch.from_numpy(np.where(truths > NONE, truths, 0)).to(work.device)


def _sparse(work: Work, indices: np.ndarray, maps: LevelMaps) -> Rows:
    side = max(1, min(maps.values.shape[1:]) // PATCHES)
    found = gini(maps.values).tolist(), group_gini(maps.values, side=side).tolist()
    condition = {"method": maps.method, "level": maps.level, "attack": CLEAN, "radius": 0.0}
    return [
        heading(work, int(index))
        | condition
        | {"gini": files.cell(of_cells), "group_gini": files.cell(of_groups)}
        for index, of_cells, of_groups in zip(indices, *found, strict=True)
    ]


def _explained(work: Work, method: Method) -> Rows:
    """Attack a method's maps; each row says whether its attack was the worst on its map."""
    radii = work.unit.settings.robustness.radii
    if not radii:
        return []
    rows: Rows = []
    for level, explainer in method.parts:
        try:
            found = robustness_rows(
                work.network,
                work.unit.run.config,
                work.samples.pictures,
                methods={method.name: explainer},
                samples=work.chosen.explained.tolist(),
                generator=generator_of(work, len(NORMS) + 1),
                radii=radii,
                attacks=STANDARD,
            )
        except torch.OutOfMemoryError:
            raise MemoryShortError(
                "OUT_OF_MEMORY",
                f"memory ran out while the maps of '{method.name}' were attacked: lower "
                "--set batch_size, or leave the method out of robustness.methods",
            ) from None
        worst = {id(row) for row in worst_attacks(found)}
        for row, record in zip(found, as_records(found), strict=True):
            named = level_name(row.method, level, explainer, work.network)
            rows.append(_attacked_row(work, row, record, (method.name, named), id(row) in worst))
    return rows


def _attacked_row(
    work: Work,
    row: RobustnessRow,
    record: Mapping[str, Any],
    key: files.Key,
    is_worst: bool,
) -> dict[str, Any]:
    condition = {"method": key[0], "level": key[1], "attack": row.attack, "radius": row.radius}
    numbers = {name: record[name] for name in OF_ATTACK if name in record}
    flags = {"preserved": int(row.preserved), "worst": int(is_worst)}
    return heading(work, row.sample) | condition | numbers | flags


def _save_maps(work: Work, path: Path) -> None:
    """Write the maps that seeds are compared by, method and level as their name."""
    held = {BETWEEN.join(key): np.stack(maps) for key, maps in work.maps.items() if maps}
    atomic_write(path, save(held))


def _facts(work: Work) -> dict[str, Any]:
    return {
        "maps": [
            {"method": method, "level": level}
            for method, level in work.maps
            if method not in work.failed
        ],
        "masking": work.masking,
        "failed": [
            {"method": method, "level": EVERY_LEVEL, "reason": reason}
            for method, reason in work.failed.items()
        ],
    }
