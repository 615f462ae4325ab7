"""What is kept of a rank that fails: its stacks, the record of its collectives, a picture of its GPU's memory.

Files go to `faults/` in the run folder, named after attempt and rank, since the machine may be gone in a minute.
Nothing here may raise: what is lost is evidence, not the run.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import tempfile
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch

from teragpt.storage import Folder

memory: Any = torch.cuda.memory  # torch documents these functions under names that begin with an underscore
c10d: Any = import_module("torch._C._distributed_c10d")

ALLOCATIONS = 100_000  # remembered for a picture of the memory


def prepare() -> None:
    """Have torch remember what would be kept. Called before the process group is made, on the rank's own GPU.

    From then on SIGUSR2 prints every thread's stack on stderr, from within, so that it needs no right to look into
    another process, and whatever the main thread waits in.
    """
    faulthandler.register(signal.SIGUSR2, file=2)
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")  # collectives
    if torch.cuda.is_available():
        memory._record_memory_history(context="alloc", stacks="python", max_entries=ALLOCATIONS)  # noqa: SLF001


def keep(folder: Folder, name: str) -> list[str]:
    """Keep every thread's stack and, on GPU, the last collectives; returns the names of the files."""
    kept = {f"{name}-stacks.txt": stacks()}
    if torch.cuda.is_available():
        with suppress(Exception):
            kept[f"{name}-collectives.pickle"] = c10d._dump_nccl_trace()  # noqa: SLF001
    return written(folder, kept)


def keep_memory(folder: Folder, name: str) -> list[str]:
    """Keep a picture of the GPU's memory, for https://pytorch.org/memory_viz; returns the names of the files."""
    if not torch.cuda.is_available():
        return []
    return written(folder, {f"{name}-memory.pickle": pickle.dumps(memory._snapshot())})  # noqa: SLF001


def stacks() -> bytes:
    """Every thread's stack."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        return file.read()


def written(folder: Folder, files: dict[str, bytes]) -> list[str]:
    """Write the files, as far as that goes; returns their names."""
    kept: list[str] = []
    for name, content in files.items():
        with suppress(OSError):
            folder.write(name, content)
            kept.append(name)
    return kept
