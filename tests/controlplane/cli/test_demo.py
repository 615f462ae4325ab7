"""The demo as a process of its own, shortened to a few steps, in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DEADLINE_S = 240


def demo(home: Path, *options: str, steps: int, cwd: Path | None = None) -> subprocess.Popen[str]:
    train = json.dumps({"steps": steps, "log_every": 1, "checkpoint_every": 2, "eval_sequences": 2})
    command = [sys.executable, "-m", "controlplane.cli", "demo", "--home", str(home), "--train", train, *options]
    return subprocess.Popen(
        command, cwd=cwd or home.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "demo"
    assert processes_of(tmp_path / "demo") == []


def processes_of(home: Path) -> list[str]:
    """Command lines of processes that this demo started and that still live."""
    lines = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(home) in line and "pytest" not in line]


@pytest.mark.unmeasured
def test_the_demo_trains_samples_says_where_all_is_and_leaves_nothing_running(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = demo(home, "--port", str(port), steps=4)
        printed, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, printed
    url = next(line.split()[2] for line in printed.splitlines() if line.startswith("Control plane:"))
    assert f"Port {port} is taken by another program; using {url.rpartition(':')[2]} instead." in printed
    assert f"POST {url}/runs" in printed
    assert "step 4/4 | loss " in printed
    assert "def main(" in printed
    folder = Path(next(line.split()[2] for line in printed.splitlines() if line.startswith("Run folder:")))
    assert (folder / "metrics.jsonl").is_file()
    checkpoints, log = (
        Path(next(line.split()[1] for line in printed.splitlines() if line.startswith(label)))
        for label in ("Checkpoints:", "Log:")
    )
    assert checkpoints.is_dir()
    assert log.is_file()
    up = f"teragpt up --home {home} --port {url.rpartition(':')[2]}"
    assert f"API docs:     {url}/docs while a control plane runs: " in printed
    assert printed.count(up) == 2
    assert f"teragpt sample {folder}" in printed


def test_stopping_the_demo_cancels_its_run_and_stops_everything(home: Path) -> None:
    process = demo(home, "--port", "0", steps=100_000)
    assert process.stdout
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("running"):
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, printed + rest
    assert "Stopping run_" in rest
    deadline = time.monotonic() + DEADLINE_S
    while processes_of(home) and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_control_plane_that_cannot_start_is_one_sentence(home: Path) -> None:
    home.mkdir()
    (home / "state.db").mkdir()
    process = demo(home, "--port", "0", steps=1)
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, printed
    assert printed.startswith("error: the control plane did not start: ")
    assert printed.count("\n") == 1


def test_settings_that_cannot_be_read_are_one_sentence(home: Path) -> None:
    command = [sys.executable, "-m", "controlplane.cli", "demo", "--home", str(home), "--train", "{"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: config: got '--train'; allowed: a JSON object of settings (")
    assert not home.exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    process = demo(tmp_path / "file/demo", "--port", "0", steps=1, cwd=tmp_path)
    printed, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, printed) == (
        1,
        f"error: the demo cannot write to {tmp_path}/file/demo (Not a directory)\n",
    )


@pytest.mark.unmeasured
def test_the_demo_says_that_its_disk_is_full_and_leaves_nothing_running(home: Path) -> None:
    home.mkdir()
    command = [sys.executable, "-m", "controlplane.cli", "demo", "--home", str(home), "--port", "0"]
    script = f"mount -t tmpfs -o size=50m none {home} && {shlex.join(command)}; mount -o remount,size=150m {home}; "
    script += f"exec {shlex.join(command)}"
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(private, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed: list[str] = []
        for line in process.stdout:
            printed.append(line)
            if "step " in line and "loss" in line:
                break
        seen = Path(f"/proc/{process.pid}/root{home}")
        with contextlib.suppress(OSError), (seen / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        printed += process.stdout.read().splitlines()
    told = "\n".join(printed)
    assert f"the disk of {home} is full: 52.4 MB are left, and the demo needs 100; make room" in told
    assert f"the disk of {home} is full: 0.0 MB are left" in printed[-1] + printed[-2], told
    assert process.returncode == 1
