"""Which kinds had objects of ours when last looked at, kept over restarts.

A control plane that starts beside an API server which does not serve such a kind yet, or under a Role that no longer
names it, must not take its objects for gone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable

from controlplane.clusters.base import Kind
from controlplane.clusters.kubernetes.discovery import preferred
from controlplane.clusters.shelf import Shelf
from controlplane.domain.errors import StoreError


class Remembered:
    """The kinds that a namespace has, in a note on the archive's shelf."""

    def __init__(self, archive: Shelf, namespace: str) -> None:
        self._archive, self._file = archive, f"kinds-{namespace}.json"
        self.kinds = self._read()

    def update(self, kinds: Iterable[Kind]) -> None:
        """These have objects now."""
        found = frozenset(kinds)
        if found == self.kinds:
            return
        with contextlib.suppress(OSError, StoreError):  # a full disk takes this caution away, not the runs
            self._archive.put(self._file, json.dumps(sorted(found)).encode())
            self.kinds = found

    def add(self, kind: Kind) -> None:
        """This one has an object now."""
        self.update([kind, *self.kinds])

    def _read(self) -> frozenset[Kind]:
        try:
            found = json.loads(self._archive.read(self._file))
        except (OSError, ValueError, StoreError):
            return frozenset()
        return frozenset(kind for name in found if (kind := preferred(name)) is not None)
