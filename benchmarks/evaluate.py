"""Means over seeds and resampled patients of many entries, against a plain loop over resamples.

Run as ``python benchmarks/evaluate.py`` from the root of the repository. The plain way takes each
measure of each seed under one resample at a time, as a user with NumPy would; it does a part of the
work, in turns with ours, and the ratio is that of the same part. To hold: 120 entries x 30 measures
of 5 seeds, 720 samples, 1,000 resamples in seconds.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.comparison_measures import Truth
from pipelines.comparison_scores import differences
from pipelines.evaluation_scores import Resampling, mean_scores

SAMPLES, PATIENTS, SEEDS, TURNS = 720, 20, 5, 3
LOCALISED, PLAIN, REMOVED = 7, 11, 12
COMPARED = 4
"""Measures that the plain way takes."""


def main() -> None:
    """Print seconds of processor time, the ratio, and the greatest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--maps", type=int, default=6, help="entries of each model")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, SAMPLES)
    patients = tuple(f"{i * PATIENTS // SAMPLES}" for i in range(SAMPLES))
    resampling = Resampling(
        truth=Truth(labels=labels, subject_ids=patients),
        classes=labels,
        resamples=options.resamples,
        seed=0,
    )
    _ratio(resampling, rng)
    begin, scores = time.process_time(), {}
    for model in range(options.models):
        entries = [[_scores(labels, rng) for _ in range(SEEDS)] for _ in range(options.maps)]
        for place, found in enumerate(mean_scores(entries, resampling)):
            scores[f"{model} {place}"] = found
    spent = time.process_time() - begin
    begin = time.process_time()
    compared = differences(scores, against="0 0")
    print(
        f"{len(scores)} entries x {len(scores['0 0'])} measures x {SEEDS} seeds, "
        f"{SAMPLES} samples, {options.resamples} resamples: {spent:.1f} s of processor time, and "
        f"{time.process_time() - begin:.1f} s for {len(compared)} differences; "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most"
    )


def _scores(labels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw scores with the gaps that real ones have: regions, and pictures that are perturbed."""
    found = {f"localised {i}": rng.random(SAMPLES) for i in range(LOCALISED)}
    for values in found.values():
        values[labels == 0] = np.nan
    found |= {f"plain {i}": rng.random(SAMPLES) for i in range(PLAIN)}
    for i in range(REMOVED):
        values = rng.random(SAMPLES)
        values[np.arange(SAMPLES) % 4 > 0] = np.nan
        found[f"input_perturbation@{i}" if i < 4 else f"removed {i}"] = values
    return found


def _ratio(resampling: Resampling, rng: np.random.Generator) -> None:
    truth = resampling.truth
    seeds = [_scores(truth.labels, rng) for _ in range(SEEDS)]
    kept = [{name: run[name] for name in list(run)[:COMPARED]} for run in seeds]
    ours, theirs, apart = [], [], 0.0
    for _ in range(TURNS):
        begin = time.process_time()
        (found,) = mean_scores([kept], resampling)
        ours.append(time.process_time() - begin)
        begin = time.process_time()
        plain = {name: _plainly([run[name] for run in kept], resampling) for name in kept[0]}
        theirs.append(time.process_time() - begin)
        apart = max(float(np.abs(found[name].drawn - plain[name]).max()) for name in plain)
    print(
        f"{COMPARED} measures x {SEEDS} seeds: {np.median(theirs) / np.median(ours):.1f} times as "
        f"fast as a loop over resamples, which differs by {apart:.1e}"
    )


def _plainly(seeds: list[np.ndarray], resampling: Resampling) -> np.ndarray:
    """Take the mean of every resample written out, one after the other."""
    drawn = []
    for weights in resampling.truth.draws(resampling.resamples, resampling.seed):
        for row in weights:
            indices = np.repeat(np.arange(len(row)), row.astype(np.int64))
            drawn.append(np.mean([np.nanmean(values[indices]) for values in seeds]))
    return np.array(drawn)


if __name__ == "__main__":
    main()
