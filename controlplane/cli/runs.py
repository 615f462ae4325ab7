"""Commands on runs: `run`, `runs`, `show`, `cancel`, `suspend`, `resume`, `retry`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from controlplane.cli import follow as following
from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code
from controlplane.cli.moments import moment
from controlplane.cli.options import All, Context, Follow, Json, RunName, Url
from controlplane.durations import duration

if TYPE_CHECKING:
    from controlplane.client import Client, Run

PLACES = frozenset({"tokenizer", "start_from"})  # settings of the trainer that may name a file or folder

commands = typer.Typer()


@commands.command()
def run(
    size: Annotated[str | None, typer.Argument(help="A named size (`teragpt sizes`).")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="JSON: a run's spec, or the trainer's settings; `-` reads stdin.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call the run, in any alphabet.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Machines.")] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", help="GPUs of each node.")] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="Ranks of each node.")] = None,
    cpus: Annotated[int | None, typer.Option("--cpus", help="CPU cores of each node.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="A dataset, or PLACE:WEIGHT[:EPOCHS],...")] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Where checkpoints go.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any trainer setting.")
    ] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label.")] = None,
    after: Annotated[str | None, typer.Option("--after", help="Start from this run's end, once it succeeds.")] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", help="Who goes first; here low, normal or high.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be made, and make nothing.")] = False,
    follow: Follow = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Create a run, and with --follow stay to its end."""
    spec = read_spec(config) if config else {}
    given = {"size": size, "name": name, "after": after}
    compute = {"nodes": nodes, "gpus_per_node": gpus, "processes_per_node": processes, "cpus_per_node": cpus}
    spec |= some(given)
    for section, values in {
        "compute": some(compute),
        "data": reads(data),
        "checkpoint": some({"uri": place(checkpoint)}),
        "train": train(settings),
        "scheduling": some({"priority": priority}),
        "labels": dict(pairs("--label", labels)),
    }.items():
        if values:
            spec[section] = {**spec.get(section, {}), **values}
    with connect(url, context) as client:
        if preview:
            output.json(client.preview(spec)) if json else output.details(client.preview(spec))
            return
        created(client, client.create(spec), follow=follow, json=json)


def created(client: Client, run: Run, *, follow: bool, json: bool) -> None:
    """Show a new run, and follow it where that was asked for."""
    if not json:
        print(f"{run['name']} is {run['id']}, in {run['folder']}")
    if follow:
        run = client.wait(run["id"]) if json else following.follow(client, run["id"])
    if json:
        output.json(run)
    if follow:
        following.check(run)
    if not json:
        name = following.called(run)
        prompt = "" if run["resolved"]["config"]["data"] else " 'def main('"  # the embedded corpus is Python
        on = f"sample {name}{prompt} | teragpt export {name} DIR"
        print(f"next: teragpt {on if follow else f'logs -f {name} | teragpt cancel {name}'}")


@commands.command()
def runs(
    phase: Annotated[list[str] | None, typer.Option("--phase", help="Only runs in this phase.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Only runs with this label.")
    ] = None,
    size: Annotated[list[str] | None, typer.Option("--size", help="Only runs of this size.")] = None,
    cluster: Annotated[list[str] | None, typer.Option("--cluster", help="Only runs on this cluster.")] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Words of names and labels, or the start of an id.")
    ] = None,
    since: Annotated[str | None, typer.Option("--since", help="A date, a time, or how long ago: 7d.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="The same.")] = None,
    pinned: Annotated[bool | None, typer.Option("--pinned/--not-pinned", help="Only those.")] = None,
    deleted: Annotated[bool, typer.Option("--deleted", help="Deleted runs; of the filters, only --query.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The most runs to list.")] = 50,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """List runs, newest first."""
    wanted: dict[str, Any] = {"phase": phase or (), "size": size or (), "cluster": cluster or (), "label": label or ()}
    wanted |= {"since": moment("--since", since), "until": moment("--until", until), "pinned": pinned}
    if deleted and any(value not in (None, ()) for value in wanted.values()):
        raise CliError("--deleted: got another filter too; allowed: --query and --limit", Code.BAD_INPUT)
    with connect(url, context) as client:
        listed = client.deleted(q=query, limit=limit) if deleted else client.runs(**wanted, q=query, limit=limit)
        found = list(listed)
    if json:
        output.json(found)
        return
    rows = [
        [each["id"], each["name"], each["size"], each["phase"], *brief(each), output.age(each["created_at"])]
        for each in found
    ]
    output.table(
        ["run", "name", "size", "phase", "step", "loss", "tok/s", "age"], rows, right=["step", "loss", "tok/s", "age"]
    )


def brief(run: Run) -> list[str]:
    """Step, loss and speed of a run in a table."""
    progress = run["progress"]
    if not progress:
        return ["-", "-", "-"]
    loss, speed = progress["loss"], progress["tokens_per_s"]
    return [
        f"{progress['step']}/{progress['steps']}",
        "-" if loss is None else f"{loss:.4f}",
        f"{speed:,.0f}" if speed else "-",
    ]


@commands.command()
def show(
    run: RunName,
    manifest: Annotated[bool, typer.Option("--manifest", help="The object given to the cluster instead.")] = False,
    everything: All = False,
    follow: Follow = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Show a run, its attempts and its events."""
    with connect(url, context) as client:
        found = find(client, run)
        if manifest:
            output.json(client.manifest(found["id"]))
            return
        if follow:
            found = following.follow(client, found["id"])
        if json:
            output.json(found)
            return
        told = shown(found, everything=everything)
        if found["phase"] in following.ENDED and (ratios := client.measured(found["id"])["measured_over_planned"]):
            told["measured_over_planned"] = {name: f"{ratio:.2f}" for name, ratio in ratios.items()}
        output.details(told)
        attempts, events = client.attempts(found["id"]), client.events(found["id"])
    print()
    columns = ["attempt", "phase", "reason", "exit_code", "rank"]
    times = ["started_at", "finished_at"]
    rows = [
        [*(each.get(column) for column in columns), *(output.clock(cast("str | None", each.get(at))) for at in times)]
        for each in attempts
    ]
    output.table([*columns, *times], rows)
    print()
    output.table(
        ["time", "event", "what"], [[output.clock(each["time"]), each["kind"], each["message"]] for each in events]
    )


@commands.command()
def pods(
    run: RunName,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Of which attempt; the newest else.")] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """List the pods of a run."""
    with connect(url, context) as client:
        found = client.pods(find(client, run)["id"], attempt)
    if json:
        output.json(found)
        return
    columns = ["rank", "name", "phase", "node", "reason", "exit_code", "message"]
    output.table(columns, [[each[column] for column in columns] for each in found["items"]])
    if not found["live"]:
        print("as last seen")


def shown(run: Run, *, everything: bool) -> dict[str, Any]:
    """What `show` prints of a run: times and bytes as people read them, settings only where everything is wanted."""
    ended, progress, resolved = run["phase"] in following.ENDED, run["progress"], run["resolved"]
    plain = {name: value for name, value in run.items() if name not in {"spec", "links", "desired", "resolved"}}
    if not ended and run["desired"] != "running":
        plain["desired"] = run["desired"]
    for name in ("created_at", "started_at", "finished_at"):
        plain[name] = output.since(cast("str | None", run.get(name)))
    if progress:
        memory, seen = progress.get("memory_bytes"), progress.get("time")
        plain["progress"] = {
            "step": f"{progress['step']:,} of {progress['steps']:,}",
            **{name: progress[name] for name in ("loss", "val_loss", "tokens_per_s")},
            "time_left": None if ended or progress["eta_s"] is None else duration(progress["eta_s"]),
            "memory": None if memory is None else output.size(memory),
            "as_of": None if seen is None else output.since(datetime.fromtimestamp(seen, UTC).isoformat()),
        }
    layout = ("nodes", "processes_per_node", "gpus_per_node", "cpus_per_node", "parameters", "tokens")
    kept = resolved if everything else {name: resolved[name] for name in layout}
    return {**plain, "resolved": kept, **({"train": run["spec"].get("train")} if not everything else {})}


@commands.command()
def cancel(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names.")],
    follow: Follow = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Stop runs; each writes a checkpoint first."""
    ask(runs, "cancel", following.ENDED, url, context, follow=follow, json=json)


@commands.command()
def suspend(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names.")],
    follow: Follow = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Stop runs for now; each writes a checkpoint first."""
    ask(runs, "suspend", following.ENDED | {"suspended"}, url, context, follow=follow, json=json)


@commands.command()
def resume(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names.")],
    follow: Follow = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Let suspended runs go on."""
    ask(runs, "resume", following.ENDED, url, context, follow=follow, json=json)


def ask(
    runs: list[str],
    action: Literal["cancel", "suspend", "resume"],
    until: frozenset[str],
    url: str | None,
    context: str | None,
    *,
    follow: bool,
    json: bool,
) -> None:
    """Ask for something of runs, and with `follow` wait until each is in one of the phases `until`."""
    with connect(url, context) as client:
        found = [find(client, each) for each in runs]  # all of them, before any is asked
        ended = {each["id"] for each in found if each["phase"] in following.ENDED}
        asked = [getattr(client, action)(each["id"]) for each in found]
        if follow:
            asked = [client.wait(each["id"], until=until) for each in asked]
    if json:
        output.json(asked)
    else:
        for each in asked:
            print(f"{each['id']} {'had ended before: ' if each['id'] in ended else ''}{each['phase']}")


@commands.command()
def retry(run: RunName, follow: Follow = False, json: Json = False, url: Url = None, context: Context = None) -> None:
    """Go on with a finished run, in a new run."""
    with connect(url, context) as client:
        created(client, client.retry(find(client, run)["id"]), follow=follow, json=json)


def find(client: Client, run: str) -> Run:
    """A run by its id or its name; of several with that name the newest. Raises CliError."""
    from controlplane.client import ApiError

    try:
        return client.run(run)
    except ApiError as error:
        if error.status != 404:
            raise
    named = next((each for each in client.runs(q=run) if each["name"] == run), None)
    if named is None:
        raise CliError(f"no run has the id or the name {run!r}", Code.NOT_FOUND, next="teragpt runs")
    return named


def read_spec(path: Path) -> dict[str, Any]:
    """A run's spec from a JSON file, which holds one, or what the trainer's own `--config` takes. Raises CliError."""
    from teragpt.config import decode

    try:
        spec = decode(sys.stdin.read() if str(path) == "-" else path.read_text("utf-8-sig"))
    except OSError as error:
        raise CliError(f"--config: {path} cannot be read ({error.strerror})", Code.BAD_INPUT) from None
    except ValueError as error:
        raise CliError(f"--config: {path} is no readable JSON ({error})", Code.BAD_INPUT) from None
    if not isinstance(spec, dict):
        raise CliError(f"--config: {path} holds a {type(spec).__name__}; allowed: an object", Code.BAD_INPUT)
    return of_settings(spec) if is_settings(spec) else spec


def is_settings(spec: dict[str, Any]) -> bool:
    """Whether an object holds settings of the trainer rather than the sections of a run's spec."""
    from teragpt.config import FIELDS

    return spec.keys() <= FIELDS.keys() and not isinstance(spec.get("data"), dict)


def of_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The spec of a run with these settings of the trainer."""
    train = dict(settings)
    size, data, out = (train.pop(name, None) for name in ("size", "data", "out"))
    places = {"data": reads(data or None), "checkpoint": some({"uri": place(out or None)})}
    return {**some({"size": size}), **{name: at for name, at in places.items() if at}, "train": train}


def train(settings: list[str] | None) -> dict[str, object]:
    """The trainer's settings of `--set`; folders and files that are here are named as seen from anywhere."""
    given = {key: literal(key, value) for key, value in pairs("--set", settings)}
    here = {key: place(str(given[key])) for key in PLACES & given.keys() if Path(str(given[key])).exists()}
    return {**given, **here}


def place(where: str | None) -> str | None:
    """A folder as seen from anywhere on this machine; a URI as it is."""
    return where if where is None or "://" in where else str(Path(where).expanduser().absolute())


def reads(data: str | None) -> dict[str, Any]:
    """The section `data` of a dataset or mixture. Raises ConfigError."""
    from teragpt.datasets.portions import parse_mixture

    portions = parse_mixture(data or "")
    sources = [
        some({"uri": place(one.place), "weight": float(one.weight), "epochs": one.epochs or None}) for one in portions
    ]
    return {"sources": sources} if sources else some({"uri": place(data)})


def some(values: dict[str, Any]) -> dict[str, Any]:
    """What was given of `values`."""
    return {name: value for name, value in values.items() if value is not None}


def pairs(option: str, texts: list[str] | None) -> list[tuple[str, str]]:
    """`key=value` texts apart. Raises CliError."""
    for each in texts or []:
        if each.find("=") < 1:
            raise CliError(f"{option}: got {each!r}; allowed: key=value", Code.BAD_INPUT)
    return [
        (key.replace("-", "_") if option == "--set" else key, value)
        for key, _, value in (each.partition("=") for each in texts or [])
    ]


def literal(name: str, value: str) -> object:
    """What a trainer setting's text means."""
    from teragpt.config import literal as read

    return read(name, value)
