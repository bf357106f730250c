"""One unit of an evaluation: every map of one run, or every control before one judge.

Pictures pass batch by batch and rows are written as they come, so that memory does not grow with
the data set. A method that fails on the way is left out with its reason; the others go on.

Axes: b batch, c channel, h row, w column, k class.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.errors import ModelError
from models.metrics import FRACTIONS
from models.scoped import evaluating
from pipelines import evaluation_files as files
from pipelines import evaluation_measured as measured
from pipelines.assemble import TrainingData, open_for_training
from pipelines.errors import MemoryShortError, PipelineError
from pipelines.evaluation_maps import (
    LevelMaps,
    randomised_similarity,
    refuse_nonfinite,
)
from pipelines.evaluation_robustness import measure_robustness
from pipelines.evaluation_samples import (
    batch_at,
    batches_of,
    some_of,
)
from pipelines.evaluation_work import EVERY_LEVEL, Shown, Unit, Work, maps_of, shown_to, work_of
from pipelines.feed import normalise
from pipelines.progress import Progress
from preprocessing.errors import PreprocessingError

VERIFIED = 16
"""Pictures whose maps are compared with those of random weights."""
Rows = list[dict[str, Any]]


def measure_unit(
    unit: Unit, progress: Progress, *, found: TrainingData | None
) -> tuple[str, str] | None:
    """Measure a unit; return None, or the code and the message of a refusal.

    Parameters
    ----------
    found
        The data set where it is open already, as in the process that began.
    """
    measure = measure_robustness if unit.kind == "robustness" else _measure
    try:
        measure(unit, found or open_for_training(unit.data, image_size=None), progress)
    except (PipelineError, PreprocessingError, ModelError) as error:
        return error.code, str(error)
    return None


def _measure(unit: Unit, data: TrainingData, progress: Progress) -> None:
    work = work_of(unit, data)
    samples, settings = work.samples, unit.settings
    names = measured.columns(settings.fills, regions=samples.has_regions, verify=settings.verify)
    tables = unit.files.tables
    shares = tuple(f"probability_{name}" for name in samples.classes)
    curve_names = (*files.CURVE_HEAD, *files.OF_CURVE, *map(str, FRACTIONS))
    unit.files.seal.unlink(missing_ok=True)
    with ExitStack() as stack:
        for network in (work.network, work.judge.network):
            stack.enter_context(evaluating(network))
        if settings.verify and unit.kind == "run":
            _verify(work)
        scores, curves, answers = (
            stack.enter_context(files.table(tables[kind], columns))
            for kind, columns in (
                (files.SCORES, (*files.HEAD, *names)),
                (files.CURVES, curve_names),
                (files.PREDICTIONS, ("sample_id", "subject_id", "label", *shares)),
            )
        )
        for batch in batches_of(samples, settings.batch_size):
            shown = shown_to(work, batch)
            answers.writerows(_answers(work, shown))
            for score_rows, curve_rows in _measured(work, shown):
                scores.writerows(score_rows)
                curves.writerows(curve_rows)
            progress("training", batch.indices[-1] + 1, len(samples.pictures))
    unit.files.write_seal(unit.fingerprint, _facts(work))


def _verify(work: Work) -> None:
    """Compare the maps of a few pictures with those of random weights."""
    chosen = some_of(work.samples, VERIFIED)
    if not chosen:
        return
    shown = shown_to(work, batch_at(work.samples, chosen))
    for method in work.makers:
        try:
            found = randomised_similarity(
                lambda images, targets, method=method: maps_of(
                    work, replace(shown, images=images, targets=targets), method
                ),
                work.network,
                shown.images,
                shown.targets,
                seed=work.unit.settings.seed,
            )
        except ModelError as error:
            work.failed[method, EVERY_LEVEL] = str(error)
            continue
        for key, values in found.items():
            named = zip(chosen, values.tolist(), strict=True)
            work.similar[key] = dict(named)


def _measured(work: Work, shown: Shown) -> Iterator[tuple[Rows, Rows]]:
    """Yield the rows of scores and of curves, method by method."""
    truth = _truth(work, shown)
    for method in work.makers:
        if work.is_left_out((method, EVERY_LEVEL)):
            continue
        try:
            levels = maps_of(work, shown, method)
        except MemoryShortError:
            raise
        except ModelError as error:
            work.failed[method, EVERY_LEVEL] = str(error)
            continue
        yield _method(work, shown, truth, levels)


def _method(
    work: Work, shown: Shown, truth: measured.Truth, levels: Sequence[LevelMaps]
) -> tuple[Rows, Rows]:
    together: measured.Values = {}
    score_rows: Rows = []
    curve_rows: Rows = []
    finite = [maps for maps in levels if _is_kept(work, maps)]
    if len(finite) == len(levels):
        together = _together(work, levels)
    for maps in finite:
        if work.is_left_out(maps.key):
            continue
        try:
            values = measured.measured_alone(maps, truth) | together
            removed, curves = measured.measured_by_removal(maps, truth, work.judge)
        except ModelError as error:
            work.failed[maps.key] = str(error)
            continue
        _note(work, maps)
        score_rows += _score_rows(work, shown, maps, values | removed)
        curve_rows += _curve_rows(work, shown, maps, curves)
    return score_rows, curve_rows


def _is_kept(work: Work, maps: LevelMaps) -> bool:
    if work.is_left_out(maps.key):
        return False
    try:
        refuse_nonfinite(maps)
    except ModelError as error:
        work.failed[maps.key] = str(error)
        return False
    return True


def _together(work: Work, levels: Sequence[LevelMaps]) -> measured.Values:
    try:
        return measured.measured_together(levels)
    except ModelError as error:
        work.failed[levels[0].method, EVERY_LEVEL] = str(error)
        return {}


def _truth(work: Work, shown: Shown) -> measured.Truth:
    indices = list(shown.batch.indices)
    places = np.flatnonzero(work.samples.removed[indices])
    raw = shown.batch.raw[torch.from_numpy(places)].to(work.device)
    device = work.device
    removed = torch.from_numpy(places)
    return measured.Truth(
        regions=shown.regions,
        removed=removed,
        images=normalise(raw, work.judge.normalisation),
        labels=torch.from_numpy(work.samples.truths[indices])[removed].to(device),
        targets=shown.targets[removed.to(device)],
    )


def _note(work: Work, maps: LevelMaps) -> None:
    work.signed[maps.key] = maps.signed
    counts = work.verdicts.setdefault(maps.key, {})
    for word in maps.verdicts:
        counts[word] = counts.get(word, 0) + 1


def _heading(work: Work, shown: Shown, place: int) -> dict[str, Any]:
    samples, index = work.samples, shown.batch.indices[place]
    return {
        "sample_id": samples.pictures.rows.sample_ids[int(samples.pictures.positions[index])],
        "subject_id": samples.pictures.rows.subject_ids[int(samples.pictures.positions[index])],
        "label": samples.label_names(index),
    }


def _of_unit(work: Work, maps: LevelMaps) -> dict[str, Any]:
    unit = work.unit
    return {
        "model": unit.model,
        "seed": unit.run.seed,
        "method": maps.method,
        "level": maps.level,
    }


def _answers(work: Work, shown: Shown) -> Rows:
    names = [f"probability_{name}" for name in work.samples.classes]
    return [
        _heading(work, shown, place) | dict(zip(names, shares.tolist(), strict=True))
        for place, shares in enumerate(shown.probabilities)
    ]


def _score_rows(
    work: Work, shown: Shown, maps: LevelMaps, values: Mapping[str, np.ndarray]
) -> Rows:
    classes = work.samples.classes
    similar = work.similar.get(maps.key, {})
    rows = []
    for place, index in enumerate(shown.batch.indices):
        found = {name: files.cell(float(each[place])) for name, each in values.items()}
        if index in similar:
            found[measured.RANDOMISED] = files.cell(similar[index])
        answers = {
            "prediction": classes[int(shown.probabilities[place].argmax())],
            "target": classes[int(shown.targets[place])],
        }
        rows.append(_heading(work, shown, place) | answers | _of_unit(work, maps) | found)
    return rows


def _curve_rows(
    work: Work, shown: Shown, maps: LevelMaps, curves: Sequence[measured.Curves]
) -> Rows:
    places = np.flatnonzero(work.samples.removed[list(shown.batch.indices)]).tolist()
    names = [str(fraction) for fraction in FRACTIONS]
    return [
        _heading(work, shown, place)
        | _of_unit(work, maps)
        | {"fill": curve.fill, "order": curve.order}
        | dict(zip(names, heights, strict=True))
        for curve in curves
        for place, heights in zip(places, curve.heights.tolist(), strict=True)
    ]


def _facts(work: Work) -> dict[str, Any]:
    """Return what the seal says beside the tables."""
    return {
        "parameters": sum(value.numel() for value in work.network.parameters()),
        "measures": list(
            measured.columns(
                work.unit.settings.fills,
                regions=work.samples.has_regions,
                verify=work.unit.settings.verify,
            )
        ),
        "maps": [
            {"method": m, "level": v, "signed": work.signed[m, v], "verdicts": work.verdicts[m, v]}
            for m, v in work.signed
            if not work.is_left_out((m, v))
        ],
        "failed": [
            {"method": method, "level": level, "reason": reason}
            for (method, level), reason in work.failed.items()
        ],
    }
