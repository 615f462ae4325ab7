"""What lies on disk for each object, and how it comes and goes in one step each.

<root>/lock                       held by the one control plane that follows these objects
<root>/objects/<name>/            an object: manifest.json, object.json, secret.json, admitted.json,
                                  preempted.json, deleting
<root>/objects/<name>/<pod>/      a pod's folder, as `shim` describes it
<root>/ended/<name>/              the same after its deletion, until it is forgotten
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from controlplane.clusters.local import shim
from controlplane.clusters.pieces import LogFile
from controlplane.render import Identity, identity_of

MANIFEST, OBJECT, SECRET, ADMITTED = "manifest.json", "object.json", "secret.json", "admitted.json"
PREEMPTED = "preempted.json"
T = TypeVar("T")
UNFINISHED = "."  # a name that begins so is a folder being made or removed: no object's name can


class Folders:
    """The objects under `root`."""

    def __init__(self, root: Path) -> None:
        self.live, self._ended = root / "objects", root / "ended"
        for folder in (self.live, self._ended):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left)

    def names(self) -> Iterator[str]:
        """Objects that have not been deleted to the end."""
        return (path.name for path in self.live.iterdir())

    def add(self, manifest: Mapping[str, Any], record: Mapping[str, Any], secret: Mapping[str, str]) -> Path:
        """Make an object's folder with a subfolder for each of `record["pods"]`, all or nothing."""
        name: str = manifest["metadata"]["name"]
        part = self.live / f"{UNFINISHED}{name}-{uuid.uuid4().hex}"
        try:
            for pod in record["pods"]:
                (part / pod / shim.WORK).mkdir(parents=True)
            for file, content in ((MANIFEST, manifest), (OBJECT, record), (SECRET, dict(secret))):
                shim.write_atomically(str(part / file), content)
            part.rename(self.live / name)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        shim.sync_folder(str(self.live))
        return self.live / name

    def archive(self, name: str) -> Path:
        """The object is gone; what its pods wrote stays to be read, there. Its secret goes."""
        (self.live / name / SECRET).unlink(missing_ok=True)
        (self.live / name).rename(self._ended / name)
        shim.sync_folder(str(self._ended))
        return self._ended / name

    def archived(self, name: str) -> tuple[Identity, str] | None:
        """Whose attempt a deleted object was, and its uid."""
        folder = self._ended / name
        if not folder.is_dir():
            return None
        return identity_of(read(folder / MANIFEST)), str(read(folder / OBJECT)["uid"])

    def forget(self, name: str) -> None:
        """Remove a deleted object's folder."""
        aside = self._ended / f"{UNFINISHED}{name}-{uuid.uuid4().hex}"
        try:
            (self._ended / name).rename(aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside)

    def ended(self) -> Iterator[Path]:
        """The folders of deleted objects."""
        return (path for path in self._ended.iterdir() if not path.name.startswith(UNFINISHED))

    def log(self, name: str, pod: str, look: Callable[[LogFile], T]) -> T:
        """What `look` sees of what a pod wrote: in its object's place, and where that is after the deletion."""
        seen = look(LogFile(self.live / name / pod / shim.LOG))
        return seen if (self.live / name).is_dir() else look(LogFile(self._ended / name / pod / shim.LOG))


def read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises OSError."""
    return dict(json.loads(path.read_bytes()))
