"""Evaluations with plausible numbers, made without a network."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.comparison_scores import MeanScore, differences
from pipelines.evaluation_records import (
    CONTROL,
    CasePicture,
    CurveBand,
    Entry,
    Evaluation,
    Model,
)

RESAMPLES = 200
FILLS = ("zero", "mean")
LOCATED = ("average_precision", "iou_975", "iou_950", "iou_900", "iou_equal_area", "pointing_game")
REMOVED = ("input_perturbation", "input_perturbation_above_chance", "input_perturbation_opposite")
READ = ("insertion", "deletion", "comprehensiveness", "sufficiency")
# How good the maps of a variant are, and how far its levels are apart.
VARIANTS: Mapping[str, tuple[float, float]] = {
    "baseline": (0.0, 0.0),
    "fine": (0.35, 0.0),
    "coarse": (0.36, 0.0),
    "unconstrained": (0.30, 0.40),
    "kl-forward": (0.44, 0.20),
    "kl-reverse": (0.43, 0.22),
    "cvx": (0.34, 1e-8),
    "dual-published": (0.52, 0.15),
    "dual": (0.60, 0.08),
    "exact": (0.66, 2e-8),
}
POST_HOC = {"gradcam": ("fine", "coarse"), "deeplift": ("",), "lrp": ("",)}
CONTROLS = {
    "random": 0.08,
    "uniform": 0.08,
    "gaussian": 0.15,
    "mean-mask": 0.25,
    "edges": 0.12,
    "true-mask": 1.0,
}
CLASSES = ("no tumour", "tumour")
NAN_SD = float("nan")


def score(
    mean: float,
    *,
    seeds: int = 5,
    over_seeds: float = 0.02,
    over_patients: float = 0.02,
    key: int = 0,
) -> MeanScore:
    """Return a score with this very mean, spread over seeds and over patients."""
    rng = np.random.default_rng([key, seeds])
    noise = over_seeds * rng.normal(size=seeds) if seeds > 1 else np.zeros(1)
    values = mean + noise - noise.mean()
    drawn = mean + over_patients * np.random.default_rng(key).normal(size=RESAMPLES)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return MeanScore(
        values=tuple(float(value) for value in values),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if seeds > 1 else NAN_SD,
        low=float(low),
        high=float(high),
        drawn=drawn,
    )


def constant(mean: float, values: Sequence[float], *, low: float, high: float) -> MeanScore:
    """Return a score whose resamples run evenly from ``low`` to ``high``."""
    drawn = np.linspace(low, high, RESAMPLES)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else NAN_SD
    return MeanScore(values=tuple(values), mean=mean, sd=sd, low=low, high=high, drawn=drawn)


def evaluation(
    *,
    seeds: int = 5,
    masks: bool = True,
    curves: bool = True,
    verified: bool = True,
    variants: Sequence[str] = tuple(VARIANTS),
    transformer: bool = False,
    classes: tuple[str, ...] = CLASSES,
    recipe: str = "brats18",
    fills: Sequence[str] = FILLS,
) -> Evaluation:
    """Return what an evaluation of these variants might find."""
    numbers = tuple(range(seeds))
    entries = _entries(variants, numbers, transformer=transformer)
    scores = {
        entry.name: _scores(entry, i, masks=masks, fills=fills if curves else (), verified=verified)
        for i, entry in enumerate(entries)
    }
    first = next(entry for entry in entries if entry.kind == "attention" or entry == entries[-1])
    against = "exact attention fine" if "exact" in variants else first.name
    names = [*variants, *(["vit"] if transformer else [])]
    return Evaluation(
        title=f"{recipe}: {len(names)} models",
        recipe=recipe,
        synthetic=True,
        classes=classes,
        chance=1 / len(classes),
        models={name: _model(name, numbers, i) for i, name in enumerate(names)},
        entries={entry.name: entry for entry in entries},
        scores=scores,
        differences=tuple(differences(scores, against=against)),
        against=against,
        curves=tuple(band for x in entries for band in _bands(x, fills)) if curves else (),
        samples=144,
        patients=24,
        scored=120,
        resamples=RESAMPLES,
        picture_size=(64, 64),
        verdicts={entries[0].name: {"sound": 700, "refused": 20}},
        notes=("Maps with signs are ranked by their positive part.",),
        failures={"baseline seed 3, lrp": "the map holds NaN"},
    )


def _entries(variants: Sequence[str], seeds: tuple[int, ...], *, transformer: bool) -> list[Entry]:
    entries = []
    for name in variants:
        if name == "baseline":
            entries += [
                Entry(model=name, method=method, level=level, kind="post-hoc", seeds=seeds)
                for method, levels in POST_HOC.items()
                for level in levels
            ]
            continue
        levels = (name,) if name in ("fine", "coarse") else ("fine", "coarse")
        entries += [
            Entry(model=name, method="attention", level=level, kind="attention", seeds=seeds)
            for level in levels
        ]
    if transformer:
        entries.append(Entry(model="vit", method="self-attention", kind="attention", seeds=seeds))
    controls = [Entry(model=CONTROL, method=name, kind="control") for name in CONTROLS]
    return [*entries, *controls]


def _quality(entry: Entry) -> float:
    if entry.kind == "control":
        return CONTROLS[entry.method]
    if entry.kind == "post-hoc":
        return {"gradcam": 0.47, "deeplift": 0.40, "lrp": 0.38}[entry.method]
    return VARIANTS.get(entry.model, (0.42, 0.0))[0] + 0.03 * (entry.level == "coarse")


def _scores(
    entry: Entry, key: int, *, masks: bool, fills: Sequence[str], verified: bool
) -> dict[str, MeanScore]:
    quality, seeds = _quality(entry), max(len(entry.seeds), 1)
    found: dict[str, float] = {}
    if masks:
        cap = {"iou_975": 0.3, "iou_950": 0.55, "iou_900": 0.8}
        found |= {name: quality * cap.get(name, 1.0) for name in LOCATED}
    if fills:
        base = dict.fromkeys(REMOVED, 0.5 + 0.4 * quality)
        base["input_perturbation_above_chance"] -= 0.5
        base["input_perturbation_opposite"] = 0.9 - 0.3 * quality
        base |= {name: 0.5 + (0.3 if name != "deletion" else -0.3) * quality for name in READ}
        found |= {f"{name}@{fill}": value for name, value in base.items() for fill in fills}
    found |= {
        "gini": 0.3 + 0.5 * quality,
        "entropy": 5 - quality,
        "sparsity": 0.2,
        "group_gini": 0.4,
    }
    if entry.kind == "attention" and VARIANTS.get(entry.model, (0, 0))[1]:
        apart = VARIANTS[entry.model][1]
        found |= {"total_variation": apart, "kl_from_coarse": apart**2, "program_value": apart**2}
    if verified and entry.kind != "control":
        found["randomised_similarity"] = 0.2
    return {
        name: score(
            value,
            seeds=seeds,
            over_seeds=0.02 * min(1.0, 10 * value),
            over_patients=0.015 * min(1.0, 10 * value),
            key=key,
        )
        for name, value in found.items()
    }


def _model(name: str, seeds: tuple[int, ...], key: int) -> Model:
    measures = {"accuracy": 0.95, "balanced_accuracy": 0.95, "auc": 0.98, "calibration_error": 0.03}
    return Model(
        name=name,
        variant="baseline" if name == "vit" else name,
        network="vit-b16" if name == "vit" else "unet-encoder-narrow",
        frozen=name not in ("baseline", "vit"),
        seeds=seeds,
        parameters=123456 + key,
        scores={
            measure: score(
                value + 0.001 * key, seeds=len(seeds), over_seeds=0.002, over_patients=0.01
            )
            for measure, value in measures.items()
        },
    )


def _bands(entry: Entry, fills: Sequence[str]) -> list[CurveBand]:
    fractions = np.linspace(0, 1, 21)
    mean = 0.5 + 0.45 * (1 - fractions ** (1 + 6 * _quality(entry)))
    return [
        CurveBand(
            entry=entry.name,
            fill=fill,
            order="ascending",
            fractions=fractions,
            mean=mean,
            low=mean - 0.03,
            high=mean + 0.03,
            sd=np.full(21, 0.01),
        )
        for fill in fills
    ]


def write_scores(found: Evaluation, out: Path, *, pictures: int = 24) -> None:
    """Write what an evaluation leaves per sample: one file per run, and one of the controls."""
    folder = out / "scores"
    folder.mkdir(parents=True)
    for model in (*found.models, CONTROL):
        mine = [entry for entry in found.entries.values() if entry.model == model]
        for seed in found.models[model].seeds if model in found.models else (0,):
            rng = np.random.default_rng([seed, len(model)])
            rows = [_sample_row(entry, i, seed, rng) for entry in mine for i in range(pictures)]
            with (folder / f"{model}-seed-{seed}.csv").open("w", newline="") as stream:
                writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)


def _sample_row(entry: Entry, i: int, seed: int, rng: np.random.Generator) -> dict[str, object]:
    positive = i % 2
    precision = float(np.clip(_quality(entry) + 0.2 * rng.normal(), 0.01, 1))
    return {
        "sample_id": f"p{i // 3:03d}-{i % 3}",
        "subject_id": f"p{i // 3:03d}",
        "label": CLASSES[positive],
        "prediction": CLASSES[positive if i % 11 else 1 - positive],
        "target": CLASSES[positive],
        "model": entry.model,
        "seed": seed,
        "method": entry.method,
        "level": entry.level,
        "average_precision": precision if positive else "",
        "pointing_game": float(precision > 0.4) if positive else "",
    }


def pictures(found: Evaluation) -> Callable[..., Mapping[str, CasePicture]]:
    """Return what gives the pictures of cases."""

    def cases(sample_ids: Sequence[str], entries: Sequence[str]) -> Mapping[str, CasePicture]:
        return {name: _case(i, entries) for i, name in enumerate(sample_ids)}

    def _case(i: int, entries: Sequence[str]) -> CasePicture:
        rng = np.random.default_rng(i)
        mask = np.zeros((64, 64), dtype=bool)
        mask[20:34, 30 : 40 + i] = True
        image = rng.normal(size=(4, 64, 64)).astype(np.float32) + 3 * mask
        cells = mask.reshape(16, 4, 16, 4).mean((1, 3)).astype(np.float32)
        maps = {name: cells + 0.3 * rng.random((16, 16)).astype(np.float32) for name in entries}
        signed = {name: "lift" in name for name in entries}
        maps = {name: values - 0.3 * signed[name] for name, values in maps.items()}
        return CasePicture(
            image=image.astype(np.float32),
            mask=mask if i % 4 else None,
            label=1,
            prediction=int(i % 5 != 0),
            scores={
                name: {"average_precision": 0.5, "pointing_game": i % 2 * 1.0} for name in entries
            },
            maps=maps,
            signed=signed,
        )

    return cases


def without(found: Evaluation, *measures: str) -> Evaluation:
    """Return the same without some measures of the entries."""
    scores = {
        entry: {name: x for name, x in mine.items() if name not in measures}
        for entry, mine in found.scores.items()
    }
    return replace(found, scores=scores)
