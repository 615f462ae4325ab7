"""What every service works with. Made once by the process, passed in, never a global."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from controlplane.clusters.base import Cluster, Kind
from controlplane.domain.defaults import RunDefaults
from controlplane.domain.destinations import Destination
from controlplane.domain.retention import Retention
from controlplane.store.store import Store
from controlplane.submission import IMAGE


@dataclass(frozen=True)
class Context:
    """`home` is the data folder, `url` the control plane's as pods reach it, `clock` seconds since the epoch.

    `image`, `kind`, `queue`, `storage` and `defaults` are the installation's for runs that say nothing else, and
    `destinations` those of its notifications; `retention` is how long it keeps what has ended.
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
