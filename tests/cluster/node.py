"""The node: everything but this machine's file system is its own.

The programs run in a process, a mount and a network namespace, so that whatever becomes of them, nothing of theirs
(a process, a mount, an interface, a rule of iptables) outlives the namespaces' first process. In there /run is empty,
and what is written to /var goes to the cluster's folder. Outside are the near end of a pair of interfaces, which goes
with the far one, cgroups and some kernel settings, which `clean` puts right.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from tests.cluster import images
from tests.cluster import programs as built
from tests.cluster.layout import (
    BIN,
    CGROUP,
    DNS_SERVICE,
    HOST_ADDRESS,
    IMAGES,
    KUBECONFIG,
    LINK,
    LINK_NETWORK,
    NODE_ADDRESS,
    NODE_NAME,
    POD_NETWORK,
    REGISTRY,
    RUN,
    SERVICE_NETWORK,
    Failed,
)

PACKAGES = {  # Debian's, by a file of each
    "/usr/bin/containerd": "containerd",
    "/usr/sbin/runc": "runc",
    "/usr/bin/buildah": "buildah",
    "/usr/bin/mmdebstrap": "mmdebstrap",
    "/usr/bin/docker-registry": "docker-registry",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/sbin/iptables": "iptables",
    "/usr/sbin/conntrack": "conntrack",
    "/bin/ip": "iproute2",
    "/bin/busybox": "busybox-static",
    "/usr/bin/openssl": "openssl",
    "/usr/bin/socat": "socat",  # for kubectl port-forward
}
CONTAINERD = "/run/containerd/containerd.sock"
CGROUPS = Path("/sys/fs/cgroup")
CPU_SHARES = 4096  # all pods together weigh as much as four processes of this machine; version 1 counts them as one
KERNEL = Path("/proc/sys")
KUBELET_SETS = (  # of the whole machine's kernel
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
ENTER = f"""
set -e
mount -t tmpfs tmpfs /run
mount -t overlay -o lowerdir=/var,upperdir={RUN}/var,workdir={RUN}/var.work overlay /var
mkdir -p /var/lib/kubelet /var/log/pods
mount --bind {RUN}/kubelet /var/lib/kubelet
mount --bind {RUN}/pods /var/log/pods
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
exec "$@"
"""
WRAPPER = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", ENTER, "sh"]


def linked() -> bool:
    """Whether a node's network is joined to this machine: the interface goes with the node's last process."""
    return Path("/sys/class/net", LINK).exists()


def check() -> None:
    """Install the Debian packages that are missing. Raises Failed where this machine cannot be a node."""
    if os.geteuid() != 0:
        raise Failed("the whole cluster needs root, for namespaces and cgroups; without it: up --only api")
    if linked():
        raise Failed(f"a cluster of another user or cache folder runs here (interface {LINK}); there is room for one")
    missing = [package for file, package in PACKAGES.items() if not Path(file).exists()]
    if missing:
        print(f"cluster: installing {' '.join(missing)}", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", *missing]):
            if subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False).returncode:
                raise Failed(f"Debian's {', '.join(missing)} could not be installed: `{' '.join(command)}` failed")
    routes = json.loads(_run("ip", "-json", "route"))
    taken = [ip_network(each["dst"]) for each in routes if each["dst"] != "default"]
    for network in map(ip_network, (LINK_NETWORK, POD_NETWORK, SERVICE_NETWORK)):
        if other := next((each for each in taken if each.overlaps(network)), None):
            raise Failed(f"the cluster needs the addresses {network}, and this machine has a route to {other}")


def prepare() -> None:
    """Folders, cgroups, and a note of the kernel's settings before kubelet changes them."""
    for name in ("var", "var.work", "kubelet", "pods", "volumes", "shared"):
        (RUN / name).mkdir()
    (RUN / "kernel.json").write_text(json.dumps({name: (KERNEL / name).read_text() for name in KUBELET_SETS}))
    for root in _cgroup_roots():
        folder = root / CGROUP
        folder.mkdir(exist_ok=True)
        for inherited in ("cpuset.cpus", "cpuset.mems"):
            if (folder / inherited).exists() and (root / "cgroup.clone_children").exists():  # version 1
                (folder / inherited).write_text((root / inherited).read_text())
        if (folder / "cpu.shares").exists():
            (folder / "cpu.shares").write_text(str(CPU_SHARES))
    if not (KERNEL / "net/bridge").exists():
        _run("modprobe", "br_netfilter")


def connect(init: int) -> None:
    """Join the node's network namespace, where `init` lives, to this machine, and route pods and services there."""
    _run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", str(init))
    prefix = LINK_NETWORK.partition("/")[2]
    inside = ("nsenter", f"--target={init}", "--net")
    for command in (
        ("ip", "address", "add", f"{HOST_ADDRESS}/{prefix}", "dev", LINK),
        ("ip", "link", "set", LINK, "up"),
        (*inside, "ip", "address", "add", f"{NODE_ADDRESS}/{prefix}", "dev", "eth0"),
        (*inside, "ip", "link", "set", "eth0", "up"),
        (
            *inside,
            "ip",
            "route",
            "add",
            SERVICE_NETWORK,
            "dev",
            "eth0",
        ),  # else refused before kube-proxy's rules see it
        *(("ip", "route", "add", network, "via", NODE_ADDRESS) for network in (POD_NETWORK, SERVICE_NETWORK)),
    ):
        _run(*command)


def clean() -> None:
    """After the node's processes are gone: no cgroup, no setting of the kernel is left of it."""
    if linked():
        return  # another's, who has these cgroups now
    for root in _cgroup_roots():
        for folder, _, _ in os.walk(root / CGROUP, topdown=False):
            Path(folder).rmdir()
    noted = RUN / "kernel.json"
    if noted.exists():
        for name, value in json.loads(noted.read_text()).items():
            if (KERNEL / name).read_text() != value:
                (KERNEL / name).write_text(value)


def leftovers() -> list[str]:
    """What a cluster that is down should not have left on this machine, a line each."""
    found = [f"cgroup {root / CGROUP}" for root in _cgroup_roots() if (root / CGROUP).exists()]
    found += [f"interface {name}" for name in (LINK, "cni0") if Path("/sys/class/net", name).exists()]
    found += [
        f"mount {line.split()[1]}"
        for line in Path("/proc/mounts").read_text().splitlines()
        if str(IMAGES.parent) in line
    ]
    rules = _run("iptables-save") if shutil.which("iptables-save") else ""
    found += [f"rule {line}" for line in rules.splitlines() if "KUBE-" in line or "CNI-" in line]
    lasting = ("etcd", "kube-apiserver", *built.NODE)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"{RUN}/" in f"{command}/" or any(f"{BIN / name} " in command for name in lasting):
            found.append(f"process {folder.name} {command[:100]}")
    if RUN.exists():
        found.append(f"folder {RUN}")
    return found


def programs() -> list[dict[str, Any]]:
    """All but etcd and the API server, in the order of their start."""
    _write_configs()
    api = f"{NODE_ADDRESS}:16443"
    manager = [
        str(BIN / "kube-controller-manager"),
        f"--kubeconfig={KUBECONFIG}",
        f"--service-account-private-key-file={RUN / 'pki/sa.key'}",
        f"--root-ca-file={RUN / 'pki/ca.crt'}",
        "--use-service-account-credentials",
        "--flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
    scheduler = [str(BIN / "kube-scheduler"), f"--kubeconfig={KUBECONFIG}", "--leader-elect=false"]
    kubelet = [
        str(BIN / "kubelet"),
        f"--config={RUN / 'kubelet.json'}",
        f"--kubeconfig={RUN / 'node.kubeconfig'}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
    ]
    proxy = [
        str(BIN / "kube-proxy"),
        f"--kubeconfig={KUBECONFIG}",
        f"--hostname-override={NODE_NAME}",
        f"--cluster-cidr={POD_NETWORK}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",  # what the machine's own network namespace alone may set
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]
    return [
        {"name": "registry", "argv": images.registry_command()},
        {"name": "containerd", "argv": ["containerd", "--config", str(RUN / "containerd.toml")]},
        {"name": "kube-controller-manager", "argv": manager, "needs": [api]},
        {"name": "kube-scheduler", "argv": [*scheduler, "--bind-address=127.0.0.1"], "needs": [api]},
        {"name": "kubelet", "argv": kubelet, "needs": [api, CONTAINERD, REGISTRY]},
        {"name": "kube-proxy", "argv": proxy, "needs": [api]},
    ]


def _write_configs() -> None:
    (RUN / "containerd.toml").write_text(f"""\
version = 2
root = "{IMAGES / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE.reference}"
  restrict_oom_score_adj = true  # lowering a score needs a capability that root may lack
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{RUN / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
""")
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_NETWORK}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    (RUN / "cni").mkdir()
    (RUN / "cni/10-bridge.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]})
    )
    (RUN / "resolv.conf").write_text("")
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "healthzBindAddress": "127.0.0.1",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": str(RUN / "resolv.conf"),
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        # The machine's disk is not the cluster's to watch: neither images nor pods go because others fill it.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "syncFrequency": "5s",  # how soon a pod sees that a mounted secret changed, such as a webhook's certificate
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "tlsCertFile": str(RUN / "pki/kubelet.crt"),
        "tlsPrivateKeyFile": str(RUN / "pki/kubelet.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(RUN / "pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
    }
    (RUN / "kubelet.json").write_text(json.dumps(kubelet, indent=2))


def _cgroup_roots() -> list[Path]:
    """Each hierarchy's root: one on version 2, one a controller on version 1."""
    lines = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [
        Path(fields[1])
        for fields in lines
        if fields[2] in {"cgroup", "cgroup2"} and Path(fields[1]).is_relative_to(CGROUPS)
    ]


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    return done.stdout
