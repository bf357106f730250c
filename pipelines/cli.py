"""The command line. Heavy imports stand inside each command, so that ``--help`` answers at once.

Human text and progress go to stderr, results asked for with ``--json`` to stdout. Exit codes: 0
done, 1 where a run of several failed, or with ``--strict`` anything was excluded, 2 usage, 3
nothing usable in the input, 4 the output exists or is locked, 5 disk or input/output, 130
interrupted.
"""

from pathlib import Path
from typing import Annotated, Any

import typer


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = _group("dualwitness", "Scanner files in; classifiers whose explanations can be checked out.")
build_app = _group("build-dataset", "Turn a folder of scans into HDF5 shards.")
phantom_app = _group("phantom", "Write synthetic scans in the scanners' own file formats.")
app.add_typer(build_app, name="build-dataset")
app.add_typer(phantom_app, name="phantom")


@build_app.callback()
def _build_group() -> None:
    """Turn a folder of scans into HDF5 shards."""
    # Without a callback, a group of one command takes no command's name.


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; nothing is written elsewhere.")]
Data = Annotated[Path, typer.Option("--data", help="A data set written by build-dataset.")]
Run = Annotated[Path, typer.Option("--run", help="A run written by train.")]
Workers = Annotated[int, typer.Option("--workers", help="Processes; 0: one for each core.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--pseudonym-key", help="Key file; made in your cache folder where not named."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when anything was excluded.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="One setting as key=value; may be repeated.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="Settings as YAML.")]
Root = Annotated[Path, typer.Option("--root", help="Searched to any depth.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look and report; write nothing.")]
Subjects = Annotated[int, typer.Option(min=1, help="How many patients.")]
Seed = Annotated[int, typer.Option(help="Same seed, same bytes.")]


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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def train(
    data: Data,
    run: Annotated[Path, typer.Option("--run", "--out", help="Folder to write.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="paper-fdg-pet, paper-brats18 (each on the trunk of a paper-...-baseline run, "
            "named by --from) or small; options, --config and --set win over it. What differs "
            "from the paper on purpose, and why, is in the run's model card."
        ),
    ] = None,
    network: Annotated[str | None, typer.Option(help="resnet18, resnet50, ...")] = None,
    variant: Annotated[str | None, typer.Option(help="baseline, dual, exact, ...")] = None,
    variants: Annotated[
        str | None, typer.Option(help="Compare several: all, or names with commas between them.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each variant: mean, spread and intervals.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Compare --variants with this.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Several runs: so many at once.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    pretrained: Annotated[
        Path | None, typer.Option("--pretrained", help="A file of weights to start from.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A finished run to start from.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            help="What of --pretrained need not fit, such as head; or other-data, for --from a "
            "run on another data set; may be repeated.",
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train a classifier with attention on prepared shards.

    Says what it will ask of the machine before it begins.
    """
    from pipelines import console, train_console
    from pipelines.config import TrainConfig
    from pipelines.distributed import joined
    from pipelines.start import Start

    options = {
        "preset": preset,
        "network": network,
        "variant": variant,
        "epochs": epochs,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    with console.refusals(onwards=train_console.ONWARDS), joined() as processes:
        settings = TrainConfig.of(
            console.settings(config, console.merged(given, console.overrides(set_)))
        )
        choices = train_console.TrainChoices(
            data=console.existing(data, "--data"),
            out=run,
            start=Start(pretrained=pretrained, source=source, allow=tuple(allow or ())),
            resume=resume,
            dry_run=dry_run,
            as_json=as_json,
        )
        grid = train_console.grid_of(
            settings, variant=variant, variants=variants, seeds=seeds, against=against, jobs=jobs
        )
        if grid is None:
            train_console.train_one(settings, choices, processes=processes)
        else:
            train_console.train_several(grid, choices)


def _parametric_maps(folder: Path) -> Any:
    try:
        from pipelines.parametric_map import ParametricMaps
    except ModuleNotFoundError:
        return None
    return ParametricMaps(folder=folder)


@app.command()
def explain(
    run: Run,
    out: Out,
    data: Annotated[
        Path | None, typer.Option("--data", help="A data set; its test split is explained.")
    ] = None,
    dicom_dir: Annotated[
        Path | None, typer.Option("--dicom-dir", help="A new scan, in place of --data.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="gradcam, lrp, ...; may be repeated. all: whatever fits the network."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation, test or all.")] = None,
    target: Annotated[str | None, typer.Option(help="Explain the prediction or truth.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hold methods against random weights and maps.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once.")] = None,
    dicom_out: Annotated[Path | None, typer.Option(help="Folder for maps as DICOM.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    key: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Show where a trained classifier looked, and how far each map may be believed.

    Maps, overlays, a gallery of cases and methods, and maps in the scan's own voxels.
    """
    from pipelines import console, explain_console

    options = {"methods": method, "split": split, "target": target, "verify": verify}
    with console.refusals(onwards=explain_console.ONWARDS):
        settings = explain_console.settings_of(options | {"batch_size": batch_size}, config, set_)
        choices = explain_console.ExplainChoices(
            run=run,
            out=out,
            data=data,
            dicom_dir=dicom_dir,
            dicom_out=dicom_out,
            key=key,
            as_json=as_json,
        )
        explain_console.explain_and_tell(settings, choices, exporter=_parametric_maps)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: GPU, VTK, codecs, disk, versions."""
    from pipelines import console
    from pipelines.doctor import diagnose

    console.tell_checks(diagnose(), as_json=as_json)


@app.command()
def demo(
    out: Out = Path("demo"),
    dataset: Annotated[str, typer.Option(help="fdg-pet, brats18 or chestxray14.")] = "fdg-pet",
    subjects: Annotated[int, typer.Option(min=12, help="How many synthetic patients.")] = 60,
    seed: Annotated[int, typer.Option()] = 0,
    workers: Workers = 0,
) -> None:
    """Run the whole chain on synthetic scans."""
    from pipelines import console
    from pipelines.demo import run_demo

    with console.refusals(), console.bars() as progress:
        report = run_demo(
            out,
            dataset=dataset,
            subjects=subjects,
            seed=seed,
            workers=console.worker_count(workers),
            progress=progress,
        )
    console.say(f"{report.page}: {report.verdict}")
