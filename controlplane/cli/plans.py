"""`sizes` and `plan`: what can be trained, and what that takes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.options import All, Context, Json, Url
from controlplane.cli.runs import some, train

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
    everything: All = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Show what training a size takes; nothing is made."""
    compute = some({"nodes": nodes, "gpus_per_node": gpus, "processes_per_node": processes})
    request = {"size": size, **{key: part for key, part in (("compute", compute), ("train", train(settings))) if part}}
    with connect(url, context) as client:
        found = client.plan(request)
    if json:
        output.json(found)
        return
    output.details(summary(found))
    if everything:
        print()
        output.details(found["resolved"]["config"])


def summary(plan: dict[str, Any]) -> dict[str, str]:
    """A plan in a few sentences."""
    run, there = plan["resolved"], plan["capacity"]
    config, state = run["config"], run["state_bytes"]
    gpus = f", {output.count(run['gpus_per_node'], 'GPU')}" if run["gpus_per_node"] else ""
    node = f"{output.count(run['cpus_per_node'], 'CPU')}{gpus}, {output.size(run['memory_per_node'])} of memory"
    kinds = ", ".join(f"{kind} {output.size(state[kind])}" for kind in state if kind != "total")
    has = f"{output.count(there['cpus'], 'CPU')}, {output.size(there['memory'])} of memory"
    problems = "; ".join(f"{each['pointer']}: {each['detail']}" for each in plan["problems"])
    return {
        "size": plan["size"],
        "parameters": f"{run['parameters']:,} with a vocabulary of {config['num_tokens']:,}",
        "trains on": f"{run['tokens']:,} tokens: {run['steps']:,} steps of {config['global_batch_tokens']:,}",
        "layout": f"{output.count(run['nodes'], 'node')} of {output.count(run['processes_per_node'], 'rank')}: {node}",
        "state": f"{output.size(state['total'])} on the fullest rank: {kinds}",
        "cluster": f"{has}, {output.count(there['gpus'], 'GPU')}" if there.get("known", True) else "unknown",
        "fits": "yes" if plan["fits"] else f"no: {problems}",
    }
