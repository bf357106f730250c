"""The runs of a comparison: which they are, where they lie, and whether a folder may hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.attention import ATTENTIONS
from models.errors import unknown
from pipelines import run as run_files
from pipelines.assemble import TrainingData, network_for
from pipelines.comparison_table import Failure
from pipelines.config import CompareConfig, TrainConfig
from pipelines.errors import DataError, RunExists, UsageError
from pipelines.start import Start
from pipelines.train import WITHOUT_EFFECT_ON_WEIGHTS
from preprocessing.records import Died

ALL = "all"
BASELINE = "baseline"
TABLE, PER_RUN, DIFFERENCES = "comparison.csv", "per_run.csv", "differences.csv"
PAGE, LATEX = "comparison.md", "comparison.tex"
FIGURES = ("comparison.png", "comparison.svg")
PROCESS_DIED = (
    "PROCESS_DIED",
    "its process ended without an answer, most often for want of memory: go on with --resume and a "
    "smaller --jobs or batch_size",
)
"""Code and message for a run whose process is gone."""
WRITTEN = frozenset({TABLE, PER_RUN, DIFFERENCES, PAGE, LATEX, *FIGURES, run_files.CONFIG})


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a grid.

    Attributes
    ----------
    settings
        The grid's, with this run's variant and seed.
    """

    settings: TrainConfig
    data: Path
    run: Path
    start: Start

    @property
    def name(self) -> str:
        """Say which one, in words."""
        return f"{self.settings.variant}, seed {self.settings.seed}"


def chosen_variants(config: CompareConfig, found: TrainingData) -> tuple[str, ...]:
    """Return the variants by name; ``all`` are those whose levels the network has.

    Raises
    ------
    UsageError
        ``UNKNOWN_VARIANT``; or a variant that the network cannot be built with.
    """
    wanted = [name for name in config.variants if name != ALL]
    for name in wanted:
        if name not in ATTENTIONS:
            raise UsageError("UNKNOWN_VARIANT", unknown("variant", name, [*ATTENTIONS, ALL]))
    everything = ALL in config.variants
    chosen = []
    for name in ATTENTIONS if everything else dict.fromkeys(wanted):
        try:
            _try_building(config.train.model_copy(update={"variant": name}), found)
        except UsageError as error:
            if not (everything and error.code == "NOTHING_TO_GATE" and name not in wanted):
                raise
        else:
            chosen.append(name)
    return tuple(chosen)


def _try_building(settings: TrainConfig, found: TrainingData) -> None:
    """Refuse what cannot be built before the first of many runs is begun; costs no memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network_for(settings, found.summary)


def reference(against: str, variants: Sequence[str]) -> str:
    """Return the variant that the others are compared with.

    Raises
    ------
    UsageError
        ``AGAINST_MISSING`` where the one that is named is not compared.
    """
    if not against:
        return BASELINE if BASELINE in variants else variants[0]
    if against not in variants:
        raise UsageError(
            "AGAINST_MISSING",
            f"nothing can be compared with '{against}', which is not trained here: "
            f"{unknown('variant', against, variants)}; add it to --variants, or name another",
        )
    return against


def members_of(
    config: CompareConfig, variants: Sequence[str], *, data: Path, out: Path, start: Start
) -> list[Member]:
    """Return all runs seed by seed, so that an interrupted grid holds whole comparisons.

    Raises
    ------
    RunError
        ``SEED_MISSING`` where they are to begin with runs of their own seeds and one is not there.
    """
    return [
        Member(
            settings=config.train.model_copy(update={"variant": variant, "seed": seed}),
            data=data,
            run=out / variant / f"seed-{seed}",
            start=start.required(seed),
        )
        for seed in range(config.train.seed, config.train.seed + config.seeds)
        for variant in variants
    ]


def claim(out: Path, *, resume: bool) -> None:
    """Make the folder of a grid, or accept the one to be continued.

    Raises
    ------
    RunExists
        ``RUN_EXISTS`` where it holds something and ``resume`` is false; ``NOT_A_COMPARISON`` where
        it holds what no comparison writes.
    """
    if out.exists() and not out.is_dir():
        raise RunExists("NOT_A_COMPARISON", "--out names a file: name a new folder")
    held = {path.name for path in out.iterdir()} if out.exists() else set()
    held = {name for name in held if not run_files.LEFT_BY_A_KILL.fullmatch(name)}
    if held and not resume:
        raise RunExists(
            "RUN_EXISTS",
            "the folder exists and is not empty: name another --out, or continue the comparison "
            "in it with --resume",
        )
    foreign = held - WRITTEN - ATTENTIONS.keys()
    if foreign:
        raise RunExists(
            "NOT_A_COMPARISON",
            f"the folder to resume holds {len(foreign)} entries that no comparison of variants "
            "writes: name the comparison's own folder",
        )
    out.mkdir(parents=True, exist_ok=True)


def refuse_other(member: Member, found: TrainingData) -> None:
    """Refuse to compare runs of different data or settings, before anything is trained.

    Raises
    ------
    DataError
        ``DATA_CHANGED``.
    UsageError
        ``RESUME_DIFFERS``.
    """
    if not (member.run / run_files.CONFIG).exists():
        return
    begun = run_files.read_config(member.run)
    if begun.data != found.summary:
        raise DataError(
            "DATA_CHANGED",
            f"the run '{member.name}' of this comparison was begun with another data set, or this "
            "one was rebuilt since: name the same --data, or another --out",
        )
    file = member.start.file
    weights = run_files.sha256(file) if file is not None and file.is_file() else ""
    if begun.origin.sha256 != weights:
        raise UsageError(
            "RESUME_DIFFERS",
            f"the run '{member.name}' of this comparison began with other weights than a new one "
            "would now: name the same --pretrained or --from as before, or another --out",
        )
    before, now = begun.train.model_dump(), member.settings.model_dump()
    differing = [
        f"{name} {before[name]} -> {now[name]}"
        for name in now
        if before[name] != now[name] and name not in WITHOUT_EFFECT_ON_WEIGHTS
    ]
    if differing:
        raise UsageError(
            "RESUME_DIFFERS",
            f"the run '{member.name}' of this comparison was begun with other settings "
            f"({', '.join(differing)}): resume with its own settings, or name another --out",
        )


def failure_of(member: Member, result: tuple[str, str] | Died) -> Failure:
    """Say why a run did not end: the code and message of its refusal, or that its process died."""
    code, message = PROCESS_DIED if isinstance(result, Died) else result
    return Failure(
        variant=member.settings.variant, seed=member.settings.seed, code=code, message=message
    )
