"""Shows a run until it ends: a live bar on a terminal, a line now and then elsewhere.

It looks at the run by its client twice a second, so that what is shown is what the API says, and outlives a restart of
the control plane.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from controlplane.cli import output
from controlplane.cli.errors import CliError, Code

if TYPE_CHECKING:
    from controlplane.client import Client, Run

EVERY_S = 0.5
PATIENCE_S = 60.0  # how long the control plane may be away
LINE_EVERY_S = 5.0  # between lines where there is no terminal
ENDED = frozenset({"succeeded", "failed", "cancelled"})


def follow(client: Client, run: str) -> Run:
    """Show the run until it has ended, and return it as it ended."""
    with screen() as show:
        return wait(client, run, show)


def wait(client: Client, run: str, show: Callable[[Run], None] = lambda _: None, until: frozenset[str] = ENDED) -> Run:
    """The run once its phase is one of `until`; on the way there it is given to `show` twice a second.

    Raises Unreachable once nobody has answered for a minute.
    """
    from controlplane.client import Unreachable

    seen = time.monotonic()
    while True:
        try:
            now = client.run(run)
        except Unreachable:
            if time.monotonic() - seen > PATIENCE_S:
                raise
        else:
            seen = time.monotonic()
            show(now)
            if now["phase"] in until:
                return now
        time.sleep(EVERY_S)


def told(run: Run) -> str:
    """What a run is doing, for the head of its line."""
    reason = f" ({run['message'] or run['reason']})" if run["reason"] and run["phase"] not in ENDED else ""
    attempt = f", attempt {run['attempt']}" if run["attempt"] > 1 else ""
    return f"{run['phase']}{attempt}{reason}"


def numbers(run: Run) -> list[str]:
    """Step, loss, speed and time left, as far as they are known."""
    progress = run["progress"]
    if not progress:
        return []
    shown = [f"step {progress['step']}/{progress['steps']}"]
    if progress["loss"] is not None:
        shown.append(f"loss {progress['loss']:.4f}")
    if progress["val_loss"] is not None:
        shown.append(f"val {progress['val_loss']:.4f}")
    if progress["tokens_per_s"]:
        shown.append(f"{progress['tokens_per_s']:,.0f} tok/s")
    if progress["eta_s"] is not None:
        shown.append(f"eta {output.duration(progress['eta_s'])}")
    return shown


@contextmanager
def screen() -> Generator[Callable[[Run], None]]:
    """What shows a run here: a bar on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield lines()
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
    ]
    with Progress(*columns, console=output.console()) as bar:
        task = bar.add_task("waiting", total=None, numbers="")

        def show(run: Run) -> None:
            progress = run["progress"]
            done, total = (progress["step"], progress["steps"]) if progress else (0, None)
            bar.update(task, description=told(run), completed=done, total=total, numbers="  ".join(numbers(run)))

        yield show


def lines() -> Callable[[Run], None]:
    """Prints a line when the run's phase changes, when it ends, and every few seconds while it goes on."""
    before: tuple[str, int] | None = None
    printed = -LINE_EVERY_S

    def show(run: Run) -> None:
        nonlocal before, printed
        now = (told(run), (run["progress"] or {"step": -1})["step"])
        phase_changed = before is None or before[0] != now[0]
        if now == before or not (phase_changed or time.monotonic() - printed >= LINE_EVERY_S):
            return
        before, printed = now, time.monotonic()
        print(" | ".join([told(run), *numbers(run)]), flush=True)

    return show


def called(run: Run) -> str:
    """How a command names the run: by the name that its user gave, else by its id."""
    name = run["spec"].get("name")
    return shlex.quote(name) if name and not name.startswith("-") else run["id"]


def check(run: Run) -> None:
    """Raise CliError unless the run ended well."""
    if run["phase"] == "succeeded":
        return
    why = run["message"] or run["reason"]
    sentence = f"run {run['id']} {run['phase']}{f': {why}' if why else ''}"
    raise CliError(" ".join(sentence.split()), Code.RUN_FAILED, next=f"teragpt logs {called(run)}")
