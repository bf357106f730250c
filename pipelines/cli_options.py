"""Options that several commands share, and how a group of commands is made."""

from pathlib import Path
from typing import Annotated

import typer


def group(name: str, text: str) -> typer.Typer:
    """Make a group of commands in the manner of this command line."""
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


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
