"""The commands that measure maps and models. Heavy imports stand inside them."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_options import (
    ConfigFile,
    Data,
    DryRun,
    Json,
    KeyFile,
    Out,
    Set,
    Workers,
)

Resume = Annotated[bool, typer.Option("--resume", help="Go on where it was interrupted.")]


def evaluate(
    run: Annotated[
        list[Path],
        typer.Option("--run", help="A run, or a folder of runs; may be repeated."),
    ],
    data: Data,
    out: Out,
    method: Annotated[
        list[str] | None,
        typer.Option(help="gradcam, lrp, ...; may be repeated. all: whatever fits each network."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare all with this, as in 'exact attention fine'.")
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(help="What stands for removed pixels: zero, mean, blur, noisy-linear."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Explain the truth or the prediction.")] = None,
    robust: Annotated[
        bool, typer.Option("--robust", help="Also attack predictions and explanations; long.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="So many runs at once.")] = 1,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Measure maps of any models side by side, on patients never seen, with error bars.

    Tables, figures, galleries and one report.html.
    """
    from pipelines import console, evaluation_console

    options = {
        "methods": method,
        "against": against,
        "fills": fill,
        "target": target,
        "robustness": {"enabled": True} if robust else None,
    }
    with console.refusals(onwards=evaluation_console.ONWARDS):
        settings = evaluation_console.settings_of(options, config, set_)
        choices = evaluation_console.EvaluateChoices(
            runs=tuple(run), data=data, out=out, jobs=jobs, resume=resume, as_json=as_json
        )
        evaluation_console.evaluate_and_tell(settings, choices)


def retrain(
    run: Annotated[Path, typer.Option("--run", help="A run whose maps remove the pixels.")],
    data: Data,
    out: Out,
    method: Annotated[list[str], typer.Option(help="gradcam, lrp, ...; may be repeated.")],
    protocol: Annotated[
        str | None,
        typer.Option(help="roar: remove the most important; diffroar: keep most against least."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Networks per map and share.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="So many at once.")] = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Remove what a map calls important, train again, and see what is lost.

    Long: one training for each method, share of pixels and seed.
    """
    from pipelines import console, retraining_console

    options = {"protocol": protocol, "seeds": seeds, "jobs": jobs}
    with console.refusals(onwards=retraining_console.ONWARDS):
        settings = retraining_console.settings_of(options, config, set_)
        choices = retraining_console.RetrainChoices(
            run=run, data=data, out=out, methods=tuple(method), resume=resume, as_json=as_json
        )
        retraining_console.retrain_and_tell(settings, choices)


def reproduce(
    dataset: Annotated[str, typer.Argument(help="fdg-pet, brats18 or chestxray14.")],
    out: Out,
    dicom_dir: Annotated[
        Path | None, typer.Option("--dicom-dir", help="Real scans for fdg-pet.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Their classes, as in build-dataset.")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Their true masks, where there are any.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", help="Real scans for brats18 and chestxray14.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="small (processors) or full (an accelerator).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 5,
    variants: Annotated[str | None, typer.Option(help="Only these, commas between them.")] = None,
    subjects: Annotated[int | None, typer.Option(min=1, help="Synthetic patients.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Trainings at once.")] = None,
    workers: Workers = 0,
    key: KeyFile = None,
    config: ConfigFile = None,
    set_: Set = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Repeat a paper's tables: build, train all variants, explain, evaluate, report.

    On synthetic patients, or on real ones where their folder is named; --config and --set then say
    how these are built. With --resume, seeds and variants may be added.
    """
    from pipelines import console, reproduce_console

    choices = reproduce_console.ReproduceChoices(
        dataset=dataset,
        out=out,
        size=size,
        seeds=seeds,
        jobs=jobs,
        variants=variants,
        subjects=subjects,
        dicom_dir=dicom_dir,
        labels=labels,
        truth=truth,
        root=root,
        key=key,
        workers=workers,
        config=config,
        pairs=tuple(set_ or ()),
        resume=resume,
        dry_run=dry_run,
        as_json=as_json,
    )
    with console.refusals(onwards=reproduce_console.ONWARDS):
        reproduce_console.reproduce_and_tell(choices)
