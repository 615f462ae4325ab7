"""Users by tokens that an administrator made: the control plane knows their digests alone."""

from __future__ import annotations

import hashlib
import hmac

from controlplane.domain.errors import Unauthorized
from controlplane.identity.shown import Shown


class Tokens:
    """The users of a file of `NAME sha256:DIGEST` lines, as `controlplane.options.tokens_file` reads it."""

    def __init__(self, lines: str) -> None:
        pairs = (line.split(" sha256:") for line in lines.splitlines())
        self._known = [(name, bytes.fromhex(digest)) for name, digest in pairs]

    async def user(self, shown: Shown) -> str:
        """See `Users`. Every digest is compared, so that the time tells nothing of which one was nearly right."""
        digest = hashlib.sha256(shown.token.encode()).digest()
        found = [name for name, known in self._known if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized("send the header Authorization: Bearer TOKEN, this API's own or one of --tokens-file")
        return found[0]
