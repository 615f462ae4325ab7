"""The planner: from a size to its layout on a cluster, what that takes, and how long, before a GPU is touched.

`plan({"size": "175b"}, cluster_of("h100", 1024)).settings` is what the trainer is to be told.
"""

from teragpt.activations import activation_bytes, micro_batch
from teragpt.layout import State
from teragpt.plan.planner import Budget, Plan, TooSmall, cluster_of, plan, sweep, within

__all__ = [
    "Budget",
    "Plan",
    "State",
    "TooSmall",
    "activation_bytes",
    "cluster_of",
    "micro_batch",
    "plan",
    "sweep",
    "within",
]
