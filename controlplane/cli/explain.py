"""`teragpt explain` and `teragpt stacks`: why a run is where it is, and what helps."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.options import Context, Json, RunName, Url
from controlplane.cli.runs import find

commands = typer.Typer()
WIDTH = 100


@commands.command()
def explain(
    run: RunName,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Why this attempt ended.")] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Say in a paragraph why a run is where it is, and what helps."""
    with connect(url, context) as client:
        found = client.explain(find(client, run)["id"], attempt)
    if json:
        output.json(found)
        return
    print(textwrap.fill(found["text"], WIDTH, break_long_words=False, break_on_hyphens=False))
    if found["last_lines"]:
        print(f"\nthe last lines of rank {found['rank'] or 0} in attempt {found['attempt']}:")
        print("\n".join(f"  {line}" for line in found["last_lines"]))


@commands.command()
def stacks(run: RunName, json: Json = False, url: Url = None, context: Context = None) -> None:
    """Show where every rank stood when a run hung."""
    with connect(url, context) as client:
        found = client.stacks(find(client, run)["id"])
    if json:
        output.json(found)
        return
    for each in found["items"]:
        print(f"{each['file']}, {output.clock(each['time'])}\n\n{each['text'].rstrip()}\n")
    if not found["items"]:
        print(
            "no stacks were kept" if found["seen"] else f"its ranks printed none, and only pods see {found['folder']}"
        )
