"""What a pod says when it ends badly: the termination message that Kubernetes keeps, and a stable word for the reason.

Turns facts (exit code, signal, last lines) into the message; must not know how ranks are run or watched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

LIMIT = 4096  # bytes that Kubernetes keeps of a container's termination message
LAST_LINES = 50
LINE_LIMIT = 500  # characters kept of one line

FINISHED, CRASHED, BAD_CONFIG, DIVERGED, KILLED, STOPPED = 0, 1, 2, 3, 137, 143
REASONS = {BAD_CONFIG: "ConfigError", DIVERGED: "Diverged", STOPPED: "Stopped", KILLED: "Killed"}

# The first that matches anywhere in the last lines names a crash. What is a cause stands before what it entails:
# a rank that runs out of memory also resets its peers' connections.
SIGNS = {
    "CudaOutOfMemory": r"(CUDA|HIP) (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|torch\.OutOfMemoryError",
    "OutOfMemory": r"OutOfMemoryError|out of memory|MemoryError|[Cc]annot allocate memory|can't allocate memory",
    "DiskFull": r"No space left on device|Disk quota exceeded|ENOSPC",
    "DiskReadOnly": r"Read-only file system|EROFS",
    "DatasetBusy": r"no other process is preparing at this moment",
    "PortInUse": r"EADDRINUSE|[Aa]ddress already in use",
    "MissingPackage": r"ModuleNotFoundError|No module named|ImportError: (lib\S+|cannot import name)",
    "CollectiveTimeout": r"Watchdog caught collective op\w+ timeout|Timed out waiting \d+ms for|no step in \S+ s: ",
    "RendezvousFailed": r"Rendezvous\w*Error|DistNetworkError|DistStoreError",
    "PeerLost": r"Connection (closed|reset) by (peer|remote)|ncclRemoteError",
}
BAD_DATA = re.compile(r"^error: (.*; )?(data|tokenizer): got ", re.MULTILINE)  # of the settings, the two that hold data


@dataclass(frozen=True)
class Ending:
    """How a pod ended: `code` and `signal` (its number) of global rank `rank` (None: before any rank ran) at `time`.

    `time` is in seconds since the epoch, `step` the last that the pod printed, `lines` the last that the rank printed;
    `oom_kills` counts the processes of this pod that the kernel killed for memory.
    """

    code: int
    rank: int | None = None
    signal: int | None = None
    time: float | None = None
    step: int | None = None
    lines: tuple[str, ...] = ()
    oom_kills: int = 0

    @property
    def reason(self) -> str:
        """One stable word for why."""
        if self.signal == Signals.SIGKILL and self.oom_kills:
            return "OutOfMemory"
        text = "\n".join(line[:LINE_LIMIT] for line in self.lines)
        if self.code == BAD_CONFIG and BAD_DATA.search(text):
            return "BadData"
        return REASONS.get(self.code) or crash(text)

    @property
    def signal_name(self) -> str | None:
        """The signal as people write it, such as SIGKILL."""
        if self.signal is None:
            return None
        return Signals(self.signal).name if self.signal in set(Signals) else f"SIG{self.signal}"

    def message(self) -> bytes:
        """The termination message: one JSON object of at most 4096 bytes, with as many of the last lines as fit."""
        lines = [line[:LINE_LIMIT] for line in self.lines[-LAST_LINES:]]
        while len(encoded := self.encode(lines)) > LIMIT:
            lines.pop(0)
        return encoded

    def encode(self, lines: Sequence[str]) -> bytes:
        """The message with these lines, however long."""
        facts = {
            "rank": self.rank,
            "code": self.code,
            "signal": self.signal_name,
            "reason": self.reason,
            "step": self.step,
            "time": self.time,
            "last_lines": list(lines),
        }
        return json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")

    def __str__(self) -> str:
        """One line for people."""
        who = "no rank was started" if self.rank is None else f"rank {self.rank} ended first"
        how = f"exit code {self.code}" if self.signal is None else f"{self.signal_name} (code {self.code})"
        where = "" if self.step is None else f" at step {self.step}"
        return f"{who}: {self.reason}, {how}{where}"


def crash(text: str) -> str:
    """The stable word for a crash whose last output was `text`."""
    return next((word for word, sign in SIGNS.items() if re.search(sign, text)), "Crash")


def oom_kills(cgroup: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> int:
    """Processes of this control group that the kernel has killed for memory so far; 0 where that is not known."""
    try:
        group = re.search(r"^0::/?(.*)$", Path(cgroup).read_text("utf-8"), re.MULTILINE)
        events = Path(root, group[1] if group else "", "memory.events").read_text("utf-8")
    except OSError:
        return 0
    count = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    return int(count[1]) if count else 0
