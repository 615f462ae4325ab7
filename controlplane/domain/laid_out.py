"""What a spec became a moment ago, for the next runs that ask for the same. It looks at no clock and at no cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace

from controlplane.domain.errors import Problem
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.storage import place_of, within


@dataclass(frozen=True)
class LaidOut:
    """What a spec became on a cluster whose `storage` it writes to, and why it can never run there; known `since`."""

    run: ResolvedRun
    problems: tuple[Problem, ...]
    storage: str
    shared_folders: bool
    since: float

    def of(self, run_id: str) -> ResolvedRun:
        """The same for another run: only its folder is another, where that is ours to choose."""
        if not self.storage:
            return self.run
        place = place_of(within(self.storage, run_id), shared_folders=self.shared_folders)
        return replace(self.run, config={**self.run.config, "out": place.path}, folder=place.uri)
