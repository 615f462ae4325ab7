"""A mode in which two runs of the same settings on the same machines are equal to the last bit."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

settings: Any = import_module("torch.utils.deterministic")  # which hides its one setting from type checkers
VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it cuBLAS may add up in another order from one run to the next
    "NCCL_ALGO": "^NVLS",  # the switch adds up what comes as it comes
}


@contextmanager
def deterministic(on: bool) -> Generator[None]:  # noqa: FBT001 - a setting's value
    """Where `on`, take deterministic kernels alone while the context lasts; torch raises where there is none.

    Enter it before the first use of a GPU, which reads the variables.
    """
    if not on:
        yield
        return
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True)
    settings.fill_uninitialized_memory = False  # a help in finding bugs, at the cost of a pass over memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before[0])
        settings.fill_uninitialized_memory = before[1]
