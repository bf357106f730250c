"""The ``explain`` command's work: settings checked, bars drawn, the answer told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import console, explain
from pipelines.config import ExplainConfig
from pipelines.errors import UsageError
from pipelines.explain_records import VolumeExport

Exporter = Callable[[Path], VolumeExport | None]
ONWARDS = "remove the unfinished --out folder and start again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainChoices:
    """What is explained and where it goes; nothing here changes a map."""

    run: Path
    out: Path
    data: Path | None
    dicom_dir: Path | None
    dicom_out: Path | None
    key: Path | None
    as_json: bool


def settings_of(
    options: Mapping[str, Any], config: Path | None, pairs: list[str] | None
) -> ExplainConfig:
    """Return the settings: the file's, then the options that are given, then the pairs.

    Raises
    ------
    ConfigError
        A setting is unknown or out of range, or the file cannot be read.
    """
    given = {name: value for name, value in options.items() if value}
    return ExplainConfig.of(
        console.settings(config, console.merged(given, console.overrides(pairs)))
    )


def explain_and_tell(
    settings: ExplainConfig, choices: ExplainChoices, *, exporter: Exporter
) -> None:
    """Explain, and tell people or programs what came of it.

    Parameters
    ----------
    exporter
        Folder -> what writes maps as DICOM there; None where the package for it is missing.

    Raises
    ------
    UsageError
        ``ONE_SOURCE``, ``NO_HIGHDICOM``, and as ``explain``.
    ConfigError
        A folder does not exist.
    """
    if (choices.data is None) == (choices.dicom_dir is None):
        raise UsageError("ONE_SOURCE", "explain needs either --data or --dicom-dir")
    sources = (choices.data, "--data"), (choices.dicom_dir, "--dicom-dir"), (choices.run, "--run")
    for path, what in sources:
        if path is not None:
            console.existing(path, what)
    export = None if choices.dicom_out is None else _export(choices.dicom_out, exporter)
    with console.bars() as progress:
        report = explain.explain(
            settings,
            run=choices.run,
            out=choices.out,
            data=choices.data,
            dicom_dir=choices.dicom_dir,
            key=console.pseudonym_key(choices.key, choices.out) if choices.dicom_dir else None,
            export=export,
            progress=progress,
        )
    console.say(f"{choices.out / 'index.html'}: {report.summary()}")
    for name, reason in report.left_out.items():
        console.say(f"left out, {name}: {reason}")
    if choices.as_json:
        console.result(report.as_json())


def _export(folder: Path, exporter: Exporter) -> VolumeExport:
    export = exporter(folder)
    if export is None:
        raise UsageError(
            "NO_HIGHDICOM",
            "--dicom-out needs the package highdicom, which is not installed: "
            "pip install 'dualwitness[dicom]', or leave --dicom-out out (maps are also NIfTI)",
        )
    return export
