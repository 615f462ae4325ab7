"""`teragpt queue`: who waits, and whether anybody is begun."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.options import Context, Json, Url

DEFAULT = "default"
Name = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue's name; `default` holds runs that name none.")]
Note = Annotated[str | None, typer.Option("--note", help="What those who wait are told.")]

commands = typer.Typer(help="Queues: list, pause, drain, resume.", no_args_is_help=True)


@commands.command(name="list")
def list_queues(json: Json = False, url: Url = None, context: Context = None) -> None:
    """List queues and how many runs wait in each."""
    with connect(url, context) as client:
        found = client.queues()
    if json:
        output.json(found)
        return
    columns = ["name", "state", "waiting", "under_way", "drained", "note"]
    output.table(columns, [[each[column] for column in columns] for each in found], right=["waiting", "under_way"])


@commands.command()
def pause(
    queue: Name = DEFAULT, note: Note = None, json: Json = False, url: Url = None, context: Context = None
) -> None:
    """Begin nothing more, restarts included; what runs goes on."""
    change(queue, "pause", note, url, context, json=json)


@commands.command()
def drain(
    queue: Name = DEFAULT, note: Note = None, json: Json = False, url: Url = None, context: Context = None
) -> None:
    """Begin no new run; those that have begun go on to their ends."""
    change(queue, "drain", note, url, context, json=json)


@commands.command()
def resume(queue: Name = DEFAULT, json: Json = False, url: Url = None, context: Context = None) -> None:
    """Begin its runs again."""
    change(queue, "resume", None, url, context, json=json)


def change(
    queue: str,
    action: Literal["pause", "drain", "resume"],
    note: str | None,
    url: str | None,
    context: str | None,
    *,
    json: bool,
) -> None:
    """Open or close a queue and say what it is now."""
    with connect(url, context) as client:
        changed = client.change_queue(queue, action, note=note)
    if json:
        output.json(changed)
    else:
        print(
            f"{changed['name']} is {changed['state']}: {changed['waiting']} waiting, {changed['under_way']} under way"
        )
