"""The README's commands, executed from top to bottom as a reader would, with fewer steps and in a folder apart."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tools.blocks import ROOT

pytestmark = pytest.mark.timeout(900)  # two dozen commands, one after the other

SHORTER = {  # what a reader waits for, and what would change this checkout
    "make install": "true",
    'export PATH="$PWD/.venv/bin:$PATH"': "true",
    "teragpt run tiny": "teragpt run tiny --processes 1 --set steps=2 --set eval_every=2 --set eval_sequences=2",
    "--tokens 100": "--tokens 10",
    '"train": {"seed": 1}': '"train": {"seed": 1, "steps": 2000}',
    "--size tiny": "--size tiny --steps 1 --eval_sequences 2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def reader(tmp_path: Path) -> dict[str, str]:
    """The environment of someone with a home and a checkout of their own."""
    (tmp_path / "teragpt").symlink_to(ROOT / "teragpt")
    cache = os.environ.get("TERAGPT_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "teragpt"
    )
    ours = ("TERAGPT_", "XDG_", "COVERAGE_")  # a reader's commands are not slowed by being measured
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "HOME": str(tmp_path), "TERAGPT_CACHE": str(cache)}


def test_the_commands_work_in_the_order_of_the_page(reader: dict[str, str], tmp_path: Path) -> None:
    script, port = "\n".join(blocks("bash")), free_port()
    for command, shorter in SHORTER.items():
        assert command in script
        script = script.replace(command, shorter)
    ready = f"until curl --silent --fail localhost:{port}/readyz; do sleep 0.1; done"
    script = script.replace("localhost:8000", f"localhost:{port}").replace("9994", str(free_port()))
    ended = "up=$!; trap 'kill $up; wait' EXIT"
    script = script.replace("teragpt up &", f"teragpt up --port {port} & {ended}\n{ready}")
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=reader,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    for file in ("exported/config.json", "data/cats/dataset.json", "runs/one/metrics.jsonl", "runs/two/metrics.jsonl"):
        assert (tmp_path / file).is_file(), done.stdout


def test_the_python_on_the_page_uses_names_that_exist() -> None:
    for text in blocks("python"):
        imports = [ast.unparse(node) for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert imports
        exec("\n".join(imports), {})  # noqa: S102 - our own page
