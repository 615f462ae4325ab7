"""`teragpt notifications`: what was told of runs, and to whom."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.options import Context, Json, Url

commands = typer.Typer()


@commands.command()
def notifications(
    run: Annotated[str | None, typer.Option("--run", help="Only of this run.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="waiting, delivered or 'given up'.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most to list.")] = 50,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """List what was told of runs, to whom, and what was answered."""
    with connect(url, context) as client:
        found = client.notifications(run=run, state=state, limit=limit)
    if json:
        output.json(found)
        return
    columns = ["name", "phase", "destination", "state", "tries", "answer"]
    rows = [[output.clock(each["created_at"]), *(each[column] for column in columns)] for each in found]
    output.table(["time", *columns], rows)
