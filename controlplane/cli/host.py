"""`up`: the control plane and this machine's cluster in one process. The one command that imports the service."""

from __future__ import annotations

import sys

import typer

commands = typer.Typer()


@commands.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def up(context: typer.Context) -> None:
    """Start the control plane, with this machine as cluster."""
    from controlplane.server import main

    sys.exit(main(context.args))
