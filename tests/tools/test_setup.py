"""`tools/setup.sh` on machines that lack something: one sentence each, and nothing left half made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.blocks import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools/setup.sh", folder / "tools/setup.sh")
    for file in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs that is the whole PATH, with nothing of Python in it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "mktemp", "rm", "cat", "cksum", "df", "awk", "grep"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return folder


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{text}\n", "utf-8")
    (folder / name).chmod(0o755)


def setup(checkout: Path, programs: Path, extra: str = "all", **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(programs), "HOME": str(checkout), **more}
    command = ["bash", "tools/setup.sh", extra]
    return subprocess.run(command, cwd=checkout, env=environment, check=False, capture_output=True, text=True)


def test_no_python(checkout: Path, programs: Path) -> None:
    result = setup(checkout, programs)
    assert result.returncode == 1
    assert result.stderr.startswith("setup: no python3 on PATH; install Python 3.11 or newer")


def test_python_too_old(checkout: Path, programs: Path) -> None:
    script(programs, "python3", '[ "$1" = -V ] && echo "Python 3.9.2" || exit 1')
    result = setup(checkout, programs)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("setup: Python 3.9.2 is too old; TeraGPT needs Python 3.11 or newer")


def test_no_ensurepip(checkout: Path, programs: Path) -> None:
    script(programs, "python3", f'exec "{sys.executable}" "$@"')
    blocked = checkout / "blocked"
    (blocked / "ensurepip").mkdir(parents=True)
    (blocked / "ensurepip/__init__.py").write_text("raise ImportError", "utf-8")
    result = setup(checkout, programs, PYTHONPATH=str(blocked))
    assert result.returncode == 1
    assert "has no ensurepip; install python3-venv (Debian: apt install python3-venv)" in result.stderr
    assert not (checkout / ".venv").exists()


def test_no_room(checkout: Path, programs: Path) -> None:
    script(programs, "python3", f'exec "{sys.executable}" "$@"')
    (programs / "df").unlink()
    script(programs, "df", "echo head; echo disk 9 9 2097152 1% /")
    result = setup(checkout, programs)
    assert result.returncode == 1
    assert f"setup: only 2 GB are free in {checkout}; the libraries need" in result.stderr
    assert not (checkout / ".venv").exists()


def test_no_network(checkout: Path, programs: Path) -> None:
    script(programs, "python3", f'exec "{sys.executable}" "$@"')
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9", "PIP_RETRIES": "0", "PIP_CONFIG_FILE": os.devnull}
    result = setup(checkout, programs, **nowhere, PIP_NO_CACHE_DIR="1", UV_OFFLINE="1", UV_NO_CACHE="1")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("setup: the package index could not be reached; check the network")
    assert not (checkout / ".venv/installed-all").exists()


def test_a_finished_environment_is_left_alone(checkout: Path, programs: Path) -> None:
    script(programs, "python3", f'exec "{sys.executable}" "$@"')
    binaries = checkout / ".venv/bin"
    binaries.mkdir(parents=True)
    script(binaries, "python", '[ "$1" = -c ] || { echo installed "$@"; }')
    script(binaries, "uv", "echo uv ran")
    first = setup(checkout, programs, "dev")
    assert first.returncode == 0, first.stderr
    assert "uv ran" in first.stdout
    assert setup(checkout, programs, "dev").stdout == ""
    assert setup(checkout, programs, "all").stdout == ""
    (checkout / "constraints.txt").write_text("uv==0.1\n", "utf-8")
    assert "uv ran" in setup(checkout, programs, "dev").stdout
