"""An attempt, as it is to be written down: everything that its object will say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.domain.placement import Kind, Placement, Scheduling, SecretRef

COMMAND = ("python", "-m", "teragpt.launch", "-m", "teragpt.train")
TOKEN_KEY = "token"
TOKEN_VARIABLE = "TERAGPT_RUN_TOKEN"
TOKEN_FILE_VARIABLE = "TERAGPT_RUN_TOKEN_FILE"
OUR_VARIABLES = (
    "TERAGPT_RUN_ID",
    "TERAGPT_ATTEMPT",
    "TERAGPT_SPEC",
    "TERAGPT_RUN_URL",
    TOKEN_VARIABLE,
    TOKEN_FILE_VARIABLE,
    "TERAGPT_TERMINATION_LOG",
    "TERAGPT_GRACE_S",
)
OPERATOR_VARIABLES = (
    "PYTHONUNBUFFERED",
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "RANK",
    "PET_MASTER_ADDR",
    "PET_MASTER_PORT",
    "PET_NODE_RANK",
    "PET_NPROC_PER_NODE",
    "PET_NNODES",
)
RESERVED_VARIABLES = frozenset(
    (*OPERATOR_VARIABLES, *OUR_VARIABLES, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "JOB_COMPLETION_INDEX")
)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Everything that an attempt's object says.

    `name` is the object's, `memory_per_node` bytes, and the most that there may be where it is `memory_limited`; `spec`
    the settings of `teragpt.config` that the run resolves to, `env` the user's own variables and `secrets` those that a
    Secret holds, `run_url` where rank 0 reports, `run_token` its bearer there (in no manifest and no repr), `grace_s`
    seconds between SIGTERM and SIGKILL. With an `audience`, pods show a token of their service account instead.
    `claims` are mounted; `avoid_nodes` (by host name) get no pod; `runtime` is a TrainJob's, where it is not ours. What
    is None or 0 is not asked of the cluster.
    """

    run_id: str
    name: str
    attempt: int
    nodes: int
    processes_per_node: int
    gpus_per_node: int
    cpus_per_node: float | None
    memory_per_node: int | None
    image: str
    spec: Mapping[str, Any]
    run_url: str
    spec_hash: str
    run_token: str = field(default="", repr=False)
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    grace_s: int = 120
    command: tuple[str, ...] = COMMAND
    kind: Kind = "PyTorchJob"
    namespace: str | None = None
    audience: str | None = None
    claims: tuple[str, ...] = ()
    avoid_nodes: tuple[str, ...] = ()
    secrets: Mapping[str, SecretRef] = field(default_factory=dict[str, SecretRef])
    placement: Placement = field(default_factory=Placement)
    scheduling: Scheduling = field(default_factory=Scheduling)
    pod_overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ttl_after_finish_s: int | None = None
    runtime: str | None = None
    memory_limited: bool = True


def secret_of(attempt: Attempt) -> dict[str, str]:
    """The values by key of the secret that the attempt's manifest names (it bears the object's name)."""
    return {TOKEN_KEY: attempt.run_token} if attempt.run_token and not attempt.audience else {}
