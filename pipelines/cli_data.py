"""The commands that make data sets: scans in, shards out. Heavy imports stand inside them."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_options import (
    ConfigFile,
    DryRun,
    Json,
    KeyFile,
    Out,
    Root,
    Seed,
    Set,
    Strict,
    Subjects,
    Workers,
    group,
)

build_app = group("build-dataset", "Turn a folder of scans into HDF5 shards.")
phantom_app = group("phantom", "Write synthetic scans in the scanners' own file formats.")


@build_app.callback()
def _build_group() -> None:
    """Turn a folder of scans into HDF5 shards."""
    # Without a callback, a group of one command takes no command's name.


@build_app.command("fdg-pet")
def build_fdg_pet(
    dicom_dir: Annotated[Path, typer.Option("--dicom-dir", help="Searched to any depth.")],
    out: Out,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV: PatientID or SeriesInstanceUID, label (normal, mild, severe)."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="CSV: PatientID or SeriesInstanceUID, weight_kg.")
    ] = None,
    patient_map: Annotated[
        Path | None, typer.Option(help="CSV: PatientID, same_as (one person, two identifiers).")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder of true masks (phantoms), for evaluation only.")
    ] = None,
    workers: Workers = 0,
    suv_formula: Annotated[
        str, typer.Option(help="suvbw, or paper (no decay; for comparison only).")
    ] = "suvbw",
    projector: Annotated[str, typer.Option(help="vtk, or vtk-mapper (needs OpenGL).")] = "vtk",
    keep_aspect: Annotated[
        bool, typer.Option("--keep-aspect", help="Pad to the square instead of stretching.")
    ] = False,
    fill_gaps: Annotated[
        int, typer.Option(help="Longest run of missing slices to interpolate.")
    ] = 0,
    allow_intercept: Annotated[
        bool, typer.Option("--allow-intercept", help="Apply a RescaleIntercept other than 0.")
    ] = False,
    prefer: Annotated[
        str, typer.Option(help="Route to believe when two routes to the SUV disagree.")
    ] = "",
    config: ConfigFile = None,
    set_: Set = None,
    key: KeyFile = None,
    dry_run: DryRun = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Whole-body FDG-PET in DICOM to coronal projections.

    SUVbw, one projection for each study, histogram equalised, in HDF5 shards.
    """
    from pipelines import console
    from pipelines.config import FdgPetConfig
    from preprocessing.fdg_pet import Sources

    options = {
        "suv_formula": suv_formula,
        "projector": projector,
        "keep_aspect": keep_aspect,
        "fill_gaps": fill_gaps,
        "allow_intercept": allow_intercept,
        "prefer_route": prefer,
    }
    with console.refusals():
        settings = console.chosen(FdgPetConfig, options, config, set_)
        sources = Sources(
            dicom_dir=console.existing(dicom_dir, "--dicom-dir"),
            labels=labels,
            weights=weights,
            patient_map=patient_map,
            truth=None if truth is None else console.existing(truth, "--truth"),
        )
        choices = console.BuildChoices(
            out=out,
            key=key,
            workers=console.worker_count(workers),
            dry_run=dry_run,
            strict=strict,
            as_json=as_json,
        )
        console.build_data_set("fdg-pet", settings, sources, choices)


@build_app.command("brats18")
def build_brats18(
    root: Root,
    out: Out,
    crop: Annotated[
        str, typer.Option(help="midline, or tumour-edge (tells the label; for comparison only).")
    ] = "midline",
    crossing: Annotated[
        str, typer.Option(help="Tumour across the midline: exclude the slice, or label-both.")
    ] = "exclude",
    min_tumour_area: Annotated[
        int, typer.Option(help="Use slices with more tumour pixels than this.")
    ] = 1000,
    min_half_area: Annotated[
        int, typer.Option(help="With label-both: tumour pixels from which a half is tumour.")
    ] = 500,
    image_size: Annotated[int, typer.Option(help="Rows and columns that slices must have.")] = 240,
    dtype: Annotated[
        str, typer.Option(help="int16 refuses what it cannot hold; float32 takes more space.")
    ] = "int16",
    workers: Workers = 0,
    config: ConfigFile = None,
    set_: Set = None,
    key: KeyFile = None,
    dry_run: DryRun = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """BraTS volumes to hemispheres with and without tumour.

    Four MR modalities, axial slices cut at the brain's own midline, in HDF5 shards.
    """
    from pipelines import console
    from pipelines.config import Brats18Config
    from preprocessing.brats import Sources

    options = {
        "crop": crop,
        "crossing": crossing,
        "min_tumour_area": min_tumour_area,
        "min_half_area": min_half_area,
        "image_size": image_size,
        "dtype": dtype,
    }
    with console.refusals():
        settings = console.chosen(Brats18Config, options, config, set_)
        choices = console.BuildChoices(
            out=out,
            key=key,
            workers=console.worker_count(workers),
            dry_run=dry_run,
            strict=strict,
            as_json=as_json,
        )
        sources = Sources(root=console.existing(root, "--root"))
        console.build_data_set("brats18", settings, sources, choices)


@build_app.command("chestxray14")
def build_chestxray14(
    root: Root,
    out: Out,
    image_size: Annotated[int, typer.Option(help="Side of the stored square.")] = 512,
    workers: Workers = 0,
    config: ConfigFile = None,
    set_: Set = None,
    key: KeyFile = None,
    dry_run: DryRun = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """NIH ChestX-ray14 to square pictures with 14 findings and boxes.

    Images, Data_Entry_2017*.csv, BBox_List_2017.csv and the official lists, in HDF5 shards.
    """
    from pipelines import console
    from pipelines.config import ChestXray14Config
    from preprocessing.chestxray import Sources

    with console.refusals():
        settings = console.chosen(ChestXray14Config, {"image_size": image_size}, config, set_)
        choices = console.BuildChoices(
            out=out,
            key=key,
            workers=console.worker_count(workers),
            dry_run=dry_run,
            strict=strict,
            as_json=as_json,
        )
        sources = Sources(root=console.existing(root, "--root"))
        console.build_data_set("chestxray14", settings, sources, choices)


@phantom_app.command("fdg-pet")
def phantom_fdg_pet(out: Out, subjects: Subjects = 60, seed: Seed = 0) -> None:
    """Whole-body FDG-PET patients as DICOM series.

    With labels.csv and the true masks of altered muscle.
    """
    from pipelines import console

    sources = f"--dicom-dir {out}/dicom --labels {out}/labels.csv --truth {out}/truth"
    with console.refusals():
        console.write_phantoms("fdg-pet", out, subjects=subjects, seed=seed, sources=sources)


@phantom_app.command("brats18")
def phantom_brats18(out: Out, subjects: Subjects = 40, seed: Seed = 0) -> None:
    """Heads with tumours in the files and folders of BraTS18.

    Four modalities and a segmentation; truth.json says where the midline is.
    """
    from pipelines import console

    with console.refusals():
        console.write_phantoms(
            "brats18", out, subjects=subjects, seed=seed, sources=f"--root {out}"
        )


@phantom_app.command("chestxray14")
def phantom_chestxray14(out: Out, subjects: Subjects = 60, seed: Seed = 0) -> None:
    """Chest radiographs in the files and folders of ChestX-ray14.

    Images, tables, boxes and official lists.
    """
    from pipelines import console

    with console.refusals():
        console.write_phantoms(
            "chestxray14", out, subjects=subjects, seed=seed, sources=f"--root {out}"
        )


def inspect(
    folder: Annotated[Path, typer.Argument(help="Any folder of scans.")],
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Tell what each series of a folder would become.

    Writes nothing.
    """
    from pipelines import console
    from pipelines.inspect import describe, inspect_folder

    with console.refusals():
        console.existing(folder, "the folder")
        with console.bars() as progress:
            found = inspect_folder(folder, workers=console.worker_count(workers), progress=progress)
    console.tell(found, describe(found), as_json=as_json)


def locate(
    folder: Annotated[Path, typer.Argument(help="The folder that was built from.")],
    pseudonym: Annotated[list[str], typer.Argument(help="As in exclusions.csv or samples.csv.")],
    key: KeyFile = None,
) -> None:
    """Print the files behind a pseudonym.

    For whoever holds the key and the scans.
    """
    from pipelines import console
    from pipelines.inspect import files_behind
    from preprocessing import pseudonyms

    with console.refusals():
        console.existing(folder, "the folder")
        secret = pseudonyms.load_key(key or pseudonyms.default_key_path())
        found = files_behind(folder, pseudonym, key=secret)
    for path in found:
        print(path)
    if not found:
        console.fail(
            "nothing in the folder has that pseudonym under this key", console.NOTHING_USABLE
        )


def verify(
    data: Annotated[Path, typer.Argument(help="A data set written by build-dataset.")],
    as_json: Json = False,
) -> None:
    """Check every promise of a data set, to the byte."""
    from pipelines import console
    from preprocessing import shards

    with console.refusals():
        report = shards.verify(console.existing(data, "the data set"))
    console.tell_promises(report.problems, report.counts, data=data, as_json=as_json)
