"""The data folder: made, checked and locked by one process, so that nothing else writes to the same database."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from controlplane.domain.errors import FolderLocked, NetworkFolder, StoreUnavailable

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs", "afs"})
LOCK = "lock"


class DataFolder:
    """The folder `home`, held by this process until `release` or its death.

    Raises FolderLocked with the holder's process id, NetworkFolder, or StoreUnavailable where it cannot be written.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        try:
            home.mkdir(parents=True, exist_ok=True)
            kind = file_system(home, Path("/proc/self/mounts").read_text("utf-8"))
            if kind in NETWORK:
                raise NetworkFolder(home, kind)
            self._lock = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(home, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "ignore").strip()
            os.close(self._lock)
            raise FolderLocked(home, int(holder) if holder.isdigit() else None) from None
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:  # a full disk
            os.close(self._lock)
            raise _unusable(home, error) from None

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._lock)


def _unusable(home: Path, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"the data folder {home} cannot be used: {error.strerror or error}")


def file_system(folder: Path, mounts: str) -> str:
    """The type of the file system that `folder` lies on, by the table of `/proc/self/mounts`."""
    folder = folder.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        _, point, type_, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if folder.is_relative_to(point) and len(point) > best:
            best, kind = len(point), type_
    return kind
