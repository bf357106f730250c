"""What all runs under attack amount to: scores over seeds and patients, and paired differences.

Axes: n picture, m picture whose explanation is attacked, k class, h row, w column, r resample.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import load_file
from torch import Tensor
from torch.nn.functional import interpolate

from models.metrics.similarity import cosine, structural_similarity, top_k_intersection
from models.metrics.stability import stability
from pipelines import evaluation_files as files
from pipelines.comparison_measures import RunScores, Truth
from pipelines.comparison_scores import Difference, MeanScore, differences, score_variants
from pipelines.config import EvaluateConfig
from pipelines.evaluation_collect import Measured
from pipelines.evaluation_files import Key
from pipelines.evaluation_maps import OWN
from pipelines.evaluation_records import Entry, MaskingCheck, Model, Robustness
from pipelines.evaluation_robust_choice import (
    MEAN,
    NORMS,
    SHORT,
    attacked_samples,
    radii_of,
)
from pipelines.evaluation_robust_files import Table, read_table
from pipelines.evaluation_robustness import BETWEEN
from pipelines.evaluation_runs import BASELINE, STANDARD
from pipelines.evaluation_samples import Samples
from pipelines.evaluation_scores import Resampling, mean_score, mean_scores

PREDICTED = ("accuracy", "balanced_accuracy", "auc")
ATTACKED, STABLE = "attacked_", "stability_"
FEW_SEEDS = 2
ROUNDING = 1e-9
"""Shares that are summed batch by batch differ by it."""
Scores = dict[str, dict[str, MeanScore]]


def robustness_of(
    units: Sequence[Measured],
    models: Mapping[str, Model],
    config: EvaluateConfig,
    samples: Samples,
) -> Robustness:
    """Put together what runs under attack amount to.

    Parameters
    ----------
    units
        Runs under attack, model by model and seed by seed.
    models
        Those that were measured; runs of others are left out.
    """
    settings = config.robustness
    chosen = attacked_samples(samples, settings, seed=config.seed)
    groups: dict[str, list[Measured]] = {}
    for measured in units:
        if measured.unit.model in models:
            groups.setdefault(measured.unit.model, []).append(measured)
    ids = samples.pictures.sample_ids
    explained = [ids[i] for i in chosen.explained]
    tables = {
        name: [read_table(measured, explained=explained) for measured in group]
        for name, group in groups.items()
    }
    whole, part = (
        _resampling(config, samples, places) for places in (chosen.predicted, chosen.explained)
    )
    predictions = predicted_scores(tables, groups, whole)
    entries, scores = _explained_scores(tables, groups, (whole, part))
    first = reference(models)
    radii = radii_of(settings, scored=samples.pictures.scored)
    return Robustness(
        radii=settings.radii,
        linf_radii=radii["linf"],
        l2_radii=radii["l2"],
        samples=len(chosen.predicted),
        explained=len(chosen.explained),
        patients=len(set(whole.truth.subject_ids)),
        predictions=predictions,
        entries=entries,
        scores=scores,
        differences=tuple(_differences(predictions, entries, scores, first)),
        masking=tuple(_masking(groups)),
        notes=tuple(_notes(config, models, entries)),
    )


def reference(models: Mapping[str, Model]) -> str:
    """Return the model that others are compared with: the baseline of standard training, if any."""
    plain = [model for model in models.values() if model.objective == STANDARD]
    baselines = [model for model in plain if model.variant == BASELINE]
    return next(iter([*baselines, *plain, *models.values()])).name


def _resampling(config: EvaluateConfig, samples: Samples, places: np.ndarray) -> Resampling:
    labels = np.asarray(samples.pictures.labels).astype(np.int64)[places]
    subjects = samples.pictures.subject_ids
    truth = Truth(labels=labels, subject_ids=tuple(subjects[i] for i in places))
    return Resampling(truth=truth, classes=None, resamples=config.resamples, seed=config.seed)


def predicted_scores(
    tables: Mapping[str, Sequence[Table]],
    groups: Mapping[str, Sequence[Measured]],
    resampling: Resampling,
) -> Scores:
    """Score every model's answers as they are, under each attack, and on average over its radii."""
    places = [(model, name) for model, own in tables.items() for name in own[0].shares]
    runs = [
        _answers(str(place), measured.unit.run.seed, table.shares[name])
        for place, (model, name) in enumerate(places)
        for measured, table in zip(groups[model], tables[model], strict=True)
    ]
    scored = score_variants(
        resampling.truth, runs, resamples=resampling.resamples, seed=resampling.seed
    )
    found: Scores = {model: {} for model in tables}
    for place, (model, name) in enumerate(places):
        mine = scored[str(place)]
        found[model] |= {f"{ATTACKED}{x}@{name}": mine[x] for x in PREDICTED if x in mine}
    return {model: own | _averages(own) for model, own in found.items()}


def _answers(variant: str, seed: int, shares: Float[np.ndarray, "n k"]) -> RunScores:
    return RunScores(
        variant=variant,
        seed=seed,
        probabilities=shares,
        maps={},
        parameters=0,
        seconds_per_epoch=0.0,
        epochs=0,
        best_epoch=0,
    )


def _averages(scores: Mapping[str, MeanScore]) -> dict[str, MeanScore]:
    """Return, for every attack on predictions, the mean over its radii."""
    found = {}
    for metric in PREDICTED:
        for attack in NORMS:
            begin = f"{ATTACKED}{metric}@{attack}:"
            own = [score for name, score in scores.items() if name.startswith(begin)]
            if own:
                values = np.mean([score.values for score in own], axis=0)
                drawn = np.mean([score.drawn for score in own], axis=0)
                found[f"{begin}{MEAN}"] = mean_score(values, drawn)
    return found


def _explained_scores(
    tables: Mapping[str, Sequence[Table]],
    groups: Mapping[str, Sequence[Measured]],
    resamplings: tuple[Resampling, Resampling],
) -> tuple[dict[str, Entry], Scores]:
    """Return the maps that were attacked, and their scores.

    Parameters
    ----------
    resamplings
        Of all attacked pictures, and of those whose explanations were attacked.
    """
    whole, part = resamplings
    entries: dict[str, Entry] = {}
    scores: Scores = {}
    for model, own in tables.items():
        for key in dict.fromkeys(key for table in own for key in table.plain):
            runs = [x for x, table in zip(groups[model], own, strict=True) if key in table.plain]
            entry = _entry(model, key, tuple(run.unit.run.seed for run in runs))
            entries[entry.name] = entry
            plain = [table.plain[key] for table in own if key in table.plain]
            attacked = [table.attacked[key] for table in own if key in table.attacked]
            scores[entry.name] = {
                **mean_scores([[_defined(x) for x in plain]], whole)[0],
                **mean_scores([[_defined(x) for x in attacked]], part)[0],
                **mean_scores([[_defined(stable(runs, key))]], part)[0],
            }
    return entries, scores


def _entry(model: str, key: Key, seeds: tuple[int, ...]) -> Entry:
    kind = "attention" if key[0] in OWN else "post-hoc"
    return Entry(model=model, method=key[0], level=key[1], kind=kind, seeds=seeds)


def _defined(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in columns.items() if not np.isnan(values).all()}


def stable(runs: Sequence[Measured], key: Key) -> dict[str, Float[np.ndarray, " m"]]:
    """Compare the maps of the same pictures and classes between seeds; nothing with one seed."""
    if len(runs) < FEW_SEEDS:
        return {}
    kept = [load_file(x.unit.files.tables[files.MAPS])[BETWEEN.join(key)] for x in runs]
    seeds = [torch.from_numpy(maps) for maps in kept]
    shown = [_stretched(maps, runs[0].unit.run.size) for maps in seeds]
    return {
        f"{STABLE}top_k_intersection": stability(seeds, similarity=top_k_intersection).numpy(),
        f"{STABLE}structural_similarity": stability(
            shown, similarity=structural_similarity
        ).numpy(),
        f"{STABLE}cosine": stability(seeds, similarity=cosine).numpy(),
    }


def _stretched(maps: Float[Tensor, "m _h _w"], size: tuple[int, int]) -> Float[Tensor, "m h w"]:
    """Stretch coarse maps to their pictures: the window of SSIM then means the same for all."""
    return interpolate(maps[:, None], size, mode="nearest")[:, 0]


def _differences(
    predictions: Scores, entries: Mapping[str, Entry], scores: Scores, first: str
) -> Iterator[Difference]:
    """Yield models less the first one, and each method's maps less those of the first model."""
    if first in predictions:
        yield from differences(predictions, against=first)
    methods: dict[Key, list[str]] = {}
    for name, entry in entries.items():
        methods.setdefault((entry.method, entry.level), []).append(name)
    for names in methods.values():
        own = {name: scores[name] for name in names}
        against = next((name for name in names if entries[name].model == first), names[0])
        yield from differences(own, against=against)


def _masking(groups: Mapping[str, Sequence[Measured]]) -> Iterator[MaskingCheck]:
    for model, group in groups.items():
        for checks in zip(*(measured.facts["masking"] for measured in group), strict=True):
            yield _checked(model, checks)


def _checked(model: str, checks: Sequence[Mapping[str, float | str]]) -> MaskingCheck:
    numbers = {
        name: [float(check[name]) for check in checks]
        for name in ("iterative", "one_step", "noise", "radius")
    }
    weaker = np.minimum(numbers["one_step"], numbers["noise"])
    return MaskingCheck(
        model=model,
        attack=str(checks[0]["attack"]),
        radius=numbers["radius"][0],
        iterative=float(np.mean(numbers["iterative"])),
        one_step=float(np.mean(numbers["one_step"])),
        noise=float(np.mean(numbers["noise"])),
        suspected=int((weaker < np.array(numbers["iterative"]) - ROUNDING).sum()),
        seeds=len(checks),
    )


def _notes(
    config: EvaluateConfig, models: Mapping[str, Model], entries: Mapping[str, Entry]
) -> Iterable[str]:
    settings = config.robustness
    used = {entry.method for entry in entries.values()}
    missing = [name for name in settings.methods if name not in used]
    if missing:
        yield f"No network could be explained under attack by: {', '.join(missing)}."
    short = [name for name in settings.methods if name in SHORT and name in used]
    if short:
        yield (
            f"Attacked with fewer draws and steps than they explain with, since an attack makes a "
            f"map some dozens of times: {', '.join(short)}."
        )
    if any(len(model.seeds) < FEW_SEEDS for model in models.values()):
        yield "Stability between seeds is not defined for models that were trained once."
