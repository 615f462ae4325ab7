"""Training jobs as real processes for the trainer's tests: one rank or several, with a dataset made of real text."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import psutil

from teragpt.train import main
from tests.teragpt import forks

ROOT = forks.ROOT
OURS = re.compile(r"PET_|TERAGPT_(?!CACHE)|MASTER_|RANK$|WORLD_SIZE$|LOCAL_|OMP_")
PATIENCE_S = 240

# The smallest model that exercises everything, over the embedded corpus.
SMALL = {
    "dim": 32, "depth": 2, "heads": 2, "kv_heads": 1, "ffn": 64, "context": 32, "global_batch_tokens": 256,
    "micro_batch": 2, "eval_sequences": 8, "steps": 12, "warmup_steps": 2, "learning_rate": 0.01, "eval_every": 6,
    "checkpoint_every": 4,
}  # fmt: skip

started: list[subprocess.Popen[str]] = []


def arguments(settings: Mapping[str, object]) -> list[str]:
    """Settings as a command line."""
    words = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in settings.items()}
    return [word for key, value in words.items() for word in ("--set", f"{key}={value}")]


def start(command: Sequence[str], ranks: int = 1, environ: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `command`, a Python module or file with its arguments, on `ranks` ranks, in a process group of its own."""
    launch = ["-m", "teragpt.launch", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    process = subprocess.Popen(
        [sys.executable, *launch, *command],
        env={**outside(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def clean_up() -> None:
    """Leave nothing running and nothing open, whatever a test did."""
    while started:
        process = started.pop()
        if process.poll() is None:
            kill(process)
        if process.stdout is not None:
            process.stdout.close()


def kill(process: subprocess.Popen[str]) -> str:
    """kill -9 every process of the job, and return what they had printed."""
    family: list[psutil.Process] = []
    if process.poll() is None:
        launcher = psutil.Process(process.pid)
        family = [launcher, *launcher.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    return process.communicate(timeout=PATIENCE_S)[0]


def train(settings: Mapping[str, object], ranks: int = 1, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Train to the end; returns the exit code and the output. One rank trains in this process, to save its start."""
    words = arguments({**SMALL, **settings})
    return run(["-m", "teragpt.train", *words], ranks, environ) if ranks > 1 else train_here(words, environ or {})


def train_until(
    reached: Callable[[str], bool],
    settings: Mapping[str, object],
    ranks: int = 1,
    environ: Mapping[str, str] | None = None,
    *,
    everyone: bool = True,
) -> str:
    """Train until `reached` is true of rank 0's output, then kill -9 every rank at once, or the last; the output."""
    command = ["-m", "teragpt.train", *arguments({**SMALL, **settings})]
    environ = {**outside(), **(environ or {})}
    code, output = forks.run(command, ranks, environ, PATIENCE_S, reached, everyone=everyone)
    assert code == 128 + signal.SIGKILL, output
    return output


def train_and_signal(
    number: int, reached: Callable[[str], bool], settings: Mapping[str, object], ranks: int = 1
) -> tuple[int, str]:
    """Train until `reached` is true of rank 0's output, then send the last rank a signal; exit code and output."""
    command = ["-m", "teragpt.train", *arguments({**SMALL, **settings})]
    return forks.run(command, ranks, outside(), PATIENCE_S, reached, everyone=False, number=number)


def run(
    command: Sequence[str], ranks: int, environ: Mapping[str, str] | None = None, seconds: float = PATIENCE_S
) -> tuple[int, str]:
    """Run `command`, a Python module or file with its arguments, to its end on `ranks` ranks without a launcher.

    Returns the first failing rank's exit code and the output.
    """
    return forks.run(command, ranks, {**outside(), **(environ or {})}, seconds)


def outside() -> dict[str, str]:
    """This process's environment without what makes it a rank."""
    return {name: value for name, value in os.environ.items() if not OURS.match(name)}


def train_here(words: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """The trainer's command in this process, alone in the world unless the environment says otherwise."""
    said = io.StringIO()
    with alone(environ), redirect_stdout(said), redirect_stderr(said):
        code = main(words)
    return code, said.getvalue()


def alone(environ: Mapping[str, str]) -> contextlib.AbstractContextManager[object]:
    """This process's environment without what makes it a rank, and with `environ`, while the context lasts."""
    return mock.patch.dict(os.environ, {**outside(), **environ}, clear=True)


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until files that match the pattern exist under path, while the process runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {pattern} in {path}"
        time.sleep(0.02)


def torn(out: Path) -> list[Path]:
    """Checkpoints of a run folder that are being written, or were when their writer died."""
    return [path for path in out.glob("checkpoints/step-*") if not (path / "meta.json").exists()]


def curve(output: str) -> dict[int, str]:
    """The printed loss of every step, the last one printed for a step that was trained twice."""
    return {int(step): loss for step, loss in re.findall(r"^step (\d+)/\d+ \| loss (\S+)", output, re.MULTILINE)}
