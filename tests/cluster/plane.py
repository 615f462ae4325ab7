"""A control plane in a process of its own, beside the test cluster, as an operator would start it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from controlplane.client import TERMINAL, Client

T = TypeVar("T")
START_S, STOP_S = 180.0, 30.0
LEASH = ("setpriv", "--pdeathsig=KILL")  # before a command: it dies with the process that started it, however that dies


class Process(Protocol):
    """A server's, as Popen has it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> object: ...
    def kill(self) -> None: ...
    def send_signal(self, sig: int, /) -> None: ...


class Plane:
    """The server with its data in `home`, which survives `kill` and `start`. `host` is an address that pods reach."""

    def __init__(self, home: Path, host: str, settings: Mapping[str, str]) -> None:
        self.home, self.log = home, home.with_suffix(".log")
        self._arguments = ["--home", str(home), "--host", host]
        self._environment = {**os.environ, **{f"TERAGPT_{name.upper()}": value for name, value in settings.items()}}
        self._port = "0"
        self.start()

    def start(self) -> None:
        """Start it, under the address that it had before."""
        self.process = self._spawned([*self._arguments, "--port", self._port])
        facts = until(self._facts, START_S, self.log.read_text)
        self.url = str(facts["url"])
        self._port = self.url.rpartition(":")[2]
        token = (self.home / "token").read_text().strip()
        self.client = Client(self.url, token, patience_s=0)  # whoever looks on hears of each death at once

    def _spawned(self, arguments: list[str]) -> Process:
        command = [*LEASH, sys.executable, "-m", "controlplane.server", *arguments]
        with self.log.open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=self._environment)

    def kill(self) -> None:
        """End it without a word."""
        self.client.close()
        self.process.kill()
        self.process.wait(STOP_S)

    def stop(self) -> None:
        """End it as an operator would."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(STOP_S)

    def wait(self, run: str, *phases: str, timeout_s: float = 180.0) -> dict[str, Any]:
        """The run, as soon as it is in one of `phases`."""
        last: dict[str, Any] = {}

        def there() -> dict[str, Any] | None:
            last.update(self.client.run(run))
            assert last["phase"] in phases or last["phase"] not in {"failed", "cancelled"}, last["message"]
            return last if last["phase"] in phases else None

        def told() -> str:
            return f"{last.get('phase')}: {last.get('reason')}: {last.get('message')}\n{self.log.read_text()[-4000:]}"

        return until(there, timeout_s, told)

    def ended(self, run: str, timeout_s: float = 240.0) -> dict[str, Any]:
        """The run, once it has ended, however."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = dict(self.client.run(run))
            return found if found["phase"] in TERMINAL else None

        return until(look, timeout_s, lambda: f"{self.client.run(run)}\n{self.log.read_text()[-4000:]}")

    def _facts(self) -> dict[str, Any] | None:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError, ValueError):
            facts: dict[str, Any] = json.loads((self.home / "server.json").read_text())
            return facts if facts["pid"] == self.process.pid else None
        return None


def until(look: Callable[[], T | None], timeout_s: float, told: Callable[[], str] = str) -> T:
    """What `look` returns, as soon as that is something; looked at four times a second."""
    deadline = time.monotonic() + timeout_s
    while (found := look()) is None:
        assert time.monotonic() < deadline, told()
        time.sleep(0.25)
    return found
