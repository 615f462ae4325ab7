"""Before an upgrade: the new version migrates a copy of the store, so that one which cannot leaves the old one serving.

It runs in the new version's image beside the old control plane, whose volume it reads.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from controlplane.domain.errors import StoreError
from controlplane.store.store import DATABASE, Store

LIVE, COPY = Path("/data"), Path("/copy")


def main() -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    if not (LIVE / DATABASE).exists():
        print("there is no store yet")
        return 0
    with closing(sqlite3.connect(LIVE / DATABASE)) as live, closing(sqlite3.connect(COPY / DATABASE)) as copy:
        live.backup(copy)
    try:
        with closing(Store(COPY)) as store:
            store.ping()
    except StoreError as error:
        print(f"error: this version cannot take up the store: {error}; the one that runs serves on", file=sys.stderr)
        return 1
    print("a copy of the store was taken up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
