"""One optimizer step on a device: forward and backward over this rank's batch, the sums over all ranks, the update.

A GPU runs a small model's kernels faster than its host launches them. So where a GPU is alone, the step's work is
recorded once, after a few steps, and replayed as one launch (a CUDA graph); nothing in it depends on host values that
change: those come in tensors. It must not know what a run is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from teragpt.config import Config
from teragpt.datasets.batches import to_device, to_host
from teragpt.optimizers.optim import Optimizer
from teragpt.parallel import compiles, forward_backward
from teragpt.parallelism.mesh import Mesh

Read = Callable[[], list[float]]
WARM = 3  # steps before the recording, which compile and allocate what no recording may


class Step:
    """The steps of one model and its optimizer."""

    def __init__(
        self, model: nn.Module, mesh: Mesh, config: Config, optimizer: Optimizer, device: torch.device
    ) -> None:
        self.model, self.mesh, self.config, self.optimizer, self.device = model, mesh, config, optimizer, device
        records = optimizer.alone and compiles(config, device.type) and config.packing == "plain"
        self.work: Callable[..., Read] = Recorded(self.compute, device) if records else self.compute

    def __call__(self, step: int, ids: Tensor, targets: Tensor, asked: float) -> Read:
        """Launch a step, counted from 0, over this rank's ids and targets (n, T).

        What is returned waits for its [loss, gradient norm, sum of what the ranks asked], and not for the update.
        """
        self.optimizer.schedule(step)
        return self.work(ids, targets, to_device(torch.tensor(asked, dtype=torch.float64), self.device))

    def compute(self, ids: Tensor, targets: Tensor, asked: Tensor) -> Read:
        """What the device does."""
        share = forward_backward(self.model, ids, targets, self.mesh, self.config)
        summary = self.optimizer.reduce(share, asked)
        read = to_host(summary)
        self.optimizer.step(summary[1])
        return read


class Recorded:
    """Work of a GPU on tensors of one shape, recorded at the call after the first few, and replayed from then on."""

    def __init__(self, work: Callable[..., Any], device: torch.device) -> None:
        self.work, self.stream, self.calls = work, torch.cuda.Stream(device), 0
        self.graph = torch.cuda.CUDAGraph()
        self.inputs: list[Tensor] = []
        self.result: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Do the work; its result is the recording's own, which the next call changes."""
        self.calls += 1
        if self.calls <= WARM:
            return self.warm(inputs)
        if self.calls == WARM + 1:
            self.inputs = [tensor.clone() for tensor in inputs]
            # other threads, which pin memory, may call the driver meanwhile
            with torch.cuda.graph(self.graph, stream=self.stream, capture_error_mode="thread_local"):
                self.result = self.work(*self.inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.result

    def warm(self, inputs: tuple[Tensor, ...]) -> Any:
        """The work as it is, on the stream that will record it."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.work(*inputs)
        current.wait_stream(self.stream)
        return result
