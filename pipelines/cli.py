"""The command line. Heavy imports stand inside each command, so that ``--help`` answers at once.

Human text and progress go to stderr, results asked for with ``--json`` to stdout. Exit codes: 0
done, 1 where a run of several failed, or with ``--strict`` anything was excluded, 2 usage, 3
nothing usable in the input, 4 the output exists or is locked, 5 disk or input/output, 130
interrupted.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_data import build_app, inspect, locate, phantom_app, verify
from pipelines.cli_measure import evaluate, reproduce, retrain
from pipelines.cli_models import explain, train
from pipelines.cli_options import (
    Json,
    Out,
    Workers,
    group,
)

app = group("dualwitness", "Scanner files in; classifiers whose explanations can be checked out.")
app.add_typer(build_app, name="build-dataset")
app.add_typer(phantom_app, name="phantom")
for command in (inspect, locate, verify, train, explain, evaluate, retrain, reproduce):
    app.command()(command)


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
