"""The planner: from a size to its layout on a cluster, what that takes, and how long, before a GPU is touched."""

from teragpt.activations import activation_bytes, micro_batch
from teragpt.layout import State

__all__ = ["State", "activation_bytes", "micro_batch"]
