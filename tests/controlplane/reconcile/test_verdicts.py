"""The table of docs/lifecycle.md, "Verdicts"."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from controlplane.clusters.base import ObservedJob, ObservedPod
from controlplane.reconcile.verdicts import Handling, Verdict, quiet, succeeded, verdict_of

START = datetime(2026, 1, 1, tzinfo=UTC)


def pod(index: int = 0, code: int | None = 1, second: int = 0, **more: Any) -> ObservedPod:
    role, number = ("worker", index - 1) if index else ("master", 0)
    phase = "Succeeded" if code == 0 else "Failed"
    ended = START.replace(second=second)
    fields = {"phase": phase, "exit_code": code, "finished_at": ended, **more}
    return ObservedPod(f"pod-{index}", f"uid-{index}", role, number, **fields)  # type: ignore[arg-type]


def job(*pods: ObservedPod, deleting: bool = False, gone: bool = False) -> ObservedJob:
    return ObservedJob("job", "uid", "run", 1, "hash", START, deleting, pods, gone)


def verdict(*pods: ObservedPod, known: list[dict[str, Any]] | None = None, **state: bool) -> Verdict:
    found = verdict_of(job(*pods, **state), known or [])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("ended", "reason", "handling"),
    [
        (pod(code=2), "ConfigError", Handling.FINAL),
        (pod(code=2, termination={"reason": "DataError"}), "DataError", Handling.FINAL),
        (pod(code=3), "Diverged", Handling.FINAL),
        (pod(code=143), "Stopped", Handling.FREE),
        (pod(code=143, termination={"reason": "Terminated"}), "Stopped", Handling.FREE),
        (pod(code=137, reason="Preempted"), "Preempted", Handling.FREE),
        (pod(code=1, reason="Evicted"), "Evicted", Handling.FREE),
        (pod(code=None, reason="Lost"), "Lost", Handling.FREE),
        (pod(code=None, reason="StartError"), "StartError", Handling.FREE),
        (pod(code=None), "Unknown", Handling.FREE),
        (pod(code=137, reason="OOMKilled"), "OOMKilled", Handling.CHARGED),
        (pod(code=137, reason="Error"), "Killed", Handling.CHARGED),
        (pod(code=139, termination={"reason": "Crash"}), "Crash", Handling.CHARGED),
        (pod(code=1, termination={"reason": "PortInUse"}), "PortInUse", Handling.CHARGED),
        (pod(code=1, reason="Error"), "Crash", Handling.CHARGED),
        (pod(code=250), "Crash", Handling.CHARGED),
    ],
)
def test_an_exit_is_read_as_the_table_says(ended: ObservedPod, reason: str, handling: Handling) -> None:
    found = verdict(ended)
    assert (found.reason, found.handling) == (reason, handling)


@pytest.mark.parametrize("code", [143, 137, None])
def test_pods_that_are_stopped_because_the_first_has_succeeded_take_nothing_from_its_success(code: int | None) -> None:
    ended = job(pod(0, code=0), pod(1, code=code, reason="Error"))
    assert succeeded(ended)
    assert verdict_of(ended, []) is None


def test_a_pod_that_fails_by_itself_is_a_failure_whatever_the_first_did() -> None:
    ended = job(pod(0, code=0), pod(1, code=1))
    assert not succeeded(ended)
    assert verdict(pod(0, code=0), pod(1, code=1)).reason == "Crash"


def test_the_first_pod_to_fail_is_blamed_not_those_that_it_took_along() -> None:
    assert verdict(pod(0, 1, second=9), pod(1, 137, second=3), pod(2, 1, second=5)).exit_code == 137


def test_a_termination_message_tells_of_the_rank() -> None:
    told = {
        "rank": 5,
        "code": 139,
        "signal": "SIGSEGV",
        "reason": "Crash",
        "step": 70,
        "last_lines": ["a", "boom", " "],
    }
    found = verdict(pod(1, 139, termination=told))
    assert (found.rank, found.exit_code, found.signal, found.step) == (5, 139, "SIGSEGV", 70)
    assert found.last_lines == ("a", "boom", " ")
    assert found.message == "rank 5 ended with exit code 139 (SIGSEGV): boom"


def test_who_ate_too_much_is_told_by_what_it_held() -> None:
    told = {"rank": 1, "code": 137, "signal": "SIGKILL", "last_lines": ["step 9"]}
    found = verdict(pod(0, 137, reason="OOMKilled", message="held 3 GiB", termination=told))
    assert found.message == "rank 1 ended with exit code 137 (SIGKILL): held 3 GiB"


@pytest.mark.parametrize("reason", ["Error", "OOMKilled"])
def test_the_end_of_a_log_in_place_of_a_message_is_kept_as_lines_and_told_by_its_last(reason: str) -> None:
    """As the kubelet and the local cluster have it where the launcher was killed or could not write its message."""
    found = verdict(pod(0, 137, reason=reason, message="step 8\nstep 9 | loss 3.1\n"))
    assert found.last_lines == ("step 8", "step 9 | loss 3.1")
    assert found.message == "pod-0 ended with exit code 137 (SIGKILL): step 9 | loss 3.1"


@pytest.mark.parametrize("nonsense", [{"rank": "x", "code": None, "reason": 7, "step": True, "last_lines": None}, {}])
def test_a_termination_message_that_makes_no_sense_is_passed_over(nonsense: dict[str, Any]) -> None:
    found = verdict(pod(0, 1, termination=nonsense))
    assert (found.reason, found.rank, found.step, found.last_lines) == ("Crash", None, None, ())


def test_a_signal_is_named_from_the_exit_code() -> None:
    assert verdict(pod(code=137)).message == "pod-0 ended with exit code 137 (SIGKILL)"


def test_a_pod_that_is_gone_or_another_one_ends_the_attempt() -> None:
    known = [{"name": "pod-0", "uid": "uid-0"}, {"name": "pod-1", "uid": "uid-1"}]
    alive = pod(0, None, phase="Running")
    assert verdict(alive, known=known).reason == "PodLost"
    replaced = ObservedPod("pod-1", "uid-9", "worker", 0, "Pending")
    assert verdict(alive, replaced, known=known).reason == "PodLost"


def test_workers_that_go_after_the_masters_success_are_no_loss() -> None:
    known = [{"name": "pod-0", "uid": "uid-0"}, {"name": "pod-1", "uid": "uid-1"}]
    assert verdict_of(job(pod(0, 0)), known) is None
    assert succeeded(job(pod(0, 0)))


def test_someone_elses_deletion_ends_the_attempt_unless_it_has_succeeded() -> None:
    assert verdict(pod(0, None, phase="Running"), deleting=True).reason == "ObjectLost"
    assert verdict(pod(0, None, phase="Running"), gone=True).reason == "ObjectLost"
    assert verdict_of(job(pod(0, 0), deleting=True), []) is None
    assert verdict_of(job(pod(0, 0), gone=True), []) is None


def test_an_object_whose_pods_are_still_to_come_is_not_quiet() -> None:
    assert not quiet(job())
    assert quiet(job(deleting=True))
    assert not succeeded(job())


@pytest.mark.parametrize(("word", "reason"), [("WaitingForQuota", "Preempted"), ("Suspended", "PodLost")])
def test_pods_that_are_gone_while_their_object_waits_were_put_out(word: str, reason: str) -> None:
    absent = ObservedPod("pod-0", "", "master", 0, "Pending", word, "queue q: the quota went to another")
    found = verdict(absent, known=[{"name": "pod-0", "uid": "uid-0"}])
    assert (found.reason, found.handling) == (reason, Handling.FREE)
    assert found.message == "pod pod-0 was stopped: queue q: the quota went to another"
