"""The client of a command: where a reply is not what the API says, it finds out who answers there."""

from __future__ import annotations

from importlib.metadata import version
from types import TracebackType

import httpx

from controlplane.cli.errors import CliError, Code
from controlplane.client import ApiError, Client

UNREAD = (KeyError, IndexError, TypeError, ValueError, AttributeError)  # what reading another program's reply ends in


class CommandClient(Client):
    """A client that tells a fault of ours from a server that is no control plane, or one of another version."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections. Raises CliError where what answers is to blame for `error`."""
        try:
            if isinstance(error, UNREAD) or (isinstance(error, ApiError) and error.code == "unexpected_reply"):
                self.blame()
        finally:
            super().__exit__(kind, error, trace)

    def blame(self) -> None:
        """Raise CliError unless a control plane of this version answers."""
        try:
            reply = self._http.get("/")
            found = reply.json()
            name, theirs = found["name"], found["version"]
        except (httpx.TransportError, *UNREAD):
            name, theirs = "", ""
        if name != "TeraGPT":
            sentence = f"what answers at {self.url} is no control plane of TeraGPT"
            raise CliError(sentence, Code.UNREACHABLE, next="--url with its address") from None
        if theirs != version("teragpt"):
            sentence = f"the control plane at {self.url} is TeraGPT {theirs}, and this command is {version('teragpt')}"
            raise CliError(f"{sentence}, which cannot read what it says", next="the command of its version") from None
