"""`demo`: the product's main job from end to end on this machine, for someone who has just cloned it.

It starts the control plane as a process of its own, trains the tiny size through its HTTP API as any client would,
samples from the result, and leaves nothing running, whatever happens to it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from controlplane.cli import follow
from controlplane.cli.errors import CliError
from controlplane.cli.trainer import sample

if TYPE_CHECKING:
    from controlplane.client import Client, Run

PORT = 8000  # as that of `teragpt up`
READY_S = 60.0  # a cold disk imports slowly
STOP_S = 60.0  # the ranks' grace period, and then some
KILL_S = 10.0  # for ranks that nobody can write a checkpoint for
NEEDED_MB, FULL_MB = 100, 1  # of room for all that it writes, and left of it where nothing can be relied on any more
PROMPT = "def main("
SPEC: dict[str, object] = {"size": "tiny", "compute": {"processes_per_node": 2}}

commands = typer.Typer()


@commands.command()
def demo(
    home: Annotated[Path, typer.Option("--home", help="Where its state and runs are kept.")] = Path(".teragpt"),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; a free one if it is taken.")] = PORT,
    settings: Annotated[str, typer.Option("--train", help="Trainer settings as JSON.", hidden=True)] = "{}",
) -> None:
    """Train, sample and stop, from nothing."""
    from teragpt.config import parse_spec

    spec = {**SPEC, **({"train": train} if (train := parse_spec(settings, "--train")) else {})}
    home = home.absolute()
    port = choose(port)
    with stoppable(), serving(home, port) as client:
        run = train_one(client, spec, home)
        print(f"\nSampling from {run['id']}:\n")
        sample(run["folder"], [PROMPT], tokens=120)
    epilogue(run, home, port)


@contextmanager
def stoppable() -> Generator[None]:
    """Makes SIGTERM and SIGHUP what Ctrl-C is, so that they clean up too; Ctrl-C works also in a background job."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def choose(port: int) -> int:
    """`port`, or a free one where it is taken, which is said."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.bind(("127.0.0.1", 0))
            print(f"Port {port} is taken by another program; using {probe.getsockname()[1]} instead.")
        return int(probe.getsockname()[1])


@contextmanager
def serving(home: Path, port: int) -> Generator[Client]:
    """A control plane with its home there, from ready to stopped; its output goes to `<home>/server.log`."""
    log = home / "server.log"
    try:
        home.mkdir(parents=True, exist_ok=True)
        check_room(home, NEEDED_MB)
        output = log.open("w")
    except OSError as error:
        raise CliError(f"the demo cannot write to {home} ({error.strerror})") from None
    command = [sys.executable, "-m", "controlplane.server", "--home", str(home), "--port", str(port)]
    # A session of its own: Ctrl-C reaches this process alone, which stops the run before the control plane.
    with output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True) as server:
        try:
            from controlplane.client import Client  # on another core than the control plane's own imports

            with Client(f"http://127.0.0.1:{port}", read_token(home)) as client:
                wait_ready(client, server, log)
                print(
                    f"Control plane: {client.url} (API docs: {client.url}/docs while it runs; log: {log})", flush=True
                )
                yield client
        finally:
            stop(server)


def check_room(home: Path, least_mb: int) -> None:
    """Raise CliError where the disk of that folder has fewer megabytes left, and OSError where it does not say."""
    free_mb = shutil.disk_usage(home).free / 1e6
    if free_mb < least_mb:
        message = f"the disk of {home} is full: {free_mb:.1f} MB are left, and the demo needs {least_mb}"
        raise CliError(f"{message}; make room there or name another folder as --home")


def read_token(home: Path) -> str | None:
    """The token of a home whose control plane asks for one."""
    token = home / "token"
    return token.read_text("utf-8").strip() if os.environ.get("TERAGPT_REQUIRE_TOKEN") and token.exists() else None


def wait_ready(client: Client, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until the control plane is ready. Raises CliError with its last words where it is not to be."""
    from controlplane.client import ClientError

    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            words = log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"]
            raise CliError(f"the control plane did not start: {words[-1].removeprefix('error: ')} (log: {log})")
        try:
            if client.ready().get("ready"):
                return
        except ClientError:
            pass
        time.sleep(0.05)
    raise CliError(f"the control plane was not ready after {READY_S:.0f} s; its log is {log}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the control plane, kindly first."""
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()


def train_one(client: Client, spec: dict[str, object], home: Path) -> Run:
    """Train the spec to its end and return the run; where that is cut short, the run is cancelled first."""
    from controlplane.client import ClientError

    print(f"POST {client.url}/runs {json.dumps(spec)}")
    run = client.create(spec)
    became = run["resolved"]
    steps, ranks = became["config"]["steps"], became["world_size"]
    print(f"Run {run['id']}: {became['parameters']:,} parameters, {ranks} ranks, {steps:,} steps", flush=True)
    try:
        ended = follow.follow(client, run["id"], lambda: check_room(home, FULL_MB))
    except BaseException:
        print(f"\nStopping {run['id']} ...", flush=True)
        try:
            client.cancel(run["id"])
            client.wait(run["id"], timeout_s=STOP_S)
        except (ClientError, TimeoutError):  # a full disk keeps no word of it
            end_processes(run["id"])
        raise
    if ended["phase"] != "succeeded":
        print(client.logs(run["id"], tail=20), file=sys.stderr)
    follow.check(ended)
    return ended


def end_processes(run: str) -> None:
    """End whatever runs for that run, kindly first, without a control plane that could be told."""
    mark = f"TERAGPT_RUN_ID={run}".encode()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + KILL_S
        while (left := [*processes(mark)]) and time.monotonic() < deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(1)


def processes(mark: bytes) -> Generator[int]:
    """The processes that have this in their environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name)


def epilogue(run: Run, home: Path, port: int) -> None:
    """Where everything is, and how to go on."""
    folder = Path(run["folder"])
    pieces = home.glob(f"cluster/*/{run['kubernetes']['name']}/*/log*")  # compressed once the pod is gone
    logs = sorted(piece for piece in pieces if piece.name == "log" or piece.suffix == ".gz")
    teragpt = ".venv/bin/teragpt" if Path(".venv/bin/teragpt").exists() else "teragpt"
    up = f"{teragpt} up --home {home}" + (f" --port {port}" if port != PORT else "")
    print(f"""
Run folder:   {folder}
Checkpoints:  {folder / "checkpoints"}
Log:          {logs[-1] if logs else home}{" (zcat reads it)" if logs and logs[-1].suffix == ".gz" else ""}
API docs:     http://127.0.0.1:{port}/docs while a control plane runs: {up}

Go on:
  {teragpt} sample {folder} '{PROMPT}'
  {teragpt} export {folder} exported
  {up} &
  TERAGPT_HOME={home} {teragpt} run tiny --follow""")
