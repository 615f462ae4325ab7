from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.clusters.base import ObservedJob, ObservedPod
from controlplane.clusters.local import LocalCluster, Machine, shim
from controlplane.render import Attempt, render

DEADLINE_S = 60.0
MACHINE = Machine(cpus=4, memory=8 << 30)
FOREVER = "import time; time.sleep(1000)"


def until(
    true: Callable[[], Any], told: Callable[[], str] = lambda: "it did not happen", deadline_s: float = DEADLINE_S
) -> Any:
    """Poll until something is true and return it; fail the test after the deadline with what is `told` then."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.01)
    raise TimeoutError(told())


class Bench:
    """A local cluster under `root` that can be closed and opened again, and short ways to use it."""

    deadline_s = DEADLINE_S  # for pods to come to a phase

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.settings = root, {"machine": MACHINE, "environment": {"PATH": os.environ["PATH"]}, **settings}
        self.cluster = LocalCluster(root, **self.settings)

    def reopen(self, **settings: Any) -> None:
        self.cluster.close()
        self.cluster = LocalCluster(self.root, **{**self.settings, **settings})

    def attempt(self, name: str, code: str, **changes: Any) -> Attempt:
        settings: dict[str, Any] = {
            "run_id": f"run_{name}",
            "attempt": 1,
            "nodes": 1,
            "processes_per_node": 1,
            "gpus_per_node": 0,
            "cpus_per_node": 1,
            "memory_per_node": None,
            "image": "teragpt",
            "spec": {},
            "run_url": "http://127.0.0.1:1/v1/runs/x",
            "spec_hash": "hash",
            "grace_s": 10,
            "command": ("python", "-c", code),
        }
        return Attempt(name=name, **{**settings, **changes})

    def create(self, name: str, code: str = FOREVER, **changes: Any) -> str:
        attempt = self.attempt(name, code, **changes)
        return self.cluster.create(render(attempt))

    def job(self, name: str) -> ObservedJob | None:
        return next((job for job in self.cluster.observe() if job.name == name), None)

    def pods(self, name: str) -> tuple[ObservedPod, ...]:
        job = self.job(name)
        return tuple(job.pods) if job else ()

    def in_phase(self, name: str, phase: str) -> tuple[ObservedPod, ...]:
        """The object's pods, once every one of them is in the phase."""

        def look() -> tuple[ObservedPod, ...]:
            pods = self.pods(name)
            return pods if pods and all(pod.phase == phase for pod in pods) else ()

        return tuple(until(look, lambda: f"{name} not {phase}: {self.told(name)}", self.deadline_s))

    def pod(self, name: str, phase: str) -> ObservedPod:
        (pod,) = self.in_phase(name, phase)
        return pod

    def told(self, name: str) -> str:
        """The object's pods as they are now, and what each of them has written."""
        pods = self.pods(name)
        return "\n".join(f"{pod}\n{self.cluster.logs(name, pod.name).decode()}" for pod in pods)

    def folder(self, name: str, pod: str = "master-0") -> Path:
        return self.root / "objects" / name / f"{name}-{pod}"

    def processes(self, name: str, pod: str = "master-0") -> list[int]:
        """Pids of the pod's own processes (not the shim's)."""
        return sorted(shim.members(str(self.folder(name, pod) / shim.TERMINATION)))

    def process(self, name: str, pod: str = "master-0") -> int:
        """Pid of the pod's first process, once it runs its command."""
        return int(until(lambda: self.processes(name, pod), lambda: f"no process of {name}")[0])

    def gone(self, name: str) -> None:
        until(lambda: self.job(name) is None, lambda: f"{name} is still there")

    def finish(self) -> None:
        for job in self.cluster.observe():
            pods = [*self.root.glob(f"objects/{job.name}/*/pod.json")]  # a job that is deleted may be gone at once
            self.cluster.delete(job.name)
            for path in pods:
                for pid in shim.members(str(path.parent / shim.TERMINATION)):
                    shim._kill({pid})
        until(lambda: not self.cluster.observe(), lambda: f"left: {self.cluster.observe()}")
        self.cluster.close()
        for lock in self.root.glob("*/*/*/lock"):
            until(functools.partial(_free, lock), functools.partial("{} is held".format, lock))


def _free(path: Path) -> bool:
    descriptor = shim.try_lock(str(path))
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "cluster")
    yield bench
    bench.finish()
