"""What every service works with. Made once by the process, passed in, never a global."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from controlplane.clusters.base import Cluster, Kind
from controlplane.store.store import Store
from controlplane.submission import IMAGE


@dataclass(frozen=True)
class Context:
    """`home` is the data folder, `url` the control plane's as pods reach it, `clock` seconds since the epoch.

    `image`, `kind`, `queue` and `storage` are the installation's defaults for runs that say nothing else.
    """

    store: Store
    cluster: Cluster
    home: Path
    url: str
    image: str = IMAGE
    kind: Kind | Literal["auto"] = "auto"
    queue: str = ""
    storage: str = ""
    clock: Callable[[], float] = time.time
