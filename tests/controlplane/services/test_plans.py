from __future__ import annotations

import dataclasses
import json

import pytest

from controlplane.domain.errors import InvalidSpec, NotFound, Unauthorized
from controlplane.domain.spec import parse_spec
from controlplane.services import plans, runs
from controlplane.services.attempts import attempt, attempts, authenticate, events, manifest
from controlplane.services.context import Context
from controlplane.services.views import RunView
from teragpt.config import resolve
from tests.controlplane.memory_cluster import MemoryCluster


def test_a_plan_tells_bytes_of_state_and_whether_it_fits(context: Context) -> None:
    small = plans.plan(context, parse_spec({"size": "tiny"}))
    assert small.fits
    assert small.resolved.state_bytes["total"] > 0
    big = plans.plan(context, parse_spec({"size": "175b"}))
    assert not big.fits
    assert big.problems[0].pointer == "/size"
    assert big.resolved.parameters > 170e9
    with pytest.raises(InvalidSpec):
        plans.plan(context, parse_spec({"size": "tiny", "train": {"heads": 5}}))


def test_a_preview_shows_what_would_be_sent_and_creates_nothing(context: Context) -> None:
    spec = parse_spec({"size": "tiny", "compute": {"nodes": 2, "processes_per_node": 3, "cpus_per_node": 2}})
    shown = plans.preview(context, spec)
    assert shown.manifest["kind"] == "PyTorchJob"
    assert {pod.rsplit("-", 2)[1] for pod in shown.environment} == {"master", "worker"}
    assert {env["WORLD_SIZE"] for env in shown.environment.values()} == {"6"}
    assert shown.warnings == ("3 ranks share 2 CPUs of a node",)
    assert runs.list_runs(context).runs == []


def test_a_preview_warns_of_what_will_wait_or_never_run(
    context: Context, memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "can never run here" in plans.preview(context, parse_spec({"size": "175b"})).warnings[0]
    busy = dataclasses.replace(memory.capacity(), free_cpus=1)
    monkeypatch.setattr(memory, "capacity", lambda: busy)
    warning = plans.preview(context, parse_spec({"size": "tiny"})).warnings[0]
    assert warning == "it will wait: it needs 2 CPUs, and 1 of 4 are free"


def test_the_table_of_sizes_is_whole() -> None:
    assert [row["name"] for row in plans.sizes()][:2] == ["tiny", "111m"]


def test_a_manifest_is_the_attempts_and_holds_no_token(context: Context, run: RunView) -> None:
    found = manifest(context, run.id)
    assert found["metadata"]["name"] == run.kubernetes["name"]
    env = {
        one["name"]: one
        for one in found["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["env"]
    }
    sent = json.loads(env["TERAGPT_SPEC"]["value"])
    assert dataclasses.asdict(resolve(sent)) == run.resolved["config"]
    assert env["TERAGPT_RUN_URL"]["value"] == f"{context.url}/v1/runs/{run.id}"
    assert "secretKeyRef" in env["TERAGPT_RUN_TOKEN"]["valueFrom"]
    assert manifest(context, run.name, 1) == found
    with pytest.raises(NotFound, match="attempt 9"):
        manifest(context, run.id, 9)


def test_attempts_and_events_are_listed_in_order(context: Context, run: RunView) -> None:
    runs.cancel_run(context, run.id)
    assert [one.attempt for one in attempts(context, run.id)] == [attempt(context, run.id).attempt] == [1]
    assert [(one.seq, one.kind) for one in events(context, run.id)] == [(1, "created"), (2, "cancel")]
    assert [one.seq for one in events(context, run.id, after=1)] == [2]
    with pytest.raises(NotFound):
        events(context, "run_x")


def test_a_token_that_is_unknown_is_refused(context: Context, run: RunView) -> None:
    with pytest.raises(Unauthorized):
        authenticate(context, run.id, "guess")
