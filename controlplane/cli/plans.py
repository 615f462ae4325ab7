"""`sizes`, `plan`, `measured`: what can be trained, and what that takes, here or on GPUs that nobody has.

The second needs no control plane: the planner is a part of the trainer's package that needs no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from controlplane.cli import output
from controlplane.cli.contexts import connect
from controlplane.cli.errors import CliError, Code
from controlplane.cli.options import All, Context, Json, Url
from controlplane.cli.runs import some, train

if TYPE_CHECKING:
    from teragpt.plan import Plan
    from teragpt.plan.hardware import Cluster

commands = typer.Typer()
NUMBERS = ("step_seconds", "tokens_per_second", "mfu", "peak_memory")
BY_NUMBERS = "NAME:memory_gb=48,bf16_tflops=181,bandwidth_gbs=864"
CORE = "cpu-core"  # the planner's name of what a rank without a GPU computes on
GPU = "h100"  # what a number of GPUs is of, unless they are named


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
    size: Annotated[str | None, typer.Argument(help="A named size (`teragpt sizes`).")] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="N | N..M", help="GPUs in all, here or not; a range is swept.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", help=f"Their kind: h100, a100, b200, ..., cpu for cores, or its numbers as {BY_NUMBERS}; {GPU}."
        ),
    ] = None,
    gpu_hours: Annotated[
        float | None, typer.Option("--gpu-hours", help="A budget, in place of a size: what it trains best.")
    ] = None,
    link: Annotated[
        str | None, typer.Option("--link", help="Between nodes: ib-ndr, roce-200, ..., or GB/s each way a GPU.")
    ] = None,
    node_link: Annotated[
        str | None, typer.Option("--node-link", help="Within a node: nvlink-4, pcie-5, ..., or GB/s each way a GPU.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option("--gpu-memory", help="GB of each GPU.")] = None,
    price: Annotated[float | None, typer.Option("--price", min=0, help="Of one GPU for an hour.")] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="What `teragpt bench --calibrate` wrote on such a GPU.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Every formula, its numbers and its source.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="HTML page to write: memory, step, scaling.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Machines.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", help="GPUs of each node of the cluster that is here.")
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="Ranks of each node.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any trainer setting.")
    ] = None,
    everything: All = False,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Show what training a size takes, here or on GPUs that are named; nothing is made."""
    if any(given is not None for given in (gpus, gpu, gpu_hours)):
        here = some({"--gpus-per-node": gpus_per_node, "--processes": processes})
        if here:
            raise CliError(f"{', '.join(here)}: allowed: without --gpus, --gpu and --gpu-hours", Code.BAD_INPUT)
        elsewhere = Elsewhere(GPU if gpu is None else gpu, gpus, nodes, link, node_link, gpu_memory, price, calibration)
        shown = Shown(explain=explain, picture=picture, everything=everything, json=json)
        if gpu_hours is None:
            there(size, train(settings), elsewhere, shown)
        else:
            budget(size, train(settings), gpu_hours, elsewhere, shown)
        return
    only = some({"--gpu-memory": gpu_memory, "--price": price, "--calibration": calibration})
    only |= some({"--picture": picture})
    if only:
        raise CliError(f"{', '.join(only)}: allowed: with --gpus or --gpu", Code.BAD_INPUT)
    compute = some({"nodes": nodes, "gpus_per_node": gpus_per_node, "processes_per_node": processes})
    compute |= some({"link": link, "node_link": node_link})
    parts = (("compute", compute), ("train", train(settings)))
    with connect(url, context) as client:
        found = client.plan({"size": named(size), **{key: part for key, part in parts if part}})
    if json:
        output.json(found)
        return
    output.details(summary(found))
    if explain:
        print()
        formulas(found["formulas"])
    if everything:
        print()
        output.details(found["resolved"]["config"])


@commands.command()
def measured(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run's id or name; without, all that have ended.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="FILE", help="File to write of them, for `teragpt plan --calibration`."),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="With --calibrate: the kind whose runs count, where there are several.")
    ] = None,
    json: Json = False,
    url: Url = None,
    context: Context = None,
) -> None:
    """Show what a run's steps took beside what was planned, or what those of all runs did."""
    unused = some({"--gpu": gpu if calibrate is None else None, "RUN with --calibrate": run if calibrate else None})
    if unused:
        raise CliError(f"{', '.join(unused)}: allowed: --gpu with --calibrate, both without RUN", Code.BAD_INPUT)
    with connect(url, context) as client:
        found = [client.measured(run)] if run else client.all_measured()
    if calibrate:
        print(recalibrate(calibrate, found, gpu))
    elif json:
        output.json(found[0] if run else found)
    elif run:
        one_run(found[0])
    else:
        names = ["name", "size", "gpu", "points"]
        lines = [
            [*(one[name] for name in names), *(one["measured_over_planned"].get(name) for name in NUMBERS)]
            for one in found
        ]
        output.table([*names, *NUMBERS], lines, right=["points", *NUMBERS])


def one_run(found: dict[str, Any]) -> None:
    """Print a run's numbers, a row each."""
    parts = (found["planned"], found["measured"], found["measured_over_planned"])
    names = [name for name in NUMBERS if any(name in part for part in parts)]
    rows = [[name, *(part.get(name) for part in parts)] for name in names]
    output.table(["number", "planned", "measured", "measured / planned"], rows, right=["planned", "measured"])
    print(f"over {output.count(found['points'], 'point')}")


def recalibrate(file: Path, runs: Sequence[dict[str, Any]], gpu: str | None) -> str:
    """Write a calibration of what runs took; what to tell of it. Raises CliError where it is not one kind's."""
    from teragpt.plan.calibration import recalibrated, write
    from teragpt.plan.hardware import device

    kinds = sorted({one["gpu"] for one in runs})
    if gpu is None and len(kinds) != 1:
        raise CliError(f"--gpu: got nothing; allowed: one of {', '.join(kinds) or 'no runs'}", Code.BAD_INPUT)
    kind = device(gpu or kinds[0]).name
    found = recalibrated(kind, [one["measured_over_planned"]["step_seconds"] for one in runs if one["gpu"] == kind])
    write(file, found)
    return f"{file}: {found.measured}\nnext: teragpt plan SIZE --gpu {kind} --calibration {shlex.quote(str(file))}"


def named(size: str | None) -> str:
    """The size. Raises CliError where there is none."""
    if size is None:
        raise CliError(
            "SIZE: got nothing; allowed: a named size, any of whose dimensions --set changes",
            Code.BAD_INPUT,
            next="teragpt sizes",
        )
    return size


# --- GPUs that are not here -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elsewhere:
    """GPUs that are not here, as they were named."""

    gpu: str
    gpus: str | None
    nodes: int | None
    link: str | None
    node_link: str | None
    memory: float | None
    price: float | None
    calibration: Path | None

    @property
    def numbers(self) -> list[int]:
        """The numbers of GPUs: one, or a range's ends and what lies between them by doubling. Raises CliError."""
        first, dots, last = ("8" if self.gpus is None else self.gpus).partition("..")
        try:
            low, high = int(first), int(last if dots else first)
        except ValueError:
            low, high = 1, 0
        if not 0 < low <= high:
            raise CliError(f"--gpus: got {self.gpus!r}; allowed: a number, or two as 8..4096", Code.BAD_INPUT)
        between = [low << power for power in range(high.bit_length()) if low << power < high]
        return [*between, high]

    def cluster(self, gpus: int) -> Cluster:
        """So many of them. Raises ConfigError that names the field."""
        from teragpt.plan import cluster_of

        return cluster_of(
            self.gpu, gpus, nodes=self.nodes, network=self.link, inside=self.node_link, gpu_memory=self.memory
        )


@dataclass(frozen=True)
class Shown:
    """How a plan is to be shown."""

    explain: bool
    picture: Path | None
    everything: bool
    json: bool


def budget(size: str | None, settings: dict[str, object], gpu_hours: float, where: Elsewhere, shown: Shown) -> None:
    """What a budget trains best."""
    from teragpt.plan import within
    from teragpt.plan.report import budget as rows

    if size is not None:
        raise CliError(f"--gpu-hours: got {gpu_hours:g} and size {size!r}; allowed: one of the two", Code.BAD_INPUT)
    unused = [("--explain", shown.explain), ("--picture", shown.picture), ("--all", shown.everything)]
    if names := [name for name, given in unused if given] + ["--set"] * bool(settings):
        raise CliError(f"{', '.join(names)}: allowed: with a size, without --gpu-hours", Code.BAD_INPUT)
    gpus, *more = where.numbers
    if more:
        raise CliError(f"--gpus: got {where.gpus!r}; allowed: one number, with --gpu-hours", Code.BAD_INPUT)
    cluster = where.cluster(gpus)
    found = within(gpu_hours, cluster, price=where.price, calibration=where.calibration)
    if shown.json:
        output.json({**{name: getattr(found, name) for name in BUDGET}, "plan": found.plan.to_json()})
    else:
        told(rows(found))


BUDGET = ("gpu_hours", "parameters", "tokens", "mfu", "size")


def there(size: str | None, settings: dict[str, object], where: Elsewhere, shown: Shown) -> None:
    """The plan on these GPUs; on several numbers of them, a row each."""
    from teragpt.plan import plan as make
    from teragpt.plan import sweep

    asked = {"size": named(size), **settings}
    if "size" in settings:
        raise CliError(f"--set size: got {settings['size']!r} and size {size!r}; allowed: SIZE alone", Code.BAD_INPUT)
    numbers, last = where.numbers, where.numbers[-1]
    if where.nodes is not None and len(numbers) > 1:
        raise CliError(f"--nodes: got {where.nodes}; allowed: with one number of --gpus", Code.BAD_INPUT)
    cluster = where.cluster(last)
    if len(numbers) == 1:
        plans = [make(asked, cluster, price=where.price, calibration=where.calibration)]
    else:
        tried = sweep(asked, numbers, cluster, price=where.price, calibration=where.calibration)
        plans = [one for one in tried if not isinstance(one, Exception)]
        if not plans:
            raise tried[-1]  # type: ignore[misc]  # none is a plan
    if shown.picture:
        from teragpt.plan.picture import page

        try:
            shown.picture.write_text(page(plans), "utf-8")
        except OSError as error:
            told = f"--picture: got {str(shown.picture)!r}; allowed: a file that can be written ({error.strerror})"
            raise CliError(told, Code.BAD_INPUT) from None
    show(plans, shown, swept=len(numbers) > 1)


def told(rows: Sequence[tuple[str, str]]) -> None:
    """Print a plan's rows, of which the longest name takes 27 places."""
    for name, value in rows:
        print(f"{name:28}{value}")


def show(plans: Sequence[Plan], shown: Shown, *, swept: bool) -> None:
    """Print plans: a table of several, one in whole."""
    from teragpt.plan.explain import explain
    from teragpt.plan.report import rows, table

    if shown.json:
        output.json([one.to_json() for one in plans] if swept else plans[0].to_json())
        return
    if swept:
        head, *lines = rows(plans)
        output.table(head, lines, right=head)
    else:
        told(table(plans[0]))
    if shown.explain:
        print()
        formulas(line._asdict() for line in explain(plans[-1]))
    if shown.everything:
        print()
        output.details(vars(plans[-1].config))
    if shown.picture:
        print(f"written: {shown.picture}")


def formulas(lines: Iterable[dict[str, str]]) -> None:
    """Print a plan's formulas, each with its source below."""
    for line in lines:
        print(f"{line['what']}: {line['formula']}\n    {line['source']}")


# --- the cluster that is here -----------------------------------------------------------------------------------------


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
        "optimizer": f"{config['optimizer']}, learning rate {config['learning_rate']:g}",
        "layout": f"{output.count(run['nodes'], 'node')} of {output.count(run['processes_per_node'], 'rank')}: {node}",
        "state": f"{output.size(state['total'])} on the fullest rank: {kinds}",
        **predicted(run.get("planned", {})),
        "cluster": f"{has}, {output.count(there['gpus'], 'GPU')}" if there.get("known", True) else "unknown",
        "fits": "yes" if plan["fits"] else f"no: {problems}",
    }


def predicted(planned: dict[str, Any]) -> dict[str, str]:
    """What the planner says of the run's GPUs; nothing where it knows none of them."""
    if "forecast" not in planned:
        return {"prediction": planned["refused"]} if planned else {}
    layout, whole, memory = planned["layout"], planned["forecast"], planned["memory"]
    again = f" in {layout['recompute_layers']} layers" if layout.get("recompute_layers") else ""
    sizes = {name: size for name, size in layout.items() if name != "recompute_layers"}
    mesh = ", ".join(f"{name} {size}" for name, size in sizes.items() if isinstance(size, int) and size > 1)
    bounds = f"{whole['low']:.3g} to {whole['high']:.3g}"
    energy, money = whole.get("energy_kwh"), whole.get("cost")
    hours = (
        f"{whole['gpu_hours']:,.2f} core-hours" if planned["gpu"] == CORE else f"{whole['gpu_hours']:,.0f} GPU-hours"
    )
    cost = (f", {energy:,.0f} kWh" if energy else "") + ("" if money is None else f", cost {money:,.0f}")
    return {
        "mesh": f"{mesh or 'one rank'}, recompute {layout['recompute']}{again}",
        "memory": f"{output.size(memory['peak'])} of each {planned['gpu']} at {memory['where']}",
        "step": f"{whole['step_seconds']:.3g} s ({bounds}), {whole['tokens_per_second']:,.0f} tokens/s",
        "takes": f"{whole['days']:.3g} days, {hours}{cost}",
    }
