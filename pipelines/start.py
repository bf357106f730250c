"""The first weights of a run: drawn at random, out of a file, or those of another run."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from models.attention import ATTENTIONS
from models.errors import ModelError
from models.gates import GateOptions
from models.networks import Classifier
from models.pretrained import PretrainedReport, fit_pretrained, read_weights
from pipelines import run as run_files
from pipelines.assemble import TrainingData, network_of
from pipelines.config import DataSummary, Normalisation, Origin, RunConfig, TrainConfig
from pipelines.errors import DataError, RunError, UsageError

OTHER_DATA = "other-data"
HEAD = "head"
SEEDS = "seed-*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the first weights come from; at random where nothing is named.

    Attributes
    ----------
    pretrained
        A file of weights under the names of torchvision, timm or our own.
    source
        A run's folder, named on the command line by ``--from``; or a folder of runs
        ``seed-<seed>``, of which each run begins with that of its own seed.
    allow
        What need not fit: parts of the network or of the file by name, and ``other-data`` for a
        source that was trained on a data set that may have split the patients otherwise.
    """

    pretrained: Path | None = None
    source: Path | None = None
    allow: tuple[str, ...] = ()

    @property
    def file(self) -> Path | None:
        """The file of weights, whosever it is."""
        return self.pretrained if self.source is None else self.source / run_files.WEIGHTS

    def of_seed(self, seed: int) -> "Start":
        """Return where a run with this seed begins, whether or not that run is there."""
        source = self.source
        if source is None or (source / run_files.CONFIG).exists() or not any(source.glob(SEEDS)):
            return self
        return replace(self, source=source / f"seed-{seed}")

    def required(self, seed: int) -> "Start":
        """Return where a run with this seed begins.

        Raises
        ------
        RunError
            ``SEED_MISSING`` where the source holds runs of other seeds only.
        """
        found = self.of_seed(seed)
        if found is not self and found.file is not None and not found.file.parent.is_dir():
            held = ", ".join(sorted(path.name for path in found.file.parent.parent.glob(SEEDS)))
            raise RunError(
                "SEED_MISSING",
                f"the folder to start from holds no run of seed {seed} (it holds {held}), and the "
                "weights of another seed would tie runs together that are to be independent: train "
                "the missing one, ask for fewer --seeds, or name a single run with --from",
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a new run has taken over.

    Attributes
    ----------
    normalisation
        That of the source, where its trunk is frozen: the trunk knows pictures on that scale only,
        and its statistics do not move. None where it is to be measured.
    """

    origin: Origin
    normalisation: Normalisation | None = None


def begin(
    network: Classifier, start: Start, *, settings: TrainConfig, data: TrainingData
) -> Beginning:
    """Put the first weights into a new run's network, which holds random ones.

    Raises
    ------
    UsageError
        ``TWO_STARTS``, ``FROZEN_AT_RANDOM``, ``NO_START``, ``START_DIFFERS`` where the source is of
        another network or other channels, and the codes of ``models.pretrained``.
    RunError
        The source is no run, was not finished, or was altered; ``SEED_MISSING`` where it holds runs
        of other seeds only.
    DataError
        ``OTHER_SPLIT`` where the source may have been trained on patients that are to test.
    """
    start = start.required(settings.seed)
    if start.pretrained is not None and start.source is not None:
        raise UsageError("TWO_STARTS", "--pretrained and --from exclude each other: name one")
    if start.source is not None:
        return _from_run(network, start.source, start.allow, settings=settings, data=data)
    if start.pretrained is not None:
        return Beginning(origin=_from_file(network, start.pretrained, start.allow))
    if settings.freeze_trunk:
        raise UsageError(
            "FROZEN_AT_RANDOM",
            "freeze_trunk holds the weights that a run starts from, and this one starts at random: "
            "name a baseline run with --from or a file with --pretrained, or set "
            "freeze_trunk=false",
        )
    return Beginning(origin=Origin())


def begin_again(
    network: Classifier, start: Start, *, kept: RunConfig, run: Path, data: TrainingData
) -> Beginning:
    """Put the first weights into the network of a run to be resumed, where it still needs them.

    A checkpoint holds all weights, so that neither the file nor the source has to be named or to
    be there any more. Where one is, it must be the one that the run began with.

    Raises
    ------
    UsageError
        ``START_MISSING``, ``RESUME_DIFFERS``, and as ``begin``.
    """
    start = start.of_seed(kept.train.seed)
    there = start.file is not None and start.file.is_file()
    if there and _hash(start.file) != kept.origin.sha256:
        raise UsageError(
            "RESUME_DIFFERS",
            "the run to resume began with other weights than the file or run that is named now: "
            "leave --pretrained and --from out, or begin a new run",
        )
    if kept.origin.kind == "random" or (run / run_files.CHECKPOINT).exists():
        return Beginning(origin=kept.origin)
    if not there:
        raise UsageError(
            "START_MISSING",
            "the run was interrupted before its first checkpoint and needs the weights that it "
            "began with: name the same --pretrained or --from again",
        )
    return begin(network, start, settings=kept.train, data=data)


def described(origin: Origin) -> tuple[str, ...]:
    """Lines for people: where the first weights came from, and what became of them."""
    if origin.kind == "random":
        return ("first weights drawn at random",)
    source = "a file of weights" if origin.kind == "file" else "another run's best weights"
    parts = list(dict.fromkeys(name.split(".")[0] for name in origin.fresh))
    fresh = f"{len(origin.fresh)} at random ({', '.join(parts)})" if parts else "none at random"
    fitted = f", {len(origin.adapted)} fitted ({', '.join(origin.adapted)})"
    return (
        f"first weights from {source}, SHA-256 {origin.sha256}: {origin.matched} tensors taken "
        f"over{fitted if origin.adapted else ''}, {fresh}; {origin.unused} of the source unused",
        *origin.remarks,
    )


def _hash(path: Path | None) -> str:
    try:
        return "" if path is None else run_files.sha256(path)
    except OSError as error:
        raise UsageError(
            "NO_START",
            f"--pretrained cannot be read ({type(error).__name__}): name a file of weights",
        ) from None


def _from_file(network: Classifier, path: Path, allow: Sequence[str]) -> Origin:
    digest = _hash(path)
    try:
        report = fit_pretrained(network, read_weights(path), allow=allow)
    except ModelError as error:
        hint = "; on the command line: --allow NAME" if error.code == "WEIGHTS_UNMATCHED" else ""
        raise UsageError(error.code, f"{error}{hint}") from None
    return _origin("file", digest, report)


def _origin(
    kind: Literal["file", "run"],
    digest: str,
    report: PretrainedReport,
    remarks: Sequence[str] = (),
) -> Origin:
    return Origin(
        kind=kind,
        sha256=digest,
        matched=len(report.matched),
        adapted=report.adapted,
        fresh=report.fresh,
        unused=len(report.unused),
        remarks=tuple(remarks),
    )


def _from_run(
    network: Classifier,
    source: Path,
    allow: Sequence[str],
    *,
    settings: TrainConfig,
    data: TrainingData,
) -> Beginning:
    kept = run_files.read_config(source)
    _refuse_other_network(kept, settings, data.summary)
    remarks = _split_remarks(kept, source, data, allow)
    if kept.data.classes != data.summary.classes:
        remarks.append("the source tells other classes apart: the head begins at random")
    weights = _weights_of(source, kept)
    if kept.data.classes != data.summary.classes:
        weights = {name: value for name, value in weights.items() if not name.startswith(HEAD)}
    else:
        factor = _pool_factor(kept.train) / _pool_factor(settings)
        weights[f"{HEAD}.weight"] = _fitted_head(network, weights[f"{HEAD}.weight"] * factor)
    try:
        report = fit_pretrained(network, weights, allow=(HEAD, *allow))
    except ModelError as error:
        raise UsageError(error.code, str(error)) from None
    origin = _origin("run", run_files.sha256(source / run_files.WEIGHTS), report, remarks)
    kept_scale = kept.normalisation if settings.freeze_trunk else None
    return Beginning(origin=origin, normalisation=kept_scale)


def _weights_of(source: Path, kept: RunConfig) -> dict[str, Tensor]:
    """Best weights of a finished run; the caller's random state stays."""
    if not (source / run_files.SEAL).is_file():
        raise RunError(
            "RUN_INCOMPLETE",
            f"the run to start from holds no {run_files.SEAL}: its training has not ended; end it "
            "with --resume, or name another --from",
        )
    with torch.random.fork_rng(devices=[]):
        model = network_of(kept)
    run_files.load_weights(source, model)
    return dict(model.state_dict())


def _fitted_head(network: Classifier, weight: Float[Tensor, "k c"]) -> Float[Tensor, "k d"]:
    """Let a head that also sees the pooled features of finer levels begin with nothing of them."""
    more = network.head.in_features - weight.shape[1]
    if more <= 0 or weight.shape[1] != network.trunk.features:
        return weight
    return torch.cat([weight.new_zeros(len(weight), more), weight], dim=1)


def _pool_factor(settings: TrainConfig) -> float:
    """Factor on the features before the head, which a head taken over must make up for."""
    variant = ATTENTIONS[settings.variant]
    if variant.levels == "none":
        return 1.0
    options = GateOptions(**{**variant.options, **settings.network_options})  # pyright: ignore[reportArgumentType] - checked where the network was built
    return float(options.pool_scale) if options.rescale else 1.0


def _refuse_other_network(kept: RunConfig, settings: TrainConfig, summary: DataSummary) -> None:
    pairs: Mapping[str, tuple[object, object]] = {
        "network": (kept.train.network, settings.network),
        "channels": (kept.data.in_channels, summary.in_channels),
    }
    differing = [
        f"{name} {theirs}, here {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours
    ]
    if differing:
        raise UsageError(
            "START_DIFFERS",
            f"the run to start from is of another make ({'; '.join(differing)}): its weights do "
            "not fit; name a run of the same network on pictures of the same channels",
        )


def _split_remarks(
    kept: RunConfig, source: Path, data: TrainingData, allow: Sequence[str]
) -> list[str]:
    """Say what is known where the source was trained on another data set.

    A run does not list the patients that it was trained on. Those that it was tested on took no
    part, and patients of another recipe are others; whatever else there is must be allowed.
    """
    if kept.data.manifest_sha256 == data.summary.manifest_sha256:
        return []
    tested = set(data.splits["test"].subject_ids)
    if tested and tested <= _tested_by(source):
        return ["the source was trained on another data set, in which these patients also test"]
    if not tested or kept.data.recipe != data.summary.recipe:
        return ["the source was trained on another data set"]
    if OTHER_DATA not in allow:
        raise DataError(
            "OTHER_SPLIT",
            "the run to start from was trained on another data set, in which a patient who tests "
            "here may have trained: scores would be too good; train the baseline on this data "
            f"set, or where the patients are others for certain add --allow {OTHER_DATA}",
        )
    return [
        "the source was trained on another data set: a patient of the test split may have been in "
        "its training, and the test scores be too good"
    ]


def _tested_by(source: Path) -> set[str]:
    try:
        with (source / run_files.PREDICTIONS).open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()
    return {row["subject_id"] for row in rows if row.get("split") == "test" and "subject_id" in row}
