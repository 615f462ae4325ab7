"""Where every Python process of some pods stands now, as py-spy reads it from outside. It stops none and ends none."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

from controlplane.clusters.base import Stacks
from controlplane.clusters.local import shim

PATIENCE_S = 10.0  # for all of them together
MOST = 256  # processes
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


def stacks_of(markers: Iterable[str]) -> Stacks:
    """The stacks of each thread, rank by rank, of the pods with these termination files."""
    spy = shutil.which("py-spy", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if spy is None:
        return Stacks(problem="py-spy is not installed (`pip install '.[stacks]'`)")
    found = sorted({pid for marker in markers for pid in shim.members(marker) if _is_python(pid)}, key=_by_rank)[:MOST]
    if not found:
        return Stacks(problem="none of its Python processes is alive")
    deadline, problem, told = time.monotonic() + PATIENCE_S, "", list[str]()
    for pid, process in [(pid, _spy(spy, pid)) for pid in found]:
        text, failure = _result(process, deadline - time.monotonic())
        if failure:
            problem = problem or f"{_name(pid)}: {failure}{_yama()}"
        else:
            told.append(f"== {_name(pid)}\n{text.strip()}\n")
    return Stacks("\n".join(told), len(told), problem)


def _spy(spy: str, pid: int) -> subprocess.Popen[str]:
    """Started for all at once, since each takes its time. `--nonblocking`: what hangs stands still by itself."""
    command = [spy, "dump", "--nonblocking", "--pid", str(pid)]
    environ = {"RUST_BACKTRACE": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


def _result(process: subprocess.Popen[str], left_s: float) -> tuple[str, str]:
    """The stacks, or why there are none."""
    with process:
        try:
            text, errors = process.communicate(timeout=max(0.0, left_s))
        except subprocess.TimeoutExpired:
            process.kill()
            return "", f"py-spy did not answer within {PATIENCE_S:g} s"
    said = next(iter(errors.splitlines()), "").removeprefix("Error: ")
    return (text, "") if process.returncode == 0 else ("", said or f"py-spy ended with {process.returncode}")


def _yama() -> str:
    """What may keep a process of the same user from being looked into."""
    with contextlib.suppress(OSError):
        if (scope := YAMA.read_text("ascii").strip()) != "0":
            return f" (kernel.yama.ptrace_scope is {scope}: with 0, processes of the same user can be looked into)"
    return ""


def _is_python(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return False


def _by_rank(pid: int) -> tuple[int, int]:
    rank = _rank(pid)
    return (-1 if rank is None else rank), pid


def _name(pid: int) -> str:
    rank = _rank(pid)
    return f"process {pid}" if rank is None else f"rank {rank}, process {pid}"


def _rank(pid: int) -> int | None:
    """The rank that a process is, or works for; None for a launcher."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    environ = {name: value for name, _, value in (entry.partition(b"=") for entry in entries)}
    rank = environ.get(b"RANK", b"")
    return int(rank) if b"LOCAL_RANK" in environ and rank.isdigit() else None
