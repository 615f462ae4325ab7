"""Small volumes of the test cluster's node that fill up and become read-only: file systems of some MB behind claims."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import lifecycle
from tests.cluster.conftest import Namespace
from tests.cluster.layout import RUN


@dataclass(frozen=True)
class Volume:
    """A tmpfs of the node behind the claim `name`, which anybody may write and several nodes might mount."""

    name: str
    path: Path

    def seen(self) -> Path:
        """It, as this machine sees into the node."""
        return Path(f"/proc/{_supervisor()}/root{self.path}")

    def fill(self) -> None:
        """Leave no byte."""
        with (self.seen() / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def make_room(self) -> None:
        (self.seen() / "filler").unlink()

    def remount(self, how: str) -> None:
        """`ro` or `rw`; it must not be open for writing."""
        _on_node("mount", "-o", f"remount,{how}", str(self.path))


@contextmanager
def volume(namespace: Namespace, name: str, mib: int) -> Iterator[Volume]:
    """One in the namespace, with its claim bound, for as long as the context lasts."""
    made = Volume(name, RUN / "volumes" / f"{namespace.name}-{name}")
    made.path.mkdir(parents=True)
    _on_node("mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0777", "none", str(made.path))
    cluster, whole = namespace.cluster, f"{namespace.name}-{name}"
    size = {"storage": f"{mib}Mi"}
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    of_claim = {"namespace": namespace.name, "name": name}
    backed = {"hostPath": {"path": str(made.path)}, "claimRef": of_claim, "persistentVolumeReclaimPolicy": "Retain"}
    claim = {**spec, "volumeName": whole, "resources": {"requests": size}}
    try:
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": whole},
                "spec": {**spec, **backed, "capacity": size},
            }
        )
        namespace.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim}
        )
        namespace.wait(f"pvc/{name}", "jsonpath={.status.phase}=Bound", 60)
        yield made
    finally:
        cluster.kubectl("delete", "persistentvolume", whole, "--wait=false", "--ignore-not-found")
        _on_node("umount", "--lazy", str(made.path))
        made.path.rmdir()


def _on_node(*command: str) -> None:
    subprocess.run(["nsenter", f"--target={_supervisor()}", "--mount", "--pid", *command], check=True)


def _supervisor() -> int:
    known = lifecycle.state()
    assert known is not None
    return known.supervisor
