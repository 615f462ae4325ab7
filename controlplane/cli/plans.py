"""`sizes` and `plan`: what can be trained, and what that takes."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.options import Context, Json, Url
from controlplane.cli.runs import literal, pairs, some

commands = typer.Typer()


@commands.command()
def sizes(json: Json = False, url: Url = None, context: Context = None) -> None:
    """List the named sizes."""
    with connect(url, context) as client:
        found = client.sizes()
    if json:
        output.json(found)
        return
    columns = list(found[0])
    output.table(columns, [[each[column] for column in columns] for each in found], right=columns[1:])


@commands.command()
def plan(
    size: Annotated[str, typer.Argument(help="A named size (`teragpt sizes`).")],
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs of each node.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Machines.")] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="Ranks of each node.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any trainer setting.")
    ] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Show what training a size takes; nothing is made."""
    compute = some({"nodes": nodes, "gpus_per_node": gpus, "processes_per_node": processes})
    train = {key: literal(key, value) for key, value in pairs("--set", settings)}
    request = {"size": size, **({"compute": compute} if compute else {}), **({"train": train} if train else {})}
    with connect(url, context) as client:
        found = client.plan(request)
    output.json(found) if json else output.details(found)
