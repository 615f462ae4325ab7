"""What is installed into the cluster: by the upstreams' own manifests, out of the modules of its programs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.cluster import images, programs
from tests.cluster.images import COREDNS, JOBSET, KWOK, OPERATOR, PROVISIONER, SHELL, TRAINER_V2, Small
from tests.cluster.kubectl import must
from tests.cluster.layout import HERE, RUN

READY_S = 120
UNWANTED = "  - ../../third-party/jobset"  # a line of Trainer v2's kustomization, which says when to drop it


@dataclass(frozen=True)
class Addon:
    """A folder of `manifests/`; with `program`, the manifests of its module besides, as `module` in it.

    `kind` is one that it defines and that the next addon has objects of.
    """

    name: str
    namespace: str
    images: dict[str, Small]
    program: str = ""
    kind: str = ""


DNS = Addon("coredns", "kube-system", {"COREDNS": COREDNS})
STORAGE = Addon("storage", "local-path-storage", {"PROVISIONER": PROVISIONER, "SHELL": SHELL}, "local-path-provisioner")
TRAINING_OPERATOR = Addon("operator", "kubeflow", {"OPERATOR": OPERATOR, "SHELL": SHELL}, "training-operator")
JOB_SET = Addon("jobset", "jobset-system", {"JOBSET": JOBSET}, "jobset")
TRAINER = Addon("trainer", "kubeflow-system", {"TRAINER_V2": TRAINER_V2}, "trainer-controller-manager")
FAKE_NODES = Addon("kwok", "kube-system", {"KWOK": KWOK}, "kwok", kind="stages.kwok.x-k8s.io")
FAKE_LIVES = Addon("kwok-stages", "kube-system", {}, "kwok")
ALWAYS = (DNS, STORAGE, TRAINING_OPERATOR)
ASKED = {"trainer-v2": (JOB_SET, TRAINER), "kwok": (FAKE_NODES, FAKE_LIVES)}


def prepare(addons: Sequence[Addon]) -> None:
    """Their images, where they are pulled from (minutes the first time)."""
    images.provide(images.PAUSE, *(image for addon in addons for image in addon.images.values()))


def install(addons: Sequence[Addon]) -> list[Addon]:
    """Apply those that are not there as they should be, and return them. `settle` waits until they are ready."""
    changed = []
    for addon in addons:
        folder = _rendered(addon)
        wanted, noted = _digest(folder), folder.with_suffix(".applied")
        if not noted.exists() or noted.read_text() != wanted:
            must("apply", "--server-side", "--force-conflicts", "--kustomize", str(folder), timeout_s=READY_S)
            if addon.kind:
                must("wait", f"crd/{addon.kind}", "--for=condition=Established")
            noted.write_text(wanted)
            changed.append(addon)
    return changed


def settle(addons: Sequence[Addon]) -> None:
    """Until every deployment of them is available. Raises Failed with what kubectl says."""
    for addon in addons:
        must(
            *("wait", "deployment", "--all", f"--namespace={addon.namespace}", "--for=condition=Available"),
            f"--timeout={READY_S}s",
            timeout_s=READY_S + 10,
        )


def _rendered(addon: Addon) -> Path:
    """Its folder with the images' names filled in."""
    folder = RUN / "manifests" / addon.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "manifests" / addon.name, folder)
    values = {"RUN": str(RUN), **{name: image.reference for name, image in addon.images.items()}}
    for file in folder.glob("*.yaml"):
        text = file.read_text()
        for name, value in values.items():
            text = text.replace(f"@{name}@", value)
        file.write_text(text)
    if addon.program:
        shutil.copytree(programs.manifests(addon.program), folder / "module", copy_function=_copy)
    return folder


def _digest(folder: Path) -> str:
    return sha256(b"\0".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())).hexdigest()


def _copy(source: str, target: str) -> None:
    """Without the lines that are not wanted."""
    text = Path(source).read_text(errors="replace")
    Path(target).write_text("\n".join(line for line in text.split("\n") if not line.startswith(UNWANTED)))
