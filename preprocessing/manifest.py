"""``manifest.json``: written last, so that its presence means a complete data set."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from preprocessing.atomic_files import atomic_write
from preprocessing.errors import ShardError
from preprocessing.layout import DATASET_TYPE, ENCODING_VERSION, file_sha256

MANIFEST = "manifest.json"
SAMPLES, EXCLUSIONS, CARD, CROISSANT = (
    "samples.csv",
    "exclusions.csv",
    "README.md",
    "croissant.json",
)
QUALITY = "qc"
MAX_MANIFEST_BYTES = 1 << 26
SELF = "manifest_blake2b"


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Declare the data set complete, in one visible step.

    Added to what is given: ``encoding-type``, ``encoding-version``, ``files`` (SHA-256 of the
    tables, the card and ``qc/``) and a digest of the manifest itself. A manifest with the same
    content counts as written.

    Raises
    ------
    ShardError
        ``MANIFEST``: a needed key is missing or wrong, or a shard it names is not there.
    OutputError
        ``EXISTS`` where the folder has another manifest; else as ``atomic_files.writing``.
    """
    content = {
        "encoding-type": DATASET_TYPE,
        "encoding-version": ENCODING_VERSION,
        "files": _hashes(out),
        **manifest,
    }
    _check(content)
    for shard in content["shards"]:
        if not (out / shard["file"]).is_file():
            raise _wrong(f"it names {shard['file']}, which is not there")
    content[SELF] = _digest(content)
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    atomic_write(out / MANIFEST, f"{text}\n".encode(), replace=False)


def read_manifest(out: Path) -> dict[str, Any]:
    """Read and check the manifest of a complete data set.

    Raises
    ------
    ShardError
        ``INCOMPLETE`` without a manifest, ``SCHEMA_VERSION`` from another release, else
        ``MANIFEST``.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise ShardError(
            "INCOMPLETE",
            f"the folder has no {MANIFEST}, which is written last: a build there has not finished "
            "(run its build-dataset command again to go on), or this is no data set",
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise _wrong(f"it has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise _wrong("it cannot be read as JSON") from None
    _check(manifest)
    return manifest


def _check(manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("encoding-type") != DATASET_TYPE:
        raise _wrong(f"its encoding-type is not '{DATASET_TYPE}'")
    version = manifest.get("encoding-version")
    if str(version).partition(".")[0] != ENCODING_VERSION.partition(".")[0]:
        raise ShardError(
            "SCHEMA_VERSION",
            f"data set from another schema version: its encoding-version is {version!r}, this "
            f"release reads {ENCODING_VERSION}: use the release that wrote it, or build it again",
        )
    if not isinstance(manifest.get("name"), str):
        raise _wrong("it has no 'name'")
    classes = manifest.get("classes")
    if not isinstance(classes, list) or not all(isinstance(item, str) for item in classes):
        raise _wrong("its 'classes' are no list of names")
    shards = manifest.get("shards")
    if not isinstance(shards, list) or not shards:
        raise _wrong("its 'shards' are no list, or an empty one")
    for shard in shards:
        _check_shard(shard)
    if len({shard["file"] for shard in shards}) < len(shards):
        raise _wrong("it names a shard twice")
    if SELF in manifest and manifest[SELF] != _digest(manifest):
        raise _wrong("it was changed or damaged after it was written")


def _check_shard(shard: Any) -> None:
    if not isinstance(shard, dict) or not {"file", "split"} <= shard.keys():
        raise _wrong("an entry of 'shards' has no 'file' or no 'split'")
    if not isinstance(shard["file"], str) or not isinstance(shard["split"], str):
        raise _wrong("'file' or 'split' of a shard is no text")
    place = PurePosixPath(shard["file"])
    is_outside = place.is_absolute() or ".." in place.parts or "\\" in shard["file"]
    if is_outside or "\0" in shard["file"] or not place.parts:
        raise _wrong("the 'file' of a shard leads out of the data set's folder")


def _hashes(out: Path) -> dict[str, str]:
    files = [out / name for name in (SAMPLES, EXCLUSIONS, CARD, CROISSANT)]
    files += sorted((out / QUALITY).rglob("*"))
    return {path.relative_to(out).as_posix(): file_sha256(path) for path in files if path.is_file()}


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != SELF}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _wrong(what: str) -> ShardError:
    return ShardError(
        "MANIFEST",
        f"{MANIFEST} cannot be used: {what}; see docs/shard-format.md, or copy or build the data "
        "set again",
    )
