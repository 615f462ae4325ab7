"""`teragpt bench`: how fast this machine trains, by the trainer's own steps; or what its GPU reaches."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import output
from controlplane.cli.options import Json
from controlplane.cli.plans import named
from controlplane.cli.trainer import trainer

commands = typer.Typer()


@commands.command()
def bench(
    size: Annotated[str | None, typer.Argument(help="Named size, whose steps are measured over random tokens.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any trainer setting.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 20,
    trace: Annotated[
        Path | None, typer.Option("--trace", metavar="FILE", help="File for a trace of some steps, for Perfetto.")
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", metavar="FILE", help="File to write, for `teragpt plan --calibration`."),
    ] = None,
    json: Json = False,
) -> None:
    """Measure how fast this machine trains a size and where a step goes; or its GPU, for the planner."""
    with trainer("bench"):
        from teragpt.calibrate import calibrate as measure
        from teragpt.profiling import main as profile

        if calibrate is None:
            traced = ["--trace", str(trace)] if trace else []
            words = [word for one in settings or [] for word in ("--set", one)]
            told = ["--json"] if json else []
            code = profile(["--timed-steps", str(steps), *traced, *told, "--size", named(size), *words])
            raise typer.Exit(code)
        found = measure(calibrate)
    if json:
        output.json({"file": str(calibrate), "device": found.device, "measured": found.measured})
        return
    print(f"{calibrate}: {found.measured}")
    print(f"next: teragpt plan SIZE --gpu {found.device} --gpus 8 --calibration {shlex.quote(str(calibrate))}")
