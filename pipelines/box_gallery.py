"""Cases with boxes for the eye: the best, the median and the worst of one entry's maps.

Maps are not kept while they are measured: the few that are shown are made once more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from models.explainers import EXPLAINERS
from models.scoped import evaluating
from pipelines.assemble import open_for_training, pick_device
from pipelines.box_measures import MEASURES
from pipelines.box_records import CLEAN, BoxScores
from pipelines.box_truth import BoxCase, box_mask
from pipelines.errors import UsageError
from pipelines.evaluation_runs import EvaluatedRun, runs_of
from pipelines.evaluation_work import loaded
from pipelines.feed import Pictures, normalise, pictures
from pipelines.figures import SUV_BLACK, ScanPicture
from pipelines.gallery import Cell, GalleryCase

ORDERED_BY = "iou_equal_area"
PLACES = ("best", "median", "worst")


def picked(found: BoxScores, entry: str) -> dict[str, int]:
    """Choose cases by the equal-area IoU of one entry, its seeds averaged: place -> case.

    With few cases, one may stand in several places.

    Raises
    ------
    UsageError
        ``UNKNOWN_ENTRY``.
    """
    if entry not in found.per_case:
        raise UsageError(
            "UNKNOWN_ENTRY",
            f"no maps are called '{entry}'; known: {', '.join(found.per_case)}",
        )
    column = MEASURES.index(ORDERED_BY)
    values = np.mean([table[:, column] for table in found.per_case[entry].values()], axis=0)
    order = [int(i) for i in np.argsort(-values, kind="stable") if np.isfinite(values[i])]
    chosen = (order[0], order[len(order) // 2], order[-1]) if order else ()
    return dict(zip(PLACES, chosen, strict=False))


def gallery_cases(
    found: BoxScores, runs: Path | Sequence[Path], data: Path, *, entry: str = ""
) -> list[GalleryCase]:
    """Explain the picked cases once more by the first seed of every model, pictures as they are.

    Parameters
    ----------
    runs, data
        As they were measured.
    entry
        Whose best, median and worst cases are shown; the first entry where none is named.

    Raises
    ------
    UsageError
        ``UNKNOWN_ENTRY``.
    """
    chosen = picked(found, entry or next(iter(found.entries)))
    training = open_for_training(data, image_size=None)
    folders = [runs] if isinstance(runs, Path) else list(runs)
    first = {run.model: run for run in reversed(runs_of(folders, training.summary))}
    cells: dict[str, dict[str, Cell]] = {place: {} for place in chosen}
    for model in reversed(first):
        made = _cells(found, first[model], training.splits["test"], chosen)
        for place, own in made.items():
            cells[place] |= own
    return [
        _row(found, training.splits["test"], place, found.cases[i], cells[place])
        for place, i in chosen.items()
    ]


def _cells(
    found: BoxScores, run: EvaluatedRun, test: Pictures, chosen: Mapping[str, int]
) -> dict[str, dict[str, Cell]]:
    """Place -> name of the map -> the map, of one run."""
    device = pick_device(run.config.train.device)
    network = loaded(run, device)
    cases = [found.cases[i] for i in chosen.values()]
    side = run.config.train.image_size
    resized = pictures(test.rows, (side, side) if side else test.size, labelled=True)
    raw = torch.stack([resized[case.index] for case in cases]).to(device)
    images = normalise(raw, run.config.normalisation)
    target = torch.tensor([case.finding for case in cases], device=device)
    wanted = {e.method: e for e in found.models() if (e.model, e.condition) == (run.model, CLEAN)}
    made: dict[str, dict[str, Cell]] = {place: {} for place in chosen}
    with evaluating(network):
        for name in dict.fromkeys(own.explainer for own in wanted.values()):
            levels = replace(EXPLAINERS[name], batch_size=1)(network, images, target)
            for level in (level for level in levels if level.method in wanted):
                for n, (place, i) in enumerate(chosen.items()):
                    values = level.values[n].detach().float().cpu().numpy()
                    entry = wanted[level.method].name
                    made[place][entry] = Cell(
                        values=values, signed=level.signed, note=_note(found, entry, run.seed, i)
                    )
    return made


def _note(found: BoxScores, entry: str, seed: int, case: int) -> str:
    column = MEASURES.index(ORDERED_BY)
    return f"IoU {found.per_case[entry][seed][case, column]:.2f} at equal area"


def _row(
    found: BoxScores, test: Pictures, place: str, case: BoxCase, cells: Mapping[str, Cell]
) -> GalleryCase:
    picture = test[case.index][-1].numpy().astype(np.float32)
    low, high = float(picture.min()), float(picture.max())
    # air is black in a radiograph: the figure inverts
    greys = SUV_BLACK * (1 - (picture - low) / max(high - low, 1e-6))
    size = picture.shape[0], picture.shape[1]
    return GalleryCase(
        name=f"{place}: {found.classes[case.finding]} · {case.sample_id}",
        scan=ScanPicture(suv=greys, mask=box_mask(case.boxes, frame=size, grid=size)),
        cells=cells,
        unit="",
    )
