"""The environment contract: which variables tell a process its place in the world, and which combinations are refused.

Torch-free, so that a bad environment is refused before torch is imported. Knows variables only: it asks no machine and
opens no socket. The table that this file implements is docs/environment.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from teragpt.config import ConfigError, Problem

FOUR = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
MAX_WORLD = 1 << 20
MAX_ATTEMPTS = 1_000_000
MAX_PORT = 65535
MAX_GRACE_S = 86_400
ONE_PROCESS = ("auto", "cpu", "gpu")  # the words that Kubeflow's operator counts as one process in WORLD_SIZE
LAUNCHER = "python -m teragpt.launch -m teragpt.train"
GRACE_S = 30.0  # Kubernetes' own default of terminationGracePeriodSeconds
MARGIN_S = 10.0  # of the grace period, kept for the launcher itself
LEAST_GRACE_S = 5.0
TOKEN_FILE = "TERAGPT_RUN_TOKEN_FILE"
TERMINATION_LOG = "/dev/termination-log"  # Kubernetes' default terminationMessagePath


@dataclass(frozen=True)
class World:
    """A process's place: `rank` of `world_size`, `local_rank` of `local_world_size` on its node; where rank 0 is."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    master_addr: str = "localhost"
    master_port: int = 9994


def read_world(environ: Mapping[str, str], local_devices: int = 0) -> World:
    """The place that `environ` gives to this process; `local_devices` GPUs are used on this node (0: CPU).

    Raises ConfigError naming every variable that is missing, malformed, out of range or at odds with another.
    """
    reader = Reader(environ)
    if "LOCAL_RANK" in environ:
        world = launched(reader, local_devices)
    elif any(name in environ for name in FOUR):
        world = alone_on_its_node(reader) if one_process(reader) else by_hand(reader, local_devices)
    else:
        world = unset(reader)
    if reader.problems:
        raise ConfigError(reader.problems)
    return world


class Reader:
    """Reads variables and gathers what is wrong with them, so that one error names them all."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.problems: list[Problem] = []

    def refuse(self, name: str, allowed: str) -> None:
        """Note that variable `name` cannot be used as it is."""
        self.problems.append(Problem(name, self.environ.get(name), allowed))

    def number(self, name: str, low: int, high: int) -> int:
        """The variable as a whole number from `low` to `high`; `low` when it is refused."""
        text = self.environ.get(name, "")
        good = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_WORLD)) and low <= int(text) <= high
        if not good:
            together = f"; {', '.join(FOUR)} are set together or not at all" if name in FOUR else ""
            self.refuse(name, f"a whole number from {low} to {high}{together}")
        return int(text) if good else low

    def master(self) -> tuple[str, int]:
        """The address and port of rank 0."""
        address = self.environ.get("MASTER_ADDR", "")
        if not address.strip():
            self.refuse("MASTER_ADDR", f"a host name or address; {', '.join(FOUR)} are set together or not at all")
        return address.strip(), self.number("MASTER_PORT", 1, MAX_PORT)

    def place(self) -> tuple[int, int]:
        """Rank and world size."""
        before = len(self.problems)
        world_size = self.number("WORLD_SIZE", 1, MAX_WORLD)
        rank = self.number("RANK", 0, MAX_WORLD - 1)
        if len(self.problems) == before and rank >= world_size:
            self.refuse("RANK", f"a whole number below WORLD_SIZE {world_size}")
        return rank, world_size


def launched(reader: Reader, local_devices: int) -> World:
    """torchrun, or our launcher, started this process and set every variable."""
    address, port = reader.master()
    rank, world_size = reader.place()
    local_world_size = reader.number("LOCAL_WORLD_SIZE", 1, MAX_WORLD)
    local_rank = reader.number("LOCAL_RANK", 0, MAX_WORLD - 1)
    if not reader.problems:
        if local_world_size > world_size:
            reader.refuse("LOCAL_WORLD_SIZE", f"a whole number up to WORLD_SIZE {world_size}")
        if local_rank >= local_world_size:
            reader.refuse("LOCAL_RANK", f"a whole number below LOCAL_WORLD_SIZE {local_world_size}")
        elif 0 < local_devices <= local_rank:
            reader.refuse("LOCAL_RANK", f"a whole number below {local_devices}, the devices of this node")
    return World(rank, local_rank, world_size, local_world_size, address, port)


def one_process(reader: Reader) -> bool:
    """Whether an operator says that this process is its node's only one; refuses several without a launcher."""
    count = reader.environ.get("PET_NPROC_PER_NODE")
    if count is not None and count != "1" and count not in ONE_PROCESS:
        reader.refuse("PET_NPROC_PER_NODE", f"1 without LOCAL_RANK; for several processes a node start {LAUNCHER}")
    return count is not None


def alone_on_its_node(reader: Reader) -> World:
    """Kubeflow's variables with one process a node: its RANK is the node's rank, so the rank within the node is 0."""
    address, port = reader.master()
    rank, world_size = reader.place()
    return World(rank, 0, world_size, 1, address, port)


def by_hand(reader: Reader, local_devices: int) -> World:
    """All four set by whoever started the processes: nodes are filled one after another, a rank per device."""
    address, port = reader.master()
    rank, world_size = reader.place()
    if not local_devices:
        return World(rank, 0, world_size, 1, address, port)
    local_rank = rank % local_devices
    return World(rank, local_rank, world_size, min(local_devices, world_size - rank + local_rank), address, port)


def unset(reader: Reader) -> World:
    """None set: one process alone, unless an operator made it one of several that nothing connects."""
    one_process(reader)
    if reader.environ.get("PET_NNODES", "1") not in {"1", "1:1"}:
        reader.refuse("PET_NNODES", f"1 while {', '.join(FOUR)} are unset")
    return World()


def read_grace(environ: Mapping[str, str]) -> float:
    """Seconds between SIGTERM and SIGKILL that the pod was given (TERAGPT_GRACE_S). Raises ConfigError."""
    text = environ.get("TERAGPT_GRACE_S", str(GRACE_S))
    try:
        grace = float(text)
    except ValueError:
        grace = math.nan
    if not 0 <= grace <= MAX_GRACE_S:
        raise ConfigError([Problem("TERAGPT_GRACE_S", text, f"seconds from 0 to {MAX_GRACE_S}")])
    return grace


def ranks_grace(grace_s: float) -> float:
    """Seconds that the ranks of a pod have to end in when it is told to: its own less those of the launcher."""
    return max(grace_s - MARGIN_S, LEAST_GRACE_S)


def read_report(environ: Mapping[str, str]) -> tuple[str, Callable[[], str]] | None:
    """The run's URL (TERAGPT_RUN_URL) and what gives the bearer token for it; None unless both are set.

    TERAGPT_RUN_TOKEN_FILE names a file whose content is replaced as tokens expire, so each call reads it again and may
    raise OSError or UnicodeDecodeError; it wins over TERAGPT_RUN_TOKEN.
    """
    url, token, file = (environ.get(name, "") for name in ("TERAGPT_RUN_URL", "TERAGPT_RUN_TOKEN", TOKEN_FILE))
    if not url or not (token or file):
        return None
    return url, (lambda: Path(file).read_text("utf-8").strip()) if file else (lambda: token)


def read_attempt(environ: Mapping[str, str]) -> int | None:
    """The number of this attempt (TERAGPT_ATTEMPT), None where nobody counts them. Raises ConfigError."""
    text = environ.get("TERAGPT_ATTEMPT")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < MAX_ATTEMPTS):
        raise ConfigError([Problem("TERAGPT_ATTEMPT", text, f"a whole number from 1 to {MAX_ATTEMPTS - 1}")])
    return int(text)


def termination_log(environ: Mapping[str, str]) -> Path | None:
    """The file for the termination message: TERAGPT_TERMINATION_LOG, else Kubernetes' own where it can be written."""
    if given := environ.get("TERAGPT_TERMINATION_LOG"):
        return Path(given)
    return Path(TERMINATION_LOG) if os.access(TERMINATION_LOG, os.W_OK) else None
