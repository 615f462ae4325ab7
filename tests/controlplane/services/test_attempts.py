"""Who may report for a run: the attempt's own token, or the service account of one of its pods."""

from __future__ import annotations

import pytest

from controlplane.clusters.base import Caller, Unavailable
from controlplane.domain.errors import ClusterSilent, Unauthorized
from controlplane.services.attempts import authenticate
from controlplane.services.context import Context
from tests.controlplane.memory_cluster import Clock, MemoryCluster
from tests.controlplane.reconcile.conftest import Stage

TOKEN = "header.payload.signature"


@pytest.fixture
def stage(context: Context, memory: MemoryCluster, clock: Clock) -> Stage:
    stage = Stage(context, memory, clock)
    stage.ask()
    stage.look()
    return stage


def holds(stage: Stage, uid: str) -> None:
    stage.memory.callers[TOKEN] = Caller(stage.attempt.pods[0].name, uid)


def test_a_pod_of_the_live_attempt_is_known_by_its_service_account(stage: Stage) -> None:
    holds(stage, stage.attempt.pods[0].uid)
    assert authenticate(stage.context, stage.id, TOKEN) == 1


def test_a_pod_of_the_same_name_but_another_uid_is_a_stranger(stage: Stage) -> None:
    holds(stage, "another")
    with pytest.raises(Unauthorized):
        authenticate(stage.context, stage.id, TOKEN)


def test_a_token_that_the_cluster_does_not_know_is_refused(stage: Stage) -> None:
    with pytest.raises(Unauthorized):
        authenticate(stage.context, stage.id, TOKEN)


def test_a_pod_reports_for_its_own_run_only(stage: Stage) -> None:
    holds(stage, stage.attempt.pods[0].uid)
    other = stage.ask()
    stage.look()
    with pytest.raises(Unauthorized):
        authenticate(stage.context, other.id, TOKEN)


def test_a_pod_of_an_attempt_that_has_ended_reports_no_more(stage: Stage) -> None:
    holds(stage, stage.attempt.pods[0].uid)
    stage.memory.end(stage.object, 1)
    stage.look()
    assert stage.attempt.attempt == 2
    with pytest.raises(Unauthorized):
        authenticate(stage.context, stage.id, TOKEN)


def test_a_silent_cluster_is_no_refusal(stage: Stage) -> None:
    stage.memory.fail = Unavailable("no route")
    with pytest.raises(ClusterSilent, match="no route"):
        authenticate(stage.context, stage.id, TOKEN)
