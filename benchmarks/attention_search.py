"""Which way of making attention levels agree finds the tumour: a search on synthetic heads.

    OMP_NUM_THREADS=1 python benchmarks/attention_search.py --out DIR [--seeds 5] [--jobs 4]

Every setting is trained with every seed, from nothing or on the frozen trunk of a baseline of the
same seed, and scored on the *validation* patients: accuracy, and the average precision of each
level's map against the true tumour. Seeds are averaged within each resample of the patients.
``--final A,B`` then scores these settings once on the test patients, all against the last.
What was trained is kept in DIR and not trained again.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.assemble import TrainingData, open_for_training
from pipelines.build import build
from pipelines.comparison_measures import RunScores, Truth
from pipelines.comparison_scores import MeanScore, differences, score_variants
from pipelines.config import TrainConfig
from pipelines.demo import DEMO_KEY
from pipelines.demo_chains import DEMOS
from pipelines.member_processes import run_all
from pipelines.progress import Progress
from pipelines.run_scores import is_sealed, measure_run, read_scores
from pipelines.start import Start
from pipelines.train import AT_RANDOM, train
from pipelines.workers import Workers
from preprocessing.phantoms import PHANTOMS

COMMON: Mapping[str, Any] = {
    "network": "unet-encoder-narrow",
    "image_size": 64,
    "batch_size": 32,
    "learning_rate": 3e-3,
    "epochs": 6,
    "bootstrap": 0,
}
BASELINE = "baseline"
MEASURES = ("accuracy", "average_precision_fine", "average_precision_coarse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is tried: fields of ``TrainConfig``, and whether a baseline's trunk is kept."""

    changes: Mapping[str, Any]
    frozen: bool = False


def _of(
    variant: str, *, frozen: bool = False, alpha: float | None = None, **options: Any
) -> Setting:
    changes = {"variant": variant, "alpha": alpha, "network_options": options}
    return Setting(changes=MappingProxyType(changes), frozen=frozen)


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        BASELINE: _of("baseline"),
        "exact": _of("exact"),
        "exact, alpha 0": _of("exact", alpha=0.0),
        "exact, alpha 10": _of("exact", alpha=10.0),
        "exact, features x 4": _of("exact", pool_scale=1 / 8),
        "exact, features x 32": _of("exact", pool_scale=1.0),
        "exact, arithmetic": _of("exact", mean="arithmetic"),
        "exact, arithmetic, features x 4": _of("exact", mean="arithmetic", pool_scale=1 / 8),
        "exact, two cascaded gates": _of("exact", cascade=2),
        "chain": _of("chain"),
        "exact-two-pass": _of("exact-two-pass"),
        "exact-one-pass": _of("exact-one-pass"),
        "exact-one-sided": _of("exact-one-sided"),
        "exact-factored": _of("exact-factored"),
        "dual": _of("dual"),
        "dual, alpha 1": _of("dual", alpha=1.0),
        "dual, features x 4": _of("dual", pool_scale=1 / 8),
        "dual, features x 32": _of("dual", pool_scale=1.0),
        "unconstrained": _of("unconstrained"),
        "exact, frozen": _of("exact", frozen=True),
        "exact, features x 4, frozen": _of("exact", frozen=True, pool_scale=1 / 8),
        "exact, features x 32, frozen": _of("exact", frozen=True, pool_scale=1.0),
        "exact-two-pass, frozen": _of("exact-two-pass", frozen=True),
        "dual, frozen": _of("dual", frozen=True),
        "dual, features x 4, frozen": _of("dual", frozen=True, pool_scale=1 / 8),
        "dual, features x 32, frozen": _of("dual", frozen=True, pool_scale=1.0),
        "unconstrained, frozen": _of("unconstrained", frozen=True),
    }
)
"""Name of a setting -> what differs from ``COMMON``. Features are pooled times 1/32 by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    name: str
    seed: int
    data: Path
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / self.name.replace(", ", "-").replace(" ", "-") / f"seed-{self.seed}"

    @property
    def config(self) -> TrainConfig:
        setting = SETTINGS[self.name]
        changes = {**COMMON, **setting.changes, "freeze_trunk": setting.frozen, "seed": self.seed}
        return TrainConfig.of(changes)


def main() -> None:
    """Build, train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subjects", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument(
        "--settings", default="", help="names with ; between them; all if not given"
    )
    parser.add_argument("--final", default="", help="names with ; between them")
    options = parser.parse_args()
    data = _data(options.out / "heads", options.subjects, options.jobs)
    names = [name.strip() for name in options.settings.split(";") if name.strip()] or list(SETTINGS)
    for wave in ([BASELINE], [name for name in names if name != BASELINE]):
        runs = [
            _Run(name=name, seed=seed, data=data, out=options.out / "runs")
            for seed in range(options.seeds)
            for name in wave
        ]
        for _ in run_all(_train, runs, jobs=options.jobs, stage="training", progress=_unheard):
            pass
    opened = open_for_training(data, image_size=COMMON["image_size"])
    _print("validation", opened, data, names, options)
    final = [name.strip() for name in options.final.split(";") if name.strip()]
    if final:
        _print("test", opened, data, final, options, against=final[-1])


def _unheard(stage: str, done: int, total: int) -> None:
    """Say nothing: the table is what is wanted."""


def _data(out: Path, subjects: int, jobs: int) -> Path:
    chain, data = DEMOS["brats18"], out / "data"
    if not (out / "scans" / chain.written_last).exists():
        with Workers(jobs) as pool:
            PHANTOMS["brats18"](out / "scans", subjects=subjects, mapper=pool.map, **chain.phantoms)
    sources = chain.sources(out / "scans")
    build("brats18", chain.build, sources, out=data, key=DEMO_KEY, workers=jobs)
    return data


def _train(run: _Run, progress: Progress) -> None:
    if run.folder.exists() and is_sealed(run.folder):
        return
    start = AT_RANDOM
    if SETTINGS[run.name].frozen:
        start = Start(source=replace(run, name=BASELINE).folder)
    resume = run.folder.exists()
    train(run.config, data=run.data, run=run.folder, start=start, resume=resume, progress=progress)


def _print(
    split: str,
    opened: TrainingData,
    data: Path,
    names: Sequence[str],
    options: argparse.Namespace,
    *,
    against: str = "",
) -> None:
    rows = opened.splits[split]
    held = replace(opened, splits={**opened.splits, "test": rows})  # as if it were the test split
    truth = Truth(labels=rows.labels, subject_ids=rows.subject_ids)
    runs = list(_scored(names, held, truth, data, options))
    scores = score_variants(truth, runs, resamples=2000)
    print(f"\n{split}: {len(set(rows.subject_ids))} patients, {options.seeds} seeds")
    print("| setting | accuracy | average precision, fine | coarse |\n|---|---|---|---|")
    for name in names:
        cells = [_cell(scores[name].get(measure)) for measure in MEASURES]
        print(f"| {name} | {' | '.join(cells)} |")
    for found in differences(scores, against=against) if against else ():
        if found.measure in MEASURES:
            interval = f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            print(f"{found.variant} - {against}, {found.measure}: {interval}, p {found.p_holm:.4f}")


def _scored(
    names: Sequence[str],
    held: TrainingData,
    truth: Truth,
    data: Path,
    options: argparse.Namespace,
) -> Iterable[RunScores]:
    for name in names:
        for seed in range(options.seeds):
            run = _Run(name=name, seed=seed, data=data, out=options.out / "runs").folder
            measure_run(run, held)
            yield read_scores(run, variant=name, seed=seed, truth=truth)


def _cell(score: MeanScore | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.3f} ± {score.sd:.3f} ({score.low:.3f} to {score.high:.3f})"


if __name__ == "__main__":
    main()
