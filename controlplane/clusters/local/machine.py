"""What this machine has to give: CPUs, memory and GPUs, within what its container allows. It knows no manifest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
GPU_LINE = re.compile(r"^GPU (?P<index>\d+): (?P<type>.+) \(UUID: (?P<uuid>\S+)\)$")
NVIDIA_SMI_S = 20  # it loads the driver where no daemon keeps it loaded


@dataclass(frozen=True)
class Machine:
    """CPUs, bytes of memory, and GPUs as CUDA_VISIBLE_DEVICES names them.

    `cores` are the CPUs' numbers, those of one core beside each other; empty where they are not ours to give out.
    """

    cpus: int
    memory: int
    gpus: tuple[str, ...] = ()
    gpu_type: str | None = None
    cores: tuple[int, ...] = ()


def this_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """The machine as this process may use it: its affinity, its cgroup's limits, its CUDA_VISIBLE_DEVICES."""
    gpus = visible_gpus(environ)
    quotas = [int(quota) // int(period) for quota, period in cgroup_limits("cpu.max") if quota != "max"]
    ceilings = [int(size) for (size,) in cgroup_limits("memory.max") if size != "max"]
    cores = sorted(os.sched_getaffinity(0), key=_place)
    cpus = max(1, min([len(cores), *quotas]))
    return Machine(
        cpus=cpus,
        memory=min([psutil.virtual_memory().total, *ceilings]),
        gpus=tuple(gpus),
        gpu_type=next(iter(gpus.values()), None),
        cores=tuple(cores) if cpus == len(cores) else (),  # a quota is time on any of them
    )


def _place(cpu: int) -> tuple[int, int, int]:
    """Socket, core and number, so that the two threads of a core follow each other."""
    folder = TOPOLOGY / f"cpu{cpu}/topology"
    try:
        socket, core = (int((folder / name).read_text("ascii")) for name in ("physical_package_id", "core_id"))
    except OSError:
        return 0, cpu, cpu
    return socket, core, cpu


def visible_gpus(environ: Mapping[str, str]) -> dict[str, str]:
    """Type by name of the GPUs that `nvidia-smi` lists and CUDA_VISIBLE_DEVICES, where set, does not hide."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return {}
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}  # a driver that does not answer offers no GPU
    matches = [match for line in listed.stdout.splitlines() if (match := GPU_LINE.match(line))]
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    names = None if chosen is None else {name.strip() for name in chosen.split(",")}
    return {
        match["index"]: match["type"] for match in matches if names is None or {match["index"], match["uuid"]} & names
    }


def cgroup_limits(file: str, cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[list[str]]:
    """What `file` says in this process's cgroup (version 2) and each one above it, split into words."""
    try:
        line = next(line for line in own.read_text(encoding="utf-8").splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    folder = cgroups / line.removeprefix("0::").lstrip("/")
    for above in (folder, *folder.parents):
        if above.is_relative_to(cgroups) and (above / file).is_file():
            yield (above / file).read_text(encoding="ascii").split()
