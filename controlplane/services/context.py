"""What every service works with. Made once by the process, passed in, never a global."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from controlplane.clusters.base import Cluster, Kind
from controlplane.domain.defaults import RunDefaults
from controlplane.domain.destinations import Destination
from controlplane.domain.laid_out import LaidOut
from controlplane.domain.resolve import Start
from controlplane.domain.retention import Retention
from controlplane.services.pace import Pace
from controlplane.store.store import Store
from controlplane.submission import IMAGE


@dataclass(frozen=True)
class Place:
    """A further cluster, and what the installation's `url` and `storage` are there."""

    cluster: Cluster
    url: str
    storage: str


class Reporter(NamedTuple):
    """Who a token is: an attempt of a run, until a moment of `time.monotonic`."""

    run_id: str
    attempt: int
    until: float


@dataclass(frozen=True)
class Context:
    """`home` is the data folder, `url` the control plane's as pods reach it, `clock` seconds since the epoch.

    `image`, `kind`, `queue`, `storage` and `defaults` are the installation's for runs that say nothing else, and
    `destinations` those of its notifications; `retention` is how long it keeps what has ended. `further` are the
    clusters beside `cluster` that runs may name. `laid_out` is what `services.ground` found a moment ago, `reporters`
    whom `services.attempts` knows by their tokens' hashes, as run and attempt, and until when; `pace` tells them how
    often to report.
    """

    store: Store
    cluster: Cluster
    home: Path
    url: str
    image: str = IMAGE
    kind: Kind | Literal["auto"] = "auto"
    queue: str = ""
    storage: str = ""
    defaults: RunDefaults = field(default_factory=RunDefaults)
    destinations: Sequence[Destination] = ()
    retention: Retention = field(default_factory=Retention)
    clock: Callable[[], float] = time.time
    gpu_price: float = 0.0  # money for an hour of one; 0: unknown
    further: Mapping[str, Place] = field(default_factory=dict[str, Place])
    laid_out: dict[tuple[str, Start], LaidOut] = field(default_factory=dict[tuple[str, Start], LaidOut], compare=False)
    reporters: dict[str, Reporter] = field(default_factory=dict[str, "Reporter"], compare=False)
    pace: Pace = field(default_factory=Pace, compare=False)

    def at(self, cluster: str) -> Context:
        """What holds on the further cluster of this name; the installation's own for any other, such as one taken out.

        So nothing is asked of a cluster that is not there, and what is stored of its runs can still be read.
        """
        place = self.further.get(cluster)
        return self if place is None else replace(self, cluster=place.cluster, url=place.url, storage=place.storage)
