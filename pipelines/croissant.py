"""A data set's description as Croissant 1.0 JSON-LD, for catalogues and loaders.

Croissant has no word for HDF5 arrays: the shards are listed with their checksums, and what each
array means is said in its field's description; the table of samples can be loaded as it is.
Whoever publishes a data set adds ``url``, ``creator`` and ``datePublished``, which a build cannot
know.

References
----------
Croissant Format Specification 1.0, http://mlcommons.org/croissant/1.0.
"""

import csv
import hashlib
import io
from collections.abc import Mapping
from typing import Any

from pipelines.errors import DataError
from preprocessing.layout import FieldSpec

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
SAMPLES = "samples.csv"
_TERMS = (
    "citeAs",
    "column",
    "extract",
    "field",
    "fileProperty",
    "fileObject",
    "fileSet",
    "format",
    "includes",
    "isLiveDataset",
    "jsonPath",
    "key",
    "md5",
    "parentField",
    "path",
    "recordSet",
    "references",
    "regex",
    "repeated",
    "replace",
    "separator",
    "source",
    "subField",
    "transform",
)
_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _TERMS},
}
_SHARDS_ID = "shards"


def describe(
    manifest: Mapping[str, Any],
    *,
    license_text: str,
    layout: Mapping[str, FieldSpec] | None = None,
    samples_csv: bytes | None = None,
) -> dict[str, Any]:
    """Describe a data set folder.

    Parameters
    ----------
    manifest
        Content of ``manifest.json``.
    layout
        What each array of a shard means; without it only the names are given.
    samples_csv
        The table of samples; without it the description has no table.

    Raises
    ------
    DataError
        ``CROISSANT``: a shard or field lacks a name, or leads out of the folder.
    """
    name = str(manifest["name"])
    splits = sorted({str(shard["split"]) for shard in manifest["shards"]})
    distribution = [_shard_object(shard) for shard in manifest["shards"]]
    distribution.append(_shard_set())
    record_sets = [_array_records(manifest, layout or {})]
    if samples_csv is not None:
        distribution.append(_samples_object(samples_csv))
        record_sets.insert(0, _sample_records(samples_csv))
    return {
        "@context": dict(_CONTEXT),
        "@type": "sc:Dataset",
        "name": name,
        "description": (
            f"Data set {name} with classes {', '.join(manifest['classes'])} in HDF5 shards "
            f"({', '.join(splits)}). README.md beside this file is its data card: read there what "
            "it may not be used for. Pseudonymised, not anonymous." + _warning(manifest)
        ),
        "conformsTo": CONFORMS_TO,
        "version": str(manifest.get("code_version", "0.0.0")),
        "license": license_text,
        "isLiveDataset": False,
        "distribution": distribution,
        "recordSet": record_sets,
    }


def _warning(manifest: Mapping[str, Any]) -> str:
    leak = str(manifest.get("known_leak", ""))
    return f" Leaks its labels: {leak}." if leak else ""


def _shard_object(shard: Mapping[str, Any]) -> dict[str, Any]:
    file = str(shard["file"])
    if file.startswith("/") or ".." in file.split("/"):
        raise DataError("CROISSANT", "a shard's file leads out of the data set: build it again")
    return {
        "@type": "cr:FileObject",
        "@id": file,
        "name": file.rpartition("/")[2],
        "description": f"{shard.get('rows', 'some')} rows of the split {shard['split']}",
        "contentUrl": file,
        "encodingFormat": "application/x-hdf5",
        "sha256": str(shard["sha256"]),
    }


def _shard_set() -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": _SHARDS_ID,
        "name": _SHARDS_ID,
        "description": "all shards; row i of every array belongs to one sample",
        "encodingFormat": "application/x-hdf5",
        "includes": "shards/*.h5",
    }


def _samples_object(samples_csv: bytes) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": SAMPLES,
        "name": SAMPLES,
        "description": "one line per sample: split, label, and the shard and row that hold it",
        "contentUrl": SAMPLES,
        "encodingFormat": "text/csv",
        "sha256": hashlib.sha256(samples_csv).hexdigest(),
    }


def _sample_records(samples_csv: bytes) -> dict[str, Any]:
    rows = list(csv.DictReader(io.StringIO(samples_csv.decode("utf-8"))))
    columns = list(rows[0]) if rows else []
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "the table of samples",
        "key": {"@id": "samples/sample_id"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"samples/{column}",
                "name": column,
                "description": f"column {column} of the table of samples",
                "dataType": _column_type([row[column] for row in rows]),
                "source": {"fileObject": {"@id": SAMPLES}, "extract": {"column": column}},
            }
            for column in columns
        ],
    }


def _array_records(manifest: Mapping[str, Any], layout: Mapping[str, FieldSpec]) -> dict[str, Any]:
    names = sorted({"label", *manifest.get("fields", ()), *layout})
    return {
        "@type": "cr:RecordSet",
        "@id": "arrays",
        "name": "arrays",
        "description": "HDF5 datasets of every shard; the first axis runs over the shard's rows",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"arrays/{name}",
                "name": name,
                "description": _array_description(name, manifest, layout.get(name)),
                "dataType": _array_type(name, layout.get(name)),
                "repeated": True,
                "source": {
                    "fileSet": {"@id": _SHARDS_ID},
                    "extract": {"fileProperty": "content"},
                },
            }
            for name in names
        ],
    }


def _array_description(name: str, manifest: Mapping[str, Any], spec: FieldSpec | None) -> str:
    if name == "label":
        classes = ", ".join(f"{i} {label}" for i, label in enumerate(manifest["classes"]))
        return f"HDF5 dataset /label, int64 (N,): {classes}, -1 without label"
    if spec is None:
        return f"HDF5 dataset /{name}"
    axes = ", ".join(["N", *map(str, spec.shape)])
    unit = f", in {spec.unit}" if spec.unit else ""
    return f"HDF5 dataset /{name}, {spec.dtype} ({axes}): {spec.description}{unit}"


def _array_type(name: str, spec: FieldSpec | None) -> str:
    floating = spec is not None and spec.dtype.startswith("float")
    return "sc:Float" if floating else "sc:Integer"


def _column_type(values: list[str]) -> str:
    for kind, name in ((int, "sc:Integer"), (float, "sc:Float")):
        try:
            for value in values:
                kind(value)
        except ValueError:
            continue
        return name
    return "sc:Text"
