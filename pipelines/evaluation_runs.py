"""Which runs are evaluated: found in folders, checked against the data set, grouped into models.

Runs that differ in nothing but the seed are one model. It is named after its variant; what else
tells models of one variant apart is added in words.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.attention import ATTENTIONS
from pipelines import run as run_files
from pipelines.config import DataSummary, RunConfig
from pipelines.errors import DataError, RunError, UsageError
from pipelines.run_scores import is_sealed
from pipelines.train import WITHOUT_EFFECT_ON_WEIGHTS

BASELINE, STANDARD = "baseline", "standard"
SAME_MODEL = WITHOUT_EFFECT_ON_WEIGHTS | {"seed", "device"}
"""Settings in which runs of one model may differ."""
OF_A_RUN = (run_files.WEIGHTS, run_files.CHECKPOINT, run_files.SEAL, run_files.METRICS)
TOLD_FIRST = ("network", "freeze_trunk", "image_size", "origin")
ORIGINS: Mapping[str, str] = {"random": "", "file": "pretrained", "run": "from a run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRun:
    """A finished run.

    Attributes
    ----------
    model
        Name of the group of runs that it belongs to; "" until it is grouped.
    sha256
        Of its settings and of its weights.
    """

    folder: Path
    config: RunConfig = field(repr=False)
    model: str
    sha256: tuple[str, str] = field(repr=False)

    @property
    def seed(self) -> int:
        """Return the seed that tells it from the other runs of its model."""
        return self.config.train.seed

    @property
    def variant(self) -> str:
        """Name in ``ATTENTIONS``."""
        return self.config.train.variant

    @property
    def objective(self) -> str:
        """Name in ``OBJECTIVES``."""
        return self.config.train.objective

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the pictures that it was trained on."""
        side = self.config.train.image_size
        return (side, side) if side else self.config.data.picture_size

    @property
    def name(self) -> str:
        """Say which one, in words."""
        return f"{self.model or self.variant}, seed {self.seed}"


def runs_of(folders: Sequence[Path], summary: DataSummary) -> tuple[EvaluatedRun, ...]:
    """Find the runs in some folders, and group them into models.

    Parameters
    ----------
    folders
        Runs, comparisons, or folders that hold runs at any depth; their order does not matter.
    summary
        Of the data set that the runs are evaluated on.

    Raises
    ------
    RunError
        ``NO_RUN``, ``RUN_UNFINISHED``, ``RUN_ALTERED``, ``RUN_CONFIG``.
    DataError
        ``RUN_DATA_MISMATCH`` for other classes or pictures, ``DATA_CHANGED`` for another build.
    UsageError
        ``RUN_TWICE`` where two runs are of one model and one seed.
    """
    found = [_opened(folder, summary) for folder in _run_folders(folders)]
    grouped = _named(found)
    order = list(ATTENTIONS)
    grouped.sort(key=lambda run: (order.index(run.variant), run.model, run.seed))
    for name, count in Counter(run.name for run in grouped).items():
        if count > 1:
            raise UsageError(
                "RUN_TWICE",
                f"{count} runs are '{name}' with the same settings: as one of a model's seeds "
                "they would count more than once; name only one of them",
            )
    return tuple(grouped)


def _run_folders(folders: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for folder in folders:
        own = _inside(folder)
        if not own:
            raise RunError(
                "NO_RUN",
                "a folder named with --run holds no run, nor does any folder in it: name a folder "
                "that 'dualwitness train' wrote",
            )
        found |= dict.fromkeys(path.resolve() for path in own)
    return list(found)


def _inside(folder: Path) -> list[Path]:
    if _is_run(folder):
        return [folder]
    held = sorted(path.parent for path in folder.rglob(run_files.CONFIG))
    return [path for path in held if _is_run(path)]


def _is_run(folder: Path) -> bool:
    """Tell a run from a comparison, which has settings too."""
    held = (folder / run_files.CONFIG).is_file()
    return held and any((folder / name).is_file() for name in OF_A_RUN)


def _opened(folder: Path, summary: DataSummary) -> EvaluatedRun:
    config = run_files.read_config(folder)
    name = f"{config.train.variant}, seed {config.train.seed}"
    if not is_sealed(folder):
        raise RunError(
            "RUN_UNFINISHED",
            f"the training of the run '{name}' did not end, so it has no final weights: end it "
            "with 'dualwitness train --resume', or name the finished runs one by one",
        )
    _refuse_other_data(config.data, summary, name)
    hashes = (run_files.sha256(folder / run_files.CONFIG), _weights(folder))
    return EvaluatedRun(folder=folder, config=config, model="", sha256=hashes)


def _weights(folder: Path) -> str:
    return run_files.sha256(folder / run_files.WEIGHTS)


def _refuse_other_data(trained: DataSummary, given: DataSummary, name: str) -> None:
    for what in ("task", "classes", "in_channels", "picture_size"):
        theirs, ours = getattr(trained, what), getattr(given, what)
        if theirs != ours:
            raise DataError(
                "RUN_DATA_MISMATCH",
                f"the run '{name}' was trained on data with {what} {theirs}, and the data set has "
                f"{ours}: name the data set that belongs to it, or leave the run out",
            )
    if trained != given:
        raise DataError(
            "DATA_CHANGED",
            f"the run '{name}' was trained on another build of the data set, whose split may be "
            "another: it would be tested on patients that it learned from; name the --data that "
            "it was trained on, or leave the run out",
        )


def _named(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Give every run the name of its model."""
    traits = [_traits(run) for run in runs]
    keys = [json.dumps(found, sort_keys=True) for found in traits]
    groups = dict(sorted(zip(keys, traits, strict=True)))
    names: dict[str, str] = {}
    for title in dict.fromkeys(_title(own) for own in groups.values()):
        same = {key: own for key, own in groups.items() if _title(own) == title}
        names |= {
            key: " ".join(filter(None, [title, *words]))
            for key, words in zip(same, _telling(list(same.values())), strict=True)
        }
    return [replace(run, model=names[key]) for run, key in zip(runs, keys, strict=True)]


def _title(traits: Mapping[str, Any]) -> str:
    """Name the variant, and what it was trained on where that is more than pictures as they are."""
    objective = traits["objective"]
    return traits["variant"] if objective == STANDARD else f"{traits['variant']} {objective}"


def _telling(same: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Tell models of one variant apart in as few words as needed."""
    differing = dict.fromkeys(name for traits in same for name in traits)
    order = [*TOLD_FIRST, *(name for name in differing if name not in TOLD_FIRST)]
    words: list[list[str]] = [[] for _ in same]
    for name in order:
        more = [
            [*told, _word(name, traits.get(name))] for told, traits in zip(words, same, strict=True)
        ]
        if _different(more) > _different(words):
            words = more
    if _different(words) < len(same):  # such as other files of first weights
        words = [[*told, f"({place})"] for place, told in enumerate(words, start=1)]
    return words


def _different(words: Sequence[Sequence[str]]) -> int:
    return len({tuple(told) for told in words})


def _traits(run: EvaluatedRun) -> dict[str, Any]:
    """Everything that tells a model from another, by dotted name."""
    settings = run.config.train.model_dump(mode="json", exclude=set(SAME_MODEL))
    origin = run.config.origin
    settings["origin"] = [origin.kind, origin.sha256 if origin.kind == "file" else ""]
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict)
        flat |= (
            {f"{name}.{part}": each for part, each in value.items()} if nested else {name: value}
        )
    return flat


def _word(name: str, value: Any) -> str:
    if name == "network":
        return str(value)
    if name == "image_size":
        return f"{value} px" if value else "full size"
    if name == "freeze_trunk":
        return "frozen trunk" if value else ""
    if name == "origin":
        return ORIGINS[value[0]]
    return f"{name.rpartition('.')[2]} {'default' if value is None else value}"


def judge_of(run: EvaluatedRun, runs: Sequence[EvaluatedRun]) -> EvaluatedRun:
    """Return the network that classifies the perturbed pictures of a run's maps.

    That of a baseline that sees pictures of the same size: of the network that most runs have, and
    of the same seed, where there is one. Without a baseline a run judges itself.
    """
    possible = judges(runs, size=run.size)
    same_seed = [judge for judge in possible if judge.seed == run.seed]
    return (same_seed or possible or [run])[0]


def judges(runs: Sequence[EvaluatedRun], *, size: tuple[int, int]) -> list[EvaluatedRun]:
    """Return all seeds of the one baseline that judges pictures of a size; none without any.

    One of standard training goes before those of robust objectives.
    """
    baselines = [run for run in runs if run.variant == BASELINE and run.size == size]
    if not baselines:
        return []
    common = Counter(run.config.train.network for run in runs)
    first = max(
        baselines,
        key=lambda run: (run.objective == STANDARD, common[run.config.train.network]),
    )
    return [run for run in baselines if run.model == first.model]
