"""Starting and stopping the cluster's programs, and what is known of a running one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cluster import pki, programs
from tests.cluster.layout import (
    API_PORT,
    BIN,
    ETCD_PEER_PORT,
    ETCD_PORT,
    HERE,
    HOME,
    KUBECONFIG,
    NODE_NAME,
    RUN,
    SERVICE_NETWORK,
    STATE,
    Failed,
)
from tests.cluster.supervisor import accepts

READY_S = 90.0
STOP_S = 60.0


@dataclass(frozen=True)
class State:
    """A running cluster, as STATE keeps it. `supervisor` is the process that holds it, `born` its start in ticks.

    `mode` is `api` (etcd and API server alone) or `node` (everything).
    """

    mode: str
    supervisor: int
    born: int
    kubeconfig: str

    @property
    def alive(self) -> bool:
        return born(self.supervisor) == self.born


def state() -> State | None:
    """The running cluster's; None where none runs."""
    try:
        known = State(**json.loads(STATE.read_text()))
    except FileNotFoundError:
        return None
    return known if known.alive else None


def up_api(*, fsync: bool) -> State:
    """Have etcd and the API server running on loopback. A whole cluster that runs already is as good."""
    with alone():
        if running := state():
            return running
        prepare()
        programs.provide(programs.API)
        configure("127.0.0.1")
        return start("api", api_programs("127.0.0.1", fsync=fsync), [])


def prepare() -> None:
    """An empty folder for a new cluster, nothing left of an earlier one."""
    remove()
    for port in (API_PORT, ETCD_PORT, ETCD_PEER_PORT):
        if accepts(f"127.0.0.1:{port}"):
            raise Failed(f"port {port} of this machine is taken: the cluster needs it (see `ss -tlnp`)")
    for folder in (RUN / "logs", RUN / "held"):
        folder.mkdir(parents=True)


def configure(address: str) -> None:
    """Certificates, tokens and the kubeconfigs that hold them."""
    folder = RUN / "pki"
    pki.make(folder, address)
    for user, token in pki.tokens(folder, NODE_NAME).items():
        pki.kubeconfig(KUBECONFIG if user == "admin" else RUN / "node.kubeconfig", folder, address, token)


def api_programs(address: str, *, fsync: bool) -> list[dict[str, Any]]:
    """etcd, and the API server at `address`. Without `fsync` nothing survives a power cut, and writes are quick."""
    folder, etcd, peers = RUN / "pki", f"127.0.0.1:{ETCD_PORT}", f"http://127.0.0.1:{ETCD_PEER_PORT}"
    return [
        {
            "name": "etcd",
            "argv": [
                str(BIN / "etcd"),
                f"--data-dir={RUN / 'etcd'}",
                f"--listen-client-urls=http://{etcd}",
                f"--advertise-client-urls=http://{etcd}",
                f"--listen-peer-urls={peers}",
                f"--initial-advertise-peer-urls={peers}",
                f"--initial-cluster=default={peers}",
                *([] if fsync else ["--unsafe-no-fsync"]),
            ],
        },
        {
            "name": "kube-apiserver",
            "needs": [etcd],
            "argv": [
                str(BIN / "kube-apiserver"),
                f"--etcd-servers=http://{etcd}",
                f"--secure-port={API_PORT}",
                f"--bind-address={address}",
                f"--advertise-address={address}",
                f"--tls-cert-file={folder / 'api.crt'}",
                f"--tls-private-key-file={folder / 'api.key'}",
                f"--client-ca-file={folder / 'ca.crt'}",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--authorization-mode=Node,RBAC",
                f"--service-account-key-file={folder / 'sa.pub'}",
                f"--service-account-signing-key-file={folder / 'sa.key'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-cluster-ip-range={SERVICE_NETWORK}",
                "--allow-privileged=true",  # the volume provisioner's helper is
                "--kubelet-preferred-address-types=InternalIP",
                f"--kubelet-client-certificate={folder / 'api-to-kubelet.crt'}",
                f"--kubelet-client-key={folder / 'api-to-kubelet.key'}",
                f"--kubelet-certificate-authority={folder / 'ca.crt'}",
            ],
        },
    ]


def start(mode: str, listed: Sequence[dict[str, Any]], wrapper: Sequence[str]) -> State:
    """Start the supervisor (under `wrapper`) and with it the programs; return when the API server is ready."""
    with (RUN / "logs" / "supervisor.log").open("w") as log:
        process = subprocess.Popen(
            [*wrapper, sys.executable, str(HERE / "supervisor.py"), str(RUN)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    known = State(mode, process.pid, born(process.pid), str(KUBECONFIG))
    STATE.write_text(json.dumps(asdict(known)))
    part = RUN / "programs.part"
    part.write_text(json.dumps(listed, indent=2))
    part.rename(RUN / "programs.json")
    wait("the API server", lambda: kubectl("get", "--raw", "/readyz", timeout_s=5).returncode == 0)
    return known


def down() -> None:
    """Stop everything and remove what it left. Programs and images stay in their caches."""
    with alone():
        remove()


def remove() -> None:
    if running := state():
        os.kill(running.supervisor, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while running.alive and time.monotonic() < end:
            time.sleep(0.1)
        if running.alive:
            os.kill(running.supervisor, signal.SIGKILL)
    for path in (KUBECONFIG, STATE):
        path.unlink(missing_ok=True)
    if RUN.exists():
        shutil.rmtree(RUN)


def kubectl(*arguments: str, timeout_s: float = 60, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """kubectl as the administrator; its exit code is the caller's to judge."""
    command = [str(BIN / "kubectl"), f"--kubeconfig={KUBECONFIG}", f"--request-timeout={timeout_s:.0f}s", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)


def wait(what: str, done: Callable[[], bool], timeout_s: float = READY_S) -> None:
    """Until it is done, a fifth of a second between looks. Raises Failed with the logs' place."""
    end = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end:
            raise Failed(f"{what} was not ready within {timeout_s:.0f} s; the logs are in {RUN / 'logs'}")
        time.sleep(0.2)


@contextmanager
def alone() -> Iterator[None]:
    """One process at a time brings the cluster up or down."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def born(pid: int) -> int:
    """When a process started, in ticks since boot; 0 where there is none. Tells it from a later one with its number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
