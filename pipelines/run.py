"""A run on disk: settings, weights and checkpoint, written whole or not at all.

``best.safetensors`` carries the hash of the ``config.yaml`` it belongs to, and ``run.json``, which
is written last, the hashes of both: a run folder put together from parts is refused. Nothing in a
run names a class or a function to import, and nothing is unpickled.
"""

import csv
import hashlib
import io
import json
import pickle
import platform
import re
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipelines.config import ConfigError, RunConfig
from pipelines.errors import RunError, RunExists
from preprocessing.atomic_files import atomic_write, disk_errors, publish, writing

CONFIG, WEIGHTS, CHECKPOINT = "config.yaml", "best.safetensors", "last.ckpt"
METRICS, PREDICTIONS, SCORES = "metrics.csv", "predictions.csv", "test_scores.json"
ENVIRONMENT, CARD, SEAL = "environment.txt", "model_card.md", "run.json"
EVENTS = "tensorboard"
PART = ".part"
LEFT_BY_A_KILL = re.compile(
    r"\.lock(\.d)?|\.\w+\.(yaml|safetensors|ckpt|csv|json|txt|md|png)(\.\d+)?\.part"
)
CHECKPOINT_VERSION = "1.2"
PACKAGES = (
    "dualwitness", "torch", "monai", "pytorch-ignite", "numpy", "scipy", "scikit-learn", "h5py",
    "safetensors", "vtk", "SimpleITK", "pydicom", "nibabel",
)  # fmt: skip


def claim(run: Path, *, resume: bool) -> None:
    """Make the run folder, or accept the one to be continued.

    Raises
    ------
    RunExists
        As ``refuse_taken``.
    """
    refuse_taken(run, resume=resume)
    run.mkdir(parents=True, exist_ok=True)


def refuse_taken(run: Path, *, resume: bool) -> None:
    """Refuse a folder that no run can be written into; nothing is made.

    Raises
    ------
    RunExists
        ``RUN_EXISTS`` where it holds something and ``resume`` is false; ``NOT_A_RUN`` where it is
        to be continued and is no run.
    """
    if run.exists() and not run.is_dir():
        raise RunExists("NOT_A_RUN", "--out names a file: name a new folder")
    held = {path.name for path in run.iterdir()} if run.exists() else set()
    held = {name for name in held if not LEFT_BY_A_KILL.fullmatch(name)}
    if held and not resume:
        raise RunExists(
            "RUN_EXISTS",
            "the run folder exists and is not empty: name another --out, or continue the run in "
            "it with --resume",
        )
    if held and CONFIG not in held:
        raise RunExists(
            "NOT_A_RUN",
            f"the folder to resume holds no {CONFIG}, so it is no run: name the run's own folder",
        )


def clear_parts(run: Path) -> None:
    """Remove what a killed process was writing; hold the run's lock."""
    with disk_errors():
        for path in run.glob(f".*{PART}"):
            if LEFT_BY_A_KILL.fullmatch(path.name):
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small text file in one visible step."""
    atomic_write(path, text.encode("utf-8"))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write plain values as JSON that any reader takes: no NaN."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Hash a file of a run."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_config(run: Path) -> RunConfig:
    """Read ``config.yaml``.

    Raises
    ------
    RunError
        ``RUN_INCOMPLETE`` where it is missing, ``RUN_CONFIG`` where it is not ours or was changed.
    """
    _require(run, CONFIG)
    try:
        return RunConfig.from_yaml(run / CONFIG)
    except ConfigError as error:
        raise RunError("RUN_CONFIG", f"{CONFIG} of the run cannot be used: {error}") from None


def _require(run: Path, name: str) -> None:
    if not (run / name).is_file():
        raise RunError(
            "RUN_INCOMPLETE",
            f"the run folder holds no {name}: it is no run, or its training ended before the "
            "first epoch was validated; train again or name another --run",
        )


def save_weights(run: Path, model: nn.Module) -> None:
    """Write the model as ``best.safetensors``, bound to the run's ``config.yaml``.

    Equal weights and an equal ``config.yaml`` give equal bytes.
    """
    tensors = {name: _plain(value) for name, value in model.state_dict().items()}
    metadata = {"format": "pt", "config_sha256": sha256(run / CONFIG)}
    atomic_write(run / WEIGHTS, _with_sorted_header(save(tensors, metadata=metadata)))


def _with_sorted_header(content: bytes) -> bytes:
    """Sort the JSON header of a safetensors file, whose metadata the library leaves in any order.

    The header is preceded by its length (8 bytes, little endian), padded with blanks to a multiple
    of 8, and followed by the tensors, whose offsets count from its end.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(content)[end:]])


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu").contiguous()


def load_weights(run: Path, model: nn.Module) -> None:
    """Load ``best.safetensors`` into a model of the same settings; every tensor must fit.

    Raises
    ------
    RunError
        ``RUN_INCOMPLETE`` (missing), ``RUN_WEIGHTS`` (unreadable, or not of this model),
        ``RUN_ALTERED`` (of another ``config.yaml``, or changed after training).
    """
    _require(run, WEIGHTS)
    check_seal(run)
    try:
        with safe_open(run / WEIGHTS, framework="pt") as file:
            bound = (file.metadata() or {}).get("config_sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        reason = f"{WEIGHTS} cannot be read ({error}): copy the run again or train again"
        raise RunError("RUN_WEIGHTS", reason) from None
    if bound != sha256(run / CONFIG):
        raise RunError(
            "RUN_ALTERED",
            f"{WEIGHTS} was not written for this {CONFIG}: one of them comes from another run or "
            "was edited; use the run as training left it",
        )
    _refuse_misfit(tensors, model)
    model.load_state_dict(tensors)


def _refuse_misfit(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted == given:
        return
    differing = sorted(
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    )
    raise RunError(
        "RUN_WEIGHTS",
        f"{WEIGHTS} does not fit the network of {CONFIG}: {len(differing)} tensors differ, first "
        f"'{differing[0]}' (wanted {wanted.get(differing[0])}, found {given.get(differing[0])})",
    )


def save_checkpoint(run: Path, state: Mapping[str, Any]) -> None:
    """Write ``last.ckpt``: tensors, numbers and strings only, in one visible step."""
    part = run / f".{CHECKPOINT}{PART}"
    whole = {**state, "version": CHECKPOINT_VERSION, "config_sha256": sha256(run / CONFIG)}
    with writing(part):
        torch.save(whole, part)
        publish(part, run / CHECKPOINT, replace=True)


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """Read ``last.ckpt``; None where training ended before the first was written.

    Raises
    ------
    RunError
        ``CHECKPOINT_UNREADABLE``, ``RUN_ALTERED`` where it belongs to other settings, or
        ``CHECKPOINT_VERSION`` where it holds other things than this version asks for.
    """
    if not (run / CHECKPOINT).exists():
        return None
    try:
        state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, zipfile.BadZipFile):
        raise RunError(
            "CHECKPOINT_UNREADABLE",
            f"{CHECKPOINT} is damaged or was not written by this toolkit: delete it to train from "
            "the start",
        ) from None
    if not isinstance(state, dict) or state.get("config_sha256") != sha256(run / CONFIG):
        raise RunError(
            "RUN_ALTERED",
            f"{CHECKPOINT} was not written under this {CONFIG}: use the run as training left it",
        )
    if state.get("version") != CHECKPOINT_VERSION:
        raise RunError(
            "CHECKPOINT_VERSION",
            f"{CHECKPOINT} is of version {state.get('version')} and this toolkit goes on from "
            f"{CHECKPOINT_VERSION} only: go on with the toolkit it was begun with, or delete it to "
            "train from the start",
        )
    return state


def seal(run: Path) -> None:
    """Write ``run.json``: training is complete, and these are its files' hashes."""
    hashes = {name: sha256(run / name) for name in (CONFIG, WEIGHTS)}
    write_json(run / SEAL, {"encoding-type": "dualwitness-run", "sha256": hashes})


def unseal(run: Path) -> None:
    """Remove ``run.json`` before training begins anew: its hashes are those of other files."""
    with disk_errors():
        (run / SEAL).unlink(missing_ok=True)


def check_seal(run: Path) -> None:
    """Refuse a complete run one of whose files was changed afterwards.

    Raises
    ------
    RunError
        ``RUN_ALTERED``.
    """
    if not (run / SEAL).exists():
        return
    try:
        hashes = json.loads((run / SEAL).read_text(encoding="utf-8"))["sha256"]
        altered = [name for name in (CONFIG, WEIGHTS) if hashes[name] != sha256(run / name)]
    except (ValueError, KeyError, TypeError):
        raise RunError("RUN_ALTERED", f"{SEAL} is damaged: use the run as it was left") from None
    if altered:
        raise RunError(
            "RUN_ALTERED",
            f"{' and '.join(altered)} changed after training: use the run as training left it",
        )


def environment(device: torch.device) -> str:
    """Versions and the kind of processor; no host, user or path."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    lines = [f"python {platform.python_version()}", f"system {platform.system()}"]
    lines.append(f"device {device.type} ({name})")
    lines.append(f"threads {torch.get_num_threads()}")
    lines += [f"{package} {_version(package)}" for package in PACKAGES]
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
