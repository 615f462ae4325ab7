"""`teragpt sweep`: runs of one spec over a grid of values, and one table of what came of them."""

from __future__ import annotations

import json as decoding
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code
from controlplane.cli.options import Context, Json, Url
from controlplane.cli.runs import literal, pairs, read_spec, some, train

Name = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's id or name.")]
RESULTS = ("step", "loss", "best_loss", "val_loss", "best_val_loss", "tokens_per_s")

commands = typer.Typer(help="Runs over a grid of values.", no_args_is_help=True)


@commands.command()
def create(
    size: Annotated[str | None, typer.Argument(help="A named size (`teragpt sizes`).")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=V1,V2", help="Values of a setting, or of a JSON pointer into the spec."),
    ] = None,
    points: Annotated[
        Path | None, typer.Option("--points", help="In place of --grid: a JSON list of merge patches of the spec.")
    ] = None,
    parallelism: Annotated[int, typer.Option("--parallelism", "-p", min=1, help="Runs at once.")] = 1,
    name: Annotated[str | None, typer.Option("--name", help="What to call it and its runs.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="JSON: a run's spec, or the trainer's settings; `-` reads stdin.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any trainer setting, of all runs.")
    ] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Create a sweep: a run for each combination of values."""
    spec = (read_spec(config) if config else {}) | some({"size": size})
    if settings:
        spec["train"] = {**spec.get("train", {}), **train(settings)}
    body = {"name": name, "spec": spec, "grid": read_grid(grid), "points": points and read_points(points)}
    with connect(url, context) as client:
        made = client.create_sweep({**some(body), "parallelism": parallelism})
    if json:
        output.json(made)
        return
    print(f"{made['name']} is {made['id']}, {output.count(len(made['items']), 'run')}, {parallelism} at a time")
    print(f"next: teragpt sweep show {made['name']} | teragpt sweep cancel {made['name']}")


@commands.command(name="list")
def list_sweeps(
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most to list.")] = 50,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """List sweeps, newest first."""
    with connect(url, context) as client:
        found = list(client.sweeps(limit=limit))
    if json:
        output.json(found)
        return
    rows = [[each["id"], each["name"], phases(each), output.age(each["created_at"])] for each in found]
    output.table(["sweep", "name", "runs", "age"], rows, right=["age"])


@commands.command()
def show(sweep: Name, json: Json = False, url: Url = None, context: Context = None) -> None:
    """Show a sweep's results, a row for each point."""
    with connect(url, context) as client:
        found = client.sweep(sweep)
    if json:
        output.json(found)
        return
    print(f"{found['name']} ({found['id']}): {phases(found)}; {found['parallelism']} at a time")
    keys = list(dict.fromkeys(key for each in found["items"] for key in each["values"]))
    heads = [key.removeprefix("/train/") for key in keys]
    rows = [
        [each["name"], *(each["values"].get(key) for key in keys), each["phase"], *results(each)]
        for each in found["items"]
    ]
    output.table(["run", *heads, "phase", *RESULTS], rows, right=RESULTS)


@commands.command()
def cancel(sweep: Name, json: Json = False, url: Url = None, context: Context = None) -> None:
    """Stop every run of a sweep; each writes a checkpoint first."""
    with connect(url, context) as client:
        asked = client.cancel_sweep(sweep)
    if json:
        output.json(asked)
    else:
        print(f"{asked['name']} ({asked['id']}): {phases(asked)}")


def results(point: Mapping[str, Any]) -> list[str]:
    """A point's results as cells of the table."""
    step, *losses, speed = (point[key] for key in RESULTS)
    told = ["-" if loss is None else f"{loss:.4f}" for loss in losses]
    return ["-" if step is None else f"{step}/{point['steps']}", *told, f"{speed:,.0f}" if speed else "-"]


def phases(sweep: Mapping[str, Any]) -> str:
    """How many of a sweep's runs are where."""
    return ", ".join(f"{several} {phase}" for phase, several in sweep["phases"].items()) or "no runs"


def read_grid(texts: list[str] | None) -> dict[str, list[object]] | None:
    """The values of `--grid`, by pointer. Raises CliError."""
    if not texts:
        return None
    read = pairs("--grid", texts)
    return {
        key if key.startswith("/") else f"/train/{key}": [value_of(key, value) for value in values.split(",")]
        for key, values in ((key if key.startswith("/") else key.replace("-", "_"), values) for key, values in read)
    }


def value_of(key: str, text: str) -> object:
    """What one value of `--grid` means: a trainer's setting, or JSON, or else a text."""
    if not key.startswith("/"):
        return literal(key, text)
    try:
        return decoding.loads(text)
    except ValueError:
        return text


def read_points(path: Path) -> list[Any]:
    """The points of a file. Raises CliError."""
    from teragpt.config import decode

    try:
        found = decode(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CliError(f"--points: {path} is no readable JSON ({error})", Code.BAD_INPUT) from None
    if not isinstance(found, list):
        raise CliError(f"--points: {path} holds a {type(found).__name__}; allowed: a list", Code.BAD_INPUT)
    return found
