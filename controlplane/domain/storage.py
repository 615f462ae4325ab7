"""Where data and checkpoints lie: one address for the user, one path for the pods. It opens nothing.

Where control plane and pods see the same files (the local cluster), an address is an absolute folder. On Kubernetes it
is `pvc://claim/path`, a claim that is mounted into every pod, or an object store's URL, as `s3://bucket/prefix`, which
reaches the trainer as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MOUNT = "/mnt/teragpt"  # a claim's folder in a pod is below it, under the claim's name
FOLDER = "an absolute path of a folder on this machine"
REMOTE = "pvc://CLAIM/PATH, or an object store's URL such as s3://BUCKET/PREFIX"

CLAIM = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")  # DNS-1123 subdomain
CLAIM_LENGTH = 253
URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)")
HERE = frozenset({"file", "local", "memory", "pvc"})  # fsspec's names for what another pod cannot see


class BadStorage(ValueError):
    """An address that cannot be used; the text says what was given and what is allowed."""

    def __init__(self, uri: str, allowed: str) -> None:
        super().__init__(f"got {uri!r}; allowed: {allowed}")


class Place(NamedTuple):
    """A folder: its `uri` as the user knows it, its `path` as the pods see it, the `claim` to be mounted, if any."""

    uri: str
    path: str
    claim: str | None = None


def place_of(uri: str, *, shared_folders: bool) -> Place:
    """The place that an address names; `shared_folders` where pods see this machine's files. Raises BadStorage."""
    if shared_folders:
        if not uri.startswith("/") or "\0" in uri:
            raise BadStorage(uri, FOLDER)
        return Place(uri, uri)
    found = URL.fullmatch(uri) if uri.isprintable() and uri == uri.strip() else None
    if found is None:
        raise BadStorage(uri, REMOTE)
    return _on_claim(uri, found["rest"]) if found["scheme"] == "pvc" else _in_store(uri, found["scheme"], found["rest"])


def within(uri: str, name: str) -> str:
    """The address of the folder `name` below another."""
    return f"{uri.rstrip('/')}/{name}"


def uri_of(path: str) -> str:
    """The address of what pods see at `path`."""
    below = path.removeprefix(f"{MOUNT}/")
    return path if below == path else f"pvc://{below}"


def _on_claim(uri: str, rest: str) -> Place:
    claim, _, path = rest.partition("/")
    if not CLAIM.fullmatch(claim) or len(claim) > CLAIM_LENGTH:
        raise BadStorage(uri, "pvc://CLAIM/PATH with the name of a persistent volume claim")
    path = path.rstrip("/")
    if any(part in {"", ".", ".."} for part in _parts(path)):
        raise BadStorage(uri, "a path below the claim's root, without empty parts, . and ..")
    return Place("/".join(filter(None, (f"pvc://{claim}", path))), "/".join(filter(None, (MOUNT, claim, path))), claim)


def _in_store(uri: str, scheme: str, rest: str) -> Place:
    bucket, _, path = rest.partition("/")
    if scheme in HERE:
        raise BadStorage(uri, f"{REMOTE}: a pod has no {scheme} storage that outlives it")
    if "@" in bucket or "?" in rest or "#" in rest:
        raise BadStorage(uri, "a URL without credentials and parameters: give those by env with a secret_ref")
    if not bucket or ".." in _parts(path):
        raise BadStorage(uri, REMOTE)
    plain = uri.rstrip("/")
    return Place(plain, plain)


def _parts(path: str) -> Iterator[str]:
    return iter(path.split("/")) if path else iter(())
