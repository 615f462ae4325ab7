"""The chart as it is installed into the cluster, and a client of what it installed."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from controlplane.client import Client, Run
from tests.cluster.conftest import Cluster, Namespace, bare
from tests.cluster.layout import BIN, Failed
from tests.helm import rendered
from tests.helm.rendered import CHART

SECONDS = 300


@dataclass(frozen=True)
class Release:
    """The chart in a namespace that admits restricted pods alone, with `values` for this cluster's images.

    Helm is called as `user`, by default the cluster's administrator.
    """

    namespace: Namespace
    values: dict[str, Any]
    user: str = ""
    name: str = "teragpt"

    @property
    def deployment(self) -> str:
        """As kubectl takes it."""
        return f"deployment/{self.name if 'teragpt' in self.name else f'{self.name}-teragpt'}"

    def helm(self, *arguments: str, values: dict[str, Any] | None = None, program: str = "helm") -> str:
        """What Helm prints. Raises Failed with its error."""
        where = [f"--namespace={self.namespace.name}", f"--kubeconfig={self.namespace.cluster.kubeconfig}"]
        where += [f"--kube-as-user={self.user}"] if self.user else []
        given = json.dumps(self.values | (values or {}))
        done = rendered.helm(*arguments, *where, given=given, program=program, timeout_s=SECONDS)
        if done.returncode:
            raise Failed(f"helm {' '.join(arguments)}: {done.stdout[-4000:]}{done.stderr[-4000:]}{self.log()}")
        return done.stdout

    def apply(self, verb: str, values: dict[str, Any] | None = None, program: str = "helm") -> str:
        """Install or upgrade it, and wait."""
        how = ("--values=-", "--wait", "--timeout=3m")
        return self.helm(verb, self.name, str(CHART), *how, values=values, program=program)

    def log(self) -> str:
        """What the control plane last wrote, and what became of its pod."""
        told = (("logs", self.deployment, "--tail=20"), ("get", "pods,pvc"), ("get", "events"))
        found = []
        for command in told:
            try:
                found.append(self.namespace.kubectl(*command))
            except Failed as failure:
                found.append(str(failure))
        return "\n".join(found)

    @contextmanager
    def client(self, target: str = "") -> Iterator[Client]:
        """A client of its API, by the commands that the notes tell."""
        target = target or f"{self.deployment.replace('deployment', 'service')}-api"
        token = self.namespace.kubectl("exec", self.deployment, "--", "cat", "/data/token").strip()
        where = [f"--kubeconfig={self.namespace.cluster.kubeconfig}", f"--namespace={self.namespace.name}"]
        command = [str(BIN / "kubectl"), *where, "port-forward", target, ":8000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
            try:
                assert forward.stdout is not None
                port = re.search(r"127\.0\.0\.1:(\d+)", forward.stdout.readline())
                assert port is not None
                with Client(f"http://127.0.0.1:{port[1]}", token) as client:
                    yield client
            finally:
                forward.terminate()


@contextmanager
def released(cluster: Cluster, image: str) -> Iterator[Release]:
    """The chart with a control plane's image in a namespace of its own, not yet installed."""
    with bare(cluster) as namespace:
        try:
            yield Release(namespace, {"image": parts(image), "trainer": {"image": parts(cluster.image)}})
        finally:
            wide = "clusterroles,clusterrolebindings"
            for each in cluster.read(wide, "--selector=app.kubernetes.io/part-of=teragpt")["items"]:
                if each["metadata"]["name"].startswith(f"{namespace.name}:"):
                    cluster.kubectl("delete", each["kind"], each["metadata"]["name"])


def parts(reference: str) -> dict[str, str]:
    """An image's reference as the chart's values say it."""
    registry, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    return {"registry": registry, "repository": repository, "tag": tag}


def at_step(run: Run, step: int) -> Run | None:
    return run if run["progress"] and run["progress"]["step"] >= step else ended(run)


def ended(run: Run) -> Run | None:
    return run if run["phase"] in {"succeeded", "failed", "cancelled"} else None
