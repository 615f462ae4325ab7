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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tests.cluster import addons, images, node, pki, programs
from tests.cluster.kubectl import kubectl
from tests.cluster.layout import (
    API_PORT,
    AUDIT,
    BIN,
    ETCD_PEER_PORT,
    ETCD_PORT,
    HERE,
    HOME,
    KUBECONFIG,
    NODE_ADDRESS,
    NODE_NAME,
    REGISTRY,
    RUN,
    SERVICE_NETWORK,
    STATE,
    Failed,
)
from tests.cluster.supervisor import accepts

AUDITED = {  # who asked for what, of control planes and of who plays one; not of the cluster's own programs
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "users": ["admin"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
    ],
}
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
    kubeconfig: str = str(KUBECONFIG)
    registry: str = ""
    image: str = ""

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


def up_api(*, fsync: bool = False) -> State:
    """Have etcd and the API server running on loopback. A whole cluster that runs already is as good."""
    with alone():
        if running := state():
            return running
        programs.provide(programs.API)
        programs.forget_objects()
        prepare("127.0.0.1")
        known = start("api", [])
        release(api_programs("127.0.0.1", fsync=fsync))
        return known


def up(*, extra: Sequence[str] = (), fsync: bool = False) -> State:
    """Have the whole cluster running, with the addons that ASKED names in `extra`."""
    wanted = (*addons.ALWAYS, *(addon for name in extra for addon in addons.ASKED[name]))
    with alone():
        known = _build(wanted)
        if known is None or known.mode == "api":
            known = _start_node(fsync=fsync)
        addons.settle(addons.install(wanted))
        return known


def build() -> None:
    """Have all that any cluster is made of in the caches, whether one runs or not. (Each by itself takes longer.)"""
    with alone():
        _build((*addons.ALWAYS, *(addon for extra in addons.ASKED.values() for addon in extra)))


def _build(wanted: Sequence[addons.Addon]) -> State | None:
    """Programs and images of a node with these addons. Returns the cluster that runs."""
    known = state()
    if known is None or known.mode == "api":
        node.check()
        images.make_room()
    programs.provide((*programs.API, *programs.NODE))
    addons.prepare(wanted)
    programs.forget_objects()
    return known


def _start_node(*, fsync: bool) -> State:
    prepare(NODE_ADDRESS)
    node.prepare()
    known = start("node", node.WRAPPER)
    node.connect(known.supervisor)
    release([*api_programs(NODE_ADDRESS, fsync=fsync), *node.programs()])
    ready = ("wait", "node", NODE_NAME, "--for=condition=Ready", "--timeout=1s")
    wait("the node", lambda: kubectl(*ready).returncode == 0)
    return known


def prepare(address: str) -> None:
    """An empty folder for a new cluster with its keys, nothing left of an earlier one."""
    remove()
    for port in (API_PORT, ETCD_PORT, ETCD_PEER_PORT) if address == "127.0.0.1" else ():
        if accepts(f"127.0.0.1:{port}"):
            raise Failed(f"port {port} of this machine is taken: the cluster needs it (see `ss -tlnp`)")
    for folder in (RUN / "logs", RUN / "held"):
        folder.mkdir(parents=True)
    (RUN / "audit.json").write_text(json.dumps(AUDITED))
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
                f"--audit-policy-file={RUN / 'audit.json'}",
                f"--audit-log-path={AUDIT}",
            ],
        },
    ]


def start(mode: str, wrapper: Sequence[str]) -> State:
    """Start the supervisor, under `wrapper`, whose only child it then is. It waits for programs to keep running."""
    with (RUN / "logs" / "supervisor.log").open("w") as log:
        process = subprocess.Popen(
            [*wrapper, sys.executable, str(HERE / "supervisor.py"), str(RUN)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
        )
    supervisor = process.pid
    if wrapper:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait("the node's first process", lambda: bool(children.read_text()), 10)
        supervisor = int(children.read_text())
        wait("the node's file system", (RUN / "status.json").exists, 10)
    known = State(mode, supervisor, born(supervisor), registry=REGISTRY if mode == "node" else "")
    STATE.write_text(json.dumps(asdict(known)))
    return known


def release(listed: Sequence[dict[str, Any]]) -> None:
    """Let the supervisor start the programs; return when the API server is ready."""
    part = RUN / "programs.part"
    part.write_text(json.dumps(listed, indent=2))
    part.rename(RUN / "programs.json")
    wait("the API server", lambda: kubectl("get", "--raw", "/readyz", timeout_s=5).returncode == 0)


def note_image(reference: str) -> None:
    """Tell, in STATE, which image of the trainer pods are to use."""
    if known := state():
        STATE.write_text(json.dumps(asdict(replace(known, image=reference))))


def down() -> None:
    """Stop everything and remove what it left. Programs and images stay in their caches."""
    with alone():
        remove()


def remove() -> None:
    """Stop what STATE tells of, and remove what it left."""
    known = state()
    if known:
        os.kill(known.supervisor, signal.SIGTERM)
        end = time.monotonic() + STOP_S
        while known.alive and time.monotonic() < end:
            time.sleep(0.1)
        if known.alive:
            os.kill(known.supervisor, signal.SIGKILL)
            wait("the end of the cluster's processes", lambda: not known.alive, 10)
        if known.mode == "node":
            wait("the end of the node's network", lambda: not node.linked(), 20)  # the kernel takes its time
    if RUN.exists() and os.geteuid() == 0:
        node.clean()
    for path in (KUBECONFIG, STATE):
        path.unlink(missing_ok=True)
    if RUN.exists():
        shutil.rmtree(RUN)


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


def pid_of(program: str) -> int:
    """A running program's process as this machine numbers it. Raises Failed where it does not run."""
    known = state()
    inner = json.loads((RUN / "status.json").read_text())[program]["pid"] if known else 0
    if not known or not inner:
        raise Failed(f"{program} does not run")
    if known.mode == "api":
        return int(inner)
    space = Path(f"/proc/{known.supervisor}/ns/pid").readlink()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            numbers = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("NSpid:"))
            if numbers.split()[-1] == str(inner) and (folder / "ns/pid").readlink() == space:
                return int(folder.name)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    raise Failed(f"{program} has just ended")
