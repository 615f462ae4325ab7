"""Shows a run while it is waited for: a live bar on a terminal, a line now and then elsewhere.

It is given the run as it was last seen and never asks for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from controlplane.durations import duration
from controlplane.replies import TERMINAL, Run

LINE_EVERY_S = 5.0  # between lines where there is no terminal
Show = Callable[[Run], None]


def told(run: Run) -> str:
    """What a run is doing, for the head of its line."""
    reason = f" ({run['message'] or run['reason']})" if run["reason"] and run["phase"] not in TERMINAL else ""
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
        shown.append(f"eta {duration(progress['eta_s'])}")
    return shown


@contextmanager
def screen() -> Generator[Callable[[Run], None]]:
    """What shows a run here: a bar on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
    ]
    with Progress(*columns, console=Console(highlight=False)) as bar:
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
