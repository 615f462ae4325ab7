"""What every service works with. Made once by the process, passed in, never a global."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from controlplane.clusters.base import Cluster
from controlplane.store.store import Store
from controlplane.submission import IMAGE


@dataclass(frozen=True)
class Context:
    """`home` is the data folder, `url` the control plane's as pods reach it, `clock` seconds since the epoch."""

    store: Store
    cluster: Cluster
    home: Path
    url: str
    image: str = IMAGE
    namespace: str = "default"
    clock: Callable[[], float] = time.time
