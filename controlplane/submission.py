"""What an attempt of a stored run asks of a cluster: its manifest. It decides nothing and talks to nobody."""

from __future__ import annotations

from typing import Any

from controlplane.domain.resolve import ResolvedRun
from controlplane.render import Attempt

IMAGE = "teragpt/trainer:latest"


def attempt_of(
    run_id: str,
    object_name: str,
    number: int,
    run: ResolvedRun,
    *,
    spec_hash: str,
    url: str,
    image: str,
    token: str = "",
) -> Attempt:
    """The attempt as the renderer takes it. `url` is the control plane's, as the pods reach it."""
    layout = run.layout
    return Attempt(
        run_id=run_id,
        name=object_name,
        attempt=number,
        nodes=layout.nodes,
        processes_per_node=layout.processes_per_node,
        gpus_per_node=layout.gpus_per_node,
        cpus_per_node=layout.cpus_per_node,
        memory_per_node=layout.memory_per_node,
        image=image,
        spec=settings(run),
        run_url=f"{url.rstrip('/')}/v1/runs/{run_id}",
        run_token=token,
        spec_hash=spec_hash,
        env=run.env,
        labels=run.labels,
        grace_s=run.grace_s,
    )


def settings(run: ResolvedRun) -> dict[str, Any]:
    """The trainer's settings in full, so that an attempt derives nothing anew; the token budget follows from steps."""
    return {name: value for name, value in run.config.items() if name != "tokens"}
