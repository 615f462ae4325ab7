"""Commands for runs that are there: change, clone, delete and purge them, and see what they left and used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code
from controlplane.cli.moments import moment
from controlplane.cli.options import Context, Follow, Json, RunName, Url
from controlplane.cli.runs import created, find, pairs, some, train

if TYPE_CHECKING:
    from controlplane.client import Client

commands = typer.Typer()

RunIds = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids; `teragpt runs --deleted` lists them.")]


@commands.command()
def change(
    run: RunName,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Set a label.")] = None,
    gone: Annotated[list[str] | None, typer.Option("--no-label", metavar="KEY", help="Take a label away.")] = None,
    notes: Annotated[str | None, typer.Option("--notes", help="Its notes; an empty text takes them away.")] = None,
    pinned: Annotated[bool | None, typer.Option("--pin/--unpin", help="Keep it at hand, or not.")] = None,
    limits: Annotated[
        list[str] | None, typer.Option("--limit", metavar="NAME=NUMBER", help="A limit; `none` for its default.")
    ] = None,
    priority: Annotated[str | None, typer.Option("--priority", help="On Kubernetes, from the next object on.")] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Change a run's labels, notes, limits or priority."""
    changes: dict[str, Any] = {
        "labels": {**dict(pairs("--label", labels)), **dict.fromkeys(gone or [])},
        "limits": {name: number("--limit", name, text) for name, text in pairs("--limit", limits)},
        **some({"pinned": pinned, "scheduling": {"priority": priority} if priority else None}),
        **({} if notes is None else {"notes": notes or None}),
    }
    with connect(url, context) as client:
        found = find(client, run)
        changed = client.change(found["id"], {name: value for name, value in changes.items() if value != {}})
    if json:
        output.json(changed)
    else:
        told = "changed" if changed["revision"] != found["revision"] else "was so already"
        print(f"{changed['id']} {told}")


@commands.command()
def clone(
    run: RunName,
    name: Annotated[str | None, typer.Option("--name", help="What to call the new run.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another trainer setting.")
    ] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Another label.")] = None,
    follow: Follow = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Begin a new run with another's spec."""
    given = {"train": train(settings), "labels": dict(pairs("--label", labels)), **some({"name": name})}
    with connect(url, context) as client:
        made = client.clone(find(client, run)["id"], {field: value for field, value in given.items() if value})
        created(client, made, follow=follow, json=json)


@commands.command()
def save(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names.")],
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Have runs write a checkpoint now and go on."""
    with connect(url, context) as client:
        found = [find(client, each) for each in runs]  # all of them, before any is asked
        asked = [client.save(each["id"]) for each in found]
    if json:
        output.json(asked)
        return
    for each in asked:
        step = each["checkpoint_step"]
        last = "it has none yet" if step is None else f"its last is of step {step}"
        print(f"{each['id']} is asked for a checkpoint; {last}")


@commands.command()
def checkpoints(run: RunName, json: Json = False, url: Url = None, context: Context = None) -> None:
    """List the checkpoints of a run."""
    with connect(url, context) as client:
        found = client.checkpoints(find(client, run)["id"])
    if json:
        output.json(found)
        return
    rows = [
        [
            each["step"],
            each["attempt"],
            output.clock(each["time"]),
            None if each["size"] is None else output.size(each["size"]),
            each["folder"],
        ]
        for each in found["items"]
    ]
    output.table(["step", "attempt", "written", "size", "folder"], rows, right=["step", "attempt", "size"])
    if not found["seen"]:
        print("as last told: only pods see the run folder")


@commands.command()
def delete(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names.")],
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Hide runs that have ended; nothing of them goes."""
    with connect(url, context) as client:
        for each in [find(client, run)["id"] for run in runs]:  # all of them are there, before any is deleted
            client.delete(each)
            if json:
                output.line({"id": each, "deleted": True})
            else:
                print(f"{each} deleted; next: teragpt undelete {each} | teragpt purge {each}")


@commands.command()
def undelete(runs: RunIds, json: Json = False, url: Url = None, context: Context = None) -> None:
    """Show deleted runs again."""
    with connect(url, context) as client:
        for each in runs:
            back = client.restore_run(each)
            output.line(back) if json else print(f"{back['id']} is back")


@commands.command()
def purge(
    runs: RunIds,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it, for good.")] = False,
    keep: Annotated[bool, typer.Option("--keep-folder", help="Leave the run folder where it is.")] = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Show what is left of deleted runs, and with --yes remove it for good."""
    with connect(url, context) as client:
        left = [client.remains(each) for each in runs]  # all of them are there, before any goes
        if yes:
            left = [purged(client, each, keep_folder=keep) for each in runs]
    if json:
        output.json(left)
        return
    columns = ["id", "name", "attempts", "events", "points", "tasks", "folder"]
    rows = [[*(each[name] for name in columns[:5]), len(each["tasks"]), folder(each)] for each in left]
    output.table(columns, rows, right=columns[2:6])
    print("removed for good" if yes else f"nothing was removed; next: teragpt purge --yes {' '.join(runs)}")


def purged(client: Client, run: str, *, keep_folder: bool) -> dict[str, Any]:
    """What went, once a pod has removed the folder where only pods see it. Raises CliError where it does not."""
    from controlplane.cli import remote

    left = client.purge(run, keep_folder=keep_folder)
    while left["removal"]:
        remote.finish(client, client.run(left["removal"]), f"teragpt purge --yes --keep-folder {run}")
        left = client.purge(run)
    return left


def folder(left: dict[str, Any]) -> str:
    """What becomes of a run folder, in a table."""
    size = f" ({output.size(left['size'])})" if left["size"] else ""
    return f"{left['folder']}{size}" if left["folder_removed"] else f"{left['folder']} stays"


@commands.command()
def usage(
    by: Annotated[str, typer.Option("--by", help="user, size, or label:KEY.")] = "user",
    since: Annotated[str | None, typer.Option("--since", help="A date, a time, or how long ago: 7d.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="The same; now unless given.")] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Sum the GPU-hours and CPU-core-hours of runs."""
    with connect(url, context) as client:
        found = client.usage(by, since=moment("--since", since), until=moment("--until", until))
    if json:
        output.json(found)
        return
    rows = [[each["key"], *amounts(each)] for each in found["items"]]
    columns = ["GPU-hours", "CPU-core-hours", "runs", "attempts"]
    output.table([by, *columns], [*rows, ["all", *amounts(found["total"])]], right=columns)


def amounts(used: dict[str, Any]) -> list[str]:
    """Hours with two decimals, and counts."""
    return [f"{used[name]:,.2f}" for name in ("gpu_hours", "cpu_core_hours")] + [
        f"{used[name]:,}" for name in ("runs", "attempts")
    ]


def number(option: str, name: str, text: str) -> int | None:
    """A limit's number. Raises CliError."""
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise CliError(f"{option}: got {name}={text}; allowed: a whole number, or none", Code.BAD_INPUT) from None
