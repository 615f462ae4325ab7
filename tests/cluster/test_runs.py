"""A run from POST to its end on a real cluster: operator, kubelet, pods, volume, logs and metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controlplane.client import ApiError
from tests.cluster.conftest import Namespace
from tests.cluster.plane import Plane, until

QUICK = {"steps": 12, "eval_every": 12, "log_every": 2}
OF_THE_RUN = {"MASTER_ADDR", "PET_MASTER_ADDR", "TERAGPT_RUN_ID", "TERAGPT_RUN_URL", "TERAGPT_SPEC"}  # with its id
STOP_ONE = "for each in /proc/[0-9]*; do ! grep -qz ^LOCAL_RANK=1$ $each/environ || kill -STOP ${each#/proc/}; done"
CONTRACT = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


@pytest.fixture(scope="module")
def namespace(furnished: Namespace) -> Namespace:
    return furnished


def post(plane: Plane, **spec: Any) -> str:
    return plane.client.create({"size": "tiny", "train": QUICK, **spec})["id"]


def has_begun(plane: Plane, run: str) -> int | None:
    progress = plane.client.run(run)["progress"]
    return progress["step"] if progress else None


LAYOUTS = {
    "one node": {"nodes": 1, "processes_per_node": 1},
    "two nodes": {},
    "two nodes of two": {"nodes": 2, "processes_per_node": 2},
}


@pytest.fixture(scope="module")
def runs(server: Plane) -> dict[tuple[str, str], str]:
    """Runs by layout and kind, for who needs one that has trained."""
    del server
    return {}


@pytest.mark.timeout(600)  # two runs' whole lives
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_size_alone_becomes_a_trained_model(
    plane: Plane, namespace: Namespace, layout: str, runs: dict[tuple[str, str], str]
) -> None:
    """As both kinds of object, beside each other where the node has room for both at once."""
    together = [("PyTorchJob", "Job")] if layout != "two nodes of two" else [("PyTorchJob",), ("Job",)]
    for kinds in together:
        asked = {
            kind: {"size": "tiny", "train": QUICK, "compute": LAYOUTS[layout], "kubernetes": {"kind": kind}}
            for kind in kinds
        }
        promised = {kind: plane.client.preview(spec)["environment"] for kind, spec in asked.items()}
        made = {kind: plane.client.create(spec)["id"] for kind, spec in asked.items()}
        seen = environments(plane, namespace, made)
        for kind, run in made.items():
            has_what_was_promised(seen[kind], promised[kind], plane.client.run(run)["resolved"]["world_size"])
            runs[layout, kind] = run
            has_trained(plane, run, kind)
            until(lambda run=run: None if namespace.pods(run) else True, 60)  # type: ignore[misc]


def environments(plane: Plane, namespace: Namespace, runs: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """What the pods of each run were started with, read as soon as they run."""
    seen: dict[str, list[dict[str, str]]] = {}

    def look() -> bool | None:
        for kind, run in runs.items():
            if kind not in seen and plane.client.run(run)["phase"] == "running":
                seen[kind] = [namespace.environment(pod) for pod in namespace.pods(run)]
        return len(seen) == len(runs) or None

    until(look, 180, lambda: str([plane.client.run(run) for run in runs.values()]))
    return seen


def has_what_was_promised(seen: list[dict[str, str]], promised: dict[str, Any], world: int) -> None:
    """The environment of each pod is that of the preview, but for what bears the run's id."""
    for number, (told, found) in enumerate(zip(promised.values(), seen, strict=True)):
        same = told.keys() - OF_THE_RUN
        assert {name: found.get(name) for name in same} == {name: told[name] for name in same}
        assert told.keys() <= found.keys()
        assert found["RANK"] == str(number)
        assert found["WORLD_SIZE"] == str(world)
        assert all(found[name] for name in CONTRACT)


def has_trained(plane: Plane, run: str, kind: str) -> None:
    """Its checkpoint, its curve and every rank's log are there."""
    done = plane.wait(run, "succeeded")
    assert done["kubernetes"]["kind"] == kind
    assert done["checkpoint_step"] == QUICK["steps"]
    points = plane.client.metrics(run)
    assert [point["step"] for point in points if "loss" in point] == [1, 2, 4, 6, 8, 10, 12]
    assert "step 12/12" in plane.client.logs(run, rank=0)
    for rank in range(1, done["resolved"]["world_size"]):
        assert plane.client.logs(run, rank=rank) is not None


def test_a_killed_control_plane_takes_its_runs_up_again(plane: Plane, namespace: Namespace) -> None:
    run = post(plane, train={**QUICK, "steps": 60})
    plane.wait(run, "running")
    before = namespace.uids(run)
    plane.kill()
    plane.start()
    done = plane.wait(run, "succeeded")
    assert done["attempt"] == 1
    assert before
    steps = [point["step"] for point in plane.client.metrics(run) if "loss" in point]
    assert steps == [1, *range(2, 61, 2)]
    told = [line for line in plane.client.logs(run, rank=0).splitlines() if line.startswith("step ")]
    assert len(told) == len(set(told)) == len(steps)


def test_a_cancelled_run_has_written_a_checkpoint(plane: Plane, namespace: Namespace) -> None:
    run = post(plane, train={"steps": 5000, "log_every": 1})
    plane.wait(run, "running")
    until(lambda: has_begun(plane, run), 120)
    plane.client.cancel(run)
    done = plane.wait(run, "cancelled", timeout_s=90)
    assert (done["checkpoint_step"] or 0) > 0
    until(lambda: None if namespace.pods(run) else True, 30)


def test_a_suspended_run_frees_its_pods_and_goes_on_at_the_same_step(plane: Plane, namespace: Namespace) -> None:
    run = post(plane, train={**QUICK, "steps": 80, "log_every": 1})
    plane.wait(run, "running")
    until(lambda: has_begun(plane, run), 120)
    plane.client.suspend(run)
    kept = plane.wait(run, "suspended", timeout_s=90)["checkpoint_step"] or 0
    until(lambda: None if namespace.pods(run) else True, 30)
    plane.client.resume(run)
    plane.wait(run, "succeeded")
    attempts = plane.client.attempts(run)
    assert [one["resumed_from"] for one in attempts] == [None, kept]
    points = [point for point in plane.client.metrics(run) if "loss" in point]
    assert [point["step"] for point in points] == list(range(1, 81))
    assert {point["attempt"] for point in points if point["step"] > kept} == {2}


def test_a_pod_that_someone_deletes_ends_the_attempt_and_the_next_goes_on(plane: Plane, namespace: Namespace) -> None:
    run = post(plane, train={**QUICK, "steps": 90, "log_every": 1}, checkpoint={"every_steps": 10})
    plane.wait(run, "running")
    until(lambda: plane.client.run(run)["checkpoint_step"], 120)
    namespace.kubectl("delete", "pod", namespace.pods(run)[1], "--wait=false")
    done = plane.wait(run, "succeeded")
    first, second = plane.client.attempts(run)
    assert first["reason"] in {"PodLost", "Stopped"}
    assert (second["resumed_from"] or 0) >= 10
    assert done["restarts"] == 0


def test_a_run_that_hangs_is_ended_with_that_reason(plane: Plane, namespace: Namespace) -> None:
    alone = {"nodes": 1, "processes_per_node": 1}
    limits = {"max_silence_s": 10, "max_restarts": 0}
    run = post(plane, train={"steps": 5000, "log_every": 1}, compute=alone, limits=limits)
    until(lambda: has_begun(plane, run), 120)
    (pod,) = namespace.pods(run)
    namespace.signal(pod, "STOP")
    until(lambda: namespace.read("pod", pod)["metadata"].get("deletionTimestamp"), 60)
    namespace.signal(pod, "CONT")  # else it would take all of its grace
    failed = plane.ended(run)
    assert (failed["phase"], failed["reason"]) == ("failed", "HangDetected")
    assert "no step and no line of output for 1" in (failed["message"] or "")


def test_where_a_rank_waits_that_hangs_is_shown_and_one_that_is_stopped_prints_nothing(
    plane: Plane, namespace: Namespace
) -> None:
    pair = {"nodes": 1, "processes_per_node": 2}
    limits = {"max_silence_s": 10, "max_restarts": 0}
    soon = {"spec": {"terminationGracePeriodSeconds": 14}}
    run = post(plane, train={"steps": 5000, "log_every": 1}, compute=pair, limits=limits, pod_overrides=soon)
    until(lambda: has_begun(plane, run), 120)
    namespace.kubectl("exec", namespace.pods(run)[0], "--", "sh", "-c", STOP_ONE)
    failed = plane.ended(run)
    assert (failed["phase"], failed["reason"]) == ("failed", "HangDetected")
    assert "prints its own into the log" in (failed["message"] or "")
    (shown,) = plane.client.stacks(run)["items"]
    assert shown["file"] == "attempt-1-rank-0.log"
    assert "train.py" in shown["text"]


def test_an_image_that_is_not_there_is_named(plane: Plane) -> None:
    run = post(plane, compute={"nodes": 1, "image": "127.0.0.1:1/none/trainer:1"})
    until(lambda: plane.client.run(run)["reason"] in {"ErrImagePull", "ImagePullBackOff", "ImagePull"} or None, 60)
    assert "127.0.0.1:1/none/trainer:1" in (plane.client.run(run)["message"] or "")
    plane.client.cancel(run)
    plane.wait(run, "cancelled")


def test_a_run_that_asks_for_too_much_says_what_is_lacking(plane: Plane) -> None:
    all_of_it = plane.client.clusters()[0]["capacity"]["cpus"]
    run = post(plane, compute={"nodes": 1, "processes_per_node": 1, "cpus_per_node": all_of_it})
    until(lambda: plane.client.run(run)["reason"] == "Unschedulable" or None, 60)
    assert "cpu" in (plane.client.run(run)["message"] or "").lower()
    plane.client.cancel(run)
    plane.wait(run, "cancelled")


def test_a_rank_that_takes_too_much_memory_is_reported(plane: Plane) -> None:
    run = post(plane, compute={"nodes": 1, "memory_per_node": 200 << 20}, limits={"max_restarts": 0})
    failed = plane.wait(run, "failed")
    assert failed["reason"] == "OOMKilled"


def test_bad_data_is_final_and_names_the_file(plane: Plane, namespace: Namespace) -> None:
    run = post(plane, data={"uri": f"pvc://{namespace.claim}/nothing"})
    failed = plane.wait(run, "failed")
    assert failed["restarts"] == 0
    assert "nothing" in (failed["message"] or "")


def test_a_model_is_sampled_exported_pulled_and_purged_from_a_laptop(
    plane: Plane, namespace: Namespace, tmp_path: Path, runs: dict[tuple[str, str], str]
) -> None:
    run = runs.get(("one node", "PyTorchJob")) or post(plane, compute=LAYOUTS["one node"])
    plane.wait(run, "succeeded")

    def teragpt(*words: str) -> str:
        token = (plane.home / "token").read_text().strip()
        environment = {**os.environ, "TERAGPT_URL": plane.url, "TERAGPT_TOKEN": token}
        command = [sys.executable, "-m", "controlplane.cli", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert teragpt("sample", run, "def main(", "--tokens", "20").startswith("def main(")
    teragpt("export", run, str(tmp_path / "model"))
    exported = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= exported
    teragpt("pull", run, str(tmp_path / "copy"))
    assert teragpt("sample", str(tmp_path / "copy"), "import ", "--tokens", "5").startswith("import ")
    assert f"teragpt purge {run}" in teragpt("delete", run)
    assert teragpt("purge", run, "--yes").splitlines()[-1] == "removed for good"
    namespace.start("look", "find", "/claim", "-name", run, claim=True)
    assert namespace.output("look") == "", "a pod has removed its folder"
    with pytest.raises(ApiError, match="there is no checkpoint in its folder"):
        plane.client.task(post(plane, train={"steps": 5000}), {"task": "export"})
