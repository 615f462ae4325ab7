"""Puts the commands together. Commands import what they need when they run, so that `teragpt --help` is quick."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import (
    bench,
    clusters,
    contexts,
    demo,
    explain,
    host,
    keeping,
    logs,
    models,
    notifications,
    plans,
    queues,
    runs,
    store,
    sweeps,
    tokens,
    trainer,
)

app = typer.Typer(
    help="From a model size to a trained GPT with one REST call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def start(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """From a model size to a trained GPT with one REST call."""
    if version:
        from importlib.metadata import version as installed

        print(installed("teragpt"))
        raise typer.Exit


FLAT = (host, runs, logs, keeping, explain, plans, bench, clusters, notifications, store, tokens, trainer, models, demo)
for group in FLAT:
    app.add_typer(group.commands)
app.add_typer(queues.commands, name="queue")
app.add_typer(sweeps.commands, name="sweep")
app.add_typer(contexts.commands, name="context")
