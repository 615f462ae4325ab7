"""What an attempt of a stored run asks of a cluster: its manifest. It decides nothing and talks to nobody."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.names import LONGEST_OBJECT_NAME
from controlplane.domain.placement import SecretRef
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import short
from controlplane.render import Attempt, BadOverride, render
from controlplane.render.attempt import COMMAND
from controlplane.render.blame import pointer_of

IMAGE = "teragpt/trainer:latest"


def attempt_of(  # noqa: PLR0913 - each is one fact that only its caller knows
    run_id: str,
    object_name: str,
    number: int,
    run: ResolvedRun,
    *,
    spec_hash: str,
    url: str,
    image: str,
    token: str = "",
    namespace: str | None = None,
    audience: str | None = None,
    queue: str = "",
    priority: str | None = None,
    avoid_nodes: tuple[str, ...] = (),
) -> Attempt:
    """The attempt as the renderer takes it. `url` is the control plane's, as the pods reach it.

    `image`, `queue` and `namespace` are for runs that name none; `priority` is the attempt's own, empty for none; None
    is the run's. With the `audience` of a cluster's service-account tokens, pods show one of those instead of `token`;
    no pod comes to `avoid_nodes`.
    """
    layout = run.layout
    stays = run.scheduling.priority if priority is None else priority or None
    own = {"queue": run.scheduling.queue or queue or None, "priority": stays}
    scheduling = run.scheduling.model_copy(update=own)
    return Attempt(
        run_id=run_id,
        name=object_name,
        attempt=number,
        nodes=layout.nodes,
        processes_per_node=layout.processes_per_node,
        gpus_per_node=layout.gpus_per_node,
        cpus_per_node=layout.cpus_per_node,
        memory_per_node=layout.memory_per_node,
        memory_limited=layout.memory_given or audience is not None,
        image=run.placement.image or image,
        spec=settings(run),
        run_url=f"{url.rstrip('/')}/v1/runs/{run_id}",
        run_token=token,
        spec_hash=spec_hash,
        env=run.env,
        labels=run.labels,
        grace_s=run.grace_s,
        kind=run.kind,
        namespace=run.namespace or namespace,
        audience=audience,
        claims=run.claims,
        avoid_nodes=avoid_nodes,
        secrets={name: SecretRef.model_validate(reference) for name, reference in run.secrets.items()},
        placement=run.placement,
        scheduling=scheduling,
        pod_overrides=run.pod_overrides,
        ttl_after_finish_s=run.ttl_after_finish_s,
        runtime=run.runtime,
        command=run.command or COMMAND,
    )


def settings(run: ResolvedRun) -> dict[str, Any]:
    """The trainer's settings, so that an attempt derives nothing anew but what is left open to it.

    The token budget follows from steps.
    """
    return {name: value for name, value in run.config.items() if name not in {"tokens", *run.left_open}}


def ensure_renderable(run: ResolvedRun) -> None:
    """Raises InvalidSpec where the run's attempts could not be written as objects, before there is a run."""
    longest = attempt_of("run_x", "x" * LONGEST_OBJECT_NAME, 1, run, spec_hash="x", url="http://x", image="x")
    try:
        render(longest)
    except BadOverride as error:
        raise InvalidSpec(error.problems) from None
    except ValidationError as error:
        raise InvalidSpec(_problem(dict(one)) for one in error.errors(include_url=False)) from None
    except ValueError as error:
        raise InvalidSpec([Problem(pointer_of(str(error)), "not_renderable", str(error))]) from None


def _problem(one: dict[str, Any]) -> Problem:
    path = ".".join(map(str, one["loc"]))
    detail = f"got {short(one['input'])}; {str(one['msg']).removeprefix('Value error, ')} ({path})"
    return Problem(pointer_of(path), "not_renderable", detail)
