"""Users by tokens that an administrator made: the control plane knows their digests alone."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from controlplane.domain.errors import Unauthorized
from controlplane.identity.shown import Shown
from controlplane.options import token_lines

log = logging.getLogger(__name__)


class Tokens:
    """The users of a file of `NAME sha256:DIGEST` lines, as they stand in it when they call.

    While it is away, or has a line that is none, those count that stood in it before; the log says so once.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: tuple[int, ...] | None = (0,)  # what told the last version from others; None: it was away
        self._known: list[tuple[str, bytes]] = []

    async def user(self, shown: Shown) -> str:
        """See `Users`. Every digest is compared, so that the time tells nothing of which one was nearly right."""
        self._look()
        digest = hashlib.sha256(shown.token.encode()).digest()
        found = [name for name, known in self._known if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized("send the header Authorization: Bearer TOKEN, this API's own or one of --tokens-file")
        return found[0]

    def _look(self) -> None:
        seen = _version(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            pairs = [line.split(" sha256:") for line in token_lines(str(self._file)).splitlines()]
        except ValueError as error:
            log.warning("--tokens-file: what stood in it before counts on; allowed: %s", error)
            return
        self._known = [(name, bytes.fromhex(digest)) for name, digest in pairs]


def _version(file: Path) -> tuple[int, ...] | None:
    """What tells a version of the file from others; None where it is away."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
