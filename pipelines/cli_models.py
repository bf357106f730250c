"""The commands that train, explain and measure models. Heavy imports stand inside them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli_options import (
    ConfigFile,
    Data,
    DryRun,
    Json,
    KeyFile,
    Out,
    Run,
    Set,
)


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
    objective: Annotated[
        str | None, typer.Option(help="standard, pgd, l1, elastic, group, ...: robust training.")
    ] = None,
    robust_weight: Annotated[
        float | None, typer.Option(help="Share of the loss on perturbed pictures.")
    ] = None,
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
        "objective": objective,
        "robust": None if robust_weight is None else {"weight": robust_weight},
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
