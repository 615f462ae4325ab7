"""Which kinds had objects of ours when last looked at, kept over restarts.

A control plane that starts beside an API server which does not serve such a kind yet, or under a Role that no longer
names it, must not take its objects for gone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from controlplane.clusters.base import Kind
from controlplane.clusters.kubernetes.discovery import preferred

FILE = "kinds.json"


class Remembered:
    """The kinds, in a file of the archive's folder."""

    def __init__(self, archive: Path) -> None:
        self._file = archive / FILE
        self.kinds = self._read()

    def update(self, kinds: Iterable[Kind]) -> None:
        """These have objects now."""
        found = frozenset(kinds)
        if found == self.kinds:
            return
        draft = self._file.with_name(f".{FILE}")
        with contextlib.suppress(OSError):  # a full disk takes this caution away, not the runs
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(sorted(found)), "utf-8")
            draft.replace(self._file)
            self.kinds = found

    def add(self, kind: Kind) -> None:
        """This one has an object now."""
        self.update([kind, *self.kinds])

    def _read(self) -> frozenset[Kind]:
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return frozenset()
        return frozenset(kind for name in found if (kind := preferred(name)) is not None)
