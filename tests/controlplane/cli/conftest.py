"""A real control plane, and one finished run in it, for the commands that need one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.cli import main

DEADLINE_S = 120


@dataclass(frozen=True)
class Plane:
    """A control plane that runs: its address and its home."""

    url: str
    home: Path


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-m", "controlplane.cli", "up", "--home", str(home), "--port", "0"]
    with (home / "server.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield Plane(address(home, server), home)
        finally:
            server.terminate()
            server.wait(DEADLINE_S)


def address(home: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while not (home / "server.json").exists():
        assert server.poll() is None, (home / "server.log").read_text("utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return str(json.loads((home / "server.json").read_text("utf-8"))["url"])


@pytest.fixture
def teragpt(plane: Plane, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Teragpt:
    monkeypatch.setenv("TERAGPT_URL", plane.url)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(plane.home / "config"))
    return Teragpt(capsys)


@dataclass(frozen=True)
class Teragpt:
    """The command line in this process."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What a command prints to stdout, or to stderr where it is to fail."""
        self.capsys.readouterr()
        ended = main(arguments)
        out, err = self.capsys.readouterr()
        assert ended == code, out + err
        return err if code else out


@pytest.fixture(scope="session")
def finished(plane: Plane) -> str:
    """The id of a run of two steps that has succeeded."""
    command = [sys.executable, "-m", "controlplane.cli", "run", "tiny", "--name", "first", "--json", "--follow"]
    short = ["--processes", "1", "--set", "steps=2", "--set", "eval_sequences=2"]
    options = [*short, "--label", "team=lm", "--url", plane.url]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(plane.home / "config")}
    done = subprocess.run([*command, *options], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["id"])
