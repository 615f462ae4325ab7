"""A copy in host memory of what a GPU holds, made once, and filled at each checkpoint while training stands.

Memory that the driver has pinned is filled several times faster than other, but pinning takes a second for each
gigabyte: so a thread does it beside the first steps. It must not know what a checkpoint is.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import AsyncStager
from torch.distributed.tensor import DTensor

from teragpt.compute.ops import local


class Mirror(AsyncStager):
    """Copies of tensors by name, pinned where these lie on a GPU, into which torch's asynchronous save stages."""

    _synchronize_after_execute = False

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Begin to make room for a state."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self.room = pool.submit(lambda: {name: empty_copy(tensor) for name, tensor in state.items()})
        pool.shutdown(wait=False)

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Fill the copies, once there is room for them, and return them; the next call overwrites them."""
        copies = self.room.result()
        for name, tensor in state_dict.items():
            local(copies[name]).copy_(local(tensor), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return {name: copies[name] for name in state_dict}

    def synchronize_staging(self) -> None:
        """Nothing: staging has ended when `stage` returns."""

    def close(self) -> None:
        """Nothing: the copies serve the next checkpoint."""


def empty_copy(tensor: Tensor) -> Tensor:
    """Room in host memory for this rank's part of a tensor, placed on the mesh as that is."""
    part = local(tensor)
    mine = torch.empty_like(part, device="cpu")
    if part.is_cuda and mine.numel():  # in place, since torch's allocator of pinned memory takes powers of two
        driver: Any = torch.cuda.cudart()
        torch.cuda.check_error(int(driver.cudaHostRegister(mine.data_ptr(), mine.nbytes, 0)))
        weakref.finalize(mine, driver.cudaHostUnregister, mine.data_ptr())
    if not isinstance(tensor, DTensor):
        return mine
    placed: Any = tensor
    return DTensor(mine, placed._spec, requires_grad=False)  # noqa: SLF001 - from_local would move it to the GPU
