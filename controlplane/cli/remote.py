"""Commands about a model whose folder is not on this machine: the control plane has them done where it is."""

from __future__ import annotations

import io
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from controlplane.cli import output
from controlplane.cli.errors import CliError, Code

if TYPE_CHECKING:
    from controlplane.client import Client, Run


def sample(client: Client, run: str, **asked: Any) -> None:
    """Print text as the task writes it. Raises CliError where the task fails."""
    given = {name: value for name, value in asked.items() if value is not None}
    _told(client, client.task(run, {"task": "sample", **given}))


def prepare(client: Client, asked: dict[str, Any], *, as_json: bool) -> None:
    """Have a dataset made, and print how far it is and what it holds, or the run that made it. Raises CliError."""
    made = client.prepare(asked)
    print(f"{made['name']}: Ctrl-C leaves it alone; teragpt cancel {made['id']} stops it", file=sys.stderr, flush=True)
    on = f"teragpt retry {made['id']}, which goes on from what is done, or teragpt logs {made['id']}"
    _told(client, made, on, to=sys.stderr if as_json else sys.stdout)
    if as_json:
        output.json(client.run(made["id"]))
        return
    print(f"next: teragpt run SIZE --data {shlex.quote(made['folder'])}")


def fetch(client: Client, run: str, task: str, out: Path) -> None:
    """Have an export or a copy made, and unpack it to the new folder `out`, whole or not at all. Raises CliError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CliError(f"{out} exists: give a folder that does not, or an empty one", Code.BAD_INPUT)
    made = client.task(run, {"task": task})
    finish(client, made)
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        source = io.BufferedReader(_Pieces(client.fetch(made["id"])), 1 << 20)
        with tarfile.open(fileobj=source, mode="r|") as archive:
            archive.extractall(part, filter="data")
        if out.exists():
            out.rmdir()
        part.replace(out)
    except OSError as error:
        raise CliError(f"{out} cannot be written: {error.strerror or error}", Code.BAD_INPUT) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def finish(client: Client, task: Run, next: str = "") -> None:
    """Wait until it has done its work, and say on stderr what it waits for. Raises CliError, with what to do `next`."""
    _until_it_runs(client, task)
    _check(client, task, next)


def _told(client: Client, task: Run, next: str = "", to: TextIO | None = None) -> None:
    """Print what the task writes, as it writes it. Raises CliError where it fails, with what to do `next`."""
    _until_it_runs(client, task)
    for line in client.stream_logs(task["id"]):
        print(line, file=to, flush=True)
    _check(client, task, next)


class _Pieces(io.RawIOBase):
    """A download as a file that can be read, each byte copied once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, memoryview(b"")

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as the piece at hand reaches; 0 at the end."""
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        taken = min(len(buffer), len(self._left))
        buffer[:taken] = self._left[:taken]
        self._left = self._left[taken:]
        return taken


def _until_it_runs(client: Client, task: Run) -> None:
    """Say on stderr what the task waits for."""
    from controlplane.client.progress import told

    shown = ""

    def show(run: Run) -> None:
        nonlocal shown
        if (now := told(run)) != shown:
            shown = now
            print(f"{run['name']}: {now}", file=sys.stderr, flush=True)

    client.wait(task["id"], show, until=frozenset({"running", "succeeded", "failed", "cancelled"}))


def _check(client: Client, task: Run, next: str = "") -> None:
    ended = client.wait(task["id"])
    if ended["phase"] != "succeeded":
        last = client.attempts(task["id"])[-1]["last_lines"] or [ended["message"] or ended["reason"] or ""]
        raise CliError(
            f"{task['name']} {ended['phase']}: {last[-1]}", Code.RUN_FAILED, next=next or f"teragpt logs {task['id']}"
        )
