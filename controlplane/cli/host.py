"""`up` and `restore`: the control plane in this process, and its data folder. The commands that import the service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.options import Json

commands = typer.Typer()


@commands.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def up(context: typer.Context) -> None:
    """Start the control plane, with this machine as cluster."""
    from controlplane.server import main

    sys.exit(main(context.args))


@commands.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `teragpt backup` has made.")],
    home: Annotated[str | None, typer.Option("--home", help="Folder to put it in; TERAGPT_HOME unless given.")] = None,
    json: Json = False,
) -> None:
    """Make a data folder of a backup; nothing is overwritten."""
    from controlplane.server import restored

    sys.exit(restored(file, home, as_json=json))
