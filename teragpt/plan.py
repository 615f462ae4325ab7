"""How a size is laid out on devices, and what it costs there, without a tensor: exact bytes of state, FLOPs, layout.

Torch-free and in microseconds, since every `POST /runs` asks. It covers one machine; the mesh search over a cluster
belongs here too.
"""

from __future__ import annotations

from dataclasses import dataclass

from teragpt.sizes import Shape

ACTIVATION_BUDGET = 16 << 30  # bytes of activations a micro-batch may take on a device of 80 GB
ACTIVATION_BYTES = 40  # bytes a token, layer and unit of width keeps for backward in bf16 (Korthikanti et al. 2022)
LARGEST_MICRO_BATCH = 32


def micro_batch(shape: Shape, sequences: int) -> int:
    """Sequences of one micro-batch: the largest power of two whose activations stay within the budget."""
    room = ACTIVATION_BUDGET // (shape.context * shape.depth * shape.dim * ACTIVATION_BYTES)
    bound = max(1, min(room, sequences, LARGEST_MICRO_BATCH))
    return int(1 << (bound.bit_length() - 1))


@dataclass(frozen=True)
class State:
    """Exact bytes of a rank's state, by kind: fp32 masters, their gradients, AdamW's two moments."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer


def state(parameters: int, shards: int, bytes_each: int = 4) -> State:
    """Bytes of state on the fullest rank where `parameters` are sharded over `shards` ranks."""
    here = -(-parameters // shards) * bytes_each
    return State(here, here, 2 * here)
