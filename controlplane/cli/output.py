"""Tables, details and JSON on stdout, and how quantities are written. It knows no command and no client."""

from __future__ import annotations

import json as encoding
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from controlplane.durations import duration

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 200  # columns where stdout is no terminal, so that nothing is cut off
COLOURS = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def console() -> Console:
    """The terminal, or the pipe, that stdout is."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)


def json(value: object) -> None:
    """Print JSON for a program to read."""
    print(encoding.dumps(value, indent=2, ensure_ascii=False))


def line(value: object) -> None:
    """Print a line of JSON at once: where several come, or where the command goes on after it."""
    print(encoding.dumps(value, ensure_ascii=False), flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Print rows under a head; columns named in `right` hold numbers."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in head:
        grid.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(text(cell), style=COLOURS.get(text(cell), "")) for cell in row))
    console().print(grid)


def details(value: Mapping[str, Any]) -> None:
    """Print a nested object as dotted names and values."""
    table(["field", "value"], [list(pair) for pair in flat(value)])


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and leaves of a nested object, without what is empty."""
    for name, leaf in value.items():
        if isinstance(leaf, Mapping):
            yield from flat(leaf, f"{prefix}{name}.")
        elif leaf not in (None, "", [], {}):
            yield f"{prefix}{name}", leaf


def text(value: object) -> str:
    """A cell's text: thousands are grouped, nothing is a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return value if isinstance(value, str) else encoding.dumps(value, ensure_ascii=False)


def clock(moment: str | None) -> str:
    """An ISO 8601 moment to the second."""
    return "-" if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def since(moment: str | None) -> str | None:
    """An ISO 8601 moment to the second, and how long ago it was; None where there is none."""
    return None if moment is None else f"{clock(moment)} UTC, {age(moment)} ago"


def size(number: float) -> str:
    """Bytes as people write them: 14.4 MB."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while number >= 999.5 and len(units) > 1:
        number, _ = number / 1000, units.pop(0)
    return f"{number:.3g} {units[0]}"


def count(number: float, noun: str) -> str:
    """A number of things: 1 rank, 2 ranks."""
    return f"{number:,g} {noun}{'' if number == 1 else 's'}" if number < 1e6 else f"{number:,.0f} {noun}s"


def age(moment: str | None, now: datetime | None = None) -> str:
    """How long ago an ISO 8601 moment was."""
    if moment is None:
        return "-"
    return duration(((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds())
